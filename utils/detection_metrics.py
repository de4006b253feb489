"""Average precision as COCO and as Pascal VOC define it.

COCO's comes from pycocotools, which it keeps silent and away from shared data. VOC's is that of the
development kit (VOCevaldet.m, VOCap.m). The kit counts pixels, so its boxes are one wider than
xmax - xmin. Here boxes are continuous (xmin - 1, ymin - 1, xmax, ymax of the annotation): plain
areas are then the same numbers.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:  # each is imported where it is used: a prediction needs none of them
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
    evaluation = open_evaluation(coco_gt, results, iou_type, image_ids, sigmas=sigmas)
    run_evaluation(evaluation)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluation.summarize()
    metrics = dict(zip(KEYS_OF[iou_type], map(float, evaluation.stats), strict=True))
    return metrics | {"per_class": _per_class(evaluation), "table": printed.getvalue().rstrip()}


def open_evaluation(
    coco_gt: COCO,
    results: Sequence[dict],
    iou_type: str = "bbox",
    image_ids: Iterable | None = None,
    *,
    sigmas: Sequence[float] | None = None,
) -> COCOeval:
    """pycocotools' evaluation of copies, before it runs; arguments as those of `evaluate_coco`.

    The ids of its results are their numbers in `results`, from 1.
    """
    from pycocotools.cocoeval import COCOeval

    if iou_type not in KEYS_OF:
        raise ValueError(f"iou_type must be one of {list(KEYS_OF)}, got {iou_type!r}")
    image_ids = list(coco_gt.imgs if image_ids is None else image_ids)
    unknown = [i for i in image_ids if i not in coco_gt.imgs]
    unknown += [row["image_id"] for row in results if row["image_id"] not in coco_gt.imgs]
    if unknown or not image_ids:
        raise ValueError(f"image ids must be some of the ground truth's, got {unknown[:5]}")
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = _ground_truth(coco_gt, image_ids)
        evaluation = COCOeval(ground_truth, _detections(ground_truth, results, iou_type), iou_type)
    if sigmas is not None:
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
    return evaluation


def run_evaluation(evaluation: COCOeval) -> None:
    """Matches and accumulates, without pycocotools' prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        if evaluation.params.useCats:
            evaluation.accumulate()


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
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def _per_class(evaluation: COCOeval) -> pd.DataFrame:
    """One row per category, in the order of their ids."""
    import pandas as pd

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


# ---- Pascal VOC ---------------------------------------------------------------------------------

MIN_IOU = 0.5  # of a hit
COLUMNS = ["label", "name", "AP", "AP_11point", "objects", "difficult", "detections"]


def evaluate_voc(
    ground_truth: Mapping[Hashable, Mapping],
    detections: Mapping[Hashable, Mapping],
    class_names: Mapping[int, str],
) -> dict:
    """Mean average precision over the classes that have ground truth.

    Detections are taken by descending score. Each belongs to the object of its class and image
    that it overlaps most; the first with an IoU of at least 0.5 finds it, later ones are false
    positives even where they overlap a second object. Difficult objects do not count.

    Args:
        ground_truth: image id -> {"boxes": (N, 4) xyxy pixels, "labels": (N,), "difficult": (N,)};
            "difficult" may be left out. All images that count, also those without objects.
        detections: image id -> {"boxes": (M, 4), "labels": (M,), "scores": (M,)}; ids may miss.
        class_names: label -> name; other labels are not evaluated.

    Returns:
        `mAP50` (area under the curve, VOC2010 on), `mAP50_11point` (VOC2007); 0 if no class has
        ground truth; `per_class`, a DataFrame (AP and AP_11point are NaN without ground truth).
    """
    import pandas as pd

    # match detections and objects
    unknown = [i for i in detections if i not in ground_truth]
    if unknown:
        raise ValueError(f"detections must be of images with ground truth, got {unknown[:5]}")
    found = _match_images(ground_truth, detections)
    labels = np.concatenate([np.asarray(g["labels"]).reshape(-1) for g in ground_truth.values()])
    difficult = np.concatenate([_difficult(g) for g in ground_truth.values()])
    # average precision of each class
    rows = []
    for label, name in class_names.items():
        mine = found["label"] == label
        total = int((~difficult[labels == label]).sum())
        hit = found["iou"][mine] >= MIN_IOU
        true, false = _count(found["score"][mine], found["best"][mine], hit, difficult)
        rows.append(
            {
                "label": label,
                "name": name,
                "AP": _area(true, false, total),
                "AP_11point": _eleven_points(true, false, total),
                "objects": total,
                "difficult": int(difficult[labels == label].sum()),
                "detections": int(mine.sum()),
            }
        )

    table = pd.DataFrame(rows, columns=COLUMNS)
    means = table[["AP", "AP_11point"]].mean().fillna(0.0)
    return {
        "mAP50": float(means["AP"]),
        "mAP50_11point": float(means["AP_11point"]),
        "per_class": table,
    }


