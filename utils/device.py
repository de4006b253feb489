"""Which device to run on."""

import os

import torch

from utils.errors import UserError


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU. A numbered GPU becomes the current one.

    Raises:
        UserError: no device of that name here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} is not here ({torch.cuda.device_count()} CUDA devices); "
            "use device=auto or device=cpu"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # otherwise what asks for no device goes to the first
    return device


def num_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
