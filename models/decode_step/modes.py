"""One token per row through the decoder: the numbers of `Decoder.forward`, sooner on a CPU.

A step with few rows is bound by reading the weights once. BLAS reads a matrix for one token on one
core; cut into blocks of rows and multiplied as a batch, every core reads its share. The blocks are
views: nothing is copied or packed, so weights may change between calls of `generate`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decode_step.cuda_graph import StaticStep
from models.decode_step.native import NativeStep, suits_native_step
from models.decoder import Cache, Decoder, DecoderLayer, LayerCache
from utils.errors import UserError

# "plain": the modules, or on a CPU in float32 their faster stand-in; "native": on a CPU C++ that is
# compiled at first use; "static": shapes that never change (finished rows stay), on a GPU one CUDA
# graph replayed per token; "compiled": that, its kernels fused by torch.compile. ("auto", which
# settings may say, is resolved by `Pix2Seq.prepare`.)
MODES = ("plain", "native", "static", "compiled")
CHOICES = ("auto", *MODES)


def check_decode_mode(setting: str) -> None:
    """Of the settings.

    Raises:
        UserError: there is no such mode.
    """
    if setting not in CHOICES:
        raise UserError(f"decode_mode must be one of {', '.join(CHOICES)}, got {setting!r}")


def next_logits(decoder: Decoder, cache: Cache, mode: str = "plain") -> Callable[..., Tensor]:
    """The function that reads the next tokens of all rows into the cache.

    Args:
        mode: one of `MODES`: how it goes on after the prompt.

    Returns:
        (R, T) ids, a slice of the vocabulary (default: all) -> (R, V) float32 logits of what
        follows the last id, of that slice.
    """
    step = one_token_step(decoder, cache, mode)

    def read(tokens: Tensor, part: slice = slice(None)) -> Tensor:
        if step is not None and tokens.shape[1] == 1 and cache.length > 0:
            return step(tokens[:, 0], part)
        hidden = decoder(tokens, cache=cache)[:, -1]  # (R, D)
        if part == slice(None):
            return decoder.logits(hidden).float()
        return F.linear(hidden, *decoder.output_table(part)).float()

    return read


def one_token_step(
    decoder: Decoder, cache: Cache, mode: str
) -> BlockedStep | NativeStep | StaticStep | None:
    """What stands in for `Decoder.forward` where one token per row is read; None = nothing does."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode in ("static", "compiled"):
        return StaticStep(decoder, cache, compiled=mode == "compiled")
    if not suits_cpu_step(decoder, cache):
        return None
    if mode == "native" and suits_native_step(decoder):
        return NativeStep(decoder, cache)
    is_float32 = decoder.token_embedding.dtype == torch.float32
    return BlockedStep(decoder, cache) if is_float32 else None


