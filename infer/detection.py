"""Detection: images -> one encoder pass -> tokens -> boxes in original pixels; scored and drawn."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.batch import EvalBatch
from dataset.geometry import Geometry
from infer.batches import EvalLoop, as_tensor, evaluate_all, is_whole
from infer.results import Detections, Report, score_coco
from infer.trained_model import Encoded, TrainedModel, shared_categories
from models.generate import Generated, SamplingOptions, uniforms_of_images
from tokenizer.detection import DetectionTokenizer
from utils.categories import Categories
from utils.detection_metrics import coco_truth, evaluate_coco, evaluate_voc, voc_truth
from utils.errors import UserError


@dataclass(frozen=True)
class DetectionOptions:
    """How tokens are sampled; see `Pix2Seq.generate`.

    The defaults of sampling are those of the papers, which decode the whole budget, as does
    `stop_objects=0`.
    """

    top_k: int = 0
    top_p: float = 0.4
    temperature: float = 1.0
    seed: int = 0  # of the draws: an image gives the same result in every batch
    max_objects: int | None = None  # to ask for; None = as many as the weights were trained for
    stop_objects: int = 2  # an answer ends when so many objects in a row score below `stop_score`;
    stop_score: float = 0.05  # stop_objects = 0: it has `max_objects` in any case

    def __post_init__(self):
        SamplingOptions(self.temperature, self.top_k, self.top_p)  # raises what is wrong with them
        most = self.max_objects
        if most is not None and (not is_whole(most) or most < 1):
            raise ValueError(f"max_objects must be a whole number of at least 1, got {most!r}")
        if not is_whole(self.stop_objects) or self.stop_objects < 0:
            raise ValueError(
                f"stop_objects must be a whole number of at least 0, got {self.stop_objects!r}"
            )

    @classmethod
    def from_settings(
        cls, cfg, max_objects: int | None = None, *, evaluation: bool = False
    ) -> DetectionOptions:
        """The options of the settings.

        Args:
            evaluation: objects are scored rather than shown.
        """
        stop_objects = cfg.eval_stop_objects if evaluation else cfg.stop_objects
        return cls(
            cfg.top_k, cfg.top_p, cfg.temperature, cfg.seed, max_objects, stop_objects,
            cfg.stop_score,
        )  # fmt: skip

    def showing(self, threshold: float) -> DetectionOptions:
        """The options for a caller that drops objects below `threshold`: may stop early."""
        return replace(self, stop_score=min(self.stop_score, threshold))

    def stop(self, tokenizer: DetectionTokenizer) -> Callable[[Generated], Tensor] | None:
        """The stop criterion for `generate`: no more objects; None = no early stop."""
        in_a_row, score = self.stop_objects, self.stop_score
        if in_a_row == 0:
            return None
        return lambda found: tokenizer.ran_out(found.best_log_probs, in_a_row, score)


WHOLE_BUDGET = DetectionOptions(stop_objects=0)  # for evaluations: low scores count, too


def detect(
    trained: TrainedModel,
    images: Sequence[Tensor],
    options: DetectionOptions = DetectionOptions(),
    *,
    encoded: Encoded | None = None,
    image_ids: Sequence[int | str] | None = None,
    categories: Categories | None = None,
) -> list[Detections]:
    """Detects objects in a batch of images.

    The class of an object is the arg max of the class range at its fifth step, its score that
    class's probability over the full vocabulary (official `decode_object_seq_to_bbox`). Objects
    of class 0 or of a class without a name are dropped, boxes are clipped to the image and dropped
    where no area is left (or their corners are the wrong way round).

    Args:
        images: B uint8 (3, h, w) originals of any sizes.
        encoded: the images if they are encoded already.
        image_ids: B, to which the draws belong with `options.seed`; None = the same for each image.
        categories: the classes to find; None = all that the weights know.

    Returns:
        B `Detections`, best first.

    Raises:
        UserError: the weights cannot detect, or not as many objects.
    """
    model, tokenizer = trained.model, detection_tokenizer(trained, options.max_objects)
    encoded = encoded or trained.encode(images)
    # Every image has the same prompt, and random numbers of its own
    prompt = torch.from_numpy(tokenizer.prompt).to(model.device).expand(len(images), -1)  # (B, 1)
    uniforms = uniforms_of_images(
        prompt, image_ids, seed=options.seed, num_steps=tokenizer.max_new_tokens
    )
    # Tokens, and the likeliest class with its log-probability at every step: all (B, T)
    outputs = model.generate(
        encoded.memory,
        prompt,
        max_new_tokens=tokenizer.max_new_tokens,
        eos_id=tokenizer.eos_id,
        # Without an end token nothing is ruled out, as officially.
        allowed=None if tokenizer.eos_id is None else tokenizer.allowed,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        score_range=tokenizer.vocab.class_range,
        uniforms=uniforms,
        stop=options.stop(tokenizer),
    )
    tokens, _, classes, log_probs = (values.cpu().numpy() for values in outputs)
    # Back to original pixels
    return [
        to_original(
            tokenizer.decode(tokens[i], geometry.size, classes[i], log_probs[i]),
            geometry,
            categories or trained.categories,
        )
        for i, geometry in enumerate(encoded.geometries)
    ]


def check_threshold(threshold: float) -> None:
    """Raises a ValueError for an invalid score threshold."""
    if not isinstance(threshold, numbers.Real) or not 0 <= threshold <= 1:
        raise ValueError(f"score_threshold must be a number from 0 to 1, got {threshold!r}")


def detection_tokenizer(
    trained: TrainedModel, max_objects: int | None = None
) -> DetectionTokenizer:
    """The detection tokenizer of the weights, optionally with a smaller object budget.

    Raises:
        UserError: the weights cannot detect, or not as many objects.
    """
    limit = trained.require("detection")["max_objects"]
    if max_objects is None:
        max_objects = limit
    if not 1 <= max_objects <= limit:
        raise UserError(f"max_objects must be 1 to {limit} for {trained.name}, got {max_objects}")
    return trained.tokenizer("detection", max_objects=int(max_objects))


def to_original(
    decoded: tuple[np.ndarray, np.ndarray, np.ndarray], geometry: Geometry, categories: Categories
) -> Detections:
    """Objects in model pixels -> named objects with an area in original pixels, best first."""
    boxes, labels, scores = decoded
    h, w = geometry.orig_size
    boxes = np.clip(geometry.inverse_boxes(boxes), 0, np.float32([w, h, w, h]))
    shown = np.isin(labels, list(categories.names)) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    order = np.flatnonzero(shown)[np.argsort(-scores[shown], kind="stable")]
    names = [categories.names[int(label)] for label in labels[order]]
    return Detections(boxes[order].astype(np.float32), labels[order], scores[order], names)


def evaluate(
    trained: TrainedModel,
    source,
    options: DetectionOptions = WHOLE_BUDGET,
    loop: EvalLoop = EvalLoop(),
) -> Report:
    """Detects on every image of the source, including empty ones, and scores the result.

    Classes are matched by name: what the weights call something else does not count.

    Args:
        source: `CocoDetection` or `VocDetection`, whose own metric comes first; that of the other
            one follows with `voc/` or `coco/` before its names.
    """
    categories = shared_categories(trained.categories, source.categories)
    detection_tokenizer(trained, options.max_objects)  # complains before images are loaded

    def predict(batch: EvalBatch) -> list[Detections]:
        return detect(
            trained, batch.images, options, image_ids=batch.image_ids, categories=categories
        )

    def score(found: dict[int | str, Detections]) -> Report:
        if hasattr(source, "coco"):
            report = score_coco(source, found, categories, "bbox")
            return with_other_metric(report, voc_figures(source, found, categories), "voc")
        report = score_voc(source, found, categories)
        truth = coco_truth(source.ground_truth(), source.categories.names)
        others = evaluate_coco(truth, report.results, image_ids=list(found))
        return with_other_metric(report, others, "coco")

    return evaluate_all(source, predict, score, loop)


def with_other_metric(report: Report, others: dict, prefix: str) -> Report:
    """Adds the figures of the other benchmark (COCO or VOC) after those of the dataset's own."""
    names = {"mAP50": "AP50", "mAP50_11point": "AP50_11point"}
    numbers = {k: v for k, v in others.items() if isinstance(v, float)}
    named = {f"{prefix}/{names.get(k, k)}": value for k, value in numbers.items()}
    return replace(report, metrics=report.metrics | named)


