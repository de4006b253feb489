"""Cached decoding equals the full forward; sampling, grammar, stopping."""

import math

import numpy as np
import pytest
import torch

import models.generate
from models import ModelConfig, build_model
from models.beam_search import beam_search
from models.decode_step import NativeStep, PlainStep, library
from models.decode_step.cuda_graph import StaticStep
from models.decoder import Cache
from models.generate import (
    GenerationRequest,
    SamplingOptions,
    draw,
    generate,
    rows_to_keep,
    top_logits,
    uniforms_of_images,
)
from tests.tiny_models import assert_same_draws, count_rows, ends_at_some_time

VOCAB = 3000


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig(
        encoder="test_vit", image_size=(64, 96), dim=64, num_heads=4, num_layers=3, mlp_dim=96,
        max_len=40,
    )  # fmt: skip
    model = build_model(config).eval()
    with torch.no_grad():
        model.decoder.token_embedding.mul_(20)  # far from uniform: arg max has no near ties
    return model


@pytest.fixture(scope="module")
def memory(model):
    with torch.no_grad():
        return model.encode(torch.rand(2, 3, 64, 96))


def prompts(*shape):
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(2, 1), (2, 6), (2, 3, 4)])
def test_cached_decoding_equals_one_full_forward(model, memory, shape):
    prompt = prompts(*shape)
    tokens, log_probs = model.generate(memory, prompt, max_new_tokens=20)
    rows = prompt.flatten(0, -2)
    with torch.no_grad():
        hidden = model.decoder(torch.cat([rows, tokens], 1), memory)
        logits = model.decoder.logits(hidden)[:, shape[-1] - 1 : -1]
    assert torch.equal(tokens, logits.argmax(-1))
    expected = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)


def test_prefill_and_steps_of_any_length_agree(model, memory):
    tokens = prompts(2, 12)
    with torch.no_grad():
        full = model.decoder(tokens, memory)
        for cuts in ([12], [1] * 12, [3, 1, 5, 3], [1, 11]):
            cache = model.decoder.init_cache(memory, 2, 12)
            parts = [model.decoder(part, cache=cache) for part in tokens.split(cuts, dim=1)]
            torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-5, rtol=1e-5)


def test_a_batch_equals_its_rows_one_by_one(model, memory):
    prompt = prompts(2, 3, 4)
    together, log_probs = model.generate(memory, prompt, max_new_tokens=10)
    for image in range(2):
        for i in range(3):
            alone = model.generate(
                memory[image : image + 1], prompt[image : image + 1, i], max_new_tokens=10
            )
            assert torch.equal(alone[0][0], together[image * 3 + i])
            torch.testing.assert_close(alone[1][0], log_probs[image * 3 + i], atol=1e-5, rtol=0)


def test_greedy_samples_are_copies_samples_fastest(model, memory):
    one, _ = model.generate(memory, prompts(2, 2, 4), max_new_tokens=6)
    three, _ = model.generate(memory, prompts(2, 2, 4), max_new_tokens=6, num_samples=3)
    assert torch.equal(three, one.repeat_interleave(3, 0))


def test_cross_attention_is_projected_once_per_image_and_shared(model, memory):
    cache = model.decoder.init_cache(memory, num_rows=2 * 5 * 8, max_len=10)
    assert {layer.memory_k.shape for layer in cache.layers} == {(2, 4, memory.shape[1], 16)}
    for few, many in zip(cache.layers, cache.spread(8, 12).layers, strict=True):
        assert many.memory_k is few.memory_k and many.memory_v is few.memory_v
    calls = []
    hook = model.decoder.layers[0].cross_attention.kv.register_forward_hook(
        lambda *_: calls.append(1)
    )
    model.generate(memory, prompts(2, 5, 4), max_new_tokens=10, num_samples=8)
    hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("mode", ["plain", "static"])
