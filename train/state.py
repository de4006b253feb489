"""Everything that changes while training: what a checkpoint has to hold."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from dataset.loader import Batch, Loader
from models import Pix2Seq
from train.loss import XENT, LossType
from train.parallel import load_whole_model, load_whole_optimizer, whole
from utils.world import ALONE, World


class TaskStream:
    """Endless batches of one task that remembers where in which epoch it is."""

    def __init__(self, loader: Loader, batch_size: int, accumulate_steps: int = 1):
        """
        Args:
            batch_size: of one process.
            accumulate_steps: batches of an optimiser step.
        """
        self.loader, self.batch_size = loader, batch_size
        self.accumulate_steps = accumulate_steps
        self.epoch, self.batch = 0, 0  # the next batch to deliver
        self._iterator: Iterator | None = None

    def __len__(self) -> int:
        """Optimiser steps of one epoch."""
        self.loader.sampler.set_epoch(self.epoch)
        return len(self.loader) // self.accumulate_steps

    @property
    def images_per_step(self) -> int:
        """Over all processes."""
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
        return batch

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, values: dict) -> None:
        self.epoch, self.batch, self._iterator = values["epoch"], values["batch"], None


@dataclass
class TrainState:
    """A run between two steps."""

    model: Pix2Seq
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    streams: dict[str, TaskStream]
    loss_type: LossType = XENT
    task_weights: dict[str, float] = field(default_factory=dict)  # of the losses; 1 if not there
    step: int = 0  # optimiser steps done
    best: float = float("-inf")  # best value of the validation metric so far
    seconds: float = 0.0  # time spent training, over all sittings
    wrapped: nn.Module | None = None  # what to call in training; None = the model itself
    world: World = ALONE
    accumulate_steps: int = 1  # batches of each task in an optimiser step

    @property
    def forward(self) -> nn.Module:
        return self.model if self.wrapped is None else self.wrapped

    @property
    def sharded(self) -> bool:
        return isinstance(self.model, FSDPModule)

    def state_dict(self) -> dict:
        """Of whole tensors, whatever the processes; all of them have to call it."""
        modules = ("model", "optimizer", "scheduler", "scaler")
        values = {name: whole(getattr(self, name).state_dict()) for name in modules}
        values["streams"] = {task: s.state_dict() for task, s in self.streams.items()}
        values |= {"step": self.step, "best": self.best, "seconds": self.seconds}
        values["rng"] = self.world.gather(torch.get_rng_state())  # by rank
        on_cuda = self.model.device.type == "cuda"
        values["cuda_rng"] = self.world.gather(torch.cuda.get_rng_state()) if on_cuda else []
        return values

    def load_state_dict(self, values: dict) -> None:
        if set(values["streams"]) != set(self.streams):
            raise ValueError(
                f"it trains {'+'.join(values['streams'])}, not {'+'.join(self.streams)}"
            )
        load_whole_model(self.model, values["model"])
        load_whole_optimizer(self.optimizer, values["optimizer"])
        for name in ("scheduler", "scaler"):
            getattr(self, name).load_state_dict(values[name])
        for task, stream in self.streams.items():
            stream.load_state_dict(values["streams"][task])
        self.step, self.best, self.seconds = values["step"], values["best"], values["seconds"]
        rank = self.world.rank
        if len(values["rng"]) == self.world.size:  # else other processes draw other numbers
            torch.set_rng_state(values["rng"][rank])
        if self.model.device.type == "cuda" and len(values["cuda_rng"]) == self.world.size:
            torch.cuda.set_rng_state(values["cuda_rng"][rank])
