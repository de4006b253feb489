"""The official encoders and decoder options: parity, parts, randomness, initialisation."""

import dataclasses
import json
import math
from itertools import product

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet

from download.official_model import model_config, to_state_dict
from download.tf_checkpoint import read_checkpoint
from models import ModelConfig, build_model, load_model, save_model
from models.decoder import DecoderLayer, SelfAttention
from models.layers import DropPath, Mlp, one_turn, sin_cos_1d, sin_cos_2d
from models.official_encoders import (
    BatchNorm,
    Bottleneck,
    EncoderBlock,
    OfficialResNet,
    TransformerOptions,
)
from models.pix2seq import Projection
from models.prepare import fold_batch_norms
from utils.errors import UserError

VARIANTS = ["vit_a", "resnet_a", "resnetc_a"]
NO_DROPS = {"drop_path": 0.0, "drop_units": 0.0, "drop_attention": 0.0}
VIT = ModelConfig(
    encoder="official_vit", image_size=(32, 48), encoder_dim=32, encoder_layers=2, encoder_heads=4,
    encoder_mlp_dim=64, encoder_patch=8, dim=24, num_layers=2, num_heads=4, mlp_dim=48,
    vocab_size=60, max_len=12, image_mean=(0.0,) * 3, image_std=(1.0,) * 3,
)  # fmt: skip
RESNET = dataclasses.replace(
    VIT, encoder="official_resnet", image_size=(64, 96), resnet_width=0.125
)
RESNET_C = dataclasses.replace(RESNET, encoder="official_resnet_c")
ALL = {"vit": VIT, "resnet": RESNET, "resnet_c": RESNET_C}


@pytest.fixture(scope="module", params=VARIANTS)
def official(request, reference):
    """(model with the official weights, arrays of the official code)"""
    folder = reference / "models" / request.param
    config = model_config(json.loads((folder / "config.json").read_text())["model"])
    model = build_model(config)
    model.load_state_dict(to_state_dict(read_checkpoint(folder / "ckpt" / "ckpt-0"), config))
    arrays = np.load(folder / "forward.npz")
    values = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    values["images"] = values["images"].permute(0, 3, 1, 2)
    values["tolerance"] = 2e-5 if request.param == "vit_a" else 1e-4
    return model.eval(), values


def largest_difference(ours, theirs):
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


@pytest.mark.data
def test_encoder_and_memory_equal_the_official_ones(official):
    model, values = official
    with torch.no_grad():
        features, memory = model.encoder(values["images"]), model.encode(values["images"])
    assert largest_difference(features, values["encoder_out"]) < values["tolerance"]
    assert largest_difference(memory, values["encoded"]) < values["tolerance"]


@pytest.mark.data
def test_teacher_forced_logits_equal_the_official_ones(official):
    model, values = official
    with torch.no_grad():
        one = model(values["images"], values["seq"])
        several = model(values["images"], values["seq_multi"])
    assert largest_difference(one, values["logits_seq"]) < values["tolerance"]
    assert largest_difference(several, values["logits_seq_multi"]) < values["tolerance"]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "prompt", "num_samples"),
    [
        ("infer_task", "task_prompt", 1),
        ("infer_instance", "instance_prompt", 1),
        ("infer_task_ns2", "task_prompt", 2),
        ("infer_instance_ns2", "instance_prompt", 2),
        ("infer_task_default_len", "task_prompt", 1),
    ],
)
def test_greedy_tokens_equal_the_official_ones(official, name, prompt, num_samples):
    model, values = official
    expected = values[f"{name}_tokens"]
    tokens, log_probs = model.generate(
        values["encoded"],
        values[prompt],
        max_new_tokens=expected.shape[1],
        num_samples=num_samples,
    )
    assert torch.equal(tokens, expected)
    if f"{name}_logits" in values:
        logits = values[f"{name}_logits"].log_softmax(2)
        theirs = logits.gather(2, expected[..., None])[..., 0]
        assert largest_difference(log_probs, theirs) < values["tolerance"]


