"""Settings to explicit arguments: the one translator between `CFG` and the library."""

from pathlib import Path

import torch

from dataset.build import build_source, build_tokenizer, build_train_set
from dataset.loader import build_train_loader
from infer.detection import DecodingOptions
from models import ModelConfig, Pix2Seq, build_model, load_model
from models.encoder import image_statistics
from tokenizer import TaskTokenizer, Vocabulary
from train.schedule import build_optimizer, lr_factor
from train.state import TaskStream, TrainState
from utils.categories import Categories
from utils.errors import UserError


def vocabulary(cfg) -> Vocabulary:
    try:
        return Vocabulary(num_bins=cfg.num_bins)
    except ValueError as error:
        raise UserError(f"num_bins={cfg.num_bins} does not fit the vocabulary: {error}") from error


def tokenizers(cfg, tasks: list[str], vocab: Vocabulary) -> dict[str, TaskTokenizer]:
    options = {
        "detection": {
            "max_objects": cfg.max_objects,
            "noise": cfg.noise_objects,
            "corruption": cfg.class_corruption,
            "noise_weight": cfg.noise_weight,
            "eos_weight": cfg.eos_weight,
        }
    }
    try:
        return {task: build_tokenizer(task, vocab, **options.get(task, {})) for task in tasks}
    except ValueError as error:
        raise UserError(f"settings of the tokens: {error}") from error


def source(cfg, task: str, *, train: bool):
    """Training images, or those that validation during training uses."""
    options = {"classes": cfg.classes or None}
    if cfg.dataset == "voc":
        sets = cfg.voc_sets if train or cfg.eval_split == "train" else cfg.voc_eval_sets
        root, split = cfg.voc_root, sets
    else:
        root, split = cfg.coco_root, "train" if train else cfg.eval_split
    limit = cfg.train_limit if train or cfg.eval_split == "train" else cfg.eval_limit
    return build_source(task, cfg.dataset, root, split, limit=limit or None, **options)


def streams(cfg, sources: dict, task_tokenizers: dict[str, TaskTokenizer]) -> dict[str, TaskStream]:
    out = {}
    for task, tokenizer in task_tokenizers.items():
        train_set = build_train_set(
            task,
            sources[task],
            tokenizer,
            (cfg.img_size, cfg.img_size),
            seed=cfg.seed,
            augment=cfg.augment,
            resize_mode=cfg.resize_mode,
            min_scale=cfg.min_scale,
            max_scale=cfg.max_scale,
            flip_prob=cfg.flip_prob,
            color_strength=cfg.color_jitter,
            pixel_transforms=pixel_transforms(cfg.pixel_transform),
        )
        if len(train_set) < cfg.batch_size:
            raise UserError(
                f"batch_size={cfg.batch_size} is more than the {len(train_set)} training images; "
                f"use --set batch_size={len(train_set)} or less"
            )
        loader = build_train_loader(
            train_set, batch_size=cfg.batch_size, num_workers=cfg.num_workers, drop_last=True
        )
        out[task] = TaskStream(loader, cfg.batch_size)
    return out


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
            dim=cfg.dim,
            num_layers=cfg.num_layers,
            num_heads=cfg.num_heads,
            mlp_dim=cfg.mlp_dim,
            vocab_size=vocab.size,
            max_len=max(tokenizer.max_len for tokenizer in task_tokenizers.values()),
            drop_path=cfg.drop_path,
            drop_units=cfg.drop_units,
            drop_attention=cfg.drop_attention,
        )
    except ValueError as error:
        raise UserError(f"settings of the model: {error}") from error


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


def state(cfg, model: Pix2Seq, task_streams: dict[str, TaskStream], total_steps: int) -> TrainState:
    """Optimiser, schedule and streams at step 0."""
    optimizer = build_optimizer(
        model,
        lr=cfg.lr,
        weight_decay=cfg.weight_decay,
        betas=cfg.betas,
        decay_all=cfg.decay_all,
    )
    per_epoch = max(len(stream) for stream in task_streams.values())
    warmup = min(round(cfg.warmup_epochs * per_epoch), total_steps // 2)
    if cfg.lr_schedule not in ("linear", "cosine", "constant"):
        raise UserError(f"lr_schedule must be linear, cosine or constant, got {cfg.lr_schedule!r}")

    def factor(step: int) -> float:
        return lr_factor(
            step,
            total_steps=total_steps,
            warmup_steps=warmup,
            end_factor=cfg.end_lr_factor,
            schedule=cfg.lr_schedule,
        )

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    scaler = torch.amp.GradScaler(model.device.type, enabled=cfg.amp == "fp16")
    return TrainState(model, optimizer, scheduler, scaler, task_streams)


def amp_dtype(cfg, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision; None = float32."""
    types = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    types["auto"] = torch.bfloat16 if device.type == "cuda" else None
    if cfg.amp not in types:
        raise UserError(f"amp must be one of {', '.join(types)}, got {cfg.amp!r}")
    return types[cfg.amp]


def decoding_options(cfg) -> DecodingOptions:
    return DecodingOptions(cfg.top_k, cfg.top_p, cfg.temperature, cfg.seed)
