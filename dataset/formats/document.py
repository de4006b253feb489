"""What readers of labelling tools' formats share: shapes, and the COCO document made of them.

Tools draw shapes. One object may have several: a box, polygons and points with a common group.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset.annotation_errors import LARGEST, AnnotationErrors
from dataset.formats import ALL, part_of
from utils.categories import COCO_PERSON, NUM_COCO
from utils.errors import UserError
from utils.files import shown
from utils.images import SUFFIXES, list_files
from utils.masks import MIN_POINTS, mask_to_rle, polygon_area, polygons_to_rle, rle_to_mask

NUM_CIRCLE = 64  # points of the polygon of a circle: at most 0.12 % of the radius from it


@dataclass(frozen=True)
class Shape:
    """A shape of an image, in pixels. At least one of box, parts, rle and points is there."""

    label: int  # category id
    box: tuple[float, float, float, float] | None = None  # xyxy
    parts: tuple[np.ndarray, ...] = ()  # polygons, each (M, 2)
    rle: dict | None = None  # COCO run lengths
    points: np.ndarray | None = None  # (K, 3) x, y, visibility as COCO has it
    group: object = None  # shapes with the same one may be one object; None = it stands alone
    crowd: bool = False


class Document:
    """A COCO document to which a reader adds images and objects.

    Attributes:
        categories: rows of the document.
    """

    def __init__(self, categories: Sequence[dict]):
        self.categories = list(categories)
        self._images: list[dict] = []
        self._annotations: list[dict] = []

    def add_image(self, file_name: str, size: tuple[int, int]) -> int:
        """Adds an image, (H, W), and returns its id."""
        height, width = size
        number = len(self._images) + 1
        self._images.append(
            {"id": number, "file_name": file_name, "height": height, "width": width}
        )
        return number

    def add_caption(self, caption: str) -> None:
        """Adds a caption of the image that was added last."""
        self._add({"caption": caption})

    def add_shapes(self, shapes: Iterable[Shape], where: str, errors: AnnotationErrors) -> None:
        """Adds the objects of the image that was added last.

        Args:
            where: these shapes in messages.
        """
        image = self._images[-1]
        try:
            joined = join_groups(shapes, (image["height"], image["width"]))
        except ValueError as error:
            errors.add("outline", where, str(error))
            return
        for shape in joined:
            row = _as_row(shape)
            if row is None:
                errors.add("no_area", where, f"a shape of {self._name(shape.label)}")
                continue
            self._add(row)

    def to_json(self) -> dict:
        return {
            "images": self._images,
            "annotations": self._annotations,
            "categories": self.categories,
        }

    def _add(self, fields: dict) -> None:
        ids = {"id": len(self._annotations) + 1, "image_id": self._images[-1]["id"]}
        self._annotations.append(ids | fields)

    def _name(self, category_id: int) -> str:
        return next(shown(row["name"]) for row in self.categories if row["id"] == category_id)


def join_groups(shapes: Iterable[Shape], size: tuple[int, int]) -> list[Shape]:
    """One shape per object: those of one group and label are joined.

    Where a group has two boxes or two sets of points of a label it joins several objects, such as
    the players of a team. Its shapes then stay apart.

    Args:
        size: (H, W) of the image, zeros if that is not known.

    Raises:
        ValueError: masks of one object have several sizes.
    """
    groups: dict[object, list[Shape]] = defaultdict(list)
    for number, shape in enumerate(shapes):
        alone = shape.group is None
        groups[("alone", number) if alone else (shape.group, shape.label)].append(shape)
    joined = []
    for same in groups.values():
        boxes = sum(shape.box is not None for shape in same)
        poses = sum(shape.points is not None for shape in same)
        joined += same if len(same) == 1 or max(boxes, poses) > 1 else [_joined(same, size)]
    return joined


def _joined(shapes: Sequence[Shape], size: tuple[int, int]) -> Shape:
    """Shapes of one object as one shape; masks and polygons are united."""
    parts = tuple(part for shape in shapes for part in shape.parts)
    masks = [rle_to_mask(shape.rle) for shape in shapes if shape.rle is not None]
    rle = None
    if masks:
        sizes = {mask.shape for mask in masks}
        if len(sizes) > 1:
            raise ValueError(f"the masks of a group have several sizes, {sorted(sizes)}")
        masks += [rle_to_mask(polygons_to_rle(parts, masks[0].shape))] if parts else []
        rle, parts = mask_to_rle(np.logical_or.reduce(masks)), ()
    box = next((shape.box for shape in shapes if shape.box is not None), None)
    points = next((shape.points for shape in shapes if shape.points is not None), None)
    crowd = any(shape.crowd for shape in shapes)
    return replace(shapes[0], box=box, parts=parts, rle=rle, points=points, crowd=crowd)


def _as_row(shape: Shape) -> dict | None:
    """The fields of a COCO annotation; None if nothing of the shape has an extent."""
    row: dict = {"category_id": shape.label, "iscrowd": int(shape.crowd)}
    box = shape.box
    if shape.rle is not None:
        mask = rle_to_mask(shape.rle)
        row |= {"segmentation": shape.rle, "area": float(mask.sum())}
        box = box or mask_box(mask)
    elif shape.parts:
        row["segmentation"] = [np.asarray(part, float).ravel().tolist() for part in shape.parts]
        row["area"] = float(sum(map(polygon_area, shape.parts)))
        box = box or points_box(np.concatenate(shape.parts))
    if shape.points is not None:
        row["keypoints"] = shape.points.ravel().tolist()
        row["num_keypoints"] = int((shape.points[:, 2] > 0).sum())
        box = box or points_box(shape.points[shape.points[:, 2] > 0, :2])
    if box is None or not (box[2] > box[0] and box[3] > box[1]):
        return None
    x1, y1, x2, y2 = (float(value) for value in box)
    row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    return {"area": row["bbox"][2] * row["bbox"][3]} | row


def points_box(points: np.ndarray) -> tuple[float, ...] | None:
    """(N, 2) -> the xyxy box around them; None around nothing."""
    if not len(points):
        return None
    return (*points.min(0).tolist(), *points.max(0).tolist())


def mask_box(mask: np.ndarray) -> tuple[float, ...] | None:
    """(H, W) bool -> the xyxy box around its pixels; None if there is none."""
    ys, xs = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if not len(ys):
        return None
    return (float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1))


def ellipse_polygon(center: Sequence, radii: Sequence, degrees: float = 0.0) -> np.ndarray:
    """(NUM_CIRCLE, 2) points of an ellipse whose axes are turned clockwise by so many degrees."""
    angles = np.linspace(0, 2 * math.pi, NUM_CIRCLE, endpoint=False)
    points = np.column_stack([radii[0] * np.cos(angles), radii[1] * np.sin(angles)])
    return turned(points, degrees) + np.asarray(center, float)


def turned_box(box: Sequence[float], degrees: float) -> np.ndarray:
    """(4, 2) corners of an xyxy box that is turned clockwise around its centre."""
    x1, y1, x2, y2 = box
    center = np.array([x1 + x2, y1 + y2]) / 2
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], float)
    return turned(corners - center, degrees) + center


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """(N, 2) points turned around the origin; clockwise as one sees it, for y points down."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def check_numbers(values: object, count: int | None = None) -> np.ndarray:
    """Numbers from a file as an array (N,) float64.

    Args:
        count: how many there must be; None = any number.

    Raises:
        ValueError: they are no finite numbers of pixels, or more or fewer than `count`.
    """
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not numbers or (count is not None and len(values) != count):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise ValueError(f"there must be {wanted}, got {shown(values)}")
    array = np.array(values, float)
    if not (np.abs(array) < LARGEST).all():
        raise ValueError(f"numbers must be finite and below {LARGEST:.0e}, got {shown(values)}")
    return array


