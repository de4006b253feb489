"""The device to run on, and the processes that work together."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError

MATMUL_PRECISIONS = ("highest", "high", "medium")  # those of `torch.set_float32_matmul_precision`


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU. A numbered GPU becomes the current one.

    Raises:
        UserError: no device of that name here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} is not here ({torch.cuda.device_count()} CUDA devices); "
            "use device=auto or device=cpu"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # otherwise what asks for no device goes to the first
    return device


def set_matmul_precision(name: str) -> None:
    """How exact products of float32 are in this process, one of `MATMUL_PRECISIONS`.

    Raises:
        UserError: there is no such precision.
    """
    if name not in MATMUL_PRECISIONS:
        raise UserError(
            f"matmul_precision must be one of {', '.join(MATMUL_PRECISIONS)}, got {name!r}"
        )
    torch.set_float32_matmul_precision(name)


def num_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
