"""Settings to optimiser, schedule and the state that training changes."""

import re

import torch

from models import Pix2Seq
from models.recompute import recompute_activations
from train.ema import average_of
from train.freeze import Freeze
from train.loss import LossType
from train.lr_factors import lr_factors
from train.multi_task import task_weights
from train.parallel import parallelise
from train.schedule import base_lr, build_optimizer, count_steps, lr_factor, parse_schedule
from train.state import TaskStream, TrainState
from utils.cli import log
from utils.errors import UserError
from utils.world import ALONE, World


def step_counts(cfg, task_streams: dict[str, TaskStream]) -> tuple[int, int]:
    """All steps and those of the warm-up, going by epochs of the task that has most batches."""
    if cfg.whole_epochs:
        per_epoch = max(len(stream) for stream in task_streams.values())
        return cfg.epochs * per_epoch, round(cfg.warmup_epochs * per_epoch)
    lengths = {"epochs": cfg.epochs, "warmup_epochs": cfg.warmup_epochs}
    streams = task_streams.values()
    return max(count_steps(len(s.loader.dataset), s.images_per_step, **lengths) for s in streams)


def state(
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
