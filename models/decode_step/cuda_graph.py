"""The decoding step in tensors of fixed shape and place, so that a GPU can replay it.

A plain step is hundreds of small kernels, and launching them takes longer than running them. Here
the position is a tensor, and attention reads the whole cache through a mask. So every step is the
same sequence of kernels: it is captured once as a CUDA graph and then launched as a whole. Without
a GPU the same arithmetic runs without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoder import Cache, Decoder, LayerCache


@dataclass(kw_only=True)
class StaticLayerCache(LayerCache):
    """A `LayerCache` that is written at a position held on the device, and always read whole.

    Its `mask` is (1, 1, 1, max_len): 0 at the places up to `position`, -inf at the others.
    """

    position: Tensor  # (1,)

    def update(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes (R, nh, 1, hd) at `position`; `start` does not count."""
        self.k.index_copy_(2, self.position, k)
        self.v.index_copy_(2, self.position, v)
        return self.k, self.v


class StaticStep:
    """The decoder for one new token per row, after a prompt that is in the cache already.

    Args:
        id_range: the ids of the vocabulary that get logits.
        compiled: fuse the step with torch.compile, which takes half a minute or more at first.
    """

    rows_may_leave = False  # a graph is captured for their number

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        id_range: slice = slice(None),
        *,
        compiled: bool = False,
    ):
        self.decoder, self.cache, self.id_range = decoder, cache, id_range
        num_rows, _, max_len, _ = cache.layers[0].k.shape
        for layer in cache.layers:  # masked places must hold numbers: 0 * nan is nan
            layer.k[:, :, cache.length :] = 0
            layer.v[:, :, cache.length :] = 0
        device = decoder.token_embedding.device
        self.tokens = torch.zeros(num_rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.positions = torch.arange(max_len, device=device)
        self.compute = torch.compile(static_logits) if compiled else static_logits
        self.replay: Callable[[], Tensor] | None = None  # captured by the first call

    def __call__(self, tokens: Tensor) -> Tensor:
        """(R,) ids -> (R, V) float32 logits, to be used before the next call."""
        if self.cache.length >= self.decoder.max_len:
            raise ValueError(f"sequence must have at most {self.decoder.max_len} tokens, got more")
        self.tokens[:, 0] = tokens
        self.position.fill_(self.cache.length)
        self.cache.length += 1
        if self.replay is None:
            table, layers = self.decoder.output_table(self.id_range), self.cache.layers
            inputs = (self.decoder, layers, self.tokens, self.position, self.positions, table)
            # without `self`: a circle would keep the cache until the garbage collector comes
            self.replay = captured(partial(self.compute, *inputs), self.tokens.device)
        return self.replay()


def static_logits(
    decoder: Decoder,
    layers: list[LayerCache],
    tokens: Tensor,
    position: Tensor,
    positions: Tensor,
    table: tuple[Tensor, Tensor | None],
) -> Tensor:
    """What `Decoder.forward` and `logits` compute, (R, 1) ids at `position` -> (R, V) float32.

    Args:
        positions: (max_len,) all positions of the cache.
        table: embeddings and bias of the ids asked for, see `Decoder.output_table`.
    """
    # attention adds it to its scores: made once for all layers, of their type
    mask = torch.zeros(1, 1, 1, len(positions), dtype=layers[0].k.dtype, device=position.device)
    mask = mask.masked_fill(positions > position, -torch.inf)
    x = F.embedding(tokens, decoder.token_embedding) + decoder.positions[position]  # (R, 1, D)
    for layer, c in zip(decoder.layers, layers, strict=True):
        cache = StaticLayerCache(c.k, c.v, c.memory_k, c.memory_v, mask, position=position)
        x = layer(x, c.memory_k, c.memory_v, 0, cache)  # 0: the cache knows its position
    return F.linear(decoder.output_ln(x)[:, 0], *table).float()


def captured(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """`compute`, on a GPU as a CUDA graph: one launch, and one result tensor for all calls.

    The tensors that it reads must stay in place, and it must do the same each time.
    """
    if device.type != "cuda":
        return compute
    with torch.cuda.device(device):
        # Warm up on another stream: libraries initialise themselves in the first calls.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                compute()
        torch.cuda.current_stream().wait_stream(side)

        # Capture. "thread_local", because data loaders pin memory in their own threads meanwhile.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            out = compute()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
