# ruff: noqa: F811  fixtures are arguments
"""Fixed shapes, compiled steps and half precision: the tokens of the plain loop, or near them."""

import gc
import weakref
from typing import ClassVar

import pytest
import torch

from models.decode_step import cuda_graph
from models.decode_step.cuda_graph import MOST_GRAPHS, FixedStep, KeptGraphs, StaticStep
from models.decoder import Cache
from models.generate import read_prompt
from tests.tiny_models import (
    EVERY_OPTION,
    VARIANTS,
    assert_same,
    assert_same_draws,
    beams_in_mode,
    count_rows,
    ends_at_some_time,
    in_mode,
    memory,  # noqa: F401  a fixture
    model,  # noqa: F401  a fixture
    prompts,
    tiny,
)


@pytest.fixture
def calls(monkeypatch):
    """How many rows each static step was called with."""
    return count_rows(monkeypatch, StaticStep)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 1), (2, 3, 5)])
def test_static_says_what_plain_says(calls, memory, variant, shape):
    model = tiny(**VARIANTS[variant])
    plain, static = (
        in_mode(mode, model, memory, prompts(*shape), num_samples=2) for mode in ("plain", "static")
    )
    assert_same(static, plain)
    assert len(calls) == 13  # all tokens but the first, which comes with the prompt


@pytest.mark.parametrize("option", EVERY_OPTION, ids=lambda option: next(iter(option)))
def test_static_takes_every_option(calls, model, memory, option):
    plain, static = (
        in_mode(mode, model, memory, prompts(2, 2, 3), num_samples=3, **option)
        for mode in ("plain", "static")
    )
    assert calls
    compare = assert_same_draws if "options" in option else assert_same
    compare(static, plain)
    compare(static[-2:], plain[-2:])


def test_static_reads_a_part_of_the_vocabulary(calls, model, memory):
    part = {"unscored_range": (100, 600), "allowed": lambda _: torch.arange(3000) < 600}
    plain, static = (
        in_mode(mode, model, memory, prompts(2, 1), **part)[0] for mode in ("plain", "static")
    )
    assert calls and torch.equal(static, plain)


def test_static_keeps_finished_rows_and_says_the_same(calls, model, memory):
    options = {"max_new_tokens": 30, "allowed": ends_at_some_time, "eos_id": 7}
    plain, static = (
        in_mode(mode, model, memory, prompts(2, 6, 3), **options) for mode in ("plain", "static")
    )
    assert_same(static, plain)
    assert set(calls) == {12}


def test_static_beam_search(calls, model, memory):
    plain, static = (
        beams_in_mode(mode, model, memory, prompts(2, 2)) for mode in ("plain", "static")
    )
    assert calls
    assert_same(static, plain)


def test_what_an_unwritten_cache_holds_does_not_matter(monkeypatch, model, memory):
    """Its memory is not cleared when it is made; a masked nan would still spoil the sum."""
    spread = Cache.spread

    def full_of_nan(cache, *args):
        new = spread(cache, *args)
        for layer in new.layers:
            layer.k[:, :, cache.length :] = layer.v[:, :, cache.length :] = torch.nan
        return new

    monkeypatch.setattr(Cache, "spread", full_of_nan)
    plain, static = (in_mode(mode, model, memory, prompts(2, 1, 3)) for mode in ("plain", "static"))
    assert_same(static, plain)


def test_static_refuses_a_sequence_longer_than_the_decoder(model, memory):
    with pytest.raises(ValueError, match="at most 40 tokens"):
        in_mode("static", model, memory, prompts(2, 1), max_new_tokens=41)


@pytest.mark.slow
def test_compiled_says_what_plain_says(model, memory):
    plain, compiled = (
        in_mode(mode, model, memory, prompts(2, 3, 5)) for mode in ("plain", "compiled")
    )
    assert_same(compiled, plain)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.cuda
@gpu
@pytest.mark.parametrize("mode", ["static", "compiled"])
def test_a_cuda_graph_says_what_plain_says(memory, mode):
    model, memory = tiny().cuda(), memory.cuda()
    options = {"eos_id": 7, "max_new_tokens": 30}
    for shape in ((2, 6, 3), (2, 1)):  # graphs of several shapes, one after another
        prompt = prompts(*shape).cuda()
        assert_same(
            in_mode(mode, model, memory, prompt, **options),
            in_mode("plain", model, memory, prompt, **options),
        )


@pytest.mark.cuda
@gpu
def test_a_cuda_graph_in_half_precision_says_nearly_what_plain_says(memory):
    model, memory = tiny().cuda(), memory.cuda().bfloat16()
    model.prepare(dtype=torch.bfloat16)
    prompt = prompts(2, 6, 3).cuda()
    graph, plain = (
        in_mode(mode, model, memory, prompt, max_new_tokens=9) for mode in ("static", "plain")
    )
    same = (graph[0] == plain[0]).all(1)
    assert same.float().mean() > 0.5, "ties of rounded logits apart"
    torch.testing.assert_close(graph[1][same], plain[1][same], atol=0.1, rtol=0.05)


@pytest.mark.cuda
@gpu
def test_graphs_of_earlier_calls_leave_no_memory_behind(memory):
    model, memory, held = tiny().cuda(), memory.cuda(), []
    for _ in range(40):
        in_mode("static", model, memory, prompts(2, 1).cuda(), max_new_tokens=12)
        held.append(torch.cuda.memory_allocated())
    assert held[-1] <= held[4] + 2**20


