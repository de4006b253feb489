"""Loggers for curves, pictures and texts (setting `logger`): TensorBoard, wandb, trackio.

A leaf: `train/run_folder.py` loads it when a run starts. Every logger has the same four methods;
the packages of `wandb` and `trackio` are optional.
"""

import contextlib
import importlib
import io
import os
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np

from utils.cli import log
from utils.errors import UserError, one_line
from utils.files import write_text_atomic

PROJECT = "pix2seq"  # WANDB_PROJECT and TRACKIO_PROJECT name another
OFFLINE = ("offline", "disabled", "dryrun")  # values of WANDB_MODE that need no account


class Logger(Protocol):
    """Interface of a logger."""

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds one point to each named curve."""

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        """image: (H, W, 3) uint8 RGB"""

    def add_text(self, step: int, name: str, text: str) -> None:
        """Sets the text of a name; replaces an earlier one."""

    def close(self) -> None:
        """Sends remaining data and closes the logger."""


class TensorBoard:
    """TensorBoard event files in the run folder."""

    def __init__(self, run_dir: Path, settings: dict, step: int):
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self.writer = SummaryWriter(run_dir, purge_step=step + 1 if step else None)
        if not step:
            self.add_text(0, "settings", "\n".join(f"{k} = {v}" for k, v in settings.items()))

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        self.writer.add_image(name, image, step, dataformats="HWC")

    def add_text(self, step: int, name: str, text: str) -> None:
        self.writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases; works offline with WANDB_MODE=offline.

    The step is a value of its own: a resumed run repeats steps, which W&B would refuse.
    """

    def __init__(self, run_dir: Path, settings: dict, step: int):
        self.wandb = importlib.import_module("wandb")
        try:
            self.run = self.wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=run_dir,
                name=_run_name(run_dir),
                id=_kept_id(run_dir / "wandb_id.txt"),
                resume="allow",
                config=settings,
                settings=self.wandb.Settings(console="off", silent=True),
            )
        except Exception as error:  # of its service, of the network, of the account
            raise UserError(
                f"logger=wandb: {one_line(error)}; use WANDB_MODE=offline or another logger"
            ) from error
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        if self.run.offline:
            log(f"wandb: offline; to send it later: wandb sync {Path(self.run.dir).parent}")
        else:
            log(f"wandb: {self.run.url}")

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values | {"step": step})

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        self.run.log({name: self.wandb.Image(image), "step": step})

    def add_text(self, step: int, name: str, text: str) -> None:
        self.run.summary[name] = text

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of trackio, in its own folder (TRACKIO_DIR) on this machine."""

    def __init__(self, run_dir: Path, settings: dict, step: int):
        self.trackio = importlib.import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        with _quiet():
            self.run = self.trackio.init(
                project=project,
                name=_run_name(run_dir),
                resume="allow",
                config=settings,
                embed=False,
            )
        log(f"trackio: to look at the curves: trackio show --project {project}")

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        self.run.log({name: self.trackio.Image(image, caption=name)}, step=step)

    def add_text(self, step: int, name: str, text: str) -> None:
        self.run.log({name: self.trackio.Markdown(f"```\n{text}\n```")}, step=step)

    def close(self) -> None:
        with _quiet():
            self.trackio.finish()  # after `run.finish` alone it would print at exit


LOGGERS = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def logger_names(setting: str) -> list[str]:
    """The loggers that the setting `logger` names, each once."""
    return [name for name in dict.fromkeys(setting.split(",")) if name != "none"]


def check_loggers(setting: str) -> None:
    """Checks that the loggers can be used, before any data is read.

    Raises:
        UserError: a package is missing, or nobody is logged in.
    """
    for name in logger_names(setting):
        if not _is_installed(name):
            raise UserError(
                f"logger={setting} needs the package {name}: pip install {name}; or use another "
                f"of {', '.join(LOGGERS)}, none"
            )
    if "wandb" in logger_names(setting):
        _check_account()


def _check_account() -> None:
    """Checks that wandb has an account to send to, or is offline."""
    try:
        settings = importlib.import_module("wandb").setup().settings
    except Exception as error:  # of its variables, such as WANDB_MODE
        raise UserError(f"logger=wandb: {one_line(error)}; see WANDB_MODE") from error
    has_key = settings.api_key or _is_in_netrc(urlsplit(settings.base_url).hostname)
    if settings.mode not in OFFLINE and not has_key:
        raise UserError(
            "logger=wandb finds no API key; run `wandb login`, or set WANDB_MODE=offline"
        )


def _is_installed(name: str) -> bool:
    """Whether there is such a package; a folder of results of that name is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def open_loggers(setting: str, run_dir: Path, settings: dict, step: int) -> list[Logger]:
    """Opens the loggers of a new or resumed run.

    Args:
        setting: names with commas, or "none".
        settings: of the run, plain values.
        step: that the run starts from; later points are dropped where the logger can do that.
    """
    return [LOGGERS[name](run_dir, settings, step) for name in logger_names(setting)]


def _run_name(run_dir: Path) -> str:
    """Such as detection-2026-01-31_12-00-00."""
    return f"{run_dir.parent.name}-{run_dir.name}"


def _kept_id(path: Path) -> str:
    """The id in a file of the run folder, which is made where it is missing."""
    if not path.is_file():
        write_text_atomic(path, f"{secrets.token_hex(8)}\n")
    return path.read_text().strip()


def _is_in_netrc(host: str | None) -> bool:
    """Whether `wandb login` may have left a key for this server."""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return f"{host}" in path.read_text(errors="replace")
    except OSError:
        return False


@contextlib.contextmanager
def _quiet():
    """Keeps what a library prints away from standard output, which is for results."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
