"""Detection scored: COCO's box AP, VOC's AP50."""

import numpy as np

from dataset.batch import EvalBatch
from dataset.coco_detection import CocoDetection
from dataset.voc_detection import VocDetection
from infer.batches import predict_all
from infer.detection import PAPER, DecodingOptions
from infer.predictor import Predictor
from infer.results import Detections, Report
from utils.categories import Categories
from utils.coco_metrics import evaluate_coco
from utils.errors import UserError
from utils.voc_metrics import evaluate_voc


def evaluate_detection(
    predictor: Predictor,
    source: CocoDetection | VocDetection,
    options: DecodingOptions = PAPER,
    *,
    max_objects: int | None = None,
    **loop,
) -> Report:
    """Detects on every image of the source (those without objects too) and scores the result.

    Classes are matched by name: what the weights call something else does not count.

    Args:
        max_objects: how many to ask for, at most those the weights were trained for.
        loop: batch_size, num_workers, progress and world of `predict_all`.
    """
    categories = shared_categories(predictor.categories, source.categories)
    detector = predictor.detector(options, max_objects=max_objects, categories=categories)

    def predict(batch: EvalBatch) -> list[Detections]:
        return detector(batch.images, image_ids=batch.image_ids)

    found = predict_all(source, predict, **loop)
    score = score_coco if isinstance(source, CocoDetection) else score_voc
    return score(source, found, categories)


def shared_categories(model: Categories, data: Categories) -> Categories:
    """The model's class ids with the names and ids of the data, where the names agree.

    Raises:
        UserError: no name is shared.
    """
    ids = {name: data.source_ids[i] for i, name in data.names.items()}
    names = {i: name for i, name in model.names.items() if name in ids}
    if not names:
        raise UserError(
            f"the weights know the classes {_few(model)}, the data {_few(data)}: none is shared; "
            "evaluate on the data they were trained for, or train on this data"
        )
    return Categories(names, {i: ids[name] for i, name in names.items()})


def score_coco(
    source: CocoDetection, found: dict[int | str, Detections], categories: Categories
) -> Report:
    """COCO's twelve numbers."""
    results = [row for i, found_in in found.items() for row in found_in.to_coco(i, categories)]
    out = evaluate_coco(source.coco, results, "bbox", image_ids=list(found))
    per_class, table = out.pop("per_class"), out.pop("table")
    return Report(out, per_class, table, results)


def score_voc(
    source: VocDetection, found: dict[int | str, Detections], categories: Categories
) -> Report:
    """VOC AP50, area under the curve and 11-point."""
    results = [row for i, found_in in found.items() for row in found_in.to_coco(i, categories)]
    labels = {
        i: np.array([categories.source_ids[int(k)] for k in f.labels]) for i, f in found.items()
    }
    detections = {
        i: {"boxes": f.boxes, "labels": labels[i], "scores": f.scores} for i, f in found.items()
    }
    out = evaluate_voc(source.ground_truth(), detections, source.categories.names)
    per_class = out.pop("per_class")
    table = (
        f"{per_class.to_string(index=False, float_format='{:.3f}'.format)}\n\n"
        f"mAP50 (area under the curve) = {out['mAP50']:.3f}\n"
        f"mAP50 (11-point)             = {out['mAP50_11point']:.3f}"
    )
    return Report(out, per_class, table, results)


def _few(categories: Categories) -> str:
    names = list(categories.names.values())
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
