"""Keypoints of the objects of a COCO `person_keypoints_*.json`."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset.coco_detection import CocoDetection
from dataset.coco_format import ImageTable, read_keypoints
from dataset.sample import Sample
from utils.categories import Categories, Skeleton, check_class_names
from utils.errors import UserError
from utils.files import fits


class CocoKeypoints(CocoDetection):
    """`CocoDetection` with keypoints; their number, names and skeleton come from the file.

    Objects are those with a labelled point: crowds and the others stay in `coco`, the ground truth,
    where no result can be right or wrong on them. Categories are those that have keypoints.

    Attributes:
        skeleton: of the categories in use, which must agree in it.
    """

    kind = "person_keypoints"
    _items = None  # (P, 2) image index and number of the object in the image; None: whole images

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        per_object: bool = False,
        keep_empty: bool = True,
        **options,
    ):
        """
        Args:
            per_object: every object is a sample of its own: its image, and it alone (training);
                images without objects are left out, before `limit` counts.
            options: of `CocoDetection`; of `classes`, names that have no keypoints do not count.
        """
        super().__init__(root, split, keep_empty=keep_empty and not per_object, **options)
        if per_object:
            counts = self._counts.tolist()
            items = [(image, n) for image, count in enumerate(counts) for n in range(count)]
            self._items = np.array(items, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return super().__len__() if self._items is None else len(self._items)

    def __getitem__(self, index: int) -> Sample:
        if self._items is None:
            return self.sample(index)
        image, only = self._items[index].tolist()
        return self.sample(image, only)

    def keypoints(self, index: int) -> np.ndarray:
        """(N, K, 3) float32 x, y, visibility of image number `index`, in the order of `objects`."""
        first = self._first[index]
        return self._keypoints[first : first + self._counts[index]].copy()

    @cached_property
    def coco(self):
        """As that of `CocoDetection`, with the number of labelled points, which scoring needs."""
        truth = super().coco
        for row in truth.dataset["annotations"]:
            row["num_keypoints"] = int(np.count_nonzero(np.array(row["keypoints"][2::3]) > 0))
        return truth

    def _fields(self, index: int, keep: np.ndarray) -> dict:
        return {"keypoints": self.keypoints(index)[keep], "flip_pairs": self.skeleton.flip_pairs}

    def _read_categories(self, rows: list[dict]) -> Categories:
        everything = super()._read_categories(rows)
        rows = {row["id"]: row for row in rows if row.get("keypoints")}
        try:
            self._skeletons = {
                class_id: Skeleton.from_coco(rows[source])
                for class_id, source in everything.source_ids.items()
                if source in rows
            }
        except ValueError as error:
            raise UserError(f"{self.annotation_file}: category: {error}") from error
        if not self._skeletons:
            raise UserError(f"{self.annotation_file} has no category with keypoints")
        return everything

    def _choose(self, everything: Categories, classes: Sequence[str] | None) -> Categories:
        posed = {i: name for i, name in everything.names.items() if i in self._skeletons}
        if classes is not None:
            wanted = {i: name for i, name in posed.items() if name in classes}
            if not wanted:
                check_class_names(classes, posed.values(), f"{self.annotation_file} (keypoints)")
            posed = wanted
        used = {self._skeletons[i] for i in posed}
        if len(used) > 1:
            raise UserError(
                f"{self.annotation_file}: the categories {', '.join(posed.values())} have "
                "different keypoints; choose some that agree with --set classes=NAME,..."
            )
        self.skeleton = used.pop()
        return Categories(posed, {i: everything.source_ids[i] for i in posed})

    def _index_objects(self, rows: list[dict], everything: Categories, images: ImageTable) -> None:
        used, num_points = set(self.categories.source_ids.values()), len(self.skeleton)
        posed = [
            row for row in rows if fits(row["category_id"], int) and row["category_id"] in used
        ]
        _, good = read_keypoints(posed, num_points, self.faults)
        bad = {id(row) for row, is_good in zip(posed, good, strict=True) if not is_good}
        rows = [row for row in rows if id(row) not in bad and _is_labelled(row)]
        super()._index_objects(rows, everything, images)

    def _index_rows(self, rows: list[dict]) -> None:
        points, _ = read_keypoints(rows, len(self.skeleton), self.faults)
        points[points[..., 2] == 0] = 0
        self._keypoints = points.astype(np.float32)


def _is_labelled(row: dict) -> bool:
    """Whether an annotation has a labelled point; those of categories not in use do not matter."""
    points = row["keypoints"]
    if row.get("iscrowd") or not isinstance(points, list):
        return False
    return any(isinstance(v, (int, float)) and v > 0 for v in points[2::3])
