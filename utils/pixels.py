"""Pixels on the device: uint8 comes in, floats in [0, 1] with padding go to the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PAD_VALUE = 0.3  # of [0, 1], as in the official implementation


@dataclass(frozen=True)
class Resizing:
    """How an original becomes model input; converted weights may ask for another way than ours."""

    antialias: bool = True  # when it is made smaller
    pad_value: float | Sequence[float] = PAD_VALUE  # of [0, 1], for all channels or one for each
    centered: bool = False  # padding on all sides, not just at the bottom and right


OFFICIAL_RESIZING = Resizing()


def pad_batch(images: Tensor, unpadded: Tensor, pad_value: float = PAD_VALUE) -> Tensor:
    """Converts to [0, 1] and writes the padding, on the device of `images`.

    Args:
        images: (B, 3, H, W) uint8, which stay as they are; what lies outside `unpadded` is ignored.
        unpadded: (B, 2) int (h, w) of each picture, at the top left.

    Returns:
        (B, 3, H, W) float32.
    """
    outside = padding_of(images, unpadded)
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return images.div_(255).masked_fill_(outside, pad_value)


def padding_of(images: Tensor, unpadded: Tensor) -> Tensor:
    """(B, 1, H, W) bool, what lies outside the pictures; arguments of `pad_batch`."""
    height, width = images.shape[-2:]
    unpadded = unpadded.to(images.device)
    rows = torch.arange(height, device=images.device) >= unpadded[:, :1]  # (B, H)
    columns = torch.arange(width, device=images.device) >= unpadded[:, 1:]  # (B, W)
    return rows[:, None, :, None] | columns[:, None, None, :]