def check_polygon(values: object) -> np.ndarray:
    """[x, y, x, y, …] -> (M, 2).

    Raises:
        ValueError: these are no points, or too few.
    """
    numbers = check_numbers(values)
    if len(numbers) % 2:
        raise ValueError(f"a polygon must have an even count of numbers, got {len(numbers)}")
    if len(numbers) < 2 * MIN_POINTS:
        raise ValueError(f"a polygon must have at least {MIN_POINTS} points, got {shown(values)}")
    return numbers.reshape(-1, 2)


def point_names(count: int) -> tuple[str, ...]:
    """Names for keypoints without any: COCO's, if there are as many."""
    if count == NUM_COCO:
        return COCO_PERSON.names
    return tuple(f"point_{k}" for k in range(1, count + 1))


# ---- parts and pictures ------------------------------------------------------------------------


def name_parts(names: Iterable[str], where: Path) -> dict[str, list[str]]:
    """Part -> the names that tools gave to it; one name that nobody knows is the whole dataset.

    Raises:
        UserError: some are names of parts and some are not.
    """
    names = sorted(names)
    parts: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts[part_of(name)].append(name)
    if len(parts) > 1 and ALL in parts:
        raise UserError(
            f"{where} has the parts {', '.join(map(shown, names))}; call them train, val and test, "
            "or remove the others"
        )
    return dict(parts)


def list_pictures(folder: Path) -> list[str]:
    """Names of the pictures below a folder, relative to it, sorted; hidden ones are left out."""
    names = (name for name in list_files(folder) if is_picture(name))
    return sorted(names)


def is_picture(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and name.lower().endswith(SUFFIXES)


def head_and_tail(path: Path, size: int = 1 << 16) -> str:
    """The begin of a text file, and the end of a long one, to see what it is."""
    try:
        with path.open("rb") as file:
            begin = file.read(size)
            file.seek(max(file.seek(0, os.SEEK_END) - size, len(begin)))
            return (begin + b"\n" + file.read()).decode("utf-8", "replace")
    except OSError:
        return ""
