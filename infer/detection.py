"""Detection: images -> one encoder pass -> tokens -> boxes in original pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset.geometry import Geometry
from dataset.preprocess import OFFICIAL_RESIZING, Resizing
from infer.encode import Encoded, encode_images
from infer.results import Detections
from models import Pix2Seq
from models.generate import uniforms_of_images
from tokenizer.detection import DetectionTokenizer
from utils.categories import Categories


@dataclass(frozen=True)
class DecodingOptions:
    """How tokens are picked; see `Pix2Seq.generate`. The defaults are the papers' for detection."""

    top_k: int = 0
    top_p: float = 0.4
    temperature: float = 1.0
    seed: int = 0  # of the draws: an image gives the same result in every batch


PAPER = DecodingOptions()


def detect(
    model: Pix2Seq,
    tokenizer: DetectionTokenizer,
    categories: Categories,
    images: Sequence[Tensor],
    options: DecodingOptions = PAPER,
    *,
    resize_mode: str = "letterbox",
    resizing: Resizing = OFFICIAL_RESIZING,
    encoded: Encoded | None = None,
    image_ids: Sequence[int | str] | None = None,
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

    Returns:
        B `Detections`, best first.
    """
    device = model.device
    if encoded is None:
        encoded = encode_images(model, images, resize_mode=resize_mode, resizing=resizing)
    prompt = torch.from_numpy(tokenizer.prompt).to(device).expand(len(images), -1)  # (B, 1)
    uniforms = uniforms_of_images(
        prompt, image_ids, seed=options.seed, num_steps=tokenizer.max_new_tokens
    )
    tokens, _, classes, log_probs = (
        out.cpu().numpy()
        for out in model.generate(
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
    )
    return [
        _to_original(
            tokenizer.decode(tokens[i], geometry.size, classes[i], log_probs[i]),
            geometry,
            categories,
        )
        for i, geometry in enumerate(encoded.geometries)
    ]


def _to_original(
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
