"""A pretrained encoder that waits before it learns."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Freeze:
    """Keeps a module as it is for the first steps: no gradients, batch statistics unchanged.

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
        if frozen or self.frozen or self.statistics:  # the engine puts all into training mode
            for norm in self._norms:
                norm.train(not (frozen or self.statistics))
        self.frozen = frozen
        return changed
