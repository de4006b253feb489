"""A pretrained encoder that waits before it learns."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Freeze:
    """Keeps a module as it is for the first steps: no gradients, batch statistics unchanged.

    Args:
        steps: number of steps; 0 = never frozen.
    """

    def __init__(self, module: nn.Module, steps: int):
        self.module, self.steps = module, steps
        self.frozen = False
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]

    def apply(self, step: int) -> None:
        """Call before step number `step` (from 0), in training mode."""
        frozen = step < self.steps
        if frozen != self.frozen:
            for parameter in self._parameters:
                parameter.requires_grad_(not frozen)
        if frozen or self.frozen:  # validation puts the norms back into training mode
            for norm in self._norms:
                norm.train(not frozen)
        self.frozen = frozen
