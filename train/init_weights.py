"""Initialises a model from weights with other classes, tasks, input size or bins.

Settings follow from the weights too, and those of a fine-tuning from its data. They replace those
of CFG and preset; what a person gives with `--config` and `--set` replaces them.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from dataset.find_dataset import place_of_data
from dataset.tasks import count_samples, open_source
from infer.trained_model import read_meta
from models import ModelConfig, Pix2Seq, build_model, load_model
from models.config import RATES, different_settings
from models.encoder import image_statistics
from models.weights import read_header
from tokenizer.detection import TOKENS_PER_OBJECT
from tokenizer.vocabulary import Vocabulary
from utils.categories import Categories
from utils.cli import base_class, log
from utils.errors import UserError
from utils.files import find_weight_file, path_text

TOKEN_TABLES = ("decoder.token_embedding", "decoder.output_embedding", "decoder.output_bias")
IMAGE_POSITIONS = (
    *("encoder.backbone.pos_embed", "encoder.backbone.model.pos_embed"),
    "encoder.transformer.positions",
    *("projection.positions", "decoder.memory_positions"),
)
FUNCTION = ("decoder_norm", "num_heads")  # other values fit, and compute something else
ENOUGH = 0.5  # share of the model's parameters that must fit
# of a fine-tuning
MOST_OBJECTS = 100  # as in the papers
SPARE_OBJECTS = 1.2  # budget of objects / the most of an image
SAMPLES_SHOWN = 24_000  # in a run, as far as the next two allow it
EPOCHS = (8, 120)  # fewest and most
STEPS = 8  # of an epoch at least, where the images suffice
EVALUATIONS = 12  # in a run
WARMUP = 0.1  # share of the run
SMALL = 20e6  # parameters of a model that learns fast
SMALL_RATES = {"lr": 4e-4, "encoder_lr_factor": 1.0}
LARGE_RATES = {"lr": 3e-5, "encoder_lr_factor": 0.3}  # lr: that of the official fine-tuning
PATIENCE = 5  # evaluations without a better one


def start_settings(load: Callable, tasks: Sequence[str], open_task: Callable | None = None):
    """The settings of a new run; values of `init_weights` and fine-tuning are overridden by others.

    Args:
        load: called as load(inherited=such settings, or None) -> settings.
        open_task: called as open_task(settings, task) -> the images to train on; None = those that
            the settings name.
    """
    cfg = load(inherited=None)
    if cfg.init_weights is None:
        return cfg
    inherited = settings_of_weights(cfg.init_weights)
    cfg = load(inherited=inherited)
    if cfg.finetune:
        picked = _settings_of_tasks(cfg, tasks)
        cfg = load(inherited=inherited | picked)
        picked |= pick_settings(cfg, tasks, open_task or _open)
        cfg = load(inherited=inherited | picked)
        kept = [f"{n}={v}" for n, v in picked.items() if getattr(cfg, n) == v]  # not given by hand
        those = "data and weights" if len(tasks) == 1 else f"data, weights and {len(tasks)} tasks"
        log(f"picked for these {those}: {' '.join(kept)}")
    return cfg


def pick_settings(cfg, tasks: Sequence[str], open_task: Callable) -> dict[str, object]:
    """Chooses settings for these data and weights.

    Args:
        cfg: settings with those of the weights; of what is given there the data, the largest
            batch, `accumulate_steps` and what makes crops of objects count.
        open_task: see `start_settings`.
    """
    picked: dict[str, object] = {}
    counts = []  # samples of each task
    for task in tasks:
        source = open_task(cfg, task)
        counts.append(count_samples(cfg, task, source))
        if task == "detection":
            picked["max_objects"] = pick_budget(source.objects_per_image())
    parts = cfg.accumulate_steps * int(os.environ.get("WORLD_SIZE", 1))
    picked |= pick_schedule(max(counts), cfg.batch_size, fewest=min(counts), parts=parts)
    config, _ = read_header(find_init_weights(cfg.init_weights))
    return picked | (SMALL_RATES if count_parameters(config) < SMALL else LARGE_RATES)


def pick_budget(objects_per_image: np.ndarray) -> int:
    """The object budget: objects of the fullest image and a few more."""
    most = int(objects_per_image.max(initial=1))
    return min(max(most + 2, round(most * SPARE_OBJECTS)), MOST_OBJECTS)


def pick_schedule(
    num_samples: int, batch_size: int, *, fewest: int, parts: int = 1
) -> dict[str, object]:
    """Chooses batch size, epochs, warm-up and evaluations of a run.

    Args:
        num_samples: of the largest task; a sample is an image, or one object in a crop.
        batch_size: the largest that may be.
        fewest: samples of the smallest task, which must fill a step.
        parts: batches of a step, of all processes.
    """
    batch_size = max(min(batch_size, num_samples // parts // STEPS, fewest // parts), 1)
    low, high = EPOCHS
    epochs = min(max(round(SAMPLES_SHOWN / max(num_samples, 1)), low), high)  # 0: refused later
    return {
        "batch_size": batch_size,
        "epochs": epochs,
        "warmup_epochs": round(epochs * WARMUP, 1),
        "eval_every": max(epochs // EVALUATIONS, 1),
        "early_stop_patience": PATIENCE,
    }


def count_parameters(config: ModelConfig) -> int:
    """Number of trainable parameters of an architecture; allocates no memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


