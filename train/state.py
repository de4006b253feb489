"""Everything that changes while training: what a checkpoint has to hold."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from dataset.loader import Batch, Loader
from models import Pix2Seq
from train.loss import XENT, LossType


class TaskStream:
    """Endless batches of one task that remembers where in which epoch it is."""

    def __init__(self, loader: Loader, batch_size: int):
        self.loader, self.batch_size = loader, batch_size
        self.epoch, self.batch = 0, 0  # the next batch to deliver
        self._iterator: Iterator | None = None

    def __len__(self) -> int:
        """Batches of one epoch."""
        self.loader.sampler.set_epoch(self.epoch)
        return len(self.loader)

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

    def state_dict(self) -> dict:
        modules = ("model", "optimizer", "scheduler", "scaler")
        values = {name: getattr(self, name).state_dict() for name in modules}
        values["streams"] = {task: s.state_dict() for task, s in self.streams.items()}
        values |= {"step": self.step, "best": self.best, "seconds": self.seconds}
        values["rng"] = torch.get_rng_state()
        values["cuda_rng"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return values

    def load_state_dict(self, values: dict) -> None:
        if set(values["streams"]) != set(self.streams):
            raise ValueError(
                f"it trains {'+'.join(values['streams'])}, not {'+'.join(self.streams)}"
            )
        for name in ("model", "optimizer", "scheduler", "scaler"):
            getattr(self, name).load_state_dict(values[name])
        for task, stream in self.streams.items():
            stream.load_state_dict(values["streams"][task])
        self.step, self.best, self.seconds = values["step"], values["best"], values["seconds"]
        torch.set_rng_state(values["rng"])
        if values["cuda_rng"] and torch.cuda.device_count() == len(values["cuda_rng"]):
            torch.cuda.set_rng_state_all(values["cuda_rng"])
