"""Segmentation scored: COCO's mask AP, with boxes of the ground truth, detected or from a file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dataset.coco_segmentation import CocoSegmentation
from dataset.loader import EvalBatch
from infer.detection import PAPER as PAPER_DETECTION
from infer.detection import DecodingOptions, detect
from infer.encode import Encoded
from infer.evaluate_detection import shared_categories
from infer.predict_all import predict_all
from infer.predictor import Predictor
from infer.report import Report
from infer.results import InstanceMasks
from infer.segmentation import PAPER, SegmentationOptions, segment
from utils.categories import Categories
from utils.coco_metrics import evaluate_coco
from utils.errors import UserError
from utils.world import ALONE, World

Prompts = tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]  # boxes, labels, scores


def evaluate_segmentation(
    predictor: Predictor,
    source: CocoSegmentation,
    options: SegmentationOptions = PAPER,
    *,
    boxes: str | Path = "gt",
    detection_options: DecodingOptions = PAPER_DETECTION,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = False,
    world: World = ALONE,
) -> Report:
    """Masks for every image of the source (those without objects too), scored.

    Args:
        boxes: what the masks are asked for: "gt" = the boxes and classes of the ground truth at
            score 1, crowds left out; "detected" = what the same weights detect; or a COCO results
            file of boxes.
        world: the processes to share the images out among; all of them get the whole report.
    """
    tokenizer = predictor.segmentation_tokenizer()
    categories = shared_categories(predictor.categories, source.categories)
    prompts = _prompter(predictor, source, categories, boxes, detection_options)
    needs_images = tokenizer.crop is None or str(boxes) == "detected"

    def predict(batch: EvalBatch, generator: torch.Generator) -> list[InstanceMasks]:
        encoded = predictor.encode(batch.images) if needs_images else None
        return segment(
            predictor.model,
            tokenizer,
            categories,
            batch.images,
            *prompts(batch, encoded, generator),
            options,
            resize_mode=predictor.resize_mode,
            resizing=predictor.resizing,
            encoded=encoded,
            generator=generator,
        )

    found = predict_all(
        source,
        predict,
        seed=options.seed,
        device=predictor.model.device,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        world=world,
    )
    return score_segmentation(source, found, categories)


def score_segmentation(
    source: CocoSegmentation, found: dict[int | str, InstanceMasks], categories: Categories
) -> Report:
    """COCO's twelve numbers of masks."""
    results = [row for i, masks in found.items() for row in masks.to_coco(i, categories)]
    out = evaluate_coco(source.coco, results, "segm", image_ids=list(found))
    per_class, table = out.pop("per_class"), out.pop("table")
    return Report(out, per_class, table, results)


def true_boxes(source: CocoSegmentation, categories: Categories) -> dict[int, tuple]:
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
    try:
        rows = json.loads(Path(path).expanduser().read_bytes())
        image = np.array([row["image_id"] for row in rows], np.int64)
        category = np.array([row["category_id"] for row in rows], np.int64)
        boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(len(rows), 4)
        scores = np.array([row["score"] for row in rows], np.float32)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"cannot read the boxes in {path} ({error}); --boxes must be gt, detected or a COCO "
            "results file: a list of image_id, category_id, bbox and score"
        ) from error
    others = sorted(set(image.tolist()) - set(image_ids))
    if others:
        raise UserError(f"{path} is about other images than the data, id {others[0]} for one")
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    class_of = {number: i for i, number in categories.source_ids.items()}
    labels = np.array([class_of.get(k, 0) for k in category.tolist()], np.int64)
    usable = (labels > 0) & np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    rows_of = {i: np.flatnonzero(usable & (image == i)) for i in image_ids}
    return {i: (boxes[rows], labels[rows], scores[rows]) for i, rows in rows_of.items()}


def _prompter(
    predictor: Predictor,
    source: CocoSegmentation,
    categories: Categories,
    boxes: str | Path,
    options: DecodingOptions,
) -> Callable[[EvalBatch, Encoded | None, torch.Generator], Prompts]:
    """What gives boxes, labels and scores for a batch."""
    if str(boxes) == "detected":
        tokenizer = predictor.detection_tokenizer()

        def detected(batch: EvalBatch, encoded: Encoded | None, generator) -> Prompts:
            found = detect(
                predictor.model,
                tokenizer,
                categories,
                batch.images,
                options,
                encoded=encoded,
                generator=generator,
            )
            return tuple([getattr(one, k) for one in found] for k in ("boxes", "labels", "scores"))

        return detected
    if str(boxes) == "gt":
        known = true_boxes(source, categories)
    else:
        known = read_boxes(Path(boxes), source.image_ids.tolist(), categories)

    def given(batch: EvalBatch, *_) -> Prompts:
        return tuple(map(list, zip(*(known[i] for i in batch.image_ids), strict=True)))

    return given
