"""The range of every setting of config.py, checked before anything that takes long is imported.

`RULES` has a rule for each setting. `PAIRS` are conditions on several settings. Options of scripts,
such as `--score-threshold`, obey the rule of a setting (`OPTIONS`).
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import IMPORT_PATH
from utils.files import shown

HUGE = 10**9  # no count or weight is larger: a slip of the keyboard
SIZE, LAYERS = 1 << 20, 512  # widths and depths of models; weight files have the same limits
NUMBER = r"\d*\.?\d+(?:e-?\d+)?"


@dataclass(frozen=True)
class Number:
    """A finite number between two limits; a limit of `HUGE` goes without saying."""

    least: float = 0
    most: float = HUGE
    above: bool = False  # `least` itself is not in the range
    below: bool = False  # `most` itself is not
    advice: str = ""  # what to do instead

    @property
    def range(self) -> str:
        low = [f"{'above' if self.above else 'at least'} {self.least}"] * (self.least > -HUGE)
        high = [f"{'below' if self.below else 'at most'} {self.most}"] * (self.most != HUGE)
        return " and ".join(low + high) or "a number"

    def problem(self, value: float) -> str:
        """What the value should be; empty if it is."""
        if value > HUGE >= self.most:
            return f"at most {self.most}"
        # comparisons with nan are false: it is in no range
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return "" if low and high else self.range


@dataclass(frozen=True)
class OneOf:
    """One of several words or numbers."""

    values: tuple

    @property
    def range(self) -> str:
        texts = [str(value).lower() for value in self.values]
        return " or ".join(texts) if len(texts) == 2 else f"one of {', '.join(texts)}"

    def problem(self, value: object) -> str:
        return "" if value in self.values else self.range


@dataclass(frozen=True)
class Text:
    """Text of a pattern."""

    range: str = "some text"
    pattern: str = r".*\S.*"
    limits: tuple[tuple[str, float, float], ...] = ()  # word -> range of the number after its "@"

    def problem(self, value: object) -> str:
        value = str(value)
        if not re.fullmatch(self.pattern, value) or "\0" in value:
            return self.range
        word, _, number = value.partition("@")
        for name, least, most in self.limits:
            if word == name and number and not least <= float(number) <= most:
                return self.range
        return ""


@dataclass(frozen=True)
class Each:
    """A tuple whose values all obey one rule."""

    rule: Number | Text

    @property
    def range(self) -> str:
        return f"values, each {self.rule.range}"

    def problem(self, value: tuple) -> str:
        return next((wanted for one in value if (wanted := self.rule.problem(one))), "")


@dataclass(frozen=True)
class Patterns:
    """A tuple of regular expressions."""

    range: str = "regular expressions"

    def problem(self, value: tuple) -> str:
        try:
            for pattern in value:
                re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            return self.range
        return ""


PATH, FLAG = Text("a path", r"(?s)[^\0]*"), OneOf((True, False))
COUNT, COUNT_OR_0, WORKERS = Number(1), Number(0), Number(0, 1024)
WIDTH, DEPTH = Number(1, SIZE), Number(1, LAYERS)
SHARE, DROPOUT = Number(0, 1), Number(0, 1, below=True)
WEIGHT, SCALE, MARGIN = Number(0), Number(0, 100, above=True), Number(0, 100)
TASK_WEIGHT = Number(0, above=True, advice="leave the task out with --task")
TEMPERATURE = Number(0, above=True, advice="greedy is top_k=1")
POSITIONS = OneOf(("sin_cos", "learned"))
VOC_SETS = Text(
    "YEAR:SPLIT, several with commas, such as 2007:trainval,2012:trainval",
    r"\s*[^\s,:]+\s*:\s*[^\s,:][^,:]*(,\s*[^\s,:]+\s*:\s*[^\s,:][^,:]*)*",
)
LOSS = Text(
    "xent, focal or logistic, one with a number that fits it such as xent@0.1, focal@2, "
    "logistic@0.1 or hl_gauss@0.75, or package.module:function",
    rf"(xent|focal|logistic)(@{NUMBER})?|hl_gauss@{NUMBER}|{IMPORT_PATH}",
    (("xent", 0, 1), ("focal", 0, HUGE), ("logistic", 0, 0.5), ("hl_gauss", 1e-3, 1e3)),
)
SCHEDULE = Text(
    "linear, cosine, constant, or one with a number such as cosine@0.8 or exp@0.1",
    rf"linear|constant|cosine(@{NUMBER})?|exp@{NUMBER}",
    (("cosine", 0, 1), ("exp", 1e-12, HUGE)),
)
DEVICE = Text("auto, cpu, cuda or cuda:N", r"auto|cpu|cuda(:\d{1,3})?")

SHA256 = ("encoder_weights_sha256", "init_weights_sha256")
PARTS = ("train_images", "val_json", "val_images", "test_json", "test_images")
PATHS = (
    *("coco_root", "voc_root", "coco_detection_weights", "voc_detection_weights", "init_weights"),
    *("coco_segmentation_weights", "coco_captioning_weights", "coco_keypoint_weights"),
    *("coco_multi_task_weights", "demo_weights", "encoder_weights", "caption_vocab", "runs_dir"),
    *("data", "train_json", *PARTS),
)
FLAGS = (
    *("augment", "diagonal_crops", "pretrained", "encoder_cls_token", "smooth_init"),
    *("tie_embeddings", "output_bias", "noise_objects", "seg_cut_outlines", "seg_random_start"),
    *("seg_first_end_only", "seg_weigh_absent", "seg_crop", "seg_grammar"),
    *("keypoint_mask_inputs", "keypoint_suppress_invisible", "keypoint_official_resampling"),
    *("whole_epochs", "decay_all", "freeze_batch_norm", "recompute_activations", "fsdp"),
    *("compile", "emulate_bfloat16", "encoder_int8", "keep_empty", "finetune", "eval_first"),
)
TASK_NAMES = ("detection", "segmentation", "keypoint", "captioning")
SCALED = ("", "seg_", "keypoint_", "caption_")  # tasks, as the settings of their scales begin

RULES: dict[str, object] = {
    **dict.fromkeys(PATHS, PATH),
    **dict.fromkeys(FLAGS, FLAG),
    # data
    "dataset": OneOf(("coco", "voc")),
    **dict.fromkeys(("voc_sets", "voc_eval_sets"), VOC_SETS),
    "val_share": Number(0, 1, above=True, below=True),
    "classes": Each(Text("a name")),
    **dict.fromkeys(("train_limit", "eval_limit"), COUNT_OR_0),
    "eval_split": OneOf(("val", "train")),
    "repeat_threshold": SHARE,
    "bad_samples": OneOf(("refuse", "skip")),
    "num_workers": WORKERS,
    **dict.fromkeys(("prefetch_batches", "projection_mlp_ratio"), Number(1, 1024)),
    # augmentation
    **{f"{prefix}{name}": SCALE for prefix in SCALED for name in ("min_scale", "max_scale")},
    "flip_prob": SHARE,
    "color_jitter": Number(0, 10),
    "pixel_transform": Text("the path of a file, or empty", r"[^\0]*"),
    # model
    "encoder": Text("the name of an encoder", r"\S+|local-dir:.*\S"),
    **dict.fromkeys(SHA256, Text("64 hexadecimal digits", r"[0-9a-f]{64}")),
    "image_mean": Each(Number(-HUGE)),
    "image_std": Each(Number(0, above=True)),
    "encoder_stride": Number(1, 4096),
    "img_size": Number(1, 16384),
    "resize_mode": OneOf(("letterbox", "stretch")),
    **dict.fromkeys(("encoder_dim", "encoder_heads", "encoder_mlp_dim"), WIDTH),
    "encoder_layers": DEPTH,
    "encoder_patch": Number(1, 16384),
    **dict.fromkeys(("encoder_positions", "projection_positions"), POSITIONS),
    "resnet_depth": OneOf((50, 101, 152, 200)),
    "resnet_width": Number(0, 64, above=True),
    "projection": OneOf(("linear", "linear_p", "mlp")),
    **dict.fromkeys(("dim", "num_heads", "mlp_dim"), WIDTH),
    "num_layers": DEPTH,
    "max_len": Number(0, SIZE),
    "decoder_positions": OneOf(("learned", "sin_cos")),
    **dict.fromkeys(("drop_path", "drop_units", "drop_attention"), DROPOUT),
    "num_bins": Number(2, SIZE),
    # every task
    **{f"{task}_weight": TASK_WEIGHT for task in TASK_NAMES},
    **{f"{task}_batch_size": COUNT_OR_0 for task in TASK_NAMES},
    **{f"{task}top_p": SHARE for task in SCALED},
    # detection
    "max_objects": Number(1, SIZE),
    "class_corruption": OneOf(
        ("none", "rand_cls", "real_n_fake_cls", "rand_n_fake_cls", "real_n_rand_n_fake_cls")
    ),
    **dict.fromkeys(("noise_weight", "eos_weight"), WEIGHT),
    "top_k": COUNT_OR_0,
    "temperature": TEMPERATURE,
    # segmentation
    "max_points": Number(3, SIZE),
    "seg_max_objects": Number(1, SIZE),
    "seg_eos_weight": WEIGHT,
    "seg_crop_pad": MARGIN,
    "seg_samples": Number(1, 4096),
    **dict.fromkeys(("seg_agree", "eval_seg_agree"), SHARE),
    "seg_threshold": Number(0, 1, above=True),
    # keypoints
    "keypoint_crop": MARGIN,
    "keypoint_invisible_weight": WEIGHT,
    "keypoint_score_weight": SHARE,
    "keypoint_flip_pairs": Each(
        Text("LEFT:RIGHT, the names of two points", r"[^:]*\S[^:]*:[^:]*\S[^:]*")
    ),
    "keypoint_sigmas": Each(Number(0, 100, above=True)),
    # captioning
    "max_caption_tokens": Number(2, SIZE),
    "captions_per_image": Number(1, 4096),
    "caption_drop": DROPOUT,
    **dict.fromkeys(("caption_end_weight", "caption_pad_weight"), WEIGHT),
    "caption_beams": Number(1, 4096),
    "caption_top_k": COUNT_OR_0,
    "caption_temperature": TEMPERATURE,
    "caption_length_penalty": Number(0, 100),
    # training
    **dict.fromkeys(("epochs", "batch_size", "accumulate_steps", "eval_every"), COUNT),
    **dict.fromkeys(("max_nonfinite", "num_lengths", "keep_checkpoints", "log_every"), COUNT),
    **dict.fromkeys(("max_steps", "warmup_steps", "tail_steps", "save_steps"), COUNT_OR_0),
    **dict.fromkeys(("freeze_encoder_steps", "likelihood_limit"), COUNT_OR_0),
    "early_stop_patience": COUNT_OR_0,
    "device": DEVICE,
    "logger": Text(
        "none, or some of tensorboard,wandb,trackio", r"none|\b(,?\b(tensorboard|wandb|trackio))+"
    ),
    "matmul_precision": OneOf(("highest", "high", "medium")),
    "seed": Number(0, 2**32 - 1),
    "metrics": Each(Text("package.module:function", IMPORT_PATH)),
    "max_minutes": Number(0),
    "loss": LOSS,
    "optimizer": Text("the name of an optimiser", r"\S+"),
    "lr": Number(0, 10**6),
    "lr_scaling": OneOf(("none", "linear", "sqrt")),
    "lr_schedule": SCHEDULE,
    "warmup_epochs": Number(0),
    "end_lr_factor": SHARE,
    "weight_decay": Number(0, 10**6),
    "decay_exclude": Patterns(),
    "betas": Each(DROPOUT),
    "encoder_lr_factor": Number(0, 10**6, above=True),
    "layer_decay": Number(0, 1, above=True),
    "freeze": Patterns(),
    "clip_grad": Number(-HUGE),
    "amp": OneOf(("auto", "off", "bf16", "fp16")),
    "save_minutes": Number(0),
    "ema_decay": DROPOUT,
    # evaluation and inference
    "eval_batch_size": COUNT,
    "infer_dtype": OneOf(("float32", "bfloat16", "int8")),
    "decode_mode": OneOf(("auto", "plain", "native", "static", "compiled")),
    **dict.fromkeys(("score_threshold", "stop_score"), SHARE),
    **dict.fromkeys(("stop_objects", "eval_stop_objects"), COUNT_OR_0),
}

# Options of scripts -> the setting whose rule they obey, or a rule of their own.
OPTIONS: dict[str, object] = {
    **{name: name for name in ("dataset", "device", "score_threshold", "max_objects")},
    "num_samples": "seg_samples",
    "num_captions": "caption_beams",
    "batch_size": "eval_batch_size",
    "vocab_size": Number(8, SIZE),
    "utilisation": Number(0, 1, above=True),
    "port": Number(1, 65535),
    **dict.fromkeys(("num_images", "stride", "max_frames", "max_upload"), Number(1)),
}
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


def _goes_with(flag: str, name: str, value: str) -> Pair:
    advice = f"{flag}=true goes with {name}={value} alone"
    return Pair((flag, name), lambda on, got: not on or got == value, advice)


PAIRS = (  # of all scripts
    *map(_ordered, SCALED),
    Pair(
        ("dataset", "data", "train_json", *PARTS),
        lambda name, data, train, *parts: (
            (name == "coco" or not (data or train))
            and (not any(parts) if train is None else data is None)
        ),
        "set data=FOLDER or train_json=FILE, not both, with dataset=coco (train_coco_*.py); "
        f"{', '.join(PARTS)} go with train_json alone",
    ),
    Pair(
        ("keypoint_official_resampling", "keypoint_suppress_invisible", "top_k"),
        lambda resampling, suppress, top_k: not resampling or (suppress and top_k < 2),
        "keypoint_official_resampling=true needs keypoint_suppress_invisible=true and top_k 0 or 1",
    ),
    _goes_with("encoder_int8", "infer_dtype", "int8"),
)
TRAINING_PAIRS = (
    *PAIRS,
    Pair(
        ("fsdp", "amp"),
        lambda fsdp, amp: not fsdp or amp != "fp16",
        "fsdp=true goes with amp=bf16 or amp=off, not with fp16",
    ),
    _goes_with("fsdp", "optimizer", "adamw"),
    Pair(
        ("fsdp", "ema_decay", "freeze_encoder_steps"),
        lambda fsdp, ema, freeze: not fsdp or not (ema or freeze),
        "fsdp=true does not work with ema_decay or freeze_encoder_steps",
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
        ("finetune", "init_weights"),
        lambda finetune, weights: not finetune or weights is not None,
        "preset finetune needs --set init_weights=FILE, such as weights/demo.safetensors",
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


def complain(name: str, value: object, rule: object = None) -> str:
    """What is wrong with the value of a setting, on one line; empty if nothing is.

    Args:
        rule: None = that of the setting.
    """
    rule = RULES.get(name) if rule is None else rule
    wanted = rule.problem(value) if rule is not None and value is not None else ""
    advice = getattr(rule, "advice", "")
    return f"{name} must be {wanted}, got {_text(value)}{advice and f'; {advice}'}" * bool(wanted)


def complain_of_options(options: Mapping[str, object]) -> list[str]:
    """What is wrong with the options of a script, a line each.

    Args:
        options: name as argparse keeps it -> value, None if it was left out.
    """
    lines = []
    for name, rule in OPTIONS.items():
        rule = RULES[rule] if isinstance(rule, str) else rule
        lines.append(complain(f"--{name.replace('_', '-')}", options.get(name), rule))
    return [line for line in lines if line]


def complain_of_pairs(cfg, pairs: Sequence[Pair]) -> list[str]:
    """What is wrong with settings together, a line each; alone each is in its range."""
    lines = []
    for pair in pairs:
        got = {name: getattr(cfg, name) for name in pair.names}
        if not (pair.of_shape and cfg.init_weights is not None) and not pair.holds(*got.values()):
            each = [f"{n}={_text(v)}" for n, v in got.items() if v is not None]
            # one value alone is what the advice names already
            lines.append(pair.advice + f"; got {', '.join(each)}" * (len(each) > 1))
    return lines


def _text(value: object) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return shown(str(value) if isinstance(value, Path) else value)


def describe(base: type) -> dict[str, tuple[object, str, str]]:
    """Name of a setting -> its default, its range, and the sentence that says what it is.

    Args:
        base: the CFG class; the sentence is the comment above the setting and behind it.
    """
    sentences, above = {}, []
    for line in map(str.strip, inspect.getsource(base).splitlines()):
        if line.startswith("#"):
            above = [] if "----" in line else [*above, line.lstrip("# ")]
            continue
        if setting := re.match(r"(\w+): .* = ", line):
            sentences[setting[1]] = " ".join([*above, line.partition("  # ")[2]]).strip()
        above = []
    return {n: (getattr(base, n), RULES[n].range, text) for n, text in sentences.items()}
