"""Results of the tasks, in pixels of the original image, and the report of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.categories import Categories, Skeleton
from utils.detection_metrics import detections_to_coco, evaluate_coco
from utils.files import atomic_path, write_json_atomic
from utils.masks import rle_to_mask

if TYPE_CHECKING:  # takes half a second to import
    import pandas as pd

LEADING = ("AP", "AP50", "AP75", "mAP50", "mAP50_11point", "CIDEr", "BLEU-4", "ROUGE-L")


@dataclass(frozen=True)
class Detections:
    """Objects of one image; what is detected comes best first."""

    boxes: np.ndarray  # (N, 4) float32 xyxy, original pixels
    labels: np.ndarray  # (N,) int64 class ids
    scores: np.ndarray  # (N,) float32 in [0, 1]
    names: list[str]  # (N,) class names

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> Detections:
        """The objects with these numbers, in this order."""
        names = [self.names[i] for i in rows]
        return Detections(self.boxes[rows], self.labels[rows], self.scores[rows], names)

    def above(self, threshold: float) -> Detections:
        """The objects that score at least `threshold`."""
        return self.select(np.flatnonzero(self.scores >= threshold))

    def best(self, most: int | None = None) -> Detections:
        """The `most` objects that score best, or all of them, best first."""
        return self.select(np.argsort(-self.scores, kind="stable")[:most])

    def to_coco(self, image_id: int, categories: Categories) -> list[dict]:
        """Rows of a COCO results file (`bbox` is xywh), with the annotation file's ids."""
        ids = [categories.source_ids[int(label)] for label in self.labels]
        return detections_to_coco(image_id, self.boxes, self.scores, ids)

    def to_json(self) -> list[dict]:
        """Plain rows: label, score, box as [xmin, ymin, xmax, ymax]."""
        return _object_rows(self)


@dataclass(frozen=True)
class InstanceMasks:
    """Masks of given objects of one image, in the order of their boxes."""

    boxes: np.ndarray  # (N, 4) float32 xyxy, original pixels: the given boxes
    labels: np.ndarray  # (N,) int64 class ids
    scores: np.ndarray  # (N,) float32 in [0, 1], those of the boxes
    names: list[str]  # (N,) class names
    rles: list[dict]  # (N,) COCO run lengths {size, counts} of the original image

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, original pixels."""
        if not self.rles:
            return np.zeros((0, 0, 0), bool)
        return np.stack([rle_to_mask(rle) for rle in self.rles])

    def to_coco(self, image_id: int, categories: Categories) -> list[dict]:
        """Rows of a COCO results file with the annotation file's ids."""
        return [
            {
                "image_id": image_id,
                "category_id": categories.source_ids[int(label)],
                "segmentation": rle,
                "score": float(f"{score:.6g}"),
            }
            for label, score, rle in zip(self.labels, self.scores, self.rles, strict=True)
        ]

    def to_json(self) -> list[dict]:
        """Plain rows: label, score, box as [xmin, ymin, xmax, ymax], mask as COCO run lengths."""
        rows = zip(_object_rows(self), self.rles, strict=True)
        return [row | {"segmentation": rle} for row, rle in rows]


@dataclass(frozen=True)
class Captions:
    """Sentences about one image, best first."""

    texts: list[str]
    scores: np.ndarray  # (n,) float32 in [0, 1], the geometric mean of the tokens' probabilities

    def __len__(self) -> int:
        return len(self.texts)

    def to_coco(self, image_id: int) -> list[dict]:
        """The row of a COCO caption results file, which holds one sentence per image."""
        return [{"image_id": image_id, "caption": self.texts[0]}]

    def to_json(self) -> list[dict]:
        """Plain rows: caption, score."""
        return [
            {"caption": text, "score": round(float(score), 4)}
            for text, score in zip(self.texts, self.scores, strict=True)
        ]


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of given objects of one image, in the order of their boxes."""

    boxes: np.ndarray  # (N, 4) float32 xyxy, original pixels: the given boxes
    labels: np.ndarray  # (N,) int64 class ids
    scores: np.ndarray  # (N,) float32 in [0, 1]
    names: list[str]  # (N,) class names
    # (N, K, 3) float32: x, y in original pixels, visibility 2. A point that the model calls
    # invisible has visibility 0 and stands at the centre of the box: scoring needs a place for all.
    points: np.ndarray
    point_scores: np.ndarray  # (N, K) float32, mean probability of the point's tokens
    skeleton: Skeleton

    def __len__(self) -> int:
        return len(self.labels)

    def to_coco(self, image_id: int, categories: Categories) -> list[dict]:
        """Rows of a COCO results file with the annotation file's ids."""
        return [
            {
                "image_id": image_id,
                "category_id": categories.source_ids[int(label)],
                "keypoints": np.asarray(points, np.float64).round(2).ravel().tolist(),
                "score": float(f"{score:.6g}"),
            }
            for label, score, points in zip(self.labels, self.scores, self.points, strict=True)
        ]

    def to_json(self) -> list[dict]:
        """Plain rows: label, score, box as [xmin, ymin, xmax, ymax], keypoints by their names.

        A keypoint is {x, y, score}, or None where the model said that it is not visible.
        """
        rows = _object_rows(self)
        for row, points, probabilities in zip(rows, self.points, self.point_scores, strict=True):
            joints = zip(self.skeleton.names, points.tolist(), probabilities.tolist(), strict=True)
            row["keypoints"] = {
                joint: {"x": round(x, 2), "y": round(y, 2), "score": round(probability, 4)}
                if visibility > 0
                else None
                for joint, (x, y, visibility), probability in joints
            }
        return rows


