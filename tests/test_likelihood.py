"""The likelihood of annotation: what one token after the other would give, split into kinds."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from config import CFG
from dataset.batch import collate, pad_batch
from dataset.tasks import TASKS, build_source
from infer import evaluate
from infer.batches import EvalLoop
from infer.likelihood import (
    build_loader,
    build_sequence_tokenizer,
    measure_likelihood,
)
from infer.predictor import Predictor
from tests.conftest import TINY
from tests.training import metrics
from tokenizer.base import TOKEN_KINDS, kinds_of
from tokenizer.vocabulary import Vocabulary
from train.engine import train
from utils.cli import snapshot
from utils.devices import World
from utils.errors import UserError


def source_of(task, root, split="train"):
    return build_source(task, "coco", root, split)


def one_by_one(cfg, task, trained, source):
    """Sums (weight, loss, hits) by kind, from the logits of whole sequences, sample by sample."""
    tokenizer = build_sequence_tokenizer(cfg, task, trained)
    samples = build_loader(cfg, task, trained, source, tokenizer, EvalLoop(), 0).dataset
    sums = {kind: np.zeros(3) for kind in TOKEN_KINDS}
    v = trained.vocab
    for number in range(len(samples)):
        batch = collate([samples[0, number]])
        with torch.no_grad():
            images = pad_batch(batch.images, batch.unpadded)
            logits = trained.model(images, batch.input_tokens).flatten(0, 1)
        log_probs = logits.double().log_softmax(1)
        rows = zip(batch.target_tokens.flatten(), batch.token_weights.flatten(), strict=True)
        for place, (target, weight) in enumerate(rows):
            target, weight = int(target), float(weight)
            if target == tokenizer.eos_id or target in (v.pad, v.separator):
                kind = "ends"
            elif target == v.invisible or v.coord0 <= target < v.coord0 + v.num_bins:
                kind = "coordinates"
            else:
                kind = "text" if target >= v.text0 else "classes"
            hit = int(logits[place].argmax()) == target
            sums[kind] += weight * np.array([1, -float(log_probs[place, target]), hit])
    return sums


@pytest.mark.parametrize("task", TASKS)
def test_it_equals_the_sum_over_single_tokens(task, multi_settings, multi_weights, demo_set):
    cfg, trained = snapshot(CFG, multi_settings), Predictor(multi_weights)
    source = source_of(task, demo_set)
    found = measure_likelihood(cfg, task, trained, source, EvalLoop(batch_size=3))
    sums = one_by_one(cfg, task, trained, source)
    total = sum(sums.values())
    expected = {"loss": total[1] / total[0], "accuracy": total[2] / total[0]}
    for kind, (weight, loss, hits) in sums.items():
        if weight:
            expected |= {f"{kind}/loss": loss / weight, f"{kind}/accuracy": hits / weight}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    # the same again, and shared among processes
    assert measure_likelihood(cfg, task, trained, source, EvalLoop(batch_size=3)) == found


@pytest.mark.parametrize("task", list(TASKS))
def test_it_leaves_out_what_cannot_be_read_if_evaluation_does(
    task, multi_settings, multi_weights, demo_set, tmp_path, monkeypatch
):
    """In a batch with others and where a batch holds nothing else."""
    cfg, trained = snapshot(CFG, multi_settings), Predictor(multi_weights)
    root = tmp_path / "set"
    shutil.copytree(demo_set, root)
    source = source_of(task, root)
    monkeypatch.setattr(World, "sum", lambda self, sums: parts.append(sums.clone()) or sums)
    found = {}
    for size in (1, 3):
        parts = []
        measure_likelihood(cfg, task, trained, source, EvalLoop(batch_size=size))
        whole, kept = parts[0], source.image_path(0).read_bytes()
        source.image_path(0).write_bytes(kept[:60])
        with pytest.raises(UserError, match="cannot read image"):
            measure_likelihood(cfg, task, trained, source, EvalLoop(batch_size=size))
        loop = EvalLoop(batch_size=size, skip_bad=True)
        measure_likelihood(cfg, task, trained, source, loop)
        source.image_path(0).write_bytes(kept)
        found[size] = parts[-1]
        assert 0 < found[size][:, 0].sum() < whole[:, 0].sum()
    assert torch.allclose(found[1], found[3], rtol=1e-4)


def test_processes_share_the_samples(multi_settings, multi_weights, demo_set, monkeypatch):
    cfg, trained = snapshot(CFG, multi_settings), Predictor(multi_weights)
    source, parts = source_of("keypoint", demo_set), []
    whole = measure_likelihood(cfg, "keypoint", trained, source, EvalLoop(batch_size=2))
    monkeypatch.setattr(World, "sum", lambda self, sums: parts.append(sums) or sums)
    for rank in range(3):
        loop = EvalLoop(batch_size=2, world=World(rank, 3))
        measure_likelihood(cfg, "keypoint", trained, source, loop)
    assert len(parts) == 3 and all(part.any() for part in parts[:2])
    monkeypatch.setattr(World, "sum", lambda self, _: sum(parts))
    together = measure_likelihood(cfg, "keypoint", trained, source, EvalLoop(batch_size=2))
    assert together == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("vocab", [Vocabulary(num_text=50), Vocabulary(num_bins=77, num_text=9)])
@pytest.mark.parametrize("eos_id", [None, 0, 3001])
def test_every_id_has_one_kind(vocab, eos_id):
    kinds = [TOKEN_KINDS[k] for k in kinds_of(torch.arange(vocab.size), vocab, eos_id).tolist()]
    assert set(kinds[slice(*vocab.coord_range)]) == {"coordinates"}
    assert kinds[vocab.pad] == kinds[vocab.separator] == "ends"
    assert kinds[vocab.invisible] == "coordinates" and kinds[vocab.fake] == "classes"
    text = set(range(vocab.text0, vocab.size)) - {eos_id}
    assert {kinds[i] for i in text} == {"text"}
    assert eos_id is None or kinds[eos_id] == "ends"


def test_a_bounded_number_of_samples_is_spread_over_the_source(
    multi_settings, multi_weights, demo_set
):
    cfg, trained = snapshot(CFG, multi_settings), Predictor(multi_weights)
    tokenizer = build_sequence_tokenizer(cfg, "detection", trained)
    source, loop = source_of("detection", demo_set), EvalLoop(batch_size=2)
    batches = build_loader(cfg, "detection", trained, source, tokenizer, loop, 4)
    ids = [image_id for batch in batches for image_id in batch.image_ids]
    assert ids == [int(source.image_ids[i]) for i in (0, 4, 8, 13)]


def test_what_was_learned_is_likely(demo_set, tiny_weights, tmp_path, capsys):
    """Of training images, and as the script prints and saves it."""
    common = ["--weights", str(tiny_weights), "--split", "train", "--out-dir", str(tmp_path)]
    common += ["--likelihood", "--set", *TINY, f"coco_root={demo_set}"]
    evaluate.main([*common, "--no-report"])
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["likelihood/loss"] < 0.6 * np.log(3000)  # a uniform guess
    assert found["likelihood/classes/loss"] < 0.6 * found["likelihood/coordinates/loss"]
    assert 0.5 < found["likelihood/classes/accuracy"] <= 1
    printed = capsys.readouterr().out
    assert f"{found['likelihood/loss']:.3f}" in printed and "coordinates" in printed


def test_training_puts_it_into_the_curves(demo_set, tmp_path):
    overrides = [*TINY, f"coco_root={demo_set}", "max_steps=3", "likelihood_limit=3"]
    runs = {
        limit: train(
            snapshot(
                CFG, [*overrides, f"runs_dir={tmp_path / limit}", f"likelihood_limit={limit}"]
            ),
            ["detection"],
        )
        for limit in ("0", "3")
    }
    names = {
        limit: {n for row in metrics(run) for n in row if "likelihood" in n}
        for limit, run in runs.items()
    }
    assert names["0"] == set()
    kinds = [f"{kind}/" for kind in ("coordinates", "classes")]
    assert names["3"] == {
        f"val/detection/likelihood/{kind}{figure}"
        for kind in ("", *kinds)
        for figure in ("loss", "accuracy")
    }
    # and does not change the training
    without, measured = (load_file(run / "last.safetensors") for run in runs.values())
    assert all(torch.equal(without[name], measured[name]) for name in without)


def test_weights_without_training_sequences_are_refused(multi_settings, multi_weights):
    trained = Predictor(multi_weights)
    trained.vocab = Vocabulary.simple(50, 5)
    with pytest.raises(UserError, match="simple layout.*leave --likelihood out"):
        measure_likelihood(snapshot(CFG, multi_settings), "detection", trained, None, EvalLoop())


def test_images_without_an_object_to_learn_have_none(multi_settings, multi_weights, demo_set):
    cfg, trained = snapshot(CFG, multi_settings), Predictor(multi_weights)
    source = source_of("keypoint", demo_set, "val")
    assert measure_likelihood(cfg, "keypoint", trained, source, EvalLoop()) == {}
