"""A moving average of the weights, often better than the weights themselves."""

from timm.utils import ModelEmaV3
from torch import nn

WARMUP_POWER = 0.75  # decay of early steps: 1 - step ** -0.75, timm's value for runs of our length


def average_of(model: nn.Module, decay: float) -> ModelEmaV3 | None:
    """The moving average; `.update(model, step)` after every step. None for decay 0.

    The first steps, whose weights are far from the last ones, are forgotten sooner.

    Raises:
        ValueError: decay is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"ema_decay must be at least 0 and below 1, got {decay}")
    options = {"use_warmup": True, "warmup_power": WARMUP_POWER}
    return ModelEmaV3(model, decay, **options) if decay else None
