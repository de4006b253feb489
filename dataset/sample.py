"""One image with its annotation, as sources yield it and transforms change it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dataset.geometry import Geometry


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), np.float32)


def _no_labels() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass
class Sample:
    """Everything known about one image; coordinates are pixels of `image`, x to the right.

    Objects stay aligned: row i of boxes, labels, keypoints and polygons is the same object.
    A geometric transform handles every field or raises (`Geometry.apply`).
    """

    image: np.ndarray  # (H, W, 3) uint8 RGB
    image_id: int | str
    orig_size: tuple[int, int]  # (H, W) of the image as it was read
    geometry: Geometry | None = None  # original pixels -> `image`; None: `image` is the original
    boxes: np.ndarray = field(default_factory=_no_boxes)  # (N, 4) float32 xyxy
    labels: np.ndarray = field(default_factory=_no_labels)  # (N,) int64 class ids, >= 1
    keypoints: np.ndarray | None = None  # (N, K, 3) float32 (x, y, visibility); 0 0 0 if unlabelled
    flip_pairs: tuple[tuple[int, int], ...] | None = None  # keypoints a mirror swaps (left, right)
    polygons: list[list[np.ndarray]] | None = None  # per object its parts, each (M, 2) float32
    captions: list[str] | None = None
