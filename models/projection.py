"""The bridge from encoder to decoder (official `ar_model.py`)."""

import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from models.layers import Mlp, init_weights, layer_norm, sin_cos_2d, trunc_normal


class ChannelAverage(nn.Module):
    """Means of neighbouring channels, without parameters: the bottleneck of the simple ports."""

    def __init__(self, dim: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool1d(dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, C) -> (B, S, D)"""
        return self.pool(features)


class Projection(nn.Module):
    """Linear, LayerNorm, + 2-D positions, one residual pre-norm MLP block.

    Args:
        dim_in, dim: widths of encoder and decoder.
        grid: (h, w) of the encoder's tokens.
        mode: "linear" stops after the LayerNorm, "linear_p" after the positions, "mlp" does all.
        mlp_ratio: hidden width of the MLP block divided by `dim`.
        positions: "sin_cos" (computed) or "learned".
        num_prefix_tokens: tokens in front of the grid's, which get no position.
        drop: dropout inside the MLP block.
        drop_path: rate at which the MLP block is skipped, per image.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        grid: tuple[int, int],
        *,
        mode: str = "mlp",
        mlp_ratio: int = 4,
        positions: str = "sin_cos",
        num_prefix_tokens: int = 0,
        drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.mode, self.num_prefix_tokens = mode, num_prefix_tokens
        self.proj = nn.Linear(dim_in, dim)
        self.proj_ln = layer_norm(dim)
        if mode != "linear" and positions == "learned":
            self.positions = nn.Parameter(trunc_normal(grid[0] * grid[1], dim))
        elif mode != "linear":
            self.register_buffer("positions", sin_cos_2d(grid, dim), persistent=False)  # (S, D)
        if mode == "mlp":
            self.mlp_ln = layer_norm(dim)
            self.mlp = Mlp(dim, dim * mlp_ratio, drop)
            self.drop_path = DropPath(drop_path)
        self.apply(init_weights)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, C) -> (B, S, D)"""
        x = self.proj_ln(self.proj(features))
        if self.mode != "linear":
            x = x + F.pad(self.positions, (0, 0, self.num_prefix_tokens, 0))
        if self.mode == "mlp":
            x = x + self.drop_path(self.mlp(self.mlp_ln(x)))
        return x
