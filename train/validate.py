"""Validation during training: runs the evaluation of `infer/`, draws, keeps the best weights."""

import importlib
from functools import partial
from pathlib import Path

import numpy as np
import torch

from infer.batches import EvalLoop
from infer.likelihood import measure_likelihood
from infer.results import Report
from infer.tasks import draw_task, evaluate_task
from infer.trained_model import TrainedModel
from models import Pix2Seq, save_model
from models.decode_step.cuda_graph import release_graphs
from train.build import Run
from train.distributed import share_statistics
from train.guards import StopSignal
from train.run_folder import NoRecords, RunRecords
from utils.devices import ALONE, World

NUM_PICTURES = 8
# How it decodes, by setting; "auto" for the others: what cannot run here must not end a training.
MODES = {"plain": "plain", "static": "static", "compiled": "static"}


def evaluate(
    run: Run, records: RunRecords | NoRecords, run_dir: Path, stop: StopSignal
) -> dict[str, Report]:
    """Validates every task and keeps the weights if they are the best so far.

    The best is that with the highest mean of the tasks' leading metrics. All processes have to
    call it, and the run has to be saved: a signal ends the evaluation at once.
    """
    state, reports = run.state, {}
    model = state.evaluated_model
    share_statistics(model, state.world)

    # Score and draw each task; -1 is no value but says that no object is of that size.
    pictures = {}
    with stop.interrupts():
        for task, source in run.eval_sources.items():
            report, pictures[task] = validate(run.cfg, task, model, source, state.world)
            reports[task] = report
            figures = report.metrics | likelihood(run.cfg, task, model, source, state.world)
            shown = {k: v for k, v in figures.items() if v >= 0 or k in report.own}
            values = {f"val/{task}/{k}": v for k, v in shown.items()}
            records.scalars(state.step, values)
            records.image(state.step, f"val/{task}", pictures[task])

    # Compare with the best so far.
    alone = len(reports) == 1
    values = [report.metrics[leading_metric(report, alone=alone)] for report in reports.values()]
    values = [value for value in values if value >= 0] or [-1.0]
    value = sum(values) / len(values)
    state.evaluated, state.stale = state.step, state.stale + 1
    if value > state.best:
        state.best, state.best_step, state.stale = value, state.step, 0
        if state.world.is_main:
            save_model(model, run_dir / "best.safetensors")
            for task, report in reports.items():
                report.save(run_dir / "best" / ("" if len(reports) == 1 else task))
                records.keep_picture(f"val/{task}", f"best/{task}")
    _mark_best(run, reports, records)
    return reports


def _mark_best(run: Run, reports: dict[str, Report], records: RunRecords | NoRecords) -> None:
    """The best value so far and its step, as curves and as a text."""
    state = run.state
    if state.best < 0:  # no object was there to be found
        return
    records.scalars(state.step, {"val/best": state.best, "val/best_step": state.best_step})
    if state.best_step == state.step:
        name = "mean" if len(reports) > 1 else leading_metric(*reports.values(), alone=True)
        records.text(state.step, "best", f"{name} {state.best:.4f} at step {state.best_step}")


def leading_metric(report: Report, *, alone: bool) -> str:
    """The figure that models are compared by; with other tasks not CIDEr, which goes up to 10."""
    first = next(iter(report.metrics))
    return "BLEU-4" if not alone and "BLEU-4" in report.metrics else first


def validate(
    cfg, task: str, model: Pix2Seq, source, world: World = ALONE
) -> tuple[Report, np.ndarray]:
    """Scores the model on a task's source; draws annotation and predictions of a few images.

    Masks and keypoints are asked for in the boxes of the ground truth: nothing else is judged.

    Args:
        world: the processes that share the images; see `evaluate_task`.

    Returns:
        the report, and a picture (H, W, 3) uint8 RGB.
    """
    rng, was_training, mode = torch.get_rng_state(), model.training, model.decode_mode
    model.eval()
    model.prepare(dtype=model.dtype, mode=MODES.get(cfg.decode_mode, "auto"))
    trained = TrainedModel(model)
    report = evaluate_task(task, cfg, trained, source, world=world)
    picture = draw_pairs(task, cfg, trained, source)
    model.train(was_training)
    model.decode_mode = mode
    release_graphs(model.decoder)  # their memory is that of the next training steps
    torch.set_rng_state(rng)  # how often we look must not change the training
    return report, picture


def draw_pairs(task: str, cfg, trained: TrainedModel, source) -> np.ndarray:
    """Annotation beside prediction, (H, W, 3) uint8 RGB, always of the same images."""
    predict = partial(draw_task, task, cfg, trained, most=NUM_PICTURES)
    return importlib.import_module("train.pictures").draw_pairs(source, NUM_PICTURES, predict)


def likelihood(cfg, task: str, model: Pix2Seq, source, world: World = ALONE) -> dict[str, float]:
    """The figures of `measure_likelihood`, with names for the curves; empty if it is off."""
    if not cfg.likelihood_limit:
        return {}
    loop = EvalLoop.from_settings(cfg, world)
    found = measure_likelihood(cfg, task, TrainedModel(model), source, loop, cfg.likelihood_limit)
    return {f"likelihood/{name}": value for name, value in found.items()}
