"""Settings to explicit arguments: the one translator between `CFG` and the library."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from dataset.build import build_source, build_tokenizer, build_train_set
from dataset.loader import build_train_loader
from infer.detection import DecodingOptions
from infer.evaluate_keypoints import check_sigmas
from models import ModelConfig, Pix2Seq, build_model, load_model
from models.encoder import image_statistics
from models.pix2seq import smooth_coordinates
from tokenizer import TaskTokenizer, TextTokenizer, Vocabulary
from train.loss import LossType
from train.multi_task import batch_sizes, task_weights
from train.schedule import base_lr, build_optimizer, count_steps, lr_factor, parse_schedule
from train.state import TaskStream, TrainState
from utils.categories import Categories
from utils.errors import UserError


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
    options = {"classes": cfg.classes or None}
    if task == "segmentation":
        options |= {"max_points": cfg.max_points, "keep_empty": not train}
        options["per_object"] = train and cfg.seg_crop
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


def streams(cfg, sources: dict, task_tokenizers: dict[str, TaskTokenizer]) -> dict[str, TaskStream]:
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
            **geometric_options(cfg, task),
            color_strength=cfg.color_jitter,
            pixel_transforms=pixel_transforms(cfg.pixel_transform),
        )
        size = sizes[task]
        if len(train_set) < size:
            alone = len(sizes) == 1 and size == cfg.batch_size
            name = "batch_size" if alone else f"{task}_batch_size"
            raise UserError(
                f"{name}={size} is more than the {len(train_set)} training images "
                f"of {task}; use --set {name}={len(train_set)} or less"
            )
        loader = build_train_loader(
            train_set, batch_size=size, num_workers=num_workers, drop_last=True
        )
        out[task] = TaskStream(loader, size)
    return out


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
        return [A.load(path, data_format="yaml" if path.endswith((".yaml", ".yml")) else "json")]
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{path} is no saved albumentations pipeline: {error}") from error


def model_config(cfg, vocab: Vocabulary, task_tokenizers: dict[str, TaskTokenizer]) -> ModelConfig:
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


def model(
    cfg,
    vocab: Vocabulary,
    task_tokenizers: dict[str, TaskTokenizer],
    categories: Categories,
    device: torch.device,
) -> Pix2Seq:
    """A new model, or the one of `init_weights`, with the record that its weight files carry."""
    config = model_config(cfg, vocab, task_tokenizers)
    if cfg.init_weights is None:
        out = build_model(config, pretrained=cfg.pretrained)
        if cfg.smooth_init:
            smooth_coordinates(out, vocab.coord_range)
    else:
        out = build_model(config)
        _start_from(out, cfg.init_weights)
    out.meta = {
        "vocabulary": vocab.to_json(),
        "categories": categories.to_json(),
        "resize_mode": cfg.resize_mode,
        "tasks": {task: tokenizer.settings() for task, tokenizer in task_tokenizers.items()},
    }
    return out.to(device)


def _start_from(model: Pix2Seq, path: Path) -> None:
    given = load_model(path).state_dict()
    wanted = model.state_dict()
    misfits = [k for k in wanted if k not in given or given[k].shape != wanted[k].shape]
    misfits += [k for k in given if k not in wanted]
    if misfits:
        raise UserError(
            f"init_weights={path} is another model: {len(misfits)} tensors differ, "
            f"{misfits[0]!r} first; use the settings (preset) it was trained with"
        )
    model.load_state_dict(given)


def step_counts(cfg, task_streams: dict[str, TaskStream]) -> tuple[int, int]:
    """All steps and those of the warm-up, going by epochs of the task that has most batches."""
    if cfg.whole_epochs:
        per_epoch = max(len(stream) for stream in task_streams.values())
        return cfg.epochs * per_epoch, round(cfg.warmup_epochs * per_epoch)
    lengths = {"epochs": cfg.epochs, "warmup_epochs": cfg.warmup_epochs}
    streams = task_streams.values()
    return max(count_steps(len(s.loader.dataset), s.batch_size, **lengths) for s in streams)


def state(cfg, model: Pix2Seq, task_streams: dict[str, TaskStream], total_steps: int) -> TrainState:
    """Optimiser, schedule and streams at step 0."""
    try:
        batch_size = max(stream.batch_size for stream in task_streams.values())
        lr = base_lr(cfg.lr, batch_size, cfg.lr_scaling)
        loss_type = LossType.parse(cfg.loss)
        parse_schedule(cfg.lr_schedule)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        re.compile("|".join(cfg.decay_exclude))
    except re.error as error:
        raise UserError(f"decay_exclude must be regular expressions: {error}") from error
    optimizer = build_optimizer(
        model,
        lr=lr,
        weight_decay=cfg.weight_decay,
        betas=cfg.betas,
        decay_all=cfg.decay_all,
        decay_exclude=cfg.decay_exclude,
    )
    warmup = min(cfg.warmup_steps or step_counts(cfg, task_streams)[1], total_steps // 2)

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
    return TrainState(model, optimizer, scheduler, scaler, task_streams, loss_type, weights)


def amp_dtype(cfg, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision; None = float32."""
    types = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    types["auto"] = torch.bfloat16 if device.type == "cuda" else None
    if cfg.amp not in types:
        raise UserError(f"amp must be one of {', '.join(types)}, got {cfg.amp!r}")
    return types[cfg.amp]


def decoding_options(cfg) -> DecodingOptions:
    return DecodingOptions(cfg.top_k, cfg.top_p, cfg.temperature, cfg.seed)
