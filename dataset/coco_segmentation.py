"""Outlines of the objects of a COCO `instances_*.json`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import msgspec
import numpy as np

from dataset.annotation_errors import LARGEST, AnnotationErrors
from dataset.coco_detection import CocoObjects, choose_classes
from dataset.coco_format import FLAT, CocoFile, read_coco, read_outline
from utils.array_cache import Arrays, cached_arrays
from utils.errors import UserError
from utils.masks import (
    MAX_LENGTH,
    MAX_TURNS,
    MIN_POINTS,
    cut_polygons,
    fit_polygons,
    rle_to_polygons,
)

GROUP = 256  # outlines that are read at a time
MOST, PIXELS = 0.9, 4.0  # of points that are shares of the picture; sides of boxes that are not


@dataclass(frozen=True)
class Outlines:
    """The outlines of N annotations as flat arrays, so that processes share them.

    Annotation i has the parts object_ends[i] to object_ends[i + 1], part j has the points
    part_ends[j] to part_ends[j + 1].
    """

    arrays: Arrays  # object_ends (N + 1,), part_ends (parts + 1,), points (all, 2) float32 (x, y)

    def num_parts(self) -> np.ndarray:
        """(N,) int64, parts of the outline of each annotation."""
        return np.diff(self.arrays["object_ends"])

    def num_points(self) -> np.ndarray:
        """(N,) int64, points of the outline of each annotation."""
        return np.diff(self.arrays["part_ends"][self.arrays["object_ends"]])

    def parts(self, row: int) -> list[np.ndarray]:
        """The parts of an annotation, each (M, 2) float32."""
        first, last = self.arrays["object_ends"][row : row + 2].tolist()
        ends = self.arrays["part_ends"][first : last + 1].tolist()
        return [self.arrays["points"][start:end] for start, end in pairwise(ends)]


def open_outlines(file: CocoFile) -> Outlines:
    """Reads the outlines of an annotation file; invalid ones are added to its errors."""
    name = f"outlines{file.variant}"
    arrays = cached_arrays(file.path, name, lambda: _build(file), file.depends)
    errors = json.loads(arrays["errors"].tobytes())
    file.errors.merge(AnnotationErrors.from_json(file.path, errors))
    return Outlines(arrays)


def _build(file: CocoFile) -> dict[str, np.ndarray]:
    """The arrays of `Outlines`, with their errors as JSON; crowds and unusable boxes have none."""
    errors = AnnotationErrors(file.path, report=True)
    rows, image = np.flatnonzero(file.arrays["usable"]), file.image_of_rows()
    num_parts = np.zeros(len(image), np.int64)
    points: list[np.ndarray] = []  # of groups
    lengths: list[np.ndarray] = []
    for start in range(0, len(rows), GROUP):
        group = rows[start : start + GROUP].tolist()
        texts = [file.outline_text(row) for row in group]
        sizes = [file.image_size(image[row]) for row in group]
        found = _read_group(texts, sizes)
        if found is None:  # something in it is unusual
            parts = []
            for row, text, size in zip(group, texts, sizes, strict=True):
                where = file.describe(row, image[row])
                parts.append(_read_one(text, where, errors, size))
            found = _flat(parts)
        num_parts[group], of_group, length = found
        points.append(of_group)
        lengths.append(length)
    file.release()
    flat = np.concatenate([np.zeros((0, 2), np.float32), *points])
    sides = file.arrays["bbox"][rows, 2:]
    if len(flat) and np.median(sides) > PIXELS and (flat <= 1).all(1).mean() > MOST:
        detail = "nearly all points lie between 0 and 1; those of COCO are in pixels"
        errors.add("small_outline", f"outline point {flat[0].tolist()}", detail)
    return {
        "object_ends": np.concatenate([[0], np.cumsum(num_parts)]),
        "part_ends": np.concatenate([[0], np.cumsum(np.concatenate([[], *lengths]))]).astype(int),
        "points": flat,
        "errors": np.frombuffer(json.dumps(errors.to_json()).encode(), np.uint8).copy(),
    }


def _read_group(texts: list[bytes], sizes: list[tuple[int, int]]) -> tuple | None:
    """Outlines that are nothing but polygons with an area, at once; None: read them singly."""
    try:
        objects = msgspec.json.decode(b"[" + b",".join(texts) + b"]", type=list[list[list[float]]])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    parts = list(chain.from_iterable(objects))
    if not parts:
        return None
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    if len(objects) != len(texts) or not all(objects):
        return None
    if (lengths % 2).any() or (lengths < 2 * MIN_POINTS).any():
        return None
    values = np.fromiter(chain.from_iterable(parts), np.float64, lengths.sum())
    if not (np.abs(values) < LARGEST).all():
        return None
    points, ends = values.astype(np.float32).reshape(-1, 2), np.cumsum(lengths // 2)
    areas, perimeters = _measure(values.reshape(-1, 2), ends)
    parts_of = np.fromiter(map(len, objects), np.int64, len(objects))
    perimeter = np.add.reduceat(perimeters, np.cumsum(parts_of) - parts_of)  # of each object
    sides = np.array(sizes).sum(1)
    far = perimeter > np.minimum(MAX_TURNS * sides, MAX_LENGTH)
    if (areas <= FLAT * perimeters).any() or (far & (sides > 0)).any():
        return None
    return parts_of, points, lengths // 2


def _measure(points: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(parts,) areas and (parts,) perimeters of outlines (all, 2) that end at `ends` (parts,)."""
    starts = np.concatenate([[0], ends[:-1]])
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = starts  # outlines are closed
    sides = points[following] - points
    own = points - np.repeat(points[starts], np.diff(ends, prepend=0), axis=0)
    cross = own[:, 0] * sides[:, 1] - own[:, 1] * sides[:, 0]
    lengths = np.hypot(sides[:, 0], sides[:, 1])
    return np.abs(np.add.reduceat(cross, starts)) / 2, np.add.reduceat(lengths, starts)


