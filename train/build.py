"""Builds the parts of a training: data, model, and the state that training changes."""

from dataclasses import dataclass

import torch

from dataset.advice import (
    check_headers,
    check_learnable,
    compare_train_and_val,
    image_paths,
    look_at_val,
    overlap_text,
    same_files,
)
from dataset.find_dataset import data_of, place_of_data
from dataset.loader import build_train_loader
from dataset.sample import RepeatRare, ReplaceUnreadable
from dataset.tasks import build_source, build_train_set, find_task
from dataset.transforms import load_pixel_transforms
from models import Pix2Seq, build_model
from models.pix2seq import smooth_coordinates
from tokenizer.base import TaskTokenizer
from tokenizer.vocabulary import Vocabulary
from train.distributed import parallelise, recompute_activations, report_no_blocks
from train.init_weights import load_init_weights
from train.loss import LossType, TokenKinds, amp_dtype
from train.optim import (
    Freeze,
    average_of,
    base_lr,
    build_optimizer,
    build_scheduler,
    count_steps,
    freeze_parameters,
    lr_factors,
)
from train.settings import (
    batch_sizes,
    build_model_config,
    build_tokenizers,
    build_vocabulary,
    plans_by_length,
    task_settings,
    task_weights,
)
from train.state import TaskStream, TrainState, Window, seed_all
from utils.categories import Categories
from utils.cli import log
from utils.devices import ALONE, World
from utils.errors import UserError
from utils.files import is_hub_name, path_text


@dataclass(frozen=True)
class Steps:
    """Optimiser steps of a run."""

    epoch: int  # one pass over the data of the task that has most batches
    total: int
    warmup: int


