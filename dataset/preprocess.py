"""Makes model input of original images on the device, for training, evaluation and inference.

The input is uint8, the output is floats in [0, 1] with padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dataset.geometry import Geometry

PAD_VALUE = 0.3  # of [0, 1], as in the official implementation


@dataclass(frozen=True)
class Resizing:
    """Options of resizing and padding; converted weights may have others than the default."""

    antialias: bool = True  # when it is made smaller
    pad_value: float | Sequence[float] = PAD_VALUE  # of [0, 1], for all channels or one for each
    centered: bool = False  # padding on all sides, not just at the bottom and right


OFFICIAL_RESIZING = Resizing()


def pad_batch(images: Tensor, unpadded: Tensor) -> Tensor:
    """Converts to [0, 1] and writes the padding, on the device of `images`.

    Args:
        images: (B, 3, H, W) uint8, which stay as they are; what lies outside `unpadded` is ignored.
        unpadded: (B, 2) int (h, w) of each picture, at the top left.

    Returns:
        (B, 3, H, W) float32.
    """
    outside = padding_of(images, unpadded)
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return images.div_(255).masked_fill_(outside, PAD_VALUE)


def padding_of(images: Tensor, unpadded: Tensor) -> Tensor:
    """(B, 1, H, W) bool, what lies outside the pictures; arguments of `pad_batch`."""
    height, width = images.shape[-2:]
    unpadded = unpadded.to(images.device)
    rows = torch.arange(height, device=images.device) >= unpadded[:, :1]  # (B, H)
    columns = torch.arange(width, device=images.device) >= unpadded[:, 1:]  # (B, W)
    return rows[:, None, :, None] | columns[:, None, None, :]


def letterbox_batch(
    images: Sequence[Tensor],
    geometries: Sequence[Geometry],
    device: torch.device | str = "cpu",
    *,
    pad_value: float | Sequence[float] = PAD_VALUE,
    antialias: bool = True,
) -> Tensor:
    """Sends the uint8 originals to the device and resizes and pads them there.

    Args:
        images: B uint8 (3, h, w) tensors of any sizes.
        geometries: one per image (`Geometry.letterbox`), all with the same model input (H, W).
        pad_value, antialias: see `Resizing`.

    Returns:
        (B, 3, H, W) float32 in [0, 1] on `device`.
    """
    sizes = {geometry.size for geometry in geometries}
    if len(sizes) != 1:
        raise ValueError(f"all geometries must have one model input size, got {sorted(sizes)}")
    out = torch.empty(len(images), 3, *sizes.pop(), device=device)
    out[:] = torch.tensor(pad_value, dtype=out.dtype, device=device).reshape(-1, 1, 1)
    for row, image, geometry in zip(out, images, geometries, strict=True):
        (y, x), (h, w) = geometry.pad, geometry.unpadded
        row[:, y : y + h, x : x + w] = geometry.resize_tensor(
            image.to(device, non_blocking=True), antialias=antialias
        )
    return out
