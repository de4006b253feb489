"""LabelMe: one JSON file per picture, beside it or in a folder of its own.

A picture without a JSON file is not labelled yet and is left out.
"""

import base64
import binascii
import io
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np
from PIL import Image

from dataset.annotation_errors import AnnotationErrors
from dataset.formats import ALL, NAMES, Part, part_of
from dataset.formats.document import (
    Document,
    Shape,
    check_numbers,
    ellipse_polygon,
    head_and_tail,
    list_pictures,
)
from utils.errors import UserError, one_line
from utils.files import fits, read_json, read_text, shown, split_lines
from utils.images import MAX_SIDE, list_files, normal_form
from utils.masks import MIN_POINTS, polygon_area, window_to_rle

TITLE = "LabelMe"
LABELS = "labels.txt"  # the classes in their order; LabelMe's tools read such a file
NO_CLASSES = ("__ignore__", "_background_")  # lines of it
POLYGONS = ("polygon", "oriented_rectangle", "rotation")  # "rotation": what X-AnyLabeling writes
LOOKED_AT = 5  # JSON files, to see what a folder is
FIELDS = {"imagePath": str, "shapes": list}
USED = (*FIELDS, "imageHeight", "imageWidth")
MAX_MASK = 1 << 26  # characters of a mask


def find_parts(folder: Path) -> list[Part]:
    """See `dataset/formats/__init__.py`."""
    if not folder.is_dir():
        return []
    names = sorted(name for name in list_files(folder) if _is_json(name))
    if not any(_is_labelme(folder / name) for name in names[:LOOKED_AT]):
        return []
    parts: dict[str, list[str]] = {}
    for name, part in _parts_of(folder, names).items():
        parts.setdefault(part, []).append(name)
    labels = folder / LABELS
    return [
        Part(
            part,
            folder,
            (folder, *filter(Path.is_file, [labels]), *(folder / name for name in files)),
            folder,
            partial(_read, folder, names, files),
        )
        for part, files in parts.items()
    ]


