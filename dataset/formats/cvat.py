"""CVAT for images 1.1: one XML file with the shapes of all pictures."""

import html
import re
import xml.etree.ElementTree as ElementTree
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
from dataset.voc_detection import parse_xml
from utils.errors import UserError, one_line
from utils.files import shown
from utils.images import MAX_SIDE, normal_form
from utils.masks import polygon_area, window_to_rle

TITLE = "CVAT for images"
USUAL = "annotations.xml"
IMAGE = re.compile(rb"<image\s[^>]*>")
SUBSET = re.compile(rb"""\ssubset=["']([^"']*)["']""")
NODE = re.compile(r"<circle\b[^>]*>")  # a point of the drawing of a skeleton
EDGE = re.compile(r"<line\b[^>]*>")
ATTRIBUTE = re.compile(r"""([\w-]+)=["']([^"']*)["']""")
LEFT_OUT = ("polyline", "cuboid", "tag")
VISIBLE, HIDDEN, UNLABELLED = 2, 1, 0  # as COCO has them


def find_parts(folder: Path) -> list[Part]:
    """See `dataset/formats/__init__.py`."""
    files = sorted(folder.glob("*.xml")) if folder.is_dir() else []
    files = [file for file in files if re.search(r"<annotations[\s>]", head_and_tail(file, 4096))]
    if not files:
        return []
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder} has several exports of CVAT: {names}; keep one")
    file = files[0]
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror or error})") from error
    if b"<track" in content and not IMAGE.search(content):
        raise UserError(f"{file} is CVAT for video; export it as CVAT for images 1.1 or as COCO")
    subsets = {_subset(tag) for tag in IMAGE.findall(content)}
    if not subsets:
        raise UserError(f"{file} lists no image; export it as CVAT for images 1.1, in UTF-8")
    images = folder / "images" if (folder / "images").is_dir() else folder
    return [
        Part(name, file, (file, images), images, partial(_read, file, images, set(names)))
        for name, names in name_parts(subsets, file).items()
    ]


def _subset(tag: bytes) -> str:
    """The subset that the tag of an image states; "" for none."""
    found = SUBSET.search(tag)
    return html.unescape(found[1].decode("utf-8", "replace")).strip() if found else ""


@dataclass(frozen=True)
class _Label:
    """A label of the task that is a class."""

    id: int
    points: tuple[str, ...] = ()  # names of its keypoints
    edges: tuple[tuple[int, int], ...] = ()  # pairs of their numbers, from 1

    def row(self, name: str) -> dict:
        points = {"keypoints": list(self.points), "skeleton": [list(edge) for edge in self.edges]}
        return {"id": self.id, "name": name} | (points if self.points else {})


def _read(file: Path, images: Path, subsets: set[str], errors: AnnotationErrors) -> dict:
    """The COCO document of the images of some subsets."""
    try:
        root = parse_xml(file.read_bytes())
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise UserError(
            f"cannot read {file} as XML ({one_line(error)}); export it again"
        ) from error
    nodes = root.findall("image")
    labels = _read_labels(root, nodes)
    pictures = set(list_pictures(images))
    document = Document([label.row(name) for name, label in labels.items()])
    for number, node in enumerate(nodes, 1):
        subset = (node.get("subset") or "").strip()
        if subset not in subsets:
            continue
        name = node.get("name") or ""
        where = f"image {shown(name)}" if name else f"image {number}"
        try:
            if not name:
                raise ValueError("it has no name")
            size = tuple(_side(node, side) for side in ("height", "width"))
        except ValueError as error:
            errors.add("image_entry", where, one_line(error))
            continue
        in_subset = f"{subset}/{name}"
        document.add_image(in_subset if in_subset in pictures else name, size)
        document.add_shapes(_shapes(node, where, labels, size, errors), where, errors)
    return document.to_json()


