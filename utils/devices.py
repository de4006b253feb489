"""The device to run on, what its cores can do, the processes that work together.

And what they say when they run short.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from utils.cli import log
from utils.errors import UserError, one_line

PROC = Path("/proc")
BFLOAT16_UNITS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}  # as Linux calls them
# variables with which a person has chosen how threads wait
CHOSEN = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
TICKS = 100  # of /proc/stat in a second
BUSY = 0.5  # cores of others that are no mere background

MATMUL_PRECISIONS = ("highest", "high", "medium")  # those of `torch.set_float32_matmul_precision`


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU. A numbered GPU becomes the current one.

    CUDA is in use from then on; loaders pin their memory if it is.

    Raises:
        UserError: no device of that name here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} does not exist ({torch.cuda.device_count()} CUDA devices); "
            "use device=auto or device=cpu"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # otherwise what asks for no device goes to the first
    if device.type == "cuda":
        torch.cuda.init()
    return device


def set_matmul_precision(name: str) -> None:
    """How exact products and convolutions of float32 are here, one of `MATMUL_PRECISIONS`.

    Raises:
        UserError: there is no such precision.
    """
    if name not in MATMUL_PRECISIONS:
        raise UserError(
            f"matmul_precision must be one of {', '.join(MATMUL_PRECISIONS)}, got {name!r}"
        )
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"  # convolutions have a switch of their own


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
    """Turns an out-of-memory error into a one-line `UserError` with remedies."""
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
            f"out of memory on {device}: in training halve batch_size (or those of the tasks) and "
            "double accumulate_steps (the same training), or set recompute_activations=true, "
            "amp=bf16, fsdp=true (several GPUs); anywhere use a smaller img_size or eval_batch_size"
        ) from error


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
            f"{setting}: this CPU has no units for bfloat16 and takes many times as long as "
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
            "that wait for each other then take far longer. OMP_NUM_THREADS=1 or "
            "OMP_WAIT_POLICY=PASSIVE in the environment helps"
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
    """The processes of a run, and this one's rank; with one process, every method is a no-op.

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


# ---- the processes that `torchrun` starts -------------------------------------------------------

TIMEOUT = timedelta(hours=1)  # the others wait while one fetches weights or writes files
POLL_SECONDS = 0.5
TELL_SECONDS = 1.0  # the store may live in the process that failed: the others read it meanwhile
LEAVE_SECONDS = 3.0  # later: when one leaves, torchrun ends all, the one with the message too
FAILED = "pix2seq/failed"  # key of the message of the first process that failed


@contextmanager
def session() -> Iterator[World]:
    """Joins the processes that torchrun started; an error in one of them ends all.

    The process that fails first raises its error, the others leave with exit status 2, and one on
    each machine repeats the message.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE
        return
    rank = int(os.environ["RANK"])
    if dist.is_initialized():  # a session inside a session is the same one
        yield World(rank, size)
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_local_rank() % torch.cuda.device_count())
    # Objects and token counts travel on the CPU, so that nothing waits for the accelerator.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    watch = _Watch(rank)
    try:
        world = World(rank, size)
        yield world
        world.gather(None)  # nobody leaves while another still asks for something
        watch.stop()  # before the store it looks into goes
        dist.destroy_process_group()
    except Exception as error:
        if watch.tell(error):
            raise
        time.sleep(LEAVE_SECONDS)
        raise SystemExit(2) from None  # another one failed first: this is what came of it
    finally:
        watch.stop()


class _Watch:
    """A thread that ends this process when another one failed, also while it waits for that one."""

    def __init__(self, rank: int):
        self.rank, self.over = rank, threading.Event()
        self.store = (
            dist.distributed_c10d._get_default_store().clone()
        )  # the main thread may wait inside its own
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def tell(self, error: Exception) -> bool:
        """Whether this process is the first that failed; then the others learn why."""
        self.over.set()
        lines = traceback.format_exception(error)
        text = str(error) if isinstance(error, UserError) else lines[-1].strip()
        message = f"rank {self.rank}: {text}"
        try:
            first = self.store.compare_set(FAILED, "", message).decode() == message
        except RuntimeError:  # the process that keeps the store is gone
            return False
        if first:
            time.sleep(TELL_SECONDS)
        return first

    def stop(self) -> None:
        self.over.set()
        self.thread.join()
        self.store = None

    def _look(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            try:
                failed = self.store.check([FAILED])
                message = self.store.get(FAILED).decode() if failed else ""
            except RuntimeError:
                failed, message = True, "another process is gone"
            if failed and not self.over.is_set():
                if _local_rank() == 0:
                    print(f"error on {message}", file=sys.stderr, flush=True)
                time.sleep(LEAVE_SECONDS)
                os._exit(2)  # the main thread may wait for the other for ever


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def local_device(device: torch.device, world: World) -> torch.device:
    """The device of this process, where `device` is the same for all.

    Raises:
        UserError: there is no device for every process of this machine.
    """
    if world.size == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise UserError(f"device={device} is one device for {world.size} processes; use cuda")
    if _local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} CUDA devices for more processes; use "
            f"torchrun --nproc-per-node {torch.cuda.device_count()}"
        )
    return torch.device("cuda", _local_rank())
