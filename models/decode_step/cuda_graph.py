"""The decoding step in tensors of fixed shape and place, so that a GPU can replay it.

A plain step is hundreds of small kernels, and launching them takes longer than running them. Here
the position is a tensor, and attention reads the whole cache through a mask. So every step is the
same sequence of kernels: it is captured once as a CUDA graph and then launched as a whole, also in
later calls of `generate` of the same shape. Without a GPU the same arithmetic runs without a graph.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoder import Cache, Decoder, LayerCache

MOST_GRAPHS = 4  # that a device keeps when nobody uses them


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

    On a GPU the graph of an earlier call of the same shape is used again (`KeptGraphs`); the cache
    then moves into the tensors that the graph reads.

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
        self.decoder, self.cache, graphs = decoder, cache, kept_graphs(decoder)
        for layer in cache.layers:  # masked places must hold numbers: 0 * nan is nan
            layer.k[:, :, cache.length :] = 0
            layer.v[:, :, cache.length :] = 0
        key = _shape_of(decoder, cache, id_range, compiled)
        step = None if graphs is None else graphs.take(key, decoder)
        if step is None:
            step = FixedStep(decoder, cache.layers, id_range, graphs, compiled=compiled)
        else:
            step.move_in(cache)
        self.step = step
        if graphs is not None:  # when this call of `generate` is over
            weakref.finalize(self, graphs.keep, key, step).atexit = False

    def __call__(self, tokens: Tensor) -> Tensor:
        """(R,) ids -> (R, V) float32 logits, to be used before the next call."""
        if self.cache.length >= self.decoder.max_len:
            raise ValueError(f"sequence must have at most {self.decoder.max_len} tokens, got more")
        self.cache.length += 1
        return self.step(tokens, self.cache.length - 1)


class FixedStep:
    """A decoding step in tensors of its own, which stay where they are."""

    def __init__(
        self,
        decoder: Decoder,
        layers: list[LayerCache],
        id_range: slice,
        graphs: KeptGraphs | None,
        *,
        compiled: bool,
    ):
        num_rows, _, max_len, _ = layers[0].k.shape
        device = decoder.token_embedding.device
        self.layers, self.graphs, self.decoder = list(layers), graphs, weakref.ref(decoder)
        self.tokens = torch.zeros(num_rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.positions = torch.arange(max_len, device=device)
        compute = torch.compile(static_logits) if compiled else static_logits
        table = decoder.output_table(id_range)
        inputs = self.layers, self.tokens, self.position, self.positions, table
        # No method of this object: it would keep itself alive.
        self.compute: Callable[[], Tensor] | None = partial(compute, decoder, *inputs)
        self.graph: CapturedGraph | None = None  # of the first call

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        """(R,) ids at `position` -> (R, V) float32 logits, to be used before the next call."""
        self.tokens[:, 0] = tokens
        self.position.fill_(position)
        if self.graphs is None:
            return self.compute()
        if self.graph is None:
            self.graph = self.graphs.capture(self.compute)
            self.compute = None  # it holds the weights, which the graph does not keep alive
        return self.graph.replay()

    def move_in(self, cache: Cache) -> None:
        """Puts the values of a cache of the same shape into the own tensors, and these into it."""
        for own, other in zip(self.layers, cache.layers, strict=True):
            for name in ("k", "v", "memory_k", "memory_v"):
                getattr(own, name).copy_(getattr(other, name))
        cache.layers = list(self.layers)


def _shape_of(decoder: Decoder, cache: Cache, id_range: slice, compiled: bool) -> tuple:
    """What a graph depends on: shapes, where the weights lie, and switches of torch."""
    layer, device_type = cache.layers[0], decoder.token_embedding.device.type
    return (
        *(layer.k.shape, layer.memory_k.shape, layer.k.dtype),
        *(id_range.start, id_range.stop, compiled, decoder.training),
        *(torch.is_autocast_enabled(device_type), torch.get_float32_matmul_precision()),
        *(tensor.data_ptr() for tensor in (*decoder.parameters(), *decoder.buffers())),
    )


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


@dataclass
class CapturedGraph:
    """A CUDA graph, the stream it was captured on, and the tensor that its launches write."""

    graph: torch.cuda.CUDAGraph
    stream: torch.cuda.Stream
    out: Tensor

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.out


class KeptGraphs:
    """The steps of a device that were used last, with their graphs, for further calls.

    cuBLAS keeps a workspace for every stream, of up to 32 MiB and for good; so there are few
    streams, which are used again. And since torch 2.14 a graph that goes frees the workspace of its
    stream, also from under another graph; so a stream has one graph at a time.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.steps: OrderedDict[tuple, FixedStep] = OrderedDict()  # used last at the end
        self.streams: list[torch.cuda.Stream] = []  # that have no graph

    def take(self, key: tuple, decoder: Decoder) -> FixedStep | None:
        """A step that nobody uses, and that another call cannot get until it is back."""
        self._drop_orphans()
        step = self.steps.get(key)
        return self.steps.pop(key) if step is not None and step.decoder() is decoder else None

    def keep(self, key: tuple, step: FixedStep) -> None:
        """Takes a step back; the one that was not used for longest may have to go."""
        if step.graph is None:  # it never got that far
            return
        if key in self.steps:  # two of one shape were in use
            self.release(self.steps.pop(key))
        self.steps[key] = step
        self._drop_orphans()
        while len(self.steps) > MOST_GRAPHS:
            self.release(self.steps.popitem(last=False)[1])

    def clear(self) -> None:
        """Lets all steps go that nobody uses."""
        while self.steps:
            self.release(self.steps.popitem()[1])

    def release(self, step: FixedStep) -> None:
        """Ends a graph; its stream is free for another one only now."""
        graph, step.graph = step.graph, None
        torch.cuda.synchronize(self.device)  # it may still run
        graph.graph.reset()
        self.streams.append(graph.stream)

    def _drop_orphans(self) -> None:
        """Ends the graphs of decoders that are gone."""
        for key in [key for key, step in self.steps.items() if step.decoder() is None]:
            self.release(self.steps.pop(key))

    def capture(self, compute: Callable[[], Tensor]) -> CapturedGraph:
        """`compute` as a CUDA graph: one launch, and one result tensor for all calls.

        The tensors that it reads must stay in place, and it must do the same each time.
        """
        with torch.cuda.device(self.device):
            stream = self.streams.pop() if self.streams else torch.cuda.Stream()
            # Warm up on the stream: libraries initialise themselves in the first calls.
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    compute()
            torch.cuda.current_stream().wait_stream(stream)

            # Capture. "thread_local": data loaders pin memory in their own threads meanwhile.
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                out = compute()
        return CapturedGraph(graph, stream, out)


_KEPT: dict[torch.device, KeptGraphs] = {}


def kept_graphs(decoder: Decoder) -> KeptGraphs | None:
    """The graphs of the device that the decoder is on; None where there are no graphs."""
    device = decoder.token_embedding.device
    if device.type != "cuda":
        return None
    return _KEPT.setdefault(device, KeptGraphs(device))


def release_graphs(decoder: Decoder) -> None:
    """Frees the memory of graphs on the device of the decoder, until others are needed."""
    if graphs := kept_graphs(decoder):
        graphs.clear()
