"""Parts that encoders, projection and decoder share (official `transformers.py`)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6


class DropPath(nn.Module):
    """Stochastic depth: skips a residual branch at random per row in training, as timm does."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...); kept rows are scaled up by 1 / (1 - rate)."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * (kept.div_(keep) if keep > 0 else kept)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


def layer_norm(dim: int, eps: float = LAYER_NORM_EPS) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=eps)


def trunc_normal_(tensor: Tensor, std: float = 0.02) -> Tensor:
    """Fills a tensor with normal values, cut at two deviations as in Keras."""
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def trunc_normal(*shape: int) -> Tensor:
    """A new table of embeddings or positions."""
    return trunc_normal_(torch.empty(shape))


def init_linear(module: nn.Module) -> None:
    """Official initialisation: Glorot uniform kernels, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_attention(attention: nn.Module, num_heads: int) -> None:
    """Official initialisation of an attention; narrower than Glorot for a (D, D) matrix.

    Keras takes a kernel of shape (a, b, c) for a convolution: fan in + fan out = a * (b + c). Here
    the shapes are (D, nh, hd) for queries, keys and values, and (nh, hd, D) for the output.
    """
    dim = attention.out.out_features
    head_dim = dim // num_heads
    for name, layer in attention.named_children():
        if not isinstance(layer, nn.Linear):
            continue
        fans = num_heads * (head_dim + dim) if name == "out" else dim * (num_heads + head_dim)
        bound = math.sqrt(6 / fans)
        nn.init.uniform_(layer.weight, -bound, bound)


class Mlp(nn.Module):
    """Linear, exact GELU (or another activation), dropout, Linear."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        drop: float = 0.0,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ):
        super().__init__()
        self.activation = activation
        self.dense1 = nn.Linear(dim, hidden)
        self.drop = nn.Dropout(drop)
        self.dense2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense2(self.drop(self.activation(self.dense1(x))))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    drop: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention, (B, nh, T, hd) and twice (B, nh, S, hd) -> (B, nh, T, hd).

    Under mixed precision a CPU computes it in float32: its kernel for half types is far slower
    backward.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend(
                q.float(), k.float(), v.float(), mask=mask, is_causal=is_causal, drop=drop
            )
    return F.scaled_dot_product_attention(q, k, v, mask, drop, is_causal)


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
        dim: width of the code.

    Returns:
        (N, dim)
    """
    if coords.is_meta:
        return torch.empty(len(coords), dim, device="meta")
    rates = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)  # (dim / 2 up,)
    angles = coords[:, None].double() * rates
    return torch.cat([angles.sin(), angles[:, : dim // 2].cos()], dim=1).float()


def one_turn(count: int) -> Tensor:
    """(count,) positions from 0 to 2 pi."""
    if torch.get_default_device().type == "meta":  # where `arange` imports the compiler for seconds
        return torch.empty(count)
    return torch.arange(count, dtype=torch.float32) / max(count - 1, 1) * 2 * math.pi


def sin_cos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Codes of a grid of image tokens: the first half of the channels is y, the second x.

    Coordinates run from 0 to 2 pi over the grid. A grid of one row or one column has the
    one-dimensional code of full width.

    Returns:
        (h * w, dim), row by row.
    """
    turns = [one_turn(n) for n in grid]
    if 1 in grid:
        return sin_cos_1d(turns[0] if grid[1] == 1 else turns[1], dim)
    if turns[0].is_meta:
        return torch.empty(grid[0] * grid[1], dim, device="meta")
    y, x = torch.meshgrid(*turns, indexing="ij")
    return torch.cat([sin_cos_1d(y.flatten(), dim // 2), sin_cos_1d(x.flatten(), dim // 2)], dim=1)
