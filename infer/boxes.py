"""Where an evaluation of masks or keypoints takes its boxes from.

COCO results files of boxes are checked row by row.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dataset.batch import EvalBatch
from dataset.coco_keypoint import CocoKeypoints
from dataset.coco_segmentation import CocoSegmentation
from infer.detection import DecodingOptions
from infer.encode import Encoded
from infer.predictor import Predictor
from utils.categories import Categories
from utils.cli import log
from utils.errors import UserError
from utils.files import fits, read_json, shown

Boxes = tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]  # boxes, labels, scores
ADVICE = (
    "--boxes must be gt, detected or a COCO results file: a list of image_id, category_id, bbox "
    "and score"
)
FIELDS = {
    "image_id": (int, "a whole number"),
    "category_id": (int, "a whole number"),
    "bbox": (tuple[float, float, float, float], "4 finite numbers"),
    "score": (float, "a finite number"),
}


def box_source(
    predictor: Predictor,
    source: CocoSegmentation | CocoKeypoints,
    categories: Categories,
    boxes: str | Path,
    options: DecodingOptions,
    *,
    most: int | None = None,
) -> Callable[[EvalBatch, Encoded | None], Boxes]:
    """What gives boxes, labels and scores of the images of a batch.

    Args:
        boxes: "gt" = those of the ground truth at score 1; "detected" = what the same weights
            detect; or a COCO results file of boxes.
        options: of the detection.
        most: only so many of an image, those that score best; of the ground truth all.
    """
    if str(boxes) == "detected":
        detector = predictor.detector(options, categories=categories)

        def detected(batch: EvalBatch, encoded: Encoded | None) -> Boxes:
            found = detector(batch.images, encoded=encoded, image_ids=batch.image_ids)
            return _columns([_best((f.boxes, f.labels, f.scores), most) for f in found])

        return detected
    if str(boxes) == "gt":
        known = true_boxes(source, categories)
    else:
        known = read_boxes(Path(boxes), source.image_ids.tolist(), categories)
        known = {i: _best(rows, most) for i, rows in known.items()}

    def given(batch: EvalBatch, *_) -> Boxes:
        return _columns([known[i] for i in batch.image_ids])

    return given


def true_boxes(
    source: CocoSegmentation | CocoKeypoints, categories: Categories
) -> dict[int, tuple]:
    """Image id -> boxes, labels and scores (1) of what the ground truth holds."""
    ids = source.categories.source_ids
    class_of = {number: i for i, number in categories.source_ids.items()}
    prompts = {}
    for index, image_id in enumerate(source.image_ids.tolist()):
        boxes, labels = source.objects(index)
        labels = np.array([class_of.get(ids[int(k)], 0) for k in labels], np.int64)
        known = labels > 0
        prompts[image_id] = boxes[known], labels[known], np.ones(known.sum(), np.float32)
    return prompts


def read_boxes(path: Path, image_ids: list[int], categories: Categories) -> dict[int, tuple]:
    """A COCO results file of boxes -> image id -> boxes (N, 4) xyxy, labels, scores.

    Classes that `categories` does not have are left out.

    Raises:
        UserError: no such file, not of this format, or about other images.
    """
    rows = read_results(path)
    image = np.array([row["image_id"] for row in rows], np.int64)
    category = np.array([row["category_id"] for row in rows], np.int64)
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(len(rows), 4)
    scores = np.array([row["score"] for row in rows], np.float32)
    others = sorted(set(image.tolist()) - set(image_ids))
    if others:
        raise UserError(f"{path} is about other images than the data, id {others[0]} for one")
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    class_of = {number: i for i, number in categories.source_ids.items()}
    labels = np.array([class_of.get(k, 0) for k in category.tolist()], np.int64)
    flat = ~(boxes[:, 2:] > boxes[:, :2]).all(1)
    if flat.any():
        log(f"notice: {path}: left out: boxes without an area, {flat.sum()}")
    usable = (labels > 0) & ~flat
    rows_of = {i: np.flatnonzero(usable & (image == i)) for i in image_ids}
    return {i: (boxes[rows], labels[rows], scores[rows]) for i, rows in rows_of.items()}


def _best(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray], most: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The objects of an image that score best."""
    order = np.argsort(-rows[2], kind="stable")[:most]
    return tuple(values[order] for values in rows)


def _columns(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Boxes:
    return tuple(map(list, zip(*rows, strict=True)))


def read_results(path: Path) -> list[dict]:
    """The rows of a results file; every row has the `FIELDS`.

    Raises:
        UserError: no such file, or not of this format.
    """
    rows = read_json(path, ADVICE)
    if not isinstance(rows, list):
        raise UserError(f"cannot read the boxes in {path}: it holds no list; {ADVICE}")
    for number, row in enumerate(rows):
        for name, (kind, wanted) in FIELDS.items():
            value = row.get(name) if isinstance(row, dict) else None
            if not fits(value, kind) or (kind is int and abs(value) >= 2**63):
                raise UserError(
                    f"cannot read the boxes in {path}: row {number}: {name} must be {wanted}, got "
                    f"{shown(value)}; {ADVICE}"
                )
    return rows
