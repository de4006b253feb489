"""From outlines to pixels: what the drawn set draws with.

Outlines are in a thing's own units (x right, y down) and filled with colours. `render` makes a
shaded sprite of a thing, on the oversampled grid. `find_region` gives the visible part of a thing
as COCO stores it: polygons or run lengths, area and box.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

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
SS = 3  # oversampling: sprites and the canvas have SS x SS pixels for one of the image
MIN_PART = 12  # smallest polygon worth an annotation, image pixels
MIN_HOLE = 25  # smaller holes are filled, image pixels
MAX_CUTS = 6
FINE = 2 * SS  # outlines run between oversampled pixels: on a grid twice as fine
TOLERANCE = 2.1  # of a simplified outline, on that grid


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


@dataclass
class Thing:
    """A thing before it has a place: outlines in its own units, drawn in this order.

    Attributes:
        colour: name of the main colour, as the captions call it (a person's is the shirt).
        facing: `right` things may be mirrored; `front` and `back` are people's; None has no side.
        action: what a person does.
        joints: (17, 2) in COCO order and in the thing's units; None for all but people.
        owners: for each joint the tags of parts that may cover it while it still is visible;
            empty where a joint is not labelled (a face seen from behind).
        is_sphere: lit as a ball, not as a puffed-up outline.
        prop: outlines that are drawn but belong to no annotation (the stool of a sitting person).
    """

    category: str
    colour: str
    parts: list[Part]
    facing: str | None = None
    action: str | None = None
    joints: np.ndarray | None = None
    owners: list[tuple[str, ...]] = field(default_factory=list)
    prop: list[Part] = field(default_factory=list)
    is_sphere: bool = False


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


@dataclass
class Region:
    """Segmentation as COCO writes it, and what it decodes to.

    Attributes:
        area: pixels of the mask.
        box: x, y, width, height of the mask.
        mask: (H, W) uint8.
    """

    segmentation: list[list[float]] | dict
    area: float
    box: list[float]
    mask: np.ndarray


def _outlines(mask: np.ndarray, cuts: int, smallest: float) -> list[np.ndarray]:
    """Outer contours of a mask; a piece with a hole is cut in two through the hole."""
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    found = []
    for k, contour in enumerate(contours):
        if tree[0, k, 3] >= 0 or cv2.contourArea(contour) < smallest * FINE**2:
            continue
        hole, holes = tree[0, k, 2], []
        while hole >= 0:
            holes.append(contours[hole])
            hole = tree[0, hole, 0]
        largest = max(holes, key=cv2.contourArea, default=None)
        if largest is None or cv2.contourArea(largest) < MIN_HOLE * FINE**2 or cuts == 0:
            found.append(contour[:, 0])
            continue
        piece = np.zeros_like(mask)
        cv2.drawContours(piece, [contour], -1, 1, cv2.FILLED)
        piece &= mask
        column = int(np.round(largest[:, 0, 0].mean()))
        left, right = piece.copy(), piece
        left[:, column + 2 :] = 0  # the halves overlap a little: no gap between their polygons
        right[:, : column - 1] = 0
        found += _outlines(left, cuts - 1, smallest) + _outlines(right, cuts - 1, smallest)
    return found


def find_region(visible: np.ndarray, *, crowd: bool = False) -> Region:
    """The annotation of a visible part.

    Args:
        visible: (H * SS, W * SS) bool.
        crowd: store uncompressed run lengths instead of polygons, as COCO does for groups.
    """
    h, w = visible.shape[0] // SS, visible.shape[1] // SS
    if crowd:
        share = cv2.resize(visible.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
        mask = np.asfortranarray(share >= 0.5)
        pixels = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(pixels, prepend=False))
        counts = np.diff(edges, prepend=0, append=pixels.size).tolist()
        segmentation = {"counts": counts, "size": [h, w]}
        rle = coco_mask.encode(mask.astype(np.uint8))
    else:
        x, y, bw, bh = cv2.boundingRect(visible.astype(np.uint8))
        fine = visible[y : y + bh, x : x + bw].astype(np.uint8).repeat(2, 0).repeat(2, 1)
        # one pixel more to the left and the top: the outline through the centres of the border
        # pixels then is the line between the pixels inside and those outside
        fine = cv2.dilate(np.pad(fine, ((1, 0), (1, 0))), np.ones((2, 2), np.uint8), anchor=(0, 0))
        segmentation = []
        for outline in _outlines(fine, MAX_CUTS, MIN_PART) or _outlines(fine, 0, 0.5):
            points = cv2.approxPolyDP(outline, TOLERANCE, True)[:, 0]
            if len(points) >= 3:
                points = points / FINE + (x / SS, y / SS)
                segmentation.append(np.round(points, 2).ravel().tolist())
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, h, w))
    area, box = float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
    return Region(segmentation, area, box, coco_mask.decode(rle))
