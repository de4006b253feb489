"""What training and validation would say to the sources that they make of a dataset."""

from collections.abc import Sequence
from pathlib import Path

from dataset.advice import (
    check_learnable,
    compare_train_and_val,
    image_paths,
    look_at_val,
    overlap_text,
    rare_classes,
    same_pictures,
    small_objects,
)
from dataset.annotation_errors import AnnotationErrors
from dataset.check.report import Checked
from dataset.coco_format import annotation_path
from dataset.tasks import find_task
from utils.categories import check_sigmas
from utils.errors import UserError


def check_use(
    cfg, tasks: Sequence[str], sources: dict[str, dict], *, dataset: str, decode: bool
) -> Checked:
    """Opens the sources of every task as a training would.

    Args:
        sources: "train" and "val" -> the root and the split of each part that is there.
        decode: look for the same pictures in both parts by their pixels too.
    """
    errors = AnnotationErrors(dataset, report=True)
    lines: list[str] = []
    pictures: list = []
    for task in tasks:
        parts = {}
        for part, (root, split) in sources.items():
            source = find_task(task).sources[dataset]
            of_folder = dataset == "coco" and isinstance(root, Path)
            if of_folder and not annotation_path(root, split, source.kind).is_file():
                continue
            try:
                parts[part] = source(root, split, classes=cfg.classes or None, skip_bad=True)
                lines += [f"{task}: {line}" for line in _look(cfg, task, part, parts[part])]
            except UserError as error:
                errors.add("unusable", f"{task}, {part}", str(error))
        if len(parts) < 2:
            continue
        train, val = parts["train"], parts["val"]
        try:
            lines += compare_train_and_val(train, val)
        except UserError as error:
            errors.add("unusable", task, str(error))
        if not pictures or len(train) > len(pictures[0]):
            pictures = [image_paths(train), image_paths(val)]
    if pictures:
        pairs = same_pictures(*pictures, decode=decode)
        lines.append(overlap_text(pairs, len(pictures[1])))
    lines = list(dict.fromkeys(line for line in lines if line))
    return Checked("with these settings", errors, [], lines)


def _look(cfg, task: str, part: str, source) -> list[str]:
    if skeleton := getattr(source, "skeleton", None):
        check_sigmas(cfg.keypoint_sigmas, skeleton)
        skeleton.named_pairs(cfg.keypoint_flip_pairs)
    if part == "train":
        check_learnable(source)
        lines = find_task(task).advise(cfg, source)
        if task == "detection":
            lines += small_objects(source, cfg.img_size) + rare_classes(source)
        if len(source) < cfg.batch_size:
            size = f"batch_size={cfg.batch_size} is more than the {len(source)} training images"
            lines.append(f"{size}, which training refuses; use {len(source)} or less")
        return lines
    return look_at_val(source)
