"""Conditions on several settings together, checked as early as the range of each.

`PAIRS` are for all scripts, `TRAINING_PAIRS` for those that train.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.setting_rules import PARTS, SCALED, text_of

OFFICIAL = ("official_vit", "official_resnet", "official_resnet_c")


@dataclass(frozen=True)
class Pair:
    """A condition on several settings."""

    names: tuple[str, ...]
    holds: Callable[..., bool]  # of their values
    advice: str  # what must be, and what to do
    of_shape: bool = False  # of a new model; weights to start from bring a shape of their own


def _ordered(prefix: str) -> Pair:
    names = f"{prefix}min_scale", f"{prefix}max_scale"
    return Pair(names, lambda low, high: low <= high, f"{names[0]} must be at most {names[1]}")


def _needs(name: str, other: str) -> Pair:
    advice = f"{name} needs {other}=FILE; one file alone is data=FILE"
    return Pair((name, other), lambda value, needed: value is None or needed is not None, advice)


def _of_coco(name: str) -> Pair:
    advice = (
        f"{name} goes with dataset=coco and the scripts train_coco_*.py, Pascal VOC in any shape "
        "too; a VOCdevkit for dataset=voc is voc_root"
    )
    return Pair(("dataset", name), lambda name, value: name == "coco" or value is None, advice)


PAIRS = (  # of all scripts
    *map(_ordered, SCALED),
    Pair(
        ("data", "train_json"),
        lambda data, json: data is None or json is None,
        "data names a whole dataset, train_json one part: set one of the two, the other to none",
    ),
    *(_needs(name, f"{name.partition('_')[0]}_json") for name in PARTS if name.endswith("images")),
    *(_needs(name, "train_json") for name in PARTS if name.endswith("json")),
    *map(_of_coco, ("data", "train_json")),
    Pair(
        ("keypoint_official_resampling", "keypoint_suppress_invisible", "top_k"),
        lambda resampling, suppress, top_k: not resampling or (suppress and top_k < 2),
        "keypoint_official_resampling=true needs keypoint_suppress_invisible=true and top_k 0 or 1",
    ),
)
TRAINING_PAIRS = (
    *PAIRS,
    Pair(
        ("fsdp", "amp"),
        lambda fsdp, amp: not fsdp or amp != "fp16",
        "fsdp=true goes with amp=bf16 or amp=off, not with fp16",
    ),
    Pair(
        ("fsdp", "optimizer"),
        lambda fsdp, optimizer: not fsdp or optimizer == "adamw",
        "fsdp=true goes with optimizer=adamw alone",
    ),
    Pair(
        ("fsdp", "ema_decay", "freeze_encoder_steps"),
        lambda fsdp, ema, freeze: not fsdp or not (ema or freeze),
        "fsdp=true goes without ema_decay and freeze_encoder_steps",
    ),
    Pair(
        ("freeze_batch_norm", "pretrained", "init_weights", "encoder_weights"),
        lambda freeze, pretrained, *files: not freeze or pretrained or files != (None, None),
        "freeze_batch_norm=true keeps the statistics of a trained encoder; start from one with "
        "pretrained=true, encoder_weights=FILE or init_weights=FILE",
    ),
    Pair(
        ("encoder_weights", "init_weights"),
        lambda encoder, model: encoder is None or model is None,
        "init_weights brings an encoder of its own; leave out one of the two",
    ),
    Pair(
        ("image_mean", "image_std"),
        lambda mean, std: all(values is None or len(values) == 3 for values in (mean, std)),
        "image_mean and image_std must be three numbers each, of red, green and blue",
    ),
    Pair(
        ("finetune", "init_weights"),
        lambda finetune, weights: not finetune or weights is not None,
        "finetune=true starts from trained weights; name them with --set init_weights=FILE, such "
        "as weights/demo.safetensors",
    ),
    Pair(
        ("dim", "num_heads"),
        lambda dim, heads: dim % heads == 0,
        "dim must be a multiple of num_heads",
        of_shape=True,
    ),
    Pair(
        ("encoder", "encoder_dim", "encoder_heads"),
        lambda encoder, dim, heads: encoder not in OFFICIAL or dim % heads == 0,
        "encoder_dim must be a multiple of encoder_heads",
        of_shape=True,
    ),
    Pair(
        ("encoder", "img_size", "encoder_patch"),
        lambda encoder, size, patch: encoder != "official_vit" or size % patch == 0,
        "img_size must be a multiple of encoder_patch",
        of_shape=True,
    ),
    Pair(
        ("encoder", "resnet_width"),
        lambda encoder, width: encoder not in OFFICIAL or 64 * width % 1 == 0,
        "64 * resnet_width must be a whole number",
        of_shape=True,
    ),
    Pair(
        ("encoder", "encoder_stride"),
        lambda encoder, stride: encoder not in OFFICIAL or stride is None,
        "the official encoders have one stride; use encoder_stride=none",
        of_shape=True,
    ),
    Pair(
        ("encoder", "pretrained", "encoder_weights"),
        lambda encoder, pretrained, file: encoder not in OFFICIAL or not pretrained or file,
        "the official encoders have no pretrained weights of their own; use pretrained=false, and "
        "init_weights=FILE to start from a converted checkpoint",
        of_shape=True,
    ),
)


def complain_of_pairs(cfg, pairs: Sequence[Pair]) -> list[str]:
    """What is wrong with settings together, a line each; alone each is in its range."""
    lines = []
    for pair in pairs:
        values = [getattr(cfg, name) for name in pair.names]
        if not (pair.of_shape and cfg.init_weights is not None) and not pair.holds(*values):
            each = [f"{n}={text_of(v)}" for n, v in zip(pair.names, values, strict=True)]
            lines.append(f"{pair.advice}; got {', '.join(each)}")
    return lines
