"""The state of a training: everything that a checkpoint stores.

The states of the random generators are kept in types that load without unpickling.
"""

import json
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from dataset.batch import Batch
from dataset.loader import Loader
from models import Pix2Seq
from train.distributed import (
    load_whole_model,
    load_whole_optimizer,
    whole,
    whole_model,
    wrap_again,
)
from train.loss import LOSS_KINDS, XENT, LossType, TokenKinds
from train.optim import Freeze
from utils.devices import ALONE, World

FORMAT = 3  # of the checkpoints
MODULES = ("model", "optimizer", "scheduler", "scaler")
NUMBERS = ("step", "evaluated", "best", "best_step", "stale", "seconds")


def seed_all(seed: int) -> None:
    """Seeds all random generators of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (what users' transforms may draw from)
    torch.manual_seed(seed)


def rng_state() -> dict:
    """The states of the generators of Python, NumPy, torch and CUDA in this process."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),  # uint32 does not travel
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict) -> None:
    """Inverse of `rng_state`; CUDA states of another number of devices are left out."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


class TaskStream:
    """Endless batches of one task; stores its position in the epoch."""

    def __init__(self, loader: Loader, batch_size: int, accumulate_steps: int = 1):
        """
        Args:
            batch_size: of one process.
            accumulate_steps: batches of an optimiser step.
        """
        self.loader, self.batch_size = loader, batch_size
        self.accumulate_steps = accumulate_steps
        self.epoch, self.batch = 0, 0  # the next batch to deliver
        self.skipped: list[str] = []  # why samples were replaced, until somebody says so
        self._iterator: Iterator | None = None

    def __len__(self) -> int:
        """Optimiser steps of one epoch."""
        self.loader.sampler.set_epoch(self.epoch)
        return len(self.loader) // self.accumulate_steps

    @property
    def images_per_step(self) -> int:
        """Images per step over all processes."""
        return self.batch_size * self.accumulate_steps * self.loader.sampler.world_size

    def next(self) -> Batch:
        if self._iterator is None:
            self.loader.sampler.set_epoch(self.epoch, self.batch * self.batch_size)
            self._iterator = iter(self.loader)
        batch = next(self._iterator, None)
        if batch is None:
            self.epoch, self.batch, self._iterator = self.epoch + 1, 0, None
            return self.next()
        self.batch += 1
        self.skipped += batch.skipped
        return batch

    def state_dict(self) -> dict:
        """The position in images of all processes, so that batch size and processes may change."""
        return {
            "epoch": self.epoch,
            "images": self.batch * self.batch_size * self.loader.sampler.world_size,
            "images_per_step": self.images_per_step,
            "skipped": list(self.skipped),
        }

    def load_state_dict(self, values: dict) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: a step has another number of images now; epochs and rates go by steps.
        """
        if values["images_per_step"] != self.images_per_step:
            raise ValueError(
                f"its steps have {values['images_per_step']} images, these would have "
                f"{self.images_per_step}: batch_size * accumulate_steps * processes must stay"
            )
        self.epoch, self._iterator = values["epoch"], None
        self.batch = values["images"] // (self.batch_size * self.loader.sampler.world_size)
        self.skipped = list(values["skipped"])


def finite_mean(rows: Tensor) -> Tensor:
    """(steps, N) -> (N,) means of the finite values; NaN where there are none."""
    return rows.where(rows.isfinite(), torch.nan).nanmean(0)


@dataclass
class StepRecord:
    """The result of one step, still on the device, and its duration."""

    losses: Tensor  # (tasks,) this process's share of the loss of each task, not weighted
    grad_norm: Tensor  # ()
    kinds: Tensor  # (tasks, kinds, 2) weighted loss and weight, see `TokenKinds`
    images: int = 0  # of all processes
    seconds: float = 0.0


