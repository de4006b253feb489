"""What a run was computed with: versions, code, machine."""

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "albumentations"),
    *("pycocotools", "safetensors", "tensorboard"),
)
VARIABLES = (  # beginnings of names of environment variables that change what is computed, or where
    *("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH", "PYTORCH_", "OMP_", "MKL_", "CUBLAS_"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID"),
)


def environment(device: torch.device) -> dict:
    """Plain values, ready for JSON."""
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