@pytest.mark.data
def test_every_stage_of_the_encoder_equals_the_official_one(official):
    model, values = official
    with torch.no_grad():
        if "encoder_layer_outputs" in values:
            stages, theirs = [], list(values["encoder_layer_outputs"])
            blocks = model.encoder.transformer.blocks
            handles = [blocks[0].register_forward_pre_hook(lambda _, x: stages.append(x[0]))]
            handles += [b.register_forward_hook(lambda _, __, x: stages.append(x)) for b in blocks]
            model.encoder(values["images"])
            for handle in handles:
                handle.remove()
        else:
            stages = [x.permute(0, 2, 3, 1) for x in model.encoder.resnet(values["images"])]
            theirs = [values[f"resnet_hidden_{i}"] for i in range(len(stages))]
    assert len(stages) == len(theirs) >= 3
    for ours, expected in zip(stages, theirs, strict=True):
        assert largest_difference(ours, expected) < values["tolerance"]


@pytest.mark.data
@pytest.mark.parametrize("official", ["resnetc_a"], indirect=True)
def test_logits_with_batch_statistics_equal_the_official_ones(official):
    model, values = official
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model.train()(values["images"], values["seq"])
    model.eval().load_state_dict(before)
    assert largest_difference(logits, values["logits_seq_training_true"]) < 1e-4


@pytest.mark.parametrize("name", ALL)
def test_a_weight_file_of_an_official_model_is_enough(name, tmp_path):
    model = build_model(dataclasses.replace(ALL[name], encoder_cls_token=True)).eval()
    save_model(model, tmp_path / "w.safetensors")
    again = load_model(tmp_path / "w.safetensors")
    images, tokens = torch.rand(1, 3, *model.config.image_size), torch.randint(0, 60, (1, 7))
    with torch.no_grad():
        torch.testing.assert_close(again(images, tokens), model(images, tokens))
    assert again.config == model.config


def test_a_config_from_before_the_official_encoders_loads():
    old = ModelConfig(encoder="test_vit").to_json()
    for name in list(old):
        if name.startswith(("encoder_", "resnet_")) and name != "encoder_stride":
            del old[name]
    del old["projection_positions"], old["decoder_positions"]
    assert ModelConfig.from_json(json.loads(json.dumps(old))) == ModelConfig(encoder="test_vit")


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("vit", (32, 48), (4, 6)),
        ("vit", (39, 17), (4, 2)),  # what is no whole patch is not seen
        ("resnet", (64, 96), (2, 3)),
        ("resnet", (65, 31), (3, 1)),  # the ResNet pads
        ("resnet_c", (65, 31), (5, 2)),
    ],
)
@pytest.mark.parametrize("cls_token", [False, True])
def test_one_token_per_grid_cell_of_any_image_size(name, size, grid, cls_token):
    config = dataclasses.replace(ALL[name], image_size=size, encoder_cls_token=cls_token)
    model = build_model(config).eval()
    with torch.no_grad():
        memory = model.encode(torch.rand(2, 3, *size))
    assert model.encoder.grid == grid
    assert memory.shape == (2, cls_token + grid[0] * grid[1], config.dim)


