"""COCO average precision through pycocotools, which it keeps silent and away from shared data."""

import contextlib
import io
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_KEYS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
KEYS_OF = {"bbox": KEYS, "segm": KEYS, "keypoints": KEYPOINT_KEYS}


def evaluate_coco(
    coco_gt: COCO,
    results: Sequence[dict],
    iou_type: str = "bbox",
    image_ids: Iterable | None = None,
    *,
    sigmas: Sequence[float] | None = None,
) -> dict:
    """Average precision of `results`, computed by pycocotools.

    Neither argument is changed. Annotations without `area`, `iscrowd` or `id` are completed and
    all are renumbered: pycocotools takes an annotation with id 0 for an unmatched one.

    Args:
        results: rows of a COCO results file (`detections_to_coco`); may be empty.
        iou_type: "bbox", "segm" or "keypoints".
        image_ids: images that count, with or without results; default all of `coco_gt`.
        sigmas: (K,) of the object keypoint similarity; default COCO's 17 of persons.

    Returns:
        the numbers of `KEYS_OF[iou_type]` in [0, 1], -1 where no ground truth is of that size
        (as pycocotools reports it); `per_class`, a DataFrame with one row per category (AP, AP50,
        AR, objects, results; NaN without ground truth); `table`, the printed summary.
    """
    if iou_type not in KEYS_OF:
        raise ValueError(f"iou_type must be one of {list(KEYS_OF)}, got {iou_type!r}")
    image_ids = list(coco_gt.imgs if image_ids is None else image_ids)
    unknown = [i for i in image_ids if i not in coco_gt.imgs]
    unknown += [row["image_id"] for row in results if row["image_id"] not in coco_gt.imgs]
    if unknown or not image_ids:
        raise ValueError(f"image ids must be some of the ground truth's, got {unknown[:5]}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = _ground_truth(coco_gt, image_ids)
        evaluation = COCOeval(ground_truth, _detections(ground_truth, results, iou_type), iou_type)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
        with contextlib.redirect_stdout(printed):
            evaluation.summarize()
    metrics = dict(zip(KEYS_OF[iou_type], map(float, evaluation.stats), strict=True))
    return metrics | {"per_class": _per_class(evaluation), "table": printed.getvalue().rstrip()}


def detections_to_coco(
    image_id: int | str, boxes: np.ndarray, scores: np.ndarray, category_ids: Sequence[int]
) -> list[dict]:
    """Rows of a COCO results file.

    Args:
        boxes: (N, 4) xyxy, pixels of the original image.
        category_ids: (N,) ids of the annotation file.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    xywh = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).round(3).tolist()
    image_id = image_id.item() if isinstance(image_id, np.generic) else image_id
    return [
        {
            "image_id": image_id,
            "category_id": int(category_id),
            "bbox": box,
            "score": float(f"{score:.6g}"),  # six digits of tiny scores too: they keep their order
        }
        for box, score, category_id in zip(xywh, scores, category_ids, strict=True)
    ]


def _ground_truth(coco_gt: COCO, image_ids: list) -> COCO:
    """A private copy of some images: pycocotools writes into the annotations it evaluates."""
    rows = [dict(row) for i in dict.fromkeys(image_ids) for row in coco_gt.imgToAnns.get(i, [])]
    for number, row in enumerate(rows, 1):
        row["id"] = number
        row.setdefault("iscrowd", 0)
        if "area" not in row:
            row["area"] = row["bbox"][2] * row["bbox"][3]
    images = [coco_gt.imgs[i] for i in dict.fromkeys(image_ids)]
    return _coco(images, list(coco_gt.cats.values()), rows)


def _detections(ground_truth: COCO, results: Sequence[dict], iou_type: str) -> COCO:
    # A box in a row would make pycocotools take the box's area for the mask's or the pose's.
    drop = () if iou_type == "bbox" else ("bbox", "area")
    rows = [
        {key: value for key, value in row.items() if key not in drop}
        for row in results
        if row["image_id"] in ground_truth.imgs
    ]
    if not rows:  # loadRes looks at the first row
        return _coco(ground_truth.dataset["images"], ground_truth.dataset["categories"], [])
    return ground_truth.loadRes(rows)


def _coco(images: list[dict], categories: list[dict], annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def _per_class(evaluation: COCOeval) -> pd.DataFrame:
    """One row per category, in the order of their ids."""
    truth, found = evaluation.cocoGt, evaluation.cocoDt
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (thresholds, recalls, categories)
    recall = evaluation.eval["recall"][:, :, 0, -1]  # (thresholds, categories)
    rows = []
    for k, category_id in enumerate(evaluation.params.catIds):
        objects = truth.loadAnns(truth.getAnnIds(catIds=[category_id]))
        rows.append(
            {
                "category_id": category_id,
                "name": truth.cats[category_id]["name"],
                "AP": _mean(precision[:, :, k]),
                "AP50": _mean(precision[0, :, k]),
                "AR": _mean(recall[:, k]),
                "objects": sum(not row["ignore"] for row in objects),
                "results": len(found.getAnnIds(catIds=[category_id])),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: np.ndarray) -> float:
    """pycocotools marks what has no ground truth with -1."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")
