"""Handles events that disturb a training: non-finite losses, signals, unreadable images.

Losses may be no numbers, and samples may be bad. A signal or the time limit ends a training between
two steps.
"""

import json
import math
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset.batch import Batch, padding_of
from models.weights import write_tensors
from train.state import TaskStream
from utils.cli import pass_on
from utils.devices import ALONE, World
from utils.errors import UserError

MAX_PENDING = 4  # steps whose outcome may still be unknown
MAX_FILES = 10  # of batches kept for inspection
MAX_OVERFLOWS = 100  # in a row: the scale of fp16 starts at 2 ** 16 and halves with each
SHOWN = 3  # images that are named
FIELDS_IN_FILES = {"supervised": "positions"}  # fields of `Batch` that have another name there
HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # the terminal was closed; not on Windows


class NonFiniteWatch:
    """Counts steps that were skipped because a loss or the gradient was not finite.

    The outcome of a step is copied to the host while later steps already run, so that nothing
    waits for the device; a batch is kept until its outcome is known.
    """

    def __init__(self, folder: Path, limit: int, *, rank: int = 0, scaled: bool = False):
        """
        Args:
            folder: where batches of skipped steps are written to.
            limit: skipped steps in a row that stop the run.
            scaled: losses are scaled for fp16: a gradient that overflows lowers the scale and is
                no fault, a loss that is no number is.
        """
        self.folder, self.limit, self.rank, self.scaled = folder, limit, rank, scaled
        self.in_a_row = self.overflows = self.saved = 0
        self._pending: deque[tuple] = deque()

    def add(self, step: int, outcome: Tensor, micro: list[dict[str, Batch]]) -> list[str]:
        """Adds the result of one step, and reports skipped steps once their values are known.

        Args:
            outcome: (tasks + 1,) the losses and the norm of the gradient, on the device.
            micro: the batches of the step, on the host.

        Raises:
            UserError: `limit` steps in a row were skipped.
        """
        event = None
        if outcome.is_cuda:
            stream = torch.cuda.current_stream(outcome.device)  # which need not be the first GPU's
            host = torch.empty_like(outcome, device="cpu", pin_memory=True)
            outcome = host.copy_(outcome, non_blocking=True)
            event = stream.record_event()
        self._pending.append((step, event, outcome, micro))
        lines = []
        while self._pending:
            event = self._pending[0][1]
            if event and len(self._pending) <= MAX_PENDING and not event.query():
                break
            lines += self._look(*self._pending.popleft())
        return lines

    def _look(self, step: int, event, outcome: Tensor, micro: list[dict[str, Batch]]) -> list[str]:
        if event:
            event.synchronize()
        *losses, norm = outcome.tolist()
        bad = {k: v for k, v in zip(micro[0], losses, strict=True) if not math.isfinite(v)}
        overflow = self.scaled and not bad and not math.isfinite(norm)
        self.overflows = self.overflows + 1 if overflow else 0
        if self.overflows >= MAX_OVERFLOWS:
            raise UserError(
                f"the gradient overflows fp16 whatever the scale, and {self.overflows} steps in a "
                "row were skipped; use --set amp=bf16 or amp=off"
            )
        if math.isfinite(norm) or overflow:
            self.in_a_row = 0
            return []
        self.in_a_row += 1
        what = f"the norm of the gradient is {norm}"
        for task, value in bad.items():
            what = f"the {task} loss is {value}"
        place = ""
        if self.saved < MAX_FILES:
            place = f", its batch is in {save_batches(self.folder, step, self.rank, micro)}"
            self.saved += 1
        if self.in_a_row >= self.limit:
            raise UserError(
                f"{what}, and {self.in_a_row} steps in a row were skipped (batches in "
                f"{self.folder}); lower the learning rate (--set lr=...), clip the gradient "
                "(--set clip_grad=1) or use --set amp=off"
            )
        return [f"step {step}: {what}; the step is skipped{place}"]


