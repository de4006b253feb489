"""Settings to tokens, data and their loaders; with `build_model` and `build_state` the one
translator between `CFG` and the library."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from dataset.build import build_source, build_tokenizer, build_train_set
from dataset.loader import build_train_loader
from infer.evaluate_keypoints import check_sigmas
from models.step import check_decode_mode
from tokenizer import TaskTokenizer, TextTokenizer, Vocabulary
from train.multi_task import batch_sizes
from train.state import TaskStream
from utils.device import pick_device
from utils.errors import UserError, one_line
from utils.world import ALONE, World


def vocabulary(cfg, tasks: Sequence[str] = ()) -> Vocabulary:
    num_text = TextTokenizer.load(cfg.caption_vocab).size if "captioning" in tasks else 0
    try:
        return Vocabulary(num_bins=cfg.num_bins, num_text=num_text)
    except ValueError as error:
        raise UserError(f"num_bins={cfg.num_bins} does not fit the vocabulary: {error}") from error


def tokenizers(
    cfg, tasks: list[str], vocab: Vocabulary, sources: dict | None = None
) -> dict[str, TaskTokenizer]:
    options = {
        "detection": {
            "max_objects": cfg.max_objects,
            "noise": cfg.noise_objects,
            "corruption": cfg.class_corruption,
            "noise_weight": cfg.noise_weight,
            "eos_weight": cfg.eos_weight,
        },
        "segmentation": {
            "max_points": cfg.max_points,
            "max_objects": 1 if cfg.seg_crop else cfg.seg_max_objects,
            "random_start": cfg.seg_random_start,
            "eos_weight": cfg.seg_eos_weight,
            "first_end_only": cfg.seg_first_end_only,
            "weigh_absent": cfg.seg_weigh_absent,
            "crop": cfg.seg_crop_pad if cfg.seg_crop else None,
            "cut_outlines": cfg.seg_cut_outlines,
        },
    }
    if "keypoint" in tasks:  # what the points are stands in the annotation file
        options["keypoint"] = {
            "names": sources["keypoint"].skeleton.names,
            "edges": sources["keypoint"].skeleton.edges,
            "labels": list(sources["keypoint"].categories.names),
            "crop": cfg.keypoint_crop,
            "mask_inputs": cfg.keypoint_mask_inputs,
            "invisible_weight": cfg.keypoint_invisible_weight,
        }
    if "captioning" in tasks:
        options["captioning"] = {
            "text": TextTokenizer.load(cfg.caption_vocab),
            "max_tokens": cfg.max_caption_tokens,
            "num_captions": cfg.captions_per_image,
            "drop": cfg.caption_drop,
            "end_weight": cfg.caption_end_weight,
            "pad_weight": cfg.caption_pad_weight,
        }
    try:
        return {task: build_tokenizer(task, vocab, **options.get(task, {})) for task in tasks}
    except ValueError as error:
        raise UserError(f"settings of the tokens: {error}") from error


def source(cfg, task: str, *, train: bool):
    """Training images, or those that validation during training uses."""
    options = {"classes": cfg.classes or None, "skip_bad": train and skips_bad(cfg)}
    if task == "segmentation":
        options |= {"max_points": cfg.max_points, "keep_empty": not train}
        options["per_object"] = train and cfg.seg_crop
        options["cut_outlines"] = cfg.seg_cut_outlines
    if task == "keypoint":  # on the training images, judge those that are trained on
        options |= {"per_object": train, "keep_empty": cfg.eval_split != "train"}
    if cfg.dataset == "voc":
        sets = cfg.voc_sets if train or cfg.eval_split == "train" else cfg.voc_eval_sets
        root, split = cfg.voc_root, sets
    else:
        root, split = cfg.coco_root, "train" if train else cfg.eval_split
    limit = cfg.train_limit if train or cfg.eval_split == "train" else cfg.eval_limit
    out = build_source(task, cfg.dataset, root, split, limit=limit or None, **options)
    if task == "keypoint":
        check_sigmas(cfg.keypoint_sigmas, out.skeleton)  # now, not after the first epoch
    return out


def streams(
    cfg, sources: dict, task_tokenizers: dict[str, TaskTokenizer], world: World = ALONE
) -> dict[str, TaskStream]:
    """Batches of every task, this process's share of them."""
    for name in ("accumulate_steps", "num_lengths", "prefetch_batches"):
        if getattr(cfg, name) < 1:
            raise UserError(f"{name} must be at least 1, got {getattr(cfg, name)}")
    check_decode_mode(cfg.decode_mode)  # of validation: now, not after the first epoch
    parts = world.size * cfg.accumulate_steps
    out, sizes = {}, batch_sizes(cfg, list(task_tokenizers))
    num_workers = -(-cfg.num_workers // len(sizes))  # shared out among the tasks
    for task, tokenizer in task_tokenizers.items():
        train_set = build_train_set(
            task,
            sources[task],
            tokenizer,
            (cfg.img_size, cfg.img_size),
            seed=cfg.seed,
            augment=cfg.augment,
            resize_mode=cfg.resize_mode,
            skip_bad=skips_bad(cfg),
            **geometric_options(cfg, task),
            diagonal=cfg.diagonal_crops,
            color_strength=cfg.color_jitter,
            pixel_transforms=pixel_transforms(cfg.pixel_transform),
        )
        size = sizes[task]
        if len(train_set) < size * parts:
            alone = len(sizes) == 1 and size == cfg.batch_size
            name = "batch_size" if alone else f"{task}_batch_size"
            times = f" times {parts} (processes, accumulate_steps)" if parts > 1 else ""
            most = len(train_set) // parts
            remedy = f"--set {name}={most} or less" if most else "fewer of them"
            raise UserError(
                f"{name}={size}{times} is more than the {len(train_set)} training images "
                f"of {task}; use {remedy}"
            )
        loader = build_train_loader(
            train_set,
            batch_size=size,
            num_workers=num_workers,
            rank=world.rank,
            world_size=world.size,
            drop_last=True,
            accumulate_steps=cfg.accumulate_steps,
            num_lengths=cfg.num_lengths if plans_by_length(cfg) else 0,
            prefetch=cfg.prefetch_batches,
        )
        out[task] = TaskStream(loader, size, cfg.accumulate_steps)
    return out


def plans_by_length(cfg) -> bool:
    """Whether a step of a new length costs more than its computing: something plans it anew."""
    return cfg.compile or pick_device(cfg.device).type == "cuda"  # the attention of cuDNN


def skips_bad(cfg) -> bool:
    """Whether training goes on without what it cannot use; evaluation never does."""
    if cfg.bad_samples not in ("refuse", "skip"):
        raise UserError(f"bad_samples must be refuse or skip, got {cfg.bad_samples!r}")
    return cfg.bad_samples == "skip"


def geometric_options(cfg, task: str) -> dict:
    """Scales of the jitter, the mirror and the crop of a task."""
    if task == "captioning":
        return {"min_scale": cfg.caption_min_scale, "max_scale": cfg.caption_max_scale}
    if task == "keypoint":
        scales = {"min_scale": cfg.keypoint_min_scale, "max_scale": cfg.keypoint_max_scale}
        return scales | {"flip_prob": cfg.flip_prob, "crop": cfg.keypoint_crop}
    if task == "segmentation":
        crop = cfg.seg_crop_pad if cfg.seg_crop else None
        scales = {"min_scale": cfg.seg_min_scale, "max_scale": cfg.seg_max_scale}
        return scales | {"flip_prob": cfg.flip_prob, "crop": crop}
    scales = {"min_scale": cfg.min_scale, "max_scale": cfg.max_scale}
    return scales | {"flip_prob": cfg.flip_prob}


def pixel_transforms(path: str) -> list:
    """The user's albumentations pipeline from the file that `A.save` wrote; none for ""."""
    if not path:
        return []
    if not Path(path).is_file():
        raise UserError(f"no pixel_transform file at {path}; write one with albumentations.save")
    import albumentations as A  # takes seconds to import

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is said below, on one line
            return [
                A.load(path, data_format="yaml" if path.endswith((".yaml", ".yml")) else "json")
            ]
    except Exception as error:  # the content decides which class is built, and how that fails
        reason = f"it names {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(
            f"{path} is no saved albumentations pipeline ({reason}); write one with "
            "albumentations.save, without Lambda"
        ) from error