def _read_one(
    text: bytes, where: str, errors: AnnotationErrors, size: tuple[int, int]
) -> list[np.ndarray]:
    parts = read_outline(text, where, errors, size=size)
    if parts and isinstance(parts[0], dict):
        parts = rle_to_polygons(parts[0])
    if not parts:
        errors.add("no_outline", where)
    return parts


def _flat(objects: list[list[np.ndarray]]) -> tuple:
    """Parts of every object, all points, and points of every part."""
    parts = list(chain.from_iterable(objects))
    points = np.concatenate([np.zeros((0, 2), np.float32), *parts])
    return [len(one) for one in objects], points, np.array([len(part) for part in parts], int)


class CocoSegmentation(CocoObjects):
    """Images sorted by id, with the outlines of their objects; outlines may have several parts.

    Run lengths become outlines when the file is read for the first time. Outlines of more than
    `max_points` are simplified when a sample is read. Objects without an outline keep their place
    with an empty list; training drops them (`FilterObjects`).
    """

    learned = "object with an outline"

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        max_points: int = 128,
        cut_outlines: bool = False,
        classes: Sequence[str] | None = None,
        keep_empty: bool = True,
        limit: int | None = None,
        skip_bad: bool = False,
    ):
        """
        Args:
            max_points, cut_outlines: per object, see `SegmentationTokenizer`.
            keep_empty: whether images without an outline count; always in evaluation.
            root, split, classes, limit, skip_bad: see `CocoDetection`.
        """
        file = read_coco(root, split, self.kind, skip_bad=skip_bad)
        categories = choose_classes(file.categories, classes, file.path)
        self._outlines = open_outlines(file)
        file.errors.enforce()
        self.max_points, self.cut_outlines = max_points, cut_outlines
        outlined = self._outlines.num_parts() > 0
        super().__init__(file, categories, learnable=outlined, keep_empty=keep_empty, limit=limit)

    def polygons(self, index: int) -> list[list[np.ndarray]]:
        """Per object of image number `index` its parts, each (M, 2) float32 pixels (x, y)."""
        shorten = cut_polygons if self.cut_outlines else fit_polygons
        rows = self.object_rows(index).tolist()
        return [shorten(self._outlines.parts(row), self.max_points) for row in rows]

    def outline_points(self) -> np.ndarray:
        """(n,) int64, points of each trained outline, plus one for each gap between parts."""
        counts = self._outlines.num_points() + self._outlines.num_parts() - 1
        return counts[self._in_use() & self._learnable]

    def more_fields(self, index: int) -> dict:
        return {"polygons": self.polygons(index)}

    def truth_fields(self, row: int, image: int) -> dict:
        """The outlines, checked, for the mask metric.

        Objects without one become crowds in their boxes: no mask is right or wrong there.
        """
        size = self.file.image_size(image)
        if 0 in size:
            raise UserError(
                f"{self.file.path}: image {self.file.image_ids[image]} states no height and width, "
                "which the evaluation of masks needs; add them"
            )
        text, where = self.file.outline_text(row), self.file.describe(row, image)
        errors = AnnotationErrors(self.file.path)
        parts = read_outline(text, where, errors, size=size)
        if not parts:
            x, y, w, h = self.file.arrays["bbox"][row].tolist()
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            return {"segmentation": [corners], "iscrowd": 1}
        if isinstance(parts[0], dict):
            return {"segmentation": parts[0]}
        segmentation = json.loads(text)
        if len(parts) < len(segmentation):
            segmentation = [part.ravel().tolist() for part in parts]
        return {"segmentation": segmentation}
