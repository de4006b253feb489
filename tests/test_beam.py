"""Beam search against exhaustive search, greedy decoding and the full forward."""

import itertools

import pytest
import torch

from models import ModelConfig, build_model
from models.beam_search import beam_search
from models.generate import GenerationRequest

VOCAB, EOS, STEPS = 5, 1, 4


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig(
        encoder="test_vit", image_size=(64, 64), dim=32, num_heads=4, num_layers=2, mlp_dim=64,
        vocab_size=VOCAB, max_len=8,
    )  # fmt: skip
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3)  # far from uniform
    return model


@pytest.fixture(scope="module")
def memory(model):
    with torch.no_grad():
        return model.encode(torch.rand(3, 3, 64, 64))


PROMPT = torch.tensor([[2, 3], [4, 0], [0, 2]])


def search(model, memory, prompt=PROMPT, *, num_beams, length_penalty=1.0, **request):
    request = {"max_new_tokens": STEPS, "eos_id": EOS, **request}
    request, options = GenerationRequest(prompt, **request), {"length_penalty": length_penalty}
    return beam_search(model.decoder, memory, request, num_beams=num_beams, **options)


def log_probs_of(model, memory, prompt, rows):
    """(R,) sums over the tokens of each row, by one full forward without cache."""
    tokens = torch.tensor([row + [EOS] * (STEPS - len(row)) for row in rows])
    with torch.no_grad():
        hidden = model.decoder(torch.cat([prompt.expand(len(rows), -1), tokens], 1), memory)
        logits = model.decoder.logits(hidden)[:, prompt.shape[1] - 1 : -1]
    each = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]  # (R, STEPS)
    return torch.stack([row[: len(r)].sum() for row, r in zip(each, rows, strict=True)])


def everything(words):
    """All sequences: words, then the end, or `STEPS` words without one."""
    ended = [[*w, EOS] for n in range(STEPS) for w in itertools.product(words, repeat=n)]
    return ended + [list(w) for w in itertools.product(words, repeat=STEPS)]


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
def test_wide_beams_find_what_exhaustive_search_finds(model, memory, length_penalty):
    words = [i for i in range(VOCAB) if i != EOS]
    rows = everything(words)
    tokens, log_probs = search(
        model, memory, num_beams=len(words) ** STEPS, length_penalty=length_penalty
    )
    for image in range(len(memory)):
        sums = log_probs_of(model, memory[image : image + 1], PROMPT[image : image + 1], rows)
        lengths = torch.tensor([len(row) for row in rows])
        order = (sums / lengths**length_penalty).argsort(descending=True)[:20]
        torch.testing.assert_close(log_probs[image, :20], sums[order], atol=1e-4, rtol=1e-5)
        want = [rows[i] + [EOS] * (STEPS - len(rows[i])) for i in order.tolist()]
        assert tokens[image, :20].tolist() == want


def test_narrow_beams_report_the_log_probs_of_their_tokens(model, memory):
    """The cache follows the beams: without `reorder` these sums would be of other histories."""
    tokens, log_probs = search(model, memory, num_beams=3, length_penalty=0.0)
    for image in range(len(memory)):
        rows = [row[: row.index(EOS) + 1] if EOS in row else row for row in tokens[image].tolist()]
        sums = log_probs_of(model, memory[image : image + 1], PROMPT[image : image + 1], rows)
        torch.testing.assert_close(log_probs[image], sums, atol=1e-4, rtol=1e-5)
        assert (log_probs[image].diff() <= 0).all() and len({tuple(r) for r in rows}) == 3


def test_it_is_never_worse_than_greedy_nor_better_than_the_best(model, memory):
    best = [search(model, memory, num_beams=k, length_penalty=0.0)[1][:, 0] for k in (1, 4, 256)]
    assert (best[2] >= torch.stack(best) - 1e-5).all()
    greedy, log_probs = model.generate(memory, PROMPT, max_new_tokens=STEPS, eos_id=EOS)
    assert (best[0] >= log_probs.sum(1) - 1e-5).all()


def test_images_do_not_mix(model, memory):
    together = search(model, memory, num_beams=4)
    for image in range(len(memory)):
        alone = search(model, memory[image : image + 1], PROMPT[image : image + 1], num_beams=4)
        assert torch.equal(alone[0][0], together[0][image])
        torch.testing.assert_close(alone[1][0], together[1][image], atol=1e-5, rtol=1e-5)


def test_grammar_and_suppressed_ids(model, memory):
    only = torch.tensor([True, True, False, True, False])
    tokens, log_probs = search(model, memory, num_beams=4, allowed=lambda _: only)
    assert set(tokens.flatten().tolist()) <= {0, 1, 3}
    row = tokens[0, 0].tolist()
    row = row[: row.index(EOS) + 1] if EOS in row else row
    full = log_probs_of(model, memory[:1], PROMPT[:1], [row])  # the grammar is not in the score
    torch.testing.assert_close(log_probs[0, :1], full, atol=1e-4, rtol=1e-5)
    tokens, _ = search(model, memory, num_beams=4, suppress=[0, 2])
    assert set(tokens.flatten().tolist()) <= {1, 3, 4}


def test_fewer_continuations_than_beams(model, memory):
    only = torch.tensor([False, True, False, False, False])
    tokens, log_probs = search(model, memory, num_beams=3, allowed=lambda _: only)
    assert (tokens == EOS).all()
    assert log_probs[:, 0].isfinite().all() and (log_probs[:, 1:] == -torch.inf).all()


def test_it_stops_when_nothing_can_improve(model, memory):
    steps = []
    hook = model.decoder.output_ln.register_forward_hook(lambda *_: steps.append(1))

    def end_after_one(tokens):
        return torch.arange(VOCAB) == (EOS if tokens.shape[1] else 3)

    tokens, _ = search(model, memory, num_beams=1, max_new_tokens=6, allowed=end_after_one)
    hook.remove()
    assert len(steps) == 2 and tokens[:, 0].tolist() == [[3, 1, 1, 1, 1, 1]] * 3
