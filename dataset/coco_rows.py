"""Fields of COCO annotations as arrays; what is wrong with them goes to `Faults`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from dataset.faults import LARGEST, Faults
from utils.errors import one_line
from utils.masks import MIN_POINTS, check_length, check_rle
from utils.plain import shown


@dataclass
class Objects:
    """Annotations that can be used, in the order of the file."""

    rows: list[dict]
    boxes: np.ndarray  # (N, 4) float64 xyxy as annotated
    image: np.ndarray  # (N,) int64 image ids
    category: np.ndarray  # (N,) int64 category ids of the file


def describe(row: dict) -> str:
    return f"annotation {row.get('id')} of image {row.get('image_id')}"


def read_objects(
    rows: list[dict],
    faults: Faults,
    *,
    known: Sequence[int],
    image_ids: np.ndarray,
    sizes: np.ndarray,
) -> Objects:
    """Boxes of annotations.

    Args:
        known: category ids of the file.
        image_ids: (I,) int64, ascending.
        sizes: (I, 2) their (H, W), (0, 0) if not stated.
    """
    image, good_image = read_numbers(rows, "image_id", faults)
    category, good_category = read_numbers(rows, "category_id", faults)
    boxes, good = read_numbers(rows, "bbox", faults, 4)
    good &= good_image & good_category

    def leave_out(kind: str, bad: np.ndarray, detail: Callable[[int], str]) -> None:
        for i in np.flatnonzero(good & bad):
            faults.add(kind, describe(rows[i]), detail(i))
        good[bad] = False

    def bbox(i: int) -> str:
        return f"bbox {shown(rows[i]['bbox'])}"

    known = np.array(list(known), np.int64)
    leave_out(
        "unknown_category",
        ~np.isin(category, known),
        lambda i: f"it has the unknown category {category[i]}",
    )
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    narrow = boxes.astype(np.float32)  # as the index has them
    leave_out("no_area", ~(narrow[:, 2:] > narrow[:, :2]).all(1), bbox)
    listed, size = np.isin(image, image_ids), np.zeros((len(rows), 2), np.float32)
    leave_out("unlisted", ~listed, lambda i: "")
    size[listed] = sizes[np.searchsorted(image_ids, image[listed])]
    upper = np.tile(size[:, ::-1], 2)  # (N, 4)
    upper[(upper == 0).any(1)] = np.inf
    inside = np.clip(narrow, 0, upper)
    leave_out("outside", ~(inside[:, 2:] > inside[:, :2]).all(1), bbox)
    return Objects(list(compress(rows, good)), boxes[good], image[good], category[good])


def read_numbers(
    rows: list[dict], key: str, faults: Faults, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One field of all annotations.

    Args:
        width: the field is a list of so many numbers; None = it is one whole number.

    Returns:
        values (N,) int64 or (N, width) float64, and (N,) bool, which ones are good; 0 elsewhere.
    """
    values, good = _as_array([row[key] for row in rows], width), np.ones(len(rows), bool)
    if values is not None:
        return values, good
    shape, dtype = ((len(rows),), np.int64) if width is None else ((len(rows), width), np.float64)
    values = np.zeros(shape, dtype)
    for i, row in enumerate(rows):
        value = _as_array([row[key]], width)
        if value is not None:
            values[i] = value[0]
            continue
        good[i] = False
        wanted = "a whole number" if width is None else f"{width} numbers"
        kind = "not_numbers"
        if _are_numbers(row[key], width):
            kind, wanted = "not_finite", f"finite and below {LARGEST:.0e}"
        faults.add(kind, describe(row), f"{key} must be {wanted}, got {shown(row[key])}")
    return values, good


def _as_array(values: list, width: int | None) -> np.ndarray | None:
    """(N,) int64 or (N, width) float64; None if something does not fit."""
    shape = (len(values),) if width is None else (len(values), width)
    try:
        array = np.array(values) if values else np.zeros(shape)
    except (ValueError, OverflowError):  # lists of different lengths
        return None
    if array.shape != shape or array.dtype.kind not in "if":
        return None
    if width is not None:
        array = array.astype(np.float64)
        return array if (np.abs(array) < LARGEST).all() else None
    if array.dtype.kind == "f" and not (array == np.floor(array)).all():  # false of NaN
        return None
    return array.astype(np.int64)


def _are_numbers(value: object, width: int | None) -> bool:
    if width is None:
        return False
    is_list = isinstance(value, list) and len(value) == width
    return is_list and all(isinstance(v, (int, float)) for v in value)


def read_outline(
    row: dict, faults: Faults, *, size: tuple[int, int] = (0, 0)
) -> list[np.ndarray | dict]:
    """The parts of an annotation's outline.

    Args:
        size: (H, W) of the image; 0 = not known.

    Returns:
        polygons, each (M, 2) float32; or COCO run lengths, checked, as the one entry.
    """
    segmentation = row.get("segmentation")
    try:
        if isinstance(segmentation, dict):
            check_rle(segmentation, size)
            return [segmentation]
        if not isinstance(segmentation, (list, type(None))):
            raise TypeError(f"got {shown(segmentation)}")
        parts = [_polygon(part) for part in segmentation or []]
        check_length(parts, size)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        faults.add(
            "outline",
            describe(row),
            f"segmentation must be polygons or run lengths ({one_line(error)})",
        )
        return []
    for part in parts:
        if len(part) < MIN_POINTS:
            faults.add("few_points", describe(row), f"{len(part)} points")
    return [part for part in parts if len(part) >= MIN_POINTS]


def _polygon(part: object) -> np.ndarray:
    """[x, y, x, y, …] -> (M, 2) float32."""
    if not isinstance(part, list):
        raise TypeError(f"a polygon must be a list of numbers, got {shown(part)}")
    if len(part) % 2:
        raise ValueError(f"a polygon must have an even count of numbers, got {len(part)}")
    points = np.array(part) if part else np.zeros(0)
    if points.ndim != 1 or points.dtype.kind not in "if":
        raise TypeError(f"a polygon must be a list of numbers, got {shown(part)}")
    if not (np.abs(points) < LARGEST).all():
        raise ValueError(f"coordinates must be finite and below {LARGEST:.0e}")
    return points.astype(np.float32).reshape(-1, 2)


def read_keypoints(
    rows: list[dict], num_points: int, faults: Faults
) -> tuple[np.ndarray, np.ndarray]:
    """(N, K, 3) float64 x, y, visibility; and (N,) bool, which annotations are good."""
    points, good = read_numbers(rows, "keypoints", faults, 3 * num_points)
    points = points.reshape(-1, num_points, 3)
    strange = ~np.isin(points[..., 2], (0, 1, 2)).all(1)
    for i in np.flatnonzero(good & strange):
        faults.add(
            "not_numbers", describe(rows[i]), "the visibility of keypoints must be 0, 1 or 2"
        )
    return points, good & ~strange
