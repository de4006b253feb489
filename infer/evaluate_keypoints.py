"""Keypoints scored: COCO's keypoint AP, with boxes of the ground truth, detected or from a file."""

from collections.abc import Sequence
from pathlib import Path

from dataset.batch import EvalBatch
from dataset.coco_keypoint import CocoKeypoints
from infer.batches import predict_all
from infer.boxes import box_source
from infer.detection import PAPER as PAPER_DETECTION
from infer.detection import DecodingOptions
from infer.evaluate_detection import shared_categories
from infer.keypoint import PAPER, KeypointOptions
from infer.predictor import Predictor
from infer.results import Keypoints, Report
from utils.categories import Categories, Skeleton
from utils.coco_metrics import evaluate_coco
from utils.errors import UserError

NUM_COCO = 17  # keypoints that COCO's own sigmas are for
MAX_OBJECTS = 20  # per image: COCO's keypoint AP looks at no more


def evaluate_keypoints(
    predictor: Predictor,
    source: CocoKeypoints,
    options: KeypointOptions = PAPER,
    *,
    boxes: str | Path = "gt",
    detection_options: DecodingOptions = PAPER_DETECTION,
    sigmas: Sequence[float] | None = None,
    **loop,
) -> Report:
    """Keypoints for every image of the source (those without objects too), scored.

    Args:
        source: of whole images.
        boxes: where points are asked for: "gt" = the boxes of the ground truth, those without a
            labelled point and crowds left out; "detected" = what the same weights detect; or a
            COCO results file of boxes. Of the latter two the best `MAX_OBJECTS` of an image.
        sigmas: see `check_sigmas`.
        loop: batch_size, num_workers, progress and world of `predict_all`.
    """
    finder = predictor.keypoint_finder(options)
    sigmas = check_sigmas(sigmas, source.skeleton)
    skeleton = predictor.keypoint_tokenizer().skeleton
    check_skeletons(skeleton, source.skeleton, predictor.source)
    categories = shared_categories(predictor.categories, source.categories)
    asked = box_source(predictor, source, categories, boxes, detection_options, most=MAX_OBJECTS)

    def predict(batch: EvalBatch) -> list[Keypoints]:
        of_boxes, labels, scores = asked(batch, None)
        if str(boxes) == "gt":
            scores = None  # the points alone are judged
        return finder(batch.images, of_boxes, labels, scores, image_ids=batch.image_ids)

    found = predict_all(source, predict, **loop)
    return score_keypoints(source, found, categories, sigmas)


def score_keypoints(
    source: CocoKeypoints,
    found: dict[int | str, Keypoints],
    categories: Categories,
    sigmas: Sequence[float] | None = None,
) -> Report:
    """COCO's ten numbers of keypoints."""
    results = [row for i, points in found.items() for row in points.to_coco(i, categories)]
    out = evaluate_coco(source.coco, results, "keypoints", image_ids=list(found), sigmas=sigmas)
    per_class, table = out.pop("per_class"), out.pop("table")
    return Report(out, per_class, table, results)


def check_sigmas(sigmas: Sequence[float] | None, skeleton: Skeleton) -> list[float] | None:
    """Sigmas of the object keypoint similarity, one per point; None = COCO's own.

    Args:
        sigmas: one per point, or one for all; None or empty = COCO's own for its 17 points.

    Raises:
        UserError: they do not fit the points.
    """
    if not sigmas and len(skeleton) == NUM_COCO:
        return None
    sigmas = [float(sigma) for sigma in sigmas or ()]
    if len(sigmas) not in (1, len(skeleton)) or min(sigmas) <= 0:
        raise UserError(
            f"the data has {len(skeleton)} keypoints and {len(sigmas)} OKS sigmas; give one above "
            "0 for each, or one for all, with --set keypoint_sigmas=0.07 (about COCO's mean)"
        )
    return sigmas * len(skeleton) if len(sigmas) == 1 else sigmas


def check_skeletons(model: Skeleton, data: Skeleton, name: str) -> None:
    """Raises a UserError where the weights know other points than the data has."""
    if model.names != data.names:
        raise UserError(
            f"{name} knows the {len(model)} keypoints {_few(model)}, the data has the {len(data)} "
            f"keypoints {_few(data)}; evaluate on the data it was trained for"
        )


def _few(skeleton: Skeleton) -> str:
    return ", ".join(skeleton.names[:3]) + (", …" if len(skeleton) > 3 else "")