@pytest.mark.parametrize("name", ALL)
def test_every_norm_has_the_official_epsilon(name):
    norms = [m for m in build_model(ALL[name]).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 + 2 * 2 + 2 + 3 * 2 + 1 and all(norm.eps == 1e-6 for norm in norms)
    batch_norms = [m for m in build_model(ALL[name]).modules() if isinstance(m, nn.BatchNorm2d)]
    count = {"vit": 0, "resnet": 1 + 3 * 16 + 4, "resnet_c": 1 + 3 * 13 + 3}[name]
    assert len(batch_norms) == count
    assert all(norm.eps == 1e-5 and norm.momentum == 0.1 for norm in batch_norms)


@pytest.mark.parametrize("dim", [12, 16, 10])
def test_positions_are_sines_then_cosines_of_y_then_of_x(dim):
    grid, half = (3, 5), dim // 2
    codes = sin_cos_2d(grid, dim)
    for row in range(3):
        for column in range(5):
            expected = []
            for coordinate in (row / 2 * 2 * math.pi, column / 4 * 2 * math.pi):
                rates = [10000 ** (-2 * (i // 2) / half) for i in range(half)]
                expected += [math.sin(coordinate * rates[i]) for i in range(0, half, 2)]
                expected += [math.cos(coordinate * rates[i]) for i in range(1, half, 2)]
            torch.testing.assert_close(codes[row * 5 + column], torch.tensor(expected))
    assert torch.equal(sin_cos_2d((1, 5), dim), sin_cos_1d(one_turn(5), dim))


def test_decoder_options_decide_what_is_learned():
    options = {"tie_embeddings": False, "output_bias": False, "decoder_positions": "sin_cos"}
    decoder = build_model(dataclasses.replace(VIT, **options)).eval().decoder
    own = {name for name, _ in decoder.named_parameters(recurse=False)}
    assert own == {"token_embedding", "output_embedding"}
    hidden = torch.randn(2, 24)
    torch.testing.assert_close(decoder.logits(hidden), hidden @ decoder.output_embedding.T)
    torch.testing.assert_close(decoder.positions, sin_cos_1d(one_turn(12), 24))
    decoder = build_model(VIT).decoder
    own = {name for name, _ in decoder.named_parameters(recurse=False)}
    assert own == {"token_embedding", "output_bias", "positions"}
    bias = decoder.logits(torch.zeros(1, 24))[0]
    assert torch.equal(bias, decoder.output_bias)


@pytest.mark.parametrize("positions", ["sin_cos", "learned"])
def test_the_class_token_has_no_position(positions):
    """Neither in the encoder nor after the projection; the image tokens have both."""
    bridge = Projection(8, 16, (2, 3), mode="linear_p", positions=positions, num_prefix_tokens=1)
    features = torch.randn(2, 7, 8)
    with torch.no_grad():
        normed = bridge.proj_ln(bridge.proj(features))
        added = bridge(features) - normed
    assert torch.equal(added[:, 0], torch.zeros(2, 16))
    torch.testing.assert_close(added[:, 1:], bridge.positions.detach().expand(2, 6, 16))

    config = dataclasses.replace(VIT, encoder_cls_token=True, encoder_positions=positions)
    transformer = build_model(config).encoder.transformer
    seen = []
    transformer.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = torch.randn(2, 24, 32)
    with torch.no_grad():
        transformer.eval()(tokens)
        expected = transformer.stem_ln(tokens) + transformer.positions
    torch.testing.assert_close(seen[0][:, 1:], expected)
    assert torch.equal(seen[0][:, 0], transformer.cls_token.detach().expand(2, 32))


def test_projection_modes_are_prefixes_of_each_other():
    torch.manual_seed(0)
    bridge = Projection(8, 16, (2, 3), mode="mlp", mlp_ratio=3).eval()
    assert bridge.mlp.dense1.out_features == 48
    features = torch.randn(2, 6, 8)
    with torch.no_grad():
        linear = bridge.proj_ln(bridge.proj(features))
        linear_p = linear + bridge.positions
        mlp = linear_p + bridge.mlp(bridge.mlp_ln(linear_p))
        torch.testing.assert_close(bridge(features), mlp)
        for mode, expected in (("linear", linear), ("linear_p", linear_p)):
            other = Projection(8, 16, (2, 3), mode=mode)
            other.load_state_dict(bridge.state_dict(), strict=False)
            torch.testing.assert_close(other(features), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_bottleneck_is_that_of_torchvision(stride):
    shortcut = nn.Sequential(nn.Conv2d(8, 32, 1, stride, bias=False), BatchNorm(32))
    block = Bottleneck(8, 8, stride, shortcut).eval()
    theirs = resnet.Bottleneck(8, 8, stride, shortcut, norm_layer=BatchNorm).eval()
    random_norms(block)
    theirs.load_state_dict(block.state_dict())  # by the same names
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), theirs(x))


def test_dropped_paths_are_those_of_timm():
    x = torch.randn(64, 3, 2)
    drawn = []
    for drop in (DropPath(0.3), timm.layers.DropPath(0.3)):
        torch.manual_seed(1)
        drawn.append(drop.train()(x))
        assert torch.equal(drop.eval()(x), x)
    assert torch.equal(*drawn) and (drawn[0] == 0).all((1, 2)).any()


def random_norms(model):
    """Batch norms as after a training; new ones hide mistakes."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.3)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 2)


CONVOLUTIONAL = {
    "official": RESNET,
    "a norm with its activation": dataclasses.replace(VIT, encoder="test_efficientnet"),
    "a feature pyramid": dataclasses.replace(VIT, encoder="test_resnet", encoder_stride=16),
}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@torch.no_grad()
def test_folded_batch_norms_change_no_number_and_nothing_that_is_saved(name, tmp_path):
    config = dataclasses.replace(CONVOLUTIONAL[name], image_size=(96, 96), drop_path=0.0)
    model, images = build_model(config).eval(), torch.rand(2, 3, 96, 96)
    random_norms(model)
    expected, saved = model.encode(images), {n: v.clone() for n, v in model.state_dict().items()}
    model.prepare(fold=True)
    (folded,) = model.fast_encoder
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(model.encode(images), expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(model.encode(images), expected)  # it is another way
    assert {n: v.tolist() for n, v in model.state_dict().items()} == {
        n: v.tolist() for n, v in saved.items()
    }
    with torch.enable_grad():  # gradients are those of the weights
        assert model.encode(images).requires_grad
        torch.testing.assert_close(model.encode(images), expected, atol=0, rtol=0)
    for change in (model.train, model.double, lambda: model.load_state_dict(saved)):
        model.eval().float().prepare(fold=True)
        assert model.fast_encoder
        change()
        assert not model.fast_encoder


def test_batch_norms_that_cannot_be_folded_stay():
    class Reused(nn.Module):
        """What the convolution makes goes round the norm as well."""

        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), BatchNorm(4)

        def forward(self, x):
            x = self.conv(x)
            return self.bn(x) + x

    model, image = Reused().eval(), torch.rand(1, 3, 8, 8)
    random_norms(model)
    assert fold_batch_norms(model, lambda m: m(image)) is None
    assert fold_batch_norms(model, lambda m: m.bn(m.conv(image))) is not None
    assert fold_batch_norms(model, lambda m: m(image[0, 0])) is None  # it does not take that
    vit = build_model(VIT).eval()
    vit.prepare(fold=True)
    assert vit.fast_encoder == ()


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, "transformer"])
def test_convolutions_get_channels_last_and_compute_the_same(name):
    config = dataclasses.replace(
        CONVOLUTIONAL.get(name, VIT), image_size=(96, 96), drop_path=0.0, drop_units=0.0
    )
    model, images = build_model(config).eval(), torch.rand(2, 3, 96, 96)
    seen = []
    for module in model.encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.encode(images)
    last = [x.is_contiguous(memory_format=torch.channels_last) for x in seen]
    assert all(last) if name in CONVOLUTIONAL else not any(last)


@pytest.mark.parametrize("side", [7, 8])
def test_the_stem_pool_pads_as_tensorflow_does(side):
    """Even sides at the end only; a symmetric padding would shift every feature by a pixel."""
    pool = build_model(RESNET).encoder.resnet.stem_pool
    x = torch.randn(1, 2, side, side)
    before, after = (1, 1) if side % 2 else (0, 1)
    padded = F.pad(x, (before, after, before, after), value=-torch.inf)
    assert torch.equal(pool(x), F.max_pool2d(padded, 3, 2))


def test_the_running_variance_is_the_biased_one_and_sync_batch_norm_takes_over():
    norm, x = BatchNorm(4).train(), torch.randn(2, 4, 1, 2) * 3 + 1
    for _ in range(2):
        norm(x)
    biased = x.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(norm.running_var, 0.81 + 0.19 * biased)
    torch.testing.assert_close(norm.running_mean, 0.19 * x.mean((0, 2, 3)))
    before = norm.running_var.clone()
    norm.eval()(x)
    assert torch.equal(norm.running_var, before)

    model = build_model(RESNET).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.encode(images)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        kinds = {type(m) for m in converted.encoder.resnet.modules()}
        assert nn.SyncBatchNorm in kinds and BatchNorm not in kinds
        torch.testing.assert_close(converted.encode(images), expected)


@pytest.mark.parametrize("name", ALL)
def test_the_rate_of_dropped_paths_is_the_same_in_every_branch(name):
    model = build_model(dataclasses.replace(ALL[name], drop_path=0.25))
    rates = {n: m.drop_prob for n, m in model.named_modules() if isinstance(m, DropPath)}
    assert set(rates.values()) == {0.25}
    assert set(rates) == {
        "encoder.transformer.blocks.0.drop_path", "encoder.transformer.blocks.1.drop_path",
        "projection.drop_path", "decoder.layers.0.drop_path", "decoder.layers.1.drop_path",
    }  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_rates_reach_every_dropout_of_the_model(name):
    rates = {"drop_path": 0.0, "drop_units": 0.25, "drop_attention": 0.125}
    model = build_model(dataclasses.replace(ALL[name], **rates))
    mlps = {n for n, m in model.named_modules() if isinstance(m, Mlp)}
    layers = ["encoder.transformer.blocks.0", "encoder.transformer.blocks.1", "projection"]
    assert mlps == {f"{n}.mlp" for n in [*layers, "decoder.layers.0", "decoder.layers.1"]}
    assert {model.get_submodule(n).drop.p for n in mlps} == {0.25}
    attention = {n: m.drop for n, m in model.named_modules() if isinstance(m, SelfAttention)}
    assert set(attention.values()) == {0.125}


@pytest.mark.parametrize("post_norm", [False, True])
def test_each_row_of_the_decoder_keeps_or_loses_each_of_three_branches(post_norm):
    torch.manual_seed(0)
    rate, rows, constants = 0.25, 4000, (1.0, 10.0, 100.0)
    drops = {"drop_path": rate, "drop_units": 0.0, "drop_att": 0.0}
    layer = DecoderLayer(8, 2, 16, post_norm=post_norm, **drops)
    ends = (layer.self_attention.out, layer.cross_attention.out, layer.mlp.dense2)
    for end, constant in zip(ends, constants, strict=True):
        nn.init.zeros_(end.weight), nn.init.constant_(end.bias, constant)
    layer.self_ln = layer.cross_ln = layer.mlp_ln = nn.Identity()  # so that the sum shows
    memory = torch.zeros(1, 2, 1, 4)
    with torch.no_grad():
        sums = layer.train()(torch.zeros(rows, 3, 8), memory, memory, 0, None)
        added = (sums * (1 - rate)).round()
    assert torch.equal(added, added[:, :1, :1].expand_as(added)), "a row is one draw"
    found = dict(zip(*(v.tolist() for v in added[:, 0, 0].unique(return_counts=True))))  # noqa: B905
    subsets = [[c for c, kept in zip(constants, k) if kept] for k in product((0, 1), repeat=3)]  # noqa: B905
    assert found.keys() == {float(sum(subset)) for subset in subsets}
    for subset in subsets:
        share = (1 - rate) ** len(subset) * rate ** (3 - len(subset))
        assert found[float(sum(subset))] / rows == pytest.approx(share, abs=0.03)


def test_each_sample_keeps_or_loses_each_branch_as_a_whole():
    torch.manual_seed(0)
    rate, rows = 0.25, 2000
    options = TransformerOptions(dim=8, num_layers=1, num_heads=2, mlp_dim=16, drop_path=rate)
    block = EncoderBlock(options)
    block.mlp.dense2.weight.data.zero_()
    nn.init.ones_(block.mlp.dense2.bias)  # the branches are constants: which were kept shows
    block.attention.out.weight.data.zero_()
    nn.init.constant_(block.attention.out.bias, 10.0)
    with torch.no_grad():
        added = block.train()(torch.zeros(rows, 3, 8)) * (1 - rate)
    assert torch.equal(added, added[:, :1, :1].expand_as(added)), "a sample is one draw"
    counts = dict(zip(*(v.tolist() for v in added[:, 0, 0].unique(return_counts=True))))  # noqa: B905
    keep = {10.0: 1 - rate, 1.0: 1 - rate}
    expected = {
        a + m: (keep[10.0] if a else rate) * (keep[1.0] if m else rate)
        for a in (0.0, 10.0)
        for m in (0.0, 1.0)
    }
    assert counts.keys() == expected.keys()
    for value, share in expected.items():
        assert counts[value] / rows == pytest.approx(share, abs=0.03)

    bridge = Projection(8, 16, (2, 3), drop_path=rate).train()
    with torch.no_grad():
        rows = bridge(torch.randn(1, 6, 8).expand(400, 6, 8))
        skipped = (rows - rows[:1]).abs().amax((1, 2)) < 1e-6  # those that drew as the first did
    assert 0.15 < skipped.float().mean() < 0.85 and len(rows.flatten(1).unique(dim=0)) == 2


def test_units_are_dropped_between_gelu_and_the_second_layer():
    mlp = Mlp(4, 4, 0.5).train()
    for layer in (mlp.dense1, mlp.dense2):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.full((1000, 4), 1.5)
    out = mlp(x) / F.gelu(x)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert out.mean().item() == pytest.approx(1.0, abs=0.1)


def test_units_of_the_feature_map_are_dropped_before_its_projection():
    options = TransformerOptions(dim=8, num_layers=1, num_heads=2, mlp_dim=16, drop_units=0.5)
    encoder = OfficialResNet((64, 64), options, width=0.125).eval()
    images, seen = torch.rand(2, 3, 64, 64), []
    encoder.stem_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        encoder(images)
        encoder.drop.train()
        encoder(images)
    plain, dropped = seen
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])
    assert kept[plain != 0].float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_attention_probabilities_are_dropped_in_training_only(monkeypatch):
    model = build_model(dataclasses.replace(VIT, drop_attention=0.3))
    rates, attend = [], F.scaled_dot_product_attention

    def record(*args, **kwargs):
        rates.append(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
        return attend(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    for training, rate in ((True, 0.3), (False, 0.0)):
        rates.clear()
        model.train(training)(torch.rand(1, 3, 32, 48), torch.zeros(1, 3, dtype=torch.long))
        assert rates == [rate] * (2 + 2 * 2)


def assert_uniform(tensor, bound):
    """Many draws between -bound and bound."""
    assert tensor.abs().max() <= bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.08)


def assert_truncated_normal(tensor, std):
    """Many draws of a normal that is cut at two deviations, which leaves 0.88 of its deviation."""
    assert 1.7 * std < tensor.abs().max() <= 2 * std
    assert tensor.std().item() == pytest.approx(0.8796 * std, rel=0.08)


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    config = dataclasses.replace(
        VIT, encoder_dim=96, encoder_mlp_dim=288, dim=64, mlp_dim=192, vocab_size=900, max_len=80,
        encoder_positions="learned", projection_positions="learned", encoder_cls_token=True,
        tie_embeddings=False, image_size=(64, 64),
    )  # fmt: skip
    return build_model(config)


def test_tables_and_output_bias_start_truncated_normal(fresh):
    tables = {name: p for name, p in fresh.named_parameters() if "." not in name.split(".", 1)[1]}
    tables["encoder.transformer.cls_token"] = fresh.encoder.transformer.cls_token
    tables["encoder.transformer.positions"] = fresh.encoder.transformer.positions
    assert len(tables) == 7
    for name, table in tables.items():
        if name == "encoder.transformer.cls_token":
            assert table.abs().max() <= 0.04 and 0.01 < table.std() < 0.03  # few draws
        else:
            assert_truncated_normal(table, 0.02)


def test_kernels_start_glorot_uniform_and_biases_zero(fresh):
    """Attention kernels with the fans that Keras gives (D, nh, hd) and (nh, hd, D)."""
    linear = {name: m for name, m in fresh.named_modules() if isinstance(m, nn.Linear)}
    assert len(linear) == 2 * 4 + 1 + 2 + 2 * 7
    for name, layer in linear.items():
        assert not layer.bias.any(), name
        dim, heads = (96, 4) if name.startswith("encoder") else (64, 4)
        if name.endswith((".qkv", ".q", ".kv")):
            fans = dim * heads + dim * (dim // heads)
        elif name.endswith(".out"):
            fans = heads * (dim // heads) + heads * dim
        else:
            fans = layer.in_features + layer.out_features
        assert_uniform(layer.weight, math.sqrt(6 / fans))
    stem = fresh.encoder.stem_conv
    assert_uniform(stem.weight, math.sqrt(6 / (8 * 8 * (3 + 96))))
    assert not stem.bias.any()
    for module in fresh.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all() and not module.bias.any()


def test_a_resnet_starts_with_scaled_variance_and_closed_branches():
    torch.manual_seed(0)
    resnet = build_model(dataclasses.replace(RESNET, resnet_width=0.5)).encoder.resnet
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            std = module.weight[0].numel() ** -0.5
            assert_truncated_normal(module.weight, std / 0.8796)
    norms = {n: m for n, m in resnet.named_modules() if isinstance(m, BatchNorm)}
    assert {n.split(".")[-1] for n, m in norms.items() if not m.weight.any()} == {"bn3"}
    assert all(m.weight.eq(1).all() for n, m in norms.items() if not n.endswith("bn3"))
    x, shortcut = torch.rand(1, 32, 8, 8), resnet.eval().groups[0][0].downsample
    torch.testing.assert_close(resnet.groups[0](x), shortcut(x).relu())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_dim": 30}, "multiple of encoder_heads"),
        ({"encoder_positions": "none"}, "encoder_positions must be 'sin_cos' or 'learned'"),
        ({"decoder_positions": "none"}, "decoder_positions must be"),
        ({"resnet_depth": 18}, "resnet_depth must be 50, 101, 152 or 200"),
        ({"resnet_width": 0.3}, "a whole number"),
    ],
)
def test_impossible_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VIT, **changes)


@pytest.mark.parametrize("name", ALL)
def test_official_encoders_have_no_pretrained_weights_of_their_own(name):
    with pytest.raises(UserError, match="--set pretrained=false"):
        build_model(ALL[name], pretrained=True)


TRANSFORMERS = {
    "official": VIT,
    "timm": dataclasses.replace(VIT, encoder="test_vit", image_size=(64, 64)),
    "convolutions, too": dataclasses.replace(VIT, encoder="test_convnext", image_size=(64, 64)),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_an_encoder_in_int8_says_nearly_the_same_and_changes_nothing_else(name):
    pytest.importorskip("torchao", reason="torchao is not installed")
    model = build_model(TRANSFORMERS[name]).eval()
    images = torch.rand(2, 3, *model.config.image_size)
    exact, saved = model.encode(images), {n: v.clone() for n, v in model.state_dict().items()}
    linears = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear)]
    weights = [linear.weight.clone() for linear in linears]
    model.prepare(dtype=torch.int8, mode="plain", encoder_int8=True)
    (fast,) = model.fast_encoder
    quantised = [m for m in fast.modules() if isinstance(m, torch.nn.Linear)]
    assert len(quantised) == len(linears) > 0
    for linear, weight, other in zip(linears, weights, quantised, strict=True):
        assert torch.equal(linear.weight, weight) and type(linear.weight) is torch.nn.Parameter
        rounded = other.weight.dequantize()
        assert ((rounded - weight).abs() <= 0.51 * weight.abs().amax(1, keepdim=True) / 127).all()
        assert not torch.equal(rounded, weight)
    near = model.encode(images)
    assert (near - exact).abs().mean() < 0.03 * exact.abs().mean()
    assert not torch.equal(near, exact)
    encoder = {n: v for n, v in model.state_dict().items() if not n.startswith("decoder.")}
    assert encoder and all(torch.equal(value, saved[name]) for name, value in encoder.items())
    with torch.enable_grad():  # gradients are those of the weights
        torch.testing.assert_close(model.encode(images), exact, atol=0, rtol=0)
    model.prepare(dtype=torch.int8, mode="plain")
    torch.testing.assert_close(model.encode(images), exact, atol=0, rtol=0)
    for change in (model.train, model.double, lambda: model.load_state_dict(saved)):
        model.eval().float().prepare(dtype=torch.int8, mode="plain", encoder_int8=True)
        assert model.fast_encoder
        change()
        assert not model.fast_encoder


def test_an_encoder_that_cannot_be_int8_is_one_line(monkeypatch):
    resnet = build_model(CONVOLUTIONAL["a feature pyramid"]).eval()
    model = build_model(VIT).eval()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(UserError, match="encoder_int8 is for infer_dtype=int8 on a CPU"):
        model.prepare(encoder_int8=True)
    with pytest.raises(UserError, match="encoders with linear layers, and this one has none"):
        resnet.prepare(dtype=torch.int8, mode="plain", encoder_int8=True)
    monkeypatch.setattr("models.prepare.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install torchao, or set encoder_int8=false"):
        model.prepare(dtype=torch.int8, mode="plain", encoder_int8=True)
    after = model.state_dict()
    assert model.fast_encoder == () and all(torch.equal(v, after[n]) for n, v in before.items())
