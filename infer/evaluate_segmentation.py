"""Segmentation scored: COCO's mask AP, with boxes of the ground truth, detected or from a file."""

from pathlib import Path

from dataset.batch import EvalBatch
from dataset.coco_segmentation import CocoSegmentation
from infer.batches import predict_all
from infer.boxes import box_source
from infer.detection import PAPER as PAPER_DETECTION
from infer.detection import DecodingOptions
from infer.evaluate_detection import shared_categories
from infer.predictor import Predictor
from infer.results import InstanceMasks, Report
from infer.segmentation import PAPER, SegmentationOptions
from utils.categories import Categories
from utils.coco_metrics import evaluate_coco


def evaluate_segmentation(
    predictor: Predictor,
    source: CocoSegmentation,
    options: SegmentationOptions = PAPER,
    *,
    boxes: str | Path = "gt",
    detection_options: DecodingOptions = PAPER_DETECTION,
    **loop,
) -> Report:
    """Masks for every image of the source (those without objects too), scored.

    Args:
        boxes: what the masks are asked for: "gt" = the boxes and classes of the ground truth at
            score 1, crowds left out; "detected" = what the same weights detect; or a COCO results
            file of boxes.
        loop: batch_size, num_workers, progress and world of `predict_all`.
    """
    segmenter = predictor.segmenter(options)
    categories = shared_categories(predictor.categories, source.categories)
    asked = box_source(predictor, source, categories, boxes, detection_options)
    crops = predictor.segmentation_tokenizer().crop is not None
    whole = not crops or str(boxes) == "detected"

    def predict(batch: EvalBatch) -> list[InstanceMasks]:
        encoded = predictor.encode(batch.images) if whole else None
        prompts = asked(batch, encoded)
        return segmenter(batch.images, *prompts, encoded=encoded, image_ids=batch.image_ids)

    found = predict_all(source, predict, **loop)
    return score_segmentation(source, found, categories)


def score_segmentation(
    source: CocoSegmentation, found: dict[int | str, InstanceMasks], categories: Categories
) -> Report:
    """COCO's twelve numbers of masks."""
    results = [row for i, masks in found.items() for row in masks.to_coco(i, categories)]
    out = evaluate_coco(source.coco, results, "segm", image_ids=list(found))
    per_class, table = out.pop("per_class"), out.pop("table")
    return Report(out, per_class, table, results)
