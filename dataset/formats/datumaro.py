"""Datumaro's own JSON, which CVAT exports too: annotations/PART.json and images/PART/."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dataset.annotation_errors import AnnotationErrors
from dataset.formats import Part
from dataset.formats.document import (
    Document,
    Shape,
    check_numbers,
    check_polygon,
    ellipse_polygon,
    head_and_tail,
    list_pictures,
    name_parts,
    point_names,
    turned_box,
)
from utils.errors import UserError, one_line
from utils.files import fits, read_json, shown
from utils.images import MAX_SIDE, normal_form
from utils.masks import check_rle, polygon_area

TITLE = "Datumaro"
ITEMS = re.compile(r'"items"\s*:\s*\[')
CATEGORIES = re.compile(r'"categories"\s*:\s*\{')  # of COCO it is a list
VISIBLE = 2  # as COCO has it
PLACES = ("images/{0}", "images", "{0}", "")  # of the pictures of a part, below the root


def find_parts(folder: Path) -> list[Part]:
    """See `dataset/formats/__init__.py`."""
    if not folder.is_dir():
        return []
    below = folder / "annotations"
    found = sorted((below if below.is_dir() else folder).glob("*.json"))
    files = {file.stem: file for file in found if _is_datumaro(file)}
    parts = []
    for name, stems in name_parts(files, folder).items():
        for stem in stems:
            places = [folder / place.format(stem) for place in PLACES]
            images = next(place for place in places if place.is_dir())
            read = partial(_read, files[stem], images)
            parts.append(Part(name, files[stem], (files[stem], images), images, read))
    return parts


def _is_datumaro(file: Path) -> bool:
    text = head_and_tail(file)
    return '"dm_format_version"' in text or bool(ITEMS.search(text) and CATEGORIES.search(text))


@dataclass(frozen=True)
class _Label:
    """A label that is a class."""

    id: int  # of the category
    points: tuple[str, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()  # pairs of numbers of points, from 1

    def row(self, name: str) -> dict:
        points = {"keypoints": list(self.points), "skeleton": [list(edge) for edge in self.edges]}
        return {"id": self.id, "name": name} | (points if self.points else {})


def _read(file: Path, images: Path, errors: AnnotationErrors) -> dict:
    """The COCO document of a file."""
    content = read_json(file, "export it again")
    items = content.get("items") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise UserError(f"{file} has no list of items; export it again")
    try:
        names, labels = _read_labels(content, items)
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{file}: its categories cannot be read ({one_line(error)})") from error
    pictures = _stems(list_pictures(images))
    document = Document([label.row(names[i]) for i, label in labels.items()])
    for number, item in enumerate(items, 1):
        where = f"item {number}"
        if not isinstance(item, dict) or not fits(item.get("annotations", []), list):
            errors.add("image_entry", where, f"it must have annotations, got {shown(item)}")
            continue
        where = f"item {shown(item.get('id'))}"
        name, size = _image_of(item, pictures)
        document.add_image(name, size)
        shapes = _shapes(item.get("annotations", []), where, labels, names, document, errors)
        document.add_shapes(shapes, where, errors)
    return document.to_json()


def _stems(pictures: Sequence[str]) -> dict[str, str]:
    """Name without suffix -> picture."""
    return {name.rpartition(".")[0]: name for name in pictures}


def _image_of(item: dict, pictures: dict[str, str]) -> tuple[str, tuple[int, int]]:
    """The file name of an item and its size (H, W), (0, 0) if it is not stated."""
    image = item.get("image") if isinstance(item.get("image"), dict) else {}
    path, stem = image.get("path"), str(item.get("id"))
    name = path if isinstance(path, str) and path else pictures.get(stem, f"{stem}.jpg")
    size = image.get("size")
    stated = isinstance(size, list) and len(size) == 2
    stated = stated and all(type(side) is int and 0 < side <= MAX_SIDE for side in size)
    return name, tuple(size) if stated else (0, 0)


# ---- labels ------------------------------------------------------------------------------------


def _read_labels(content: dict, items: Sequence) -> tuple[list[str], dict[int, _Label]]:
    """The names of all labels, and those that are classes: number in the file -> label.

    The points of a skeleton are labels, too, below that of the skeleton.
    """
    rows = content["categories"]["label"]["labels"]
    names = [normal_form(str(row["name"]).strip()) for row in rows]
    skeletons = {}
    for row in content["categories"].get("points", {}).get("items", []):
        edges = tuple((int(a), int(b)) for a, b in row.get("joints", []))
        skeletons[int(row["label_id"])] = tuple(map(str, row.get("labels", []))), edges
    counts = _count_points(items)
    labels: dict[int, _Label] = {}
    for number, row in enumerate(rows):
        above = row.get("parent")
        owner = names.index(above) if above in names else -1
        if names[number] in skeletons.get(owner, ((), ()))[0]:
            continue  # a point
        points, edges = skeletons.get(number, ((), ()))
        found = counts.get(number, set())
        if not points and len(found) == 1:
            points = point_names(next(iter(found)))
        good = [edge for edge in edges if all(1 <= end <= len(points) for end in edge)]
        labels[number] = _Label(len(labels) + 1, points, tuple(good))
    return names, labels


def _count_points(items: Sequence) -> dict[int, set[int]]:
    """Label -> the counts of points that its annotations of points have."""
    counts: dict[int, set[int]] = {}
    for item in items:
        rows = item.get("annotations") if isinstance(item, dict) else None
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and row.get("type") == "points":
                points = row.get("points")
                count = len(points) // 2 if isinstance(points, list) else 0
                counts.setdefault(row.get("label_id"), set()).add(count)
    return counts


# ---- shapes ------------------------------------------------------------------------------------


def _shapes(
    rows: Sequence,
    where: str,
    labels: dict[int, _Label],
    names: Sequence[str],
    document: Document,
    errors: AnnotationErrors,
) -> list[Shape]:
    """The shapes of an item that can be used; captions go to the document, errors to `errors`."""
    shapes = []
    for number, row in enumerate(rows, 1):
        place = f"{where}, annotation {number}"
        if not isinstance(row, dict):
            errors.add("entry", place, f"it must be an object, got {shown(row)}")
            continue
        if row.get("type") == "caption":
            document.add_caption(row.get("caption"))
            continue
        if row.get("type") not in READERS:
            errors.add("shape", place, shown(row.get("type")))
            continue
        label = labels.get(row.get("label_id")) if type(row.get("label_id")) is int else None
        if label is None:
            errors.add("unknown_category", place, f"label_id is {shown(row.get('label_id'))}")
            continue
        try:
            shape = _read_shape(row, label, names)
        except (ValueError, TypeError) as error:
            errors.add("not_numbers", place, one_line(error))
            continue
        if shape is None:
            errors.add("shape", place, "points")
        elif shape.parts and polygon_area(shape.parts[0]) == 0:
            errors.add("few_points", place, f"{len(shape.parts[0])} points on a line")
        else:
            shapes.append(shape)
    return shapes


def _read_shape(row: dict, label: _Label, names: Sequence[str]) -> Shape | None:
    """A shape; None of points that are no keypoints.

    Raises:
        ValueError: its numbers cannot be used.
    """
    fields = READERS[row["type"]](row, label, names)
    if fields is None:
        return None
    group, attributes = row.get("group") or None, row.get("attributes")
    crowd = isinstance(attributes, dict) and attributes.get("is_crowd") is True
    if isinstance(group, (list, dict)):
        raise ValueError(f"group must be a number, got {shown(group)}")
    return Shape(label.id, group=group, crowd=crowd, **fields)


def _box(row: dict, label: _Label, names: Sequence[str]) -> dict:
    """Left, top, width, height; CVAT adds how it is turned around its centre."""
    x, y, width, height = check_numbers(row.get("bbox"), 4).tolist()
    box, attributes = (x, y, x + width, y + height), row.get("attributes")
    degrees = attributes.get("rotation", 0) if isinstance(attributes, dict) else 0
    if fits(degrees, float) and degrees % 360:
        return {"parts": (turned_box(box, degrees),)}
    return {"box": box}


def _turned(row: dict, label: _Label, names: Sequence[str]) -> dict:
    """x and y of the centre, width, height, degrees."""
    x, y, width, height, degrees = check_numbers(row.get("points"), 5).tolist()
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return {"parts": (turned_box(box, degrees),)}


def _polygon(row: dict, label: _Label, names: Sequence[str]) -> dict:
    return {"parts": (check_polygon(row.get("points")),)}


def _ellipse(row: dict, label: _Label, names: Sequence[str]) -> dict:
    """The box around it."""
    x1, y1, x2, y2 = check_numbers(row.get("points"), 4).tolist()
    radii = abs(x2 - x1) / 2, abs(y2 - y1) / 2
    return {"parts": (ellipse_polygon(((x1 + x2) / 2, (y1 + y2) / 2), radii),)}


def _mask(row: dict, label: _Label, names: Sequence[str]) -> dict:
    return {"rle": check_rle(row.get("rle"))}


def _keypoints(row: dict, label: _Label, names: Sequence[str]) -> dict | None:
    points = check_numbers(row.get("points")).reshape(-1, 2)
    if len(points) != len(label.points):
        return None
    seen = row.get("visibility")
    seen = check_numbers(seen, len(points)) if seen else np.full(len(points), VISIBLE)
    if not np.isin(seen, (0, 1, 2)).all():
        raise ValueError(f"visibility must be 0, 1 or 2, got {shown(row['visibility'])}")
    return {"points": np.column_stack([points, seen])}


def _skeleton(row: dict, label: _Label, names: Sequence[str]) -> dict:
    """Points that are labels of their own."""
    points = np.zeros((len(label.points), 3))
    for element in row.get("elements") or []:
        number = element.get("label_id") if isinstance(element, dict) else None
        name = names[number] if type(number) is int and 0 <= number < len(names) else None
        if name not in label.points:
            raise ValueError(f"the skeleton has no point {shown(name)}")
        seen = check_numbers(element.get("visibility", [VISIBLE]), 1)[0]
        if seen:
            points[label.points.index(name)] = (*check_numbers(element.get("points"), 2), seen)
    return {"points": points}


READERS = {
    "bbox": _box,
    "rotated_bbox": _turned,
    "polygon": _polygon,
    "ellipse": _ellipse,
    "mask": _mask,
    "points": _keypoints,
    "skeleton": _skeleton,
}
