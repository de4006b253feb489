"""From outlines to pixels: one thing as a shaded sprite on the oversampled grid."""

from dataclasses import dataclass

import cv2
import numpy as np

from download.demo.shapes import fill
from download.demo.things import Thing

SS = 3  # oversampling: sprites and the canvas have SS x SS pixels for one of the image


@dataclass
class Sprite:
    """A drawn thing; all arrays are on the oversampled grid.

    Attributes:
        colour: (h, w, 3) uint8 RGB.
        mask: (h, w) bool, what belongs to the thing.
        prop: (h, w) bool, what is drawn but belongs to no annotation.
        tags: (h, w) uint8, index of the topmost tagged part in `tag_names`.
        joints: (17, 2) pixels of the sprite, or None.
    """

    colour: np.ndarray
    mask: np.ndarray
    prop: np.ndarray
    tags: np.ndarray
    tag_names: list[str]
    joints: np.ndarray | None


@dataclass(frozen=True)
class Light:
    """Where the light comes from (a unit vector towards it, y down) and how hard it is."""

    x: float
    y: float
    strength: float


def _noise(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """(h, w) smooth noise with mean 0 and about unit spread."""
    coarse = rng.standard_normal((max(h // 14, 2), max(w // 14, 2)), dtype=np.float32)
    return cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR)


def _relief(mask: np.ndarray, light: Light) -> np.ndarray:
    """(h, w) brightness of a puffed-up version of the mask under the light, about 1."""
    h, w = mask.shape
    small = (max(w // SS, 2), max(h // SS, 2))
    flat = cv2.resize(mask.astype(np.uint8), small, interpolation=cv2.INTER_AREA)
    depth = cv2.distanceTransform(np.pad(flat, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    reach = max(0.16 * max(small), 2.0)
    level = np.clip(depth / reach, 0, 1)
    dome = np.sqrt(level * (2 - level)).astype(np.float32) * reach
    dome = cv2.GaussianBlur(dome, (0, 0), max(reach / 8, 0.6))
    slope_x = cv2.Sobel(dome, cv2.CV_32F, 1, 0, scale=1 / 8)
    slope_y = cv2.Sobel(dome, cv2.CV_32F, 0, 1, scale=1 / 8)
    shade = -(slope_x * light.x + slope_y * light.y) * light.strength
    rim = np.where((depth > 0) & (depth < 1.6), -0.12, 0).astype(np.float32)
    return 1 + cv2.resize(np.clip(shade, -0.35, 0.3) + rim, (w, h))


def _sphere(h: int, w: int, light: Light) -> np.ndarray:
    """(h, w) brightness of a ball that fills the array, with a highlight."""
    yy, xx = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    zz = np.sqrt(np.clip(1 - xx**2 - yy**2, 0, 1))
    lit = 0.65 * (xx * light.x + yy * light.y) + 0.76 * zz
    spot = np.exp(-((xx - 0.42 * light.x) ** 2 + (yy - 0.42 * light.y) ** 2) / 0.03)
    return (0.62 + (0.25 + 0.5 * light.strength) * np.clip(lit, 0, 1) + 0.5 * spot).astype(
        np.float32
    )


def render(
    thing: Thing, size: float, *, angle: float, mirror: bool, light: Light, rng: np.random.Generator
) -> Sprite:
    """Draw a thing.

    Args:
        size: longer side before rotation, in oversampled pixels.
        angle: clockwise, in degrees.
        mirror: swap left and right before rotating.
    """
    everything = [*thing.prop, *thing.parts]
    outline = np.concatenate([part.points for part in everything if not part.inside])
    low, high = outline.min(0), outline.max(0)
    turn = np.radians(angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.diag([-1.0 if mirror else 1.0, 1.0]) * (size / (high - low).max())

    corner = np.floor((outline @ matrix.T).min(0)) - 2
    w, h = (np.ceil((outline @ matrix.T).max(0)) + 3 - corner).astype(int)
    colour = np.zeros((h, w, 3), np.uint8)
    mask, prop, tags = (np.zeros((h, w), np.uint8) for _ in range(3))
    tag_names = ["", *dict.fromkeys(part.tag for part in thing.parts if part.tag)]
    for k, part in enumerate(everything):
        points = part.points @ matrix.T - corner
        if part.inside or part.alpha < 1:
            patch = np.zeros((h, w), np.uint8)
            fill(patch, points, 1)
            where = (patch & mask).astype(bool)
            old = colour[where]
            colour[where] = old + part.alpha * (np.array(part.colour) - old)
            continue
        fill(colour, points, part.colour)
        fill(prop if k < len(thing.prop) else mask, points, 1)
        if part.tag:
            fill(tags, points, tag_names.index(part.tag))

    shade = _sphere(h, w, light) if thing.is_sphere else _relief(mask | prop, light)
    shade *= 1 + 0.03 * _noise(rng, h, w)
    colour = cv2.multiply(colour, cv2.merge([shade.astype(np.float32)] * 3), dtype=cv2.CV_8U)
    joints = None if thing.joints is None else thing.joints @ matrix.T - corner
    mask = mask.astype(bool)
    return Sprite(colour, mask, prop.astype(bool) & ~mask, tags, tag_names, joints)
