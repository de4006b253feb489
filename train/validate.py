"""Validation is inference: the evaluation of `infer/` and a picture to look at."""

import numpy as np
import torch

from infer.evaluate_detection import evaluate_detection
from infer.predictor import Predictor
from infer.report import Report
from models import Pix2Seq
from train.build import decoding_options
from utils.visualize import contact_sheet, draw_detections

NUM_PICTURES = 8


def validate(cfg, task: str, model: Pix2Seq, source) -> tuple[Report, np.ndarray]:
    """Scores the model on a task's source and draws its predictions on a few images.

    Returns:
        the report, and a picture (H, W, 3) uint8 RGB.
    """
    rng, was_training = torch.get_rng_state(), model.training
    model.eval()
    report, picture = VALIDATORS[task](cfg, Predictor(model), source)
    model.train(was_training)
    torch.set_rng_state(rng)  # how often we look must not change the training
    return report, picture


def _validate_detection(cfg, predictor: Predictor, source) -> tuple[Report, np.ndarray]:
    options = decoding_options(cfg)
    report = evaluate_detection(
        predictor,
        source,
        options,
        batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        progress=True,
    )
    images = [source[i].image for i in range(min(NUM_PICTURES, len(source)))]
    found = [d.above(cfg.score_threshold) for d in predictor.detect(images, options)]
    drawn = [
        draw_detections(image, d.boxes, d.names, d.scores)
        for image, d in zip(images, found, strict=True)
    ]
    return report, contact_sheet(drawn, 4)


VALIDATORS = {"detection": _validate_detection}
