"""The fast step of a CPU says what the plain decoder says, in every variant and option."""

import pytest
import torch

import models.decode_step.modes
from models import ModelConfig, build_model
from models.generate import beam_search, rows_to_keep

VARIANTS = {
    "official": {},
    "separate embeddings": {"tie_embeddings": False},
    "no bias": {"output_bias": False},
    "post-norm": {"decoder_norm": "post"},
    "sin-cos positions": {"decoder_positions": "sin_cos"},
    "a prime vocabulary": {"vocab_size": 1009},
}


def tiny(**changes):
    torch.manual_seed(0)
    options = {
        "encoder": "test_vit", "image_size": (64, 64), "dim": 64, "num_heads": 4, "num_layers": 2,
        "mlp_dim": 96, "max_len": 40,
    }  # fmt: skip
    model = build_model(ModelConfig(**options | changes)).eval()
    with torch.no_grad():
        model.decoder.token_embedding.mul_(20)  # far from uniform: arg max has no near ties
    return model


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def memory():
    return torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))


def count_rows(monkeypatch, step):
    """How many rows each step of this class is called with, a list that grows."""
    rows, call = [], step.__call__
    monkeypatch.setattr(step, "__call__", lambda *args: rows.append(len(args[1])) or call(*args))
    return rows


def prompts(*shape):
    return torch.randint(0, 1000, shape, generator=torch.Generator().manual_seed(1))


def both_ways(monkeypatch, decode):
    """What `decode` returns with the fast step, and with the modules alone."""
    steps = []
    call = models.decode_step.modes.BlockedStep.__call__
    monkeypatch.setattr(
        models.decode_step.modes.BlockedStep,
        "__call__",
        lambda *args: steps.append(1) or call(*args),
    )
    fast = decode()
    assert steps, "the fast step was not taken"
    monkeypatch.setattr(models.decode_step.modes, "suits_cpu_step", lambda *_: False)
    count = len(steps)
    plain = decode()
    assert len(steps) == count
    return fast, plain


def assert_same(fast, plain):
    assert torch.equal(fast[0], plain[0])
    torch.testing.assert_close(fast[1], plain[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 1), (2, 3, 5)])
def test_greedy_tokens_and_log_probs(monkeypatch, memory, variant, shape):
    model = tiny(**VARIANTS[variant])
    decode = lambda: model.generate(memory, prompts(*shape), max_new_tokens=20, num_samples=2)  # noqa: E731
    assert_same(*both_ways(monkeypatch, decode))


def grammar(tokens):
    mask = torch.zeros(len(tokens), 3000, dtype=torch.bool)
    mask[:, 100 : 500 + tokens.shape[1]] = True
    return mask


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0, "top_p": 0.9, "temperature": 3.0},
        {"allowed": grammar},
        {"suppress": list(range(0, 3000, 2))},
        {"score_range": (1000, 1100)},
        {"top_k": 0, "temperature": 3.0, "eos_id": 7, "allowed": lambda t: torch.arange(3000) < 30},
    ],
)
def test_every_option_of_generate(monkeypatch, model, memory, options):
    def decode():
        generator = torch.Generator().manual_seed(0)
        return model.generate(
            memory, prompts(2, 2, 3), max_new_tokens=12, num_samples=3, generator=generator,
            **options,
        )  # fmt: skip

    fast, plain = both_ways(monkeypatch, decode)
    assert_same(fast, plain)
    if "score_range" in options:
        assert_same(fast[2:], plain[2:])


def test_beam_search(monkeypatch, model, memory):
    options = {"max_new_tokens": 10, "eos_id": 7, "num_beams": 3}
    decode = lambda: beam_search(model.decoder, memory, prompts(2, 2), **options)  # noqa: E731
    assert_same(*both_ways(monkeypatch, decode))


def test_weights_may_change_between_calls(monkeypatch, memory):
    model = tiny()
    model.generate(memory, prompts(2, 1), max_new_tokens=5)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    decode = lambda: model.generate(memory, prompts(2, 1), max_new_tokens=10)  # noqa: E731
    assert_same(*both_ways(monkeypatch, decode))


def test_the_plain_decoder_stands_in_wherever_the_step_does_not_fit(model, memory):
    def suits(model):
        return models.decode_step.modes.suits_cpu_step(
            model.decoder, model.decoder.init_cache(memory, 2, 4)
        )

    assert not suits(model)  # gradients
    with torch.no_grad():
        assert suits(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not suits(model)
        assert not suits(tiny().train())


def test_a_sequence_longer_than_the_decoder_is_refused(model, memory):
    with pytest.raises(ValueError, match="at most 40 tokens"):
        model.generate(memory, prompts(2, 1), max_new_tokens=41)


def ends_at_some_time(tokens):
    """A grammar: token 7 comes at a step that the row's first token decides, and only then."""
    rows, step = tokens.shape
    mask = torch.ones(rows, 3000, dtype=torch.bool)
    mask[:, 7] = False
    if step:
        ends = tokens[:, 0] % 11 == step
        mask[ends] = torch.arange(3000) == 7
    return mask


def test_finished_rows_leave_and_no_token_changes(monkeypatch, model, memory):
    options, eos = {"max_new_tokens": 30, "allowed": ends_at_some_time}, 7
    free, free_log_probs = model.generate(memory, prompts(2, 6, 3), **options)
    batches = count_rows(monkeypatch, models.decode_step.modes.BlockedStep)
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
    inside = (torch.arange(3000) >= 100) & (torch.arange(3000) < 600)
    options = {"max_new_tokens": 15, "allowed": lambda _: inside, "suppress": [3, 120]}
    tokens, _ = model.generate(memory, prompts(2, 1), **options)
    fewer, log_probs = model.generate(memory, prompts(2, 1), unscored_range=(100, 600), **options)
    assert torch.equal(tokens, fewer) and log_probs.isnan().all()


def test_all_samples_of_an_image_read_its_keys_and_values_in_place(model, memory):
    with torch.no_grad():
        cache = model.decoder.init_cache(memory, 2 * 80, 4)
        step = models.decode_step.modes.BlockedStep(model.decoder, cache)
    for layer, layer_cache in zip(step.layers, cache.layers, strict=True):
        assert layer.memory_k.data_ptr() == layer_cache.memory_k.data_ptr()
        assert layer.memory_v.data_ptr() == layer_cache.memory_v.data_ptr()
        weight = model.decoder.layers[0].mlp.dense1.weight
    assert step.layers[0].dense1.weight.data_ptr() == weight.data_ptr()
