"""Task tokenizers, sources and training sets from explicit arguments: the task registry.

A new task is one entry in `TASKS`; a new dataset of a task is one entry in its `sources`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.coco_detection import CocoDetection
from dataset.loader import TrainSet
from dataset.presets import detection_train, evaluation
from dataset.sample import Sample
from dataset.voc_detection import VocDetection
from dataset.voc_files import parse_voc_sets
from tokenizer import DetectionTokenizer, TaskTokenizer, TokenSequence, Vocabulary
from utils.errors import UserError

Encode = Callable[[Sample, np.random.Generator], TokenSequence]


def _coco_detection(root: Path, split: str, **options) -> CocoDetection:
    if split not in ("train", "val"):
        raise UserError(f"split of COCO must be train or val, got {split!r}")
    return CocoDetection(root, split, **options)


def _voc_detection(root: Path, split: str, **options) -> VocDetection:
    return VocDetection(root, parse_voc_sets(split), **options)


def _encode_detection(tokenizer: DetectionTokenizer) -> Encode:
    def encode(sample: Sample, rng: np.random.Generator) -> TokenSequence:
        geometry = sample.geometry
        return tokenizer.sequence(
            sample.boxes, sample.labels, geometry.size, rng, extent=geometry.unpadded
        )

    return encode


@dataclass(frozen=True)
class Task:
    """What a task is made of, from annotation to tokens."""

    tokenizer: type[TaskTokenizer]
    sources: dict[str, Callable]  # dataset name -> (root, split, **options) -> source of Samples
    encode: Callable[[TaskTokenizer], Encode]  # picks a Sample's fields for the tokenizer
    train_transforms: Callable[..., list]


TASKS: dict[str, Task] = {
    "detection": Task(
        tokenizer=DetectionTokenizer,
        sources={"coco": _coco_detection, "voc": _voc_detection},
        encode=_encode_detection,
        train_transforms=detection_train,
    ),
}


def find_task(name: str) -> Task:
    """The registry entry.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"task must be one of {sorted(TASKS)}, got {name!r}")
    return TASKS[name]


def build_tokenizer(task: str, vocab: Vocabulary, **options) -> TaskTokenizer:
    """The tokenizer of a task; options are those of its class."""
    return find_task(task).tokenizer(vocab, **options)


def build_source(task: str, dataset: str, root: Path, split: str, **options):
    """A sequence of `Sample`s in original pixels, with `.categories`.

    Args:
        split: "train" or "val" of COCO, or sets of VOC such as "2007:trainval,2012:trainval".
        options: `classes`, `limit`, see the source classes.

    Raises:
        UserError: unknown task or dataset, or files that are missing or wrong.
    """
    sources = find_task(task).sources
    if dataset not in sources:
        raise UserError(f"dataset of {task} must be one of {sorted(sources)}, got {dataset!r}")
    return sources[dataset](root, split, **options)


def build_train_set(
    task: str,
    source,
    tokenizer: TaskTokenizer,
    size: tuple[int, int],
    *,
    seed: int,
    augment: bool = True,
    resize_mode: str = "letterbox",
    **augmentation,
) -> TrainSet:
    """Source, transforms and tokenizer of one task.

    Args:
        size: (H, W) of the model input.
        augment: False = only `resize_mode`; then `augmentation` does not count.
        augmentation: options of the task's training preset (`dataset/presets.py`).
    """
    spec = find_task(task)
    transforms = (
        spec.train_transforms(size, **augmentation) if augment else evaluation(size, resize_mode)
    )
    return TrainSet(source, transforms, spec.encode(tokenizer), seed)
