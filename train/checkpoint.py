"""The complete state of a run in one file, written atomically and read without unpickling."""

import pickle
from pathlib import Path

import torch

from train.state import TrainState
from utils.errors import UserError
from utils.files import atomic_path

NAME = "last.ckpt"


def save_checkpoint(run_dir: Path, state: TrainState) -> Path:
    """Writes run_dir/last.ckpt; an older one is replaced only when the new one is complete.

    All processes have to call it, the first one writes.
    """
    values = state.state_dict()
    if state.world.is_main:
        with atomic_path(run_dir / NAME) as path:
            torch.save(values, path)
    return run_dir / NAME


def load_checkpoint(run_dir: Path, state: TrainState) -> None:
    """Puts `state` where run_dir/last.ckpt left off.

    Raises:
        UserError: the file is missing, damaged, or of another model.
    """
    path = run_dir / NAME
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; name the folder of a run with --resume")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        state.load_state_dict(values)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot continue from {path}: {reason}") from error
