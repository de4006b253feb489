"""Segmentation: images and boxes -> one encoder pass -> sampled outlines -> averaged masks.

Masks are also scored and drawn here.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.batch import EvalBatch
from dataset.geometry import Geometry
from dataset.loader import init_worker
from infer.batches import EvalLoop, evaluate_all
from infer.boxes import BoxSource
from infer.detection import WHOLE_BUDGET, DetectionOptions
from infer.results import InstanceMasks, Report, columns, score_coco
from infer.trained_model import Encoded, TrainedModel, shared_categories
from models.generate import SamplingOptions, uniforms_of_images
from tokenizer.segmentation import SegmentationTokenizer
from utils.devices import num_cores
from utils.errors import UserError, one_line
from utils.masks import majority_mask, outline_iou

CROPS = 16  # that are encoded together
FIRST_SAMPLES = 2  # of an object, whose agreement decides whether the others are drawn
WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class SegmentationOptions:
    """How outlines are sampled and combined. Defaults: the papers', except `agree`, `grammar`."""

    top_k: int = 0
    top_p: float = 0.8
    temperature: float = 1.0
    num_samples: int = 8  # outlines per object
    agree: float = 0.85  # two samples are enough if their masks have this IoU; 0 = draw all
    threshold: float = 0.5  # a pixel that so large a share of them contains is in the mask
    grammar: bool = True  # rule out what is no outline; the official code does not
    max_rows: int = 256  # sequences that are decoded together: a limit of memory
    seed: int = 0  # of the draws: an object gives the same result in every batch

    def __post_init__(self):
        SamplingOptions(self.temperature, self.top_k, self.top_p)  # raises what is wrong with them
        if self.num_samples < 1 or self.max_rows < 1:
            raise ValueError(
                f"num_samples and max_rows must be at least 1, got {self.num_samples} and "
                f"{self.max_rows}"
            )
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {self.threshold}")
        if not 0 <= self.agree <= 1:
            raise ValueError(f"agree must be an IoU from 0 to 1, got {self.agree}")

    @classmethod
    def from_settings(
        cls, cfg, num_samples: int | None = None, *, evaluation: bool = False
    ) -> SegmentationOptions:
        """The options of the settings.

        Args:
            num_samples: None = as the settings say.
            evaluation: masks are scored rather than shown.
        """
        return cls(
            top_k=cfg.top_k,
            top_p=cfg.seg_top_p,
            temperature=cfg.temperature,
            num_samples=cfg.seg_samples if num_samples is None else num_samples,
            agree=cfg.eval_seg_agree if evaluation else cfg.seg_agree,
            threshold=cfg.seg_threshold,
            grammar=cfg.seg_grammar,
            seed=cfg.seed,
        )


ALL_SAMPLES = SegmentationOptions(agree=0)  # for evaluations, as the official code does