def test_samples_of_a_prompt_are_drawn_as_if_it_stood_there_so_often(model, memory, mode):
    numbers = torch.rand(2 * 2 * 3, 8, generator=torch.Generator().manual_seed(0))

    def draw(prompt, num_samples):
        request = GenerationRequest(
            prompt, max_new_tokens=8, options=SamplingOptions(3.0, top_k=0),
            num_samples=num_samples, uniforms=numbers, mode=mode,
        )  # fmt: skip
        return generate(model.decoder, memory, request).as_tuple()

    prompt = prompts(2, 2, 4)
    samples, copies = draw(prompt, 3), draw(prompt.repeat_interleave(3, 1), 1)
    assert len(samples[0].unique(dim=0)) == 2 * 2 * 3
    assert_same_draws(samples, copies)


def test_a_prompt_is_read_once_for_all_its_samples(model, memory):
    read = []
    hook = model.decoder.layers[0].self_attention.register_forward_hook(
        lambda _, inputs, out: read.append(tuple(out.shape[:2]))
    )
    model.generate(memory, prompts(2, 3, 4), max_new_tokens=2, num_samples=8)
    hook.remove()
    assert read[0] == (2 * 3, 4)


def test_sampling_repeats_with_its_generator_and_varies_without(model, memory):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"max_new_tokens": 8, "top_k": 0, "temperature": 3.0, "generator": generator}
        return model.generate(memory, prompts(2, 1), **options)[0]

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


def test_a_finished_row_stays_finished(model, memory):
    free, _ = model.generate(memory, prompts(2, 1), max_new_tokens=12)
    eos = free[0, 3].item()
    tokens, log_probs = model.generate(memory, prompts(2, 1), max_new_tokens=12, eos_id=eos)
    first = (free[0] == eos).nonzero()[0].item()
    assert torch.equal(tokens[0, : first + 1], free[0, : first + 1])
    assert (tokens[0, first:] == eos).all() and (log_probs[0, first + 1 :] == 0).all()
    assert log_probs[0, first] != 0


def test_a_sequence_longer_than_the_decoder_is_refused(model, memory):
    with pytest.raises(ValueError, match="at most 40 tokens"):
        model.generate(memory, prompts(2, 1), max_new_tokens=41)


def test_finished_rows_leave_and_no_token_changes(monkeypatch, model, memory):
    options, eos = {"max_new_tokens": 30, "allowed": ends_at_some_time}, 7
    free, free_log_probs = model.generate(memory, prompts(2, 6, 3), **options)
    batches = count_rows(monkeypatch, PlainStep)
    tokens, log_probs = model.generate(memory, prompts(2, 6, 3), eos_id=eos, **options)
    assert len(set(batches)) > 1 and batches == sorted(batches, reverse=True), batches
    after = ((free == eos).cumsum(1) - (free == eos).long()) > 0  # behind the first end token
    assert torch.equal(tokens, free.masked_fill(after, eos))
    torch.testing.assert_close(log_probs, free_log_probs.masked_fill(after, 0.0))


def test_rows_are_kept_equally_many_per_image_and_in_order():
    done = torch.tensor([1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0]).bool()  # three images of four rows
    rows, images = rows_to_keep(done, 3)
    assert images.tolist() == [0, 2] and rows.tolist() == [0, 1, 8, 11]
    assert rows_to_keep(torch.tensor([0, 1, 0, 0]).bool(), 1) is None
    assert rows_to_keep(torch.tensor([0, 0, 1, 1]).bool(), 2)[1].tolist() == [0]
    assert rows_to_keep(torch.tensor([1, 1, 0, 0, 0, 1, 0, 0]).bool(), 2) is None


def test_a_range_of_ids_decodes_what_a_grammar_of_it_does(model, memory):
    inside = (torch.arange(VOCAB) >= 100) & (torch.arange(VOCAB) < 600)
    options = {"max_new_tokens": 15, "allowed": lambda _: inside, "suppress": [3, 120]}
    tokens, _ = model.generate(memory, prompts(2, 1), **options)
    fewer, log_probs = model.generate(memory, prompts(2, 1), unscored_range=(100, 600), **options)
    assert torch.equal(tokens, fewer) and log_probs.isnan().all()


