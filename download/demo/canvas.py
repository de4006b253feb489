"""The picture while it is painted: colour and owner of every oversampled pixel."""

from dataclasses import dataclass

import cv2
import numpy as np

from download.demo.render import SS, Sprite
from download.demo.settings import Setting
from download.demo.things import Thing

MIN_VISIBLE = 0.32  # share of the whole silhouette that stays in sight, or the thing is not drawn
MIN_INSIDE = 0.5  # share of a new silhouette that must lie inside the image
MIN_AREA = 45 * SS**2  # visible pixels (45 in the image)
MIN_COVER = 0.06  # share of a silhouette that counts as hidden by the thing in front


@dataclass
class Entry:
    """A thing on the canvas: its sprite with the place of the top left corner."""

    thing: Thing
    sprite: Sprite
    x: int
    y: int
    facing: str | None
    is_crowd: bool
    full: int  # silhouette in pixels, the part outside the image included
    covered: frozenset[int]  # owners of which it hides a part


class Canvas:
    """Sprites painted back to front; pixels belong to entry `owner - 1`, or to nobody (0)."""

    def __init__(self, setting: Setting) -> None:
        h, w = setting.image.shape[:2]
        self.setting = setting
        self.size = (h * SS, w * SS)
        self.colour = cv2.resize(setting.image.astype(np.uint8), self.size[::-1])
        self.owner = np.zeros(self.size, np.uint8)
        self.entries: list[Entry] = []

    def crop(self, sprite: Sprite, x: int, y: int) -> tuple[tuple, tuple] | None:
        """Slices of the canvas and of the sprite where they meet, or None if they do not."""
        (h, w), (ch, cw) = sprite.mask.shape, self.size
        y0, y1, x0, x1 = max(y, 0), min(y + h, ch), max(x, 0), min(x + w, cw)
        if y0 >= y1 or x0 >= x1:
            return None
        return np.s_[y0:y1, x0:x1], np.s_[y0 - y : y1 - y, x0 - x : x1 - x]

    def _lost(self, inside: tuple, drawn: np.ndarray) -> np.ndarray:
        """(entries + 1,) pixels of each owner under what would be drawn."""
        return np.bincount(self.owner[inside][drawn], minlength=len(self.entries) + 1)

    def fits(self, sprite: Sprite, x: int, y: int) -> bool:
        """Would everything still be seen well enough with the sprite here?"""
        place = self.crop(sprite, x, y)
        if place is None:
            return False
        inside, part = place
        if sprite.mask[part].sum() < max(MIN_INSIDE * sprite.mask.sum(), MIN_AREA):
            return False
        lost = self._lost(inside, sprite.mask[part] | sprite.prop[part])
        if not lost[1:].any():
            return True
        left = np.bincount(self.owner.ravel(), minlength=len(lost)) - lost
        return all(
            left[k] >= max(MIN_VISIBLE * self.entries[k - 1].full, MIN_AREA)
            for k in np.flatnonzero(lost[1:]) + 1
        )

    def shadow(self, sprite: Sprite, x: int, y: int) -> None:
        """Darken the ground under the sprite."""
        (h, w), (ch, cw) = sprite.mask.shape, self.size
        light = self.setting.light
        depth = 0.1 * w + 3 * SS
        x0, x1 = max(int(x - 0.35 * w), 0), min(int(x + 1.35 * w), cw)
        y0, y1 = max(int(y + h - 1.2 * depth), 0), min(int(y + h + 1.2 * depth), ch)
        if x0 >= x1 or y0 >= y1:
            return
        yy, xx = np.ogrid[y0:y1:SS, x0:x1:SS]
        dx = (xx - x - w * (0.5 - 0.22 * light.x)) / (0.52 * w)
        dy = (yy - y - h + 0.3 * depth) / (0.7 * depth)
        dark = (0.2 + 0.5 * light.strength) * np.clip(1.15 - dx**2 - dy**2, 0, 1)
        shade = cv2.resize((1 - dark).astype(np.float32), (x1 - x0, y1 - y0))
        under = self.colour[y0:y1, x0:x1]
        self.colour[y0:y1, x0:x1] = cv2.multiply(under, cv2.merge([shade] * 3), dtype=cv2.CV_8U)

    def paint(self, sprite: Sprite, x: int, y: int, *, owner: int) -> frozenset[int]:
        """Put the sprite in front of everything; returns the owners it hides a part of."""
        inside, part = self.crop(sprite, x, y)
        drawn = sprite.mask[part] | sprite.prop[part]
        lost = self._lost(inside, drawn)
        np.copyto(self.colour[inside], sprite.colour[part], where=drawn[..., None])
        self.owner[inside][sprite.prop[part]] = 0
        self.owner[inside][sprite.mask[part]] = owner
        return frozenset(
            k + 1
            for k, entry in enumerate(self.entries)
            if k + 1 != owner and lost[k + 1] > MIN_COVER * entry.full
        )

    def add(
        self,
        thing: Thing,
        sprite: Sprite,
        x: int,
        y: int,
        *,
        facing: str | None,
        crowd: bool = False,
    ) -> None:
        """Paint a thing that gets an annotation."""
        covered = self.paint(sprite, x, y, owner=len(self.entries) + 1)
        full = int(sprite.mask.sum())
        self.entries.append(Entry(thing, sprite, x, y, facing, crowd, full, covered))