def voc_truth(coco: COCO, image_ids: Iterable) -> dict[Hashable, dict[str, np.ndarray]]:
    """The ground truth of some images as `evaluate_voc` takes it; crowds become difficult."""
    truth = {}
    for image_id in image_ids:
        rows = coco.imgToAnns.get(image_id, [])
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        truth[image_id] = {
            "boxes": boxes,
            "labels": np.array([row["category_id"] for row in rows], np.int64),
            "difficult": np.array([row.get("iscrowd", 0) for row in rows], bool),
        }
    return truth


def coco_truth(ground_truth: Mapping[Hashable, Mapping], class_names: Mapping[int, str]) -> COCO:
    """The ground truth of `evaluate_voc` as pycocotools takes it; difficult objects become crowds.

    A crowd is what COCO's scoring ignores. It has no other mark for that.
    """
    rows = []
    for image_id, truth in ground_truth.items():
        boxes = np.array(truth["boxes"], np.float64).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        values = boxes.tolist(), np.asarray(truth["labels"]).tolist(), _difficult(truth).tolist()
        for box, label, difficult in zip(*values, strict=True):
            row = {"id": len(rows) + 1, "image_id": image_id, "category_id": int(label)}
            rows.append(row | {"bbox": box, "area": box[2] * box[3], "iscrowd": int(difficult)})
    categories = [{"id": label, "name": name} for label, name in class_names.items()]
    with contextlib.redirect_stdout(io.StringIO()):
        return _coco([{"id": image_id} for image_id in ground_truth], categories, rows)


def _difficult(truth: Mapping) -> np.ndarray:
    return np.asarray(truth.get("difficult", np.zeros(len(truth["labels"]))), bool).reshape(-1)


def _match_images(ground_truth: Mapping, detections: Mapping) -> dict[str, np.ndarray]:
    """For each detection its label, score, best object (index over all images) and their IoU."""
    parts = {"label": [], "score": [], "best": [], "iou": []}
    first = 0  # index of the image's first object
    for image_id, truth in ground_truth.items():
        labels = np.asarray(truth["labels"]).reshape(-1)
        if image_id in detections:
            found = detections[image_id]
            found_labels = np.asarray(found["labels"]).reshape(-1)
            overlap = pairwise_iou(found["boxes"], truth["boxes"])  # (M, N)
            overlap[found_labels[:, None] != labels[None]] = -1.0
            overlap = np.column_stack([np.full(len(overlap), -1.0), overlap])  # for "no object"
            parts["label"].append(found_labels)
            parts["score"].append(np.asarray(found["scores"], np.float64).reshape(-1))
            parts["best"].append(first + overlap.argmax(axis=1) - 1)
            parts["iou"].append(overlap.max(axis=1))
        first += len(labels)
    return {key: np.concatenate(part) if part else np.zeros(0) for key, part in parts.items()}


def _count(
    scores: np.ndarray, best: np.ndarray, hit: np.ndarray, difficult: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Running numbers of true and false positives of one class, by descending score."""
    order = np.argsort(-scores, kind="stable")
    best, hit = best[order].astype(np.int64), hit[order]
    easy = np.zeros(len(best), bool)
    easy[hit] = ~difficult[best[hit]]
    wanted = np.flatnonzero(easy)
    true = np.zeros(len(best), bool)
    true[wanted[np.unique(best[wanted], return_index=True)[1]]] = True  # each object's first one
    false = ~hit | (easy & ~true)
    return np.cumsum(true), np.cumsum(false)


def _area(true: np.ndarray, false: np.ndarray, total: int) -> float:
    """Area under the precision envelope."""
    if total == 0:
        return float("nan")
    recall = np.concatenate([[0.0], true / total, [1.0]])
    precision = np.concatenate([[0.0], true / np.maximum(true + false, 1), [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope[1:]).sum())


def _eleven_points(true: np.ndarray, false: np.ndarray, total: int) -> float:
    """Mean over the recalls 0, 0.1, …, 1 of the best precision at that recall or a higher one."""
    if total == 0:
        return float("nan")
    precision = true / np.maximum(true + false, 1)
    reached = [10 * true >= step * total for step in range(11)]  # in integers, so 3 of 10 is 0.3
    return float(np.mean([precision[at].max(initial=0.0) for at in reached]))


def pairwise_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of (N, 4) and (M, 4) xyxy boxes -> (N, M) float64.

    Computed in double precision, so that a threshold decides the same way everywhere; empty and
    reversed boxes overlap nothing.
    """
    from torchvision.ops import box_iou  # takes seconds to import

    first, second = (
        torch.from_numpy(np.asarray(x, np.float64).reshape(-1, 4)) for x in (boxes, others)
    )
    return np.nan_to_num(box_iou(first, second).numpy(), nan=0.0)
