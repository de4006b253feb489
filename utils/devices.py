"""The device to run on, what its cores can do, and the processes that work together."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from utils.cli import log
from utils.errors import UserError

PROC = Path("/proc")
BFLOAT16_UNITS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}  # as Linux calls them
# variables with which a person has chosen how threads wait
CHOSEN = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
TICKS = 100  # of /proc/stat in a second
BUSY = 0.5  # cores of others that are no mere background


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


def has_bfloat16_units() -> bool:
    """Whether the processor computes in bfloat16 by itself; True where nothing says so."""
    flags = set()
    for line in _lines("cpuinfo"):
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags |= set(values.split())
    return not flags or bool(flags & BFLOAT16_UNITS)


def check_bfloat16(setting: str, remedy: str, *, emulate: bool) -> None:
    """Checks that a CPU has units for bfloat16.

    Args:
        setting: what asks for it, such as "amp=bf16".
        remedy: what to use instead.
        emulate: the setting `emulate_bfloat16`.

    Raises:
        UserError: it has none, and nobody wants it all the same.
    """
    if not emulate and not has_bfloat16_units():
        raise UserError(
            f"{setting}: this CPU has no units for bfloat16 and takes 15 to 30 times as long as "
            f"with float32; use {remedy}, or force it with --set emulate_bfloat16=true"
        )


class CoreWatch:
    """Measures from its creation on how many cores other programs keep busy."""

    def __init__(self):
        self.cores = _cores()
        self.start = time.monotonic(), _busy_seconds(self.cores), sum(os.times()[:4])

    def others(self) -> float:
        """Cores that others kept busy, on average, of those that this process may use."""
        began, busy, own = self.start
        seconds, now = time.monotonic() - began, _busy_seconds(self.cores)
        if busy is None or now is None or seconds < 0.3:  # other systems, or too short to measure
            return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        others = now - busy - (sum(os.times()[:4]) - own)
        return min(max(others / seconds, 0.0), float(len(self.cores)))

    def notice(self, threads: int) -> str:
        """A line that says what helps when the cores are taken; empty if they are not.

        Args:
            threads: that compute together in this process; they wait for the slowest.
        """
        if threads < 2 or any(name in os.environ for name in CHOSEN):
            return ""
        others, cores = self.others(), len(self.cores)
        if others < max(BUSY, cores / 10) or others + threads <= cores + BUSY / 2:
            return ""
        return (
            f"notice: other programs keep {others:.1f} of {cores} cores busy; {threads} threads "
            "that wait for each other then take up to 3 times as long. OMP_NUM_THREADS=1 or "
            "OMP_WAIT_POLICY=PASSIVE in the environment helps (1.2 s instead of 1.9 s, measured)"
        )


def warn_if_busy(watch: CoreWatch, device: torch.device) -> None:
    """Says what helps if other programs take the cores that this process is to compute on."""
    if device.type == "cpu" and (text := watch.notice(torch.get_num_threads())):
        log(text)


def _cores() -> set[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _busy_seconds(cores: set[int]) -> float | None:
    """Seconds that these cores have worked since the machine started; None if nothing says so."""
    ticks, seen = 0, 0
    for line in _lines("stat"):
        name, *values = line.split() or [""]
        if name.removeprefix("cpu").isdigit() and int(name.removeprefix("cpu")) in cores:
            user, nice, system, _, _, irq, softirq = map(int, values[:7])
            ticks += user + nice + system + irq + softirq
            seen += 1
    return ticks / TICKS if seen == len(cores) and ticks else None


def _lines(name: str) -> list[str]:
    """The lines of a file of /proc; none where there is no such file."""
    try:
        return (PROC / name).read_text().splitlines()
    except (OSError, ValueError):
        return []


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