def save_batches(folder: Path, step: int, rank: int, micro: list[dict[str, Batch]]) -> Path:
    """Writes the batches of one process and step to a file, with image ids in its metadata."""
    tensors, ids = {}, {}
    for number, batches in enumerate(micro):
        for task, batch in batches.items():
            ids[f"{number}.{task}"] = batch.image_ids
            blank = padding_of(batch.images, batch.unpadded)  # its values are undefined
            batch = replace(batch, images=batch.images.masked_fill(blank, 0))
            for field in fields(batch):
                if isinstance(value := getattr(batch, field.name), Tensor):
                    name = FIELDS_IN_FILES.get(field.name, field.name)
                    tensors[f"{number}.{task}.{name}"] = value.clone().contiguous()
    path = folder / f"step_{step:07}_rank_{rank}.safetensors"
    write_tensors(path, tensors, {"image_ids": json.dumps(ids)})
    return path


class Statistics:
    """Saves batch-norm statistics before a step, to restore them if the step is skipped."""

    def __init__(self, model: nn.Module):
        wanted = ("running_mean", "running_var")
        buffers = [b for name, b in model.named_buffers() if name.endswith(wanted)]
        self.kept = [(buffer, buffer.clone()) for buffer in buffers]

    def keep_if(self, finite: Tensor) -> None:
        """Restores the saved statistics unless `finite`, a bool on the device, is true."""
        for buffer, before in self.kept:
            buffer.copy_(torch.where(finite, buffer, before))


class Stopped(BaseException):
    """Raised to stop a training: by a signal or the time limit.

    No `except Exception` on the way, such as that of a library that reads images, may catch it.
    """


def in_finalizer(frame: FrameType | None) -> bool:
    """Whether a frame runs in a `__del__`, where Python prints what is raised and drops it."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class StopSignal:
    """Collects stop requests (signals and the time limit), which are checked between steps."""

    def __init__(self, max_minutes: float):
        self.signal = 0
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(HANGUP) not in (None, signal.SIG_IGN):  # nohup ignores it
            numbers.append(HANGUP)
        self._at_once = False
        self._previous = {number: signal.signal(number, self._remember) for number in numbers}

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """In this context, a signal raises `Stopped` at once; for work that can be repeated."""
        try:
            self._at_once = True
            if self.signal:
                raise Stopped(self.reason())
            yield
        finally:
            self._at_once = False

    def restore(self) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number, frame) -> None:
        if number == self.signal and number != HANGUP:  # the second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.signal = self.signal or number
        if self._at_once and not in_finalizer(frame):
            raise Stopped(self.reason())

    def reason(self) -> str:
        if self.signal:
            return signal.Signals(self.signal).name
        if self.deadline is not None and time.monotonic() > self.deadline:
            return "time is up"
        return ""


def check_stop(stop: StopSignal, world: World) -> None:
    """Raises `Stopped` on every process if any of them has to stop."""
    reason = stop.reason()
    if world.sums([float(bool(reason))])[0]:
        stop.signal, reason = max(world.gather((stop.signal, reason)))  # a signal before the time
        raise Stopped(reason)


def report_skipped(streams: dict[str, TaskStream], epoch: int, world: World = ALONE) -> None:
    """Prints one line per task about unreadable images, and clears the list.

    Args:
        epoch: the one that ends, from 1.
        world: all its processes have to call it; the first one speaks for all.
    """
    for task, stream in streams.items():
        reasons = Counter(line for lines in world.gather(stream.skipped) for line in lines)
        stream.skipped = []
        if not reasons or not world.is_main:
            continue
        shown = "; ".join(list(reasons)[:SHOWN]) + "; …" * (len(reasons) > SHOWN)
        line = (
            f"epoch {epoch}: {sum(reasons.values())} {task} samples of {len(reasons)} images could "
            f"not be used, others took their place: {shown}"
        )
        tqdm.write(line, sys.stderr)
        pass_on(line)
