"""The device to run on, the processes that work together, and what they say when they run short."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError, one_line


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


def num_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_error(error: BaseException) -> UserError | None:
    """What to say of a loader process that ended, could not start or could not deliver.

    Returns:
        None: the error is something else.
    """
    text = one_line(error, 150)
    if "Too many open files" in text:
        remedy = "raise the limit (ulimit -n), or lower num_workers or the batch size"
    elif "AF_UNIX path too long" in text:
        remedy = "set TMPDIR to a folder with a shorter path"
    elif "DataLoader worker (pid" in text or "shared memory" in text or "shm" in text:
        remedy = (
            "most often too little memory or shared memory (docker run --shm-size=8g); lower "
            "num_workers, prefetch_batches or the batch size"
        )
    elif isinstance(error, (OSError, EOFError)) and "Caught " not in text:
        remedy = "lower num_workers; num_workers=0 needs no other process"
    else:
        return None
    return UserError(f"a worker that loads images ended or cannot work ({text}): {remedy}")


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Too little memory is one line with remedies."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        message = str(error)
        if "DataLoader worker (pid" in message:  # torch raises it wherever the program is
            raise worker_error(error) from error
        on_cpu = "DefaultCPUAllocator" in message or "not enough memory" in message
        if not (isinstance(error, (torch.OutOfMemoryError, MemoryError)) or on_cpu):
            raise
        raise UserError(
            f"out of memory on {device}: in training halve batch_size and double accumulate_steps "
            "(the same training), or set recompute_activations=true, amp=bf16, fsdp=true (several "
            "GPUs); anywhere use a smaller img_size or eval_batch_size"
        ) from error


@dataclass(frozen=True)
class World:
    """This process among the others; alone, every method is a no-op.

    All processes have to call `gather`, `collect`, `broadcast` and `sum`, in the same order.
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

    def collect(self, value) -> list:
        """`value` of every process, by rank, on the first one; the others get nothing."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

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
