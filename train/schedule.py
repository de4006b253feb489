"""Learning rate and optimiser, as the official recipe has them (`model_utils.py`)."""

import math

import torch
from torch import nn


def lr_factor(
    step: int, *, total_steps: int, warmup_steps: int, end_factor: float, schedule: str
) -> float:
    """Learning rate of update `step` (from 0) divided by the base rate.

    Linear warm-up from 0 (so the first update has rate 0), then decay to `end_factor` over the
    remaining steps.

    Args:
        schedule: "linear", "cosine" or "constant".
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    shape = {
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "constant": 1.0,
    }
    if schedule not in shape:
        raise ValueError(f"lr_schedule must be one of {sorted(shape)}, got {schedule!r}")
    return end_factor + (1 - end_factor) * shape[schedule]


def build_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    decay_all: bool = True,
) -> torch.optim.AdamW:
    """AdamW with eps 1e-8.

    Args:
        decay_all: True is what the official optimiser does (biases, norms and embeddings decay
            too); False spares every parameter of fewer than two dimensions.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if decay_all or p.ndim > 1]
    spared = [p for p in parameters if not (decay_all or p.ndim > 1)]
    groups = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    fused = parameters[0].device.type == "cuda"
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=lr,
        betas=betas,
        eps=1e-8,
        weight_decay=weight_decay,
        fused=fused,
    )
