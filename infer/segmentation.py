"""Segmentation: images and boxes -> one encoder pass -> sampled outlines -> averaged masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset.geometry import Geometry, crop_to_box
from dataset.preprocess import OFFICIAL_RESIZING, Resizing
from infer.encode import Encoded, encode_images
from infer.results import InstanceMasks
from models import Pix2Seq
from models.generate import uniforms_of_images
from tokenizer.segmentation import SegmentationTokenizer
from utils.categories import Categories
from utils.masks import majority_mask

CROPS = 16  # that are encoded together


@dataclass(frozen=True)
class SegmentationOptions:
    """How outlines are picked and become a mask. The defaults are the papers', but for grammar."""

    top_k: int = 0
    top_p: float = 0.8
    temperature: float = 1.0
    num_samples: int = 8  # outlines per object
    threshold: float = 0.5  # a pixel that so large a share of them contains is in the mask
    grammar: bool = True  # rule out what is no outline; the official code does not
    max_rows: int = 256  # sequences that are decoded together: a limit of memory
    seed: int = 0  # of the draws: an object gives the same result in every batch

    def __post_init__(self):
        if self.num_samples < 1 or self.max_rows < 1:
            raise ValueError(
                f"num_samples and max_rows must be at least 1, got {self.num_samples} and "
                f"{self.max_rows}"
            )
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {self.threshold}")


PAPER = SegmentationOptions()


def segment(
    model: Pix2Seq,
    tokenizer: SegmentationTokenizer,
    categories: Categories,
    images: Sequence[Tensor],
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None = None,
    options: SegmentationOptions = PAPER,
    *,
    resize_mode: str = "letterbox",
    resizing: Resizing = OFFICIAL_RESIZING,
    encoded: Encoded | None = None,
    image_ids: Sequence[int | str] | None = None,
) -> list[InstanceMasks]:
    """Masks of the objects in given boxes.

    Each image is encoded once and all samples of all its objects are decoded from that; only
    where the weights want crops to the box, each object is an image of its own.

    Args:
        images: B uint8 (3, h, w) originals of any sizes.
        boxes: B of (N, 4) xyxy original pixels; N may differ and be 0.
        labels: B of (N,) class ids.
        scores: B of (N,), the masks take them over; 1 for all when None.
        encoded: the images if they are encoded already; not used with crops.
        image_ids: B, to which the draws belong with `options.seed`; None = the same for each image.

    Returns:
        B `InstanceMasks`, in the order of the boxes.
    """
    if image_ids is None:
        image_ids = [0] * len(images)
    boxes = [np.asarray(b, np.float32).reshape(-1, 4) for b in boxes]
    labels = [np.asarray(k, np.int64).reshape(-1) for k in labels]
    if scores is None:
        scores = [np.ones(len(k), np.float32) for k in labels]
    how = {"resize_mode": resize_mode, "resizing": resizing}
    if tokenizer.crop is None:
        encoded = encoded or encode_images(model, images, **how)
        rles = _decode(model, tokenizer, encoded, boxes, labels, options, image_ids)
    else:
        rles = _segment_crops(model, tokenizer, images, boxes, labels, options, image_ids, how)
    names = categories.names
    return [
        InstanceMasks(b, k, np.asarray(s, np.float32), [names[int(i)] for i in k], r)
        for b, k, s, r in zip(boxes, labels, scores, rles, strict=True)
    ]


def combine_samples(
    tokenizer: SegmentationTokenizer, samples: np.ndarray, geometry: Geometry, threshold: float
) -> dict:
    """Sampled outlines of one object as one mask of the original image.

    Each sample is filled in original pixels, the masks are averaged and cut at the threshold
    (official `ensemble_mask_np`); they are not piled on each other.

    Args:
        samples: (num_samples, T) generated ids.

    Returns:
        compressed COCO run lengths.
    """
    outlines = [
        [geometry.inverse_points(part) for part in tokenizer.decode(tokens, geometry.size)]
        for tokens in samples
    ]
    return majority_mask(outlines, geometry.orig_size, threshold)


