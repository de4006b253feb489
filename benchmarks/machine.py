"""What the benchmarks say and measure of the machine they run on."""

import platform
import resource
from collections.abc import Callable
from pathlib import Path

import torch

GPU_SIDE, GPU_TIMES = 8192, 10  # of matrices, so large that launching a product takes no time


def machine(device: torch.device) -> str:
    """The processor that did the work, by name where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({torch.get_num_threads()} threads)"


def large_products(
    device: torch.device, dtype: torch.dtype | None, side: int
) -> tuple[int, Callable[[], object]]:
    """FLOPs of some work, and that work: products of large matrices.

    Args:
        side: of the matrices on a CPU.
    """
    side, times = (GPU_SIDE, GPU_TIMES) if device.type == "cuda" else (side, 1)
    square = torch.rand(side, side, device=device, dtype=dtype)
    return 2 * side**3 * times, lambda: [square @ square for _ in range(times)]


def peak_memory_mb(device: torch.device) -> float:
    """Of the process until now, on a GPU of torch's own memory there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
