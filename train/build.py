"""This module builds everything that a training needs from its settings.

It is the one translator between `CFG` and the library: vocabulary, tokens, data and loaders, model,
optimiser, schedule, and the state that training changes.
"""

import re
from collections.abc import Sequence

import torch

from dataset.loader import build_train_loader
from dataset.tasks import TASKS, build_source, build_tokenizer, build_train_set
from dataset.transforms import load_pixel_transforms
from infer.keypoint import check_sigmas
from infer.trained_model import read_meta
from models import ModelConfig, Pix2Seq, build_model, load_model
from models.decode_step.modes import check_decode_mode
from models.encoder import image_statistics
from models.pix2seq import smooth_coordinates
from tokenizer.base import TaskTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from train.distributed import parallelise, recompute_activations
from train.init_weights import start_from
from train.loss import LossType
from train.optim import (
    Freeze,
    average_of,
    base_lr,
    build_optimizer,
    count_steps,
    lr_factor,
    lr_factors,
    parse_schedule,
)
from train.run_folder import find_run_dir, read_settings
from train.state import TaskStream, TrainState
from utils.categories import Categories
from utils.cli import log, snapshot
from utils.devices import ALONE, World, pick_device
from utils.errors import UserError
from utils.files import shown


def tasks_of_run(base: type, overrides: list[str], name: str) -> list[str]:
    """The tasks that the run folder `name` (`--resume`) trains; all of them for "auto"."""
    if name == "auto":
        return list(TASKS)
    settings = read_settings(find_run_dir(snapshot(base, overrides).runs_dir, TASKS, name))
    tasks = settings.get("tasks", list(TASKS))
    if not isinstance(tasks, list) or not tasks or any(task not in TASKS for task in tasks):
        raise UserError(f"the settings of {name} name no tasks of ours, got {shown(tasks)}")
    return tasks


def batch_sizes(cfg, tasks: Sequence[str]) -> dict[str, int]:
    """Images of each task in a step; a task without a setting of its own has `batch_size`."""
    sizes = {task: getattr(cfg, f"{task}_batch_size", 0) or cfg.batch_size for task in tasks}
    for task, size in sizes.items():
        if size < 1:
            raise UserError(f"batch size of {task} must be at least 1, got {size}")
    return sizes


def task_weights(cfg, tasks: Sequence[str]) -> dict[str, float]:
    """Factors of the losses in their sum: 1 for a task that is alone or has no such setting.

    Raises:
        UserError: a weight that teaches nothing.
    """
    if len(tasks) == 1:
        return dict.fromkeys(tasks, 1.0)
    weights = {task: getattr(cfg, f"{task}_weight", 1.0) for task in tasks}
    for task, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise UserError(
                f"{task}_weight must be above 0, got {weight}; leave the task out with --task"
            )
    return weights


def join_categories(sources: dict) -> Categories:
    """The categories of all tasks, by class id, which must mean the same in every task.

    Captions have none; keypoints have those that have points, a part of the others'.

    Args:
        sources: task -> source of Samples with `.categories`.

    Raises:
        UserError: two annotation files disagree.
    """
    if len(sources) == 1:
        return next(iter(sources.values())).categories
    rows: dict[int, tuple[str, int]] = {}
    told: dict[int, str] = {}  # class id -> the task it is known from
    for task, source in sources.items():
        categories = source.categories
        for class_id, name in categories.names.items():
            row = name, categories.source_ids[class_id]
            known = rows.setdefault(class_id, row)
            first = told.setdefault(class_id, task)
            if known != row:
                raise UserError(
                    f"the annotation files of {first} and {task} disagree: category {known[1]} "
                    f"{known[0]!r} of the one is {row[1]} {row[0]!r} of the other"
                )
    rows = dict(sorted(rows.items()))
    names = [name for name, _ in rows.values()]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the annotation files of the tasks have two categories {name!r}")
    return Categories(
        {i: row[0] for i, row in rows.items()}, {i: row[1] for i, row in rows.items()}
    )


