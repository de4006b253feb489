"""Reads the label files of YOLO: one text file per picture, one line per object.

A line is a class and numbers, shares of the width and height of the picture:

    class x_center y_center width height                a box
    class x_center y_center width height px py [v] ...  a pose, where the dataset states kpt_shape
    class x y x y x y ...                               a polygon; four points: an oriented box
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dataset.annotation_errors import AnnotationErrors
from dataset.formats.document import Document, Shape, point_names
from utils.categories import COCO_PERSON
from utils.errors import UserError, one_line
from utils.files import read_text, shown, split_lines
from utils.images import image_size, plain_form
from utils.masks import MIN_POINTS, polygon_area

BOX = 4  # numbers
ROUNDING = 0.01  # how far a share may leave 0..1; Ultralytics, too, accepts so much
VISIBLE = 2  # as COCO has it
MAX_LINE = 10_000  # characters of a line that are looked at, to see what a text is


class BadLine(Exception):
    """A line that cannot be used: the kind of error, and what is wrong."""


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset, and the keypoints that all of them have.

    Raises:
        ValueError: names or pairs do not fit the count of points.
    """

    names: dict[int, str]  # id in label files, from 0 -> name
    num_points: int = 0  # keypoints of an object; 0 = none
    point_size: int = 3  # numbers of a keypoint: x and y, perhaps the visibility
    point_names: tuple[str, ...] = ()
    flip_idx: tuple[int, ...] = ()  # number of the point that each one becomes in a mirror

    def __post_init__(self):
        count = self.num_points
        if self.point_names and len(self.point_names) != count:
            raise ValueError(f"kpt_names must name {count} points, got {len(self.point_names)}")
        flip = self.flip_idx
        if flip and (
            sorted(flip) != list(range(count)) or any(flip[i] != k for k, i in enumerate(flip))
        ):
            raise ValueError(f"flip_idx must swap pairs of {count} points, got {shown(flip)}")

    def categories(self) -> list[dict]:
        """Rows of a COCO document; category id 1 is class 0."""
        points = self._point_fields() if self.num_points else {}
        return [{"id": i + 1, "name": name} | points for i, name in sorted(self.names.items())]

    def _point_fields(self) -> dict:
        names = self.point_names or point_names(self.num_points)
        fields: dict = {"keypoints": list(names)}
        if names == COCO_PERSON.names:
            fields["skeleton"] = [[a + 1, b + 1] for a, b in COCO_PERSON.edges]
        if self.flip_idx:
            pairs = [[k + 1, i + 1] for k, i in enumerate(self.flip_idx) if k < i]
            fields["flip_pairs"] = pairs
        return fields


@dataclass(frozen=True)
class Pictures:
    """The pictures of a part.

    Attributes:
        root: of the dataset; places in messages are relative to it.
        folder: the names are relative to it.
        missing: lines of a list that name no picture, in words.
        is_whole: whether these are all pictures of their folders.
    """

    root: Path
    folder: Path
    names: tuple[str, ...]
    missing: tuple[str, ...] = ()
    is_whole: bool = True

    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.names]

    def labels(self) -> list[Path | None]:
        """The label file of each picture, None where it has none.

        Letters may be written in another way, as systems do with accents and upper case.
        """
        names_in, names_by_form = cache(_names_in), cache(_names_by_form)
        places = [label_places(path) for path in self.paths()]
        found = [next((p for p in some if p.name in names_in(p.parent)), None) for some in places]
        taken = set(found)
        for i in [i for i, label in enumerate(found) if label is None]:
            for place in places[i]:
                names = names_by_form(place.parent).get(plain_form(place.name), ())
                if len(names) == 1 and (label := place.with_name(names[0])) not in taken:
                    found[i] = label
                    break
        return found


def _names_in(folder: Path) -> frozenset[str]:
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


def _names_by_form(folder: Path) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name in _names_in(folder):
        names.setdefault(plain_form(name), []).append(name)
    return names


def label_folders(pictures: Pictures) -> list[Path]:
    """Folders in which label files may appear."""
    above = {path.parent for path in pictures.paths()}
    places = {place.parent for folder in above for place in label_places(folder / "a.jpg")}
    return sorted(place for place in places if place.is_dir())


def label_places(picture: Path) -> list[Path]:
    """Where the label file of a picture may be, the first one that is there counts."""
    text = picture.with_suffix(".txt").as_posix()
    above, found, below = text.rpartition("/images/")
    mirrored = [Path(f"{above}/labels/{below}")] if found else []
    return [*mirrored, Path(text), picture.parent / "labels" / f"{picture.stem}.txt"]


def _labels_alone(pictures: Pictures, used: set[Path | None]) -> list[Path]:
    """Label files of objects whose picture is not there, as after an incomplete copy."""
    if not pictures.is_whole:
        return []
    files = (folder / name for folder in label_folders(pictures) for name in _names_in(folder))
    texts = sorted(file for file in files if file.suffix == ".txt" and file not in used)
    return [file for file in texts if _holds_objects(file)]


def _holds_objects(file: Path) -> bool:
    """Whether the first line of a text is an object of YOLO, not a name of a class or a picture."""
    try:
        with file.open("rb") as lines:
            words = lines.readline(MAX_LINE).decode().split()
        return len(words) > BOX and all(math.isfinite(float(word)) for word in words)
    except (OSError, ValueError):
        return False