def _side(node: ElementTree.Element, side: str) -> int:
    """Height or width of an image in pixels, 0 where it is not stated."""
    text = node.get(side) or "0"
    if not text.isdecimal() or int(text) > MAX_SIDE:
        raise ValueError(f"its {side} must be 1 to {MAX_SIDE} pixels, got {shown(text)}")
    return int(text)


# ---- labels ------------------------------------------------------------------------------------


def _read_labels(
    root: ElementTree.Element, images: Sequence[ElementTree.Element]
) -> dict[str, _Label]:
    """The classes in the order of the task; those of a file without a list, sorted."""
    rows = next(iter(root.iter("labels")), None)
    rows = [] if rows is None else rows.findall("label")
    names = [_text(row, "name") for row in rows if not _text(row, "parent")]
    used = {_text_of(shape.get("label")) for node in images for shape in node}
    names = list(dict.fromkeys(filter(None, names))) or sorted(filter(None, used))
    skeletons = {_text(row, "name"): _skeleton(row, rows) for row in rows}
    counts = _count_points(images)
    labels = {}
    for number, name in enumerate(names, 1):
        points, edges = skeletons.get(name, ((), ()))
        if not points and len(counts.get(name, ())) == 1:  # points without names
            points = point_names(next(iter(counts[name])))
        labels[name] = _Label(number, points, edges)
    return labels


def _text(node: ElementTree.Element, tag: str) -> str:
    return _text_of(node.findtext(tag))


def _text_of(text: str | None) -> str:
    return normal_form((text or "").strip())


def _skeleton(row: ElementTree.Element, rows: Sequence[ElementTree.Element]) -> tuple[tuple, tuple]:
    """Names of the keypoints of a label and the edges between their numbers, from 1."""
    name, drawing = _text(row, "name"), row.findtext("svg") or ""
    below = tuple(_text(each, "name") for each in rows if _text(each, "parent") == name)
    nodes = [dict(ATTRIBUTE.findall(tag)) for tag in NODE.findall(drawing)]
    drawn = tuple(_text_of(node.get("data-label-name")) for node in nodes)
    points = drawn if drawn and (not below or sorted(drawn) == sorted(below)) else below
    if points != drawn:
        return points, ()
    places = {node.get("data-node-id"): number for number, node in enumerate(nodes, 1)}
    lines = [dict(ATTRIBUTE.findall(tag)) for tag in EDGE.findall(drawing)]
    ends = [(places.get(x.get("data-node-from")), places.get(x.get("data-node-to"))) for x in lines]
    return points, tuple(edge for edge in ends if None not in edge)


def _count_points(images: Sequence[ElementTree.Element]) -> dict[str, set[int]]:
    """Label -> the counts of points that its shapes of points have."""
    counts: dict[str, set[int]] = {}
    for node in images:
        for shape in node.findall("points"):
            count = len((shape.get("points") or "").split(";"))
            counts.setdefault(_text_of(shape.get("label")), set()).add(count)
    return counts


# ---- shapes ------------------------------------------------------------------------------------


def _shapes(
    image: ElementTree.Element,
    where: str,
    labels: dict[str, _Label],
    size: tuple[int, int],
    errors: AnnotationErrors,
) -> list[Shape]:
    """The shapes of an image that can be used; the others go to `errors`."""
    shapes = []
    for number, node in enumerate(image, 1):
        place = f"{where}, <{node.tag}> {number}"
        name = _text_of(node.get("label"))
        if node.tag in LEFT_OUT:
            errors.add("shape", place)
            continue
        if name not in labels:
            errors.add("unknown_category", place, f"label {shown(name)} is none of the task")
            continue
        try:
            shape = _read_shape(node, labels[name], size)
        except ValueError as error:
            errors.add("not_numbers", place, one_line(error))
            continue
        if shape is None:
            errors.add("shape", place)
        elif shape.parts and polygon_area(shape.parts[0]) == 0:
            errors.add("few_points", place, f"{len(shape.parts[0])} points on a line")
        else:
            shapes.append(shape)
    return shapes


