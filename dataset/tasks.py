"""Sources and training sets of the tasks from explicit arguments: the task registry.

A new task is one entry in `TASKS`; a new dataset of a task is one entry in its `sources`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.coco_captioning import CocoCaptions
from dataset.coco_detection import CocoDetection
from dataset.coco_keypoint import CocoKeypoints
from dataset.coco_segmentation import CocoSegmentation
from dataset.loader import ReplaceUnreadable, TrainSet
from dataset.sample import Sample
from dataset.transforms import (
    captioning_train,
    detection_train,
    evaluation,
    keypoint_train,
    segmentation_train,
)
from dataset.voc_detection import VocDetection, parse_voc_sets
from tokenizer.base import TaskTokenizer, TokenSequence
from tokenizer.captioning import CaptionTokenizer
from tokenizer.detection import DetectionTokenizer
from tokenizer.keypoint import KeypointTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.tasks import build_tokenizer as build_tokenizer  # for those who build all of it
from utils.cli import log
from utils.errors import UserError

Encode = Callable[[Sample, np.random.Generator], TokenSequence]


def _coco_detection(root: Path, split: str, **options) -> CocoDetection:
    return CocoDetection(root, _coco_split(split), **options)


def _coco_segmentation(root: Path, split: str, **options) -> CocoSegmentation:
    return CocoSegmentation(root, _coco_split(split), **options)


def _coco_keypoints(root: Path, split: str, **options) -> CocoKeypoints:
    return CocoKeypoints(root, _coco_split(split), **options)


def _coco_captions(root: Path, split: str, classes=None, **options) -> CocoCaptions:
    return CocoCaptions(root, _coco_split(split), **options)  # captions know no classes


def _coco_split(split: str) -> str:
    if split not in ("train", "val"):
        raise UserError(f"split of COCO must be train or val, got {split!r}")
    return split


def _voc_detection(root: Path, split: str, **options) -> VocDetection:
    return VocDetection(root, parse_voc_sets(split), **options)


def _encode_detection(tokenizer: DetectionTokenizer) -> Encode:
    def encode(sample: Sample, rng: np.random.Generator) -> TokenSequence:
        geometry = sample.geometry
        return tokenizer.sequence(
            sample.boxes, sample.labels, geometry.size, rng, extent=geometry.unpadded
        )

    return encode


def _encode_segmentation(tokenizer: SegmentationTokenizer) -> Encode:
    def encode(sample: Sample, rng: np.random.Generator) -> TokenSequence:
        size = sample.geometry.size
        return tokenizer.sequence(sample.boxes, sample.labels, sample.polygons, size, rng)

    return encode


def _encode_keypoints(tokenizer: KeypointTokenizer) -> Encode:
    nothing = np.zeros(4), 0, np.zeros((len(tokenizer.skeleton), 3))  # the window left no person

    def encode(sample: Sample, rng: np.random.Generator) -> TokenSequence:
        rows = list(zip(sample.boxes, sample.labels, sample.keypoints, strict=True))
        if len(rows) > 1:
            raise ValueError(f"keypoints need samples of one object, got {len(rows)}")
        return tokenizer.sequence(*(rows[0] if rows else nothing), sample.geometry.size, rng)

    return encode


def _encode_captioning(tokenizer: CaptionTokenizer) -> Encode:
    def encode(sample: Sample, rng: np.random.Generator) -> TokenSequence:
        return tokenizer.sequence(sample.captions, rng)

    return encode


@dataclass(frozen=True)
class Task:
    """What a task is made of, from annotation to tokens; its tokenizer: `tokenizer/tasks.py`."""

    sources: dict[str, Callable]  # dataset name -> (root, split, **options) -> source of Samples
    encode: Callable[[TaskTokenizer], Encode]  # picks a Sample's fields for the tokenizer
    train_transforms: Callable[..., list]


TASKS: dict[str, Task] = {
    "detection": Task(
        sources={"coco": _coco_detection, "voc": _voc_detection},
        encode=_encode_detection,
        train_transforms=detection_train,
    ),
    "segmentation": Task(
        sources={"coco": _coco_segmentation},
        encode=_encode_segmentation,
        train_transforms=segmentation_train,
    ),
    "keypoint": Task(
        sources={"coco": _coco_keypoints},
        encode=_encode_keypoints,
        train_transforms=keypoint_train,
    ),
    "captioning": Task(
        sources={"coco": _coco_captions},
        encode=_encode_captioning,
        train_transforms=captioning_train,
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


def build_source(task: str, dataset: str, root: Path, split: str, **options):
    """A sequence of `Sample`s in original pixels, with `.categories`.

    What the annotation files hold but nobody can use is said in one line.

    Args:
        split: "train" or "val" of COCO, or sets of VOC such as "2007:trainval,2012:trainval".
        options: `classes`, `limit`, `skip_bad` and those of the task, see the source classes.

    Raises:
        UserError: unknown task or dataset, or files that are missing or wrong.
    """
    sources = find_task(task).sources
    if dataset not in sources:
        raise UserError(f"dataset of {task} must be one of {sorted(sources)}, got {dataset!r}")
    source = sources[dataset](root, split, **options)
    if notice := source.faults.notice():
        log(f"notice: {task}: {notice}")
    return source


def build_train_set(
    task: str,
    source,
    tokenizer: TaskTokenizer,
    size: tuple[int, int],
    *,
    seed: int,
    augment: bool = True,
    resize_mode: str = "letterbox",
    crop: float | None = None,
    skip_bad: bool = False,
    **augmentation,
) -> TrainSet:
    """Source, transforms and tokenizer of one task.

    Args:
        size: (H, W) of the model input.
        augment: False = only `resize_mode`; then `augmentation` does not count.
        crop: for samples of one object, see `box_region`.
        skip_bad: images that cannot be read are replaced by others (`ReplaceUnreadable`).
        augmentation: options of the task's training preset (`dataset/transforms.py`).
    """
    spec = find_task(task)
    if augment:
        region = {} if crop is None else {"crop": crop}  # not every task knows it
        transforms = spec.train_transforms(size, **region, **augmentation)
    else:
        transforms = evaluation(size, resize_mode, crop=crop)
    source = ReplaceUnreadable(source) if skip_bad else source
    return TrainSet(source, transforms, spec.encode(tokenizer), seed)
