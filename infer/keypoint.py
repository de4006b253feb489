"""Keypoints: images and boxes -> encoded crops -> tokens -> points in original pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset.geometry import Geometry, crop_to_box
from dataset.preprocess import OFFICIAL_RESIZING, Resizing
from infer.encode import Encoded, encode_images
from infer.keypoint_resampling import generate_resampled
from infer.results import Keypoints
from models import Pix2Seq
from models.generate import uniforms_of_images
from tokenizer.keypoint import KeypointTokenizer, weighted_scores
from utils.categories import Categories

NOTEBOOK_WEIGHT = 0.1  # of the points' probability beside a detected box's score (official colab)


@dataclass(frozen=True)
class KeypointOptions:
    """How points are picked and scored; see `Pix2Seq.generate`. The defaults are the papers'."""

    top_k: int = 0
    top_p: float = 0.1
    temperature: float = 1.0
    suppress_invisible: bool = True  # every point gets a place; False = the model may pass
    official_resampling: bool = False  # suppress it as the official code does, afterwards
    points_score_weight: float | None = None  # None = 1, but 0.1 where boxes come with scores
    max_crops: int = 32  # that are encoded and decoded together: a limit of memory
    seed: int = 0  # of the draws: an object gives the same result in every batch

    def __post_init__(self):
        if self.max_crops < 1:
            raise ValueError(f"max_crops must be at least 1, got {self.max_crops}")
        if self.official_resampling and (self.top_k > 1 or not self.suppress_invisible):
            raise ValueError(
                "official_resampling needs suppress_invisible and top_k 0 or 1, got "
                f"suppress_invisible={self.suppress_invisible}, top_k={self.top_k}"
            )
        if not 0 <= (self.points_score_weight or 0) <= 1:
            raise ValueError(
                f"points_score_weight must be in [0, 1], got {self.points_score_weight}"
            )


PAPER = KeypointOptions()


def find_keypoints(
    model: Pix2Seq,
    tokenizer: KeypointTokenizer,
    categories: Categories,
    images: Sequence[Tensor],
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None = None,
    scores: Sequence[np.ndarray] | None = None,
    options: KeypointOptions = PAPER,
    *,
    resize_mode: str = "letterbox",
    resizing: Resizing = OFFICIAL_RESIZING,
    image_ids: Sequence[int | str] | None = None,
) -> list[Keypoints]:
    """Keypoints of the objects in given boxes, each seen in the surroundings of its box.

    Only coordinates and the invisible token are sampled; a point the model passes on stands at the
    centre of its box with visibility 0. Points are clipped to the image. The score is the mean
    probability of the tokens, mixed with that of the box (`weighted_scores`), and 0 for objects
    that have other labels than those the weights know keypoints of.

    Args:
        images: B uint8 (3, h, w) originals of any sizes.
        boxes: B of (N, 4) xyxy original pixels; N may differ and be 0.
        labels: B of (N,) class ids; the first one of the tokenizer for all when None.
        scores: B of (N,) of the boxes; 1 for all when None.
        image_ids: B, to which the draws belong with `options.seed`; None = the same for each image.

    Returns:
        B `Keypoints`, in the order of the boxes.
    """
    if image_ids is None:
        image_ids = [0] * len(images)
    weight = options.points_score_weight
    if weight is None:
        weight = 1.0 if scores is None else NOTEBOOK_WEIGHT
    sizes = [tuple(image.shape[1:]) for image in images]
    boxes = [_inside(b, size) for b, size in zip(boxes, sizes, strict=True)]
    if labels is None:
        labels = [np.full(len(b), tokenizer.labels[0]) for b in boxes]
    if scores is None:
        scores = [np.ones(len(b), np.float32) for b in boxes]
    labels = [np.asarray(k, np.int64).reshape(-1) for k in labels]
    scores = [np.asarray(s, np.float32).reshape(-1) for s in scores]
    images = [image.to(model.device, non_blocking=True) for image in images]  # once for all crops
    jobs = [(i, n) for i, of_image in enumerate(boxes) for n in range(len(of_image))]
    found = [_nothing(tokenizer, b, k, categories) for b, k in zip(boxes, labels, strict=True)]
    for start in range(0, len(jobs), options.max_crops):
        chunk = jobs[start : start + options.max_crops]
        encoded = encode_images(
            model,
            [images[i] for i, _ in chunk],
            resize_mode=resize_mode,
            resizing=resizing,
            regions=[crop_to_box(boxes[i][n], sizes[i], tokenizer.crop) for i, n in chunk],
        )
        own = [np.array([values[i][n] for i, n in chunk]) for values in (boxes, labels, scores)]
        points, point_scores, of_chunk = _decode(
            model, tokenizer, encoded, *own, options, weight, [image_ids[i] for i, _ in chunk]
        )
        for (i, n), *row in zip(chunk, points, point_scores, of_chunk, strict=True):
            found[i].points[n], found[i].point_scores[n], found[i].scores[n] = row
    return found


