"""What the tests of training share: a state as the engine builds it, runs that stop and go on."""

import json
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from benchmarks.kill_test import compare
from config import CFG
from train import engine
from train.build import build_run
from train.settings import check_settings
from train.state import TrainState
from utils.cli import load_settings, snapshot
from utils.devices import ALONE


class StopAt:
    """Stands in for `StopSignal`: stops after a number of steps."""

    signal = 0

    def __init__(self, steps: int):
        self.left = steps

    def reason(self) -> str:
        self.left -= 1
        return "asked" if self.left == 0 else ""

    def interrupts(self):
        return nullcontext()

    def restore(self) -> None: ...


def compare_apart_from_best(whole: Path, part: Path) -> list[str]:
    """`compare` for a run whose time was up: its extra evaluation may have found the best."""
    names = compare(whole, part)
    return [name for name in names if "best" not in name and name != "/stale"]


def state_of(overrides: list[str], tasks: list[str]) -> TrainState:
    """As the engine builds it, for ten steps."""
    cfg = snapshot(CFG, [*overrides, "epochs=100", "max_steps=10"])
    return build_run(cfg, tasks, ALONE, check_settings(cfg, tasks, ALONE)).state


def resume(overrides: list[str], tasks: list[str], run: Path | str) -> Path:
    """As `--resume run --set …` does it."""
    args = Namespace(preset=None, config=None, set=overrides)
    return engine.resume(str(run), tasks, partial(load_settings, args, CFG))


def metrics(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in metrics(run_dir) if "train/loss" in row]