def _settings_of_tasks(cfg, tasks: Sequence[str]) -> dict[str, object]:
    """How long answers are and what a crop shows, as the weights of `init_weights` know it."""
    file = find_init_weights(cfg.init_weights)
    config, meta = read_header(file)
    known = read_meta(meta, config, str(file)).tasks  # task -> settings of its tokenizer
    picked = {}
    if "segmentation" in tasks and "segmentation" in known:
        settings = known["segmentation"]
        picked |= {"max_points": settings["max_points"], "seg_crop": settings["crop"] is not None}
        if settings["crop"] is not None:
            picked["seg_crop_pad"] = settings["crop"]
    if "keypoint" in tasks and "keypoint" in known:
        picked["keypoint_crop"] = known["keypoint"]["crop"]
    if "captioning" in tasks and "captioning" in known:
        picked["max_caption_tokens"] = known["captioning"]["max_tokens"]
    return picked


def _open(cfg, task: str):
    """The images of a task to train on; what is wrong with them is said when the run opens them."""
    root, split = place_of_data(cfg, cfg.dataset, "train")
    options = {"classes": cfg.classes or None, "skip_bad": cfg.bad_samples == "skip"}
    return open_source(task, cfg.dataset, root, split, limit=cfg.train_limit or None, **options)


def find_init_weights(path: Path) -> Path:
    """The weight file that `init_weights` names, or the best one of the run folder there.

    Raises:
        UserError: there is none.
    """
    return find_weight_file(path, "train one, or name another with --set init_weights=FILE")


def settings_of_weights(path: Path) -> dict[str, object]:
    """The settings that a weight file decides: model, image size, bins, pieces of captions.

    Not dropout, which belongs to a training. The length of the decoder follows the tasks, except
    with sine and cosine positions: in another length each position has another code.

    Raises:
        UserError: it is no weight file of ours.
    """
    path = find_init_weights(path)
    config, meta = read_header(path)
    record = read_meta(meta, config, str(path))
    left_out = RATES if config.decoder_positions == "sin_cos" else (*RATES, "max_len")
    values = {k: v for k, v in vars(config).items() if k not in left_out}
    if (config.image_mean, config.image_std) == image_statistics(config.encoder):
        values |= {"image_mean": None, "image_std": None}  # they go without saying
    values |= {"num_bins": record.vocab.num_bins, "resize_mode": record.resize_mode}
    height, width = config.image_size
    if height == width:
        values["img_size"] = height
    if "captioning" in record.tasks:
        values["caption_vocab"] = str(path)
    return values


def settings_taken(cfg) -> list[str]:
    """Settings of `init_weights` that differ from the preset, as "name=value"."""
    base = base_class(cfg)
    return [
        f"{name}={value}"
        for name, value in settings_of_weights(cfg.init_weights).items()
        if hasattr(base, name) and str(getattr(cfg, name)) == str(value) != str(getattr(base, name))
    ]


