"""One encoder pass over a batch of images; every task decodes what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.geometry import Geometry
from dataset.preprocess import OFFICIAL_RESIZING, Resizing, letterbox_batch
from models import Pix2Seq
from utils.images import as_image

ImageLike = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Encoded:
    """Images as the decoder sees them, and where their pixels were."""

    memory: Tensor  # (B, S, D)
    geometries: list[Geometry]  # B, original pixels -> model input


def encode_images(
    model: Pix2Seq,
    images: Sequence[Tensor],
    *,
    resize_mode: str = "letterbox",
    resizing: Resizing = OFFICIAL_RESIZING,
    regions: Sequence[tuple[int, int, int, int] | None] | None = None,
) -> Encoded:
    """Resizes on the device and encodes.

    Args:
        images: B uint8 (3, h, w) originals of any sizes.
        regions: B of y0, x0, height, width, or None for the whole image; only these parts are
            looked at.
    """
    geometries = [
        Geometry.letterbox(
            tuple(image.shape[1:]),
            model.config.image_size,
            resize_mode,
            region,
            centered=resizing.centered,
        )
        for image, region in zip(images, regions or [None] * len(images), strict=True)
    ]
    inputs = letterbox_batch(
        images,
        geometries,
        model.device,
        pad_value=resizing.pad_value,
        antialias=resizing.antialias,
    )
    with torch.no_grad():
        return Encoded(model.encode(inputs), geometries)


def as_tensor(image: ImageLike) -> Tensor:
    """(3, H, W) uint8"""
    pixels = np.require(as_image(image), requirements=["C", "W"])  # copied only if it must be
    return torch.from_numpy(pixels).permute(2, 0, 1)