@dataclass
class Run:
    """The parts of a training; only `state` changes during it."""

    cfg: object  # the settings
    tasks: list[str]
    world: World
    sources: dict[str, object]  # task -> samples to train on
    eval_sources: dict[str, object]  # task -> samples to validate on
    tokenizers: dict[str, TaskTokenizer]
    categories: Categories
    weights_from: str  # where the first weights come from
    steps: Steps
    state: TrainState

    @property
    def gets_no_better(self) -> bool:
        """Whether `early_stop_patience` ends the run."""
        return 0 < self.cfg.early_stop_patience <= self.state.stale

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or early stopping applies."""
        return self.state.step >= self.steps.total or self.gets_no_better

    @property
    def at_epoch_end(self) -> bool:
        """Whether the run is between two epochs."""
        return self.state.step % self.steps.epoch == 0

    @property
    def evaluation_due(self) -> bool:
        """After every `eval_every`-th epoch and after the last step, until it is done.

        Before the first step if `eval_first` says so.
        """
        if not self.state.step and not self.cfg.eval_first:
            return False
        epoch = self.state.step // self.steps.epoch
        due = self.at_epoch_end and epoch % self.cfg.eval_every == 0
        due = due or self.state.step >= self.steps.total
        return due and self.state.evaluated < self.state.step


def build_run(
    cfg, tasks: list[str], world: World, device: torch.device, *, resumed: bool = False
) -> Run:
    """Builds a run at step 0 from checked settings (`check_settings`).

    Args:
        resumed: a checkpoint will be loaded: no other weights are read or fetched.

    Raises:
        UserError: data, weights or settings that do not go together.
    """
    seed_all(cfg.seed)  # of the first weights

    # Data: samples, their classes, their tokens, and batches of them.
    if world.is_main and (data := data_of(cfg)):
        log(data.describe(find_task(tasks[0]).annotation_kind, ("train", "val")))
    sources = {task: build_source_of(cfg, task, train=True) for task in tasks}
    categories = join_categories(sources)
    vocab = build_vocabulary(cfg, tasks, categories)
    tokenizers = build_tokenizers(cfg, tasks, vocab, sources)
    eval_sources = {task: build_source_of(cfg, task, train=False) for task in tasks}
    look_at_data(cfg, sources, eval_sources, world)
    streams = build_streams(cfg, sources, tokenizers, world)
    steps = count_run_steps(cfg, streams, sources)

    # Model, optimiser and schedule.
    model, weights_from = build_model_of_run(
        cfg, vocab, tokenizers, categories, device, resumed=resumed
    )
    state = build_state(cfg, model, streams, steps, world)
    state.token_kinds = {task: TokenKinds(vocab, one.eos_id) for task, one in tokenizers.items()}
    if world.rank:  # all processes draw the same weights, but not the same dropout
        seed_all(cfg.seed + world.rank)
    return Run(
        cfg,
        tasks,
        world,
        sources,
        eval_sources,
        tokenizers,
        categories,
        weights_from,
        steps,
        state,
    )


def build_source_of(cfg, task: str, *, train: bool):
    """The source of training samples, or that of validation during training."""
    settings = task_settings(cfg, task)
    options = {"classes": cfg.classes or None, "skip_bad": cfg.bad_samples == "skip"}
    options |= settings.train_source if train else settings.eval_source
    options["per_object"] = train and find_task(task).per_object(cfg)
    of_train = train or cfg.eval_split == "train"
    root, split = place_of_data(cfg, cfg.dataset, "train" if train else cfg.eval_split)
    limits = cfg.train_limit * of_train, cfg.eval_limit * (not train)
    limit = min(filter(None, limits), default=None)
    source = build_source(task, cfg.dataset, root, split, limit=limit, **options)
    settings.check_source(source)  # now, not after the first epoch
    return source


def look_at_data(cfg, sources: dict, eval_sources: dict, world: World = ALONE) -> None:
    """Warns about data that does not fit the settings or other data, before training starts.

    Args:
        sources, eval_sources: task -> samples to train on, and those to judge by.

    Raises:
        UserError: there is nothing to learn, or the ground truth cannot be scored.
    """
    lines = []
    for task, source in sources.items():
        eval_source = eval_sources[task]
        check_learnable(source)
        found = find_task(task).advise(cfg, source) + compare_train_and_val(source, eval_source)
        if world.is_main:  # what takes longer
            if cfg.bad_samples != "skip":
                check_headers(source)
                check_headers(eval_source)
            found += look_at_val(eval_source)
            if cfg.eval_split != "train":
                pairs = same_files(image_paths(source), image_paths(eval_source))
                found += filter(None, [overlap_text(pairs, len(eval_source))])
        lines += [f"notice: {task}: {line}" for line in found]
    for line in dict.fromkeys(lines):
        log(line)


def join_categories(sources: dict) -> Categories:
    """Joins the categories of all tasks; a class id must mean the same in every task.

    Captions have none; keypoints have those that have points, a part of the others'.

    Args:
        sources: task -> source of Samples with `.categories`.

    Raises:
        UserError: two annotation files disagree.
    """
    if len(sources) == 1:
        return next(iter(sources.values())).categories
    rows: dict[int, tuple[str, int]] = {}  # class id -> name and id in the file
    first_task: dict[int, str] = {}  # class id -> the task it is known from

    # Collect the rows of all tasks; a class id must have the same row in each.
    for task, source in sources.items():
        categories = source.categories
        for class_id, name in categories.names.items():
            row = name, categories.source_ids[class_id]
            known = rows.setdefault(class_id, row)
            first = first_task.setdefault(class_id, task)
            if known != row:
                raise UserError(
                    f"the annotation files of {first} and {task} disagree: category {known[1]} "
                    f"{known[0]!r} in the first is {row[1]} {row[0]!r} in the second"
                )

    # No name may belong to two classes.
    rows = dict(sorted(rows.items()))
    names = [name for name, _ in rows.values()]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the annotation files of the tasks have two categories {name!r}")
    return Categories(
        {i: row[0] for i, row in rows.items()}, {i: row[1] for i, row in rows.items()}
    )


def build_streams(
    cfg, sources: dict, task_tokenizers: dict[str, TaskTokenizer], world: World = ALONE
) -> dict[str, TaskStream]:
    """The batch streams of every task; each process gets its share.

    Raises:
        UserError: a step needs more images than there are.
    """
    out, sizes = {}, batch_sizes(cfg, list(task_tokenizers))
    for task, tokenizer in task_tokenizers.items():
        # Samples: source, augmentation, tokens.
        source = sources[task]
        if cfg.repeat_threshold and hasattr(source, "objects"):  # captions have no classes
            source = RepeatRare(source, cfg.repeat_threshold, cfg.seed)
        if cfg.bad_samples == "skip":
            source = ReplaceUnreadable(source)
        train_set = build_train_set(
            task,
            source,
            tokenizer,
            (cfg.img_size, cfg.img_size),
            seed=cfg.seed,
            augment=cfg.augment,
            resize_mode=cfg.resize_mode,
            **task_settings(cfg, task).augmentation,
            diagonal=cfg.diagonal_crops,
            color_strength=cfg.color_jitter,
            pixel_transforms=load_pixel_transforms(cfg.pixel_transform),
        )
        _check_batch_size(cfg, task, sizes, len(train_set), world)

        # Batches.
        loader = build_train_loader(
            train_set,
            batch_size=sizes[task],
            num_workers=-(-cfg.num_workers // len(sizes)),  # shared out among the tasks
            world=world,
            drop_last=True,
            accumulate_steps=cfg.accumulate_steps,
            num_lengths=cfg.num_lengths if plans_by_length(cfg) else 0,
            prefetch=cfg.prefetch_batches,
        )
        out[task] = TaskStream(loader, sizes[task], cfg.accumulate_steps)
    return out


def _check_batch_size(
    cfg, task: str, sizes: dict[str, int], num_samples: int, world: World
) -> None:
    """A step must not need more images than the task has."""
    parts = world.size * cfg.accumulate_steps
    if num_samples >= sizes[task] * parts:
        return
    alone = len(sizes) == 1 and sizes[task] == cfg.batch_size
    name = "batch_size" if alone else f"{task}_batch_size"
    times = f" times {parts} (processes, accumulate_steps)" if parts > 1 else ""
    most = num_samples // parts
    remedy = f"--set {name}={most} or less" if most else "fewer of them"
    raise UserError(
        f"{name}={sizes[task]}{times} is more than the {num_samples} training samples "
        f"of {task}; use {remedy}"
    )


def count_run_steps(cfg, task_streams: dict[str, TaskStream], sources: dict) -> Steps:
    """Counts the steps of an epoch, of the run and of its warm-up."""
    epoch = max(len(stream) for stream in task_streams.values())
    if cfg.whole_epochs:
        total, warmup = cfg.epochs * epoch, round(cfg.warmup_epochs * epoch)
    else:
        # Officially an epoch is the images of the split for every task: those without an object
        # count, and an image with several persons counts once.
        lengths = {"epochs": cfg.epochs, "warmup_epochs": cfg.warmup_epochs}
        total, warmup = max(
            count_steps(_count_images(cfg, sources[task]), stream.images_per_step, **lengths)
            for task, stream in task_streams.items()
        )
    total = min(total, cfg.max_steps or total)
    wanted = cfg.warmup_steps or warmup
    warmup = min(wanted, total // 2)  # officially never shortened
    if warmup < wanted:
        log(f"the warm-up is shortened from {wanted} to {warmup} steps, half of the run")
    return Steps(epoch, total, warmup)


def _count_images(cfg, source) -> int:
    """Images of the training split, also those that are left out because they are empty."""
    count = getattr(source, "num_images", len(source.image_ids))
    return min(count, cfg.train_limit or count)


def build_model_of_run(
    cfg,
    vocab: Vocabulary,
    task_tokenizers: dict[str, TaskTokenizer],
    categories: Categories,
    device: torch.device,
    *,
    resumed: bool = False,
) -> tuple[Pix2Seq, str]:
    """A new model, or that of `init_weights`, with the metadata for its weight files.

    Args:
        resumed: its weights come from a checkpoint, later.

    Returns:
        the model, and where its weights come from.
    """
    starts = cfg.init_weights is None and not resumed
    model = build_model(
        build_model_config(cfg, vocab, task_tokenizers),
        pretrained=cfg.pretrained and starts,
        encoder_weights=cfg.encoder_weights if starts else None,
    )
    if cfg.smooth_init:
        smooth_coordinates(model, vocab.coord_range)
    model.meta = record_meta(cfg, vocab, task_tokenizers, categories)
    if cfg.init_weights is None or resumed:
        origin = describe_origin(cfg, resumed=resumed)
    else:
        share = load_init_weights(cfg, model)
        origin = f"{path_text(cfg.init_weights)}, which gives {share:.0%} of the parameters"
    if cfg.compile:  # calls of the model alone, which are training: not `encode`, not `generate`
        model.compile()
    return model.to(device), origin


def record_meta(
    cfg, vocab: Vocabulary, task_tokenizers: dict[str, TaskTokenizer], categories: Categories
) -> dict:
    """The JSON values that the weight files of a run record (`Pix2Seq.meta`)."""
    meta = {
        "vocabulary": vocab.to_json(),
        "categories": categories.to_json(),
        "resize_mode": cfg.resize_mode,
        "tasks": {task: tokenizer.settings() for task, tokenizer in task_tokenizers.items()},
    }
    if cfg.encoder_weights is not None:  # a run that goes on does not need the file
        digest = cfg.encoder_weights_sha256
        meta["encoder_weights"] = {"file": cfg.encoder_weights.name, "sha256": digest}
    if (file := cfg.init_weights) is not None:
        name = path_text(file) if is_hub_name(file) else file.name
        meta["init_weights"] = {"file": name, "sha256": cfg.init_weights_sha256}
    return meta


def describe_origin(cfg, *, resumed: bool) -> str:
    """Where the first weights come from, without `init_weights`."""
    if resumed:
        return "those of the checkpoint"
    if cfg.encoder_weights is not None:
        digest = f"{cfg.encoder_weights_sha256}"[:16]
        return f"encoder from {cfg.encoder_weights} (sha256 {digest}), the rest new"
    return "encoder pretrained, the rest new" if cfg.pretrained else "new, nothing is pretrained"


def build_state(
    cfg, model: Pix2Seq, task_streams: dict[str, TaskStream], steps: Steps, world: World = ALONE
) -> TrainState:
    """The model spread over the processes, optimiser, schedule and streams at step 0."""
    freeze_parameters(model, cfg.freeze)
    factors = lr_factors(model, encoder=cfg.encoder_lr_factor, layer_decay=cfg.layer_decay)
    ema = average_of(model, cfg.ema_decay)  # before the model is sharded
    if cfg.recompute_activations:
        recompute_activations(model.blocks)
    report_no_blocks(model.encoder, cfg)
    wrapped = parallelise(model, world, fsdp=cfg.fsdp)

    # Optimiser and schedule; the rate may follow the images of a step.
    images = max(stream.images_per_step for stream in task_streams.values())
    optimizer = build_optimizer(
        model,
        cfg.optimizer,
        lr=base_lr(cfg.lr, images, cfg.lr_scaling),
        weight_decay=cfg.weight_decay,
        betas=cfg.betas,
        decay_all=cfg.decay_all,
        decay_exclude=cfg.decay_exclude,
        factors=factors,
    )
    scheduler = build_scheduler(
        optimizer,
        total_steps=steps.total,
        warmup_steps=steps.warmup,
        end_factor=cfg.end_lr_factor,
        schedule=cfg.lr_schedule,
        tail_steps=cfg.tail_steps,
    )
    half = amp_dtype(cfg.amp, model.device) == torch.float16
    scaler = torch.amp.GradScaler(model.device.type, enabled=half)

    # What of the encoder stays as it is.
    freeze = None
    if cfg.freeze_encoder_steps or cfg.freeze_batch_norm or cfg.freeze:
        statistics = cfg.freeze_batch_norm
        freeze = Freeze(model.encoder, cfg.freeze_encoder_steps, statistics=statistics)

    return TrainState(
        model,
        optimizer,
        scheduler,
        scaler,
        task_streams,
        LossType.parse(cfg.loss, Vocabulary.from_json(model.meta["vocabulary"])),
        task_weights(cfg, list(task_streams)),
        wrapped=wrapped,
        world=world,
        accumulate_steps=cfg.accumulate_steps,
        ema=ema,
        freeze=freeze,
        optimizer_name=cfg.optimizer,
        window=Window(cfg.log_every),
    )
