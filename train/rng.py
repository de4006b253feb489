"""The states of all random generators of a process, in types that load without unpickling."""

import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Starts all generators of this process: the same seed, the same run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (what users' transforms may draw from)
    torch.manual_seed(seed)


def rng_state() -> dict:
    """Of Python, NumPy, torch and the CUDA devices of this process."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),  # uint32 does not travel
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict) -> None:
    """Inverse of `rng_state`; CUDA states of another number of devices are left out."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
