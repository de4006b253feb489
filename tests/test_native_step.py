# ruff: noqa: F811  fixtures are arguments
"""The step in C++ says what the plain decoder says, on all lanes and with every option."""

import copy
import os
import shutil

import pytest
import torch

from models.decode_step import PlainStep, build_step, native
from models.decode_step.native import NativeStep, address
from models.decoder import Cache, Decoder, LayerCache
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
from utils.errors import UserError

KINDS = ("DEFAULT", "AVX2", "AVX512")  # what torch calls them: 4, 8 and 16 lanes
THIS = torch.backends.cpu.get_cpu_capability()
EARLIER = THIS in KINDS and "ATEN_CPU_CAPABILITY" not in os.environ  # which asks for one kind
CAPABILITIES = KINDS[: KINDS.index(THIS) + 1] if EARLIER else (THIS,)
LAST = CAPABILITIES[-2:]  # where compiling for all takes too long
compiler = pytest.mark.skipif(
    not any(map(shutil.which, native.COMPILERS)), reason="needs a C++ compiler"
)


def on_lanes_of(monkeypatch, name):
    """The code for a processor of this or an earlier kind."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)


@pytest.fixture(scope="module", autouse=True)
def cache_home(make_once):
    """Not the cache folder of whoever runs the tests: one of all processes of this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(make_once("native", lambda folder: folder)))
        yield


@pytest.fixture(autouse=True)
def fresh():
    """Every test asks anew for the library."""
    forget()
    yield
    forget()


def forget():
    native.library.cache_clear()
    native.obstacle.cache_clear()


@pytest.fixture
def calls(monkeypatch):
    """How many rows each native step was called with; nothing else may stand in for it."""
    return count_rows(monkeypatch, NativeStep)


def plain_and_native(model, memory, prompt, **options):
    return (in_mode(mode, model, memory, prompt, **options) for mode in ("plain", "native"))


@compiler
@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8, 9, 16, 23, 40])
def test_any_number_of_rows_on_any_lanes(monkeypatch, calls, model, memory, name, rows):
    on_lanes_of(monkeypatch, name)
    plain, fast = plain_and_native(model, memory[:1], prompts(1, rows, 3))
    assert calls == [rows] * 13  # all tokens but the first, which comes with the prompt
    assert_same(fast, plain)


@compiler
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 1), (2, 3, 5), (2, 11, 2)])
def test_every_variant_of_the_decoder(calls, memory, variant, shape):
    plain, fast = plain_and_native(tiny(**VARIANTS[variant]), memory, prompts(*shape))
    assert calls
    assert_same(fast, plain)


@compiler
@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (3, 16), (1, 48), (3, 32), (2, 80)])
def test_any_width_of_16s(monkeypatch, calls, name, heads, head_dim):
    on_lanes_of(monkeypatch, name)
    dim = heads * head_dim
    model = tiny(dim=dim, num_heads=heads, mlp_dim=112, vocab_size=1009)
    memory = torch.randn(1, 9, dim, generator=torch.Generator().manual_seed(0))
    for rows in (1, 3, 17):
        plain, fast = plain_and_native(model, memory, prompts(1, rows, 2))
        assert_same(fast, plain)
    assert calls


@compiler
@pytest.mark.parametrize(
    ("variant", "rows", "name"),
    list(zip(VARIANTS, (1, 2, 5, 8, 16, 23), 6 * LAST, strict=False)),
)
@torch.no_grad()
def test_half_precision_is_that_of_weights_and_cache_alone(
    monkeypatch, memory, variant, rows, name
):
    """All else is float32: the modules in float32 say the same with rounded weights and cache."""
    on_lanes_of(monkeypatch, name)
    half = tiny(**VARIANTS[variant])
    half.prepare(dtype=torch.bfloat16, mode="native")
    cache = half.decoder.init_cache(memory.bfloat16(), 2 * rows, 12)
    half.decoder(prompts(2 * rows, 3), cache=cache)
    fast, exact = NativeStep(half.decoder, cache), copy.deepcopy(half).float().decoder
    arrays = [(each.k, each.v, each.memory_k, each.memory_v) for each in cache.layers]
    rounded = Cache([Rounded(*(a.float() for a in each)) for each in arrays], cache.length)
    for tokens in prompts(9, 2 * rows):
        expected = exact.logits(exact(tokens[:, None], cache=rounded)[:, 0])
        torch.testing.assert_close(fast(tokens), expected, atol=1e-3, rtol=1e-4)
    for ours, theirs in zip(cache.layers, rounded.layers, strict=True):
        for a, b in ((ours.k.float(), theirs.k), (ours.v.float(), theirs.v)):
            assert (a == b).float().mean() > 0.99, "a few are rounded to the other side"
            torch.testing.assert_close(a, b, atol=1e-3, rtol=2**-6)