def with_keypoints(
    tokenizer: KeypointTokenizer,
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Of detections, B of each, those of the classes the weights know keypoints of."""
    keep = [np.isin(k, tokenizer.labels) for k in labels]
    return tuple(
        [values[k] for values, k in zip(rows, keep, strict=True)]
        for rows in (boxes, labels, scores)
    )


def to_original(
    tokenizer: KeypointTokenizer, tokens: np.ndarray, box: np.ndarray, geometry: Geometry
) -> np.ndarray:
    """(T,) tokens and a box in original pixels -> (K, 3) original pixels, visibility 2 or 0."""
    points, said = tokenizer.decode(tokens, geometry.boxes(box), geometry.size)
    h, w = geometry.orig_size
    points = np.clip(geometry.inverse_points(points), 0, np.float32([w, h]))
    return np.column_stack([points, np.where(said, 2, 0)]).astype(np.float32)


def _decode(
    model: Pix2Seq,
    tokenizer: KeypointTokenizer,
    encoded: Encoded,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    options: KeypointOptions,
    weight: float,
    image_ids: Sequence[int | str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of R crops: points (R, K, 3) original pixels, point_scores (R, K), scores (R,)."""
    vocab, geometries = tokenizer.vocab, encoded.geometries
    seen = np.stack([g.boxes(box) for g, box in zip(geometries, boxes, strict=True)])
    prompts = torch.from_numpy(tokenizer.prompts(seen, labels, geometries[0].size))
    uniforms = uniforms_of_images(  # the second half is for what is drawn anew
        prompts, image_ids, seed=options.seed, num_steps=2 * tokenizer.max_new_tokens
    )
    how = {
        "max_new_tokens": tokenizer.max_new_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "uniforms": uniforms.to(model.device),
    }
    memory, prompts = encoded.memory, prompts.to(model.device)
    if options.official_resampling:
        how["official"] = True
    else:
        how["allowed"] = tokenizer.allowed
    if options.suppress_invisible:
        tokens, log_probs = generate_resampled(model, memory, prompts, vocab.invisible, **how)
    else:
        tokens, log_probs = model.generate(memory, prompts, **how)
    tokens, log_probs = tokens.cpu().numpy(), log_probs.cpu().numpy()
    rows = zip(tokens, boxes, geometries, strict=True)
    points = np.stack([to_original(tokenizer, *row) for row in rows])
    scores = weighted_scores(tokens, log_probs, scores, weight, vocab.pad)
    scores = np.where(np.isin(labels, tokenizer.labels), scores, 0)
    return points, np.exp(log_probs).reshape(len(tokens), -1, 2).mean(2), scores


def _inside(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes clipped to the image, (N, 4) float32."""
    boxes = np.nan_to_num(np.asarray(boxes, np.float32).reshape(-1, 4))
    return np.clip(boxes, 0, np.float32([size[1], size[0]] * 2))


def _nothing(
    tokenizer: KeypointTokenizer, boxes: np.ndarray, labels: np.ndarray, categories: Categories
) -> Keypoints:
    """A result of N objects to fill in."""
    num_points = len(tokenizer.skeleton)
    return Keypoints(
        boxes,
        labels,
        np.zeros(len(boxes), np.float32),
        [categories.names.get(int(label), "") for label in labels],
        np.zeros((len(boxes), num_points, 3), np.float32),
        np.zeros((len(boxes), num_points), np.float32),
        tokenizer.skeleton,
    )