def _object_rows(found: Detections | InstanceMasks | Keypoints) -> list[dict]:
    """Label, score and box of every object as JSON values."""
    return [
        {
            "label": name,
            "score": round(float(score), 4),
            "box": [round(float(x), 2) for x in box],
        }
        for name, score, box in zip(found.names, found.scores, found.boxes, strict=True)
    ]


def columns(found: Sequence[Detections]) -> tuple[list, list, list]:
    """Boxes, labels and scores of B images, each as a list: arguments of `segment`."""
    return tuple([getattr(one, name) for one in found] for name in ("boxes", "labels", "scores"))


@dataclass(frozen=True)
class AllTasks:
    """Results of all tasks for one image; None for a task that the weights do not know."""

    captions: Captions | None
    objects: Detections | None
    masks: InstanceMasks | None  # of all objects, in their order
    keypoints: Keypoints | None  # of the objects that are persons, in their order

    def to_json(self) -> dict:
        """Rows per kind of result; those of objects hold the masks where there are some."""
        objects = self.objects if self.masks is None else self.masks
        found = {"captions": self.captions, "objects": objects, "keypoints": self.keypoints}
        return {kind: rows.to_json() for kind, rows in found.items() if rows is not None}


@dataclass(frozen=True)
class Report:
    """The result of an evaluation."""

    metrics: dict[str, float]  # the first one is the one to compare models by
    per_class: pd.DataFrame
    table: str  # for people
    results: list[dict]  # rows of the COCO results format

    def save(self, folder: str | Path) -> None:
        """Writes results.json, metrics.json and per_class.csv."""
        folder = Path(folder)
        write_json_atomic(folder / "results.json", self.results, indent=None)
        write_json_atomic(folder / "metrics.json", self.metrics)
        with atomic_path(folder / "per_class.csv") as path:
            self.per_class.to_csv(path, index=False, errors="backslashreplace")


def compact_table(reports: dict[str, Report], num_images: dict[str, int]) -> str:
    """A line per task: how many images, and the numbers that tasks are judged by.

    Args:
        reports: task -> report.
        num_images: task -> images it was scored on.
    """
    lines = [f"{'task':<14}{'images':>6}  metrics"]
    for task, report in reports.items():
        leading = {k: v for k, v in report.metrics.items() if k in LEADING} or report.metrics
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in leading.items())
        lines.append(f"{task:<14}{num_images[task]:>6}  {numbers}")
    return "\n".join(lines)


def score_coco(
    source,
    found: dict[int | str, Detections | InstanceMasks | Keypoints],
    categories: Categories,
    kind: str,
    sigmas: Sequence[float] | None = None,
) -> Report:
    """COCO's numbers for boxes, masks or keypoints.

    Args:
        source: with the ground truth as `.coco`.
        found: image id -> result, also of the images without objects.
        categories: with the ids of the annotation file.
        kind: "bbox", "segm" or "keypoints".
        sigmas: of the object keypoint similarity, one per point; None = COCO's own.
    """
    rows = [row for image_id, one in found.items() for row in one.to_coco(image_id, categories)]
    metrics = evaluate_coco(source.coco, rows, kind, image_ids=list(found), sigmas=sigmas)
    per_class, table = metrics.pop("per_class"), metrics.pop("table")
    return Report(metrics, per_class, table, rows)
