"""The autoregressive decoder: one `forward` for training and for cached decoding.

The same arithmetic is written again for single tokens in `decode_step/native.cpp`, and around the
layers in `decode_step/cuda_graph.py` (`static_logits`) and in `onnx_graphs.py` (`DecoderGraph`).
After a change of the decoder, change these too, or decode with `decode_mode=plain`, see
docs/extending.md. Compared in tests/test_native_step.py, test_static_step.py and test_onnx.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.layers import (
    LAYER_NORM_EPS,
    DropPath,
    Mlp,
    attend,
    init_attention,
    init_linear,
    layer_norm,
    merge_heads,
    one_turn,
    sin_cos_1d,
    split_heads,
    trunc_normal_,
)

TORCH_NORM_EPS = 1e-5  # of torch.nn.LayerNorm, which post-norm decoders were trained with
LOGITS_AT_ONCE = 2**25  # bytes of float32 logits that `Decoder.losses` holds at a time


@dataclass
class LayerCache:
    """Keys and values of one layer; the decoding loop owns them, not a module."""

    k: Tensor  # (R, nh, max_len, hd), self-attention, written in place
    v: Tensor  # (R, nh, max_len, hd)
    memory_k: Tensor  # (B, nh, S, hd), cross-attention, projected once per image; with
    memory_v: Tensor  # (B, nh, S, hd)  `Decoder.int8` both are bfloat16
    # over the cached keys; None = attend to all. `StaticStep` alone sets it: it reads all places
    mask: Tensor | None = None

    def update(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes (R, nh, T, hd) at `start`; returns everything up to `start + T`."""
        end = start + k.shape[2]
        self.k[:, :, start:end], self.v[:, :, start:end] = k, v
        return self.k[:, :, :end], self.v[:, :, :end]


@dataclass
class Cache:
    """One `LayerCache` per layer and the number of positions in use, prompt included."""

    layers: list[LayerCache]
    length: int = 0

    def spread(self, times: int, max_len: int) -> Cache:
        """A copy with every row repeated `times` times, and room for `max_len` positions."""
        layers = []
        for c in self.layers:
            rows, heads, _, head_dim = c.k.shape
            shape = rows * times, heads, max_len, head_dim
            k, v = c.k.new_empty(shape), c.v.new_empty(shape)
            k[:, :, : self.length] = c.k[:, :, : self.length].repeat_interleave(times, dim=0)
            v[:, :, : self.length] = c.v[:, :, : self.length].repeat_interleave(times, dim=0)
            layers.append(LayerCache(k, v, c.memory_k, c.memory_v))
        return Cache(layers, self.length)

    def select(self, rows: Tensor, images: Tensor) -> Cache:
        """A smaller cache: some rows, and the images they belong to."""
        layers = [
            LayerCache(c.k[rows], c.v[rows], c.memory_k[images], c.memory_v[images])
            for c in self.layers
        ]
        return Cache(layers, self.length)


class SelfAttention(nn.Module):
    """Causal attention among the tokens of a sequence."""

    def __init__(self, dim: int, num_heads: int, drop: float):
        super().__init__()
        self.num_heads, self.drop = num_heads, drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, start: int, cache: LayerCache | None) -> Tensor:
        """(R, T, D) -> (R, T, D); the T tokens have the positions `start`, `start + 1`, …"""
        heads = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # (R, T, 3, nh, hd)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (R, nh, T, hd)
        if cache is not None:
            k, v = cache.update(start, k, v)  # also the keys and values of earlier tokens
        mask = None if cache is None else cache.mask
        is_causal = False
        if mask is None and q.shape[2] > 1:
            if start == 0:
                is_causal = True  # SDPA aligns it top-left: right only while the cache was empty
            else:  # several tokens after others
                mask = q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(start)
        drop = self.drop if self.training else 0.0
        x = attend(q, k, v, mask=mask, is_causal=is_causal, drop=drop)
        return self.out(merge_heads(x))


