"""Derives training options from `CFG`; needs neither data nor a model.

`check_settings` refuses what cannot work before the first dataset is opened. `task_settings` says
for each task which settings are its own. Vocabulary, tokenizers and the shape of the model follow
from the settings as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path

import torch

from dataset.tasks import build_tokenizer, sequence_options
from dataset.transforms import load_pixel_transforms
from infer.tasks import load_metrics
from models import ModelConfig, build_model
from models.encoder import ENCODERS, build_encoder, check_encoder, image_statistics, is_class
from tokenizer.base import TaskTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from train.init_weights import find_init_weights
from train.loss import amp_dtype, check_loss
from train.optim import check_optimizer, freeze_parameters, lr_factors
from utils.categories import Categories, check_sigmas
from utils.cli import base_class, log, settings_dict, snapshot
from utils.devices import World, check_bfloat16, local_device, pick_device
from utils.encoder_weights import is_source, pretrained_file, read_source
from utils.errors import UserError
from utils.files import file_sha256, is_hub_name, path_text
from utils.setting_rules import TRAINING_PAIRS, complain_of_pairs


@dataclass(frozen=True)
class TaskSettings:
    """The settings of one task. The defaults are for tasks without settings of their own."""

    # the source of its samples, None before there is one -> options of its tokenizer, apart from
    # those of `dataset.tasks.sequence_options`
    tokenizer: Callable[[object], dict] = lambda source: {}
    train_source: dict = field(default_factory=dict)  # options of the training source
    eval_source: dict = field(default_factory=dict)  # options of the validation source
    check_source: Callable[[object], None] = lambda source: None  # raises UserError
    augmentation: dict = field(default_factory=dict)  # scales, mirror and crop in training


def task_settings(cfg, task: str) -> TaskSettings:
    """The settings of a task; one that is not in `TASK_SETTINGS` gets the common augmentation."""
    if task in TASK_SETTINGS:
        return TASK_SETTINGS[task](cfg)
    return TaskSettings(augmentation=_scales(cfg) | {"flip_prob": cfg.flip_prob})


def _detection(cfg) -> TaskSettings:
    return TaskSettings(
        tokenizer=lambda source: {"max_objects": cfg.max_objects},
        # the Pascal VOC source has no such option: it keeps all images
        train_source={} if cfg.dataset == "voc" else {"keep_empty": cfg.keep_empty},
        augmentation=_scales(cfg) | {"flip_prob": cfg.flip_prob},
    )


def _segmentation(cfg) -> TaskSettings:
    crop = cfg.seg_crop_pad if cfg.seg_crop else None
    options = {
        "max_points": cfg.max_points,
        "max_objects": 1 if cfg.seg_crop else cfg.seg_max_objects,
        "crop": crop,
    }
    outlines = {"max_points": cfg.max_points, "cut_outlines": cfg.seg_cut_outlines}
    return TaskSettings(
        tokenizer=lambda source: options,
        train_source=outlines | {"keep_empty": False},
        eval_source=outlines | {"keep_empty": True},
        augmentation=_scales(cfg, "seg_") | {"flip_prob": cfg.flip_prob, "crop": crop},
    )


def _keypoint(cfg) -> TaskSettings:
    def tokenizer(source) -> dict:
        options = {"crop": cfg.keypoint_crop}
        if source is not None:  # the annotation file says what the points are
            names, edges = source.skeleton.names, source.skeleton.edges
            options |= {"names": names, "edges": edges, "labels": list(source.categories.names)}
        return options

    def check_source(source) -> None:
        check_sigmas(cfg.keypoint_sigmas, source.skeleton)
        source.skeleton.named_pairs(cfg.keypoint_flip_pairs)

    keep_empty = cfg.eval_split != "train"  # on training images, judge those that are trained on
    return TaskSettings(
        tokenizer=tokenizer,
        train_source={"keep_empty": keep_empty},
        eval_source={"keep_empty": keep_empty},
        check_source=check_source,
        augmentation=_scales(cfg, "keypoint_")
        | {"flip_prob": cfg.flip_prob, "crop": cfg.keypoint_crop}
        | {"flip_pairs": cfg.keypoint_flip_pairs},
    )


def _captioning(cfg) -> TaskSettings:
    def tokenizer(source) -> dict:
        return {
            "text": TextTokenizer.load(cfg.caption_vocab),
            "max_tokens": cfg.max_caption_tokens,
        }

    return TaskSettings(tokenizer=tokenizer, augmentation=_scales(cfg, "caption_"))


def _scales(cfg, prefix: str = "") -> dict:
    names = ("min_scale", "max_scale")
    return {name: getattr(cfg, prefix + name) for name in names}


LENGTH_FROM_DATA = ("keypoint",)  # tasks whose sequences are as long as the data says

TASK_SETTINGS: dict[str, Callable[[object], TaskSettings]] = {
    "detection": _detection,
    "segmentation": _segmentation,
    "keypoint": _keypoint,
    "captioning": _captioning,
}


def batch_sizes(cfg, tasks: Sequence[str]) -> dict[str, int]:
    """Images of each task per step; the default is `batch_size`."""
    return {task: getattr(cfg, f"{task}_batch_size", 0) or cfg.batch_size for task in tasks}


def task_weights(cfg, tasks: Sequence[str]) -> dict[str, float]:
    """Weights of the tasks' losses in their sum; 1 for a single task or without a setting."""
    if len(tasks) == 1:
        return dict.fromkeys(tasks, 1.0)
    return {task: getattr(cfg, f"{task}_weight", 1.0) for task in tasks}


