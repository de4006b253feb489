"""Boxes of a COCO `instances_*.json`."""

import contextlib
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset.annotation_errors import Faults
from dataset.coco_format import (
    ImageTable,
    coco_paths,
    describe,
    read_annotations,
    read_images,
    read_numbers,
    read_objects,
)
from dataset.sample import Sample, read_annotated_image
from utils.categories import Categories, check_class_names
from utils.errors import UserError, one_line
from utils.files import fits, shown


class CocoDetection:
    """Images sorted by id, with the boxes that can be trained on.

    Crowd annotations and boxes without area are no targets; they stay in `coco`, the ground truth.
    The index is a handful of arrays, so that worker processes share it.
    """

    kind = "instances"  # of annotation file, see `coco_paths`

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        annotation_file: str | Path | None = None,
        image_folder: str | Path | None = None,
        keep_empty: bool = True,
        classes: Sequence[str] | None = None,
        image_ids: Sequence[int] | None = None,
        limit: int | None = None,
        skip_bad: bool = False,
    ):
        """
        Args:
            root: folder with train2017, val2017 and annotations (`coco_paths`).
            split: "train" or "val".
            keep_empty: whether images without objects count, as officially; always in evaluation.
            classes: names; only objects of these classes. Their class ids do not change.
            image_ids: only these images.
            limit: only the first images, in the order of their ids.
            skip_bad: leave out, and count in `faults`, annotations that otherwise are errors.
        """
        self.annotation_file, self.image_folder = coco_paths(
            root,
            split,
            kind=self.kind,
            annotation_file=annotation_file,
            image_folder=image_folder,
        )
        self.faults = Faults(self.annotation_file, skip=skip_bad)
        content = read_annotations(self.annotation_file, self.kind, self.faults)
        everything = self._read_categories(content["categories"])
        self.categories = self._choose(everything, classes)
        images = read_images(content["images"], self.faults)
        self._index_images(images)
        self._index_objects(content["annotations"], everything, images)
        if image_ids is not None:
            unknown = sorted(set(image_ids) - set(self.image_ids.tolist()))
            if unknown:
                raise UserError(f"{self.annotation_file} has no image with the id {unknown[0]}")
            self._keep_images(np.isin(self.image_ids, np.array(image_ids, np.int64)))
        if not keep_empty:
            self._keep_images(self._counts > 0)
        if limit is not None:
            self._keep_images(np.arange(len(self)) < limit)
        if len(self) == 0:
            raise UserError(f"{self.annotation_file} leaves no image to use; check the settings")

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def sample(self, index: int, only: int | None = None) -> Sample:
        """Image number `index` with its objects, or with just one of those `objects` lists."""
        image_id, stated = int(self.image_ids[index]), self._sizes[index].tolist()
        image, size = read_annotated_image(
            self.image_path(index),
            tuple(stated),
            f"image id {image_id} needs it: complete the download or use --set coco_root=FOLDER",
        )
        boxes, labels = self.objects(index)
        boxes = np.minimum(np.maximum(boxes, 0), np.float32([size[1], size[0]] * 2))
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        if only is not None:
            keep &= np.arange(len(keep)) == only
        fields = self._fields(index, keep)
        return Sample(image, image_id, size, boxes=boxes[keep], labels=labels[keep], **fields)

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """boxes (N, 4) float32 xyxy as annotated, labels (N,); the image is not read."""
        first = self._first[index]
        rows = slice(first, first + self._counts[index])
        return self._boxes[rows].copy(), self._labels[rows].astype(np.int64)

    def image_path(self, index: int) -> Path:
        return self.image_folder / str(self._file_names[index])

    @cached_property
    def coco(self):
        """The ground truth as a pycocotools `COCO`: these images and classes, crowd included."""
        from pycocotools.coco import COCO

        content = read_annotations(self.annotation_file)
        images, known = set(self.image_ids.tolist()), set(self.categories.source_ids.values())
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
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [row for row in content["images"] if row["id"] in images],
            "categories": [row for row in content["categories"] if row["id"] in known],
            "annotations": rows,
        }
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
            truth.createIndex()
        return truth

    def _fields(self, index: int, keep: np.ndarray) -> dict:
        """Further fields of a `Sample`, for the (N,) objects of an image to `keep` (subclasses)."""
        return {}

    def _index_rows(self, rows: list[dict]) -> None:
        """Takes what else a task needs from the annotations of the objects (subclasses).

        Row i belongs to object i of the index; images may still be left out after this.
        """

    def _read_categories(self, rows: list[dict]) -> Categories:
        try:
            return Categories.from_coco(rows)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.annotation_file}: bad categories ({one_line(error)}); correct the list"
            ) from error

    def _choose(self, categories: Categories, classes: Sequence[str] | None) -> Categories:
        if classes is None:
            return categories
        check_class_names(classes, categories.names.values(), str(self.annotation_file))
        keep = [i for i, name in categories.names.items() if name in classes]
        return Categories(
            {i: categories.names[i] for i in keep}, {i: categories.source_ids[i] for i in keep}
        )

    def _index_images(self, images: ImageTable) -> None:
        self.image_ids, self._sizes = images.ids, images.sizes
        self._file_names = images.file_names
        self._first = self._counts = np.zeros(len(images.ids), np.int64)  # no objects yet

    def _index_objects(self, rows: list[dict], everything: Categories, images: ImageTable) -> None:
        """Sorts the targets by image: objects of image i are rows first[i] .. first[i] + counts."""
        for key, width in (("image_id", None), ("category_id", None), ("bbox", 4)):
            read_numbers([row for row in rows if row.get("iscrowd")], key, self.faults, width)
        found = read_objects(
            [row for row in rows if not row.get("iscrowd")],
            self.faults,
            known=everything.source_ids.values(),
            image_ids=images.ids,
            sizes=images.sizes,
        )
        labels = np.zeros(len(found.rows), np.int16)
        for class_id, source in self.categories.source_ids.items():
            labels[found.category == source] = class_id
        keep = np.flatnonzero(labels > 0)
        keep = keep[np.argsort(found.image[keep], kind="stable")]
        self._boxes, self._labels = found.boxes[keep].astype(np.float32), labels[keep]
        self._index_rows([found.rows[i] for i in keep])
        self._first = np.searchsorted(found.image[keep], self.image_ids, "left")
        self._counts = np.searchsorted(found.image[keep], self.image_ids, "right") - self._first

    def _keep_images(self, keep: np.ndarray) -> None:
        self.image_ids, self._sizes = self.image_ids[keep], self._sizes[keep]
        self._file_names, self._first = self._file_names[keep], self._first[keep]
        self._counts = self._counts[keep]