def build_vocabulary(cfg, tasks: Sequence[str] = ()) -> Vocabulary:
    num_text = TextTokenizer.load(cfg.caption_vocab).size if "captioning" in tasks else 0
    try:
        return Vocabulary(num_bins=cfg.num_bins, num_text=num_text)
    except ValueError as error:
        raise UserError(f"num_bins={cfg.num_bins} does not fit the vocabulary: {error}") from error


def build_tokenizers(
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


def build_source_of(cfg, task: str, *, train: bool):
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


def build_streams(
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
            pixel_transforms=load_pixel_transforms(cfg.pixel_transform),
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


def build_model_config(
    cfg, vocab: Vocabulary, task_tokenizers: dict[str, TaskTokenizer]
) -> ModelConfig:
    mean, std = image_statistics(cfg.encoder)
    try:
        return ModelConfig(
            encoder=cfg.encoder,
            encoder_stride=cfg.encoder_stride,
            image_size=(cfg.img_size, cfg.img_size),
            image_mean=mean,
            image_std=std,
            encoder_dim=cfg.encoder_dim,
            encoder_layers=cfg.encoder_layers,
            encoder_heads=cfg.encoder_heads,
            encoder_mlp_dim=cfg.encoder_mlp_dim,
            encoder_patch=cfg.encoder_patch,
            encoder_positions=cfg.encoder_positions,
            encoder_cls_token=cfg.encoder_cls_token,
            resnet_depth=cfg.resnet_depth,
            resnet_width=cfg.resnet_width,
            projection=cfg.projection,
            projection_mlp_ratio=cfg.projection_mlp_ratio,
            projection_positions=cfg.projection_positions,
            dim=cfg.dim,
            num_layers=cfg.num_layers,
            num_heads=cfg.num_heads,
            mlp_dim=cfg.mlp_dim,
            vocab_size=vocab.size,
            max_len=_max_len(cfg, task_tokenizers),
            decoder_positions=cfg.decoder_positions,
            tie_embeddings=cfg.tie_embeddings,
            output_bias=cfg.output_bias,
            drop_path=cfg.drop_path,
            drop_units=cfg.drop_units,
            drop_attention=cfg.drop_attention,
        )
    except ValueError as error:
        raise UserError(f"settings of the model: {error}") from error


def _max_len(cfg, task_tokenizers: dict[str, TaskTokenizer]) -> int:
    needed = max(tokenizer.max_len for tokenizer in task_tokenizers.values())
    if 0 < cfg.max_len < needed:
        raise UserError(f"max_len={cfg.max_len} is less than the {needed} that the tasks need")
    return cfg.max_len or needed


def build_model_of_run(
    cfg,
    vocab: Vocabulary,
    task_tokenizers: dict[str, TaskTokenizer],
    categories: Categories,
    device: torch.device,
) -> Pix2Seq:
    """A new model, or the one of `init_weights`, with the record that its weight files carry."""
    config = build_model_config(cfg, vocab, task_tokenizers)
    out = build_model(config, pretrained=cfg.pretrained and cfg.init_weights is None)
    if cfg.smooth_init:
        smooth_coordinates(out, vocab.coord_range)
    out.meta = {
        "vocabulary": vocab.to_json(),
        "categories": categories.to_json(),
        "resize_mode": cfg.resize_mode,
        "tasks": {task: tokenizer.settings() for task, tokenizer in task_tokenizers.items()},
    }
    if cfg.init_weights is not None:
        start = load_model(cfg.init_weights)
        read_meta(start.meta, start.config, str(cfg.init_weights))  # checked, like the weights
        log(start_from(out, start).text(cfg.init_weights))
    if cfg.compile:  # calls of the model alone, which are training: not `encode`, not `generate`
        out.compile()
    return out.to(device)


def step_counts(cfg, task_streams: dict[str, TaskStream]) -> tuple[int, int]:
    """All steps and those of the warm-up, going by epochs of the task that has most batches."""
    if cfg.whole_epochs:
        per_epoch = max(len(stream) for stream in task_streams.values())
        return cfg.epochs * per_epoch, round(cfg.warmup_epochs * per_epoch)
    lengths = {"epochs": cfg.epochs, "warmup_epochs": cfg.warmup_epochs}
    streams = task_streams.values()
    return max(count_steps(len(s.loader.dataset), s.images_per_step, **lengths) for s in streams)


def build_state(
    cfg,
    model: Pix2Seq,
    task_streams: dict[str, TaskStream],
    total_steps: int,
    world: World = ALONE,
) -> TrainState:
    """The model spread over the processes, optimiser, schedule and streams at step 0."""
    for name in ("freeze_encoder_steps", "early_stop_patience"):
        if getattr(cfg, name) < 0:
            raise UserError(f"{name} must be at least 0, got {getattr(cfg, name)}")
    try:
        batch_size = max(stream.images_per_step for stream in task_streams.values())
        lr = base_lr(cfg.lr, batch_size, cfg.lr_scaling)
        loss_type = LossType.parse(cfg.loss)
        parse_schedule(cfg.lr_schedule)
        factors = lr_factors(model, encoder=cfg.encoder_lr_factor, layer_decay=cfg.layer_decay)
        ema = average_of(model, cfg.ema_decay)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        re.compile("|".join(cfg.decay_exclude))
    except re.error as error:
        raise UserError(f"decay_exclude must be regular expressions: {error}") from error
    if cfg.fsdp and cfg.amp == "fp16":
        raise UserError("fsdp=true goes with amp=bf16 or amp=off, not with fp16")
    if cfg.fsdp and (cfg.ema_decay or cfg.freeze_encoder_steps):
        raise UserError("fsdp=true goes without ema_decay and freeze_encoder_steps")
    if cfg.freeze_batch_norm and not (cfg.pretrained or cfg.init_weights):
        raise UserError(
            "freeze_batch_norm=true keeps the statistics of a trained encoder; start from one with "
            "pretrained=true or init_weights=FILE"
        )
    if cfg.recompute_activations:
        recompute_activations(model.blocks)
    wrapped = parallelise(model, world, fsdp=cfg.fsdp)
    optimizer = build_optimizer(
        model,
        lr=lr,
        weight_decay=cfg.weight_decay,
        betas=cfg.betas,
        decay_all=cfg.decay_all,
        decay_exclude=cfg.decay_exclude,
        factors=factors,
    )
    wanted = cfg.warmup_steps or step_counts(cfg, task_streams)[1]
    warmup = min(wanted, total_steps // 2)  # officially never shortened
    if warmup < wanted and world.is_main:
        log(f"the warm-up takes {warmup} steps, half of the run, instead of {wanted}")

    def factor(step: int) -> float:
        return lr_factor(
            step,
            total_steps=total_steps,
            warmup_steps=warmup,
            end_factor=cfg.end_lr_factor,
            schedule=cfg.lr_schedule,
            tail_steps=cfg.tail_steps,
        )

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    scaler = torch.amp.GradScaler(model.device.type, enabled=cfg.amp == "fp16")
    weights = task_weights(cfg, list(task_streams))
    freeze = None
    if cfg.freeze_encoder_steps or cfg.freeze_batch_norm:
        steps, statistics = cfg.freeze_encoder_steps, cfg.freeze_batch_norm
        freeze = Freeze(model.encoder, steps, statistics=statistics)
    return TrainState(
        model,
        optimizer,
        scheduler,
        scaler,
        task_streams,
        loss_type,
        weights,
        wrapped=wrapped,
        world=world,
        accumulate_steps=cfg.accumulate_steps,
        ema=ema,
        freeze=freeze,
    )


def amp_dtype(cfg, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision; None = float32."""
    types = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    types["auto"] = torch.bfloat16 if device.type == "cuda" else None
    if cfg.amp not in types:
        raise UserError(f"amp must be one of {', '.join(types)}, got {cfg.amp!r}")
    return types[cfg.amp]
