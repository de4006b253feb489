"""The registry of evaluations: how each task is scored and drawn.

`infer/evaluate.py` and the validation of a training both go through it. For a new task see
docs/tasks.md, "A fifth task".
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset.sample import Sample
from infer import captioning, detection, keypoint, segmentation
from infer.batches import EvalLoop, as_tensor
from infer.boxes import check_box_source, true_boxes
from infer.captioning import CaptionOptions
from infer.detection import DetectionOptions
from infer.keypoint import KeypointOptions
from infer.likelihood import build_sequence_tokenizer, measure_likelihood
from infer.results import Report, columns
from infer.segmentation import SegmentationOptions
from infer.trained_model import TrainedModel, shared_categories
from utils.cli import log
from utils.devices import ALONE, World
from utils.errors import UserError, import_function, one_line


@dataclass(frozen=True)
class Request:
    """Options of an evaluation that are not settings; each task uses those that apply to it."""

    boxes: str | Path = "gt"  # of masks and keypoints, see `BoxSource`
    max_objects: int | None = None  # to detect; None = as many as the weights were trained for
    # measure how likely the model finds the annotation, on so many samples, 0 = all; None = not
    likelihood: int | None = None


@dataclass(frozen=True)
class TaskEvaluation:
    """The functions that score and draw a task."""

    evaluate: Callable[..., Report]  # (cfg, trained, source, request, loop)
    draw: Callable[..., list[np.ndarray]]  # (cfg, trained, source, most) -> RGB uint8 pictures


def check_request(cfg, trained: TrainedModel, tasks: Sequence[str], request: Request) -> None:
    """Checks that an evaluation can be done with these weights, before it opens a dataset.

    Raises:
        UserError: the weights do not know a task or not as many objects, there are no boxes, or a
            metric of one's own cannot be imported.
    """
    load_metrics(cfg)
    for task in tasks:
        trained.require(task)
        if request.likelihood is not None:
            build_sequence_tokenizer(cfg, task, trained)
    if "detection" in tasks:
        detection.detection_tokenizer(trained, request.max_objects)
    elif request.max_objects is not None:
        raise UserError(f"--max-objects is for detection, not for {', '.join(tasks)}")
    if {"segmentation", "keypoint"} & set(tasks):
        check_box_source(trained, request.boxes)
    elif request.boxes != "gt":
        raise UserError(f"--boxes is of segmentation and keypoints, not of {', '.join(tasks)}")


def evaluate_task(
    task: str,
    cfg,
    trained: TrainedModel,
    source,
    request: Request = Request(),
    *,
    world: World = ALONE,
) -> Report:
    """Scores the weights on a source of the task, as the settings say.

    Args:
        world: the processes that share the images; the first one gets the whole report, the others
            one without the rows of the results.

    Raises:
        UserError: the weights do not know the task, or cannot be judged on this source.
    """
    entry, loop = find_evaluation(task), EvalLoop.from_settings(cfg, world)
    trained.require(task)
    report = entry.evaluate(cfg, trained, source, request, loop)
    if request.likelihood is not None:
        found = measure_likelihood(cfg, task, trained, source, loop, request.likelihood)
        report.metrics.update({f"likelihood/{name}": value for name, value in found.items()})
    return add_own_figures(cfg, task, report, source) if world.is_main and cfg.metrics else report


def load_metrics(cfg) -> dict[str, Callable[[list[dict], object, str], dict[str, float]]]:
    """The functions that the setting `metrics` names, by their import paths.

    Raises:
        UserError: one cannot be imported, or takes other arguments.
    """
    return {path: import_function("metrics", path, "results, source, task") for path in cfg.metrics}


def add_own_figures(cfg, task: str, report: Report, source) -> Report:
    """Adds the figures of `metrics` to a report; an error only removes the figures of its function.

    Called as function(results, source, task): rows of the COCO results format with the annotation
    file's ids, and the images with their annotation, see `dataset.tasks.Task`.
    """
    figures: dict[str, float] = {}
    for path, function in load_metrics(cfg).items():
        try:
            rows = function(report.results, source, task)
            found = {name: float(value) for name, value in rows.items()}
        except Exception as error:  # the function is not ours, and the evaluation took its time
            reason = f"{type(error).__name__}: {one_line(error)}"
            log(f"notice: {task}: no figures of {path} ({reason})")
            continue
        known = report.metrics.keys() | figures.keys()
        for name in [n for n, value in found.items() if n in known or not math.isfinite(value)]:
            reason = "the evaluation has one of that name" if name in known else "not finite"
            log(f"notice: {task}: {path} gives {name}={found.pop(name):.4g}, left out: {reason}")
        figures |= found
    lines = [report.table, *(f"{name} = {value:.4g}" for name, value in figures.items())]
    return replace(
        report, metrics=report.metrics | figures, table="\n".join(lines), own=tuple(figures)
    )


def draw_task(task: str, cfg, trained: TrainedModel, source, most: int) -> list[np.ndarray]:
    """Draws the results of the first images of a source.

    Returns:
        at most `most` pictures (H, W, 3) uint8 RGB.
    """
    return find_evaluation(task).draw(cfg, trained, source, most)


def find_evaluation(task: str) -> TaskEvaluation:
    """The registry entry of a task.

    Raises:
        UserError: there is no such task.
    """
    if task not in EVALUATIONS:
        raise UserError(f"task must be one of {sorted(EVALUATIONS)}, got {task!r}")
    return EVALUATIONS[task]


# ---- evaluate --------------------------------------------------------------------------------


def _evaluate_detection(cfg, trained, source, request: Request, loop: EvalLoop) -> Report:
    options = DetectionOptions.from_settings(cfg, request.max_objects, evaluation=True)
    return detection.evaluate(trained, source, options, loop)


def _evaluate_segmentation(cfg, trained, source, request: Request, loop: EvalLoop) -> Report:
    options = SegmentationOptions.from_settings(cfg, evaluation=True)
    boxes = DetectionOptions.from_settings(cfg, evaluation=True)
    return segmentation.evaluate(
        trained, source, options, loop, boxes=request.boxes, detection=boxes
    )


def _evaluate_keypoints(cfg, trained, source, request: Request, loop: EvalLoop) -> Report:
    options = KeypointOptions.from_settings(cfg)
    boxes = DetectionOptions.from_settings(cfg, evaluation=True)
    return keypoint.evaluate(trained, source, options, loop, boxes=request.boxes, detection=boxes)


def _evaluate_captioning(cfg, trained, source, request: Request, loop: EvalLoop) -> Report:
    return captioning.evaluate(trained, source, CaptionOptions.from_settings(cfg), loop)


# ---- draw ------------------------------------------------------------------------------------


def _draw_objects(cfg, trained, source, most: int) -> list[np.ndarray]:
    images = first_images(source, most)
    tensors = [as_tensor(image) for image in images]
    found = detection.detect(trained, tensors, DetectionOptions.from_settings(cfg))
    return list(map(detection.draw, images, [one.above(cfg.score_threshold) for one in found]))


def _draw_masks(cfg, trained, source, most: int) -> list[np.ndarray]:
    """In the boxes of the ground truth, so that nothing but the masks is judged."""
    images, boxes, labels = _first_objects(trained, source, most)
    tensors, options = (
        [as_tensor(image) for image in images],
        SegmentationOptions.from_settings(cfg),
    )
    found = segmentation.segment(trained, tensors, boxes, labels, options=options)
    return list(map(segmentation.draw, images, found))


def _draw_keypoints(cfg, trained, source, most: int) -> list[np.ndarray]:
    """In the boxes of the ground truth, so that nothing but the points is judged."""
    images, boxes, labels = _first_objects(trained, source, most, prefer_busy=True)
    tensors, options = [as_tensor(image) for image in images], KeypointOptions.from_settings(cfg)
    found = keypoint.find_keypoints(trained, tensors, boxes, labels, options=options)
    return list(map(keypoint.draw, images, found))


def _draw_captions(cfg, trained, source, most: int) -> list[np.ndarray]:
    images = first_images(source, most)
    tensors = [as_tensor(image) for image in images]
    found = captioning.caption(trained, tensors, CaptionOptions.from_settings(cfg))
    return list(map(captioning.draw, images, found))


def first_images(source, most: int) -> list[np.ndarray]:
    """The first images of a source that can be read, (H, W, 3) uint8 RGB."""
    return [sample.image for sample in _first_samples(source, range(len(source)), most)]


def _first_samples(source, numbers: Iterable[int], most: int) -> list[Sample]:
    """The first of these samples that can be read: the evaluation has said what cannot."""
    found = []
    for number in numbers:
        if len(found) == most:
            break
        with contextlib.suppress(UserError):
            found.append(source[number])
    return found


def _first_objects(
    trained: TrainedModel, source, most: int, *, prefer_busy: bool = False
) -> tuple[list, list, list]:
    """The first images with boxes and labels of their ground truth.

    Args:
        prefer_busy: leave out images without objects, unless all are.
    """
    truth = true_boxes(source, shared_categories(trained.categories, source.categories))
    numbers = list(range(len(source)))
    busy = [i for i in numbers if len(truth[source.image_ids[i]])] if prefer_busy else []
    samples = _first_samples(source, busy or numbers, most)
    boxes, labels, _ = columns([truth[sample.image_id] for sample in samples])
    return [sample.image for sample in samples], boxes, labels


EVALUATIONS: dict[str, TaskEvaluation] = {
    "detection": TaskEvaluation(_evaluate_detection, _draw_objects),
    "segmentation": TaskEvaluation(_evaluate_segmentation, _draw_masks),
    "keypoint": TaskEvaluation(_evaluate_keypoints, _draw_keypoints),
    "captioning": TaskEvaluation(_evaluate_captioning, _draw_captions),
}
