"""What is in a given box: what the user says, or the detection task asked for the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from infer.encode import Encoded
from models import Pix2Seq
from tokenizer.detection import DetectionTokenizer
from utils.categories import Categories, check_class_names
from utils.errors import UserError

if TYPE_CHECKING:
    from infer.predictor import Predictor

Labels = Sequence[int | str] | int | str | None  # class ids or names, or one for all boxes


def label_boxes(
    predictor: Predictor,
    boxes: Sequence[np.ndarray],
    labels: Sequence[Labels] | None,
    encoded: Encoded | None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Boxes (N, 4) xyxy and class ids (N,) per image, from what a caller gives of B images.

    Args:
        labels: None = ask the detection task, and take the first class if the weights do not know
            that task or know one class alone.
        encoded: the images, where the detection task may have to be asked.
    """
    boxes = [np.asarray(b, np.float32).reshape(-1, 4) for b in boxes]
    categories = predictor.categories
    if labels is None and len(categories.names) > 1 and "detection" in predictor.tasks:
        tokenizer = predictor.detection_tokenizer()
        return boxes, classify_boxes(predictor.model, tokenizer, categories, encoded, boxes)
    labels = labels or [next(iter(categories.names))] * len(boxes)
    pairs = zip(labels, boxes, strict=True)
    return boxes, [class_ids(k, len(b), categories, predictor.source) for k, b in pairs]


def check_boxes(boxes: np.ndarray, size: tuple[int, int]) -> None:
    """Refuses boxes that hold no pixel of the image.

    Args:
        boxes: (N, 4) xyxy pixels.
        size: (H, W) of the image.

    Raises:
        ValueError: a box is not finite, has no area, or lies outside the image.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    inside = np.clip(boxes, 0, np.float32([size[1], size[0]] * 2))
    good = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    good &= (inside[:, 2:] > inside[:, :2]).all(1)
    if not good.all():
        raise ValueError(
            "boxes must be xmin ymin xmax ymax with an area inside the image "
            f"({size[1]} x {size[0]}), got {boxes[~good][0].tolist()}"
        )


def classify_boxes(
    model: Pix2Seq,
    tokenizer: DetectionTokenizer,
    categories: Categories,
    encoded: Encoded,
    boxes: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """The likeliest named class of each box, as if it were the first object of the answer.

    Args:
        boxes: B of (N, 4) xyxy original pixels.

    Returns:
        B of (N,) int64 class ids.
    """
    vocab = tokenizer.vocab
    named = torch.zeros(vocab.size, dtype=torch.bool, device=model.device)
    named[[vocab.class0 + class_id - vocab.first_label for class_id in categories.names]] = True

    def allowed(_: Tensor) -> Tensor:
        return named

    labels = []
    for i, (geometry, of_image) in enumerate(zip(encoded.geometries, boxes, strict=True)):
        if len(of_image) == 0:
            labels.append(np.zeros(0, np.int64))
            continue
        any_class = np.full(len(of_image), vocab.first_label + 1)
        objects = tokenizer.encode(geometry.boxes(of_image), any_class, geometry.size)
        coords = objects.reshape(-1, 5)[:, :4]
        prompt = np.column_stack([np.tile(tokenizer.prompt, (len(coords), 1)), coords])  # (N, 5)
        tokens, _ = model.generate(
            encoded.memory[i : i + 1],
            torch.from_numpy(prompt)[None].to(model.device),
            max_new_tokens=1,
            allowed=allowed,
        )
        labels.append(tokens[:, 0].cpu().numpy() - vocab.class0 + vocab.first_label)
    return labels


def class_ids(labels: Labels, num: int, categories: Categories, source: str) -> np.ndarray:
    """(num,) class ids from ids or names, or from one for all.

    Args:
        source: what knows these categories, for the message.

    Raises:
        UserError: a name or an id it does not know, or not as many labels as boxes.
    """
    if isinstance(labels, (int, str, np.integer)):
        labels = [labels] * num
    if len(labels) != num:
        raise UserError(f"give one label for all boxes or one each: {len(labels)} for {num}")
    check_class_names([k for k in labels if isinstance(k, str)], categories.names.values(), source)
    ids = [categories.ids_of_names[k] if isinstance(k, str) else int(k) for k in labels]
    unknown = [i for i in ids if i not in categories.names]
    if unknown:
        raise UserError(f"{source} knows no class id {unknown[0]}; try a name")
    return np.array(ids, np.int64)