def read_pictures(pictures: Pictures, classes: Classes, errors: AnnotationErrors) -> dict:
    """The COCO document of a part.

    The numbers are shares of the upright picture, as Ultralytics has it, so that is the size that
    the document states.

    Raises:
        UserError: no picture has a label file.
    """
    document, labels = Document(classes.categories()), pictures.labels()
    if not any(labels):
        place = os.path.relpath(label_places(pictures.folder / pictures.names[0])[0], pictures.root)
        raise UserError(
            f"{pictures.folder}: none of its {len(labels)} pictures has a label file; that of "
            f"{pictures.names[0]} should be {place}"
        )
    for line in pictures.missing:
        errors.add("image_missing", line, "there is no such picture")
    for label in _labels_alone(pictures, set(labels)):
        errors.add("label_alone", os.path.relpath(label, pictures.root), "it has no picture")
    for name, label in zip(pictures.names, labels, strict=True):
        where = os.path.relpath(label or pictures.folder / name, pictures.root)
        try:
            size = image_size(pictures.folder / name)
        except UserError as error:
            errors.add("image_unreadable", name, str(error))
            continue
        try:
            text = read_text(label, "correct or remove it") if label else ""
        except UserError as error:
            errors.add("label_file", where, str(error))
            continue
        document.add_image(name, size)
        for number, line in enumerate(split_lines(text), 1):
            if line.strip():
                _add_line(document, line, f"{where}, line {number}", classes, size, errors)
    return document.to_json()


def _add_line(
    document: Document,
    line: str,
    where: str,
    classes: Classes,
    size: tuple[int, int],
    errors: AnnotationErrors,
) -> None:
    """Adds the object of a line, or what is wrong with it."""
    try:
        words = line.split()
        if len(words) == 2 + BOX and not classes.num_points:
            read_number(words[-1])
            errors.add("confidence", where, f"the last number of {shown(line)} is not used")
            words = words[:-1]
        document.add_shapes([read_words(words, classes, size)], where, errors)
    except BadLine as error:
        kind, problem = error.args
        errors.add(kind, where, problem)


def read_words(words: Sequence[str], classes: Classes, size: tuple[int, int]) -> Shape:
    """The object of a line.

    Args:
        size: (H, W) of the picture.

    Raises:
        BadLine: it is none.
    """
    numbers = [read_number(word) for word in words]
    label = _class_of(numbers[0], classes)
    numbers, scale = numbers[1:], np.array([size[1], size[0]], float)
    if len(numbers) == BOX:
        return Shape(label, box=_box(numbers, scale))
    if classes.num_points:
        wanted = BOX + classes.num_points * classes.point_size
        if len(numbers) != wanted:
            raise BadLine(
                "not_numbers",
                f"a pose must have 1 + {BOX} + {classes.num_points} x {classes.point_size} numbers "
                f"(kpt_shape), got {len(words)}",
            )
        return Shape(label, box=_box(numbers[:BOX], scale), points=_points(numbers, classes, scale))
    if len(numbers) < BOX or len(numbers) % 2:
        raise BadLine(
            "not_numbers",
            f"there must be 5 numbers of a box, or a class and x y of at least {MIN_POINTS} "
            f"points, got {len(words)} numbers",
        )
    _check_shares(numbers)
    part = np.clip(np.array(numbers).reshape(-1, 2), 0, 1) * scale
    if polygon_area(part) == 0:
        raise BadLine("few_points", f"a polygon of {len(part)} points without an area")
    return Shape(label, parts=(part,))


def read_number(word: str) -> float:
    """A word of a line as a number; Python's own 1_000 is none.

    Raises:
        BadLine: it is no finite number.
    """
    try:
        number = float(word.replace("_", "?"))
    except ValueError as error:
        problem = f"it must consist of numbers, got {shown(word)} ({one_line(error, 40)})"
        raise BadLine("not_numbers", problem) from None
    if not math.isfinite(number):
        raise BadLine("not_finite", f"numbers must be finite, got {shown(word)}")
    return number


def _class_of(number: float, classes: Classes) -> int:
    """The category id of a class id."""
    if int(number) != number or int(number) not in classes.names:
        known = f"0 to {max(classes.names)}"
        raise BadLine("unknown_category", f"its class is {number:g}, there are {known}")
    return int(number) + 1


def _box(numbers: Sequence[float], scale: np.ndarray) -> tuple[float, ...]:
    """Shares x_center, y_center, width, height -> xyxy pixels."""
    _check_shares(numbers)
    center, sides = np.array(numbers[:2]) * scale, np.array(numbers[2:]) * scale
    if not (sides > 0).all():
        raise BadLine("no_area", f"box {shown(list(numbers))}")
    return (*(center - sides / 2).tolist(), *(center + sides / 2).tolist())


def _points(numbers: Sequence[float], classes: Classes, scale: np.ndarray) -> np.ndarray:
    """The numbers of a pose -> (K, 3) x, y in pixels, visibility.

    Without a visibility, points are visible. Those at 0 0 or below 0 are not labelled.
    """
    rows = np.array(numbers[BOX:]).reshape(classes.num_points, classes.point_size)
    points = np.zeros((len(rows), 3))
    if classes.point_size == 3:
        points[:, 2] = rows[:, 2]
        if not np.isin(points[:, 2], (0, 1, 2)).all():
            raise BadLine("not_numbers", "the visibility of keypoints must be 0, 1 or 2")
    else:
        points[:, 2] = VISIBLE * ((rows >= 0).all(1) & (rows > 0).any(1))
    labelled = points[:, 2] > 0
    _check_shares(rows[labelled, :2].ravel().tolist())
    points[labelled, :2] = rows[labelled, :2] * scale
    return points


def _check_shares(numbers: Sequence[float]) -> None:
    """Raises `BadLine` for what is no share of the picture."""
    for number in numbers:
        if not -ROUNDING <= number <= 1 + ROUNDING:
            raise BadLine(
                "not_numbers",
                f"coordinates must be shares of the picture, 0 to 1, got {number:g}"
                + " (pixels?)" * (number > 2),
            )
