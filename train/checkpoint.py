"""The complete state of a run in one file: written atomically, the newest few kept, read without
unpickling, and where the newest is damaged the one before it is used."""

import json
import pickle
import time
import zipfile
from pathlib import Path

import torch

from models import ModelConfig, Pix2Seq, save_model
from models.config import different_settings
from train.distributed import whole_model
from train.state import TrainState
from utils.cli import log
from utils.errors import UserError, one_line
from utils.files import TEMPORARY, atomic_path

NAME = "last.ckpt"  # the newest; the one before it is last-1.ckpt, and so on


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, newest first, without half-written files."""
    older = [path for path in run_dir.glob("last-*.ckpt") if path.stem[5:].isdecimal()]
    newest = [run_dir / NAME] if (run_dir / NAME).is_file() else []
    return newest + sorted(older, key=lambda path: int(path.stem[5:]))


def save_checkpoint(
    run_dir: Path, state: TrainState, *, keep: int = 1, rotate: bool = True
) -> Path:
    """Writes run_dir/last.ckpt; the folder always contains a complete checkpoint.

    All processes have to call it, the first one writes.

    Args:
        keep: how many to keep, the new one included.
        rotate: keep the newest one as last-1.ckpt; otherwise the new one takes its place.
    """
    values = state.state_dict()
    if not state.world.is_main:
        return run_dir / NAME
    with atomic_path(run_dir / NAME) as path:
        try:
            with path.open("wb") as file:
                torch.save(values, file)
        except RuntimeError as error:  # torch hides why the file refused
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise UserError(f"cannot write {run_dir / NAME}: {one_line(error)}") from error
        if rotate:
            _make_room(run_dir, keep)
    return run_dir / NAME


def _make_room(run_dir: Path, keep: int) -> None:
    """Renames last -> last-1 -> last-2 and so on, oldest first: a kill in between loses none."""
    kept = checkpoints(run_dir)
    for path in kept[max(1, keep - 1) :]:
        path.unlink()
    if keep > 1:
        for age, path in reversed(list(enumerate(kept[: keep - 1], start=1))):
            path.replace(run_dir / f"last-{age}.ckpt")


def load_checkpoint(run_dir: Path, state: TrainState) -> Path:
    """Loads the newest complete checkpoint of run_dir into `state`; returns its path.

    A damaged one is reported in a line and the one before it used; it is set aside as
    `NAME.damaged`, so that no whole one makes room for it.

    Raises:
        UserError: there is none, all are damaged, or it is of another model.
    """
    paths = checkpoints(run_dir)
    if not paths:
        raise UserError(
            f"no checkpoint at {run_dir / NAME}; name the folder of a run with --resume"
        )
    damaged = []
    for path in paths:
        # Read the file; a damaged one is reported and the one before it tried.
        try:
            values = _read(path)
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            log(f"{path} is damaged ({reason})")
            damaged.append(path)
            continue

        # Put its values into the state, which may be of another model.
        try:
            state.check_origin(values)
            check_record(values.get("record"), state.model)
            state.load_state_dict(values)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = one_line(error, 400)
            raise UserError(
                f"cannot continue from {path}: {reason}; resume with the settings and the data it "
                "was made with, or start a new run from its weights: --set "
                f"init_weights={run_dir / 'last.safetensors'}"
            ) from error

        # Set the damaged ones aside, once all processes have read.
        state.world.broadcast(None)
        for bad in damaged if state.world.is_main else ():
            bad.replace(bad.with_name(bad.name + ".damaged"))
        return path
    raise UserError(
        f"cannot continue from {run_dir}: all its checkpoints ({len(paths)}) are damaged; start a "
        f"new run from its weights: --set init_weights={run_dir / 'last.safetensors'}"
    )


def check_record(record: str | None, model: Pix2Seq) -> None:
    """Checks that a checkpoint has the same model, classes and tokens as this run.

    Args:
        record: what `TrainState.state_dict` wrote; None: it was written before there was one.

    Raises:
        ValueError: another shape, other classes, bins, keypoints or pieces of text.
    """
    if record is None:
        return
    values = json.loads(record)
    if changes := different_settings(ModelConfig.from_json(values["config"]), model.config):
        raise ValueError(f"the model of a run cannot change: {', '.join(changes)}")
    meta, own = values["meta"], json.loads(json.dumps(model.meta))
    classes = [_class_names(each["categories"]) for each in (meta, own)]
    if classes[0] != classes[1]:
        theirs, ours = (_few(rows, other) for rows, other in (classes, classes[::-1]))
        raise ValueError(
            f"the classes of a run cannot change: it knows {theirs}, the data has {ours} (a new "
            "run matches classes by name)"
        )
    bins = [each["vocabulary"]["num_bins"] for each in (meta, own)]
    if bins[0] != bins[1]:
        raise ValueError(
            f"the tokens of a run cannot change: num_bins is {bins[0]} there, {bins[1]} here"
        )
    for task, name, words in (
        ("keypoint", "names", "keypoints"),
        ("captioning", "text", "caption_vocab"),
    ):
        theirs, ours = (each["tasks"].get(task, {}).get(name) for each in (meta, own))
        if theirs != ours:
            shown_parts = f": {', '.join(theirs)}; {', '.join(ours)}" if name == "names" else ""
            raise ValueError(f"its {words} differ from those here{shown_parts}")


def _class_names(categories: list[dict]) -> dict[int, str]:
    return {row["id"]: row["name"] for row in categories}


def _few(classes: dict[int, str], others: dict[int, str]) -> str:
    """The first classes that are not the same ones in the other."""
    rows = [f"{i} {name}" for i, name in classes.items() if others.get(i) != name]
    if not rows:
        return f"only {len(classes)} of them"
    return ", ".join(rows[:5]) + (", …" if len(rows) > 5 else "")


_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)


def _read(path: Path) -> dict:
    """The values in a checkpoint; anything that is not exactly what was written raises."""
    with zipfile.ZipFile(path) as file:  # torch reads without looking at the checksums
        broken = file.testzip()
    if broken is not None:
        raise ValueError(f"wrong checksum of {broken}")
    values = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(values, dict):
        raise ValueError("it holds no state of a run")
    return values


def remove_leftovers(run_dir: Path) -> None:
    """Removes half-written files of a process that was killed while saving."""
    for path in run_dir.rglob(".*"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _progress(state: TrainState) -> tuple[int, ...]:
    """What changes between two checkpoints."""
    return state.step, state.evaluated, state.best_step


class Saver:
    """Decides when a run is saved, and saves it.

    Args:
        run_dir: the run folder.
        keep: checkpoints to keep.
        steps: save when the step is a multiple of this; 0 = go by time alone.
        minutes: save after this time, also within an epoch; 0 = at the end of every epoch.
    """

    def __init__(self, run_dir: Path, *, keep: int, steps: int, minutes: float):
        self.run_dir, self.keep, self.steps, self.minutes = run_dir, keep, steps, minutes
        self._since = time.monotonic()
        self._saved: tuple[int, ...] | None = None  # what the newest checkpoint holds

    def due(self, step: int, *, epoch_end: bool = False) -> bool:
        """Whether to save now, after step number `step`."""
        if self.steps and step % self.steps == 0:
            return True
        if not self.minutes:
            return epoch_end
        return time.monotonic() - self._since > 60 * self.minutes

    def resumed(self, state: TrainState) -> None:
        """Records that the newest checkpoint already contains `state`."""
        self._saved = _progress(state)

    def save(self, state: TrainState) -> None:
        """Writes the weight files and last.ckpt, unless they already contain this state.

        All processes have to call it, the first one writes. The checkpoint comes last: once it is
        there, everything is. One of the same step (before its evaluation) is replaced.
        """
        now = _progress(state)
        if self._saved == now:
            return
        is_main = state.world.is_main
        model = whole_model(state.model, keep=is_main, device=torch.device("cpu"))
        if is_main:
            save_model(model, self.run_dir / "last.safetensors")
            if state.ema is not None:
                save_model(state.ema.module, self.run_dir / "last_ema.safetensors")
        again = self._saved is not None and self._saved[0] == state.step
        save_checkpoint(self.run_dir, state, keep=self.keep, rotate=not again)
        self._saved, self._since = now, time.monotonic()