def _segment_crops(
    model, tokenizer, images, boxes, labels, options, image_ids, how
) -> list[list[dict]]:
    """As `_decode`, every object seen in the surroundings of its box."""
    jobs = [(i, n) for i, of_image in enumerate(boxes) for n in range(len(of_image))]
    images = [image.to(model.device, non_blocking=True) for image in images]  # once for all crops
    rles: list[list[dict]] = [[] for _ in images]
    for start in range(0, len(jobs), CROPS):
        chunk = jobs[start : start + CROPS]
        regions = [
            crop_to_box(boxes[i][n], tuple(images[i].shape[1:]), tokenizer.crop) for i, n in chunk
        ]
        encoded = encode_images(model, [images[i] for i, _ in chunk], regions=regions, **how)
        of_chunk = [boxes[i][n : n + 1] for i, n in chunk]
        labels_of_chunk = [labels[i][n : n + 1] for i, n in chunk]
        ids = [image_ids[i] for i, _ in chunk]
        found = _decode(model, tokenizer, encoded, of_chunk, labels_of_chunk, options, ids)
        for (i, _), (rle,) in zip(chunk, found, strict=True):
            rles[i].append(rle)
    return rles


def _decode(
    model: Pix2Seq,
    tokenizer: SegmentationTokenizer,
    encoded: Encoded,
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    options: SegmentationOptions,
    image_ids: Sequence[int | str],
) -> list[list[dict]]:
    """Run lengths of the mask of every object, per image."""
    prompts = [
        tokenizer.prompts(np.clip(geometry.boxes(b), 0, _limit(geometry)), k, geometry.size)
        for geometry, b, k in zip(encoded.geometries, boxes, labels, strict=True)
    ]
    num_samples = 1 if options.top_k == 1 else options.num_samples  # greedy samples are all alike
    rles: list[list[dict]] = [[{}] * len(p) for p in prompts]
    for pieces in _pack([len(p) for p in prompts], max(options.max_rows // num_samples, 1)):
        most = pieces[0][2] - pieces[0][1]
        # images with fewer objects repeat theirs: the sequences of an image stand together
        rows = np.stack([np.resize(prompts[i][a:b], (most, 6)) for i, a, b in pieces])
        rows = torch.from_numpy(rows).to(model.device)  # (images, most, 6)
        uniforms = uniforms_of_images(
            rows,
            [image_ids[i] for i, _, _ in pieces],
            seed=options.seed,
            num_samples=num_samples,
            num_steps=tokenizer.max_new_tokens,
        )
        tokens, _ = model.generate(
            encoded.memory[torch.tensor([i for i, _, _ in pieces], device=model.device)],
            rows,
            max_new_tokens=tokenizer.max_new_tokens,
            eos_id=tokenizer.vocab.pad,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            num_samples=num_samples,
            allowed=tokenizer.allowed if options.grammar else None,
            unscored_range=tokenizer.answer_range if options.grammar else None,
            uniforms=uniforms,
        )
        tokens = tokens.cpu().numpy().reshape(len(pieces), most, num_samples, -1)
        for (i, first, end), of_image in zip(pieces, tokens, strict=True):
            for n, samples in zip(range(first, end), of_image, strict=False):
                geometry = encoded.geometries[i]
                rles[i][n] = combine_samples(tokenizer, samples, geometry, options.threshold)
    return rles


def _limit(geometry: Geometry) -> np.ndarray:
    """(4,) corners of the picture's far edge in the model input."""
    (y, x), (h, w) = geometry.pad, geometry.unpadded
    return np.float32([x + w, y + h] * 2)


def _pack(counts: Sequence[int], limit: int) -> Iterator[list[tuple[int, int, int]]]:
    """Groups of (image, first, end) objects, largest first, that fill up to `limit` rows.

    A group takes as many rows as it has images times the objects of its first one.
    """
    pieces = [
        (i, first, min(first + limit, count))
        for i, count in enumerate(counts)
        for first in range(0, count, limit)
    ]
    pieces.sort(key=lambda piece: piece[1] - piece[2])
    while pieces:
        room = limit // (pieces[0][2] - pieces[0][1])
        yield pieces[:room]
        del pieces[:room]
