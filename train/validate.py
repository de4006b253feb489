"""Validation is inference: the evaluation of `infer/` and a picture to look at."""

import numpy as np
import torch

from infer.evaluate_captioning import evaluate_captioning
from infer.evaluate_detection import evaluate_detection, shared_categories
from infer.evaluate_keypoints import evaluate_keypoints
from infer.evaluate_segmentation import evaluate_segmentation, true_boxes
from infer.keypoint_script import draw as draw_keypoints
from infer.keypoint_script import keypoint_options
from infer.predictor import Predictor
from infer.report import Report
from infer.script import caption_options
from infer.segmentation_script import draw as draw_segmentation
from infer.segmentation_script import segmentation_options
from models import Pix2Seq
from train.build_state import decoding_options
from utils.visualize import contact_sheet, draw_caption, draw_detections
from utils.world import ALONE, World

NUM_PICTURES = 8


def validate(
    cfg, task: str, model: Pix2Seq, source, world: World = ALONE
) -> tuple[Report, np.ndarray]:
    """Scores the model on a task's source and draws its predictions on a few images.

    Args:
        world: the processes that share the images; all of them get the whole report.

    Returns:
        the report, and a picture (H, W, 3) uint8 RGB.
    """
    rng, was_training = torch.get_rng_state(), model.training
    model.eval()
    report, picture = VALIDATORS[task](cfg, Predictor(model), source, world)
    model.train(was_training)
    torch.set_rng_state(rng)  # how often we look must not change the training
    return report, picture


def _validate_detection(
    cfg, predictor: Predictor, source, world: World
) -> tuple[Report, np.ndarray]:
    options = decoding_options(cfg)
    report = evaluate_detection(
        predictor,
        source,
        options,
        batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        progress=True,
        world=world,
    )
    images = [source[i].image for i in range(min(NUM_PICTURES, len(source)))]
    found = [d.above(cfg.score_threshold) for d in predictor.detect(images, options)]
    drawn = [
        draw_detections(image, d.boxes, d.names, d.scores)
        for image, d in zip(images, found, strict=True)
    ]
    return report, contact_sheet(drawn, 4)


def _validate_captioning(
    cfg, predictor: Predictor, source, world: World
) -> tuple[Report, np.ndarray]:
    options = caption_options(cfg)
    report = evaluate_captioning(
        predictor,
        source,
        options,
        batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        progress=True,
        world=world,
    )
    images = [source[i].image for i in range(min(NUM_PICTURES, len(source)))]
    drawn = [
        draw_caption(image, found.texts[0])
        for image, found in zip(images, predictor.caption(images, options), strict=True)
    ]
    return report, contact_sheet(drawn, 4)


def _validate_segmentation(
    cfg, predictor: Predictor, source, world: World
) -> tuple[Report, np.ndarray]:
    """With the boxes of the ground truth, so that nothing but the masks is judged."""
    options = segmentation_options(cfg)
    report = evaluate_segmentation(
        predictor,
        source,
        options,
        batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        progress=True,
        world=world,
    )
    prompts = true_boxes(source, shared_categories(predictor.categories, source.categories))
    samples = [source[i] for i in range(min(NUM_PICTURES, len(source)))]
    boxes, labels, _ = zip(*(prompts[sample.image_id] for sample in samples), strict=True)
    images = [sample.image for sample in samples]
    found = predictor.segment(images, list(boxes), list(labels), options)
    return report, contact_sheet(list(map(draw_segmentation, images, found)), 4)


def _validate_keypoints(
    cfg, predictor: Predictor, source, world: World
) -> tuple[Report, np.ndarray]:
    """With the boxes of the ground truth, so that nothing but the points is judged."""
    options = keypoint_options(cfg)
    report = evaluate_keypoints(
        predictor,
        source,
        options,
        sigmas=cfg.keypoint_sigmas,
        batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        progress=True,
        world=world,
    )
    prompts = true_boxes(source, shared_categories(predictor.categories, source.categories))
    posed = [i for i, image in enumerate(source.image_ids.tolist()) if len(prompts[image][0])]
    samples = [source[i] for i in (posed or range(len(source)))[:NUM_PICTURES]]
    boxes, labels, _ = zip(*(prompts[sample.image_id] for sample in samples), strict=True)
    images = [sample.image for sample in samples]
    found = predictor.keypoints(images, list(boxes), list(labels), options)
    return report, contact_sheet(list(map(draw_keypoints, images, found)), 4)


VALIDATORS = {
    "keypoint": _validate_keypoints,
    "segmentation": _validate_segmentation,
    "detection": _validate_detection,
    "captioning": _validate_captioning,
}
