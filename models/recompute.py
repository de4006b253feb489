"""Activation checkpointing: memory against time."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class _Recomputed:
    """A `forward` whose inner activations are computed again when the gradient needs them."""

    def __init__(self, forward: Callable):
        self.forward = forward

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


def recompute_activations(modules: Iterable[nn.Module]) -> None:
    """Keeps only what goes into each of these modules; gradients and parameters stay as they are.

    The forward pass of the modules is computed twice. Modules with batch norm, whose statistics
    would be updated twice as well, are left as they are.
    """
    for module in modules:
        if any(isinstance(part, _BatchNorm) for part in module.modules()):
            continue
        module.forward = _Recomputed(module.forward)
