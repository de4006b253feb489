"""The run folder: settings, curves, pictures and logs.

It also records what the run was computed with: versions, code, machine.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.cli import listening
from utils.errors import UserError
from utils.files import atomic_path, cannot_write, read_json, write_json_atomic, write_text_atomic

if TYPE_CHECKING:  # takes seconds to import, and a script looks for its run folder before it does
    import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "albumentations"),
    *("pycocotools", "safetensors", "tensorboard", "wandb", "trackio"),
)
VARIABLES = (  # beginnings of names of environment variables that change what is computed, or where
    *("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH", "PYTORCH_", "OMP_", "MKL_", "CUBLAS_"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID"),
)
CAPTION_VOCAB = "caption_vocab.json"
STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")


def environment(device: torch.device) -> dict:
    """Machine, versions and command of a run, as plain values for JSON."""
    import torch

    is_cuda = device.type == "cuda"
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git": git_state(ROOT),
        "host": platform.node(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if is_cuda else None,
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict | None:
    """Commit of a checkout and whether tracked files were changed; None outside of git."""
    if not (folder / ".git").exists():  # else a checkout around it would answer
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


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


def find_run_dir(
    runs_dir: Path,
    tasks: Iterable[str],
    name: str,
    *,
    dataset: str | None = None,
    data: Path | None = None,
) -> Path | None:
    """The run folder that `--resume` names.

    Args:
        name: a path, or "auto" for the newest of these tasks that has been saved.
        dataset: what it must train on; None = anything.
        data: the folder or file that "auto" must train on; None = any.

    Returns:
        None: "auto", and there is none yet.

    Raises:
        UserError: the path is no run folder, or one on another dataset.
    """

    def fits(run_dir: Path) -> bool:
        return dataset is None or read_settings(run_dir).get("dataset", dataset) == dataset

    if name == "auto":
        found = {path.parent for path in (runs_dir / "+".join(tasks)).glob("*/last*.ckpt")}
        newest = sorted(found, key=_started, reverse=True)
        return next((run for run in newest if fits(run) and _trains_on(run, data)), None)
    run_dir = Path(name)
    if not (run_dir / "settings.json").is_file():
        hint = "--resume wants a run folder or auto"
        if (run_dir.parent / "settings.json").is_file():  # a checkpoint in it, say
            hint = f"did you mean {run_dir.parent}?"
        raise UserError(f"no run in {run_dir}; {hint}")
    if not fits(run_dir):
        trained_on = read_settings(run_dir)["dataset"]
        raise UserError(f"{run_dir} trains on {trained_on}, this script on {dataset}")
    return run_dir


def _trains_on(run_dir: Path, data: Path | None) -> bool:
    """Whether the settings `data` or `train_json` of a run name this; None = whatever they are."""
    settings = read_settings(run_dir) if data is not None else {}
    named = settings.get("data") or settings.get("train_json") or ""
    return data is None or Path(named).absolute() == data.absolute()


def _started(run_dir: Path) -> tuple[str, int]:
    """When a run began: the stamp in its name, and the number among those of one second."""
    stamp, _, number = run_dir.name.rpartition("-")
    return (stamp, int(number)) if STAMP.fullmatch(stamp) else (run_dir.name, 1)


class RunRecords:
    """Writes curves and pictures to the run folder and to the loggers of the setting `logger`.

    The numbers are JSON lines, the pictures PNG files, the newest of each name.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        step: int = 0,
        evaluated: int = 0,
        logger: str = "tensorboard",
        settings: dict | None = None,
    ):
        """
        Args:
            step: the step a resumed run starts from; later points are dropped from the curves.
            evaluated: the step of its last evaluation; evaluations after it are dropped too.
            logger: names with commas, see `train/loggers.py`.
            settings: of the run, for loggers that show them.
        """
        threading.excepthook = _leave_to_the_main_thread
        loggers = importlib.import_module("train.loggers")
        with _written(run_dir):
            self.loggers = loggers.open_loggers(logger, run_dir, settings or {}, step)
        self.lines, self.pictures = run_dir / "metrics.jsonl", run_dir / "pictures"
        if self.lines.exists():
            _cut(self.lines, step, evaluated)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step, **{k: round(v, 6) for k, v in values.items()}}
        with _written(self.lines), self.lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for logger in self.loggers:
            with _written(self.lines.parent):
                logger.add_scalars(step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """image: (H, W, 3) uint8 RGB"""
        from utils.visualize import save_image  # with what it imports

        save_image(self._file(name), image)
        for logger in self.loggers:
            with _written(self.lines.parent):
                logger.add_image(step, name, image)

    def keep_picture(self, name: str, other: str) -> None:
        """Copies the newest picture of a name to another name, in the run folder only."""
        with atomic_path(self._file(other)) as path:
            shutil.copyfile(self._file(name), path)

    def text(self, step: int, name: str, text: str) -> None:
        """A text for the loggers."""
        for logger in self.loggers:
            with _written(self.lines.parent):
                logger.add_text(step, name, text)

    def close(self) -> None:
        for logger in self.loggers:
            with _written(self.lines.parent):
                logger.close()

    def _file(self, name: str) -> Path:
        return self.pictures / f"{name.replace('/', '_')}.png"


@contextmanager
def _written(place: Path) -> Iterator[None]:
    """Where the system refuses to write, it is one line."""
    try:
        yield
    except OSError as error:
        raise cannot_write(place, error) from error


def _leave_to_the_main_thread(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread that writes keeps its error for the next call: no traceback for it."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


class NoRecords:
    """Replaces `RunRecords` on processes that write nothing."""

    def scalars(self, *_) -> None: ...

    def image(self, *_) -> None: ...

    def keep_picture(self, *_) -> None: ...

    def text(self, *_) -> None: ...

    def close(self) -> None: ...


class TextLog:
    """log.txt of a run: the terminal output, including that from before the folder existed."""

    def __init__(self):
        self.path: Path | None = None
        self._waiting: list[str] = []

    def add(self, text: str) -> None:
        if self.path is None:
            self._waiting.append(text)
            return
        with (
            _written(self.path),
            self.path.open("a", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write(text + "\n")

    def open(self, run_dir: Path) -> None:
        """Starts writing in this folder, with a line for time and command."""
        self.path = run_dir / "log.txt"
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        lines, self._waiting = [f"== {now}  {shlex.join(sys.argv)}", *self._waiting], []
        self.add("\n".join(lines))

    def fail(self, text: str) -> None:
        """Adds the error that ended the run; never fails itself."""
        with suppress(UserError):
            self.add(text)


@contextmanager
def text_log() -> Iterator[TextLog]:
    """Records the output of this context, and an error that leaves it."""
    lines = TextLog()
    with listening(lines.add):
        try:
            yield lines
        except UserError as error:
            lines.fail("\n".join(f"error: {line}" for line in str(error).splitlines()))
            raise
        except Exception:
            lines.fail(traceback.format_exc())
            raise


def _cut(lines: Path, step: int, evaluated: int) -> None:
    """Drops what a killed run wrote after its checkpoint, and a line it did not finish."""
    kept = []
    for line in lines.read_text().splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        is_evaluation = any(name.startswith("val/") for name in values)
        if values["step"] <= (evaluated if is_evaluation else step):
            kept.append(line + "\n")
    write_text_atomic(lines, "".join(kept))


def write_settings(run_dir: Path, settings: dict) -> None:
    write_json_atomic(run_dir / "settings.json", settings)


def read_settings(run_dir: Path) -> dict:
    """The settings of a run.

    Raises:
        UserError: the file is missing or damaged.
    """
    values = read_json(run_dir / "settings.json", "resume another run")
    if not isinstance(values, dict):
        raise UserError(f"{run_dir / 'settings.json'} holds no settings; resume another run")
    return values


def settings_of_run(run_dir: Path) -> dict:
    """The settings of a resumed run: captions use the vocabulary stored in its folder."""
    settings, vocab = read_settings(run_dir), run_dir / CAPTION_VOCAB
    return settings | ({"caption_vocab": str(vocab)} if vocab.is_file() else {})


def write_caption_vocab(run_dir: Path, meta: dict) -> None:
    """Copies the caption vocabulary to the run, so that resuming needs no other file."""
    text = meta["tasks"].get("captioning", {}).get("text")
    if text is not None:
        write_json_atomic(run_dir / CAPTION_VOCAB, text, indent=None)


def write_environment(run_dir: Path, *, seed: int, device: torch.device, step: int) -> None:
    """Adds a line about machine, versions and command of this start of the run."""
    line = {"step": step, "seed": seed, **environment(device)}
    path = run_dir / "environment.jsonl"
    with _written(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
