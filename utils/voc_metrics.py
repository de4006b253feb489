"""Pascal VOC average precision, as the development kit defines it (VOCevaldet.m, VOCap.m).

The kit counts pixels, so its boxes are one wider than xmax - xmin. Here boxes are continuous
(xmin - 1, ymin - 1, xmax, ymax of the annotation): plain areas are then the same numbers.
"""

from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

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
    first, second = (
        torch.from_numpy(np.asarray(x, np.float64).reshape(-1, 4)) for x in (boxes, others)
    )
    return np.nan_to_num(box_iou(first, second).numpy(), nan=0.0)
