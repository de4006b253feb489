"""Boxes of a COCO `instances_*.json`."""

import contextlib
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset.annotated_image import read_annotated_image
from dataset.classes import check_class_names
from dataset.coco_files import coco_paths, read_annotations
from dataset.sample import Sample
from utils.categories import Categories
from utils.errors import UserError


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
    ):
        """
        Args:
            root: folder with train2017, val2017 and annotations (`coco_paths`).
            split: "train" or "val".
            keep_empty: whether images without objects count, as officially; always in evaluation.
            classes: names; only objects of these classes. Their class ids do not change.
            image_ids: only these images.
            limit: only the first images, in the order of their ids.
        """
        self.annotation_file, self.image_folder = coco_paths(
            root,
            split,
            kind=self.kind,
            annotation_file=annotation_file,
            image_folder=image_folder,
        )
        content = read_annotations(self.annotation_file, self.kind)
        everything = self._read_categories(content["categories"])
        self.categories = self._choose(everything, classes)
        self._index_images(content["images"], image_ids)
        self._index_objects(content["annotations"], everything)
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
        boxes = np.clip(boxes, 0, np.float32([size[1], size[0]] * 2))
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
        ids = {row.get("id", 0) for row in rows}
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
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.annotation_file}: bad categories ({error})") from error

    def _choose(self, categories: Categories, classes: Sequence[str] | None) -> Categories:
        if classes is None:
            return categories
        check_class_names(classes, categories.names.values(), str(self.annotation_file))
        keep = [i for i, name in categories.names.items() if name in classes]
        return Categories(
            {i: categories.names[i] for i in keep}, {i: categories.source_ids[i] for i in keep}
        )

    def _index_images(self, images: list[dict], image_ids: Sequence[int] | None) -> None:
        try:
            ids = np.array([row["id"] for row in images]).astype(np.int64, casting="safe")
        except TypeError as error:
            raise UserError(f"{self.annotation_file}: image ids must be whole numbers") from error
        order = np.argsort(ids, kind="stable")
        self.image_ids = ids[order]  # (I,) int64, ascending
        double = np.flatnonzero(self.image_ids[1:] == self.image_ids[:-1])
        if len(double):
            raise UserError(f"{self.annotation_file}: image id {self.image_ids[double[0]]} twice")
        self._file_names = np.array([images[i]["file_name"] for i in order], dtype=str)
        sizes = [(images[i].get("height") or 0, images[i].get("width") or 0) for i in order]
        self._sizes = np.array(sizes, np.int32).reshape(-1, 2)  # (0, 0) if not stated
        self._first = self._counts = np.zeros(len(ids), np.int64)  # no objects yet
        if image_ids is not None:
            unknown = sorted(set(image_ids) - set(self.image_ids.tolist()))
            if unknown:
                raise UserError(f"{self.annotation_file} has no image with the id {unknown[0]}")
            self._keep_images(np.isin(self.image_ids, np.array(image_ids, np.int64)))

    def _index_objects(self, rows: list[dict], everything: Categories) -> None:
        """Sorts the targets by image: objects of image i are rows first[i] .. first[i] + counts."""
        rows = [row for row in rows if not row.get("iscrowd")]
        boxes = self._numbers(rows, "bbox", np.float64, 4)
        image = self._numbers(rows, "image_id", np.int64)
        category = self._numbers(rows, "category_id", np.int64)
        known = np.array(list(everything.source_ids.values()), np.int64)
        strange = np.flatnonzero(~np.isin(category, known))
        if len(strange):
            raise UserError(
                f"{self.annotation_file}: annotation {rows[strange[0]].get('id')} has the unknown "
                f"category {category[strange[0]]}"
            )
        labels = np.zeros(len(rows), np.int16)
        for class_id, source in self.categories.source_ids.items():
            labels[category == source] = class_id
        with np.errstate(invalid="ignore"):
            boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
            usable = (boxes[:, 2:] > boxes[:, :2]).all(1) & np.isfinite(boxes).all(1)
        keep = np.flatnonzero(usable & (labels > 0) & np.isin(image, self.image_ids))
        keep = keep[np.argsort(image[keep], kind="stable")]
        self._boxes, self._labels = boxes[keep].astype(np.float32), labels[keep]
        self._index_rows([rows[i] for i in keep])
        self._first = np.searchsorted(image[keep], self.image_ids, "left")
        self._counts = np.searchsorted(image[keep], self.image_ids, "right") - self._first

    def _numbers(self, rows: list[dict], key: str, dtype: type, width: int = 1) -> np.ndarray:
        """One field of all annotations: (N,), or (N, width) if the field is a list."""
        shape = (len(rows), width)[: min(width, 2)]
        try:
            return np.array([row[key] for row in rows], dtype).reshape(shape)
        except (TypeError, ValueError, OverflowError):
            pass
        for row in rows:  # only now: which one is it?
            try:
                np.array(row[key], dtype).reshape(shape[1:])
            except (TypeError, ValueError, OverflowError) as error:
                wanted = "a whole number" if width == 1 else f"{width} numbers"
                raise UserError(
                    f"{self.annotation_file}: annotation {row.get('id')}: {key} must be {wanted}, "
                    f"got {row[key]!r}"
                ) from error
        raise UserError(f"{self.annotation_file}: the {key} fields do not fit together")

    def _keep_images(self, keep: np.ndarray) -> None:
        self.image_ids, self._sizes = self.image_ids[keep], self._sizes[keep]
        self._file_names, self._first = self._file_names[keep], self._first[keep]
        self._counts = self._counts[keep]