class CrossAttention(nn.Module):
    """Attention from tokens to the image; all sequences of an image share its keys and values."""

    def __init__(self, dim: int, num_heads: int, drop: float):
        super().__init__()
        self.num_heads, self.drop = num_heads, drop
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> keys and values (B, nh, S, hd)"""
        k, v = self.kv(memory).chunk(2, dim=2)
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(R, T, D) -> (R, T, D) with R a multiple of B, the sequences of an image together."""
        num_rows, num_tokens, dim = x.shape
        # All tokens of all sequences of an image are one long sequence of queries.
        num_images = k.shape[0]  # `len` would fix it in an exported graph
        queries_per_image = num_rows // num_images * num_tokens
        per_image = self.q(x).reshape(num_images, queries_per_image, dim)  # (B, R / B * T, D)
        drop = self.drop if self.training else 0.0
        q = split_heads(per_image, self.num_heads)
        out = merge_heads(attend(q, k, v, drop=drop))
        return self.out(out).reshape(x.shape)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and MLP, each with a residual branch.

    LayerNorms are before the branches, or with `post_norm` after the sums, as in
    `torch.nn.TransformerDecoderLayer` (with its epsilon and ReLU).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        post_norm: bool,
        drop_path: float,
        drop_units: float,
        drop_att: float,
    ):
        super().__init__()
        self.post_norm = post_norm
        eps = TORCH_NORM_EPS if post_norm else LAYER_NORM_EPS
        self.self_ln, self.cross_ln, self.mlp_ln = (layer_norm(dim, eps) for _ in range(3))
        self.self_attention = SelfAttention(dim, num_heads, drop_att)
        self.cross_attention = CrossAttention(dim, num_heads, drop_att)
        self.mlp = Mlp(dim, mlp_dim, drop_units, F.relu if post_norm else F.gelu)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, memory_k: Tensor, memory_v: Tensor, start: int, cache: LayerCache | None
    ) -> Tensor:
        """(R, T, D) -> (R, T, D)

        Args:
            memory_k, memory_v: (B, nh, S, hd), of the images.
            start: position of the first token.
            cache: keys and values of the tokens before; None in training.
        """
        if self.post_norm:
            x = self.self_ln(x + self.drop_path(self.self_attention(x, start, cache)))
            x = self.cross_ln(x + self.drop_path(self.cross_attention(x, memory_k, memory_v)))
            return self.mlp_ln(x + self.drop_path(self.mlp(x)))
        x = x + self.drop_path(self.self_attention(self.self_ln(x), start, cache))
        x = x + self.drop_path(self.cross_attention(self.cross_ln(x), memory_k, memory_v))
        return x + self.drop_path(self.mlp(self.mlp_ln(x)))