class Window:
    """The steps since the last point of the curves; a point is their mean.

    It goes on over the end of an epoch and, in the checkpoint, over the end of a sitting: a point
    is always the mean over the same steps.
    """

    def __init__(self, size: int):
        """
        Args:
            size: steps that it holds.
        """
        self.steps: deque[StepRecord] = deque(maxlen=size)

    def means(self, tasks: list[str], world: World, weights: dict[str, float]) -> dict[str, float]:
        """Means over all steps that were not skipped, of all processes; all must call it.

        Args:
            weights: task -> factor of its loss in the sum; 1 where there is none.

        Returns:
            names of the curves -> finite values; of the kinds of tokens those that occurred.
        """
        losses, norms, kinds = self._stacked(world)
        rows = torch.cat([losses, norms[:, None]], dim=1)
        sums = kinds.where(kinds.isfinite().all(-1, keepdim=True), 0).sum(0)  # (tasks, kinds, 2)
        # one transfer, which waits for the device
        values = torch.cat([finite_mean(rows), sums.flatten()]).tolist()
        of_tasks, norm = values[: len(tasks)], values[len(tasks)]
        pairs = zip(tasks, of_tasks, strict=True)
        means = {"train/loss": sum(weights.get(task, 1.0) * value for task, value in pairs)}
        if len(tasks) > 1:
            means |= {f"train/loss/{t}": value for t, value in zip(tasks, of_tasks, strict=True)}
        numbers = iter(values[len(tasks) + 1 :])
        for task in tasks:
            for kind in LOSS_KINDS:
                loss, weight = next(numbers), next(numbers)
                means[f"train/loss/{task}/{kind}"] = loss / weight if weight > 0 else math.nan
        means["train/grad_norm"] = norm
        return {name: value for name, value in means.items() if math.isfinite(value)}

    @property
    def images_per_second(self) -> float:
        return sum(s.images for s in self.steps) / max(sum(s.seconds for s in self.steps), 1e-9)

    def _stacked(self, world: World) -> tuple[Tensor, Tensor, Tensor]:
        """(steps, tasks), (steps,), (steps, tasks, kinds, 2), the sums of all processes."""
        losses = world.sum(torch.stack([step.losses for step in self.steps]))
        kinds = world.sum(torch.stack([step.kinds for step in self.steps]))
        return losses, torch.stack([step.grad_norm for step in self.steps]), kinds

    def state_dict(self, world: World) -> dict:
        """Sums of all processes, which all have to call it."""
        if not self.steps:
            return {}
        losses, norms, kinds = self._stacked(world)
        times = [[step.images, step.seconds] for step in self.steps]
        return {"losses": losses, "grad_norms": norms, "kinds": kinds, "times": times}

    def load_state_dict(self, values: dict, world: World, device: torch.device) -> None:
        """Inverse of `state_dict`; the first process gets the sums, the others zeros.

        Values of other kinds of tokens, as another version had, count for nothing.
        """
        self.steps.clear()
        if not values or values["kinds"].shape[2] != len(LOSS_KINDS):
            return
        share = float(world.is_main)
        losses, norms, kinds = (
            values[name].to(device) for name in ("losses", "grad_norms", "kinds")
        )
        for row, norm, of_kinds, (images, seconds) in zip(
            losses, norms, kinds, values["times"], strict=True
        ):
            self.steps.append(StepRecord(share * row, norm, share * of_kinds, images, seconds))


