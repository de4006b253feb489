"""The parts that encoder bridge and decoder are made of (official `transformers.py`)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6


def layer_norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


def init_weights(module: nn.Module) -> None:
    """Official initialisation: Glorot uniform kernels, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Mlp(nn.Module):
    """Linear, exact GELU, dropout, Linear."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0):
        super().__init__()
        self.dense1 = nn.Linear(dim, hidden)
        self.drop = nn.Dropout(drop)
        self.dense2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense2(self.drop(F.gelu(self.dense1(x))))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, D) -> (B, nh, T, hd)"""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, nh, T, hd) -> (B, T, D)"""
    return x.transpose(1, 2).flatten(2)


def sin_cos_1d(coords: Tensor, dim: int) -> Tensor:
    """Codes of positions: all sines, then all cosines.

    Args:
        coords: (N,) positions.
        dim: even width of the code.

    Returns:
        (N, dim)
    """
    rates = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)  # (dim / 2,)
    angles = coords[:, None].double() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sin_cos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Codes of a grid of image tokens: the first half of the channels is y, the second x.

    Coordinates run from 0 to 2 pi over the grid. A grid of one row or one column has the
    one-dimensional code of full width.

    Returns:
        (h * w, dim), row by row.
    """
    turns = [torch.arange(n) / max(n - 1, 1) * 2 * math.pi for n in grid]
    if 1 in grid:
        return sin_cos_1d(turns[0] if grid[1] == 1 else turns[1], dim)
    y, x = torch.meshgrid(*turns, indexing="ij")
    return torch.cat([sin_cos_1d(y.flatten(), dim // 2), sin_cos_1d(x.flatten(), dim // 2)], dim=1)
