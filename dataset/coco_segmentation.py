"""Outlines of the objects of a COCO `instances_*.json`."""

import contextlib
import io
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from dataset.annotation_errors import Faults
from dataset.coco_detection import CocoDetection
from dataset.coco_format import describe, read_outline
from dataset.sample import Sample
from utils.errors import UserError
from utils.masks import cut_polygons, fit_polygons, rle_to_polygons


class CocoSegmentation(CocoDetection):
    """`CocoDetection` with polygons: all categories, objects of several parts included.

    Run lengths become outlines; what is longer than `max_points` is simplified. Both happen once,
    here: the index holds the result as flat arrays, so that worker processes share it. Objects
    without an outline keep their place with an empty list; training drops them (`FilterObjects`).
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        max_points: int = 128,
        keep_empty: bool = True,
        per_object: bool = False,
        cut_outlines: bool = False,
        **options,
    ):
        """
        Args:
            max_points, cut_outlines: per object, see `SegmentationTokenizer`.
            keep_empty: whether images without an outline count; always in evaluation.
            per_object: every outlined object is a sample of its own: its image, and it alone.
            options: of `CocoDetection`.
        """
        super().__init__(root, split, keep_empty=keep_empty, **options)
        self._shorten = cut_polygons if cut_outlines else fit_polygons
        outlined = self._index_outlines(max_points)
        if not keep_empty:
            self._keep_images(np.array([outlined[self._rows(i)].any() for i in self._images()]))
        self._items = None  # (K, 2) image index and number of the object in the image
        if per_object:
            counted = [(i, np.flatnonzero(outlined[self._rows(i)])) for i in self._images()]
            self._items = np.array([(i, n) for i, found in counted for n in found]).reshape(-1, 2)
        if len(self) == 0:
            raise UserError(f"{self.annotation_file} holds no outline to learn; check the settings")

    def __len__(self) -> int:
        # the base class counts images while it builds the index
        items = getattr(self, "_items", None)
        return super().__len__() if items is None else len(items)

    def __getitem__(self, index: int) -> Sample:
        if self._items is None:
            return self.sample(index)
        image, only = self._items[index].tolist()
        return self.sample(image, only)

    def polygons(self, index: int) -> list[list[np.ndarray]]:
        """Per object of image number `index` its parts, each (M, 2) float32 pixels (x, y)."""
        rows = self._rows(index)
        objects = self._object_ends[rows.start : rows.stop + 1].tolist()
        first = objects[0]
        ends = self._part_ends[first : objects[-1] + 1].tolist()
        parts = [self._points[start:end] for start, end in pairwise(ends)]
        return [parts[start - first : end - first] for start, end in pairwise(objects)]

    @cached_property
    def coco(self):
        """As that of `CocoDetection`, with outlines that are safe to draw.

        Objects without one become crowds in their boxes: no mask is right or wrong there.
        """
        truth, rows, faults = super().coco, [], Faults(self.annotation_file)
        for row in truth.dataset["annotations"]:
            image = truth.imgs[row["image_id"]]
            if not (image.get("height") and image.get("width")):
                raise UserError(
                    f"{self.annotation_file}: image {image['id']} states no height and width, "
                    "which the evaluation of masks needs; add them"
                )
            parts = read_outline(row, faults, size=(image["height"], image["width"]))
            if not parts:
                x, y, w, h = row["bbox"]
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                row = {**row, "segmentation": [corners], "iscrowd": 1}
            elif isinstance(parts[0], np.ndarray) and len(parts) < len(row["segmentation"]):
                row = {**row, "segmentation": [part.ravel().tolist() for part in parts]}
            rows.append(row)
        truth.dataset["annotations"] = rows
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
            truth.createIndex()
        return truth

    def _fields(self, index: int, keep: np.ndarray) -> dict:
        polygons = self.polygons(index)
        return {"polygons": [polygons[i] for i in np.flatnonzero(keep)]}

    def _index_rows(self, rows: list[dict]) -> None:
        self._annotations = rows

    def _index_outlines(self, max_points: int) -> np.ndarray:
        """Reads the outlines of the images in use; (objects,) bool, which ones have some."""
        objects: list[list[np.ndarray]] = [[] for _ in self._annotations]
        for image in self._images():
            rows, size = self._rows(image), tuple(self._sizes[image].tolist())
            for row in range(rows.start, rows.stop):
                parts = self._outlines(self._annotations[row], size)
                objects[row] = self._shorten(parts, max_points)
        del self._annotations  # lists of numbers: many times the size of the arrays
        counts = np.array([len(parts) for parts in objects], np.int64)
        lengths = [len(part) for parts in objects for part in parts]
        points = [part for parts in objects for part in parts]
        self._object_ends = np.concatenate([[0], np.cumsum(counts)])  # (N + 1,) into the parts
        self._part_ends = np.cumsum([0, *lengths])  # (parts + 1,) into the points
        self._points = np.concatenate([np.zeros((0, 2), np.float32), *points])  # (all, 2)
        return counts > 0

    def _outlines(self, row: dict, size: tuple[int, int]) -> list[np.ndarray]:
        """Polygons or run lengths of an annotation as parts, each (M, 2) float32."""
        parts = read_outline(row, self.faults, size=size)
        if parts and isinstance(parts[0], dict):
            parts = rle_to_polygons(parts[0])
        if not parts:
            self.faults.add("no_outline", describe(row))
        return parts

    def _images(self) -> range:
        return range(super().__len__())

    def _rows(self, index: int) -> slice:
        """Where the objects of image number `index` stand in the index of objects."""
        return slice(self._first[index], self._first[index] + self._counts[index])
