"""Starting a model from the weights of another: other classes, tasks, input size or bins."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from infer.trained_model import read_meta
from models import Pix2Seq
from models.config import RATES, different_settings
from models.encoder import image_statistics
from models.weights import read_header
from tokenizer.vocabulary import Vocabulary
from utils.categories import Categories
from utils.errors import UserError
from utils.files import find_weight_file

TOKEN_TABLES = ("decoder.token_embedding", "decoder.output_embedding", "decoder.output_bias")
IMAGE_POSITIONS = (
    *("encoder.backbone.pos_embed", "encoder.transformer.positions"),
    *("projection.positions", "decoder.memory_positions"),
)
FUNCTION = ("decoder_norm", "num_heads")  # other values fit, and compute something else
ENOUGH = 0.5  # share of the model's parameters that must fit


def start_settings(load: Callable):
    """The settings of a new run: what the file of `init_weights` is comes before CFG and preset.

    Args:
        load: called as load(inherited=settings of the file, or None) -> settings.
    """
    cfg = load(inherited=None)
    if cfg.init_weights is None:
        return cfg
    return load(inherited=settings_of_weights(cfg.init_weights))


def find_init_weights(path: Path) -> Path:
    """The weight file that `init_weights` names, or the best one of the run folder there.

    Raises:
        UserError: there is none.
    """
    return find_weight_file(path, "train one, or name another with --set init_weights=FILE")


def settings_of_weights(path: Path) -> dict[str, object]:
    """The settings that a weight file decides: model, image size, bins, pieces of captions.

    Not dropout, which belongs to a training, and not the length of the decoder, which follows the
    tasks.

    Raises:
        UserError: it is no weight file of ours.
    """
    path = find_init_weights(path)
    config, meta = read_header(path)
    record = read_meta(meta, config, str(path))
    values = {k: v for k, v in vars(config).items() if k not in (*RATES, "max_len")}
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
    """Settings that are as `init_weights` has them and as the preset has not, as "name=value"."""
    base = type(cfg).__mro__[1]  # `snapshot` makes a subclass
    return [
        f"{name}={value}"
        for name, value in settings_of_weights(cfg.init_weights).items()
        if hasattr(base, name) and str(getattr(cfg, name)) == str(value) != str(getattr(base, name))
    ]


@dataclass(frozen=True)
class StartReport:
    """What became of the tensors of a weight file."""

    taken: list[str]  # as they are
    adapted: dict[str, str]  # name -> what was changed so that they fit
    missing: list[str]  # the model has them, the file has not: they start anew
    unexpected: list[str]  # the file has them, the model has not
    mismatched: list[str]  # of another shape: they start anew
    share: float  # of the model's parameters that were taken or adapted

    def text(self, path: str | Path) -> str:
        """Lines for the person at the terminal."""
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
            f"init_weights is another model: only {share:.0%} of this one's weights fit "
            f"({', '.join(changes)}); leave these settings out of --set and --config, and they are "
            "those of the file"
        )
    return report


def _check_function(model: Pix2Seq, source: Pix2Seq) -> None:
    """Refuses weights that would fit but compute something else."""
    for name in FUNCTION:
        theirs, ours = getattr(source.config, name), getattr(model.config, name)
        if theirs != ours:
            raise UserError(
                f"init_weights is another model: its {name} is {theirs}, here it is {ours}"
                + ("; leave it out" if name == "num_heads" else ": a port's cannot be trained on")
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
        return f"the first {shared} of {len(new)}"
    return None


def _token_rows(new_meta: dict, old_meta: dict) -> Tensor:
    """(V,) row of the old token tables for each row of the new ones; -1 where there is none."""
    new, old = (Vocabulary.from_json(meta["vocabulary"]) for meta in (new_meta, old_meta))
    rows = torch.arange(new.size)  # ids that mean nothing keep their row
    rows[min(new.text0, old.text0) :] = -1
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