def score_voc(source, found: dict[str, Detections], categories: Categories) -> Report:
    """VOC AP50: area under the curve and 11-point.

    Args:
        source: `VocDetection`.
        found: image id -> detections, also of the images without objects.
        categories: with the class ids of the data.
    """
    rows = [row for image_id, one in found.items() for row in one.to_coco(image_id, categories)]
    metrics = voc_figures(source, found, categories)
    per_class = metrics.pop("per_class")
    table = (
        f"{per_class.to_string(index=False, float_format='{:.3f}'.format)}\n\n"
        f"mAP50 (area under the curve) = {metrics['mAP50']:.3f}\n"
        f"mAP50 (11-point)             = {metrics['mAP50_11point']:.3f}"
    )
    return Report(metrics, per_class, table, rows)


def voc_figures(source, found: dict[int | str, Detections], categories: Categories) -> dict:
    """The result of `evaluate_voc` for data in VOC or COCO layout."""
    detections = {
        image_id: {
            "boxes": one.boxes,
            "labels": np.array([categories.source_ids[int(k)] for k in one.labels]),
            "scores": one.scores,
        }
        for image_id, one in found.items()
    }
    ids = source.categories.source_ids
    names = {ids[label]: name for label, name in source.categories.names.items()}
    if hasattr(source, "coco"):
        truth = voc_truth(source.coco, found)
    else:
        truth = {key: one for key, one in source.ground_truth().items() if key in found}
    return evaluate_voc(truth, detections, names)


