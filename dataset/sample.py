"""One image with its annotation, as sources yield it and transforms change it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from utils.images import JpegFile

if TYPE_CHECKING:
    from dataset.geometry import Geometry


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), np.float32)


def _no_labels() -> np.ndarray:
    return np.zeros(0, np.int64)


class _Pixels:
    """The field `image` of a `Sample`: a file is decoded when its pixels are first asked for."""

    def __get__(self, sample: Sample | None, owner: type | None = None) -> np.ndarray:
        if sample is None:
            raise AttributeError("image has no default")
        if isinstance(sample._image, JpegFile):
            sample._image, _ = sample._image.read()
        return sample._image

    def __set__(self, sample: Sample, image: np.ndarray | JpegFile) -> None:
        sample._image = image


def image_size(image: np.ndarray | JpegFile) -> tuple[int, int]:
    """(H, W); a file is not decoded for it."""
    return image.size if isinstance(image, JpegFile) else image.shape[:2]


@dataclass
class Sample:
    """Everything known about one image; coordinates are pixels of `image`, x to the right.

    Objects stay aligned: row i of boxes, labels, keypoints and polygons is the same object.
    A geometric transform handles every field or raises (`Geometry.apply`).
    """

    image: np.ndarray = _Pixels()  # (H, W, 3) uint8 RGB, or a `JpegFile`
    image_id: int | str
    orig_size: tuple[int, int]  # (H, W) of the image as it was read
    geometry: Geometry | None = None  # original pixels -> `image`; None: `image` is the original
    boxes: np.ndarray = field(default_factory=_no_boxes)  # (N, 4) float32 xyxy
    labels: np.ndarray = field(default_factory=_no_labels)  # (N,) int64 class ids, >= 1
    keypoints: np.ndarray | None = None  # (N, K, 3) float32 (x, y, visibility); 0 0 0 if unlabelled
    flip_pairs: tuple[tuple[int, int], ...] | None = None  # keypoints a mirror swaps (left, right)
    polygons: list[list[np.ndarray]] | None = None  # per object its parts, each (M, 2) float32
    captions: list[str] | None = None
    skipped: tuple[str, ...] = ()  # why other images could not be used, in whose place this stands

    def image_of_size(self, at_least: tuple[int, int]) -> tuple[np.ndarray, int]:
        """The image, or the means of its d x d blocks where that leaves `at_least` (H, W) pixels.

        Returns:
            (H, W, 3) uint8 and d, see `JpegFile.read`; 1 for an image that is decoded already.
        """
        if isinstance(self._image, JpegFile):
            return self._image.read(at_least)
        return self._image, 1

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of `image`, which is not decoded for it."""
        return image_size(self._image)