def load_init_weights(cfg, model: Pix2Seq) -> float:
    """Loads what fits of `init_weights` into the model; returns the share of the parameters."""
    source = load_model(cfg.init_weights)
    read_meta(source.meta, source.config, str(cfg.init_weights))  # checked, like the weights
    report = start_from(model, source)
    if "encoder_weights" in source.meta:
        model.meta["encoder_weights"] = source.meta["encoder_weights"]
    name = path_text(cfg.init_weights)
    if taken := settings_taken(cfg):
        log(f"settings as in {name}: {' '.join(taken)}")
    log(report.text(name))
    return report.share


@dataclass(frozen=True)
class StartReport:
    """Report of which tensors of a weight file were loaded, adapted or skipped."""

    taken: list[str]  # as they are
    adapted: dict[str, str]  # name -> what was changed so that they fit
    missing: list[str]  # the model has them, the file has not: they start anew
    unexpected: list[str]  # the file has them, the model has not
    mismatched: list[str]  # of another shape: they start anew
    share: float  # of the model's parameters that were taken or adapted

    def text(self, path: str | Path) -> str:
        """The report as lines for the terminal."""
        lines = [f"start from {path}: {len(self.taken)} tensors taken, {self.share:.0%} of all"]
        lines += [f"  {name}: {change}" for name, change in self.adapted.items()]
        for kind in ("missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                lines.append(f"  {kind}: {', '.join(names[:5])}{more}")
        return "\n".join(lines)


@torch.no_grad()
def start_from(model: Pix2Seq, source: Pix2Seq) -> StartReport:
    """Loads every tensor of `source` that fits `model`, remapping token rows by class name and bin.

    A class takes the row of the class of the same name, else of the same id (as the official
    fine-tuning does). A bin takes the row of the nearest bin. Text pieces keep their rows if the
    text tokenizer is the same. Positions of image tokens are interpolated; positions of a sequence
    are shared as far as both models have them.

    Args:
        model, source: with their `meta` (vocabulary, categories, tasks).

    Raises:
        UserError: less than half of the parameters fit, or they fit but mean something else.
    """
    _check_function(model, source)

    # Load what fits, tensor by tensor.
    old, new = source.state_dict(), model.state_dict()
    rows = _token_rows(model.meta, source.meta)
    taken, adapted, mismatched = [], {}, []
    for name in (name for name in new if name in old):
        change = _load(name, new[name], old[name], rows, (model, source))
        if change is None:
            mismatched.append(name)
        elif change:
            adapted[name] = change
        else:
            taken.append(name)

    # Report; refuse a source of which too little fits.
    fitting = sum(new[name].numel() for name in (*taken, *adapted))
    share = fitting / sum(value.numel() for value in new.values())
    report = StartReport(
        taken,
        adapted,
        missing=[name for name in new if name not in old],
        unexpected=[name for name in old if name not in new],
        mismatched=mismatched,
        share=share,
    )
    if share < ENOUGH:
        changes = different_settings(source.config, model.config)
        raise UserError(
            f"init_weights is a different model: only {share:.0%} of the weights of this model fit "
            f"({', '.join(changes)}); leave these settings out of --set and --config: then the "
            "values of the file are used"
        )
    return report


def _check_function(model: Pix2Seq, source: Pix2Seq) -> None:
    """Refuses weights that would fit but compute something else."""
    for name in FUNCTION:
        theirs, ours = getattr(source.config, name), getattr(model.config, name)
        if theirs != ours:
            raise UserError(
                f"init_weights is a different model: its {name} is {theirs}, here it is {ours}"
                + (
                    "; leave this setting out"
                    if name == "num_heads"
                    else "; weights of a port cannot be trained further"
                )  # fmt: skip
            )


def _load(
    name: str, new: Tensor, old: Tensor, rows: Tensor, models: tuple[Pix2Seq, Pix2Seq]
) -> str | None:
    """Copies the tensor `old` into `new`, in place.

    Args:
        name: of the tensor in the state dict.
        rows: see `_token_rows`.
        models: the new one and the old one.

    Returns:
        "" for a plain copy, else what was adapted; None: it does not fit.
    """
    if name in TOKEN_TABLES and old.shape[1:] == new.shape[1:]:
        changed = _copy_rows(new, old, rows)
        return f"{changed} of {len(rows)} rows are new or moved" if changed else ""
    if old.shape == new.shape:
        new.copy_(old)
        return ""
    if name in IMAGE_POSITIONS and old.shape[-1] == new.shape[-1]:
        grid, old_grid = (model.encoder.grid for model in models)
        new.copy_(_resample(old, old_grid, grid))
        return f"interpolated from {old_grid} to {grid} tokens"
    if name == "decoder.positions" and old.shape[1] == new.shape[1]:
        shared = min(len(old), len(new))
        new[:shared] = old[:shared]
        text = f"the first {shared} of {len(new)}"
        if len(new) > len(old) and (last := _last_position(models[1].meta)) >= 0:
            further = torch.arange(min(last + 1, len(old)), len(new))
            new[further] = old[last - (last - further) % TOKENS_PER_OBJECT]
            text = f"the first {len(old)} of {len(new)}, further objects as the last one"
        return text
    return None


def _last_position(meta: dict) -> int:
    """The last one from which a token of an object was predicted; -1 without detection."""
    most = meta["tasks"].get("detection", {}).get("max_objects", 0)
    return TOKENS_PER_OBJECT * most - 1


def _token_rows(new_meta: dict, old_meta: dict) -> Tensor:
    """(V,) row of the old token tables for each row of the new ones; -1 where there is none."""
    new, old = (Vocabulary.from_json(meta["vocabulary"]) for meta in (new_meta, old_meta))
    rows = torch.full((new.size,), -1)
    _pair_unused(rows, new.unused, old.unused)
    for special in ("pad", "fake", "separator", "invisible", "bos", "eos"):
        if None not in (getattr(new, special), getattr(old, special)):
            rows[getattr(new, special)] = getattr(old, special)
    for task, prompt in new.prompts.items():
        rows[prompt] = old.prompts.get(task, -1)
    (first, end), (old_first, old_end) = new.class_range, old.class_range
    shared = min(end - first, old_end - old_first)
    rows[first : first + shared] = torch.arange(old_first, old_first + shared)
    names, old_names = (Categories.from_json(m["categories"]).names for m in (new_meta, old_meta))
    old_ids = {name: class_id for class_id, name in old_names.items()}
    for class_id, name in names.items():
        if name in old_ids:
            rows[first + class_id - new.first_label] = old_first + old_ids[name] - old.first_label
    bins = torch.arange(new.num_bins) * ((old.num_bins - 1) / (new.num_bins - 1))
    rows[slice(*new.coord_range)] = old.coord0 + bins.round().long()
    if _text_of(new_meta) is not None and _text_of(new_meta) == _text_of(old_meta):
        rows[new.text0 :] = torch.arange(old.text0, old.text0 + new.num_text)
    return rows


def _pair_unused(rows: Tensor, new: np.ndarray, old: np.ndarray) -> None:
    """Gives an id that means nothing the row of one that meant nothing, its own if it can.

    Such rows have learned to be improbable; new ones would take probability from all others.

    Args:
        rows: (V,) old row of each new id; changed in place.
        new, old: (V,) and (V of the old vocabulary,) bool, `Vocabulary.unused`.
    """
    ids, spare = np.flatnonzero(new), np.flatnonzero(old)
    if len(spare):
        own = np.isin(ids, spare)
        rows[torch.from_numpy(ids)] = torch.from_numpy(np.where(own, ids, spare[-1]))


def _text_of(meta: dict) -> object:
    """The text tokenizer among the settings of captioning; None without one."""
    return meta["tasks"].get("captioning", {}).get("text")


def _copy_rows(new: Tensor, old: Tensor, rows: Tensor) -> int:
    """Fills the rows of `new` that have a counterpart; counts those that are no plain copy."""
    known = rows >= 0
    new[known] = old[rows[known]]
    return int((rows != torch.arange(len(rows))).sum())


def _resample(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(S, D) or (1, P + S, D) positions of image tokens, P prefix tokens, for another grid."""
    batched = table if table.ndim == 3 else table[None]
    prefix = batched.shape[1] - math.prod(old)
    out = resample_abs_pos_embed(batched, list(new), list(old), prefix)
    return out if table.ndim == 3 else out[0]
