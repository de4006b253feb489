"""Coordinates in [0, 1]  <->  bins (official `utils.py`: quantize, dequantize)."""

import numpy as np


def quantize(coords: np.ndarray, num_bins: int, *, floor: bool = False) -> np.ndarray:
    """Nearest bin, ties to the even one, clamped to [0, num_bins - 1].

    Args:
        coords: any shape, 0 and 1 are the two edges of the image; NaN counts as 0.
        floor: take the bin below instead (`Vocabulary.floors`).

    Returns:
        int64 bins of the same shape.
    """
    # Clamp first: the result is the same, and huge values cannot overflow. `fmax` drops NaN.
    scaled = np.fmin(np.fmax(np.asarray(coords, dtype=np.float32), 0), 1) * np.float32(num_bins - 1)
    return (np.floor(scaled) if floor else np.rint(scaled)).astype(np.int64)


def dequantize(bins: np.ndarray, num_bins: int, *, floor: bool = False) -> np.ndarray:
    """Inverse of `quantize` up to half a bin: float32 coordinates, bin 0 is 0 and the last is 1.

    Args:
        floor: the bins were taken below: each is decoded half a bin higher, so the last one lies
            beyond 1.
    """
    shift = np.float32(0.5 if floor else 0)
    return (np.asarray(bins).astype(np.float32) + shift) / np.float32(num_bins - 1)
