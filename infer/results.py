"""What a model found, in the pixels of the original image."""

from dataclasses import dataclass

import numpy as np

from utils.categories import Categories
from utils.coco_metrics import detections_to_coco


@dataclass(frozen=True)
class Detections:
    """Objects of one image, best first."""

    boxes: np.ndarray  # (N, 4) float32 xyxy, original pixels
    labels: np.ndarray  # (N,) int64 class ids
    scores: np.ndarray  # (N,) float32 in [0, 1]
    names: list[str]  # (N,) class names

    def __len__(self) -> int:
        return len(self.labels)

    def above(self, threshold: float) -> "Detections":
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
