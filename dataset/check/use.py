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
)
from dataset.annotation_errors import AnnotationErrors
from dataset.check.report import Checked
from dataset.coco_format import annotation_path
from dataset.tasks import count_samples, find_task
from utils.categories import check_sigmas
from utils.errors import UserError


def open_sources(
    cfg, tasks: Sequence[str], parts: dict[str, tuple], *, dataset: str, errors: AnnotationErrors
) -> dict[str, dict]:
    """The samples of every task and part, as a training opens them: task -> part -> source.

    Args:
        parts: "train" and "val" -> the root and the split of each part that is there.
        errors: get what cannot be opened.
    """
    sources: dict[str, dict] = {task: {} for task in tasks}
    for task in tasks:
        kind = find_task(task).sources[dataset]
        for part, (root, split) in parts.items():
            of_folder = dataset == "coco" and isinstance(root, Path)
            if of_folder and not annotation_path(root, split, kind.kind).is_file():
                continue
            try:
                sources[task][part] = kind(root, split, classes=cfg.classes or None, skip_bad=True)
            except UserError as error:
                errors.add("unusable", f"{task}, {part}", str(error))
    return sources


def check_use(cfg, sources: dict[str, dict], errors: AnnotationErrors, *, decode: bool) -> Checked:
    """Looks at the sources of every task as a training does before its first step.

    Args:
        cfg: the settings of the training.
        sources, errors: of `open_sources`.
        decode: look for the same pictures in both parts by their pixels too.
    """
    lines: list[str] = []
    pictures: list = []
    for task, parts in sources.items():
        for part, source in parts.items():
            try:
                lines += [f"{task}: {line}" for line in _look(cfg, task, part, source)]
            except UserError as error:
                errors.add("unusable", f"{task}, {part}", str(error))
        if not {"train", "val"} <= parts.keys():
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
            lines += rare_classes(source)
        if (count := count_samples(cfg, task, source)) < cfg.batch_size:
            size = f"batch_size={cfg.batch_size} is more than the {count} training samples"
            lines.append(f"{size}, which training refuses; use {count} or less")
        return lines
    return look_at_val(source)
