"""The Vision Transformer of the official implementation (its `architectures/transformers.py`)."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from models.layers import (
    Attention,
    Mlp,
    init_attention,
    init_weights,
    layer_norm,
    sin_cos_2d,
    trunc_normal,
)


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each a residual branch that may be dropped per image."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, drop_path, drop_units, drop_att):
        super().__init__()
        self.attention_ln, self.mlp_ln = layer_norm(dim), layer_norm(dim)
        self.attention = Attention(dim, num_heads, drop_att)
        self.mlp = Mlp(dim, mlp_dim, drop_units)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)"""
        x = x + self.drop_path(self.attention(self.attention_ln(x)))
        return x + self.drop_path(self.mlp(self.mlp_ln(x)))


class EncoderTransformer(nn.Module):
    """Stem LayerNorm, positions, optional class token, blocks, output LayerNorm.

    Args:
        grid: (h, w) of the image tokens.
        dim, num_layers, num_heads, mlp_dim: sizes.
        positions: "sin_cos" (computed) or "learned".
        cls_token: put a learned token, which has no position, in front of the image tokens.
        drop_path, drop_units, drop_attention: see `ModelConfig`; the same in every block.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        *,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        positions: str = "sin_cos",
        cls_token: bool = False,
        drop_path: float = 0.0,
        drop_units: float = 0.0,
        drop_attention: float = 0.0,
    ):
        super().__init__()
        self.stem_ln = layer_norm(dim)
        self.cls_token = nn.Parameter(trunc_normal(1, dim)) if cls_token else None
        if positions == "learned":
            self.positions = nn.Parameter(trunc_normal(grid[0] * grid[1], dim))
        else:
            self.register_buffer("positions", sin_cos_2d(grid, dim), persistent=False)
        drops = {"drop_path": drop_path, "drop_units": drop_units, "drop_att": drop_attention}
        self.blocks = nn.ModuleList(
            EncoderBlock(dim, num_heads, mlp_dim, **drops) for _ in range(num_layers)
        )
        self.output_ln = layer_norm(dim)
        self.apply(init_weights)
        for block in self.blocks:
            init_attention(block.attention, num_heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D), or (B, 1 + S, D) with a class token."""
        x = self.stem_ln(tokens) + self.positions
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.output_ln(x)


class OfficialViT(nn.Module):
    """Patches of the image through one convolution, then the transformer.

    Pixels beyond the last whole patch are not seen.

    Args:
        image_size: (H, W) of the input, pixels.
        patch: side of a patch, pixels.
        transformer: the other arguments of `EncoderTransformer`.
    """

    def __init__(self, image_size: tuple[int, int], patch: int, dim: int, **transformer):
        super().__init__()
        self.dim, self.grid = dim, (image_size[0] // patch, image_size[1] // patch)
        self.num_prefix_tokens = int(transformer.get("cls_token", False))
        self.stem_conv = nn.Conv2d(3, dim, patch, patch)
        self.transformer = EncoderTransformer(self.grid, dim, **transformer)
        nn.init.xavier_uniform_(self.stem_conv.weight)
        nn.init.zeros_(self.stem_conv.bias)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, S, D), row by row, class token first if there is one."""
        return self.transformer(self.stem_conv(images).flatten(2).transpose(1, 2))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which layer a parameter belongs to, in timm's way (layer-wise learning rates)."""
        return {
            "stem": r"^stem_conv|^transformer\.(?:stem_ln|positions|cls_token)",
            "blocks": r"^transformer\.blocks\.(\d+)",
            "norm": [(r"^transformer\.output_ln", (99999,))],  # with the last block
        }
