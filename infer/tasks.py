"""How each task is evaluated and drawn: the registry beside that of `dataset/tasks.py`.

`infer/evaluate.py` and the validation of a training both go through it. A new task is one entry
in `EVALUATIONS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infer.boxes import true_boxes
from infer.caption_script import caption_options
from infer.detection_script import detection_options
from infer.detection_script import draw as draw_objects
from infer.evaluate_captioning import evaluate_captioning
from infer.evaluate_detection import evaluate_detection, shared_categories
from infer.evaluate_keypoints import evaluate_keypoints
from infer.evaluate_segmentation import evaluate_segmentation
from infer.keypoint_script import draw as draw_keypoints
from infer.keypoint_script import keypoint_options
from infer.predictor import Predictor
from infer.results import Report
from infer.segmentation_script import draw as draw_masks
from infer.segmentation_script import segmentation_options
from utils.devices import ALONE, World
from utils.errors import UserError
from utils.visualize import draw_caption


@dataclass(frozen=True)
class Request:
    """What an evaluation may be asked beside the settings; tasks take what concerns them."""

    boxes: str | Path = "gt"  # of masks and keypoints, see `box_source`
    max_objects: int | None = None  # to detect; None = as many as the weights were trained for


@dataclass(frozen=True)
class TaskEvaluation:
    """How results of a task are scored and shown."""

    evaluate: Callable[..., Report]  # (predictor, source, **arguments, **loop of `predict_all`)
    arguments: Callable[..., dict]  # (settings, request) -> those of `evaluate`
    pictures: Callable[..., list[np.ndarray]]  # (settings, predictor, source, most) -> RGB uint8


def evaluate_task(
    task: str,
    cfg,
    predictor: Predictor,
    source,
    request: Request = Request(),
    *,
    world: World = ALONE,
) -> Report:
    """Scores the weights on a source of the task, as the settings say.

    Args:
        world: the processes that share the images; all of them get the whole report.

    Raises:
        UserError: the weights do not know the task, or cannot be judged on this source.
    """
    entry = find_evaluation(task)
    predictor.require(task)
    loop = {"batch_size": cfg.eval_batch_size, "num_workers": cfg.num_workers, "progress": True}
    arguments = entry.arguments(cfg, request)
    return entry.evaluate(predictor, source, **arguments, **loop, world=world)


def draw_task(task: str, cfg, predictor: Predictor, source, most: int) -> list[np.ndarray]:
    """Pictures (H, W, 3) uint8 RGB of what the weights say to the first images of a source."""
    return find_evaluation(task).pictures(cfg, predictor, source, most)


def find_evaluation(task: str) -> TaskEvaluation:
    """The registry entry.

    Raises:
        UserError: there is no such task.
    """
    if task not in EVALUATIONS:
        raise UserError(f"task must be one of {sorted(EVALUATIONS)}, got {task!r}")
    return EVALUATIONS[task]


def _detection_arguments(cfg, request: Request) -> dict:
    return {"options": detection_options(cfg), "max_objects": request.max_objects}


def _segmentation_arguments(cfg, request: Request) -> dict:
    options, detection = segmentation_options(cfg), detection_options(cfg)
    return {"options": options, "boxes": request.boxes, "detection_options": detection}


def _keypoint_arguments(cfg, request: Request) -> dict:
    options, detection = keypoint_options(cfg), detection_options(cfg)
    asked = {"boxes": request.boxes, "detection_options": detection}
    return {"options": options, **asked, "sigmas": cfg.keypoint_sigmas}


def _captioning_arguments(cfg, request: Request) -> dict:
    return {"options": caption_options(cfg)}


def _objects(cfg, predictor: Predictor, source, most: int) -> list[np.ndarray]:
    images = _first_images(source, most)
    found = predictor.detect(images, detection_options(cfg))
    return list(map(draw_objects, images, [one.above(cfg.score_threshold) for one in found]))


def _masks(cfg, predictor: Predictor, source, most: int) -> list[np.ndarray]:
    """In the boxes of the ground truth, so that nothing but the masks is judged."""
    images, boxes, labels = _first_objects(predictor, source, most)
    found = predictor.segment(images, boxes, labels, segmentation_options(cfg))
    return list(map(draw_masks, images, found))


def _points(cfg, predictor: Predictor, source, most: int) -> list[np.ndarray]:
    """In the boxes of the ground truth, so that nothing but the points is judged."""
    images, boxes, labels = _first_objects(predictor, source, most, prefer_busy=True)
    found = predictor.keypoints(images, boxes, labels, keypoint_options(cfg))
    return list(map(draw_keypoints, images, found))


def _captions(cfg, predictor: Predictor, source, most: int) -> list[np.ndarray]:
    images = _first_images(source, most)
    found = predictor.caption(images, caption_options(cfg))
    return [draw_caption(image, one.texts[0]) for image, one in zip(images, found, strict=True)]


def _first_images(source, most: int) -> list[np.ndarray]:
    return [source[i].image for i in range(len(source))[:most]]


def _first_objects(
    predictor: Predictor, source, most: int, *, prefer_busy: bool = False
) -> tuple[list, list, list]:
    """Images with the boxes and labels of their ground truth; of those with some, if asked."""
    known = true_boxes(source, shared_categories(predictor.categories, source.categories))
    numbers = list(range(len(source)))
    busy = [i for i in numbers if len(known[source.image_ids[i]][0])] if prefer_busy else []
    samples = [source[i] for i in (busy or numbers)[:most]]
    boxes, labels, _ = zip(*(known[sample.image_id] for sample in samples), strict=True)
    return [sample.image for sample in samples], list(boxes), list(labels)


EVALUATIONS: dict[str, TaskEvaluation] = {
    "detection": TaskEvaluation(evaluate_detection, _detection_arguments, _objects),
    "segmentation": TaskEvaluation(evaluate_segmentation, _segmentation_arguments, _masks),
    "keypoint": TaskEvaluation(evaluate_keypoints, _keypoint_arguments, _points),
    "captioning": TaskEvaluation(evaluate_captioning, _captioning_arguments, _captions),
}