class EmulatedGraph:
    """A graph that computes instead of launching; its stream must have no other one."""

    alive: ClassVar[list] = []

    def __init__(self, compute, stream):
        assert stream not in [graph.stream for graph in self.alive]
        self.compute, self.stream, self.graph, self.out = compute, stream, self, compute()
        self.alive.append(self)

    def replay(self):
        self.out.copy_(self.compute())
        return self.out

    def reset(self):
        self.alive.remove(self)


class EmulatedGraphs(KeptGraphs):
    """As on a GPU, but for the capturing itself."""

    captures = num_streams = 0

    def capture(self, compute):
        self.captures += 1
        self.num_streams += not self.streams
        return EmulatedGraph(compute, self.streams.pop() if self.streams else self.num_streams)


@pytest.fixture
def graphs(monkeypatch):
    emulated = EmulatedGraphs(torch.device("cpu"))
    monkeypatch.setattr(EmulatedGraph, "alive", [])
    monkeypatch.setattr(cuda_graph, "kept_graphs", lambda _: emulated)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    return emulated


def same_in_both_modes(model, memory, prompt, **options):
    plain, static = (
        in_mode(mode, model, memory, prompt, **options) for mode in ("plain", "static")
    )
    assert_same(static, plain)


def test_one_graph_serves_all_calls_of_a_shape(graphs, model, memory):
    for seed in range(5):
        images = torch.randn(memory.shape, generator=torch.Generator().manual_seed(seed))
        same_in_both_modes(model, images, prompts(2, 3, 5) + seed)
        same_in_both_modes(model, images, prompts(2, 1), max_new_tokens=9)
        beams = (beams_in_mode(m, model, images, prompts(2, 2)) for m in ("plain", "static"))
        assert_same(*beams)
    assert graphs.captures == 3


def test_few_graphs_are_kept_and_each_has_a_stream_of_its_own(graphs, model, memory):
    for length in [*range(5, 12), *range(5, 12), 11, 10, 9, 8]:
        same_in_both_modes(model, memory, prompts(2, 1), max_new_tokens=length)
        assert len(EmulatedGraph.alive) <= MOST_GRAPHS + 1
    assert graphs.captures == 14, "the last four were kept"
    assert graphs.num_streams <= MOST_GRAPHS + 1
    cuda_graph.release_graphs(model.decoder)
    assert EmulatedGraph.alive == []


def test_a_graph_follows_weights_that_learn_and_not_those_that_moved(graphs, memory):
    model = tiny()
    for change in (lambda p: None, lambda p: p.data.mul_(1.1)):
        for parameter in model.parameters():
            change(parameter)
        same_in_both_modes(model, memory, prompts(2, 1))
    assert graphs.captures == 1
    for parameter in model.parameters():
        parameter.data = parameter.data.clone() * 0.9
    same_in_both_modes(model, memory, prompts(2, 1))
    assert graphs.captures == 2


def test_a_model_that_is_gone_is_not_kept_by_its_graphs(graphs, memory):
    model = tiny()
    same_in_both_modes(model, memory, prompts(2, 1))
    gone = weakref.ref(model.decoder)
    EmulatedGraph.alive[0].compute = None  # a real one has no Python to run
    del model
    gc.collect()
    assert gone() is None and len(EmulatedGraph.alive) == 1
    same_in_both_modes(tiny(), memory, prompts(2, 2))
    assert len(EmulatedGraph.alive) == 1


def test_two_calls_at_the_same_time_do_not_share_a_graph(graphs, model, memory):
    """Steps in turns, as two threads would take them."""
    expected, steps = [], []
    for seed in (1, 2):
        images = memory * seed
        tokens = in_mode("plain", model, images, prompts(2, 1), max_new_tokens=9)[0]
        cache = read_prompt(model.decoder, images, prompts(2, 1), 1, 9)[1]
        expected.append(tokens), steps.append(StaticStep(model.decoder, cache))
    for t in range(8):
        for tokens, step in zip(expected, steps, strict=True):
            assert torch.equal(step(tokens[:, t]).argmax(1), tokens[:, t + 1])
    del step
    steps.clear()
    assert graphs.captures == 2 and len(EmulatedGraph.alive) == 1


def test_without_a_gpu_nothing_outlives_a_call(model, memory, monkeypatch):
    steps, made = [], FixedStep.__init__
    monkeypatch.setattr(
        FixedStep, "__init__", lambda s, *a, **k: steps.append(weakref.ref(s)) or made(s, *a, **k)
    )
    gc.disable()
    try:
        in_mode("static", model, memory, prompts(2, 1))
        assert [step() for step in steps] == [None]
    finally:
        gc.enable()


def test_half_precision_keeps_scores_in_float32_and_near(memory):
    exact, half = tiny(), tiny()
    half.prepare(dtype=torch.bfloat16)
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        encoded = [model.encode(pictures) for model in (exact, half)]
    assert encoded[1].dtype == half.dtype == torch.bfloat16
    assert half.mean.dtype == torch.float32
    torch.testing.assert_close(encoded[1].float(), encoded[0], atol=0.05, rtol=0.05)
    tokens, log_probs = half.generate(encoded[1], prompts(2, 1), max_new_tokens=5)
    assert log_probs.dtype == torch.float32 and (log_probs <= 0).all()
    forced = exact(pictures, torch.cat([prompts(2, 1), tokens[:, :-1]], 1)).log_softmax(2)
    expected = forced.gather(2, tokens[:, :, None])[:, :, 0]
    torch.testing.assert_close(log_probs, expected, atol=0.3, rtol=0.05)
