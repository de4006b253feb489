"""The processes that `torchrun` starts, one for each device: how they join, and how they end.

Without torchrun there is one process and nothing of this costs anything.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.devices import ALONE, World
from utils.errors import UserError

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