class Decoder(nn.Module):
    """Token ids and image memory to hidden states; `logits` converts these to logits.

    Args:
        vocab_size: number of token ids.
        max_len: positions, prompt included.
        dim, num_layers, num_heads, mlp_dim: sizes.
        tie_embeddings: one matrix for input tokens and logits.
        output_bias: a bias per token id on the logits.
        positions: "learned", or "sin_cos" (computed).
        post_norm: LayerNorms after the sums, ReLU, no LayerNorm at the end.
        memory_len: number of image tokens, to which learned positions are added; None = none are.
        drop_path, drop_units, drop_attention: see `ModelConfig`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        max_len: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        tie_embeddings: bool = True,
        output_bias: bool = True,
        positions: str = "learned",
        post_norm: bool = False,
        memory_len: int | None = None,
        drop_path: float = 0.0,
        drop_units: float = 0.0,
        drop_attention: float = 0.0,
    ):
        super().__init__()
        self.num_heads, self.max_len = num_heads, max_len
        self.token_embedding = nn.Parameter(torch.empty(vocab_size, dim))
        self.output_embedding = (
            None if tie_embeddings else nn.Parameter(torch.empty(vocab_size, dim))
        )
        self.output_bias = nn.Parameter(torch.empty(vocab_size)) if output_bias else None
        # an attribute, so that `Pix2Seq.compile` can exclude it
        self.losses_in_chunks = _losses_in_chunks
        self.int8 = {}  # what `models.decode_step.native.quantize` made of the matrices, if asked
        if positions == "learned":
            self.positions = nn.Parameter(torch.empty(max_len, dim))
        else:
            codes = sin_cos_1d(one_turn(max_len), dim)  # (max_len, D)
            self.register_buffer("positions", codes, persistent=False)
        self.memory_positions = (
            None if memory_len is None else nn.Parameter(torch.empty(memory_len, dim))
        )
        drops = {"drop_path": drop_path, "drop_units": drop_units, "drop_att": drop_attention}
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, mlp_dim, post_norm=post_norm, **drops)
            for _ in range(num_layers)
        )
        self.output_ln = nn.Identity() if post_norm else layer_norm(dim)
        self.apply(init_linear)
        for layer in self.layers:
            init_attention(layer.self_attention, num_heads)
            init_attention(layer.cross_attention, num_heads)
        for parameter in self.parameters(recurse=False):
            trunc_normal_(parameter)  # `output_bias` too, as officially

    def init_cache(self, memory: Tensor, num_rows: int, max_len: int) -> Cache:
        """An empty cache for `num_rows` sequences of at most `max_len` tokens.

        Args:
            memory: (B, S, D) encoded images; row r of the sequences belongs to image
                r // (num_rows / B).
        """
        layers, memory = [], self._add_memory_positions(memory)
        for layer in self.layers:
            memory_k, memory_v = layer.cross_attention.project(memory)
            shape = (num_rows, self.num_heads, max_len, memory_k.shape[3])
            k, v = memory_k.new_empty(shape), memory_k.new_empty(shape)
            kept = torch.bfloat16 if self.int8 else memory_k.dtype
            memory_k, memory_v = (each.contiguous().to(kept) for each in (memory_k, memory_v))
            layers.append(LayerCache(k, v, memory_k, memory_v))
        return Cache(layers)

    def forward(
        self, tokens: Tensor, memory: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Hidden states of the next tokens.

        Args:
            tokens: (R, T) ids; with a cache, those that come after what it holds.
            memory: (B, S, D) encoded images, R a multiple of B, the sequences of an image
                together. Either this or a cache, which was made from it.

        Returns:
            (R, T, D)
        """
        if (memory is None) == (cache is None):
            raise ValueError("give either memory or a cache")
        start = cache.length if cache else 0
        end = start + tokens.shape[1]
        if end > self.max_len:
            raise ValueError(f"sequence must have at most {self.max_len} tokens, got {end}")
        x = F.embedding(tokens, self.token_embedding) + self.positions[start:end]  # (R, T, D)
        if cache is None:
            memory = self._add_memory_positions(memory)
            for layer in self.layers:
                x = layer(x, *layer.cross_attention.project(memory), start, None)
        else:
            for layer, c in zip(self.layers, cache.layers, strict=True):
                x = layer(x, c.memory_k.to(x.dtype), c.memory_v.to(x.dtype), start, c)
            cache.length = end
        return self.output_ln(x)

    def _add_memory_positions(self, memory: Tensor) -> Tensor:
        """Adds the learned positions of the memory, if there are any."""
        return memory if self.memory_positions is None else memory + self.memory_positions

    def logits(self, hidden: Tensor, id_range: slice = slice(None)) -> Tensor:
        """(..., D) -> (..., V), or the logits of some ids."""
        return F.linear(hidden, *self.output_table(id_range))

    def output_table(self, id_range: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
        """Output embeddings (V, D) and bias (V,) or None, for all ids or some of them."""
        bias = self.output_bias
        return self.output_weight[id_range], None if bias is None else bias[id_range]

    @property
    def output_weight(self) -> nn.Parameter:
        """Output embeddings (V, D): logits are their products with the hidden states."""
        tied = self.output_embedding is None
        return self.token_embedding if tied else self.output_embedding

    def losses(
        self, hidden: Tensor, targets: Tensor, loss_fn: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The loss of every token, computed in chunks if the logits would take much memory.

        With tens of thousands of ids the logits of a batch take many times the memory of all the
        rest. Of many tokens only a chunk has logits at a time. For the gradient, the logits of each
        chunk are computed a second time.

        Args:
            hidden: (M, D)
            targets: (M,) ids that `loss_fn` compares the logits with.
            loss_fn: (m, V) logits and (m,) targets of some tokens -> (m, ...). It must not draw
                random numbers.

        Returns:
            (M, ...)
        """
        table, bias = self.output_table()
        size = max(1, LOGITS_AT_ONCE // (4 * len(table)))
        if len(hidden) <= size:
            return loss_fn(F.linear(hidden, table, bias), targets)
        return self.losses_in_chunks(hidden, targets, table, bias, loss_fn, size)


def _losses_in_chunks(
    hidden: Tensor,
    targets: Tensor,
    table: Tensor,
    bias: Tensor | None,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    size: int,
) -> Tensor:
    """`Decoder.losses` for more than `size` tokens, `size` at a time."""

    def losses_of(hidden: Tensor, targets: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
        return loss_fn(F.linear(hidden, table, bias), targets)

    # `split` and not slices: its gradient is put together once, not once for each chunk.
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    options = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(losses_of, *chunk, table, bias, **options) for chunk in chunks])
