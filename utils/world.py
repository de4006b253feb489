"""The processes that work together, and what they tell each other (`torch.distributed`)."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process among the others; alone, every method is a no-op.

    All processes have to call `gather`, `broadcast` and `sum`, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def gather(self, value) -> list:
        """`value` of every process, by rank, on every process."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value):
        """The value of rank 0, whatever this process gives."""
        if self.size == 1:
            return value
        values = [value if self.is_main else None]
        dist.broadcast_object_list(values)
        return values[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place, on the device of `tensor`."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sums(self, values: list[float]) -> list[float]:
        """Sums of numbers over the processes, without waiting for an accelerator."""
        if self.size == 1:
            return values
        return self.sum(torch.tensor(values, dtype=torch.float64)).tolist()


ALONE = World()
