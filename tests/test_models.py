"""Encoder contract, decoder, weight files."""

import json
import math
from dataclasses import replace

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from models import ModelConfig, build_model, load_model, save_model
from models.encoder import TimmEncoder
from models.layers import sin_cos_2d
from models.pix2seq import smooth_coordinates
from utils.errors import UserError

TINY = ModelConfig(
    encoder="test_vit", image_size=(96, 128), dim=32, num_heads=4, num_layers=2, mlp_dim=64,
    max_len=40,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(TINY).eval()


@pytest.mark.parametrize(
    ("name", "stride", "grid"),
    [
        ("test_vit", None, (6, 8)),
        ("test_resnet", None, (3, 4)),
        ("test_resnet", 16, (6, 8)),
        ("test_convnext", 8, (12, 16)),
        ("test_efficientnet", None, (3, 4)),
    ],
)
def test_any_timm_encoder_gives_one_token_per_grid_cell(name, stride, grid):
    encoder = TimmEncoder(name, (96, 128), stride=stride).eval()
    tokens = encoder(torch.rand(2, 3, 96, 128))
    assert encoder.grid == grid and tokens.shape == (2, grid[0] * grid[1], encoder.dim)


@pytest.mark.parametrize(
    ("name", "stride"),
    [("selecsls42", 32), ("sequencer2d_s", 7), ("dla34", 16), ("vit_tiny_patch16_224", 16)],
)
def test_the_map_of_a_stride_has_its_size(name, stride):
    """timm offers some of the maps that a model has, not always the last or the first ones."""
    with torch.device("meta"):
        encoder = TimmEncoder(name, (224, 224), stride=stride)
        tokens = encoder(torch.empty(1, 3, 224, 224))
    assert tokens.shape == (1, (224 // stride) ** 2, encoder.dim)


@pytest.mark.parametrize("name", ["test_efficientnet", "mobilenetv3_small_050", "test_resnet"])
def test_stages_behind_the_one_that_is_used_are_dropped(name):
    """Every parameter that is left gets a gradient, and the tokens are those of the whole model."""
    torch.manual_seed(0)
    encoder = TimmEncoder(name, (64, 96), stride=16).eval()
    images = torch.rand(2, 3, 64, 96)
    tokens = encoder(images)
    tokens.square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []

    whole = timm.create_model(name, features_only=True).eval()
    surplus = whole.load_state_dict(encoder.backbone.state_dict(), strict=False)
    assert not surplus.unexpected_keys
    expected = next(m for m in reversed(whole(images)) if m.shape[-2:] == encoder.grid)
    assert torch.allclose(tokens, expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    assert all(key.startswith(encoder.unused) for key in surplus.missing_keys if encoder.unused)


def test_a_weight_file_that_still_holds_unused_stages_loads(tmp_path):
    config = replace(TINY, encoder="test_efficientnet", encoder_stride=16, drop_path=0.0)
    model = build_model(config)
    names = model.encoder.unused
    assert names
    save_model(model, tmp_path / "new.safetensors", meta={})
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        texts = file.metadata()
    tensors[f"encoder.backbone.{names[0]}0.conv.weight"] = torch.full((2,), math.nan)
    save_file(tensors, tmp_path / "old.safetensors", metadata=texts)
    loaded = load_model(tmp_path / "old.safetensors").state_dict()
    assert loaded.keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_tokens_follow_the_picture_row_by_row(name):
    """What changes when one corner changes most is the token of that corner."""
    torch.manual_seed(0)
    encoder = TimmEncoder(name, (96, 160)).eval()
    images = torch.rand(2, 3, 96, 160)
    images[1] = images[0]
    images[1, :, :16, -16:] = 1 - images[1, :, :16, -16:]  # the top right corner
    with torch.no_grad():
        difference = encoder(images).diff(dim=0)[0].norm(dim=1)
    assert difference.argmax().item() == encoder.grid[1] - 1


@pytest.mark.parametrize(
    ("name", "stride", "count"),
    [
        ("test_vit", None, 6),
        ("test_vit", 16, 6),  # timm wraps it to get one feature map
        ("swin_tiny_patch4_window7_224", None, 12),
        ("convnext_atto", None, 12),
        ("convnext_atto", 16, 10),  # without the last stage
        ("resnet18", 16, 0),
    ],
)
def test_the_blocks_of_an_encoder_are_found_in_its_stages(name, stride, count):
    """They are recomputed, or sharded, one by one."""
    with torch.device("meta"):
        encoder = TimmEncoder(name, (224, 224), stride=stride)
    blocks = encoder.blocks
    assert len(blocks) == len({id(block) for block in blocks}) == count
    inside = {id(m) for block in blocks for part in block.children() for m in part.modules()}
    assert not inside & {id(block) for block in blocks}, "none is a part of another"


def test_a_stride_takes_the_last_feature_map_that_has_it():
    """All blocks of a ViT have one stride: with it, it is the whole ViT, without the last norm."""
    torch.manual_seed(0)
    whole = TimmEncoder("test_vit", (64, 96)).eval()
    encoder = TimmEncoder("test_vit", (64, 96), stride=16).eval()
    encoder.backbone.model.load_state_dict(whole.backbone.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(whole.backbone.norm(encoder(images)), whole(images))


def test_an_unknown_encoder_names_the_nearest():
    with pytest.raises(UserError, match="no encoder 'resnet5'.*resnet50"):
        build_model(ModelConfig(encoder="resnet5"))


def test_a_stride_the_encoder_lacks_is_refused():
    with pytest.raises(UserError, match=r"strides \[2, 4, 8, 16, 32\], not 7"):
        TimmEncoder("test_resnet", (64, 64), stride=7)


def test_pretrained_weights_that_are_damaged_name_the_file(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    monkeypatch.setattr("models.encoder.pretrained_file", lambda _: tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors.*delete that file") as error:
        build_model(TINY, pretrained=True)
    assert "\n" not in str(error.value)


def test_pretrained_weights_of_timm_are_loaded(tmp_path, monkeypatch):
    torch.manual_seed(3)
    whole = timm.create_model("test_vit").state_dict()
    save_file(whole, tmp_path / "model.safetensors")
    monkeypatch.setattr("models.encoder.pretrained_file", lambda _: tmp_path / "model.safetensors")
    name = "blocks.0.attn.qkv.weight"
    got = build_model(TINY, pretrained=True).encoder.backbone.state_dict()[name]
    assert torch.equal(got, whole[name])


def test_uint8_and_float_images_are_the_same(model):
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(images), model.encode(images.float() / 255))


def test_floats_are_not_clamped(model):
    with torch.no_grad():
        bright, brighter = (model.encode(torch.full((1, 3, 96, 128), v)) for v in (1.0, 2.0))
    assert not torch.equal(bright, brighter)


def test_several_sequences_of_an_image_equal_one_by_one(model):
    images, tokens = torch.rand(2, 3, 96, 128), torch.randint(0, 3000, (2, 3, 7))
    with torch.no_grad():
        together = model(images, tokens)
        alone = torch.cat([model(images, tokens[:, i]) for i in range(3)])
    assert together.shape == (6, 7, 3000)
    torch.testing.assert_close(together.view(2, 3, 7, -1).transpose(0, 1).flatten(0, 1), alone)


def test_a_token_does_not_see_later_ones(model):
    images, tokens = torch.rand(1, 3, 96, 128), torch.randint(0, 3000, (1, 9))
    changed = tokens.clone()
    changed[0, 5] += 1
    with torch.no_grad():
        before, after = model(images, tokens), model(images, changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-4


def test_logits_of_chosen_tokens_equal_the_full_ones(model):
    images, tokens = torch.rand(2, 3, 96, 128), torch.randint(0, 3000, (2, 2, 7))
    chosen = torch.rand(tokens.shape) < 0.3
    with torch.no_grad():
        some = model(images, tokens, chosen.flatten().nonzero()[:, 0])
        full = model(images, tokens)
    torch.testing.assert_close(some, full[chosen.flatten(0, 1)])


def test_a_smooth_start_makes_neighbouring_bins_neighbours():
    torch.manual_seed(0)
    model = build_model(replace(TINY, projection_positions="learned"))
    others = model.decoder.token_embedding[:100].clone()
    smooth_coordinates(model, (1000, 1200))
    table = model.decoder.token_embedding[1000:1200].detach()
    distance = torch.cdist(table, table)
    near, far = distance.diagonal(1).max(), distance[0, 20:].min()
    assert near < far and table.std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(others, model.decoder.token_embedding[:100])
    places = model.projection.positions.detach().view(6, 8, 2, 16)  # y code, x code
    torch.testing.assert_close(places[:, 0, 0], places[:, 5, 0])  # one row, one y
    torch.testing.assert_close(places[0, :, 1], places[4, :, 1])  # one column, one x


def test_too_long_a_sequence_is_refused(model):
    with pytest.raises(ValueError, match="at most 40 tokens, got 41"):
        model(torch.rand(1, 3, 96, 128), torch.zeros(1, 41, dtype=torch.long))


def test_every_layer_norm_has_the_official_epsilon(model):
    norms = [m for part in (model.projection, model.decoder) for m in part.modules()]
    norms = [m for m in norms if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 + 3 * 2 + 1 and all(norm.eps == 1e-6 for norm in norms)


def test_initial_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    config = ModelConfig(encoder="test_vit", image_size=(64, 64), dim=256, num_heads=8)
    logits = build_model(config).eval()(torch.rand(1, 3, 64, 64), torch.randint(0, 3000, (1, 20)))
    loss = -logits.log_softmax(-1).mean()
    assert loss.item() == pytest.approx(8.0, abs=0.3)  # ln 3000


@pytest.mark.data
def test_two_dimensional_positions_equal_the_official_ones(reference):
    import numpy as np

    data = np.load(reference / "models" / "resnet_a" / "forward.npz")
    torch.testing.assert_close(
        sin_cos_2d((3, 2), 32), torch.from_numpy(data["proj_vis_pos_emb"]), atol=1e-6, rtol=0
    )


def test_a_weight_file_alone_is_enough(model, tmp_path):
    model.meta = {"tasks": {"detection": {"max_objects": 3}}}
    save_model(model, tmp_path / "w.safetensors")
    again = load_model(tmp_path / "w.safetensors")
    assert again.config == model.config and again.meta == model.meta and not again.training
    images, tokens = torch.rand(1, 3, 96, 128), torch.randint(0, 3000, (1, 7))
    with torch.no_grad():
        torch.testing.assert_close(again(images, tokens), model(images, tokens))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_half_precision_halves_the_file_and_loads_as_float32(model, tmp_path):
    save_model(model, tmp_path / "full.safetensors")
    save_model(model, tmp_path / "half.safetensors", dtype=torch.float16)
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    half = load_model(tmp_path / "half.safetensors")
    assert {p.dtype for p in half.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["missing", "text", "foreign", "cut", "other config"])
def test_a_wrong_weight_file_is_one_line(model, tmp_path, kind):
    path = tmp_path / "w.safetensors"
    if kind == "text":
        path.write_text("hello")
    elif kind == "foreign":
        save_file({"a": torch.zeros(2)}, path)
    elif kind != "missing":
        save_model(model, path)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:-100])
        else:
            config = json.dumps(ModelConfig(encoder="test_vit", image_size=(96, 128)).to_json())
            metadata = {"format": "pix2seq/1", "config": config, "meta": "{}"}
            save_file(model.state_dict(), path, metadata=metadata)
    with pytest.raises(UserError) as error:
        load_model(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        ModelConfig(dim=30, num_heads=4)
