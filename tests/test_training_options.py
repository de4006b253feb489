"""Average of the weights, early stopping, a frozen encoder, rates that differ in the model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from config import CFG
from models import save_model
from models.encoder import TimmEncoder
from tests.conftest import TINY
from tests.training import losses, resume, state_of
from train.engine import train, train_step
from train.optim import Freeze, average_of, build_optimizer, lr_factors
from train.settings import check_settings
from utils.cli import snapshot
from utils.devices import ALONE
from utils.errors import UserError

DETECTION = ["detection"]


@pytest.fixture
def settings(demo_set, tmp_path):
    return [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", "eval_limit=1"]


def steps(state, count):
    for _ in range(count):
        state.model.train()
        state.before_step()
        train_step(state, [{"detection": state.streams["detection"].next()}], None, 0.0)
        state.after_step()


@pytest.mark.parametrize("off", [0.0, -1.0, -1e-3])  # the official config writes -1
def test_a_limit_of_the_gradient_that_is_not_above_0_is_off(settings, off):
    weights = []
    for limit in (off, 1e9):
        state = state_of(settings, DETECTION)
        state.model.train()
        batch = state.streams["detection"].next()
        norms = [train_step(state, [{"detection": batch}], None, limit)[1] for _ in range(3)]
        assert all(norm > 0 for norm in norms)
        weights.append(state.model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


# ---- average of the weights --------------------------------------------------------------------


def test_the_average_is_that_of_the_weights_after_each_step(settings):
    state = state_of([*settings, "ema_decay=0.5"], DETECTION)
    name, expected = "decoder.output_bias", None
    for step in range(1, 5):
        steps(state, 1)
        value = state.model.state_dict()[name].clone()
        decay = min(0.5, 1 - step**-0.75)  # none in the first step, then growing to the limit
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert state.evaluated_model is state.ema.module and not state.evaluated_model.training
    torch.testing.assert_close(state.evaluated_model.state_dict()[name], expected)
    assert not torch.equal(expected, value)


def test_the_average_is_what_is_judged_and_kept(settings):
    run_dir = train(snapshot(CFG, [*settings, "ema_decay=0.9", "eval_every=2"]), DETECTION)
    best, last, average = (
        load_file(run_dir / f"{name}.safetensors") for name in ("best", "last", "last_ema")
    )
    assert all(torch.equal(best[key], average[key]) for key in best)
    assert any(not torch.equal(last[key], average[key]) for key in last)


def test_an_average_can_begin_with_a_resumed_run(settings):
    old, new = state_of(settings, DETECTION), state_of([*settings, "ema_decay=0.9"], DETECTION)
    steps(old, 2)
    assert old.evaluated_model is old.model
    new.load_state_dict(old.state_dict())
    average, weights = new.evaluated_model.state_dict(), old.model.state_dict()
    assert all(torch.equal(average[key], weights[key]) for key in weights)


def test_no_average_without_a_decay():
    assert average_of(nn.Linear(2, 2), 0.0) is None
    with pytest.raises(ValueError, match="below 1"):
        average_of(nn.Linear(2, 2), 1.0)


# ---- early stopping ----------------------------------------------------------------------------


def test_a_run_ends_when_nothing_gets_better(settings, monkeypatch, capsys):
    values = iter([0.1, 0.3, 0.3, 0.2, 0.9, 0.8])

    def score(*_):
        metrics = {"AP": next(values)}
        report = SimpleNamespace(metrics=metrics, own=(), save=lambda folder: None)
        return report, np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr("train.validate.validate", score)
    more = ["epochs=6", "early_stop_patience=2", "train_limit=4"]  # one step an epoch
    run_dir = train(snapshot(CFG, [*settings, *more]), DETECTION)
    assert len(losses(run_dir)) == 4, "0.3 in the second, no better in the third and fourth"
    assert "no better evaluation in the last 2" in capsys.readouterr().err
    values_of = torch.load(run_dir / "last.ckpt", weights_only=True)
    assert values_of["best"] == 0.3 and values_of["stale"] == 2
    resume([], DETECTION, run_dir)
    assert len(losses(run_dir)) == 4, "it has ended"
    resume(["early_stop_patience=0"], DETECTION, run_dir)
    assert len(losses(run_dir)) == 6


# ---- frozen encoder ----------------------------------------------------------------------------


def test_the_encoder_waits_and_then_learns(settings):
    more = ["encoder=resnet18", "freeze_encoder_steps=3", "warmup_epochs=0", "drop_path=0"]
    state = state_of([*settings, *more, "encoder_lr_factor=0.5"], DETECTION)
    encoder = {key: value.clone() for key, value in state.model.encoder.state_dict().items()}
    decoder = state.model.decoder.output_bias.detach().clone()
    steps(state, 3)
    now = state.model.encoder.state_dict()
    assert all(torch.equal(now[key], value) for key, value in encoder.items()), "statistics too"
    assert not torch.equal(state.model.decoder.output_bias, decoder)
    assert [g.get("updates", 0) for g in state.optimizer.param_groups] == [3, 0]
    steps(state, 1)
    now = state.model.encoder.state_dict()
    changed = [key for key, value in encoder.items() if not torch.equal(now[key], value)]
    assert "backbone.conv1.weight" in changed and "backbone.bn1.running_mean" in changed


def test_batch_statistics_that_stay_while_the_encoder_learns(settings, tmp_path):
    start = tmp_path / "start.safetensors"
    save_model(state_of([*settings, "encoder=resnet18"], DETECTION).model, start)
    more = ["encoder=resnet18", "freeze_batch_norm=true", "warmup_epochs=0", "drop_path=0"]
    with pytest.raises(UserError, match="freeze_batch_norm=true keeps the statistics of a trained"):
        state_of([*settings, *more], DETECTION)
    state = state_of([*settings, *more, f"init_weights={start}"], DETECTION)
    encoder = {key: value.clone() for key, value in state.model.encoder.state_dict().items()}
    steps(state, 2)
    now = state.model.encoder.state_dict()
    changed = {key for key, value in encoder.items() if not torch.equal(now[key], value)}
    assert "backbone.conv1.weight" in changed and "backbone.bn1.weight" in changed
    assert not any("running" in key or "tracked" in key for key in changed)


def test_frozen_by_name(settings, tmp_path):
    more = ["encoder=resnet18", r"freeze=encoder\.backbone\.(conv1|bn1|layer1),token_embedding"]
    state = state_of([*settings, *more, "warmup_epochs=0", "drop_path=0"], DETECTION)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    steps(state, 2)
    after = state.model.state_dict()
    same = {key for key, value in before.items() if torch.equal(after[key], value)}
    names = *(f"encoder.backbone.{name}" for name in ("conv1", "bn1", "layer1")), "decoder.token_e"
    frozen = {key for key in before if key.startswith(names)}
    assert frozen and frozen <= same, "their batch statistics too"
    assert "encoder.backbone.layer2.0.conv1.weight" not in same
    assert "encoder.backbone.layer2.0.bn1.running_mean" not in same


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("encoderr", "freeze=encoderr is found in the name of no parameter; .* encoder"),
     (".", "freeze=. leaves nothing to learn")],
)  # fmt: skip
def test_patterns_that_freeze_nothing_or_all_are_refused(settings, pattern, message):
    cfg = snapshot(CFG, [*settings, f"freeze={pattern}"])
    with pytest.raises(UserError, match=message):
        check_settings(cfg, DETECTION, ALONE)


def test_what_was_never_to_learn_stays_so():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].bias.requires_grad_(False)
    freeze = Freeze(module, 2)
    for step, learns in enumerate([False, False, True, True]):
        module.train()
        freeze.apply(step)
        assert module[0].weight.requires_grad is learns and module[1].training is learns
        assert not module[0].bias.requires_grad


# ---- rates within the model --------------------------------------------------------------------


def rates(state):
    """Name of a parameter -> its base rate, every parameter exactly once."""
    names = {id(p): name for name, p in state.model.named_parameters()}
    found = [
        (names[id(p)], group["initial_lr"])
        for group in state.optimizer.param_groups
        for p in group["params"]
    ]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


def test_without_factors_there_is_one_group_in_the_order_of_the_model(settings):
    state = state_of(settings, DETECTION)
    (group,) = state.optimizer.param_groups
    assert all(a is b for a, b in zip(group["params"], state.model.parameters(), strict=True))


def test_the_encoder_has_its_own_rate_at_every_step(settings):
    state = state_of([*settings, "encoder_lr_factor=0.1", "decay_all=false"], DETECTION)
    for name, rate in rates(state).items():
        assert rate == pytest.approx(1e-4 if name.startswith("encoder.") else 1e-3), name
    for _ in range(4):
        steps(state, 1)
        first, *_ = last = state.scheduler.get_last_lr()
        assert first == max(last), "the rate that is logged is the whole one"
        assert min(last) == pytest.approx(0.1 * first)
    decays = {(g["initial_lr"], g["weight_decay"]) for g in state.optimizer.param_groups}
    assert len(decays) == len(state.optimizer.param_groups) == 4


def test_layers_of_a_timm_transformer(settings):
    state = state_of([*settings, "layer_decay=0.5", "encoder_lr_factor=0.1"], DETECTION)
    count = len(state.model.encoder.backbone.blocks)
    found = rates(state)
    prefix = "encoder.backbone."
    assert found[f"{prefix}norm.weight"] == pytest.approx(1e-4)
    for i in range(count):
        expected = 1e-4 * 0.5 ** (count - 1 - i)
        assert found[f"{prefix}blocks.{i}.mlp.fc1.weight"] == pytest.approx(expected)
    for name in ("patch_embed.proj.weight", "pos_embed"):
        assert found[prefix + name] == pytest.approx(1e-4 * 0.5**count)
    others = {rate for name, rate in found.items() if not name.startswith("encoder.")}
    assert others == {1e-3}


def test_a_norm_that_timm_counts_as_a_layer_learns_as_the_last_block():
    encoder = TimmEncoder("eva02_tiny_patch14_224", (28, 28))
    found = lr_factors(SimpleNamespace(encoder=encoder), layer_decay=0.5)
    prefix, last = "encoder.backbone.", len(encoder.backbone.blocks) - 1
    for name in ("fc_norm.weight", f"blocks.{last}.mlp.fc2.weight"):
        assert found[prefix + name] == 1
    assert found[f"{prefix}blocks.0.mlp.fc2.weight"] == 0.5**last
    assert found[f"{prefix}patch_embed.proj.weight"] == 0.5 ** (last + 1)


OFFICIAL = ["encoder_dim=32", "encoder_layers=3", "encoder_heads=4", "encoder_mlp_dim=64"]
BLOCK = "transformer.blocks.{}.mlp_ln.weight"


@pytest.mark.parametrize(
    ("encoder", "order"),
    [
        (
            ["encoder=official_vit", "encoder_positions=learned", "encoder_cls_token=true"],
            [
                "stem_conv.bias transformer.stem_ln.bias transformer.positions",
                *(BLOCK.format(i) for i in range(2)),
                f"{BLOCK.format(2)} transformer.output_ln.weight",
            ],
        ),
        (
            ["encoder=official_resnet_c", "resnet_width=0.25"],
            [
                "resnet.stem_conv.weight resnet.stem_bn.bias",
                *(
                    f"resnet.groups.{group}.{i}.conv1.weight"
                    for group, count in enumerate((3, 4, 6))
                    for i in range(count)
                ),
                "stem_projection.weight transformer.stem_ln.weight",
                *(BLOCK.format(i) for i in range(2)),
                f"{BLOCK.format(2)} transformer.output_ln.weight",
            ],
        ),
    ],
)
def test_layers_of_the_official_encoders(settings, encoder, order):
    state = state_of([*settings, *OFFICIAL, *encoder], DETECTION)
    found = lr_factors(state.model, layer_decay=0.5)
    names = [name for name, _ in state.model.encoder.named_parameters()]
    assert set(found) == {f"encoder.{name}" for name in names}
    for above, group in enumerate(reversed(order)):
        for name in group.split():
            assert found[f"encoder.{name}"] == 0.5**above, name
    assert min(found.values()) == 0.5 ** (len(order) - 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder_lr_factor=0"], "encoder_lr_factor must be above 0"),
        (["layer_decay=1.5"], "layer_decay must be above 0 and at most 1"),
        (["ema_decay=1"], "ema_decay must be"),
        (["freeze_encoder_steps=-1"], "freeze_encoder_steps must be"),
        (["early_stop_patience=-1"], "early_stop_patience must be"),
        (["num_lengths=0"], "num_lengths must be at least 1, got 0"),
        (["prefetch_batches=0"], "prefetch_batches must be at least 1 and"),
        (["encoder=resnet18", "encoder_stride=16", "layer_decay=0.5"], "leave encoder_stride out"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings, overrides, message):
    with pytest.raises(UserError, match=message):
        state_of([*settings, *overrides], DETECTION)


def test_a_factor_scales_the_update():
    models = [nn.Linear(3, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    before = models[0].weight.detach().clone()
    options = {"lr": 0.1, "weight_decay": 0.5, "betas": (0.9, 0.95)}
    for model, factors in zip(models, (None, {"weight": 0.25}), strict=True):
        optimizer = build_optimizer(model, factors=factors, **options)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    whole, part = (model.weight.detach() - before for model in models)
    torch.testing.assert_close(part, 0.25 * whole)
    assert torch.equal(models[0].bias, models[1].bias)
