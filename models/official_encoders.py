"""The image encoders of the official implementation: a Vision Transformer, and ResNets.

They follow its `architectures/transformers.py` and `architectures/resnet.py`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import (
    DropPath,
    Mlp,
    attend,
    init_attention,
    init_linear,
    layer_norm,
    merge_heads,
    sin_cos_2d,
    split_heads,
    trunc_normal,
    trunc_normal_,
)

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # weight of the new batch: Keras' momentum 0.9


@dataclass(frozen=True)
class TransformerOptions:
    """Sizes of an encoder transformer and its dropout, the same in every block."""

    dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    positions: str = "sin_cos"  # | "learned"
    cls_token: bool = False  # put a class token, which has no position, in front
    drop_path: float = 0.0  # see `ModelConfig`
    drop_units: float = 0.0
    drop_attention: float = 0.0


class Attention(nn.Module):
    """Attention of every token to every token."""

    def __init__(self, dim: int, num_heads: int, drop: float = 0.0):
        super().__init__()
        self.num_heads, self.drop = num_heads, drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)"""
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, dim=2))
        return self.out(merge_heads(attend(q, k, v, drop=self.drop if self.training else 0.0)))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each a residual branch that may be dropped per image."""

    def __init__(self, options: TransformerOptions):
        super().__init__()
        dim = options.dim
        self.attention_ln, self.mlp_ln = layer_norm(dim), layer_norm(dim)
        self.attention = Attention(dim, options.num_heads, options.drop_attention)
        self.mlp = Mlp(dim, options.mlp_dim, options.drop_units)
        self.drop_path = DropPath(options.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)"""
        x = x + self.drop_path(self.attention(self.attention_ln(x)))
        return x + self.drop_path(self.mlp(self.mlp_ln(x)))


class EncoderTransformer(nn.Module):
    """Stem LayerNorm, positions, optional class token, blocks, output LayerNorm.

    Args:
        grid: (h, w) of the image tokens.
    """

    def __init__(self, grid: tuple[int, int], options: TransformerOptions):
        super().__init__()
        dim = options.dim
        self.stem_ln = layer_norm(dim)
        self.cls_token = nn.Parameter(trunc_normal(1, dim)) if options.cls_token else None
        if options.positions == "learned":
            self.positions = nn.Parameter(trunc_normal(grid[0] * grid[1], dim))
        else:
            self.register_buffer("positions", sin_cos_2d(grid, dim), persistent=False)
        self.blocks = nn.ModuleList(EncoderBlock(options) for _ in range(options.num_layers))
        self.output_ln = layer_norm(dim)
        self.apply(init_linear)
        for block in self.blocks:
            init_attention(block.attention, options.num_heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D), or (B, 1 + S, D) with a class token."""
        x = self.stem_ln(tokens) + self.positions
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.output_ln(x)


class OfficialViT(nn.Module):
    """Patches of the image through one convolution, then the transformer.

    Pixels beyond the last whole patch are ignored.

    Args:
        image_size: (H, W) of the input, pixels.
        patch: side of a patch, pixels.
    """

    def __init__(self, image_size: tuple[int, int], patch: int, options: TransformerOptions):
        super().__init__()
        self.dim, self.grid = options.dim, (image_size[0] // patch, image_size[1] // patch)
        self.num_prefix_tokens = int(options.cls_token)
        self.stem_conv = nn.Conv2d(3, self.dim, patch, patch)
        self.transformer = EncoderTransformer(self.grid, options)
        nn.init.xavier_uniform_(self.stem_conv.weight)
        nn.init.zeros_(self.stem_conv.bias)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, S, D), row by row, class token first if there is one."""
        return self.transformer(self.stem_conv(images).flatten(2).transpose(1, 2))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which layer a parameter belongs to, in timm's format (for layer-wise learning rates)."""
        return {
            "stem": r"^stem_conv|^transformer\.(?:stem_ln|positions|cls_token)",
            "blocks": r"^transformer\.blocks\.(\d+)",
            "norm": [(r"^transformer\.output_ln", (99999,))],  # with the last block
        }


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose running variance follows the biased batch variance, as in Keras.

    `nn.SyncBatchNorm.convert_sync_batchnorm` converts it like any other batch norm. The result
    follows the unbiased variance, which is n / (n - 1) times as large, with n the values per
    channel in all processes (8e-5 more for 32 images of 640 px at stride 32).
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # Autograd keeps the tensor that it updates, so that one must not be written to afterwards.
        updated, kept = self.running_var.clone(), (1 - self.momentum) * self.running_var
        out = F.batch_norm(
            x, self.running_mean, updated, self.weight, self.bias, True, self.momentum, self.eps
        )
        count = x.numel() // x.shape[1]
        self.running_var.copy_(kept + (updated - kept) * ((count - 1) / count))
        self.num_batches_tracked.add_(1)
        return out


