"""Object outlines and masks: simplifying polygons, and the way to and from COCO's run lengths."""

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from utils.files import shown
from utils.images import MAX_PIXELS

MIN_POINTS = 3  # fewer enclose nothing
MAX_TURNS, MAX_LENGTH = 500, 1e7  # of an outline: times height plus width, pixels
RLE_TOLERANCE = 0.5  # pixels; how far the outline of a mask may leave the edges of its pixels


def fit_polygons(polygons: Sequence[np.ndarray], max_points: int) -> list[np.ndarray]:
    """Simplifies the parts of one object along their outlines, never cuts them.

    Douglas and Peucker (`cv2.approxPolyDP`) with the smallest tolerance that fits; the parts
    share the budget by the lengths of their outlines. Only where there are more parts than the
    budget has triangles for, the smallest are left out.

    Args:
        polygons: parts, each (M, 2) of (x, y).
        max_points: for all of them together, the separator between two parts counted as a point.

    Returns:
        parts, each (M', 2) float32, in the given order; those given if they fit.
    """
    if sum(map(len, polygons)) + len(polygons) - 1 <= max_points:
        return list(polygons)
    most_parts = max((max_points + 1) // (MIN_POINTS + 1), 1)
    areas = [polygon_area(part) for part in polygons]
    kept = np.sort(np.argsort(areas, kind="stable")[-most_parts:])
    parts = [np.asarray(polygons[i], np.float32) for i in kept]
    lengths = np.array([cv2.arcLength(part[:, None], True) for part in parts])
    budget, order = max_points - len(parts) + 1, np.argsort(lengths, kind="stable")
    for done, i in enumerate(order):  # what a short part does not need goes to the longer ones
        rest = order[done:]
        share = int(budget * lengths[i] / max(lengths[rest].sum(), 1e-9))
        share = max(min(share, budget - MIN_POINTS * (len(rest) - 1)), MIN_POINTS)
        parts[i] = simplify_polygon(parts[i], share)
        budget -= len(parts[i])
    return parts


def cut_polygons(polygons: Sequence[np.ndarray], max_points: int) -> list[np.ndarray]:
    """The first `max_points` points of all parts, the rest is lost: what the official code does.

    Args:
        polygons, max_points: as those of `fit_polygons`.

    Returns:
        parts; one of which fewer than three points are left is dropped.
    """
    parts, left = [], max_points
    for part in polygons:
        parts.append(part[: max(left, 0)])
        left -= len(part) + 1
    return [part for part in parts if len(part) >= MIN_POINTS]


def simplify_polygon(polygon: np.ndarray, max_points: int) -> np.ndarray:
    """(M, 2) -> (at most `max_points` >= 3, 2): the finest approximation that has so few."""
    if len(polygon) <= max_points:
        return polygon
    outline = np.ascontiguousarray(polygon, np.float32)[:, None]  # (M, 1, 2) as OpenCV wants it
    best = outline[np.linspace(0, len(outline), MIN_POINTS, endpoint=False).astype(int)]
    low, high = 0.0, cv2.arcLength(outline, True)
    for _ in range(20):  # to a millionth of the length
        middle = (low + high) / 2
        found = cv2.approxPolyDP(outline, middle, True)
        if len(found) > max_points:
            low = middle
            continue
        high = middle
        if len(found) >= max(len(best), MIN_POINTS):
            best = found
    return best[:, 0]


def polygon_area(polygon: np.ndarray) -> float:
    return cv2.contourArea(np.ascontiguousarray(polygon, np.float32)) if len(polygon) else 0.0


def check_length(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> None:
    """Raises a ValueError if these are no outlines in a picture.

    What fills them (pycocotools) takes memory by the length of the outline, not by the picture.

    Args:
        polygons: parts, each (M, 2) float32.
        size: (H, W) of the picture; with a 0 nothing is checked.
    """
    if 0 in size:
        return
    limit = min(MAX_TURNS * sum(size), MAX_LENGTH)
    length = sum(cv2.arcLength(part[:, None], True) for part in polygons if len(part))
    if length > limit:
        raise ValueError(f"an outline of {length:.0f} pixels in a picture of {size[0]}x{size[1]}")


def check_rle(rle: dict, size: tuple[int, int] = (0, 0)) -> dict:
    """The same mask with whole numbers, where some were written as 24.0.

    Raises a ValueError if this is no mask of a picture, before it is decoded.

    Args:
        rle: COCO run lengths, compressed or not.
        size: (H, W) that it has to have; a 0 leaves it free, up to the largest pictures.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise ValueError("run lengths need size and counts")
    sides, counts = _whole_numbers(rle["size"]), _whole_numbers(rle["counts"])
    rle = {"size": sides, "counts": counts}
    whole = isinstance(sides, list) and len(sides) == 2 and all(type(n) is int for n in sides)
    if not whole or min(sides) < 1 or sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"size of run lengths must be that of a picture, got {shown(sides)}")
    if 0 not in size and tuple(sides) != tuple(size):
        raise ValueError(f"size of run lengths is {sides}, that of the picture {list(size)}")
    if isinstance(counts, (str, bytes)):
        counts = _read_counts(counts.encode() if isinstance(counts, str) else counts)
    elif not isinstance(counts, list):
        raise ValueError(f"counts of run lengths must be a list or text, got {shown(counts)}")
    if not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError(f"run lengths must be whole numbers, 0 or more, got {shown(counts)}")
    if sum(counts) != sides[0] * sides[1]:
        total = f"the {sides[0] * sides[1]} pixels, got {sum(counts)}"
        raise ValueError(f"run lengths must add up to {total}")
    return rle


def _whole_numbers(values: object) -> object:
    """A list with 24 in place of 24.0; anything else as it is."""
    if not isinstance(values, list):
        return values
    return [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]


def _read_counts(text: bytes) -> list[int]:
    """Run lengths out of COCO's text; of other texts pycocotools writes past its memory.

    Six bits a character from "0": five of the number, low ones first, and whether more follow. From
    the fourth number on it is the difference to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError(f"run lengths are not valid COCO text: {shown(text)}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError(f"run lengths are cut off: {shown(text)}")
    return counts


def rle_to_polygons(rle: dict) -> list[np.ndarray]:
    """The outlines of a mask along the edges of its pixels; holes are filled.

    Args:
        rle: COCO run lengths, compressed or not.

    Returns:
        parts, each (M, 2) float32 pixels (x, y), without those too small to have an area.
    """
    mask = rle_to_mask(rle).astype(np.uint8)
    # Twice the size and one pixel more to the right and the bottom: the centres of the border
    # pixels, which OpenCV connects, then are the corners of the original pixels.
    fine = np.pad(mask.repeat(2, 0).repeat(2, 1), 1)
    fine = cv2.dilate(fine, np.ones((2, 2), np.uint8), anchor=(1, 1))
    outlines, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [
        cv2.approxPolyDP((outline.astype(np.float32) - 1) / 2, RLE_TOLERANCE, True)[:, 0]
        for outline in outlines
    ]
    return [part for part in polygons if len(part) >= MIN_POINTS]


def polygons_to_rle(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> dict:
    """The union of polygons as COCO's own rasteriser fills them; what has no area gives nothing.

    Args:
        polygons: parts, each (M, 2) pixels (x, y); they may leave the picture.
        size: (H, W) of the picture.

    Returns:
        compressed COCO run lengths, `counts` as text.
    """
    # pycocotools takes four numbers for a box
    rows = [np.asarray(p, np.float64).ravel().tolist() for p in polygons if len(p) >= MIN_POINTS]
    if not rows:
        return mask_to_rle(np.zeros(size, bool))
    return _as_text(coco_mask.merge(coco_mask.frPyObjects(rows, *size)))


def mask_to_rle(mask: np.ndarray) -> dict:
    """(H, W) bool -> compressed COCO run lengths, `counts` as text."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask, np.uint8)))


def majority_mask(
    outlines: Sequence[Sequence[np.ndarray]], size: tuple[int, int], share: float
) -> dict:
    """The pixels that at least a share of several masks contain.

    Only the part of the picture is filled that the outlines reach: in a photograph most objects are
    small. Where an edge passes half-way between two pixels, rounding may choose the other one.

    Args:
        outlines: of each mask its polygons, see `polygons_to_rle`.
        size: (H, W) of the picture.
        share: above 0.

    Returns:
        compressed COCO run lengths, `counts` as text.
    """
    points = [part for polygons in outlines for part in polygons if len(part)]
    if not points:
        return mask_to_rle(np.zeros(size, bool))
    points, far = np.concatenate(points), np.array(size[::-1])
    # a pixel more on all sides, so that no border is drawn where the picture has none
    start = np.clip(np.floor(points.min(0)) - 1, 0, far - 1).astype(int)
    end = np.clip(np.ceil(points.max(0)) + 1, start + 1, far).astype(int)
    window = tuple((end - start)[::-1].tolist())
    votes = np.zeros(window, np.int32, order="F")  # as masks lie in memory
    for polygons in outlines:
        moved = [np.asarray(part, np.float64) - start for part in polygons]
        votes += coco_mask.decode(polygons_to_rle(moved, window))
    return window_to_rle(votes >= share * len(outlines), (int(start[1]), int(start[0])), size)


def outline_iou(
    one: Sequence[np.ndarray], other: Sequence[np.ndarray], size: tuple[int, int]
) -> float:
    """Intersection over union of two masks, each given as polygons; 0 if they share no pixel.

    Args:
        one, other, size: see `polygons_to_rle`.
    """
    rles = [polygons_to_rle(polygons, size) for polygons in (one, other)]
    return float(coco_mask.iou(rles[:1], rles[1:], [0])[0, 0])


def window_to_rle(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict:
    """`mask_to_rle` of a picture of which all but a window is empty.

    Args:
        mask: (h, w) bool, the window.
        corner: (y, x) where it lies.
        size: (H, W) of the picture.
    """
    edges = np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0)  # (h + 1, w)
    columns, rows = np.nonzero(edges.T)  # down the columns, begin and end of a run in turns
    places = (corner[1] + columns) * size[0] + corner[0] + rows
    # a run that ends at the bottom of the picture may go on at the top of the next column
    goes_on = np.flatnonzero(places[1:-1:2] == places[2::2])
    places = np.delete(places, [2 * goes_on + 1, 2 * goes_on + 2])
    counts = np.diff([0, *places.tolist(), size[0] * size[1]]).tolist()
    if counts[-1] == 0:
        counts.pop()
    rle = {"size": list(size), "counts": counts}
    return _as_text(coco_mask.frPyObjects(rle, *size))


def rle_to_mask(rle: dict) -> np.ndarray:
    """COCO run lengths, compressed or not -> (H, W) bool."""
    if isinstance(rle["counts"], list):
        rle = coco_mask.frPyObjects(rle, *rle["size"])
    return coco_mask.decode(rle).astype(bool)


def _as_text(rle: dict) -> dict:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
