"""Optimiser and learning rate of the official recipe (`model_utils.py`).

Learning rates may differ within a model: a pretrained encoder learns slower, its first layers
slowest. The encoder may also wait before it learns. A moving average of the weights is often better
than the weights themselves.
"""

import difflib
import inspect
import math
import re
from collections.abc import Mapping, Sequence

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import Pix2Seq
from utils.errors import UserError

EPS = 1e-8
NO_KERNELS = ("embedding", "positions", "cls_token")  # matrices that are no layer's kernel
BEHIND_BLOCKS = ("norm", "fc_norm", "head")  # which some encoders count as a layer of its own
WARMUP_POWER = 0.75  # decay of early steps: 1 - step ** -0.75, timm's value for runs of our length


def base_lr(lr: float, batch_size: int, scaling: str) -> float:
    """The rate after the warm-up.

    Args:
        scaling: "none"; "linear": `lr` is meant for 256 images a step; "sqrt": for one image.
    """
    factors = {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}
    if scaling not in factors:
        raise ValueError(f"lr_scaling must be one of {', '.join(factors)}, got {scaling!r}")
    return lr * factors[scaling]


def count_steps(
    num_images: int, batch_size: int, *, epochs: float, warmup_epochs: float
) -> tuple[int, int]:
    """Total and warm-up steps as the official code counts them: epochs can be incomplete."""
    total = int(num_images * epochs // batch_size) + 1
    return total, round(warmup_epochs * num_images // batch_size)


def lr_factor(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    end_factor: float,
    schedule: str,
    tail_steps: int = 0,
) -> float:
    """Learning rate of update `step` (from 0) divided by the base rate.

    Linear warm-up from 0 (so the first update has rate 0), then decay over the remaining steps.

    Args:
        schedule: "linear" and "cosine" decay to `end_factor`; "cosine@R" takes the first share R
            of the cosine; "exp@R" decays to R, and further after the end; "constant".
        tail_steps: steps at the end for which the rate stays as it is; that of "exp@R" goes on to
            fall, as officially.
    """
    # Warm-up.
    shape, parameter = parse_schedule(schedule)
    if step < warmup_steps:
        return step / warmup_steps

    # Decay: how far the run has come since, from 0 to 1.
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps - tail_steps)
    if shape == "exp":
        return parameter**progress
    if shape == "constant":
        return 1.0
    if shape == "cosine":
        left = (1 + math.cos(math.pi * min(1.0, progress * parameter))) / 2
    else:
        left = 1 - min(1.0, progress)
    return end_factor + (1 - end_factor) * left


def build_scheduler(optimizer: torch.optim.Optimizer, **shape) -> torch.optim.lr_scheduler.LambdaLR:
    """A scheduler that applies `lr_factor`, with the arguments `shape`, to every group.

    Raises:
        UserError: the tail leaves no step to lower the learning rate.
    """
    total, warmup, tail = (shape.get(f"{name}_steps", 0) for name in ("total", "warmup", "tail"))
    falls = parse_schedule(shape["schedule"])[0] in ("linear", "cosine")
    if falls and 0 < total - warmup <= tail:
        raise UserError(
            f"tail_steps={tail} leaves no step to lower the learning rate: the run has {total}, "
            f"{warmup} of them warm-up; set tail_steps to less than {total - warmup}"
        )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, **shape))


def parse_schedule(text: str) -> tuple[str, float]:
    """Shape and parameter (1 without one) of a learning rate schedule.

    Raises:
        ValueError: there is no such schedule.
    """
    number = r"(\d*\.?\d+(?:e-?\d+)?)"
    found = re.fullmatch(rf"(linear|constant)|(cosine)(?:@{number})?|(exp)@{number}", text)
    try:
        shape, parameter = found[1] or found[2] or found[4], float(found[3] or found[5] or 1)
    except (TypeError, ValueError):
        raise ValueError(
            "lr_schedule must be linear, cosine, constant, or one with a number such as "
            f"cosine@0.8 or exp@0.1, got {text!r}"
        ) from None
    return shape, parameter


def optimizer_names() -> list[str]:
    """The optimisers of timm that need neither another package nor second derivatives."""
    infos = {name: get_optimizer_info(name) for name in list_optimizers()}
    return [
        name
        for name, info in infos.items()
        if not isinstance(info.opt_class, str)  # the name of a class in another package
        and not info.second_order
    ]