class SamePool(nn.MaxPool2d):
    """Max pool that pads as TensorFlow's "SAME": an odd pixel comes at the end."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))"""
        pads = []
        for side in (x.shape[3], x.shape[2]):
            pad = (math.ceil(side / self.stride) - 1) * self.stride + self.kernel_size - side
            pads += [max(pad, 0) // 2, max(pad, 0) - max(pad, 0) // 2]
        return F.max_pool2d(F.pad(x, pads, value=-math.inf), self.kernel_size, self.stride)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution beside a shortcut.

    Args:
        shortcut: of another shape, where the block changes it; None = the input as it is.
    """

    EXPANSION = 4

    def __init__(
        self, dim_in: int, planes: int, stride: int = 1, shortcut: nn.Module | None = None
    ):
        super().__init__()
        dim = planes * self.EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(dim_in, planes, 1, bias=False), BatchNorm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, dim, 1, bias=False), BatchNorm(dim)
        self.relu, self.downsample = nn.ReLU(inplace=True), shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 * planes, H / stride, W / stride)"""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """Bottleneck ResNet (v1.5) without its head; every group starts with a projection shortcut.

    Args:
        depth: a key of `BLOCKS`.
        width: multiplies the channels.
        num_groups: 4 ends at stride 32 ("standard"), 3 at stride 16 ("c4").
    """

    def __init__(self, depth: int, width: float, num_groups: int):
        super().__init__()
        channels = round(64 * width)
        # 7x7 and 3x3 convolutions pad alike on both sides, the pool as TensorFlow's "SAME": even
        # sides get their padding at the end only.
        self.stem_conv = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
        self.stem_bn = BatchNorm(channels)
        self.stem_relu = nn.ReLU(inplace=True)
        self.stem_pool = SamePool(3, 2)
        self.dim, groups = channels, []
        for group, num_blocks in enumerate(BLOCKS[depth][:num_groups]):
            stride, planes = 1 if group == 0 else 2, channels * 2**group
            groups.append(self._group(planes, num_blocks, stride))
        self.groups = nn.ModuleList(groups)
        self._init()

    def _group(self, planes: int, num_blocks: int, stride: int) -> nn.Sequential:
        dim_in, self.dim = self.dim, planes * Bottleneck.EXPANSION
        shortcut = nn.Sequential(
            nn.Conv2d(dim_in, self.dim, 1, stride, bias=False), BatchNorm(self.dim)
        )
        first = Bottleneck(dim_in, planes, stride, shortcut)
        more = (Bottleneck(self.dim, planes) for _ in range(num_blocks - 1))
        return nn.Sequential(first, *more)

    def _init(self) -> None:
        """Variance scaling (fan in, truncated normal); blocks start as their shortcuts."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                # 0.8796 is the deviation of a unit normal that is cut at two deviations
                trunc_normal_(module.weight, std=fan_in**-0.5 / 0.87962566103423978)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the feature map of every group, (B, C, h, w), strides 4, 8, 16 (, 32)."""
        images = images.contiguous(memory_format=torch.channels_last)  # faster on CPU and GPU
        x = self.stem_pool(self.stem_relu(self.stem_bn(self.stem_conv(images))))
        features = []
        for group in self.groups:
            x = group(x)
            features.append(x)
        return features


class OfficialResNet(nn.Module):
    """The last feature map of a ResNet, projected, through the transformer.

    Args:
        image_size: (H, W) of the input, pixels.
        options: of the transformer; `drop_units` is applied to the feature map as well.
        depth, width, num_groups: see `ResNet`.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        options: TransformerOptions,
        *,
        depth: int = 50,
        width: float = 1.0,
        num_groups: int = 4,
    ):
        super().__init__()
        stride = 2 ** (num_groups + 1)
        self.dim, self.grid = options.dim, tuple(math.ceil(side / stride) for side in image_size)
        self.num_prefix_tokens = int(options.cls_token)
        self.resnet = ResNet(depth, width, num_groups)
        self.drop = nn.Dropout(options.drop_units)
        self.stem_projection = nn.Linear(self.resnet.dim, self.dim)
        self.transformer = EncoderTransformer(self.grid, options)
        init_linear(self.stem_projection)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, S, D), row by row, class token first if there is one."""
        features = self.features(images).flatten(2).transpose(1, 2)  # (B, S, C)
        return self.transformer(self.stem_projection(self.drop(features)))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H', W') -> (B, C, h, w), the last feature map"""
        return self.resnet(images)[-1]

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which layer a parameter belongs to, in timm's format (for layer-wise learning rates)."""
        return {
            "stem": r"^resnet\.stem",
            "groups": r"^resnet\.groups\.(\d+)\.(\d+)",
            "projection": r"^stem_projection|^transformer\.(?:stem_ln|positions|cls_token)",
            "blocks": r"^transformer\.blocks\.(\d+)",
            "norm": [(r"^transformer\.output_ln", (99999,))],  # with the last block
        }