def _read_shape(node: ElementTree.Element, label: _Label, size: tuple[int, int]) -> Shape | None:
    """A shape; None of a kind that is no object.

    Raises:
        ValueError: its numbers cannot be used.
    """
    group = node.get("group_id")
    group = group if group not in (None, "", "0") else None
    if node.tag == "box":
        box = _numbers(node, "xtl", "ytl", "xbr", "ybr")
        (degrees,) = _numbers(node, "rotation") if node.get("rotation") else (0.0,)
        if degrees:
            return Shape(label.id, parts=(turned_box(box, degrees),), group=group)
        return Shape(label.id, box=tuple(box), group=group)
    if node.tag == "ellipse":
        cx, cy, rx, ry = _numbers(node, "cx", "cy", "rx", "ry")
        (degrees,) = _numbers(node, "rotation") if node.get("rotation") else (0.0,)
        part = ellipse_polygon((cx, cy), (rx, ry), degrees)
        return Shape(label.id, parts=(part,), group=group)
    if node.tag == "polygon":
        part = check_polygon(_pairs(node.get("points")))
        return Shape(label.id, parts=(part,), group=group)
    if node.tag == "mask":
        return Shape(label.id, rle=_mask(node, size), group=group)
    if node.tag == "points":
        points = np.array(_pairs(node.get("points"))).reshape(-1, 2)
        if len(points) != len(label.points):
            return None  # marks, not the keypoints of an object
        seen = VISIBLE * (points != 0).any(1)  # tools write 0, 0 for what is not labelled
        return Shape(label.id, points=np.column_stack([points, seen]), group=group)
    if node.tag == "skeleton":
        return Shape(label.id, points=_pose(node, label), group=group)
    return None


def _numbers(node: ElementTree.Element, *names: str) -> list[float]:
    """Attributes as numbers."""
    return check_numbers([_number(node.get(name), name) for name in names]).tolist()


def _number(text: str | None, name: str) -> float:
    try:
        return float((text or "").replace("_", "?"))
    except ValueError:
        raise ValueError(f"{name} must be a number, got {shown(text)}") from None


def _pairs(text: str | None) -> list[float]:
    """ "x,y;x,y" -> [x, y, x, y]."""
    pairs = [pair.split(",") for pair in (text or "").split(";")]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError(f"points must be x,y;x,y;…, got {shown(text)}")
    return check_numbers([_number(word, "a point") for pair in pairs for word in pair]).tolist()


def _pose(node: ElementTree.Element, label: _Label) -> np.ndarray:
    """(K, 3) keypoints of a <skeleton>, whose points have names."""
    places = {name: k for k, name in enumerate(label.points)}
    points = np.zeros((len(places), 3))
    for each in node.findall("points"):
        name = _text_of(each.get("label"))
        if name not in places:
            raise ValueError(f"the skeleton has no point {shown(name)}")
        if each.get("outside") == "1":
            continue
        x, y = check_numbers(_pairs(each.get("points")), 2)
        points[places[name]] = x, y, HIDDEN if each.get("occluded") == "1" else VISIBLE
    return points


def _mask(node: ElementTree.Element, size: tuple[int, int]) -> dict:
    """Run lengths along the rows of a window, background first -> those of COCO."""
    window = _numbers(node, "left", "top", "width", "height")
    left, top, width, height = (int(value) for value in window)
    inside = 0 <= left < left + width <= size[1] and 0 <= top < top + height <= size[0]
    if not inside:
        raise ValueError(f"its window {[left, top, width, height]} leaves the picture")
    words = (node.get("rle") or "").split(",")
    counts = [int(word) if word.strip().isdecimal() else -1 for word in words]
    if min(counts) < 0 or sum(counts) != width * height:
        raise ValueError(f"rle must be whole numbers that add up to {width * height}")
    values = np.arange(len(counts)) % 2 == 1
    mask = np.repeat(values, counts).reshape(height, width)
    return window_to_rle(mask, (top, left), size)