def suits_cpu_step(decoder: Decoder, cache: Cache) -> bool:
    """Whether something may stand in: on a CPU, in one type, and nothing to differentiate."""
    return (
        isinstance(decoder, Decoder)
        and decoder.token_embedding.device.type == "cpu"
        and decoder.token_embedding.dtype == cache.layers[0].k.dtype
        and not decoder.training
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


class BlockedStep:
    """The decoder for one new token per row, in float32."""

    def __init__(self, decoder: Decoder, cache: Cache):
        self.decoder, self.cache = decoder, cache
        self.layers = [
            LayerStep(layer, layer_cache)
            for layer, layer_cache in zip(decoder.layers, cache.layers, strict=True)
        ]
        self.heads: dict[tuple, RowBlocks] = {}  # of the parts of the vocabulary asked for

    def __call__(self, tokens: Tensor, part: slice) -> Tensor:
        """(R,) ids -> (R, len(part)) logits"""
        position = self.cache.length
        if position >= self.decoder.max_len:
            raise ValueError(f"sequence must have at most {self.decoder.max_len} tokens, got more")
        x = F.embedding(tokens, self.decoder.token_embedding) + self.decoder.positions[position]
        for layer in self.layers:
            x = layer(x, position)  # (R, D)
        self.cache.length = position + 1
        key = (part.start, part.stop)
        if key not in self.heads:
            self.heads[key] = RowBlocks(*self.decoder.output_table(part))
        return self.heads[key](self.decoder.output_ln(x)).contiguous()


class LayerStep:
    """A decoder layer for one new token per row, on its weights and its cache."""

    def __init__(self, layer: DecoderLayer, cache: LayerCache):
        self_attention, cross, mlp = layer.self_attention, layer.cross_attention, layer.mlp
        self.qkv, self.self_out = blocks_of(self_attention.qkv), blocks_of(self_attention.out)
        self.q, self.cross_out = blocks_of(cross.q), blocks_of(cross.out)
        self.dense1, self.dense2 = blocks_of(mlp.dense1), blocks_of(mlp.dense2)
        self.norms = [norm_of(ln) for ln in (layer.self_ln, layer.cross_ln, layer.mlp_ln)]
        self.activation, self.post_norm, self.cache = mlp.activation, layer.post_norm, cache
        self.num_images, self.num_heads, _, head_dim = cache.memory_k.shape
        self.memory_k = cache.memory_k.flatten(0, 1).transpose(1, 2)  # (B * nh, hd, S)
        self.memory_v = cache.memory_v.flatten(0, 1)  # (B * nh, S, hd)
        self.scale = head_dim**-0.5
        self.no_scores = cache.memory_k.new_empty(1)  # the addend that baddbmm wants and skips

    def __call__(self, x: Tensor, position: int) -> Tensor:
        """(R, D) -> (R, D), tokens at `position`"""
        branches = (lambda h: self._attend(h, position), self._cross_attend, self._mlp)
        for branch, norm in zip(branches, self.norms, strict=True):
            if self.post_norm:
                x = F.layer_norm(x + branch(x), *norm)
            else:
                x = x + branch(F.layer_norm(x, *norm))
        return x

    def _attend(self, x: Tensor, position: int) -> Tensor:
        qkv = self.qkv(x).reshape(len(x), 3, self.num_heads, -1).contiguous()
        q, k, v = qkv.unbind(1)  # each (R, nh, hd)
        keys, values = self.cache.update(position, k[:, :, None], v[:, :, None])
        out = F.scaled_dot_product_attention(q[:, :, None], keys, values)  # (R, nh, 1, hd)
        return self.self_out(out.flatten(1))

    def _cross_attend(self, x: Tensor) -> Tensor:
        """All rows of an image are one batch of queries against its keys."""
        per_image = self.q(x).reshape(self.num_images, -1, self.num_heads, self.head_dim)
        q = per_image.transpose(1, 2).flatten(0, 1)  # (B * nh, R / B, hd)
        scores = torch.baddbmm(self.no_scores, q, self.memory_k, beta=0, alpha=self.scale)
        out = torch.bmm(scores.softmax(2), self.memory_v)  # (B * nh, R / B, hd)
        out = out.unflatten(0, (self.num_images, -1)).transpose(1, 2)  # (B, R / B, nh, hd)
        return self.cross_out(out.reshape(x.shape))

    @property
    def head_dim(self) -> int:
        return self.memory_v.shape[2]

    def _mlp(self, x: Tensor) -> Tensor:
        return self.dense2(self.activation(self.dense1(x)))


class RowBlocks:
    """A linear layer whose matrix is cut into blocks of rows, multiplied as a batch.

    Args:
        weight: (out, in)
        bias: (out,) or None
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.count = count_blocks(len(weight))
        self.weight = weight.detach().unflatten(0, (self.count, -1))  # (blocks, rows, in)
        self.bias = None if bias is None else bias.detach().reshape(self.count, -1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """(R, in) -> (R, out), a transposed view"""
        columns = x.t().expand(self.count, -1, -1)  # (blocks, in, R)
        if self.bias is None:
            out = torch.bmm(self.weight, columns)  # (blocks, rows, R)
        else:
            out = torch.baddbmm(self.bias, self.weight, columns)
        return out.flatten(0, 1).t()


def count_blocks(rows: int) -> int:
    """Equal blocks that `rows` can be cut into, two per thread or a few more; 1 if that fails."""
    threads = torch.get_num_threads()
    counts = [*range(2 * threads, 16 * threads), *range(threads, 2 * threads)]
    return next((count for count in counts if rows % count == 0), 1)


def blocks_of(linear: nn.Linear) -> RowBlocks:
    return RowBlocks(linear.weight, linear.bias)


def norm_of(norm: nn.LayerNorm) -> tuple:
    """What `F.layer_norm` takes after its input."""
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps
