"""The registry of tasks, which builds their sources and training sets.

For a new task see docs/tasks.md, "A fifth task". A new dataset is an entry in `Task.sources`, and
one in `dataset.find_dataset.place_of_data`, which says where it lies.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from dataset.advice import caption_budget, object_budget, outline_budget, small_objects
from dataset.coco_captioning import CocoCaptions
from dataset.coco_detection import CocoDetection
from dataset.coco_format import Parts
from dataset.coco_keypoint import CocoKeypoints
from dataset.coco_segmentation import CocoSegmentation
from dataset.loader import TrainSet
from dataset.sample import PerObject, Sample
from dataset.transforms import ScaleJitterCropFlip, evaluation, train_transforms
from dataset.voc_detection import VocDetection
from tokenizer.base import TaskTokenizer, TokenSequence
from tokenizer.captioning import CaptionTokenizer
from tokenizer.detection import DetectionTokenizer
from tokenizer.keypoint import KeypointTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.tasks import build_tokenizer as build_tokenizer  # for those who build all of it
from tokenizer.text import TextTokenizer
from utils.cli import log
from utils.errors import UserError

NO_PAIRS = (
    "no left and right among the names of the keypoints, so pictures are not mirrored; name the "
    "pairs with --set keypoint_flip_pairs=LEFT:RIGHT,..."
)
PIXEL_OPTIONS = ("color_strength", "pixel_transforms")  # of `train_transforms`

# Functions of modules, not inside functions: worker processes that are not forked unpickle them.


def _detection_sequence(
    tokenizer: DetectionTokenizer, sample: Sample, rng: np.random.Generator
) -> TokenSequence:
    geometry = sample.geometry
    return tokenizer.sequence(
        sample.boxes, sample.labels, geometry.size, rng, extent=geometry.unpadded
    )


def _segmentation_sequences(
    tokenizer: SegmentationTokenizer, sample: Sample, rng: np.random.Generator
) -> TokenSequence:
    size = sample.geometry.size
    return tokenizer.sequence(sample.boxes, sample.labels, sample.polygons, size, rng)


def _keypoint_sequence(
    tokenizer: KeypointTokenizer, sample: Sample, rng: np.random.Generator
) -> TokenSequence:
    rows = list(zip(sample.boxes, sample.labels, sample.keypoints, strict=True))
    if len(rows) > 1:
        raise ValueError(f"keypoints need samples of one object, got {len(rows)}")
    nothing = np.zeros(4), 0, np.zeros((len(tokenizer.skeleton), 3))  # the window left no person
    return tokenizer.sequence(*(rows[0] if rows else nothing), sample.geometry.size, rng)


def _caption_sequences(
    tokenizer: CaptionTokenizer, sample: Sample, rng: np.random.Generator
) -> TokenSequence:
    return tokenizer.sequence(sample.captions, rng)


def _advise_detection(cfg, source) -> list[str]:
    lines = object_budget(source, cfg.max_objects, "max_objects")
    return lines + small_objects(source, cfg.img_size)


def _advise_segmentation(cfg, source) -> list[str]:
    return outline_budget(source, cfg.max_points)


def _advise_captioning(cfg, source) -> list[str]:
    if not cfg.caption_vocab.is_file():
        return []
    text = TextTokenizer.load(cfg.caption_vocab)
    return caption_budget(source, text, cfg.max_caption_tokens)


@dataclass(frozen=True)
class Task:
    """The parts of a task, from annotation to tokens; its tokenizer is in `tokenizer/tasks.py`.

    A source is a sequence of `Sample`s in original pixels, see `CocoDetection`. Training needs
    `.categories`, `.image_ids`, `.annotation_errors`, `read(index, at_least)` and
    `image_path(index)`; evaluation in the boxes of the ground truth needs `objects(index)`, scoring
    needs `.coco` or `ground_truth()`.
    """

    sources: dict[str, type]  # dataset name -> class of source: (root, split, **options)
    # the training sequence of a Sample: passes its fields to `tokenizer.sequence`; a function of a
    # module, which can be pickled
    make_sequence: Callable[[TaskTokenizer, Sample, np.random.Generator], TokenSequence]
    # option of its tokenizer that says how training sequences are made -> setting
    sequence_settings: dict[str, str] = field(default_factory=dict)
    # where it differs from the defaults of the jitter. The settings, which training passes to
    # `build_train_set` (train/settings.py), win over it
    augmentation: dict = field(default_factory=dict)
    # (settings) -> whether training makes one sample of each object, see `PerObject`
    per_object: Callable[[object], bool] = lambda cfg: False
    # (settings, source) -> lines on what of the source does not fit the settings
    advise: Callable[[object, object], list[str]] = lambda cfg, source: []

    @property
    def annotation_kind(self) -> str:
        """Kind of the COCO annotation file, see `coco_paths`."""
        return self.sources["coco"].kind


TASKS: dict[str, Task] = {
    "detection": Task(
        sources={"coco": CocoDetection, "voc": VocDetection},
        make_sequence=_detection_sequence,
        sequence_settings={
            "noise": "noise_objects",
            "corruption": "class_corruption",
            "noise_weight": "noise_weight",
            "pad_weight": "eos_weight",
        },
        advise=_advise_detection,
    ),
    "segmentation": Task(
        sources={"coco": CocoSegmentation},
        make_sequence=_segmentation_sequences,
        sequence_settings={
            "random_start": "seg_random_start",
            "pad_weight": "seg_eos_weight",
            "first_end_only": "seg_first_end_only",
            "weigh_absent": "seg_weigh_absent",
            "cut_outlines": "seg_cut_outlines",
        },
        augmentation={"max_scale": 1.0},  # the picture is never cut, only made smaller
        per_object=lambda cfg: cfg.seg_crop,
        advise=_advise_segmentation,
    ),
    "keypoint": Task(
        sources={"coco": CocoKeypoints},
        make_sequence=_keypoint_sequence,
        sequence_settings={
            "mask_inputs": "keypoint_mask_inputs",
            "invisible_weight": "keypoint_invisible_weight",
        },
        augmentation={"max_scale": 1.0, "crop": 0.5},  # twice the box; officially no mirror
        per_object=lambda cfg: True,
    ),
    "captioning": Task(
        sources={"coco": CocoCaptions},
        make_sequence=_caption_sequences,
        sequence_settings={
            "num_captions": "captions_per_image",
            "drop": "caption_drop",
            "end_weight": "caption_end_weight",
            "pad_weight": "caption_pad_weight",
        },
        augmentation={"flip_prob": 0.0},  # captions say left and right
        advise=_advise_captioning,
    ),
}


def find_task(name: str) -> Task:
    """The registry entry of a task.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"task must be one of {sorted(TASKS)}, got {name!r}")
    return TASKS[name]


def sequence_options(cfg, task: str) -> dict:
    """Options of a task's tokenizer that say how training sequences are made, from the settings."""
    names = find_task(task).sequence_settings
    return {option: getattr(cfg, setting) for option, setting in names.items()}


def tasks_of_data(data, tasks: Sequence[str]) -> list[str]:
    """The given tasks for which a `Dataset` has annotations."""
    tasks = [task for task in tasks if "coco" in find_task(task).sources]
    kinds = {task: find_task(task).annotation_kind for task in tasks}
    return [t for t in tasks if data.holds(kinds[t], outlined=t == "segmentation")]


def count_samples(cfg, task: str, source) -> int:
    """How many samples a training makes of a source of images: these, or the objects in them."""
    one_each = find_task(task).per_object(cfg)
    return len(source.learnable_objects() if one_each else source.image_ids)


def build_source(
    task: str, dataset: str, root: Path | Parts, split: str, *, per_object: bool = False, **options
):
    """The annotated images of a task (`open_source`); prints one line about what is left out."""
    source = open_source(task, dataset, root, split, per_object=per_object, **options)
    if notice := source.annotation_errors.notice():
        log(f"notice: {task}: {notice}")
    return source


def open_source(
    task: str, dataset: str, root: Path, split: str, *, per_object: bool = False, **options
):
    """The annotated images of a task, as `Task` describes them.

    Args:
        root: the folder, or a dataset that knows its parts.
        split: "train" or "val" of COCO, or sets of VOC such as "2007:trainval,2012:trainval".
        per_object: every object is a sample of its own; images without objects do not count.
        options: `classes`, `limit`, `skip_bad` and those of the task, see the source classes.

    Raises:
        UserError: unknown task or dataset, or files that are missing or wrong.
    """
    sources = find_task(task).sources
    if dataset not in sources:
        raise UserError(f"dataset of {task} must be one of {sorted(sources)}, got {dataset!r}")
    if isinstance(root, Path) and dataset == "coco" and split not in ("train", "val"):
        raise UserError(f"split of COCO must be train or val, got {split!r}")
    if per_object:
        options["keep_empty"] = False
    source = sources[dataset](root, split, **options)
    return PerObject(source) if per_object else source


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
    **augmentation,
) -> TrainSet:
    """Source, transforms and tokenizer of one task.

    Args:
        size: (H, W) of the model input.
        augment: False = `resize_mode` alone; then `augmentation` does not count.
        crop: for samples of one object, see `box_region`; None = with `augment` as the task has it,
            otherwise the whole image.
        augmentation: options of `ScaleJitterCropFlip` and `train_transforms`; `flip_pairs` are
            texts, see `Skeleton.named_pairs`.
    """
    spec, largest = find_task(task), 1.0
    if augment:
        options = spec.augmentation | augmentation | ({} if crop is None else {"crop": crop})
        pixels = {name: options.pop(name) for name in PIXEL_OPTIONS if name in options}
        if pairs := options.pop("flip_pairs", ()):
            options["flip_pairs"] = source.skeleton.named_pairs(pairs)
        jitter = ScaleJitterCropFlip(size, mode=resize_mode, **options)
        skeleton = getattr(source, "skeleton", None)
        if jitter.flip_prob > 0 and skeleton and not (jitter.flip_pairs or skeleton.flip_pairs):
            log(f"notice: {task}: {NO_PAIRS}")
        transforms = train_transforms(jitter, **pixels)
        crop, largest = jitter.crop, jitter.max_scale
    else:
        transforms = evaluation(size, resize_mode, crop=crop)
    # no picture is made larger than this; of a crop to a box nobody knows
    at_least = tuple(math.ceil(side * largest) for side in size) if crop is None else None
    return TrainSet(source, transforms, partial(spec.make_sequence, tokenizer), seed, at_least)
