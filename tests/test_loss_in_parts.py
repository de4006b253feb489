"""The loss of many positions, part by part: the loss and the gradients of all logits at a time."""

import pytest
import torch

import models.decoder
from benchmarks.memory import peak
from config import CFG
from dataset.batch import Batch
from models import ModelConfig, build_model
from tests.conftest import TINY
from tokenizer.vocabulary import Vocabulary
from train.loss import LossType, batch_loss
from utils.cli import snapshot

LOSSES = ["xent", "xent@0.1", "focal@2", "logistic@0.1"]
TABLES = {
    "tied": {},
    "no bias": {"output_bias": False},
    "separate": {"tie_embeddings": False},
}


def a_model(**changes):
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_heads": 2, "num_layers": 1, "mlp_dim": 32, "max_len": 24}
    sizes |= {"drop_path": 0.0, "drop_units": 0.0}
    return build_model(
        ModelConfig(encoder="test_vit", image_size=(32, 32), vocab_size=211, **sizes, **changes)
    )


def a_batch(num_sequences=3, length=19):
    """37 weighted positions or so, some targets outside the vocabulary."""
    draws = torch.Generator().manual_seed(3)
    shape = 2, num_sequences, length
    tokens = [torch.randint(0, 211, shape, generator=draws) for _ in range(2)]
    tokens[1][0, 0, 0] = 5000
    weights = torch.rand(shape, generator=draws) * (torch.rand(shape, generator=draws) < 0.4)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=draws)
    return Batch(images, torch.tensor([[32, 32], [32, 20]]), *tokens, weights, [0, 1])


def loss_and_gradients(monkeypatch, model, batch, loss, positions_at_once):
    monkeypatch.setattr(models.decoder, "LOGITS_AT_ONCE", positions_at_once * 4 * 211)
    model.zero_grad()
    value = batch_loss(model, batch, LossType.parse(loss))
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("loss", LOSSES)
def test_parts_of_any_size_give_the_loss_and_the_gradients_of_the_whole(monkeypatch, loss, table):
    model, batch = a_model(**TABLES[table]).double(), a_batch()
    number = int((batch.token_weights > 0).sum())
    whole = loss_and_gradients(monkeypatch, model, batch, loss, number)
    for size in (1, 7, number // 2, number - 1):
        parts = loss_and_gradients(monkeypatch, model, batch, loss, size)
        assert len(parts) == len(whole)
        for one, other in zip(parts, whole, strict=True):
            assert (one - other).abs().max() <= 1e-6 * other.abs().max()


def test_in_float32_parts_differ_by_rounding_alone(monkeypatch):
    model, batch = a_model(), a_batch()
    whole, parts = (
        loss_and_gradients(monkeypatch, model, batch, "xent", size) for size in (10**6, 10)
    )
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_few_positions_are_one_part_bit_for_bit(monkeypatch):
    """Small vocabularies train as they did before there were parts."""
    model, batch = a_model(), a_batch()
    supervised = batch.token_weights.flatten().nonzero()[:, 0]
    logits = model(batch.images.float() / 255, batch.input_tokens, supervised)
    returned = model(
        batch.images.float() / 255,
        batch.input_tokens,
        supervised,
        batch.target_tokens.flatten()[supervised],
        lambda logits, _: logits,
    )
    assert torch.equal(returned, logits)


def test_parts_are_computed_one_after_another(monkeypatch):
    """Never more logits than the limit, forward and backward, whatever the number of positions."""
    monkeypatch.setattr(models.decoder, "LOGITS_AT_ONCE", 8 * 4 * 211)
    model, seen = a_model(), []
    hidden = torch.randn(45, 16, requires_grad=True)

    def loss_fn(logits, targets):
        seen.append(len(logits))
        return logits.gather(1, targets[:, None])[:, 0]

    model.decoder.losses(hidden, torch.arange(45), loss_fn).sum().backward()
    assert seen == [8] * 5 + [5] + ([8] * 5 + [5])[::-1]  # computed again, the last part first


def test_parts_in_mixed_precision_stay_near(monkeypatch):
    model, batch = a_model(), a_batch()
    with torch.autocast("cpu", torch.bfloat16):
        whole, parts = (
            loss_and_gradients(monkeypatch, model, batch, "xent", size) for size in (10**6, 10)
        )
    for one, other in zip(parts, whole, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).norm() <= 0.02 * other.norm() + 1e-6


def test_a_compiled_model_computes_parts_as_a_plain_one_does(monkeypatch):
    torch._dynamo.reset()
    model, compiled, batch = a_model(), a_model(), a_batch()
    compiled.compile(backend="eager")
    whole, parts = (
        loss_and_gradients(monkeypatch, one, batch, "xent", size)
        for one, size in ((model, 10**6), (compiled, 10))
    )
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())
    torch._dynamo.reset()


@pytest.mark.slow
def test_computed_memory_is_what_a_step_takes():
    """The benchmark: tensors without memory against tensors with it."""
    overrides = [*TINY, "batch_size=2", "max_points=16", "seg_max_objects=3", "amp=off"]
    cfg, vocab = snapshot(CFG, overrides), Vocabulary(num_text=2000)
    tasks = ["segmentation", "captioning"]
    whole, measured = (
        peak(cfg, tasks, vocab, at_once=2**62, measure=measure) for measure in (False, True)
    )
    assert whole == pytest.approx(measured, rel=0.02)
    assert peak(cfg, tasks, vocab, at_once=2**18, measure=False) < whole
