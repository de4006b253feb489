"""Finds and reads the annotation files of a COCO folder, whatever their kind.

Fields of annotations become arrays; what is wrong with them goes to `AnnotationErrors`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from dataset.annotation_errors import LARGEST, AnnotationErrors
from utils.categories import Categories
from utils.errors import UserError, one_line
from utils.files import fits, read_json, shown
from utils.images import MAX_SIDE
from utils.masks import MIN_POINTS, check_length, check_rle

ANNOTATION_KEYS = {  # what tells the kinds of annotation file apart
    "instances": ("bbox", "category_id"),
    "person_keypoints": ("bbox", "keypoints"),
    "captions": ("caption",),
}


def coco_paths(
    root: str | Path | None, split: str, *, kind: str = "instances"
) -> tuple[Path, Path]:
    """The annotation file and the image folder, checked to exist.

    Args:
        root: folder with train2017, val2017 and annotations.
        split: "train", "val", or a folder name such as "train2014".
        kind: "instances", "person_keypoints" or "captions".
    """
    name = f"{split}2017" if split in ("train", "val", "test") else split
    if root is None:
        raise UserError("no COCO folder given; use --set coco_root=FOLDER")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(
            f"COCO folder {root} does not exist; get it with download/download_coco.sh "
            "or use --set coco_root=FOLDER"
        )
    annotations, images = root / "annotations" / f"{kind}_{name}.json", root / name
    if not annotations.is_file():
        raise UserError(
            f"annotation file {annotations} does not exist; --set coco_root=FOLDER must name the "
            f"folder that holds annotations/{kind}_{name}.json"
        )
    if not images.is_dir():
        raise UserError(
            f"image folder {images} does not exist; --set coco_root=FOLDER must name the folder "
            f"that holds {name}/"
        )
    return annotations, images


def read_annotations(
    path: Path, kind: str = "instances", errors: AnnotationErrors | None = None
) -> dict:
    """The content of a COCO annotation file, checked to be of this kind.

    Args:
        errors: takes annotations that lack a field, which then are left out; None = they are
            errors.

    Raises:
        UserError: this is no such file.
    """
    advice = f"need a COCO {kind} file; check --set coco_root=FOLDER"
    errors = errors or AnnotationErrors(path)
    content = read_json(path, advice)
    keys = ("images", "annotations", "categories")[: 2 if kind == "captions" else 3]
    missing = [key for key in keys if not isinstance(_get(content, key), list)]
    if missing:
        raise UserError(f"{path} has no list {missing[0]!r}; {advice}")
    _refuse_other_kind(path, content["annotations"], kind, advice)
    needed, rows = ("image_id", *ANNOTATION_KEYS[kind]), []
    for number, row in enumerate(content["annotations"]):
        lacks = needed if not isinstance(row, dict) else [k for k in needed if k not in row]
        if lacks:
            where = f"annotation {row['id']}" if _get(row, "id") is not None else f"entry {number}"
            errors.add("entry", f"{where} of 'annotations'", f"it has no {lacks[0]!r}")
        else:
            rows.append(row)
    return {**content, "annotations": rows}


def _refuse_other_kind(path: Path, rows: list, kind: str, advice: str) -> None:
    """A whole file without a field is no damage: it is another file."""
    for key in ANNOTATION_KEYS[kind]:
        if rows and not any(isinstance(row, dict) and key in row for row in rows):
            raise UserError(f"{path}: an entry of 'annotations' has no {key!r}; {advice}")


@dataclass(frozen=True)
class ImageTable:
    """The images of an annotation file, by ascending id."""

    ids: np.ndarray  # (I,) int64
    file_names: np.ndarray  # (I,) str, below the image folder
    sizes: np.ndarray  # (I, 2) int32 (H, W), (0, 0) if not stated

    def keep(self, which: np.ndarray) -> "ImageTable":
        """The images where `which`, (I,) bool, is true."""
        return ImageTable(self.ids[which], self.file_names[which], self.sizes[which])


def read_images(rows: list, errors: AnnotationErrors) -> ImageTable:
    """The list `images` of an annotation file; entries that cannot be used are left out."""
    good, seen = [], set()
    for number, row in enumerate(rows):
        reason = _image_problem(row)
        where = f"image {row['id']}" if _get(row, "id") is not None else f"image entry {number}"
        if reason:
            errors.add("image_entry", where, reason)
        elif not is_inside(row["file_name"]):
            name = shown(row["file_name"])
            errors.add("file_name", where, f"file_name must stay in the image folder, got {name}")
        elif row["id"] in seen:
            errors.add("image_id_twice", f"image id {row['id']} twice")
        else:
            seen.add(row["id"])
            good.append((row["id"], row["file_name"], *_stated_size(row)))
    good.sort(key=lambda row: row[0])
    ids, names, heights, widths = zip(*good, strict=True) if good else ((), (), (), ())
    sizes = np.array([heights, widths], np.int32).T.reshape(-1, 2)
    return ImageTable(np.array(ids, np.int64), np.array(names, dtype=str), sizes)


def is_inside(name: str) -> bool:
    """Whether a relative path of a file stays below the folder that it starts from."""
    if not name or "\0" in name or "\\" in name or name.startswith("/") or name[1:2] == ":":
        return False
    return ".." not in name.split("/") and not name.endswith("/")


def _image_problem(row: object) -> str:
    if not isinstance(row, dict):
        return f"it must be an object, got {shown(row)}"
    for key, kind in (("id", int), ("file_name", str)):
        if not fits(row.get(key), kind):
            wanted = "a whole number" if kind is int else "text"
            return f"{key} must be {wanted}, got {shown(row.get(key))}"
    if not -(2**63) <= row["id"] < 2**63:
        return f"id must fit 64 bits, got {row['id']:.3g}"
    for key in ("height", "width"):
        side = row.get(key)
        if side is not None and not (fits(side, int) and 0 <= side <= MAX_SIDE):
            return f"{key} must be 1 to {MAX_SIDE} pixels, got {shown(side)}"
    return ""


def _stated_size(row: dict) -> tuple[int, int]:
    return row.get("height") or 0, row.get("width") or 0


def _get(content, key: str):
    return content.get(key) if isinstance(content, dict) else None


@dataclass(frozen=True)
class CocoFile:
    """The content of one annotation file, read and checked."""

    path: Path
    image_folder: Path
    images: ImageTable
    categories: Categories  # all of the file; none of captions
    category_rows: list[dict]
    rows: list[dict]  # the annotations
    errors: AnnotationErrors


def read_coco(root: str | Path | None, split: str, kind: str, *, skip_bad: bool) -> CocoFile:
    """Reads the annotation file of a split.

    Args:
        root, split, kind: see `coco_paths`.
        skip_bad: leave out, and count, annotations that otherwise are errors.

    Raises:
        UserError: the file is missing or wrong.
    """
    path, folder = coco_paths(root, split, kind=kind)
    errors = AnnotationErrors(path, skip=skip_bad)
    content = read_annotations(path, kind, errors)
    category_rows = [] if kind == "captions" else content["categories"]
    try:
        categories = Categories.from_coco(category_rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: bad categories ({one_line(error)}); correct the list") from error
    images = read_images(content["images"], errors)
    return CocoFile(path, folder, images, categories, category_rows, content["annotations"], errors)


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
    errors: AnnotationErrors,
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
    # the fields as numbers
    image, good_image = read_numbers(rows, "image_id", errors)
    category, good_category = read_numbers(rows, "category_id", errors)
    boxes, good = read_numbers(rows, "bbox", errors, 4)
    good &= good_image & good_category

    def leave_out(kind: str, bad: np.ndarray, detail: Callable[[int], str]) -> None:
        for i in np.flatnonzero(good & bad):
            errors.add(kind, describe(rows[i]), detail(i))
        good[bad] = False

    def bbox(i: int) -> str:
        return f"bbox {shown(rows[i]['bbox'])}"

    # categories and areas
    known = np.array(list(known), np.int64)
    leave_out(
        "unknown_category",
        ~np.isin(category, known),
        lambda i: f"it has the unknown category {category[i]}",
    )
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    narrow = boxes.astype(np.float32)  # as `ObjectTable` has them
    leave_out("no_area", ~(narrow[:, 2:] > narrow[:, :2]).all(1), bbox)
    # images, and boxes outside them; without a stated size no box is outside
    listed, size = np.isin(image, image_ids), np.zeros((len(rows), 2), np.float32)
    leave_out("unlisted", ~listed, lambda i: "")
    size[listed] = sizes[np.searchsorted(image_ids, image[listed])]
    upper = np.tile(size[:, ::-1], 2)  # (N, 4)
    upper[(upper == 0).any(1)] = np.inf
    inside = np.clip(narrow, 0, upper)
    leave_out("outside", ~(inside[:, 2:] > inside[:, :2]).all(1), bbox)
    return Objects(list(compress(rows, good)), boxes[good], image[good], category[good])


def read_numbers(
    rows: list[dict], key: str, errors: AnnotationErrors, width: int | None = None
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
        errors.add(kind, describe(row), f"{key} must be {wanted}, got {shown(row[key])}")
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
    row: dict, errors: AnnotationErrors, *, size: tuple[int, int] = (0, 0)
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
        errors.add(
            "outline",
            describe(row),
            f"segmentation must be polygons or run lengths ({one_line(error)})",
        )
        return []
    for part in parts:
        if len(part) < MIN_POINTS:
            errors.add("few_points", describe(row), f"{len(part)} points")
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
    rows: list[dict], num_points: int, errors: AnnotationErrors
) -> tuple[np.ndarray, np.ndarray]:
    """(N, K, 3) float64 x, y, visibility; and (N,) bool, which annotations are good."""
    points, good = read_numbers(rows, "keypoints", errors, 3 * num_points)
    points = points.reshape(-1, num_points, 3)
    strange = ~np.isin(points[..., 2], (0, 1, 2)).all(1)
    for i in np.flatnonzero(good & strange):
        errors.add(
            "not_numbers", describe(rows[i]), "the visibility of keypoints must be 0, 1 or 2"
        )
    return points, good & ~strange
