"""Validation is inference: the evaluation of `infer/` and a picture to look at."""

import numpy as np
import torch

from infer.predictor import Predictor
from infer.results import Report
from infer.tasks import draw_task, evaluate_task
from models import Pix2Seq
from utils.devices import ALONE, World
from utils.visualize import contact_sheet

NUM_PICTURES = 8
# How it decodes, by setting; "auto" for the others: what cannot run here must not end a training.
MODES = {"plain": "plain", "static": "static", "compiled": "static"}


def validate(
    cfg, task: str, model: Pix2Seq, source, world: World = ALONE
) -> tuple[Report, np.ndarray]:
    """Scores the model on a task's source and draws its predictions on a few images.

    Masks and keypoints are asked for in the boxes of the ground truth: nothing else is judged.

    Args:
        world: the processes that share the images; all of them get the whole report.

    Returns:
        the report, and a picture (H, W, 3) uint8 RGB.
    """
    rng, was_training, mode = torch.get_rng_state(), model.training, model.decode_mode
    model.eval()
    model.prepare(dtype=model.dtype, mode=MODES.get(cfg.decode_mode, "auto"))
    predictor = Predictor(model)
    report = evaluate_task(task, cfg, predictor, source, world=world)
    pictures = draw_task(task, cfg, predictor, source, NUM_PICTURES)
    model.train(was_training)
    model.decode_mode = mode
    torch.set_rng_state(rng)  # how often we look must not change the training
    return report, contact_sheet(pictures, 4)
