"""Keypoints of the objects of a COCO `person_keypoints_*.json`."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from dataset.coco_detection import CocoObjects, choose_images, read_targets
from dataset.coco_format import CocoFile, read_coco, read_keypoints
from utils.categories import Categories, Skeleton, check_class_names
from utils.errors import UserError
from utils.files import fits


class CocoKeypoints(CocoObjects):
    """Images sorted by id, with the objects that have a labelled point.

    Crowds and objects without such a point stay in `coco`, the ground truth, where no result can
    be right or wrong on them. Number, names and skeleton of the points come from the file.
    Categories are those that have keypoints.

    Attributes:
        skeleton: of the categories in use, which must agree in it.
    """

    kind = "person_keypoints"

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
            classes: names; those that have no keypoints do not count.
            root, split, keep_empty, limit, skip_bad: see `CocoDetection`.
        """
        file = read_coco(root, split, self.kind, skip_bad=skip_bad)
        categories, skeleton = choose_posed(file, classes)
        rows = labelled_rows(file, categories, skeleton)
        table, rows = read_targets(file, rows, categories)
        # (N, K, 3) of all objects of the table
        points, _ = read_keypoints(rows, len(skeleton), file.errors)
        points[points[..., 2] == 0] = 0
        table = choose_images(table, file.path, keep_empty=keep_empty, limit=limit)
        super().__init__(file, categories, table)
        self.skeleton, self._keypoints = skeleton, points.astype(np.float32)

    def keypoints(self, index: int) -> np.ndarray:
        """(N, K, 3) float32 x, y, visibility of image number `index`, in the order of `objects`."""
        return self._keypoints[self._table.rows(index)].copy()

    def more_fields(self, index: int) -> dict:
        return {"keypoints": self.keypoints(index), "flip_pairs": self.skeleton.flip_pairs}

    @cached_property
    def coco(self):
        """As that of `CocoDetection`, with the number of labelled points, which scoring needs."""
        truth = super().coco
        for row in truth.dataset["annotations"]:
            row["num_keypoints"] = int(np.count_nonzero(np.array(row["keypoints"][2::3]) > 0))
        return truth


def choose_posed(file: CocoFile, classes: Sequence[str] | None) -> tuple[Categories, Skeleton]:
    """The categories in use, which have keypoints, and their common skeleton.

    Args:
        classes: names; None = all that have keypoints.
    """
    # the skeletons of the file
    rows = {row["id"]: row for row in file.category_rows if row.get("keypoints")}
    try:
        skeletons = {
            class_id: Skeleton.from_coco(rows[source_id])
            for class_id, source_id in file.categories.source_ids.items()
            if source_id in rows
        }
    except ValueError as error:
        raise UserError(f"{file.path}: category: {error}") from error
    if not skeletons:
        raise UserError(f"{file.path} has no category with keypoints")
    # of these categories the chosen ones
    posed = {i: name for i, name in file.categories.names.items() if i in skeletons}
    if classes is not None:
        wanted = {i: name for i, name in posed.items() if name in classes}
        if not wanted:
            check_class_names(classes, posed.values(), f"{file.path} (keypoints)")
        posed = wanted
    used = {skeletons[i] for i in posed}
    if len(used) > 1:
        raise UserError(
            f"{file.path}: the categories {', '.join(posed.values())} have different keypoints; "
            "choose some that agree with --set classes=NAME,..."
        )
    return file.categories.only(list(posed)), used.pop()


def labelled_rows(file: CocoFile, categories: Categories, skeleton: Skeleton) -> list[dict]:
    """The annotations with a labelled point, without those of which the points are wrong."""
    used = set(categories.source_ids.values())
    posed = [
        row for row in file.rows if fits(row["category_id"], int) and row["category_id"] in used
    ]
    _, good = read_keypoints(posed, len(skeleton), file.errors)
    bad = {id(row) for row, is_good in zip(posed, good, strict=True) if not is_good}
    return [row for row in file.rows if id(row) not in bad and _is_labelled(row)]


def _is_labelled(row: dict) -> bool:
    """Whether an annotation has a labelled point; those of categories not in use do not matter."""
    points = row["keypoints"]
    if row.get("iscrowd") or not isinstance(points, list):
        return False
    return any(isinstance(v, (int, float)) and v > 0 for v in points[2::3])
