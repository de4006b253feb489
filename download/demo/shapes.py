"""Outlines in a thing's own units (x right, y down) and the colours they are filled with."""

from typing import NamedTuple

import cv2
import numpy as np

# name -> hue range in degrees, saturation range, value range
HSV = {
    "red": ((-5, 6), (0.78, 0.95), (0.65, 0.9)),
    "orange": ((22, 31), (0.85, 1.0), (0.88, 1.0)),
    "yellow": ((48, 56), (0.78, 0.95), (0.88, 1.0)),
    "green": ((95, 140), (0.55, 0.85), (0.42, 0.72)),
    "blue": ((212, 230), (0.7, 0.9), (0.6, 0.95)),
    "purple": ((268, 284), (0.5, 0.75), (0.48, 0.72)),
    "pink": ((326, 340), (0.35, 0.55), (0.92, 1.0)),
    "brown": ((18, 27), (0.55, 0.72), (0.34, 0.48)),
    "white": ((0, 360), (0.0, 0.04), (0.93, 1.0)),
    "black": ((200, 260), (0.0, 0.2), (0.1, 0.18)),
    "gray": ((0, 360), (0.0, 0.06), (0.45, 0.6)),
}
BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink")

Colour = tuple[float, float, float]


class Part(NamedTuple):
    """One filled outline.

    Attributes:
        points: (M, 2), closed.
        colour: RGB, 0 to 255.
        alpha: below 1 the part is a highlight or a tint and does not change the silhouette.
        inside: clip the part to what the parts before it cover.
        tag: names the limb, so that a joint can be found hidden behind another one.
    """

    points: np.ndarray
    colour: Colour
    alpha: float = 1.0
    inside: bool = False
    tag: str = ""


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB in 0..255 of a hue in degrees and saturation and value in 0..1."""
    sector = (hue / 60.0) % 6.0
    chroma = value * saturation
    x = chroma * (1 - abs(sector % 2 - 1))
    low = value - chroma
    rgb = [(chroma, x, 0), (x, chroma, 0), (0, chroma, x), (0, x, chroma), (x, 0, chroma)]
    r, g, b = [*rgb, (chroma, 0, x)][int(sector)]
    return (255 * (r + low), 255 * (g + low), 255 * (b + low))


def draw_colour(rng: np.random.Generator, name: str) -> Colour:
    """A shade that people would call `name`."""
    return hsv(*(rng.uniform(*span) for span in HSV[name]))


def tone(colour: Colour, factor: float) -> Colour:
    """Darker (factor < 1) or lighter (factor > 1, towards white)."""
    if factor <= 1:
        return tuple(c * factor for c in colour)
    return tuple(c + (255 - c) * (factor - 1) for c in colour)


def polygon(*points: tuple[float, float]) -> np.ndarray:
    """(M, 2) of the points given one by one."""
    return np.asarray(points, dtype=np.float64)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Axis-parallel box as an outline."""
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def ellipse(
    cx: float, cy: float, rx: float, ry: float, *, start: float = 0, end: float = 360
) -> np.ndarray:
    """Ellipse, or the segment of it between two angles (degrees, clockwise from +x)."""
    turn = np.radians(np.linspace(start, end, 40))
    return np.stack([cx + rx * np.cos(turn), cy + ry * np.sin(turn)], 1)


def band(centre: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """A line of a given width (a number, or one for each point) as an outline with round ends."""
    centre = np.asarray(centre, dtype=np.float64)
    along = np.gradient(centre, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    radius = np.broadcast_to(np.asarray(width, dtype=np.float64) / 2, len(centre))
    turn = np.linspace(0, np.pi, 8)[1:-1, None]
    head = centre[-1] + radius[-1] * (np.cos(turn) * normal[-1] + np.sin(turn) * along[-1])
    tail = centre[0] - radius[0] * (np.cos(turn) * normal[0] + np.sin(turn) * along[0])
    side = radius[:, None] * normal
    return np.concatenate([centre + side, head, (centre - side)[::-1], tail])


def limb(start: np.ndarray, end: np.ndarray, r0: float, r1: float) -> np.ndarray:
    """A rounded, tapering stick between two joints."""
    return band(
        np.stack([start, (np.add(start, end)) / 2, end]), np.array([r0, (r0 + r1) / 2, r1]) * 2
    )


def smooth(*points: tuple[float, float], closed: bool = True) -> np.ndarray:
    """Catmull-Rom curve through the points, eight steps a piece."""
    knots = np.asarray(points, dtype=np.float64)
    if closed:
        knots = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        knots = np.concatenate([knots[:1], knots, knots[-1:]])
    p0, p1, p2, p3 = knots[:-3], knots[1:-2], knots[2:-1], knots[3:]
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (p0, p1, p2, p3))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
    curve = (curve + (3 * p1 - p0 - 3 * p2 + p3) * t**3) / 2
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, knots[-1:]])


def fill(image: np.ndarray, points: np.ndarray, value) -> None:
    """Fill an outline in place; coordinates are pixel centres, fractions count."""
    cv2.fillPoly(image, [np.round(points * 8).astype(np.int32)], value, shift=3)