def test_decoding_ends_when_all_rows_are_done(model, memory):
    steps = []
    hook = model.decoder.output_ln.register_forward_hook(lambda *_: steps.append(1))
    always = torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, torch.tensor(7), True)
    tokens, _ = model.generate(
        memory, prompts(2, 1), max_new_tokens=12, eos_id=7, allowed=lambda _: always
    )
    hook.remove()
    assert tokens.shape == (2, 12) and (tokens == 7).all() and len(steps) == 1


def test_the_grammar_limits_choices_but_not_scores(model, memory):
    odd = torch.arange(VOCAB) % 2 == 1
    tokens, log_probs = model.generate(
        memory, prompts(2, 2), max_new_tokens=6, allowed=lambda _: odd
    )
    assert (tokens % 2 == 1).all()
    with torch.no_grad():
        hidden = model.decoder(torch.cat([prompts(2, 2), tokens], 1), memory)
        logits = model.decoder.logits(hidden)[:, 1:-1]
    assert torch.equal(tokens, logits.masked_fill(~odd, -torch.inf).argmax(-1))
    expected = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)


def test_the_grammar_sees_what_was_generated(model, memory):
    seen = []

    def allowed(tokens):
        seen.append(tokens.clone())
        return torch.ones(len(tokens), VOCAB, dtype=torch.bool)

    tokens, _ = model.generate(memory, prompts(2, 2), max_new_tokens=4, allowed=allowed)
    assert [t.shape for t in seen] == [(2, 0), (2, 1), (2, 2), (2, 3)]
    assert torch.equal(seen[-1], tokens[:, :3])


def test_suppressed_ids_leave_the_choice_and_the_scores(model, memory):
    free, free_log_probs = model.generate(memory, prompts(2, 1), max_new_tokens=1)
    best = free[0, 0].item()
    tokens, log_probs = model.generate(memory, prompts(2, 1), max_new_tokens=1, suppress=[best])
    assert tokens[0, 0] != best
    with torch.no_grad():
        logits = model.decoder.logits(model.decoder(prompts(2, 1), memory))[0, 0]
    logits[best] = -torch.inf
    assert log_probs[0, 0].item() == pytest.approx(logits.log_softmax(0).max().item(), abs=1e-5)


def test_score_range_is_the_best_of_the_range_under_the_full_softmax(model, memory):
    tokens, log_probs, best, best_log_probs = model.generate(
        memory, prompts(2, 1), max_new_tokens=8, score_range=(100, 1000)
    )
    with torch.no_grad():
        hidden = model.decoder(torch.cat([prompts(2, 1), tokens], 1), memory)
        all_log_probs = model.decoder.logits(hidden)[:, :-1].log_softmax(-1)
    value, index = all_log_probs[:, :, 100:1000].max(-1)
    assert torch.equal(best, index + 100)
    torch.testing.assert_close(best_log_probs, value, atol=1e-5, rtol=0)
    inside = (tokens >= 100) & (tokens < 1000)
    assert torch.equal(best[inside], tokens[inside])


