"""Boxes of a COCO `instances_*.json`, and the base classes of all sources of COCO.

A source is a file of arrays (`CocoFile`) and a choice of its images and objects.
"""

import contextlib
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from dataset.advice import missing_objects
from dataset.coco_format import CocoFile, read_coco
from dataset.sample import Sample, read_annotated_image
from utils.categories import Categories, check_class_names
from utils.errors import UserError
from utils.images import MAX_PIXELS


def choose_classes(categories: Categories, classes: Sequence[str] | None, path: Path) -> Categories:
    """The categories with these names; None = all."""
    if classes is None:
        return categories
    check_class_names(classes, categories.names.values(), str(path))
    return categories.only([i for i, name in categories.names.items() if name in classes])


class CocoImages:
    """Some images of an annotation file, sorted by id: the base of all sources of COCO.

    A subclass sets `_images` and has `read(index, at_least)`.

    Attributes:
        file: the annotation file.
        categories: the classes in use.
        annotation_errors: what is wrong with the file and was left out.
    """

    _images: np.ndarray  # (I,) numbers of the images in use, in the arrays of the file

    def __init__(self, file: CocoFile, categories: Categories):
        self.file, self.categories, self.annotation_errors = file, categories, file.errors

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    @property
    def image_ids(self) -> np.ndarray:
        """(I,) int64."""
        return self.file.image_ids[self._images]

    @property
    def annotation_file(self) -> Path:
        return self.file.path

    def read_pixels(
        self, index: int, at_least: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, int, tuple[int, int]]:
        """Pixels, id and (H, W) of image number `index`: the first fields of a `Sample`.

        Args:
            at_least: (H, W) that is needed; a larger JPEG may be decoded smaller (`read_image`).
        """
        image_id = int(self.file.image_ids[self._images[index]])
        remedy = f"image id {image_id} needs it: {self.file.remedy}"
        path, stated_size = self.image_path(index), self.stated_size(index)
        image, size = read_annotated_image(path, stated_size, remedy, at_least)
        return image, image_id, size

    def stated_size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image as stated in the annotation file, (0, 0) if missing."""
        return self.file.image_size(self._images[index])

    def image_path(self, index: int) -> Path:
        return self.file.image_folder / self.file.image_name(self._images[index])


class CocoObjects(CocoImages):
    """Images sorted by id, each with its objects: the base of the sources with boxes.

    Crowds and boxes without an area are no targets; they stay in `coco`, the ground truth.

    Attributes:
        num_images: images in the file, also those that are not in use.
    """

    kind: ClassVar[str] = "instances"  # of annotation file, see `coco_paths`
    learned: ClassVar[str] = "object"  # what is learned, in messages

    def __init__(
        self,
        file: CocoFile,
        categories: Categories,
        *,
        learnable: np.ndarray | None = None,
        keep_empty: bool = True,
        limit: int | None = None,
    ):
        """
        Args:
            learnable: (N,) bool, annotations that have what the task learns; None = all. The others
                keep their place among the objects of an image.
            keep_empty: whether images without a learnable object count.
            limit: only the first images, in the order of their ids.
        """
        super().__init__(file, categories)
        self.num_images = len(file.image_ids)
        used = np.isin(file.class_ids, list(categories.names))
        self._targets = file.arrays["usable"] & used  # (N,) bool
        self._learnable = self._targets if learnable is None else self._targets & learnable
        images = np.arange(len(file.image_ids))
        if not keep_empty:
            images = images[self._counts(self._learnable) > 0]
        self._images = file.present(images[:limit])
        if not len(self):
            raise UserError(f"no image to use: {missing_objects(self) or 'limit is 0'}")

    def _counts(self, rows: np.ndarray) -> np.ndarray:
        """(I,) how many annotations of each image are among `rows`, (N,) bool."""
        return np.diff(np.concatenate([[0], np.cumsum(rows)])[self.file.arrays["first"]])

    def read(
        self, index: int, at_least: tuple[int, int] | None = None, only: int | None = None
    ) -> Sample:
        """Image number `index` with its objects.

        Args:
            at_least: see `read_pixels`.
            only: number of the one object in the image that counts; None = all.
        """
        image, image_id, size = self.read_pixels(index, at_least)
        boxes, labels = self.objects(index)
        boxes = np.minimum(np.maximum(boxes, 0), np.float32([size[1], size[0]] * 2))
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        if only is not None:
            keep &= np.arange(len(keep)) == only
        fields = self.more_fields(index)
        return Sample(image, image_id, size, boxes=boxes, labels=labels, **fields).select(keep)

    def object_rows(self, index: int) -> np.ndarray:
        """(n,) int64 indices of the objects of an image in the arrays of the file."""
        rows = self.file.rows(self._images[index])
        return rows.start + np.flatnonzero(self._targets[rows])

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """boxes (n, 4) float32 xyxy as annotated, labels (n,) int64; the image is not read."""
        rows = self.object_rows(index)
        return self.file.boxes(rows), self.file.class_ids[rows].astype(np.int64)

    def more_fields(self, index: int) -> dict:
        """Fields of a `Sample` that a task needs in addition to boxes, for one image."""
        return {}

    def learnable_objects(self) -> np.ndarray:
        """(K, 2) int64, number of the image and of the object in it, of all that can be learned."""
        first = self.file.arrays["first"][:-1]
        before = np.concatenate([[0], np.cumsum(self._targets)])  # (N + 1,) targets before a row
        numbers = np.full(len(first), -1)
        numbers[self._images] = np.arange(len(self))
        rows = np.flatnonzero(self._learnable)
        image = self.file.image_of_rows()[rows]
        found = np.column_stack([numbers[image], before[rows] - before[first[image]]])
        return found[found[:, 0] >= 0]

    def objects_per_image(self) -> np.ndarray:
        """(M,) int64, learnable objects of each image in use."""
        return self._counts(self._learnable)[self._images]

    def objects_per_class(self) -> dict[int, int]:
        """Class id -> its learnable objects on the images in use."""
        labels = self.file.class_ids[self._in_use() & self._learnable]
        counts = np.bincount(labels, minlength=max(self.categories.names, default=0) + 1)
        return {class_id: int(counts[class_id]) for class_id in self.categories.names}

    def num_crowds(self) -> int:
        """Number of crowd annotations of the classes in use, on all images."""
        used = np.isin(self.file.class_ids, list(self.categories.names))
        return int(np.count_nonzero(used & self.file.arrays["iscrowd"]))

    def _in_use(self) -> np.ndarray:
        """(N,) bool, the annotations of the images in use."""
        chosen = np.zeros(len(self.file.image_ids), bool)
        chosen[self._images] = True
        return chosen[self.file.image_of_rows()]

    @cached_property
    def coco(self):
        """The ground truth as a pycocotools `COCO`: these images and classes, crowds included."""
        from pycocotools.coco import COCO

        truth, rows, of_image = COCO(), self.truth_rows(), self.file.image_of_rows()
        ids = self.file.arrays["id"][rows]
        if len(np.unique(ids)) < len(ids) or (ids <= 0).any():  # 0 would be "not matched"
            ids = np.arange(1, len(ids) + 1)
        boxes, areas = self.file.arrays["bbox"][rows], self.file.arrays["area"][rows]
        # scoring would pass over objects of other areas
        sound = (areas > 0) & (areas < MAX_PIXELS)
        areas = np.where(sound, areas, boxes[:, 2:].prod(1))
        columns = {
            "id": ids,
            "image_id": self.file.image_ids[of_image[rows]],
            "category_id": self.file.arrays["category_id"][rows],
            "bbox": boxes,
            "area": areas,
            "iscrowd": self.file.arrays["iscrowd"][rows].astype(int),
        }
        lists = [column.tolist() for column in columns.values()]
        annotations = [
            dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)
        ]
        for annotation, row in zip(annotations, rows.tolist(), strict=True):
            annotation |= self.truth_fields(row, int(of_image[row]))
        truth.dataset = {
            "info": {},
            "images": [self._image_row(i) for i in self._images.tolist()],
            "categories": [
                {"id": self.categories.source_ids[i], "name": name}
                for i, name in self.categories.names.items()
            ],
            "annotations": annotations,
        }
        with contextlib.redirect_stdout(io.StringIO()):  # it would print its progress
            truth.createIndex()
        return truth

    def truth_rows(self) -> np.ndarray:
        """(n,) int64 indices of the ground-truth annotations in the arrays of the file."""
        used = np.isin(self.file.class_ids, list(self.categories.names))
        return np.flatnonzero(used & self._in_use())

    def truth_fields(self, row: int, image: int) -> dict:
        """Fields that the metric of a task needs in addition to boxes, or values that replace them.

        Args:
            row, image: numbers of the annotation and its image in the file.
        """
        return {}

    def _image_row(self, image: int) -> dict:
        height, width = self.file.image_size(image)
        sides = {"height": height, "width": width} if height and width else {}
        name = self.file.image_name(image)
        return {"id": int(self.file.image_ids[image]), "file_name": name, **sides}


class CocoDetection(CocoObjects):
    """Images sorted by id, with the boxes that can be trained on."""

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
            root: folder with train2017, val2017 and annotations (`coco_paths`), or a `Dataset`.
            split: "train", "val", or another part of a `Dataset`.
            classes: names; only objects of these classes. Their class ids do not change.
            keep_empty: whether images without objects count, which officially they do in evaluation
                alone.
            limit: only the first images, in the order of their ids.
            skip_bad: leave out annotations that otherwise are errors.
        """
        file = read_coco(root, split, self.kind, skip_bad=skip_bad)
        categories = choose_classes(file.categories, classes, file.path)
        super().__init__(file, categories, keep_empty=keep_empty, limit=limit)