def _parts_of(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """JSON file -> its part: the first folder on its way that is called like one.

    Raises:
        UserError: some files of LabelMe are in a part, and some are in none.
    """
    ways = {name: map(part_of, name.split("/")[:-1]) for name in names}
    parts = {name: next((p for p in way if p in NAMES), ALL) for name, way in ways.items()}
    inside = next((name for name, part in parts.items() if part == "train"), None)
    if inside is None:  # then these words mean something else
        return dict.fromkeys(names, ALL)
    outside = next((n for n, p in parts.items() if p == ALL and _is_labelme(folder / n)), None)
    if outside is not None:
        raise UserError(
            f"{folder}: {inside} is in the part train, {outside} in none ({', '.join(NAMES)}); "
            "move it into the folder of one"
        )
    return {name: part for name, part in parts.items() if part != ALL}  # not those of other tools


def _is_json(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return name.lower().endswith(".json") and not hidden


def _is_labelme(path: Path) -> bool:
    text = head_and_tail(path)
    return '"shapes"' in text and any(f'"{key}"' in text for key in ("imagePath", "imageHeight"))


def _read(
    folder: Path, all_names: Sequence[str], names: Sequence[str], errors: AnnotationErrors
) -> dict:
    """The COCO document of a part.

    Args:
        all_names: the JSON files of all parts, which have the same classes.
        names: those of this part.
    """
    contents = {name: _content(folder, name, errors if name in names else None)
                for name in all_names}  # fmt: skip
    contents = {name: content for name, content in contents.items() if content is not None}
    classes = _classes(folder, contents)
    document = Document([{"id": i, "name": name} for name, i in classes.items()])
    pictures, taken = _Pictures(list_pictures(folder)), {}
    for name in filter(contents.__contains__, names):
        content = contents[name]
        picture = pictures.find(name, content["imagePath"])
        if picture is None:
            path = shown(content["imagePath"])
            errors.add("image_missing", name, f"its picture {path} is not in {folder}")
            continue
        if taken.setdefault(picture, name) != name:
            errors.add("picture_twice", name, f"{taken[picture]} is of {picture}, too")
            continue
        sides = (content.get("imageHeight"), content.get("imageWidth"))
        stated = all(type(side) is int and 0 < side <= MAX_SIDE for side in sides)
        size = sides if stated else (0, 0)
        document.add_image(picture, size)
        shapes = _shapes(content["shapes"], name, classes, size, errors)
        document.add_shapes(shapes, name, errors)
    return document.to_json()


def _content(folder: Path, name: str, errors: AnnotationErrors | None) -> dict | None:
    """The content of a JSON file; None where it is another one, or cannot be read.

    Args:
        errors: where to say so.
    """
    try:
        content = read_json(folder / name, "correct or remove it")
        if not isinstance(content, dict) or "shapes" not in content:
            return None  # of another tool
        for field, kind in FIELDS.items():
            if not fits(content.get(field), kind):
                raise UserError(f"{field} is {shown(content.get(field))}")
    except UserError as error:
        if errors is not None:
            errors.add("label_file", name, str(error))
        return None
    return {key: content.get(key) for key in USED}  # pictures inside the file are not kept


def _classes(folder: Path, contents: dict[str, dict]) -> dict[str, int]:
    """Name of a class -> category id: in the order of labels.txt, or sorted."""
    file = folder / LABELS
    if file.is_file():
        lines = split_lines(read_text(file, "correct this list of classes"))
        names = [normal_form(line.strip()) for line in lines if line.strip()]
        names = list(dict.fromkeys(name for name in names if name not in NO_CLASSES))
    else:
        shapes = (s for content in contents.values() for s in content["shapes"])
        labels = (s.get("label") for s in shapes if isinstance(s, dict))
        found = {normal_form(each.strip()) for each in labels if isinstance(each, str)}
        names = sorted(found.difference(NO_CLASSES))
    return {name: i for i, name in enumerate(names, 1)}


class _Pictures:
    """The pictures of a folder, to find those of JSON files."""

    def __init__(self, names: Sequence[str]):
        self.names = set(names)
        self.stems = {os.path.splitext(name)[0]: name for name in names}
        self.last: dict[str, list[str]] = {}  # last part of a name -> the names
        for name in names:
            self.last.setdefault(os.path.basename(name), []).append(name)

    def find(self, json_name: str, image_path: str) -> str | None:
        """What the file states, or a picture beside it, or the only one elsewhere of that name."""
        above = os.path.dirname(json_name)
        path = PureWindowsPath(image_path).as_posix()
        last = os.path.basename(path)
        for place in (path, last):
            if (name := os.path.normpath(os.path.join(above, place))) in self.names:
                return name
        if (beside := self.stems.get(os.path.splitext(json_name)[0])) is not None:
            return beside
        elsewhere = self.last.get(last, ())
        return elsewhere[0] if len(elsewhere) == 1 else None


def _shapes(
    rows: Sequence[object],
    name: str,
    classes: dict[str, int],
    size: tuple[int, int],
    errors: AnnotationErrors,
) -> list[Shape]:
    """The shapes of a picture that can be used; the others go to `errors`."""
    shapes = []
    for number, row in enumerate(rows, 1):
        where = f"{name}, shape {number}"
        if not isinstance(row, dict) or not isinstance(row.get("label"), str):
            errors.add("entry", where, f"a shape must have a label, got {shown(row)}")
            continue
        name_of_label = normal_form(row["label"].strip())
        if name_of_label in NO_CLASSES:
            errors.add("shape", where, name_of_label)
            continue
        label = classes.get(name_of_label)
        if label is None:
            errors.add("unknown_category", where, f"{shown(row['label'])} is not in {LABELS}")
            continue
        try:
            shape = _read_shape(row, label, size)
        except ValueError as error:
            errors.add("not_numbers", where, one_line(error))
            continue
        if shape is None:
            errors.add("shape", where, str(row.get("shape_type")))
        elif shape.parts and polygon_area(shape.parts[0]) == 0:
            errors.add("few_points", where, f"{len(shape.parts[0])} points on a line")
        else:
            shapes.append(shape)
    return shapes


def _read_shape(row: dict, label: int, size: tuple[int, int]) -> Shape | None:
    """A shape; None of a kind that is no object.

    Raises:
        ValueError: its numbers cannot be used.
    """
    kind, group = row.get("shape_type") or "polygon", row.get("group_id")
    if isinstance(group, (list, dict)):
        raise ValueError(f"group_id must be a number, got {shown(group)}")
    if kind not in (*POLYGONS, "rectangle", "circle", "mask"):
        return None
    points = row.get("points")
    if not isinstance(points, list) or not all(fits(p, list) and len(p) == 2 for p in points):
        raise ValueError(f"points must be pairs x, y, got {shown(points)}")
    points = check_numbers([value for point in points for value in point]).reshape(-1, 2)
    if kind in POLYGONS:
        if len(points) < MIN_POINTS:
            raise ValueError(f"a polygon must have at least {MIN_POINTS} points, got {len(points)}")
        return Shape(label, parts=(points,), group=group)
    if len(points) < 2:
        raise ValueError(f"a {kind} must have 2 points, got {len(points)}")
    if kind == "circle":
        radius = math.dist(points[0], points[1])
        return Shape(label, parts=(ellipse_polygon(points[0], (radius, radius)),), group=group)
    low, high = points.min(0), points.max(0)
    if kind == "rectangle":
        return Shape(label, box=(*low.tolist(), *high.tolist()), group=group)
    return Shape(label, rle=_mask(row.get("mask"), low, size), group=group)


def _mask(text: object, corner: np.ndarray, size: tuple[int, int]) -> dict:
    """A picture of a mask, base64 of PNG, whose first pixel lies at a corner -> run lengths.

    Raises:
        ValueError: it is none, or leaves the picture.
    """
    if not isinstance(text, str) or len(text) > MAX_MASK:
        raise ValueError(f"mask must be the base64 text of a PNG, got {shown(text)}")
    if 0 in size:
        raise ValueError("a mask needs the imageHeight and imageWidth of its picture")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)) as image:
            if image.height > size[0] or image.width > size[1]:
                raise ValueError(f"it is {image.height}x{image.width}, larger than the picture")
            mask = np.array(image.convert("L")) > 0
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"mask is not a valid PNG ({one_line(error)})") from error
    x, y = (round(float(value)) for value in corner)
    if min(x, y) < 0 or x + mask.shape[1] > size[1] or y + mask.shape[0] > size[0]:
        raise ValueError(f"the mask at {x}, {y} leaves the picture")
    return window_to_rle(mask, (y, x), size)