class Rounded(LayerCache):
    """Holds float32, of which only what is bfloat16 as well."""

    def update(self, start, k, v):
        return super().update(start, k.bfloat16().float(), v.bfloat16().float())


@compiler
def test_half_precision_decodes_near_to_the_whole(calls, memory):
    whole, half = tiny(), tiny()
    half.prepare(dtype=torch.bfloat16, mode="auto")
    calls.clear()  # without the step that compares
    tokens, scores = half.generate(memory.bfloat16(), prompts(2, 3, 5), max_new_tokens=9)
    assert calls == [6] * 8 and scores.dtype == torch.float32
    best, exact = whole.generate(memory, prompts(2, 3, 5), max_new_tokens=9)
    same = (tokens == best).all(-1)
    assert same.float().mean() > 0.5
    torch.testing.assert_close(scores[same], exact[same], atol=0.1, rtol=0.05)


@compiler
@pytest.mark.parametrize(
    ("variant", "rows", "name"),
    list(zip(VARIANTS, (1, 2, 5, 8, 16, 23), 6 * LAST, strict=False)),
)
def test_int8_says_what_the_modules_say_with_the_rounded_weights(
    monkeypatch, calls, memory, variant, rows, name
):
    on_lanes_of(monkeypatch, name)
    model = tiny(**VARIANTS[variant])
    model.prepare(dtype=torch.int8, mode="native")
    calls.clear()  # without the step that compares
    for shape in ((2, rows), (2, 1), (1, 1)):
        plain, fast = plain_and_native(model, memory[: shape[0]], prompts(*shape))
        assert_same(fast, plain)
    assert calls and len(model.decoder.int8) == 6 * 2 + 1


@compiler
@torch.no_grad()
def test_int8_rounds_to_the_nearest_of_255_numbers_of_an_output():
    exact, model = tiny(), tiny()
    exact.decoder.layers[0].mlp.dense1.weight[3] = model.decoder.layers[0].mlp.dense1.weight[3] = 0
    model.prepare(dtype=torch.int8, mode="auto")
    assert model.decode_mode == "native" and model.dtype == torch.float32
    before, rounded = exact.state_dict(), 0
    for name, weight in model.named_parameters():
        if weight not in model.decoder.int8:
            assert torch.equal(weight, before[name])
            continue
        numbers, scale = model.decoder.int8[weight]
        most = before[name].abs().amax(1)
        torch.testing.assert_close(scale, most / 127)
        assert torch.equal(numbers.abs().amax(1).float(), torch.where(most > 0, 127.0, 0.0))
        assert ((weight - before[name]).abs() <= 0.501 * scale[:, None]).all()
        rounded += 1
    assert rounded == len(model.decoder.int8)
    # What is rounded once stays, and the table of a part of the vocabulary is a part of it.
    again = copy.deepcopy(model)
    again.prepare(dtype=torch.int8, mode="plain")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, again.get_parameter(name), atol=0, rtol=1e-6)
    again.prepare(mode="plain")
    assert again.decoder.int8 == {}


@compiler
@torch.no_grad()
def test_int8_is_what_the_step_reads(memory):
    """Other numbers there, and the answers differ; of a part of the vocabulary, too."""
    model = tiny()
    model.prepare(dtype=torch.int8, mode="native")
    cache, part = model.decoder.init_cache(memory, 2, 9), slice(100, 600)
    whole = NativeStep(model.decoder, cache)(prompts(2))
    cache.length = 0
    some = NativeStep(model.decoder, cache, part)(prompts(2))
    torch.testing.assert_close(some, whole[:, part], atol=1e-4, rtol=1e-5)
    for numbers, _ in model.decoder.int8.values():
        numbers.neg_()
        cache.length = 0
        assert not torch.allclose(NativeStep(model.decoder, cache)(prompts(2)), whole, atol=1e-3)
        numbers.neg_()


