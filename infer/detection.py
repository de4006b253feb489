"""Detection: images -> one encoder pass -> tokens -> boxes in original pixels; scored and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.batch import EvalBatch
from dataset.geometry import Geometry
from infer.batches import EvalLoop, as_tensor, evaluate_all, is_whole
from infer.results import Detections, Report, score_coco
from infer.trained_model import Encoded, TrainedModel, shared_categories
from models.generate import SamplingOptions, uniforms_of_images
from tokenizer.detection import DetectionTokenizer
from utils.categories import Categories
from utils.detection_metrics import evaluate_voc
from utils.errors import UserError
from utils.visualize import draw_detections


@dataclass(frozen=True)
class DetectionOptions:
    """How tokens are picked; see `Pix2Seq.generate`. The defaults are the papers' for detection."""

    top_k: int = 0
    top_p: float = 0.4
    temperature: float = 1.0
    seed: int = 0  # of the draws: an image gives the same result in every batch
    max_objects: int | None = None  # to ask for; None = as many as the weights were trained for

    def __post_init__(self):
        SamplingOptions(self.temperature, self.top_k, self.top_p)  # raises what is wrong with them
        most = self.max_objects
        if most is not None and (not is_whole(most) or most < 1):
            raise ValueError(f"max_objects must be a whole number of at least 1, got {most!r}")

    @classmethod
    def from_settings(cls, cfg, max_objects: int | None = None) -> DetectionOptions:
        """Decoding as the settings say."""
        return cls(cfg.top_k, cfg.top_p, cfg.temperature, cfg.seed, max_objects)


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


def detection_tokenizer(
    trained: TrainedModel, max_objects: int | None = None
) -> DetectionTokenizer:
    """The tokenizer of the weights, perhaps with a smaller object budget.

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
    options: DetectionOptions = DetectionOptions(),
    loop: EvalLoop = EvalLoop(),
) -> Report:
    """Detects on every image of the source (those without objects too) and scores the result.

    Classes are matched by name: what the weights call something else does not count.

    Args:
        source: `CocoDetection` or `VocDetection`, whose own metric is computed.
    """
    categories = shared_categories(trained.categories, source.categories)
    detection_tokenizer(trained, options.max_objects)  # complains before images are loaded

    def predict(batch: EvalBatch) -> list[Detections]:
        return detect(
            trained, batch.images, options, image_ids=batch.image_ids, categories=categories
        )

    def score(found: dict[int | str, Detections]) -> Report:
        if hasattr(source, "coco"):
            return score_coco(source, found, categories, "bbox")
        return score_voc(source, found, categories)

    return evaluate_all(source, predict, score, loop)


def score_voc(source, found: dict[str, Detections], categories: Categories) -> Report:
    """VOC AP50: area under the curve and 11-point.

    Args:
        source: `VocDetection`.
        found: image id -> detections, also of the images without objects.
        categories: with the class ids of the data.
    """
    rows = [row for image_id, one in found.items() for row in one.to_coco(image_id, categories)]
    detections = {
        image_id: {
            "boxes": one.boxes,
            "labels": np.array([categories.source_ids[int(k)] for k in one.labels]),
            "scores": one.scores,
        }
        for image_id, one in found.items()
    }
    truth = {image_id: one for image_id, one in source.ground_truth().items() if image_id in found}
    metrics = evaluate_voc(truth, detections, source.categories.names)
    per_class = metrics.pop("per_class")
    table = (
        f"{per_class.to_string(index=False, float_format='{:.3f}'.format)}\n\n"
        f"mAP50 (area under the curve) = {metrics['mAP50']:.3f}\n"
        f"mAP50 (11-point)             = {metrics['mAP50_11point']:.3f}"
    )
    return Report(metrics, per_class, table, rows)


def draw(image: np.ndarray, found: Detections) -> np.ndarray:
    """A copy of the image with boxes, names and scores."""
    return draw_detections(image, found.boxes, found.names, found.scores)


def answer_frames(
    model: TrainedModel, frames: list[np.ndarray], options: DetectionOptions, threshold: float
) -> list[tuple[dict, np.ndarray]]:
    """Row of JSON and annotated picture of each frame of a video.

    Args:
        frames: (H, W, 3) uint8 RGB.
        threshold: objects that score below it are left out.
    """
    found = [one.above(threshold) for one in detect(model, list(map(as_tensor, frames)), options)]
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