def segment(
    trained: TrainedModel,
    images: Sequence[Tensor],
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None = None,
    options: SegmentationOptions = SegmentationOptions(),
    *,
    encoded: Encoded | None = None,
    image_ids: Sequence[int | str] | None = None,
) -> list[InstanceMasks]:
    """Predicts masks of the objects in given boxes.

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
    outlines = sample_outlines(
        trained, images, boxes, labels, scores, options, encoded=encoded, image_ids=image_ids
    )
    return [one.masks() for one in outlines]


@dataclass(frozen=True)
class Outlines:
    """Sampled outlines of the objects of one image, before they are filled."""

    boxes: np.ndarray  # (N, 4) float32 xyxy, original pixels: the given boxes
    labels: np.ndarray  # (N,) int64 class ids
    scores: np.ndarray  # (N,) float32
    names: list[str]  # (N,) class names
    samples: list[tuple[np.ndarray, Geometry]]  # N of (samples, T) ids, and where they are
    tokenizer: SegmentationTokenizer
    threshold: float

    def masks(self) -> InstanceMasks:
        """Fills the outlines of each object and combines them."""
        rles = [combine_samples(self.tokenizer, *one, self.threshold) for one in self.samples]
        return InstanceMasks(self.boxes, self.labels, self.scores, self.names, rles)


def sample_outlines(
    trained: TrainedModel,
    images: Sequence[Tensor],
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None = None,
    options: SegmentationOptions = SegmentationOptions(),
    *,
    encoded: Encoded | None = None,
    image_ids: Sequence[int | str] | None = None,
) -> list[Outlines]:
    """The part of `segment` that runs the model; same arguments."""
    # What a caller may leave out
    if image_ids is None:
        image_ids = [0] * len(images)
    boxes = [np.asarray(b, np.float32).reshape(-1, 4) for b in boxes]
    labels = [np.asarray(k, np.int64).reshape(-1) for k in labels]
    if scores is None:
        scores = [np.ones(len(k), np.float32) for k in labels]
    # Outlines, from whole images or from crops
    tokenizer = trained.tokenizer("segmentation")
    if tokenizer.crop is None:
        encoded = encoded or trained.encode(images)
        samples = _sample(trained, encoded, boxes, labels, options, image_ids)
    else:
        samples = _sample_crops(trained, images, boxes, labels, options, image_ids)
    names, threshold = trained.categories.names, options.threshold
    return [
        Outlines(
            b, k, np.asarray(s, np.float32), [names[int(i)] for i in k], r, tokenizer, threshold
        )
        for b, k, s, r in zip(boxes, labels, scores, samples, strict=True)
    ]


def combine_samples(
    tokenizer: SegmentationTokenizer, samples: np.ndarray, geometry: Geometry, threshold: float
) -> dict:
    """Combines sampled outlines of one object to one mask of the original image.

    Each sample is filled in original pixels, the masks are averaged and cut at the threshold
    (official `ensemble_mask_np`); they are not piled on each other.

    Args:
        samples: (samples, T) generated ids.

    Returns:
        compressed COCO run lengths.
    """
    outlines = [
        [geometry.inverse_points(part) for part in tokenizer.decode(tokens, geometry.size)]
        for tokens in samples
    ]
    return majority_mask(outlines, geometry.orig_size, threshold)


def _sample(
    trained: TrainedModel,
    encoded: Encoded,
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    options: SegmentationOptions,
    image_ids: Sequence[int | str],
) -> list[list[tuple[np.ndarray, Geometry]]]:
    """Samples outlines: per image, per object, ids (samples, T) and where they are."""
    tokenizer = trained.tokenizer("segmentation")
    prompts = _prompts(tokenizer, encoded, boxes, labels)  # per image (N, 6)
    num_samples = 1 if options.top_k == 1 else options.num_samples  # greedy samples are all alike
    generate = partial(_generate, trained, encoded, options=options, image_ids=image_ids)
    if options.agree == 0 or num_samples <= FIRST_SAMPLES:
        found = generate(prompts, samples=slice(0, num_samples))
    else:
        # Two samples of each object, and the others where these two disagree
        found = generate(prompts, samples=slice(0, FIRST_SAMPLES))
        doubtful = [
            [
                n
                for n, two in enumerate(of_image)
                if sample_iou(tokenizer, two, geometry) < options.agree
            ]
            for of_image, geometry in zip(found, encoded.geometries, strict=True)
        ]
        left = [p[n] for p, n in zip(prompts, doubtful, strict=True)]
        others = generate(left, samples=slice(FIRST_SAMPLES, num_samples))
        for of_image, numbers, more in zip(found, doubtful, others, strict=True):
            for n, samples in zip(numbers, more, strict=True):
                of_image[n] = np.concatenate([of_image[n], samples])
    return [
        [(samples, geometry) for samples in of_image]
        for of_image, geometry in zip(found, encoded.geometries, strict=True)
    ]


def _sample_crops(
    trained: TrainedModel,
    images: Sequence[Tensor],
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    options: SegmentationOptions,
    image_ids: Sequence[int | str],
) -> list[list[tuple[np.ndarray, Geometry]]]:
    """As `_sample`, but every object is seen in the surroundings of its box."""
    pad = trained.tokenizer("segmentation").crop
    flat_boxes, flat_labels = np.concatenate(boxes), np.concatenate(labels)  # (R, 4), (R,)
    samples: list[list[tuple]] = [[] for _ in images]
    if not len(flat_labels):
        return samples
    # Encoded a few at a time, decoded together: a step of many rows costs less for each
    parts = list(trained.crop_batches(images, boxes, pad, CROPS))
    owners = np.concatenate([of_part for _, of_part, _ in parts])  # (R,)
    memory = torch.cat([one.memory for _, _, one in parts])  # (R, S, D)
    encoded = Encoded(memory, [geometry for _, _, one in parts for geometry in one.geometries])
    ids = [image_ids[i] for i in owners]
    # Every crop is an image with one box
    found = _sample(trained, encoded, flat_boxes[:, None], flat_labels[:, None], options, ids)
    for i, (of_object,) in zip(owners, found, strict=True):
        samples[i].append(of_object)
    return samples


def sample_iou(tokenizer: SegmentationTokenizer, two: np.ndarray, geometry: Geometry) -> float:
    """The IoU of the masks of two samples (2, T) of an object, in the model input."""
    return outline_iou(*(tokenizer.decode(ids, geometry.size) for ids in two), geometry.size)


def _generate(
    trained: TrainedModel,
    encoded: Encoded,
    prompts: Sequence[np.ndarray],
    *,
    samples: slice,
    options: SegmentationOptions,
    image_ids: Sequence[int | str],
) -> list[list[np.ndarray]]:
    """Generates some of the samples: per image, per object, ids (samples, T).

    Args:
        prompts: per image (N, 6).
        samples: their numbers, to which the draws belong.
    """
    model, tokenizer = trained.model, trained.tokenizer("segmentation")
    num_samples = samples.stop - samples.start
    found: list[list] = [[None] * len(p) for p in prompts]
    for pieces in pack_objects([len(p) for p in prompts], max(options.max_rows // num_samples, 1)):
        most = pieces[0][2] - pieces[0][1]
        # Images with fewer objects repeat them, so that the sequences of an image are adjacent.
        rows = np.stack([np.resize(prompts[i][a:b], (most, 6)) for i, a, b in pieces])
        rows = torch.from_numpy(rows).to(model.device)  # (images, most, 6)
        uniforms = uniforms_of_images(
            rows,
            [image_ids[i] for i, _, _ in pieces],
            seed=options.seed,
            num_samples=samples.stop,
            num_steps=tokenizer.max_new_tokens,
        )
        uniforms = uniforms.unflatten(0, (-1, samples.stop))[:, samples].flatten(0, 1)
        # These samples of these objects, on the encoder pass of their images.
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
        # The samples of each object
        tokens = tokens.cpu().numpy().reshape(len(pieces), most, num_samples, -1)
        for (i, first, end), of_image in zip(pieces, tokens, strict=True):
            found[i][first:end] = of_image[: end - first]
    return found


def _prompts(
    tokenizer: SegmentationTokenizer,
    encoded: Encoded,
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """(N, 6) tokens per image: the box of each object, cut to the image, and its class."""
    prompts = []
    for geometry, of_image, classes in zip(encoded.geometries, boxes, labels, strict=True):
        (y, x), (h, w) = geometry.pad, geometry.unpadded
        inside = np.clip(geometry.boxes(of_image), 0, np.float32([x + w, y + h] * 2))
        prompts.append(tokenizer.prompts(inside, classes, geometry.size))
    return prompts


def pack_objects(counts: Sequence[int], limit: int) -> Iterator[list[tuple[int, int, int]]]:
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


def evaluate(
    trained: TrainedModel,
    source,
    options: SegmentationOptions = ALL_SAMPLES,
    loop: EvalLoop = EvalLoop(),
    *,
    boxes: str | Path = "gt",
    detection: DetectionOptions = WHOLE_BUDGET,
) -> Report:
    """Predicts masks for every image of the source, including empty ones, and scores them.

    Args:
        source: `CocoSegmentation`.
        boxes: what the masks are asked for: "gt" = the boxes and classes of the ground truth at
            score 1, crowds left out; "detected" = what the same weights detect; or a COCO results
            file of boxes.
        detection: how "detected" boxes are found.
    """
    categories = shared_categories(trained.categories, source.categories)
    box_source = BoxSource(trained, source, categories, boxes, detection)
    # One encoder pass serves detection and masks; of crops the masks need passes of their own.
    whole = trained.tokenizer("segmentation").crop is None or box_source.is_detected

    def score(found: dict[int | str, InstanceMasks]) -> Report:
        return score_coco(source, found, categories, "segm")

    with _mask_processes(loop.num_workers) as submit:

        def predict(batch: EvalBatch) -> list[Future | InstanceMasks]:
            encoded = trained.encode(batch.images) if whole else None
            found = columns(box_source.find(batch, encoded))
            outlines = sample_outlines(
                trained, batch.images, *found, options, encoded=encoded, image_ids=batch.image_ids
            )
            return [submit(one) for one in outlines]

        return evaluate_all(source, predict, score, loop)


@contextmanager
def _mask_processes(
    num_workers: int,
) -> Iterator[Callable[[Outlines], Future | InstanceMasks]]:
    """Gives a function that combines outlines in other processes, while the model goes on.

    Args:
        num_workers: processes; 0 = in this one, at once.
    """
    if not num_workers:
        yield Outlines.masks
        return
    pool = ProcessPoolExecutor(
        min(num_workers, num_cores()), initializer=_start_mask_process, initargs=(os.getpid(),)
    )
    try:
        yield partial(pool.submit, Outlines.masks)
    except (BrokenProcessPool, OSError) as error:
        raise UserError(
            f"a process that combines masks ended or cannot start ({one_line(error)}): most often "
            "too little memory; lower num_workers, or use num_workers=0"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_mask_process(parent: int) -> None:
    """Sets a process up as one that loads images; it ends when its parent is killed."""
    init_worker(0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def draw(image: np.ndarray, found: InstanceMasks) -> np.ndarray:
    """A copy of the image with masks and their boxes."""
    return found.plot(image)


def table(path: Path, image: np.ndarray, found: InstanceMasks) -> str:
    """One line per object, pixels of the original image."""
    head = f"{path} ({image.shape[1]} x {image.shape[0]})"
    if not len(found):
        return f"{head}\nno object found"
    width = max(len("label"), *map(len, found.names))
    lines = [head, f"{'label':<{width}}  score    xmin    ymin    xmax    ymax    pixels"]
    areas = found.masks.sum(axis=(1, 2))
    for name, score, box, area in zip(found.names, found.scores, found.boxes, areas, strict=True):
        numbers = "".join(f"{value:8.1f}" for value in box)
        lines.append(f"{name:<{width}}  {score:5.2f}{numbers}{area:10d}")
    return "\n".join(lines)