def build_vocabulary(
    cfg, tasks: Sequence[str] = (), categories: Categories | None = None
) -> Vocabulary:
    """Builds the vocabulary of these tasks.

    Args:
        categories: those of the data, which say how many class tokens there are; without them the
            layout is the official one, with room for 899.
    """
    last = max(categories.names, default=0) if categories else 0
    num_text = TextTokenizer.load(cfg.caption_vocab).size if "captioning" in tasks else 0
    try:
        return Vocabulary.for_classes(last, num_bins=cfg.num_bins, num_text=num_text)
    except ValueError as error:
        raise UserError(f"num_bins={cfg.num_bins} does not fit the vocabulary: {error}") from error


def build_tokenizers(
    cfg, tasks: Sequence[str], vocab: Vocabulary, sources: dict | None = None
) -> dict[str, TaskTokenizer]:
    """The tokenizer of each task.

    Args:
        sources: task -> its training source; without them keypoints are those of COCO's persons.
    """
    out = {}
    for task in tasks:
        source = None if sources is None else sources[task]
        try:
            options = task_settings(cfg, task).tokenizer(source) | sequence_options(cfg, task)
            out[task] = build_tokenizer(task, vocab, **options)
        except ValueError as error:
            raise UserError(f"settings of the tokens: {error}") from error
    return out


def build_model_config(
    cfg, vocab: Vocabulary, task_tokenizers: dict[str, TaskTokenizer]
) -> ModelConfig:
    """The model architecture (`model_config_from_settings`), with enough positions for every task.

    Raises:
        UserError: no such model, or `max_len` is less than a task needs.
    """
    needed = max(tokenizer.max_len for tokenizer in task_tokenizers.values())
    if 0 < cfg.max_len < needed:
        raise UserError(
            f"max_len={cfg.max_len} is less than the {needed} that the tasks need (weights with "
            f"sin_cos positions bring theirs); set max_len={needed}, or fewer objects or points"
        )
    return model_config_from_settings(cfg, vocab, max_len=cfg.max_len or needed)


def model_config_from_settings(cfg, vocab: Vocabulary, *, max_len: int) -> ModelConfig:
    """A `ModelConfig` whose fields have the values of the settings with the same names."""
    mean, std = image_statistics(cfg.encoder)
    names = [f.name for f in fields(ModelConfig) if hasattr(cfg, f.name)]
    values = {name: getattr(cfg, name) for name in names} | {
        "image_size": (cfg.img_size, cfg.img_size),
        "image_mean": cfg.image_mean or mean,
        "image_std": cfg.image_std or std,
        "vocab_size": vocab.size,
        "max_len": max_len,
    }
    try:
        return ModelConfig(**values)
    except ValueError as error:
        raise UserError(f"settings of the model: {error}") from error


def plans_by_length(cfg) -> bool:
    """Whether a new sequence length has extra costs (compilation or planning)."""
    return cfg.compile or pick_device(cfg.device).type == "cuda"  # the attention of cuDNN


def settle_encoder(cfg, *, resumed: bool = False):
    """Replaces an encoder from a folder or the hub by one that needs neither later.

    "local-dir:" and "hf-hub:" become the architecture, its weights, mean and deviation; the file of
    the weights is recorded by its checksum. Settings that name a model of timm stay as they are.

    Args:
        resumed: the weights are those of a checkpoint.

    Raises:
        UserError: files that cannot be read, or that are not those that are wanted.
    """
    starts = not resumed and cfg.init_weights is None
    changes: dict[str, object] = {}
    file = cfg.encoder_weights
    if is_source(cfg.encoder):
        source = read_source(cfg.encoder, with_weights=starts and cfg.pretrained and file is None)
        changes["encoder"] = source.encoder
        changes["image_mean"] = list(cfg.image_mean or source.mean)
        changes["image_std"] = list(cfg.image_std or source.std)
        if source.weights is not None:
            file = source.weights
            changes["encoder_weights"] = str(file)
    if file is not None and starts:
        try:
            digest = file_sha256(file)
        except OSError:
            digest = None  # `check_settings` says what is wrong with the file
        if digest:
            _check_digest(cfg, "encoder_weights", file, digest)
        changes["encoder_weights_sha256"] = digest
    return _changed(cfg, changes)