def check_optimizer(name: str) -> None:
    """Raises ValueError for a name that is not among `optimizer_names`."""
    names = optimizer_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or ["adamw", "lamb", "sgd"]
        raise ValueError(
            f"optimizer must be one of timm's such as {', '.join(near)}, got {name!r}; the default "
            "is adamw"
        )


def build_optimizer(
    model: nn.Module,
    name: str = "adamw",
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    decay_all: bool = True,
    decay_exclude: Sequence[str] = (),
    factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimiser with this name; "adamw" and "lamb" step exactly as in the official code.

    Args:
        name: one of `optimizer_names`; what `lr`, `weight_decay` and `betas` do not say is timm's
            default. An optimiser of matrices such as "muon" moves embeddings as Adam does.
        betas: of optimisers that have two.
        decay_all: True is what the official optimiser does (biases, norms and embeddings decay
            too); False spares every parameter of fewer than two dimensions.
        decay_exclude: regular expressions; a parameter in whose name one is found is spared. Those
            of `NO_KERNELS` and decay_all=False are what the official "adamw_legacy" does. LAMB does
            not scale the rate of what is spared.
        factors: name of a parameter -> factor of its learning rate; 1 if not there.
    """

    def decays(name: str, parameter: nn.Parameter) -> bool:
        excluded = any(re.search(pattern, name) for pattern in decay_exclude)
        return not excluded and (decay_all or parameter.ndim > 1)

    of_matrices = name.endswith("muon")
    groups = {}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_kernel = of_matrices and any(word in path for word in NO_KERNELS)
            key = (factors or {}).get(path, 1.0), decays(path, parameter), no_kernel
            groups.setdefault(key, []).append(parameter)
    # first the rate that is logged: the whole one; in it what decays
    order = sorted(groups, key=lambda key: (key[0] != 1, -key[0], not key[1], key[2]))
    rows = [
        {
            "params": groups[factor, decay, no_kernel],
            "lr": factor * lr,
            "weight_decay": weight_decay if decay else 0.0,
            **({"use_fallback": no_kernel} if of_matrices else {}),
        }
        for factor, decay, no_kernel in order
    ]
    if name != "adamw":
        options = {"lr": lr, "weight_decay": weight_decay, **_timm_options(name, betas)}
        return create_optimizer_v2(rows, name, **options)
    optimizer = torch.optim.AdamW(
        rows, lr=lr, betas=betas, eps=EPS, weight_decay=weight_decay, fused=True
    )
    optimizer.register_step_pre_hook(_keep_eps_uncorrected)
    return optimizer


def _timm_options(name: str, betas: tuple[float, float]) -> dict:
    """Arguments of a timm optimiser besides learning rate and weight decay."""
    info, options = get_optimizer_info(name), {}
    taken = inspect.signature(info.opt_class).parameters
    has_two = info.has_betas and info.num_betas == 2
    if has_two and taken["betas"].default is not None:  # None: without a momentum by default
        options["betas"] = betas
    if "max_grad_norm" in taken:  # `clip_grad` says that
        options["max_grad_norm"] = None
    if name == "lamb":
        options["eps"] = EPS
    return options


def _keep_eps_uncorrected(optimizer: torch.optim.Optimizer, *_) -> None:
    """Keras adds eps to the running mean of squares before the bias correction, torch after it.

    It shows in the first steps, where gradients are near eps.
    """
    for group in optimizer.param_groups:
        if all(parameter.grad is None for parameter in group["params"]):
            continue  # frozen: torch skips it too
        group["updates"] = group.get("updates", 0) + 1
        group["eps"] = EPS / math.sqrt(1 - group["betas"][1] ** group["updates"])


def guarded_step(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    grad_norm: Tensor,
    *,
    sharded: bool = False,
) -> None:
    """One step of the optimiser, or none where the gradient is not finite.

    AdamW is fused and decides on the device. The others wait for the norm, which costs nothing on a
    CPU.

    Args:
        scaler: of fp16; it has unscaled the gradients already.
        grad_norm: norm of the whole gradient, the same on all processes.
        sharded: FSDP holds the parameters.
    """
    if scaler.is_enabled():
        scaler.step(optimizer)  # looks at the gradients itself
        scaler.update()
    elif optimizer.defaults.get("fused") and not sharded:
        # torch's protocol between GradScaler and fused optimisers (`_step_supports_amp_scaling`):
        # the kernel leaves everything as it is where `found_inf` is 1
        optimizer.grad_scale, optimizer.found_inf = None, (~grad_norm.isfinite()).float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
    elif grad_norm.isfinite():
        optimizer.step()


def check_lr_factors(encoder: float, layer_decay: float) -> None:
    """Raises ValueError for invalid factors; see `lr_factors`."""
    if not encoder > 0:
        raise ValueError(f"encoder_lr_factor must be above 0, got {encoder}")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be above 0 and at most 1, got {layer_decay}")


def lr_factors(model: Pix2Seq, *, encoder: float = 1.0, layer_decay: float = 1.0) -> dict:
    """Parameter name -> factor of its learning rate; missing names have factor 1.

    Args:
        encoder: factor of the whole encoder.
        layer_decay: each block of the encoder learns at this factor of the one above it, the last
            one (and the norm behind it) at that of the encoder, and what comes before the blocks
            as one block more.

    Raises:
        ValueError: a factor that cannot be, or an encoder whose layers are not known.
    """
    check_lr_factors(encoder, layer_decay)
    if encoder == layer_decay == 1:
        return {}
    names = [name for name, _ in model.encoder.named_parameters()]
    if layer_decay == 1:
        return {f"encoder.{name}": encoder for name in names}
    prefix, module = _layered(model.encoder)
    layers = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    top = max(layer for name, layer in layers.items() if name.split(".")[0] not in BEHIND_BLOCKS)
    return {
        f"encoder.{prefix}{name}": encoder * layer_decay ** max(top - layer, 0)
        for name, layer in layers.items()
    }


def _layered(encoder: nn.Module) -> tuple[str, nn.Module]:
    """The module that says which layer a parameter belongs to, and the prefix of its names."""
    for prefix, module in (("", encoder), ("backbone.", getattr(encoder, "backbone", None))):
        if hasattr(module, "group_matcher"):
            return prefix, module
    raise ValueError(
        "layer_decay is not known for this encoder (timm defines no layer groups for "
        "feature-pyramid models); leave encoder_stride out, or use encoder_lr_factor"
    )


def check_average(decay: float) -> None:
    """Raises ValueError for a decay that is not in [0, 1)."""
    if not 0 <= decay < 1:
        raise ValueError(f"ema_decay must be at least 0 and below 1, got {decay}")


def average_of(model: nn.Module, decay: float) -> ModelEmaV3 | None:
    """The moving average; `.update(model, step)` after every step. None for decay 0.

    The first steps, whose weights are far from the last ones, are forgotten sooner.

    Raises:
        ValueError: decay is not in [0, 1).
    """
    check_average(decay)
    options = {"use_warmup": True, "warmup_power": WARMUP_POWER}
    return ModelEmaV3(model, decay, **options) if decay else None


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes the parameters whose names match one of the regular expressions.

    Raises:
        ValueError: a pattern is found in no name, or nothing is left to learn.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in named if re.search(pattern, name)]
        if not found:
            near = difflib.get_close_matches(pattern, named, n=3, cutoff=0.3) or list(named)[:3]
            raise ValueError(
                f"freeze={pattern} is found in the name of no parameter; names are such as "
                f"{', '.join(near)}"
            )
        for name in found:
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ValueError(f"freeze={','.join(patterns)} leaves nothing to learn")


class Freeze:
    """Freezes a module in the first steps: no gradients, batch statistics unchanged.

    Statistics of a norm whose parameters do not learn (`freeze_parameters`) never change.

    Args:
        steps: number of steps; 0 = never frozen.
        statistics: batch statistics stay as they are for good. Training sees a batch of one task at
            a time, evaluation the average over all tasks; so both see the same.
    """

    def __init__(self, module: nn.Module, steps: int, *, statistics: bool = False):
        self.module, self.steps, self.statistics = module, steps, statistics
        self.frozen = False
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        self._still = [not any(p.requires_grad for p in norm.parameters()) for norm in self._norms]

    def apply(self, step: int) -> bool:
        """Call before step number `step` (from 0), in training mode.

        Returns:
            whether other parameters learn now than in the step before.
        """
        frozen = step < self.steps
        changed = frozen != self.frozen
        if changed:
            for parameter in self._parameters:
                parameter.requires_grad_(not frozen)
        for norm, still in zip(self._norms, self._still, strict=True):
            if frozen or self.frozen or self.statistics or still:  # the engine trains all
                norm.train(not (frozen or self.statistics or still))
        self.frozen = frozen
        return changed