@dataclass
class TrainState:
    """The state of a run between two steps."""

    model: Pix2Seq
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    streams: dict[str, TaskStream]
    loss_type: LossType = XENT
    task_weights: dict[str, float] = field(default_factory=dict)  # of the losses; 1 if not there
    ema: ModelEmaV3 | None = None  # moving average of the weights, if wanted
    freeze: Freeze | None = None  # of the encoder, if wanted
    step: int = 0  # optimiser steps done
    evaluated: int = -1  # the step of the last evaluation; -1 = there was none
    best: float = float("-inf")  # best value of the validation metric so far
    best_step: int = 0  # the step of that evaluation; 0 = not known
    stale: int = 0  # evaluations since the best one
    seconds: float = 0.0  # time spent training, over all sittings
    wrapped: nn.Module | None = None  # what to call in training; None = the model itself
    world: World = ALONE
    accumulate_steps: int = 1  # batches of each task in an optimiser step
    optimizer_name: str = "adamw"  # one of `optimizer_names`
    token_kinds: dict[str, TokenKinds] = field(default_factory=dict)  # of each task
    window: Window = field(default_factory=lambda: Window(1))  # the last steps

    @property
    def forward(self) -> nn.Module:
        return self.model if self.wrapped is None else self.wrapped

    @property
    def sharded(self) -> bool:
        return isinstance(self.model, FSDPModule)

    @property
    def evaluated_model(self) -> Pix2Seq:
        """The model that is evaluated and saved as the best: the moving average if there is one."""
        return whole_model(self.model) if self.ema is None else self.ema.module

    def before_step(self) -> None:
        """Call in training mode before every optimiser step."""
        changed = self.freeze is not None and self.freeze.apply(self.step)
        if changed and isinstance(self.wrapped, DistributedDataParallel):
            unused = self.wrapped.find_unused_parameters
            self.wrapped = None  # it has to go before the next one comes
            self.wrapped = wrap_again(self.model, unused=unused)

    def after_step(self) -> None:
        """Call after every optimiser step, when `step` has been advanced."""
        if self.ema is not None:
            self.ema.update(self.model, self.step)

    def state_dict(self) -> dict:
        """The state as whole tensors on the first process; all processes must call it."""
        keep = self.world.is_main  # who writes
        values = {
            name: whole(getattr(self, name).state_dict(), to_host=True, keep=keep)
            for name in MODULES
        }
        values["ema"] = None if self.ema is None else self.ema.module.state_dict()
        values["streams"] = {task: s.state_dict() for task, s in self.streams.items()}
        for task, stream in self.streams.items():  # of all processes
            lines = self.world.gather(stream.skipped)
            values["streams"][task]["skipped"] = [line for part in lines for line in part]
        values["window"] = whole(self.window.state_dict(self.world), to_host=True)
        values |= {name: getattr(self, name) for name in NUMBERS}
        values |= {"format": FORMAT, "rng": self.world.gather(rng_state())}  # by rank
        record = {"config": self.model.config.to_json(), "meta": self.model.meta}
        values["record"] = json.dumps(record)  # text: it need not be unpickled
        values["optimizer_name"] = self.optimizer_name
        return values

    def check_origin(self, values: dict) -> None:
        """Checks version, tasks and optimiser of a checkpoint.

        Raises:
            ValueError, KeyError: another version, other tasks or another optimiser.
        """
        if values.get("format") != FORMAT:
            raise ValueError("it was written by another version; start again from its weight file")
        if set(values["streams"]) != set(self.streams):
            raise ValueError(
                f"it trains {'+'.join(values['streams'])}, not {'+'.join(self.streams)}"
            )
        name = values.get("optimizer_name", "adamw")  # older checkpoints do not say
        if name != self.optimizer_name:
            raise ValueError(f"its optimizer is {name}, not {self.optimizer_name}")

    def load_state_dict(self, values: dict) -> None:
        """Inverse of `state_dict`; rates, weight decay and betas stay those of the settings.

        With another number of processes the generators stay as they are: others draw other numbers.

        Raises:
            ValueError, KeyError, RuntimeError: the values are of another model, other tasks or
                another version.
        """
        self.check_origin(values)
        # Model and optimiser; what the settings say about rates and decay stays.
        groups, kept = self.optimizer.param_groups, ("initial_lr", "weight_decay", "betas")
        wanted = [{key: group[key] for key in kept if key in group} for group in groups]
        load_whole_model(self.model, values["model"])
        load_whole_optimizer(self.optimizer, values["optimizer"])
        self.scheduler.load_state_dict(values["scheduler"])
        if values["scaler"]:  # saved without fp16, as on another GPU: it starts anew
            self.scaler.load_state_dict(values["scaler"])
        for group, options in zip(self.optimizer.param_groups, wanted, strict=True):
            group |= options
        self._set_rates([options["initial_lr"] for options in wanted])

        # Average, places in the data, numbers, random generators.
        if self.ema is not None:  # where there was none, it starts from the weights
            self.ema.module.load_state_dict(values["ema"] or values["model"])
        for task, stream in self.streams.items():
            stream.load_state_dict(values["streams"][task])
            if not self.world.is_main:  # the first one has those of all
                stream.skipped = []
        older = {"best_step": 0}  # checkpoints of earlier versions do not hold it
        for name in NUMBERS:
            setattr(self, name, (older | values)[name])
        # checkpoints of earlier versions do not hold the last steps
        self.window.load_state_dict(values.get("window", {}), self.world, self.model.device)
        if len(values["rng"]) == self.world.size:
            set_rng_state(values["rng"][self.world.rank])

    def _set_rates(self, base: list[float]) -> None:
        scheduler = self.scheduler
        scheduler.base_lrs = base
        rates = [
            lr * factor(scheduler.last_epoch)
            for lr, factor in zip(base, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
