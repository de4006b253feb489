"""What a model found, in the pixels of the original image, and what an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.categories import Categories, Skeleton
from utils.coco_metrics import detections_to_coco
from utils.files import atomic_path, write_json_atomic
from utils.masks import rle_to_mask

if TYPE_CHECKING:
    import pandas as pd

LEADING = ("AP", "AP50", "AP75", "mAP50", "mAP50_11point", "CIDEr", "BLEU-4", "ROUGE-L")


@dataclass(frozen=True)
class Detections:
    """Objects of one image, best first."""

    boxes: np.ndarray  # (N, 4) float32 xyxy, original pixels
    labels: np.ndarray  # (N,) int64 class ids
    scores: np.ndarray  # (N,) float32 in [0, 1]
    names: list[str]  # (N,) class names

    def __len__(self) -> int:
        return len(self.labels)

    def above(self, threshold: float) -> Detections:
        """Those that score at least `threshold`."""
        keep = np.flatnonzero(self.scores >= threshold)
        names = [self.names[i] for i in keep]
        return Detections(self.boxes[keep], self.labels[keep], self.scores[keep], names)

    def to_coco(self, image_id: int, categories: Categories) -> list[dict]:
        """Rows of a COCO results file (`bbox` is xywh), with the annotation file's ids."""
        ids = [categories.source_ids[int(label)] for label in self.labels]
        return detections_to_coco(image_id, self.boxes, self.scores, ids)

    def to_json(self) -> list[dict]:
        """Plain rows: label, score, box as [xmin, ymin, xmax, ymax]."""
        return [
            {
                "label": name,
                "score": round(float(score), 4),
                "box": [round(float(x), 2) for x in box],
            }
            for name, score, box in zip(self.names, self.scores, self.boxes, strict=True)
        ]


@dataclass(frozen=True)
class InstanceMasks:
    """Masks of given objects of one image, in the order of their boxes."""

    boxes: np.ndarray  # (N, 4) float32 xyxy, original pixels: the boxes that were asked about
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
        return [
            {
                "label": name,
                "score": round(float(score), 4),
                "box": [round(float(x), 2) for x in box],
                "segmentation": rle,
            }
            for name, score, box, rle in zip(
                self.names, self.scores, self.boxes, self.rles, strict=True
            )
        ]


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

    boxes: np.ndarray  # (N, 4) float32 xyxy, original pixels: the boxes that were asked about
    labels: np.ndarray  # (N,) int64 class ids
    scores: np.ndarray  # (N,) float32 in [0, 1]
    names: list[str]  # (N,) class names
    # (N, K, 3) float32 x, y in original pixels, visibility: 2, or 0 for a point the model passed
    # on, which stands at the centre of the box because scoring wants a place for all
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

        A keypoint is {x, y, score}, or None where the model passed on it.
        """
        rows = []
        for n, (name, score, box) in enumerate(
            zip(self.names, self.scores, self.boxes, strict=True)
        ):
            points = {
                joint: {"x": round(x, 2), "y": round(y, 2), "score": round(probability, 4)}
                if visibility > 0
                else None
                for joint, (x, y, visibility), probability in zip(
                    self.skeleton.names,
                    self.points[n].tolist(),
                    self.point_scores[n].tolist(),
                    strict=True,
                )
            }
            rows.append(
                {
                    "label": name,
                    "score": round(float(score), 4),
                    "box": [round(float(x), 2) for x in box],
                    "keypoints": points,
                }
            )
        return rows


@dataclass(frozen=True)
class AllTasks:
    """What the tasks found in one image; None for a task the weights do not know."""

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
    """What an evaluation found."""

    metrics: dict[str, float]  # the first one is the one to compare models by
    per_class: pd.DataFrame
    table: str  # for people
    results: list[dict]  # rows of the COCO results format

    def save(self, folder: str | Path) -> None:
        """Writes results.json, metrics.json and per_class.csv."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder / "results.json", self.results, indent=None)
        write_json_atomic(folder / "metrics.json", self.metrics)
        with atomic_path(folder / "per_class.csv") as path:
            self.per_class.to_csv(path, index=False)


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
