"""The bridge from encoder to decoder (official `ar_model.py`)."""

from torch import Tensor, nn

from models.layers import Mlp, init_weights, layer_norm, sin_cos_2d


class Projection(nn.Module):
    """Linear, LayerNorm, + 2-D positions, one residual pre-norm MLP block.

    Args:
        dim_in, dim: widths of encoder and decoder.
        grid: (h, w) of the encoder's tokens.
        mode: "linear" stops after the LayerNorm, "linear_p" after the positions, "mlp" does all.
        mlp_ratio: hidden width of the MLP block divided by `dim`.
        drop: dropout inside the MLP block.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        grid: tuple[int, int],
        *,
        mode: str = "mlp",
        mlp_ratio: int = 4,
        drop: float = 0.0,
    ):
        super().__init__()
        self.mode = mode
        self.proj = nn.Linear(dim_in, dim)
        self.proj_ln = layer_norm(dim)
        if mode != "linear":
            self.register_buffer("positions", sin_cos_2d(grid, dim), persistent=False)  # (S, D)
        if mode == "mlp":
            self.mlp_ln = layer_norm(dim)
            self.mlp = Mlp(dim, dim * mlp_ratio, drop)
        self.apply(init_weights)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, C) -> (B, S, D)"""
        x = self.proj_ln(self.proj(features))
        if self.mode != "linear":
            x = x + self.positions
        if self.mode == "mlp":
            x = x + self.mlp(self.mlp_ln(x))
        return x