def settle_init_weights(cfg, *, resumed: bool = False):
    """The settings with the checksum of `init_weights`, and its commit if it comes from the hub.

    Args:
        resumed: the weights are those of a checkpoint.

    Raises:
        UserError: there is no such file, or it is not the one that is wanted.
    """
    if resumed or cfg.init_weights is None:
        return cfg
    digest = file_sha256(find_init_weights(cfg.init_weights))
    _check_digest(cfg, "init_weights", cfg.init_weights, digest)
    changes = {"init_weights_sha256": digest}
    if is_hub_name(cfg.init_weights):
        changes["init_weights"] = import_module("utils.hub").fetch(cfg.init_weights).name
    return _changed(cfg, changes)


def _check_digest(cfg, name: str, file: Path, digest: str) -> None:
    wanted = getattr(cfg, f"{name}_sha256")
    if wanted not in (None, digest):
        raise UserError(
            f"{name}={path_text(file)} has SHA-256 {digest}, not {name}_sha256="
            f"{wanted}; download the file again, or leave that setting out"
        )


def _changed(cfg, changes: dict[str, object]):
    if not changes:
        return cfg
    return snapshot(base_class(cfg), saved=settings_dict(cfg) | changes)


def check_settings(
    cfg, tasks: Sequence[str], world: World, *, resumed: bool = False
) -> torch.device:
    """Refuses settings that conflict with each other, this machine, the weights or the encoder.

    Each setting alone is in its range already (`utils.setting_rules`). Needs no data.

    Args:
        resumed: the weights are those of a checkpoint: `init_weights` is not needed any more.

    Returns:
        the device of this process.

    Raises:
        UserError: settings that cannot work, with what to do instead.
    """
    if complaints := complain_of_pairs(cfg, TRAINING_PAIRS):
        raise UserError("\n".join(complaints))
    if world.is_main:  # who writes
        import_module("train.loggers").check_loggers(cfg.logger)
    device = local_device(pick_device(cfg.device), world)
    if device.type == "cpu" and cfg.amp == "bf16":
        check_bfloat16("amp=bf16", "amp=off", emulate=cfg.emulate_bfloat16)
    if cfg.fsdp and amp_dtype(cfg.amp, device) == torch.float16:
        raise UserError(f"fsdp=true goes with amp=bf16 or amp=off, amp={cfg.amp} is fp16 here")
    try:
        check_optimizer(cfg.optimizer)
    except ValueError as error:
        raise UserError(str(error)) from error
    load_pixel_transforms(cfg.pixel_transform)
    if not resumed and cfg.init_weights is not None:
        file = find_init_weights(cfg.init_weights)
        if file.parent == cfg.init_weights:
            log(f"weights to start from: {file}")
    # Tokens and model, as far as they need no data: keypoints and the number of classes may be
    # others in the file.
    vocab = build_vocabulary(cfg, tasks)
    task_tokenizers = build_tokenizers(cfg, tasks, vocab)
    fixed = {task: one for task, one in task_tokenizers.items() if task not in LENGTH_FROM_DATA}
    config = build_model_config(cfg, vocab, fixed or task_tokenizers)
    check_encoder(config)
    check_loss(cfg.loss, vocab)
    load_metrics(cfg)
    if not resumed and cfg.init_weights is None:
        _check_first_weights(cfg, config)
    if cfg.layer_decay != 1 or cfg.freeze:
        _check_parameters(cfg, config)
    return device


def _check_first_weights(cfg, config: ModelConfig) -> None:
    """Checks that the encoder's weights fit, or fetches those that timm has for it.

    Raises:
        UserError: they do not fit, or cannot be fetched.
    """
    if cfg.encoder_weights is not None:
        build_encoder(config, weights=cfg.encoder_weights)
    elif cfg.pretrained and is_class(config.encoder):
        build_encoder(config, pretrained=True)
    elif cfg.pretrained and config.encoder not in ENCODERS:
        pretrained_file(config.encoder)


def _check_parameters(cfg, config: ModelConfig) -> None:
    """Checks that the parameters are known that shall not learn or whose rates shall differ.

    Raises:
        UserError: they are not.
    """
    with torch.device("meta"):
        model = build_model(config)
    try:
        freeze_parameters(model, cfg.freeze)
        lr_factors(model, encoder=cfg.encoder_lr_factor, layer_decay=cfg.layer_decay)
    except ValueError as error:
        raise UserError(str(error)) from error
