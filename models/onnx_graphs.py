"""The model as two ONNX graphs: the encoder, and the decoder for any number of next tokens.

`encoder.onnx`: images -> memory, and the keys and values of cross-attention, projected once per
image. `decoder.onnx`: the next T tokens of N sequences of each image -> their logits, and the
caches of self-attention with the keys and values of these tokens written into them. Both take
every number of images B; the caches have a fixed number of places L, chosen by who decodes.

Needs the optional packages onnx and onnxscript; `export_graphs` is the only entrance.
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from models.decoder import Decoder, LayerCache
from models.pix2seq import Pix2Seq
from utils.errors import UserError

OPSET = 18  # of ONNX 1.13: onnxruntime 1.14 and later
KINDS = ("k", "v", "memory_k", "memory_v")  # tensors of a layer: names are f"{kind}_{layer}"


class EncoderGraph(nn.Module):
    """Images to memory and to the keys and values of every layer's cross-attention."""

    def __init__(self, model: Pix2Seq):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) floats in [0, 1] -> (B, S, D), then per layer twice (B, nh, S, hd)"""
        memory = self.model.encode(images)
        cache = self.model.decoder.init_cache(memory, num_rows=images.shape[0], max_len=1)
        projected = [(layer.memory_k, layer.memory_v) for layer in cache.layers]
        return memory, *(tensor for pair in projected for tensor in pair)


@dataclass(kw_only=True)
class GraphCache(LayerCache):
    """A `LayerCache` whose write positions are a tensor; it is always read completely.

    Its `mask` is (T, L): 0 at the places up to each token's position, -inf at the others.
    """

    positions: Tensor  # (T,) of the tokens that are read

    def update(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes (R, nh, T, hd) at `positions`; `start` does not count."""
        index = self.positions[:, None].expand_as(k)  # (R, nh, T, hd)
        self.k = torch.scatter(self.k, 2, index, k)
        self.v = torch.scatter(self.v, 2, index, v)
        return self.k, self.v


class DecoderGraph(nn.Module):
    """The next tokens of every sequence to logits and updated caches."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Reads T tokens of each of N sequences per image.

        Args:
            tokens: (B, N, T) ids.
            position: (1,) place of the first of them, 0 for a prompt.
            caches: per layer k, v (B * N, nh, L, hd) and memory_k, memory_v (B, nh, S, hd).

        Returns:
            (B, N, T, V) logits, then per layer k, v (B * N, nh, L, hd).
        """
        decoder = self.decoder
        positions = position + torch.arange(tokens.shape[2])  # (T,)
        places = torch.arange(caches[0].shape[2])  # (L,)
        mask = torch.where(places <= positions[:, None], 0.0, -torch.inf)  # (T, L)
        rows = tokens.flatten(0, 1)  # (R, T)
        x = F.embedding(rows, decoder.token_embedding) + decoder.positions[positions]
        written = []
        for layer, values in zip(decoder.layers, _groups(caches, len(KINDS)), strict=True):
            cache = GraphCache(*values, mask=mask, positions=positions)
            x = layer(x, cache.memory_k, cache.memory_v, 0, cache)
            written += [cache.k, cache.v]
        logits = decoder.logits(decoder.output_ln(x))  # (R, T, V)
        return logits.unflatten(0, tokens.shape[:2]), *written


def _groups(values: tuple, size: int) -> list[tuple]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def names_of(kinds: tuple[str, ...], num_layers: int) -> list[str]:
    """Names of the inputs or outputs that belong to the layers, in their order."""
    return [f"{kind}_{i}" for i in range(num_layers) for kind in kinds]


@torch.no_grad()
def export_graphs(model: Pix2Seq, folder: Path) -> None:
    """Writes encoder.onnx and decoder.onnx; weights of 2 GB and more lie beside them.

    Args:
        model: float32, in eval mode, on the CPU.
        folder: must exist.
    """
    c, decoder = model.config, model.decoder
    layers, batch = c.num_layers, Dim("batch", min=1)

    images = torch.rand(2, 3, *c.image_size)
    names = ["memory", *names_of(KINDS[2:], layers)]
    memory, *projected = EncoderGraph(model)(images)
    _write(
        EncoderGraph(model), (images,), folder / "encoder.onnx",
        (["images"], names), {"images": {0: batch}},
    )  # fmt: skip

    # Two images of three sequences: sizes that no other dimension has, so that none is confused.
    head_dim, places = c.dim // c.num_heads, 7
    caches = []
    for pair in _groups(projected, 2):
        empty = torch.zeros(6, c.num_heads, places, head_dim)
        caches += [empty, empty.clone(), *pair]
    rows, sequences = Dim.DYNAMIC, Dim("sequences", min=1)
    of_layer = [{0: rows, 2: Dim("places", min=1)}] * 2 + [{0: batch}] * 2
    shapes = {
        "tokens": {0: batch, 1: sequences, 2: Dim("tokens", min=1)},
        "position": None,
        "caches": tuple(of_layer * layers),
    }
    tokens = torch.zeros(2, 3, 4, dtype=torch.long)
    inputs = ["tokens", "position", *names_of(KINDS, layers)]
    outputs = ["logits", *(f"new_{name}" for name in names_of(KINDS[:2], layers))]
    _write(
        DecoderGraph(decoder), (tokens, torch.zeros(1, dtype=torch.long), *caches),
        folder / "decoder.onnx", (inputs, outputs), shapes,
    )  # fmt: skip


def _write(
    module: nn.Module, inputs: tuple, path: Path, names: tuple[list[str], list[str]], shapes: dict
) -> None:
    table = {torch.ops.aten.scaled_dot_product_attention.default: _attention()}
    with _quiet():
        program = torch.onnx.export(
            module.eval(), inputs, input_names=names[0], output_names=names[1],
            dynamic_shapes=shapes, opset_version=OPSET, custom_translation_table=table,
            dynamo=True, verbose=False,
        )  # fmt: skip
    program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what torch prints: hints for its developers, and pages of graphs before an error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of names of dimensions, and of torch's own future
            with redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(disabled)


def _attention():
    """`aten.scaled_dot_product_attention` as few operations, none of which copies the keys."""
    op = importlib.import_module("onnxscript").opset18
    op_types = importlib.import_module("onnxscript").ir.DataType

    def attention(
        query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
        enable_gqa=False,
    ):  # fmt: skip
        width = query.shape[-1]
        if is_causal:
            raise UserError(
                "its encoder calls scaled_dot_product_attention with is_causal=True, which the "
                "export does not know; give the mask as attn_mask instead"
            )
        if enable_gqa:
            raise UserError(
                "its encoder calls scaled_dot_product_attention with enable_gqa=True, which the "
                "export does not know; repeat keys and values with repeat_interleave instead"
            )
        scaled = op.Mul(query, op.Constant(value_float=float(scale or width**-0.5)))
        scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
        if attn_mask is not None and attn_mask.dtype == op_types.BOOL:
            outside = op.Constant(value_float=float("-inf"))
            scores = op.Where(attn_mask, scores, outside)
        elif attn_mask is not None:
            scores = op.Add(scores, attn_mask)
        return op.MatMul(op.Softmax(scores, axis=-1), value)

    return attention