@compiler
@pytest.mark.parametrize("rows", [1, 5, 23])
@torch.no_grad()
def test_int8_keeps_keys_and_values_of_the_image_in_half_the_bytes(memory, rows):
    """They are rounded once: float32 steps on the rounded ones say the same, and others nearly."""
    model = tiny()
    model.prepare(dtype=torch.int8, mode="native")
    whole = copy.copy(model.decoder)  # the same rounded weights, read as float32
    whole.int8 = {}
    cache, exact = (d.init_cache(memory, 2 * rows, 9) for d in (model.decoder, whole))
    upcast = copy.deepcopy(exact)
    for ours, theirs, same in zip(cache.layers, exact.layers, upcast.layers, strict=True):
        for name in ("memory_k", "memory_v"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name).bfloat16())
            setattr(same, name, getattr(ours, name).float())
        assert ours.k.dtype == ours.v.dtype == theirs.memory_k.dtype == torch.float32
    fast, alike, near = (
        NativeStep(decoder, each)(prompts(2 * rows))
        for decoder, each in ((model.decoder, cache), (whole, upcast), (whole, exact))
    )
    torch.testing.assert_close(fast, alike, atol=1e-4, rtol=1e-5)
    assert not torch.equal(alike, near)
    torch.testing.assert_close(alike, near, atol=0.3, rtol=0.05)


CHANGES = {  # what somebody may try in `Decoder`, without a new part
    "scale": lambda x: 1.1 * x,
    "nonlinearity": torch.tanh,
    "order of channels": lambda x: x.flip(-1),
}


@compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("name", CHANGES)
def test_a_decoder_whose_forward_was_changed_decodes_with_its_modules(monkeypatch, name, dtype):
    forward = Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda *a, **k: CHANGES[name](forward(*a, **k)))
    model = tiny().train()
    kept = model.state_dict() | {n: v.clone() for n, v in model.state_dict().items()}
    for mode in ("auto", "native"):
        if mode == "auto" and dtype != torch.int8:
            model.prepare(mode="auto", dtype=dtype)
        else:
            with pytest.raises(UserError, match="what this decoder's forward computes"):
                model.prepare(mode=mode, dtype=dtype)
        assert model.decode_mode == "plain" and model.decoder.int8 == {} and model.training
        assert all(m.training for m in model.decoder.modules())
    after = model.float().state_dict()
    for key, value in kept.items():
        rounded = value.to(torch.bfloat16 if dtype == torch.bfloat16 else value.dtype)
        assert torch.equal(after[key], rounded.to(value.dtype))
    monkeypatch.undo()
    model.prepare(mode="auto", dtype=dtype)
    assert model.decode_mode == "native"


@compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_decoder_of_ours_has_the_native_step(variant, dtype):
    """Also under mixed precision, with weights that are no numbers, and with a far logit."""
    model = tiny(**VARIANTS[variant])
    with torch.autocast("cpu"):
        model.prepare(mode="auto", dtype=dtype)
    assert model.decode_mode == "native"
    for value in (1e9, -torch.inf, torch.nan):
        with torch.no_grad():
            norms = [m for m in model.decoder.modules() if isinstance(m, torch.nn.LayerNorm)]
            norms[-1].bias[0] = value
            if getattr(model.decoder, "output_bias", None) is not None:
                model.decoder.output_bias[5] = value
        model.prepare(
            mode="auto", dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        )
        assert model.decode_mode == "native"


