"""Keypoints scored: COCO's keypoint AP, with boxes of the ground truth, detected or from a file."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dataset.coco_keypoints import CocoKeypoints
from dataset.loader import EvalBatch
from infer.detection import PAPER as PAPER_DETECTION
from infer.detection import DecodingOptions, detect
from infer.evaluate_detection import shared_categories
from infer.evaluate_segmentation import read_boxes, true_boxes
from infer.keypoints import PAPER, KeypointOptions, find_keypoints
from infer.predict_all import predict_all
from infer.predictor import Predictor
from infer.report import Report
from infer.results import Keypoints
from utils.categories import Categories
from utils.coco_metrics import evaluate_coco
from utils.errors import UserError
from utils.skeleton import Skeleton
from utils.world import ALONE, World

NUM_COCO = 17  # keypoints that COCO's own sigmas are for
MAX_OBJECTS = 20  # per image: COCO's keypoint AP looks at no more

Prompts = tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray] | None]  # the scores last


def evaluate_keypoints(
    predictor: Predictor,
    source: CocoKeypoints,
    options: KeypointOptions = PAPER,
    *,
    boxes: str | Path = "gt",
    detection_options: DecodingOptions = PAPER_DETECTION,
    sigmas: Sequence[float] | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = False,
    world: World = ALONE,
) -> Report:
    """Keypoints for every image of the source (those without objects too), scored.

    Args:
        source: of whole images.
        boxes: where points are asked for: "gt" = the boxes of the ground truth, those without a
            labelled point and crowds left out; "detected" = what the same weights detect; or a
            COCO results file of boxes. Of the latter two the best `MAX_OBJECTS` of an image.
        sigmas: see `check_sigmas`.
        world: the processes to share the images out among; all of them get the whole report.
    """
    tokenizer = predictor.keypoint_tokenizer()
    sigmas = check_sigmas(sigmas, source.skeleton)
    check_skeletons(tokenizer.skeleton, source.skeleton, predictor.source)
    categories = shared_categories(predictor.categories, source.categories)
    prompts = _prompter(predictor, source, categories, boxes, detection_options)

    def predict(batch: EvalBatch, generator: torch.Generator) -> list[Keypoints]:
        return find_keypoints(
            predictor.model,
            tokenizer,
            categories,
            batch.images,
            *prompts(batch, generator),
            options,
            resize_mode=predictor.resize_mode,
            resizing=predictor.resizing,
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


def _prompter(
    predictor: Predictor,
    source: CocoKeypoints,
    categories: Categories,
    boxes: str | Path,
    options: DecodingOptions,
) -> Callable[[EvalBatch, torch.Generator], Prompts]:
    """What gives boxes, labels and scores for a batch."""
    if str(boxes) == "detected":
        tokenizer = predictor.detection_tokenizer()

        def detected(batch: EvalBatch, generator: torch.Generator) -> Prompts:
            found = detect(
                predictor.model,
                tokenizer,
                categories,
                batch.images,
                options,
                resize_mode=predictor.resize_mode,
                resizing=predictor.resizing,
                generator=generator,
            )
            return _best([(one.boxes, one.labels, one.scores) for one in found])

        return detected
    if str(boxes) == "gt":
        known = true_boxes(source, categories)
        return lambda batch, _: (*_columns([known[i] for i in batch.image_ids])[:2], None)
    known = read_boxes(Path(boxes), source.image_ids.tolist(), categories)
    return lambda batch, _: _best([known[i] for i in batch.image_ids])


def _best(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Prompts:
    """The objects of each image that score best."""
    orders = [np.argsort(-row[2], kind="stable")[:MAX_OBJECTS] for row in rows]
    return _columns([tuple(v[k] for v in row) for row, k in zip(rows, orders, strict=True)])


def _columns(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Prompts:
    return tuple(map(list, zip(*rows, strict=True)))


def _few(skeleton: Skeleton) -> str:
    return ", ".join(skeleton.names[:3]) + (", …" if len(skeleton) > 3 else "")