def draw(image: np.ndarray, found: Detections) -> np.ndarray:
    """A copy of the image with boxes, names and scores."""
    return found.plot(image)


def answer_frames(
    model: TrainedModel,
    frames: list[np.ndarray],
    options: DetectionOptions,
    threshold: float,
    classes: Sequence[str] | None = None,
) -> list[tuple[dict, np.ndarray]]:
    """Row of JSON and annotated picture of each frame of a video.

    Args:
        frames: (H, W, 3) uint8 RGB.
        threshold: objects that score below it are left out.
        classes: names of those that are shown; None = all.
    """
    found = detect(model, list(map(as_tensor, frames)), options)
    found = [one.above(threshold).only(classes) for one in found]
    return [
        ({"objects": one.to_json()}, draw(frame, one))
        for frame, one in zip(frames, found, strict=True)
    ]


def table(path: Path, image: np.ndarray, found: Detections, threshold: float) -> str:
    """One line per object, boxes in pixels of the original image.

    Args:
        threshold: the score that objects must have, for the message that there is none.
    """
    head = f"{path} ({image.shape[1]} x {image.shape[0]})"
    if not len(found):
        return f"{head}\nno object with a score of at least {threshold:g}"
    width = max(len("label"), *map(len, found.names))
    lines = [head, f"{'label':<{width}}  score    xmin    ymin    xmax    ymax"]
    for name, score, box in zip(found.names, found.scores, found.boxes, strict=True):
        lines.append(f"{name:<{width}}  {score:5.2f}" + "".join(f"{value:8.1f}" for value in box))
    return "\n".join(lines)
