"""Boxes of a COCO `instances_*.json`, and what all sources of COCO objects share.

A source reads its annotation file by functions into a few arrays, and is built from them.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from dataset.coco_format import (
    CocoFile,
    ImageTable,
    describe,
    read_annotations,
    read_coco,
    read_numbers,
    read_objects,
)
from dataset.sample import Sample, read_annotated_image
from utils.categories import Categories, check_class_names
from utils.errors import UserError
from utils.files import fits, shown


@dataclass(frozen=True)
class ObjectTable:
    """Images with their objects: a handful of arrays, so that worker processes share them.

    The objects of image i are rows first[i] to first[i] + counts[i].
    """

    images: ImageTable
    first: np.ndarray  # (I,) int64
    counts: np.ndarray  # (I,) int64
    boxes: np.ndarray  # (N, 4) float32 xyxy as annotated
    labels: np.ndarray  # (N,) int16 class ids

    def __len__(self) -> int:
        return len(self.counts)

    def rows(self, index: int) -> slice:
        """Where the objects of image number `index` stand."""
        return slice(self.first[index], self.first[index] + self.counts[index])

    def keep(self, which: np.ndarray) -> "ObjectTable":
        """The images where `which`, (I,) bool, is true; rows of objects stay where they are."""
        images = self.images.keep(which)
        return replace(self, images=images, first=self.first[which], counts=self.counts[which])


def choose_classes(categories: Categories, classes: Sequence[str] | None, path: Path) -> Categories:
    """The categories of these names; None = all."""
    if classes is None:
        return categories
    check_class_names(classes, categories.names.values(), str(path))
    return categories.only([i for i, name in categories.names.items() if name in classes])


def read_targets(
    file: CocoFile, rows: list[dict], categories: Categories
) -> tuple[ObjectTable, list[dict]]:
    """The objects to train on: crowds, and boxes without an area, are no targets.

    Args:
        rows: annotations of `file`.
        categories: those in use.

    Returns:
        all images with their objects, and the annotation of each object.
    """
    # crowds are no targets, but bad numbers in them are errors too
    for key, width in (("image_id", None), ("category_id", None), ("bbox", 4)):
        read_numbers([row for row in rows if row.get("iscrowd")], key, file.errors, width)
    found = read_objects(
        [row for row in rows if not row.get("iscrowd")],
        file.errors,
        known=file.categories.source_ids.values(),
        image_ids=file.images.ids,
        sizes=file.images.sizes,
    )
    # class ids; 0 where the category is not in use
    labels = np.zeros(len(found.rows), np.int16)
    for class_id, source_id in categories.source_ids.items():
        labels[found.category == source_id] = class_id
    # sort by image, in an image in the order of the file
    keep = np.flatnonzero(labels > 0)
    keep = keep[np.argsort(found.image[keep], kind="stable")]
    first = np.searchsorted(found.image[keep], file.images.ids, "left")
    end = np.searchsorted(found.image[keep], file.images.ids, "right")
    boxes = found.boxes[keep].astype(np.float32)
    table = ObjectTable(file.images, first, end - first, boxes, labels[keep])
    return table, [found.rows[i] for i in keep]


def choose_images(
    table: ObjectTable, path: Path, *, keep_empty: bool, limit: int | None
) -> ObjectTable:
    """The images in use; arguments as those of `CocoDetection`."""
    if not keep_empty:
        table = table.keep(table.counts > 0)
    if limit is not None:
        table = table.keep(np.arange(len(table)) < limit)
    if len(table) == 0:
        raise UserError(f"{path} leaves no image to use; check the settings")
    return table


class CocoObjects:
    """Images sorted by id, each with its objects: the base of the sources with boxes.

    Attributes:
        categories: the classes in use.
        annotation_errors: what is wrong with the file and was left out.
        num_images: images in the file, also those that are not in use.
    """

    kind: ClassVar[str]  # of annotation file, see `coco_paths`

    def __init__(self, file: CocoFile, categories: Categories, table: ObjectTable):
        self.annotation_file, self.image_folder = file.path, file.image_folder
        self.annotation_errors, self.categories = file.errors, categories
        self._table, self.num_images = table, len(file.images.ids)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    @property
    def image_ids(self) -> np.ndarray:
        """(I,) int64."""
        return self._table.images.ids

    def read(
        self, index: int, at_least: tuple[int, int] | None = None, only: int | None = None
    ) -> Sample:
        """Image number `index` with its objects.

        Args:
            at_least: (H, W) that is needed; a larger JPEG may be decoded smaller (`read_image`).
            only: number of the one object in the image that counts; None = all.
        """
        image_id, images = int(self.image_ids[index]), self._table.images
        image, size = read_annotated_image(
            self.image_path(index),
            tuple(images.sizes[index].tolist()),
            f"image id {image_id} needs it: complete the download or use --set coco_root=FOLDER",
            at_least,
        )
        boxes, labels = self.objects(index)
        boxes = np.minimum(np.maximum(boxes, 0), np.float32([size[1], size[0]] * 2))
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        if only is not None:
            keep &= np.arange(len(keep)) == only
        fields = self.more_fields(index)
        return Sample(image, image_id, size, boxes=boxes, labels=labels, **fields).select(keep)

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """boxes (N, 4) float32 xyxy as annotated, labels (N,); the image is not read."""
        rows = self._table.rows(index)
        return self._table.boxes[rows].copy(), self._table.labels[rows].astype(np.int64)

    def more_fields(self, index: int) -> dict:
        """Fields of a `Sample` that a task has beside boxes, for all objects of an image."""
        return {}

    def usable(self, index: int) -> np.ndarray:
        """(N,) bool, which objects of an image a task can learn."""
        return np.ones(self._table.counts[index], bool)

    def image_path(self, index: int) -> Path:
        return self.image_folder / str(self._table.images.file_names[index])

    @cached_property
    def coco(self):
        """The ground truth as a pycocotools `COCO`: these images and classes, crowd included."""
        from pycocotools.coco import COCO

        content = read_annotations(self.annotation_file)
        images, known = set(self.image_ids.tolist()), set(self.categories.source_ids.values())
        # annotations with the fields that pycocotools needs
        rows = [
            {"iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], **row}
            for row in content["annotations"]
            if row["image_id"] in images and row["category_id"] in known
        ]
        for row in rows:
            if not fits(row["area"], float):
                raise UserError(
                    f"{self.annotation_file}: {describe(row)}: area must be a number, got "
                    f"{shown(row['area'])}; correct it"
                )
        ids = {row["id"] if fits(row.get("id"), int) else 0 for row in rows}
        if len(ids) < len(rows) or 0 in ids:  # pycocotools takes id 0 for "not matched"
            rows = [{**row, "id": i} for i, row in enumerate(rows, 1)]
        # the file without what is not in use
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [row for row in content["images"] if row["id"] in images],
            "categories": [row for row in content["categories"] if row["id"] in known],
            "annotations": rows,
        }
        create_index(truth)
        return truth


def create_index(truth) -> None:
    """Lets a pycocotools `COCO` index its dataset; it would print its progress."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()


class CocoDetection(CocoObjects):
    """Images sorted by id, with the boxes that can be trained on.

    Crowds and boxes without an area are no targets; they stay in `coco`, the ground truth.
    """

    kind = "instances"

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        keep_empty: bool = True,
        limit: int | None = None,
        skip_bad: bool = False,
    ):
        """
        Args:
            root: folder with train2017, val2017 and annotations (`coco_paths`).
            split: "train" or "val".
            classes: names; only objects of these classes. Their class ids do not change.
            keep_empty: whether images without objects count, which officially they do in evaluation
                alone.
            limit: only the first images, in the order of their ids.
            skip_bad: leave out annotations that otherwise are errors.
        """
        file = read_coco(root, split, self.kind, skip_bad=skip_bad)
        categories = choose_classes(file.categories, classes, file.path)
        table, _ = read_targets(file, file.rows, categories)
        table = choose_images(table, file.path, keep_empty=keep_empty, limit=limit)
        super().__init__(file, categories, table)