def test_int8_without_the_native_step_is_one_line(monkeypatch, tmp_path, memory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for mode in ("static", "compiled"):
        with pytest.raises(UserError, match="int8 is for decode_mode=native or auto"):
            tiny().prepare(dtype=torch.int8, mode=mode)
    with pytest.raises(UserError, match="multiples of 16"):
        tiny(mlp_dim=100).prepare(dtype=torch.int8, mode="auto")
    monkeypatch.setenv("CXX", "false")
    model, before = tiny(), tiny().state_dict()
    for mode in ("auto", "native"):
        with pytest.raises(
            UserError, match="int8 needs the native step: the C\\+\\+ compiler"
        ) as e:
            model.prepare(dtype=torch.int8, mode=mode)
        assert "\n" not in str(e.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.prepare(dtype=torch.int8, mode="plain")  # for comparisons
    assert in_mode("plain", model, memory, prompts(2, 1))[1].isfinite().all()


@compiler
def test_one_row_of_a_post_norm_decoder(calls, memory):
    plain, fast = plain_and_native(tiny(decoder_norm="post"), memory[:1], prompts(1, 1))
    assert calls
    assert_same(fast, plain)


@compiler
@pytest.mark.parametrize("places", [1, 15, 16, 17, 50])
def test_any_number_of_image_tokens(calls, model, places):
    memory = torch.randn(1, places, 64, generator=torch.Generator().manual_seed(0))
    for rows in (1, 7):
        plain, fast = plain_and_native(model, memory, prompts(1, rows, 2))
        assert_same(fast, plain)
    assert calls


@compiler
@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_any_number_of_threads_computes_the_same_bits(monkeypatch, memory, norm, name):
    """Of the native step alone: a prompt is read by torch, whose sums depend on the threads."""
    on_lanes_of(monkeypatch, name)
    decoder, threads = tiny(decoder_norm=norm).decoder, torch.get_num_threads()
    cache = decoder.init_cache(memory, 6, 12)
    decoder(prompts(6, 3), cache=cache)  # read once for all
    answers = []
    try:
        for count in (1, 2, 3, 7):  # with 7 some have no head of the attention
            torch.set_num_threads(count)
            step = NativeStep(decoder, copy.deepcopy(cache))
            answers.append(torch.stack([step(t) for t in prompts(9, 6)]))
    finally:
        torch.set_num_threads(threads)
    for answer in answers[1:]:
        assert torch.equal(answer, answers[0])


@compiler
def test_any_number_of_threads_says_the_same(calls, memory):
    model, threads = tiny(), torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            answers.append(in_mode("native", model, memory, prompts(2, 3, 2)))
    finally:
        torch.set_num_threads(threads)
    assert calls
    for answer in answers[1:]:
        assert_same(answer, answers[0])


@compiler
@pytest.mark.parametrize("option", EVERY_OPTION, ids=lambda option: next(iter(option)))
def test_every_option_of_generate(calls, model, memory, option):
    plain, fast = plain_and_native(model, memory, prompts(2, 2, 3), num_samples=3, **option)
    assert calls
    compare = assert_same_draws if "options" in option else assert_same
    compare(fast, plain)
    compare(fast[-2:], plain[-2:])


@compiler
@pytest.mark.parametrize("part", [(100, 600), (7, 8), (2990, 3000)])
def test_a_part_of_the_vocabulary(calls, model, memory, part):
    options = {"unscored_range": part, "allowed": lambda _: torch.ones(3000, dtype=torch.bool)}
    for shape in ((1, 1), (1, 3, 1)):
        plain, fast = plain_and_native(model, memory[:1], prompts(*shape), **options)
        assert torch.equal(fast[0], plain[0])
    assert calls


@compiler
def test_finished_rows_leave(calls, model, memory):
    options = {"max_new_tokens": 30, "allowed": ends_at_some_time, "eos_id": 7}
    plain, fast = plain_and_native(model, memory, prompts(2, 6, 3), **options)
    assert_same(fast, plain)
    assert len(set(calls)) > 1 and calls == sorted(calls, reverse=True), calls


@compiler
def test_beam_search(calls, model, memory):
    plain, fast = (
        beams_in_mode(mode, model, memory, prompts(2, 2)) for mode in ("plain", "native")
    )
    assert calls
    assert_same(fast, plain)


@compiler
def test_weights_may_change_between_calls(calls, memory):
    model = tiny()
    in_mode("native", model, memory, prompts(2, 1))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain, fast = plain_and_native(model, memory, prompts(2, 1))
    assert_same(fast, plain)


@compiler
def test_weights_that_are_computed_when_asked_for(calls, memory):
    model = tiny()
    for layer in model.decoder.layers:
        torch.nn.utils.parametrizations.weight_norm(layer.mlp.dense1)
    plain, fast = plain_and_native(model, memory, prompts(2, 1))
    assert calls
    assert_same(fast, plain)


@compiler
def test_a_matrix_stored_by_columns_takes_the_other_step(calls, memory):
    model = tiny()
    for layer in model.decoder.layers:
        layer.mlp.dense1.weight = torch.nn.Parameter(layer.mlp.dense1.weight.t().contiguous().t())
    plain, fast = plain_and_native(model, memory, prompts(2, 1))
    assert not calls
    assert_same(fast, plain)


@compiler
def test_numbers_that_are_not_finite_are_not_hidden(model, memory):
    for bad in (torch.nan, torch.inf):
        log_probs = in_mode("native", model, memory * bad, prompts(2, 1))[1]
        assert log_probs.isnan().all()


@compiler
def test_a_sequence_longer_than_the_decoder_is_refused(model, memory):
    with pytest.raises(ValueError, match="at most 40 tokens"):
        in_mode("native", model, memory, prompts(2, 1), max_new_tokens=41)


@compiler
@torch.no_grad()
def test_neither_more_rows_nor_more_places_than_the_cache_has(model, memory):
    cache = model.decoder.init_cache(memory, 4, 3)
    model.decoder(prompts(4, 2), cache=cache)
    step = NativeStep(model.decoder, cache)
    for rows in (3, 5):
        with pytest.raises(ValueError, match=f"of 4 rows, got {rows}"):
            step(prompts(rows))
    step(prompts(4))
    with pytest.raises(ValueError, match="at most 3 tokens"):
        step(prompts(4))


@compiler
def test_the_modules_stand_in_wherever_the_native_step_cannot_run(calls, model, memory):
    def step(model):
        return type(build_step(model.decoder, model.decoder.init_cache(memory, 2, 4), "native"))

    assert step(model) is PlainStep  # gradients are wanted
    with torch.no_grad():
        assert step(model) is NativeStep
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert step(model) is PlainStep
        assert step(tiny().train()) is PlainStep
        assert step(tiny(mlp_dim=100)) is PlainStep  # sizes that are no whole vectors
    odd = tiny(mlp_dim=100)
    plain, fast = plain_and_native(odd, memory, prompts(2, 1))
    assert not calls and torch.equal(fast[1], plain[1])


@compiler
@torch.no_grad()
def test_weights_and_keys_of_the_image_are_read_in_place(model, memory):
    cache = model.decoder.init_cache(memory, 2 * 80, 4)
    step = NativeStep(model.decoder, cache)
    for ours, layer, of_cache in zip(step.layers, model.decoder.layers, cache.layers, strict=True):
        assert ours.memory_k == of_cache.memory_k.data_ptr()
        assert ours.memory_v == of_cache.memory_v.data_ptr()
        assert ours.dense1.weight == layer.mlp.dense1.weight.data_ptr()


def test_a_matrix_that_does_not_lie_row_by_row_is_refused():
    assert address(torch.ones(3, 2)) and address(None) is None
    with pytest.raises(ValueError, match="contiguous"):
        address(torch.ones(3, 2).t())


@compiler
def test_auto_is_native_where_it_fits_and_plain_where_not(monkeypatch):
    model = tiny()
    model.prepare(mode="auto")
    assert model.decode_mode == "native"
    model.prepare(mode="auto", dtype=torch.bfloat16)
    assert model.decode_mode == "native"
    model.prepare(mode="auto", dtype=torch.float16)
    assert model.decode_mode == "plain"
    with pytest.raises(UserError, match="float32, bfloat16 or int8 on a CPU"):
        model.prepare(mode="native", dtype=torch.float16)
    odd = tiny(mlp_dim=100)
    odd.prepare(mode="auto")
    assert odd.decode_mode == "plain"
    with pytest.raises(UserError, match="multiples of 16"):
        odd.prepare(mode="native")
