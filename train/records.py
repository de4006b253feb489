"""What a run leaves behind: its folder, settings, curves and pictures."""

import datetime
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import write_json_atomic


def new_run_dir(runs_dir: Path, tasks: Iterable[str]) -> Path:
    """Creates runs_dir/<tasks>/<time>; an existing folder is never reused."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    parent = runs_dir / "+".join(tasks)
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        try:
            (parent / f"{stamp}{suffix}").mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot create a run folder in {parent}: {error.strerror}") from error
        return parent / f"{stamp}{suffix}"
    raise UserError(f"too many runs in one second in {parent}")


def find_run_dir(runs_dir: Path, tasks: Iterable[str], name: str) -> Path:
    """The run folder that `--resume` names: a path, or "auto" for the newest of these tasks.

    Raises:
        UserError: there is none.
    """
    if name == "auto":
        runs = sorted((runs_dir / "+".join(tasks)).glob("*/last.ckpt"))
        if not runs:
            raise UserError(f"no run to resume in {runs_dir / '+'.join(tasks)}; leave --resume out")
        return runs[-1].parent
    run_dir = Path(name)
    if not (run_dir / "settings.json").is_file():
        raise UserError(f"no run in {run_dir}; --resume wants a run folder or auto")
    return run_dir


class RunRecords:
    """TensorBoard curves and pictures, and the same numbers as JSON lines."""

    def __init__(self, run_dir: Path, *, step: int = 0):
        """
        Args:
            step: the step a resumed run starts from; later points are dropped from the curves.
        """
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self.writer = SummaryWriter(run_dir, purge_step=step or None)
        self.lines = run_dir / "metrics.jsonl"

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        with self.lines.open("a") as file:
            file.write(
                json.dumps({"step": step, **{k: round(v, 6) for k, v in values.items()}}) + "\n"
            )

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """image: (H, W, 3) uint8 RGB"""
        self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class NoRecords:
    """In place of `RunRecords` on the processes that write nothing."""

    def scalars(self, *_) -> None: ...

    def image(self, *_) -> None: ...

    def close(self) -> None: ...


def write_settings(run_dir: Path, settings: dict) -> None:
    write_json_atomic(run_dir / "settings.json", settings)


def read_settings(run_dir: Path) -> dict:
    return json.loads((run_dir / "settings.json").read_text())
