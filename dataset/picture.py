"""What a `Geometry` shows of an image, made as late as possible and where it is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from utils.images import JpegFile

if TYPE_CHECKING:
    from dataset.geometry import Geometry


@dataclass(frozen=True)
class Picture:
    """Pixels that are still to be made: those of `image` as `geometry` moves them.

    While the annotations of a batch are read, moved and written as tokens, no pixel passes through
    the caches of the processor, which makes all of that twice as fast; then its pictures are made
    in the memory that the training process reads (`collate`).
    """

    image: np.ndarray | JpegFile  # the original, which stays in memory until then
    geometry: Geometry
    antialias: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(h, w), without the padding of the model input."""
        return self.geometry.unpadded

    def pixels(self) -> np.ndarray:
        """(h, w, 3) uint8 RGB."""
        out = np.empty((*self.size, 3), np.uint8)
        self.write(out)
        return out

    def write(self, out: np.ndarray) -> None:
        """Makes the pixels in (h, w, 3) uint8, whose rows may lie apart.

        The image is decoded no larger than needed; where only a part of it is used, all of it.
        """
        geometry = self.geometry
        y, x, height, width = geometry.crop
        if (height, width) == geometry.orig_size:
            region, blocks = self._read(geometry.resized)
        else:
            region, blocks = self._read()[0][y : y + height, x : x + width], 1
        (y, x), (h, w) = geometry.offset, geometry.unpadded
        resized = self._resize(region, blocks, out if (h, w) == geometry.resized else None)
        in_place = np.may_share_memory(resized, out)
        window = out if in_place else resized[y : y + h, x : x + w]
        if geometry.flip:
            cv2.flip(window, 1, dst=out)
        elif not in_place:
            out[...] = window

    def _read(self, at_least: tuple[int, int] | None = None) -> tuple[np.ndarray, int]:
        return self.image.read(at_least) if isinstance(self.image, JpegFile) else (self.image, 1)

    def _resize(self, region: np.ndarray, blocks: int, out: np.ndarray | None) -> np.ndarray:
        """Bilinear; pixels of `region` are means of blocks, which may reach beyond its border."""
        (height, width), (h, w) = self.geometry.crop[2:], self.geometry.resized
        if (h, w) == region.shape[:2] and (height, width) == (h * blocks, w * blocks):
            return region
        if self.antialias:
            box = (0, 0, width / blocks, height / blocks)
            picture = Image.fromarray(region)
            return np.asarray(picture.resize((w, h), Image.Resampling.BILINEAR, box))
        if blocks == 1:
            return cv2.resize(region, (w, h), dst=out)
        scale = {"fx": w * blocks / width, "fy": h * blocks / height}
        return cv2.resize(region, None, **scale)[:h, :w]  # without what lies beyond the border