class Scripted:
    """A stand-in decoder that says what a table says, for tests of the loop alone."""

    max_len = 10_000

    def __init__(self, probabilities):
        self.table = torch.tensor(probabilities).log()  # (V,)

    def init_cache(self, memory, num_rows, max_len):
        return Cache([])

    def __call__(self, tokens, cache):
        return torch.zeros(*tokens.shape, 1)

    def logits(self, hidden, part):
        return self.table.expand(len(hidden), -1)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_p": 0.4}, {3}),  # the best one alone has 0.45 > 0.4, and is always kept
        ({"top_p": 0.8}, {3, 1}),
        ({"top_k": 3}, {3, 1, 0}),
        ({"top_k": 3, "top_p": 0.9}, {3, 1}),  # p works on the renormalised rest
        ({}, {0, 1, 2, 3}),
    ],
)
def test_nucleus_keeps_what_the_paper_keeps(options, kept):
    decoder, memory = Scripted([0.15, 0.35, 0.05, 0.45]), torch.zeros(1, 1, 1)
    options = SamplingOptions(**{"top_k": 0, **options})
    request = GenerationRequest(
        torch.zeros(1, 1, dtype=torch.long), max_new_tokens=2, num_samples=1000,
        options=options, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    tokens = generate(decoder, memory, request).tokens
    assert set(tokens.flatten().tolist()) == kept


def test_sampling_frequencies_are_the_probabilities():
    decoder, memory = Scripted([0.15, 0.35, 0.05, 0.45]), torch.zeros(1, 1, 1)
    for temperature in (1.0, 2.0):
        request = GenerationRequest(
            torch.zeros(1, 1, dtype=torch.long), max_new_tokens=1, num_samples=20_000,
            options=SamplingOptions(temperature, top_k=0),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        tokens, log_probs = generate(decoder, memory, request).as_tuple()
        want = torch.tensor([0.15, 0.35, 0.05, 0.45]) ** (1 / temperature)
        got = tokens.flatten().bincount(minlength=4) / 20_000
        torch.testing.assert_close(got, want / want.sum(), atol=0.015, rtol=0)
        assert log_probs[tokens == 3].mean().item() == pytest.approx(math.log(0.45), abs=1e-5)


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-24])  # the ends of [0, 1) in float32
def test_a_draw_never_takes_what_has_no_probability(number):
    probs = torch.zeros(50, 1000)
    for row in probs:
        some = torch.randperm(998)[:7] + 1  # never the first or the last
        row[some] = torch.rand(7) + 1e-6
    probs /= probs.sum(1, keepdim=True)
    drawn = draw(probs, torch.full((50,), number))
    assert (probs.gather(1, drawn[:, None]) > 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_draw_takes_no_impossible_id_where_sums_fall(monkeypatch, seed):
    """As a GPU adds up a single row: in parallel, so that a sum may be below the one before it."""
    draws, exact = torch.Generator().manual_seed(seed), torch.Tensor.cumsum

    def unordered(probs, dim):
        noise = torch.rand(probs.shape, generator=draws) - 0.5
        return (exact(probs, dim) * (1 + 1e-3 * noise)).clamp(max=1)

    probs = torch.rand(300, 400, generator=draws)
    probs = (
        (probs * (torch.rand(probs.shape, generator=draws) < 0.1))
        .softmax(1)
        .where(torch.rand(probs.shape, generator=draws) < 0.1, 0.0)
    )
    probs /= probs.sum(1, keepdim=True)
    monkeypatch.setattr(torch.Tensor, "cumsum", unordered)
    drawn = draw(probs, torch.rand(300, generator=draws))
    assert (probs.gather(1, drawn[:, None]) > 0).all()


@pytest.mark.parametrize("bad", [0.0, torch.nan])
def test_a_draw_of_nothing_is_an_error(bad):
    probs = torch.full((3, 5), 0.2)
    probs[1] = bad
    with pytest.raises(ValueError, match="no token can be drawn"):
        draw(probs, torch.zeros(3))


@pytest.mark.parametrize("spread", [0.0, 0.3, 5.0])  # of equal, similar and far different logits
def test_looking_at_a_few_first_keeps_what_sorting_keeps(monkeypatch, spread):
    logits = spread * torch.randn(20, 500, generator=torch.Generator().manual_seed(0))
    logits[:, 10:14] = logits[:, :1]  # ties
    for p in (0.0, 0.1, 0.4, 0.9, 1 - 1e-6):
        few = top_logits(logits, 0, p)
        monkeypatch.setattr(models.generate, "NUCLEUS_FIRST_TRY", 10**6)
        assert torch.equal(few, top_logits(logits, 0, p))
        monkeypatch.undo()


@pytest.mark.parametrize("enabled", [True, False])
def test_attention_of_cudnn_is_off_while_decoding_alone(model, memory, enabled):
    """Seen by the grammar, which is asked at every step; an error, too, restores the setting."""
    before, seen = torch.backends.cuda.cudnn_sdp_enabled(), []

    def grammar(tokens):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        if tokens.shape[1] == 3:
            raise KeyError
        return torch.ones(VOCAB, dtype=torch.bool)

    def beams(memory, prompt, **request):
        request = GenerationRequest(prompt, eos_id=0, **request)
        return beam_search(model.decoder, memory, request, num_beams=2)

    try:
        torch.backends.cuda.enable_cudnn_sdp(enabled)
        for decode in (model.generate, beams):
            with pytest.raises(KeyError):
                decode(memory, prompts(2, 1), max_new_tokens=5, allowed=grammar)
            assert torch.backends.cuda.cudnn_sdp_enabled() is enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert seen == [False] * 8


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 1.5}])
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingOptions(**wrong)


