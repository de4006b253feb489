"""Outlines of the objects of a COCO `instances_*.json`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from dataset.annotation_errors import AnnotationErrors
from dataset.coco_detection import (
    CocoObjects,
    ObjectTable,
    choose_classes,
    choose_images,
    create_index,
    read_targets,
)
from dataset.coco_format import describe, read_coco, read_outline
from utils.errors import UserError
from utils.masks import cut_polygons, fit_polygons, rle_to_polygons


@dataclass(frozen=True)
class Outlines:
    """The outlines of N objects as flat arrays, so that worker processes share them.

    Object i has the parts object_ends[i] to object_ends[i + 1], part j has the points part_ends[j]
    to part_ends[j + 1].
    """

    object_ends: np.ndarray  # (N + 1,)
    part_ends: np.ndarray  # (parts + 1,)
    points: np.ndarray  # (all, 2) float32 (x, y)

    @classmethod
    def of(cls, objects: Sequence[Sequence[np.ndarray]]) -> "Outlines":
        """From the parts of every object, each (M, 2)."""
        counts = [len(parts) for parts in objects]
        points = [part for parts in objects for part in parts]
        return cls(
            np.cumsum([0, *counts]),
            np.cumsum([0, *map(len, points)]),
            np.concatenate([np.zeros((0, 2), np.float32), *points]),
        )

    def has_some(self, rows: slice) -> np.ndarray:
        """(n,) bool, which of these objects have an outline."""
        return np.diff(self.object_ends[rows.start : rows.stop + 1]) > 0

    def parts(self, rows: slice) -> list[list[np.ndarray]]:
        """The parts of these objects."""
        objects = self.object_ends[rows.start : rows.stop + 1].tolist()
        first = objects[0]
        ends = self.part_ends[first : objects[-1] + 1].tolist()
        parts = [self.points[start:end] for start, end in pairwise(ends)]
        return [parts[start - first : end - first] for start, end in pairwise(objects)]


def read_outlines(
    rows: list[dict],
    table: ObjectTable,
    errors: AnnotationErrors,
    shorten: Callable[[list[np.ndarray]], list[np.ndarray]],
) -> Outlines:
    """The outlines of the images in use; objects of other images get none.

    Args:
        rows: the annotation of each object of `table`.
        shorten: limits the points of an object.
    """
    objects: list[list[np.ndarray]] = [[] for _ in rows]
    for image in range(len(table)):
        size, place = tuple(table.images.sizes[image].tolist()), table.rows(image)
        for i in range(place.start, place.stop):
            parts = read_outline(rows[i], errors, size=size)
            if parts and isinstance(parts[0], dict):
                parts = rle_to_polygons(parts[0])
            if not parts:
                errors.add("no_outline", describe(rows[i]))
            objects[i] = shorten(parts)
    return Outlines.of(objects)


class CocoSegmentation(CocoObjects):
    """Images sorted by id, with the outlines of their objects, those of several parts included.

    Run lengths become outlines, and outlines of more than `max_points` are simplified. Both happen
    once, when the file is read. Objects without an outline keep their place with an empty list;
    training drops them (`FilterObjects`).
    """

    kind = "instances"

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
        table, rows = read_targets(file, file.rows, categories)
        table = choose_images(table, file.path, keep_empty=keep_empty, limit=limit)
        # the outlines of the images that are left
        shorten = cut_polygons if cut_outlines else fit_polygons
        outlines = read_outlines(rows, table, file.errors, lambda parts: shorten(parts, max_points))
        if not keep_empty:
            outlined = [outlines.has_some(table.rows(i)).any() for i in range(len(table))]
            table = table.keep(np.array(outlined, bool))
        if len(table) == 0:
            raise UserError(f"{file.path} holds no outline to learn; check the settings")
        super().__init__(file, categories, table)
        self._outlines = outlines

    def polygons(self, index: int) -> list[list[np.ndarray]]:
        """Per object of image number `index` its parts, each (M, 2) float32 pixels (x, y)."""
        return self._outlines.parts(self._table.rows(index))

    def more_fields(self, index: int) -> dict:
        return {"polygons": self.polygons(index)}

    def usable(self, index: int) -> np.ndarray:
        return self._outlines.has_some(self._table.rows(index))

    @cached_property
    def coco(self):
        """As that of `CocoDetection`, with outlines that are safe to draw.

        Objects without one become crowds in their boxes: no mask is right or wrong there.
        """
        truth, rows = super().coco, []
        errors = AnnotationErrors(self.annotation_file)
        for row in truth.dataset["annotations"]:
            image = truth.imgs[row["image_id"]]
            if not (image.get("height") and image.get("width")):
                raise UserError(
                    f"{self.annotation_file}: image {image['id']} states no height and width, "
                    "which the evaluation of masks needs; add them"
                )
            parts = read_outline(row, errors, size=(image["height"], image["width"]))
            if not parts:
                x, y, w, h = row["bbox"]
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                row = {**row, "segmentation": [corners], "iscrowd": 1}
            elif isinstance(parts[0], np.ndarray) and len(parts) < len(row["segmentation"]):
                row = {**row, "segmentation": [part.ravel().tolist() for part in parts]}
            rows.append(row)
        truth.dataset["annotations"] = rows
        create_index(truth)
        return truth
