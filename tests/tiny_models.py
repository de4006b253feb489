"""A tiny decoder and what tests of decoding ask of it."""

import pytest
import torch

from models import ModelConfig, build_model
from models.beam_search import beam_search
from models.generate import GenerationRequest, SamplingOptions, generate

VARIANTS = {
    "official": {},
    "separate embeddings": {"tie_embeddings": False},
    "no bias": {"output_bias": False},
    "post-norm": {"decoder_norm": "post"},
    "sin-cos positions": {"decoder_positions": "sin_cos"},
    "a prime vocabulary": {"vocab_size": 1009},
}
IDS = torch.arange(3000)


def tiny(**changes):
    """A model in eval mode whose greedy choices have no near ties."""
    torch.manual_seed(0)
    options = {
        "encoder": "test_vit", "image_size": (64, 64), "dim": 64, "num_heads": 4, "num_layers": 2,
        "mlp_dim": 96, "max_len": 40,
    }  # fmt: skip
    model = build_model(ModelConfig(**options | changes)).eval()
    with torch.no_grad():
        model.decoder.token_embedding.mul_(20)  # far from uniform
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


def in_mode(mode, model, memory, prompt, *, options=None, **request):
    """What `generate` returns in a mode; `options` are those of sampling."""
    generator = torch.Generator(memory.device).manual_seed(0)
    request = {"max_new_tokens": 14, "generator": generator} | request
    sampling = SamplingOptions(**options or {})
    request = GenerationRequest(prompt, options=sampling, mode=mode, **request)
    return generate(model.decoder, memory, request).as_tuple()


def beams_in_mode(mode, model, memory, prompt):
    request = GenerationRequest(prompt, max_new_tokens=10, eos_id=7, mode=mode)
    return beam_search(model.decoder, memory, request, num_beams=3)


def assert_same(fast, plain):
    assert torch.equal(fast[0], plain[0])
    torch.testing.assert_close(fast[1], plain[1], atol=1e-5, rtol=1e-5)


def assert_same_draws(fast, plain):
    """As `assert_same`, for sampled tokens.

    A number may fall on the border between two ids, where rounding decides, and with it the kernels
    of the processor: what follows in that row is another sequence. It is rare (3,000 ids, 1e-7).
    """
    same = (fast[0] == plain[0]).all(1)  # (R,)
    assert same.float().mean() >= 0.75, f"{int((~same).sum())} of {len(same)} rows differ"
    torch.testing.assert_close(fast[1][same], plain[1][same], atol=1e-5, rtol=1e-5)


def grammar(tokens):
    mask = torch.zeros(len(tokens), 3000, dtype=torch.bool)
    mask[:, 100 : 500 + tokens.shape[1]] = True
    return mask


def ends_at_some_time(tokens):
    """A grammar: token 7 comes at a step that the row's first token decides, and only then."""
    rows, step = tokens.shape
    mask = torch.ones(rows, 3000, dtype=torch.bool)
    mask[:, 7] = False
    if step:
        ends = tokens[:, 0] % 11 == step
        mask[ends] = IDS == 7
    return mask


EVERY_OPTION = [  # of a request, each alone
    {"options": {"top_k": 0, "top_p": 0.9, "temperature": 3.0}},
    {"options": {"top_k": 0, "temperature": 3.0}, "eos_id": 7, "allowed": lambda _: IDS < 30},
    {"allowed": grammar},
    {"suppress": range(0, 3000, 2)},
    {"score_range": (1000, 1100)},
]
