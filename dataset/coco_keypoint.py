"""Keypoints of the objects of a COCO `person_keypoints_*.json`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset.coco_detection import CocoObjects
from dataset.coco_format import CocoFile, read_coco
from utils.categories import Categories, Skeleton, check_class_names
from utils.errors import UserError


class CocoKeypoints(CocoObjects):
    """Images sorted by id, with the objects that have a labelled point.

    Crowds and objects without such a point stay in `coco`, the ground truth, where no result can
    be right or wrong on them. Number, names and skeleton of the points come from the file.
    Categories are those that have keypoints.

    Attributes:
        skeleton: of the categories in use, which must agree in it.
    """

    kind = "person_keypoints"
    learned = "object with a labelled point"

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
        categories, self.skeleton = choose_posed(file, classes)
        labelled = file.arrays["num_labelled"] > 0
        super().__init__(file, categories, learnable=labelled, keep_empty=keep_empty, limit=limit)
        self._targets = self._learnable  # an object without a point is none of the task

    def keypoints(self, index: int) -> np.ndarray:
        """(n, K, 3) float32 x, y, visibility of image number `index`, in the order of `objects`."""
        ends = self.file.arrays["points_end"][self.object_rows(index)]  # (n,)
        places = ends[:, None] + np.arange(-len(self.skeleton), 0)  # (n, K)
        points = self.file.arrays["points"][places].astype(np.float32)
        points[points[..., 2] == 0] = 0
        return points

    def more_fields(self, index: int) -> dict:
        return {"keypoints": self.keypoints(index), "flip_pairs": self.skeleton.flip_pairs}

    def truth_fields(self, row: int, image: int) -> dict:
        """The keypoints and the number of labelled ones, for the OKS metric."""
        points = points_of(self.file, row)
        return {
            "keypoints": points.ravel().tolist(),
            "num_keypoints": int(np.count_nonzero(points[:, 2] > 0)),
        }


def points_of(file: CocoFile, row: int) -> np.ndarray:
    """(K, 3) float64 x, y, visibility of an annotation; K = 0 where its category has no points."""
    ends = file.arrays["points_end"]
    return file.arrays["points"][int(ends[row - 1]) if row else 0 : int(ends[row])]


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
        raise UserError(f"{file.path}: category: {error}; correct it") from error
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
