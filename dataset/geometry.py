"""The one map between original pixels and model input, with its exact inverse.

It moves images, points, boxes, keypoints and polygons; polygons are cut to the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]  # (H, W)
REDUCTIONS = (1, 2, 4, 8)  # at which an image may have been decoded (`utils.images.read_image`)


def clip_polygon(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Clips a polygon to the picture (Sutherland and Hodgman, 1974).

    Where the part falls into several pieces, they stay joined by edges along the border, which
    enclose no area. The official code moves outside points to the border one by one instead, which
    adds area at the corners of the picture.

    Args:
        polygon: (M, 2) pixels (x, y).
        size: (H, W) of the picture.

    Returns:
        (M', 2) of the same type; (0, 2) where nothing is left.
    """
    points = np.asarray(polygon)
    for axis, limit in ((0, size[1]), (1, size[0])):
        points = _keep(points, points[:, axis])
        points = _keep(points, limit - points[:, axis])
    if len(points) < 3:
        return np.zeros((0, 2), np.asarray(polygon).dtype)
    # intersections are computed, so they may miss the border by a rounding error
    return np.clip(points, 0, np.asarray(size[::-1], points.dtype))


def _keep(points: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Cuts at distance 0 (positive inside); (M, 2), (M,) -> (M', 2)."""
    if len(points) == 0 or (distance >= 0).all():
        return points
    if (distance <= 0).all():
        return points[:0]
    following, distance_next = np.roll(points, -1, 0), np.roll(distance, -1)
    crosses = (distance >= 0) != (distance_next >= 0)
    step = distance / np.where(crosses, distance - distance_next, 1)
    crossing = points + (following - points) * step[:, None]
    both = np.stack([points, crossing.astype(points.dtype)], 1)  # (M, 2, 2), in walking order
    return both[np.stack([distance >= 0, crosses], 1)]


@dataclass(frozen=True)
class Geometry:
    """Crop, resize, cut a window, mirror: in this order; the rest of the input is padding.

    Coordinates are continuous: pixel i covers [i, i + 1), so a resize multiplies by the ratio of
    the sides and a mirror maps x to `unpadded width - x`. Padding is at the bottom and right, or
    on all sides of a letterbox that is `centered`.
    """

    orig_size: Size
    crop: tuple[int, int, int, int]  # y0, x0, height, width of the region of the original
    resized: Size  # the region after resizing
    offset: tuple[int, int]  # (y, x) of the window cut from the resized region
    size: Size  # model input
    flip: bool = False
    pad: tuple[int, int] = (0, 0)  # (top, left) padding in front of the picture

    @classmethod
    def letterbox(
        cls,
        orig_size: Size,
        size: Size,
        mode: str = "letterbox",
        crop: tuple[int, int, int, int] | None = None,
        *,
        centered: bool = False,
    ) -> Geometry:
        """Resizes to the largest picture of the same aspect ratio that fits (official evaluation).

        Args:
            mode: "letterbox", or "stretch" to fill the whole input, aspect not kept.
            crop: y0, x0, height, width; only this region of the original is used.
            centered: half of the padding above and left of the picture, for models that were
                trained so; not for `move_image`.
        """
        check_resize_mode(mode)
        crop = crop or (0, 0, *orig_size)
        resized = tuple(size)
        if mode == "letterbox":
            side, target = np.float32(crop[2:]), np.float32(size)  # float32 as tf.image.resize
            resized = _at_least_one(np.round(side * (target / side).min()))
        spare = [side - r for side, r in zip(size, resized, strict=True)]
        pad = (spare[0] // 2, spare[1] // 2) if centered else (0, 0)
        return cls(tuple(orig_size), tuple(crop), resized, (0, 0), tuple(size), pad=pad)

    @classmethod
    def jitter(
        cls,
        orig_size: Size,
        size: Size,
        scale: float,
        offsets: tuple[float, float] = (0.0, 0.0),
        *,
        flip: bool = False,
        crop: tuple[int, int, int, int] | None = None,
        mode: str = "letterbox",
    ) -> Geometry:
        """Scale jitter and fixed-size crop, as in the official training.

        Args:
            scale: factor on the largest picture that fits.
            offsets: (u_y, u_x) in [0, 1], where the window lies if the picture is larger than the
                input. The official code draws one u for both; two independent ones reach every
                part of the picture.
            mode: "letterbox", or "stretch": a factor of 1 then fills the whole input.
        """
        check_resize_mode(mode)
        crop = crop or (0, 0, *orig_size)
        side, target = np.float32(crop[2:]), np.float32(size) * np.float32(scale)
        resized = _at_least_one(target if mode == "stretch" else side * (target / side).min())
        spare = np.maximum(np.subtract(resized, size), 0)
        offset = (spare * np.float32(offsets)).astype(int)
        offset = (int(offset[0]), int(offset[1]))
        return cls(tuple(orig_size), tuple(crop), resized, offset, tuple(size), bool(flip))

    @cached_property
    def unpadded(self) -> Size:
        """(h, w) of the picture inside the model input."""
        (height, width), (y, x) = self.resized, self.offset
        return min(height - y, self.size[0]), min(width - x, self.size[1])

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Original pixels to model input, (..., 2) of (x, y); nothing is clipped."""
        scale, shift = self._scale_shift
        mapped = np.asarray(xy, np.float64) * scale + shift
        return mapped.astype(_float_type(xy))

    def inverse_points(self, xy: np.ndarray) -> np.ndarray:
        """Model input to original pixels, (..., 2) of (x, y)."""
        scale, shift = self._scale_shift
        mapped = (np.asarray(xy, np.float64) - shift) / scale
        return mapped.astype(_float_type(xy))

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Original pixels to model input, (..., 4) xyxy; nothing is clipped."""
        return self._corners(self.points, xyxy)

    def inverse_boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Model input to original pixels, (..., 4) xyxy."""
        return self._corners(self.inverse_points, xyxy)

    def move_image(self, image: np.ndarray, *, antialias: bool = False) -> np.ndarray:
        """Pixels of the original -> those of the model input; padding is not written.

        Args:
            image: (H, W, 3) uint8, the original; where `crop` is all of it, also the original as
                `read_image` decodes it at a fraction of its size.
            antialias: as the evaluation resizes; the official training does without.

        Returns:
            (h, w, 3) uint8 with (h, w) = `unpadded`.
        """
        if any(self.pad):
            raise ValueError(f"pad must be (0, 0) to move an image, got {self.pad}")
        # the region that is shown
        y, x, height, width = self.crop
        blocks = self._blocks(image.shape[:2])
        region = image[y : y + height, x : x + width] if blocks == 1 else image
        # resize it; the last blocks of a reduced image may reach beyond its border
        h, w = self.resized
        if antialias:
            box = (0, 0, width / blocks, height / blocks)
            resize = Image.fromarray(region).resize
            resized = np.array(resize((w, h), Image.Resampling.BILINEAR, box))
        elif blocks == 1:
            resized = region if (h, w) == (height, width) else cv2.resize(region, (w, h))
        else:
            scale = {"fx": w * blocks / width, "fy": h * blocks / height}
            resized = cv2.resize(region, None, **scale)[:h, :w]
        # the window, mirrored or not
        (y, x), (h, w) = self.offset, self.unpadded
        window = resized[y : y + h, x : x + w]
        return cv2.flip(window, 1) if self.flip else np.ascontiguousarray(window)

    def move_keypoints(
        self, keypoints: np.ndarray, flip_pairs: Sequence[tuple[int, int]] | None
    ) -> np.ndarray:
        """Original pixels to model input; points outside the picture become unlabelled.

        A point on the border counts as outside, as in the official crop. A mirror swaps left and
        right points.

        Args:
            keypoints: (N, K, 3) x, y, visibility.
            flip_pairs: (left, right) indices of points; needed where the picture is mirrored.

        Returns:
            (N, K, 3) float32, (0, 0, 0) where a point is not labelled.
        """
        xy = self.points(keypoints[..., :2])
        inside = ((xy > 0) & (xy < np.float32(self.unpadded[::-1]))).all(-1)
        seen = inside & (keypoints[..., 2] > 0)
        moved = np.where(seen[..., None], np.concatenate([xy, keypoints[..., 2:]], -1), 0)
        if self.flip:
            if flip_pairs is None:
                raise ValueError("flip_pairs must say which keypoints a mirror swaps, got None")
            order = np.arange(keypoints.shape[1])
            for left, right in flip_pairs:
                order[[left, right]] = right, left
            moved = moved[:, order]
        return moved.astype(np.float32)

    def move_polygons(self, polygons: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        """Original pixels to model input, cut to the picture; parts that lie outside are dropped.

        Args:
            polygons: per object its parts, each (M, 2) of (x, y).
        """
        parts = [part for parts in polygons for part in parts]
        points = self.points(np.concatenate([np.zeros((0, 2), np.float32), *parts]))  # all at once
        inside = ((points >= 0) & (points <= np.float32(self.unpadded[::-1]))).all(1)
        nothing_outside, end, moved = inside.all(), 0, []
        for parts in polygons:
            pieces = []
            for part in parts:
                start, end = end, end + len(part)
                piece = points[start:end]
                if not (nothing_outside or inside[start:end].all()):
                    piece = clip_polygon(piece, self.unpadded)
                pieces.append(piece)
            moved.append([piece for piece in pieces if len(piece) >= 3])
        return moved

    def resize_tensor(self, image: Tensor, *, antialias: bool = True) -> Tensor:
        """uint8 (3, H, W) original -> float (3, h, w) in [0, 1], (h, w) = `unpadded`.

        Bilinear on floats, on the device of `image`; with antialias it is the official evaluation.
        """
        y, x, height, width = self.crop
        region = image[:, y : y + height, x : x + width].float() / 255
        if self.resized != (height, width):
            region = F.interpolate(
                region[None],
                self.resized,
                mode="bilinear",
                antialias=antialias,
                align_corners=False,
            )[0]
        (y, x), (h, w) = self.offset, self.unpadded
        window = region[:, y : y + h, x : x + w]
        return window.flip(2) if self.flip else window

    @cached_property
    def _scale_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """x' = x * scale + shift, both (2,) float64 for (x, y)."""
        y0, x0, height, width = self.crop
        scale_x, scale_y = self.resized[1] / width, self.resized[0] / height
        shift_x, shift_y = -x0 * scale_x - self.offset[1], -y0 * scale_y - self.offset[0]
        if self.flip:
            scale_x, shift_x = -scale_x, self.unpadded[1] - shift_x
        top, left = self.pad
        return np.array([scale_x, scale_y]), np.array([shift_x + left, shift_y + top])

    def _corners(self, move, xyxy: np.ndarray) -> np.ndarray:
        xyxy = np.asarray(xyxy)
        corners = move(xyxy.reshape(*xyxy.shape[:-1], 2, 2))
        if self.flip:
            corners[..., 0] = corners[..., ::-1, 0].copy()  # left and right change places
        return corners.reshape(xyxy.shape)

    def _blocks(self, size: Size) -> int:
        """Side of the blocks whose means are the pixels of an image of `size`; 1 = none."""
        for blocks in REDUCTIONS if self.crop == (0, 0, *self.orig_size) else REDUCTIONS[:1]:
            if size == tuple(-(-side // blocks) for side in self.orig_size):
                return blocks
        raise ValueError(f"image must be {self.orig_size} (H, W) for this Geometry, got {size}")


def crop_to_box(box: np.ndarray, orig_size: Size, pad_scale: float) -> tuple[int, int, int, int]:
    """The crop around one object for the keypoint task, as in the official code.

    Args:
        box: (4,) xyxy original pixels.
        pad_scale: how much of the box's side is added on each side (0.5: twice the box).

    Returns:
        y0, x0, height, width: the `crop` of a Geometry.
    """
    start, extent = [], []
    for low, high, side in ((box[1], box[3], orig_size[0]), (box[0], box[2], orig_size[1])):
        last = np.float32(side - 1)
        first = int(np.floor(np.float32(low) / np.float32(side) * last))
        final = int(np.ceil(np.float32(high) / np.float32(side) * last))
        pad = int((final - first + 1) * pad_scale)
        first, final = max(first - pad, 0), min(final + pad, side - 1)
        start.append(min(first, side - 1))
        extent.append(max(final - start[-1] + 1, 1))
    return start[0], start[1], extent[0], extent[1]


def check_resize_mode(mode: str) -> None:
    if mode not in ("letterbox", "stretch"):
        raise ValueError(f"mode must be 'letterbox' or 'stretch', got {mode!r}")


def _at_least_one(size: np.ndarray) -> Size:
    return max(int(size[0]), 1), max(int(size[1]), 1)


def _float_type(values) -> np.dtype:
    kind = np.asarray(values).dtype
    return kind if np.issubdtype(kind, np.floating) else np.dtype(np.float64)
