"""One image with its annotation, as sources yield it and transforms change it.

`read_annotated_image` reads the image to which an annotation belongs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import UserError
from utils.images import JpegFile, open_image

if TYPE_CHECKING:
    from dataset.geometry import Geometry
    from dataset.picture import Picture


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), np.float32)


def _no_labels() -> np.ndarray:
    return np.zeros(0, np.int64)


class _Pixels:
    """The field `image` of a `Sample`: pixels are made when they are first asked for."""

    def __get__(self, sample: Sample | None, owner: type | None = None) -> np.ndarray:
        if sample is None:
            raise AttributeError("image has no default")
        if not isinstance(sample._image, np.ndarray):
            sample._image = sample._image.pixels()
        return sample._image

    def __set__(self, sample: Sample, image: np.ndarray | JpegFile | Picture) -> None:
        sample._image = image


def image_size(image: np.ndarray | JpegFile | Picture) -> tuple[int, int]:
    """(H, W); no pixels are made for it."""
    return image.shape[:2] if isinstance(image, np.ndarray) else image.size


@dataclass
class Sample:
    """Everything known about one image; coordinates are pixels of `image`, x to the right.

    Objects stay aligned: row i of boxes, labels, keypoints and polygons is the same object.
    A geometric transform handles every field or raises (`Geometry.apply`).
    """

    image: np.ndarray = _Pixels()  # (H, W, 3) uint8 RGB; set to one, a `JpegFile` or a `Picture`
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

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of `image`, for which no pixels are made."""
        return image_size(self._image)

    @property
    def source(self) -> np.ndarray | JpegFile | Picture:
        """What `image` is, or is made of if nobody has asked for its pixels yet."""
        return self._image

    def write_image(self, out: np.ndarray) -> None:
        """Puts `image` into (H, W, 3) uint8, whose rows may lie apart, as in a larger picture."""
        if isinstance(self._image, (np.ndarray, JpegFile)):
            out[...] = self.image
        else:
            self._image.write(out)

    def changed(self, **fields) -> Sample:
        """A copy with other fields; unlike `dataclasses.replace` it asks for no pixels."""
        if unknown := fields.keys() - self.__dataclass_fields__.keys():
            raise TypeError(f"Sample has no fields {sorted(unknown)}")
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)  # what copy.copy does, in a third of the time
        for name, value in fields.items():
            setattr(other, name, value)
        return other


def read_annotated_image(
    path: Path, stated_size: tuple[int, int], advice: str
) -> tuple[np.ndarray | JpegFile, tuple[int, int]]:
    """The picture in the frame of the annotation, as a `Sample` takes it, and its (H, W).

    A photograph with an EXIF orientation may have been annotated upright or as stored: the size
    that the annotation states decides, upright where both agree with it.

    Args:
        stated_size: (H, W) as the annotation has it; a 0 means it is not stated.
        advice: what to do if the file is missing.
    """
    try:
        image = open_image(path)
    except UserError:
        if os.path.isfile(path):  # Path.is_file raises where a name is too long
            raise
        raise UserError(f"image {path} is missing; {advice}") from None
    size = image_size(image)
    if 0 in stated_size or size == stated_size:
        return image, size
    stored = open_image(path, exif=False)
    if image_size(stored) == stated_size:
        return stored, stated_size
    is_size, said = ("x".join(map(str, each)) for each in (size, stated_size))
    raise UserError(
        f"image {path} is {is_size} (HxW), but its annotation says {said}: its boxes cannot fit; "
        "correct the annotation or remove the image"
    )