def test_scores_cannot_be_asked_for_and_left_out():
    with pytest.raises(ValueError, match="score_range needs scores"):
        GenerationRequest(prompts(1, 1), 5, score_range=(0, 9), unscored_range=(0, 9))


@pytest.mark.data
def test_truncation_equals_the_official_one(reference):
    data = np.load(reference / "decoding" / "top_logits.npz")
    names = [name for name in data.files if name != "logits"]
    assert len(names) == 14
    for name in names:
        k, p = name.removeprefix("top_logits_").split("_")
        got = top_logits(torch.from_numpy(data["logits"]), int(k[1:]), float(p[1:]))
        np.testing.assert_allclose(got.numpy(), data[name], rtol=1e-6)


# ---- rows that end by what they hold ---------------------------------------------------------


def even(found):
    """Ends a row at every fifth step whose last best id is even."""
    rows, num_steps = found.tokens.shape
    assert found.best_log_probs.shape == found.log_probs.shape == (rows, num_steps)
    return (found.best[:, -1] % 2 == 0) & (num_steps % 5 == 0)


def cut(values, ends, filling):
    """(R, T) values with `filling` behind the first end of each row."""
    after = ends.cumsum(1) - ends.long() > 0
    return values.masked_fill(after, filling)


@pytest.mark.parametrize("eos", [None, 7])
@pytest.mark.parametrize("mode", ["plain", "native", "static", "compiled"])
def test_stopped_rows_are_the_full_ones_cut_there(monkeypatch, model, memory, mode, eos):
    if mode == "compiled":  # the compiler apart: it takes minutes, and static tests it
        monkeypatch.setattr(torch, "compile", lambda function: function)
    if mode == "native":
        library(torch.float32)  # an error where it cannot run
    steps = {"plain": PlainStep, "native": NativeStep}.get(mode, StaticStep)
    options = {"max_new_tokens": 30, "top_k": 0, "top_p": 0.9, "temperature": 2.0}
    options |= {"score_range": (100, 900), "eos_id": eos, "allowed": ends_at_some_time}
    prompt = prompts(2, 6, 3)
    options["uniforms"] = uniforms_of_images(prompt, [3, 4], num_steps=30)
    model.decode_mode = mode
    try:
        full = model.generate(memory, prompt, **options)
        rows = count_rows(monkeypatch, steps)
        stopped = model.generate(memory, prompt, stop=even, **options)
        turned = options["uniforms"].unflatten(0, (2, 6)).flip(0, 1).flatten(0, 1)
        options["uniforms"] = turned
        permuted = model.generate(memory.flip(0), prompt.flip(0, 1), stop=even, **options)
    finally:
        model.decode_mode = "plain"
    ends = (full[2] % 2 == 0) & (torch.arange(1, 31) % 5 == 0)
    assert len(ends.int().argmax(1).unique()) > 2, "rows stop at different places"
    expected = [cut(v, ends, 0.0 if v.is_floating_point() else eos or 0) for v in full]
    assert_same_draws(stopped[:2], expected[:2])
    assert_same_draws(stopped[2:], expected[2:])
    back = [values.unflatten(0, (2, 6)).flip(0, 1).flatten(0, 1) for values in permuted]
    assert_same_draws(back, stopped)
    if steps is StaticStep:
        assert set(rows) == {12}
    else:
        assert min(rows) <= 6, "rows that have stopped leave the batch"
