"""Official checkpoints: reading without TensorFlow, every variable in its place, weight files."""

import hashlib
import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from download import convert_official_weights
from download.official_model import (
    ROOT,
    SUFFIX,
    coco_categories,
    is_model_variable,
    model_config,
    resize_positions,
    sources,
    to_state_dict,
    vocabulary,
)
from download.official_settings import VARIANTS, variant_settings
from download.tf_checkpoint import main as list_files
from download.tf_checkpoint import masked_crc32c, read_checkpoint, uncompress_snappy
from infer.predictor import Predictor
from models import build_model, load_model
from tests.tf_writer import BFLOAT16, official_variables, varint, write_checkpoint
from tokenizer.text import TextTokenizer
from utils.errors import UserError

TINY = {
    "image_size": [48, 32], "resnet_variant": "c1", "patch_size": 16, "num_encoder_layers": 1,
    "dim_att": 16, "dim_mlp": 32, "num_heads": 4, "num_decoder_layers": 2, "dim_att_dec": 8,
    "dim_mlp_dec": 24, "num_heads_dec": 2, "vocab_size": 400, "coord_vocab_shift": 200,
    "text_vocab_shift": 300, "max_seq_len": 32, "dec_proj_mode": "mlp", "pos_encoding": "sin_cos",
    "pos_encoding_dec": "learned", "use_cls_token": False, "shared_decoder_embedding": True,
    "decoder_output_bias": True, "drop_path": 0.1, "drop_units": 0.1, "drop_att": 0.0,
}  # fmt: skip
OTHER = {
    "pos_encoding": "learned", "pos_encoding_dec": "sin_cos", "use_cls_token": True,
    "dec_proj_mode": "linear_p", "shared_decoder_embedding": False, "decoder_output_bias": False,
}  # fmt: skip
RESNET = {"resnet_depth": 50, "resnet_sk_ratio": 0.0, "resnet_width_multiplier": 0.125}
VARIANTS_TINY = {
    "vit": TINY,
    "vit, other options": TINY | OTHER,
    "resnet": TINY | RESNET | {"resnet_variant": "standard", "pos_encoding": "learned"},
    "resnet-c": TINY | RESNET | {"resnet_variant": "c4", "dec_proj_mode": "linear"},
}
LOGITS_ATOL = {"vit_a": 2e-5, "resnet_a": 1e-4, "resnetc_a": 1e-4}


def empty_model(config):
    with torch.device("meta"):
        return build_model(config)


@pytest.fixture(params=VARIANTS_TINY)
def settings(request):
    return VARIANTS_TINY[request.param]


@pytest.fixture
def tiny(tmp_path):
    """A tiny checkpoint, its settings file and its variables."""
    variables = official_variables(empty_model(model_config(TINY)), np.random.default_rng(0))
    write_checkpoint(tmp_path / "ckpt" / "ckpt-7", variables)
    (tmp_path / "config.json").write_text(json.dumps({"model": TINY, "quantization_bins": 90}))
    return tmp_path / "ckpt", tmp_path / "config.json", variables


# ---- checksums and compression


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_checksums_are_the_published_ones_masked(data, crc):  # RFC 3720, B.4
    turned = (masked_crc32c(data) - 0xA282EAD8) % 2**32
    assert (turned << 15 | turned >> 17) % 2**32 == crc


def test_snappy_literals_and_copies():
    long = bytes(range(200))
    packed = varint(13 + 200 + 70 + 5) + bytes([2 << 2]) + b"abc"
    packed += bytes([6 << 2 | 1, 3])  # ten bytes from three back, overlapping itself
    packed += bytes([60 << 2, 199]) + long
    packed += bytes([(64 - 1) << 2 | 2]) + (200).to_bytes(2, "little")
    packed += bytes([(6 - 1) << 2 | 3]) + (200).to_bytes(4, "little")
    packed += bytes([1 << 2 | 1 | 1 << 5, 27])  # five bytes from 256 + 27 back
    expected = b"abcabcabcabca" + long + long[:70] + b"abcab"
    assert uncompress_snappy(packed) == expected


@pytest.mark.parametrize("packed", [b"\x04\x08abc", b"\x04\x15\x03", b"\x02\x08abc"])
def test_broken_snappy_is_refused(packed):
    with pytest.raises(ValueError, match="compressed data"):
        uncompress_snappy(packed)


# ---- reading checkpoints


@pytest.mark.parametrize(("num_shards", "snappy"), [(1, False), (1, True), (3, False)])
def test_a_checkpoint_is_read_as_it_was_written(tmp_path, num_shards, snappy):
    rng = np.random.default_rng(0)
    names = "float32 float64 int32 uint8 int16 int8 int64 bool uint16 float16 uint32 uint64"
    wanted = {f"a/{t}": rng.integers(0, 2, (3, 5)).astype(t) for t in names.split()}
    wanted |= {f"model/layer/{i}/kernel": rng.random((i, 2, 3), np.float32) for i in range(40)}
    wanted |= {"scalar": np.array(7), "b/large": rng.random((700, 300))}
    halves = rng.random(9, np.float32).view("<u4") & 0xFFFF0000
    extra = {"text": b"\1x", "bfloat": (halves >> 16, BFLOAT16)}
    write_checkpoint(tmp_path / "ckpt-3", wanted | extra, num_shards=num_shards, snappy=snappy)
    read = read_checkpoint(tmp_path / "ckpt-3")
    assert set(read) == set(wanted) | {"bfloat"}
    for key, values in wanted.items():
        assert read[key].dtype == values.dtype
        np.testing.assert_array_equal(read[key], values)
    np.testing.assert_array_equal(read["bfloat"], halves.view("<f4"))


def test_a_folder_names_its_newest_checkpoint(tmp_path, capsys):
    for step in (1, 12):  # the file of the second replaces that of the first
        write_checkpoint(tmp_path / f"ckpt-{step}", {"x": np.array(step)}, num_shards=2)
    for path, step in ((tmp_path, 12), (tmp_path / "ckpt-1", 1), (tmp_path / "ckpt-1.index", 1)):
        assert read_checkpoint(path)["x"] == step
    list_files([str(tmp_path)])
    names = ["ckpt-12.index", "ckpt-12.data-00000-of-00002", "ckpt-12.data-00001-of-00002"]
    assert capsys.readouterr().out.split() == names
    (tmp_path / "ckpt-12.index").unlink()
    list_files([str(tmp_path)])
    assert capsys.readouterr().out.split() == ["ckpt-12.index"]


def test_only_wanted_variables_are_read(tmp_path):
    write_checkpoint(tmp_path / "ckpt-1", {"a": np.zeros(3), "b": np.ones(3)})
    data = tmp_path / "ckpt-1.data-00000-of-00001"
    data.write_bytes(b"x" + data.read_bytes()[1:])  # `a` is damaged, but nobody asks for it
    assert list(read_checkpoint(tmp_path / "ckpt-1", lambda key: key == "b")) == ["b"]


def damage(folder, kind):
    index, data = folder / "ckpt-1.index", folder / "ckpt-1.data-00000-of-00001"
    if kind == "no files":
        index.unlink()
    elif kind == "no data":
        data.unlink()
    elif kind == "no state":
        (folder / "checkpoint").unlink()
    elif kind == "empty state":
        (folder / "checkpoint").write_text("<html>")
    elif kind == "a page":
        index.write_text("<html>not found</html>" * 9)
    elif kind == "short index":
        index.write_bytes(index.read_bytes()[:-60] + index.read_bytes()[-48:])
    elif kind == "short data":
        data.write_bytes(data.read_bytes()[:-1])
    else:
        file = index if kind == "index bit" else data
        content = bytearray(file.read_bytes())
        content[30] ^= 4
        file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no files", "cannot read .*ckpt-1.index"),
        ("no data", "no .*ckpt-1.data-00000-of-00001; a checkpoint needs"),
        ("no state", "no file 'checkpoint' in .*name the checkpoint itself"),
        ("empty state", "names no model_checkpoint_path"),
        ("a page", "ckpt-1.index is damaged .*cut off"),
        ("short index", "ckpt-1.index is damaged"),
        ("index bit", "ckpt-1.index is damaged .wrong checksum of the block at byte 0.; delete"),
        ("short data", "data-00000-of-00001 is cut off: b is not whole"),
        ("data bit", "data-00000-of-00001 is damaged: a has another checksum"),
    ],
)
def test_damage_is_one_line(tmp_path, kind, message):
    write_checkpoint(tmp_path / "ckpt-1", {"a": np.arange(5), "b": np.arange(3)})
    damage(tmp_path, kind)
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_no_damaged_byte_of_an_index_goes_unnoticed(tmp_path):
    variables = {"a": np.arange(5.0), "b": np.arange(3)}
    write_checkpoint(tmp_path / "ckpt-1", variables)
    index = tmp_path / "ckpt-1.index"
    good = index.read_bytes()
    for i in range(len(good)):
        index.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        try:
            read = read_checkpoint(tmp_path)
        except UserError:
            continue
        assert all(np.array_equal(read[key], values) for key, values in variables.items())


def test_variables_in_slices_are_refused(tmp_path):
    write_checkpoint(tmp_path / "ckpt-1", {"a": np.arange(5)}, slices=("a",))
    with pytest.raises(UserError, match="a is stored in slices"):
        read_checkpoint(tmp_path)


# ---- every variable in its place


DECODER = "decoder/decoder/dec_layers/1/"
ENCODER = "encoder/transformer_encoder/enc_layers/0/"


def official_attention(x, y, variables, path):
    """Official multi-head attention of x to y, on official variables."""
    get = {key.removeprefix(ROOT + path).removesuffix(SUFFIX): v for key, v in variables.items()}
    q, k, v = (
        np.einsum("td,dnh->nth", z, get[f"_{name}_dense/kernel"])
        + get[f"_{name}_dense/bias"][:, None]
        for z, name in ((x, "query"), (y, "key"), (y, "value"))
    )
    scores = torch.from_numpy(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2])).softmax(-1).numpy()
    out = np.einsum("nth,nhd->td", scores @ v, get["_output_dense/kernel"])
    return out + get["_output_dense/bias"]


@pytest.mark.parametrize("name", VARIANTS_TINY)
def test_layouts_keep_the_function(name):
    settings = VARIANTS_TINY[name]
    config, rng = model_config(settings), np.random.default_rng(0)
    variables = official_variables(empty_model(config), rng)
    model = build_model(config).eval()
    model.load_state_dict(to_state_dict(variables, config))
    get = {key.removeprefix(ROOT).removesuffix(SUFFIX): v for key, v in variables.items()}
    x, y = rng.normal(size=(1, 5, 8)).astype("f4"), rng.normal(size=(1, 7, 8)).astype("f4")
    z = rng.normal(size=(1, 6, 16)).astype("f4")
    with torch.no_grad():
        layer, block = model.decoder.layers[1], model.encoder.transformer.blocks[0]
        memory = layer.cross_attention.project(torch.from_numpy(y))
        pairs = [
            (
                layer.cross_attention(torch.from_numpy(x), *memory)[0],
                official_attention(x[0], y[0], variables, f"{DECODER}cross_mha/"),
            ),
            (
                layer.self_attention(torch.from_numpy(x), 0, None)[0, -1:],
                official_attention(x[0, -1:], x[0], variables, f"{DECODER}self_mha/"),
            ),
            (
                block.attention(torch.from_numpy(z))[0],
                official_attention(z[0], z[0], variables, f"{ENCODER}mha/"),
            ),
            (
                model.projection.proj(torch.from_numpy(z))[0],
                z[0] @ get["proj/kernel"] + get["proj/bias"],
            ),
        ]
        if settings["resnet_variant"] == "c1":
            patch = rng.random((1, 16, 16, 3), np.float32)
            ours = model.encoder.stem_conv(torch.from_numpy(patch).permute(0, 3, 1, 2))[0, :, 0, 0]
            kernel, bias = get["encoder/stem_conv/kernel"], get["encoder/stem_conv/bias"]
            pairs.append((ours, np.einsum("hwi,hwio->o", patch[0], kernel) + bias))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-6)


def test_values_that_are_only_renamed(settings):
    config = model_config(settings)
    variables = official_variables(empty_model(config), np.random.default_rng(0))
    state = to_state_dict(variables, config)
    encoder = "vit" if settings["resnet_variant"] == "c1" else "rest"
    names = {
        "decoder.layers.1.cross_ln.weight": "decoder/decoder/dec_layers/1/cross_ln/gamma",
        "decoder.layers.0.mlp_ln.bias": "decoder/decoder/dec_layers/0/mlp/layernorms/0/beta",
        "encoder.transformer.output_ln.bias": "encoder/output_ln/beta",
        "encoder.transformer.stem_ln.weight": "encoder/stem_ln/gamma",
        "projection.proj_ln.weight": "proj_ln/gamma",
    }
    if settings["shared_decoder_embedding"]:
        names["decoder.token_embedding"] = "decoder/ar_decoder.Stoken_embedding"
    else:
        names["decoder.token_embedding"] = "decoder/ar_decoder.Sinp_token_embedding"
        names["decoder.output_embedding"] = "decoder/ar_decoder.Soutp_token_embedding"
    if settings["decoder_output_bias"]:
        names["decoder.output_bias"] = "decoder/ar_decoder.Soutp_bias"
    if settings["pos_encoding_dec"] == "learned":
        names["decoder.positions"] = "decoder/ar_decoder.Sseq_pos_embedding"
    if settings["pos_encoding"] == "learned":
        names["encoder.transformer.positions"] = f"encoder/{encoder}.Svis_pos_embedding"
        names["projection.positions"] = "proj.Svis_pos_embedding"
    if settings["use_cls_token"]:
        names["encoder.transformer.cls_token"] = f"encoder/{encoder}.Scls_token_embedding"
    if encoder == "rest":
        block = "encoder/resnet/block_groups/2/layers/0/"
        names["encoder.resnet.groups.2.0.bn2.running_var"] = (
            block + "conv_relu_dropblock_layers/4/bn/moving_variance"
        )
        names["encoder.resnet.groups.2.0.downsample.1.running_mean"] = (
            block + "projection_layers/1/bn/moving_mean"
        )
    for ours, theirs in names.items():
        np.testing.assert_array_equal(state[ours].numpy(), variables[ROOT + theirs + SUFFIX])
    single = {"decoder.token_embedding", "decoder.output_embedding", "decoder.output_bias"}
    single |= {f"{part}.positions" for part in ("decoder", "projection", "encoder.transformer")}
    assert single & state.keys() == single & names.keys()
    build_model(config).load_state_dict(state)


def test_nothing_of_the_training_is_taken(settings):
    config = model_config(settings)
    variables = official_variables(empty_model(config), np.random.default_rng(0))
    ours = {key: v for key, v in variables.items() if is_model_variable(key)}
    assert len(variables) - len(ours) == 6
    left, right = to_state_dict(variables, config), to_state_dict(ours, config)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "heads", "root"])
def test_what_does_not_fit_is_named(change):
    config = model_config(TINY)
    variables = official_variables(empty_model(config), np.random.default_rng(0))
    key = "model/decoder/decoder/dec_layers/1/cross_mha/_value_dense/kernel" + SUFFIX
    name = key.removesuffix(SUFFIX)
    if change == "missing":
        del variables[key]
        message = f"1 variables of this model are not in the checkpoint, {name} first"
    elif change == "extra":
        name = name.replace("layers/1", "layers/2")
        variables[key.replace("layers/1", "layers/2")] = variables[key]
        message = f"1 variables of the checkpoint have no place in this model, {name} first"
    elif change == "root":
        variables["ema" + SUFFIX] = variables[key]
        message = "1 variables of the checkpoint have no place in this model, ema first"
    else:  # other heads of the same total width are another model, too
        shape = (8, 2, 5) if change == "shape" else (8, 4, 2)
        variables[key] = np.zeros(shape, np.float32)
        message = rf"{name} has the shape \({shape[0]}, {shape[1]}, {shape[2]}\) .*\(8, 2, 4\)"
    with pytest.raises(UserError, match=message):
        to_state_dict(variables, config)


def test_partial_takes_what_is_there():
    config = model_config(VARIANTS_TINY["resnet"])
    variables = official_variables(empty_model(config), np.random.default_rng(0))
    some = {key: v for key, v in variables.items() if "moving" not in key and "_key" not in key}
    full, state = to_state_dict(variables, config), to_state_dict(some, config, partial=True)
    assert 0 < len(state) < len(full)
    assert not any("running" in name or "qkv" in name or "num_batches" in name for name in state)
    assert all(torch.equal(full[name], values) for name, values in state.items())


# ---- settings


def test_settings_that_are_no_model_are_refused():
    def without(key):
        return {k: v for k, v in TINY.items() if k != key}

    for settings, message in (
        (without("dim_att"), "no 'dim_att' in 'model'"),
        (without("pos_encoding"), "no 'pos_encoding' in 'model'"),
        (without("max_seq_len"), "no 'max_seq_len' in 'model'"),
        (TINY | {"resnet_variant": "c3"}, "resnet_variant must be one of c1, standard, c4"),
        (TINY | {"resnet_sk_ratio": 0.06}, "with resnet_sk_ratio 0, got 'c1' with 0.06"),
        (TINY | {"pos_encoding": "rope"}, "encoder_positions must be 'sin_cos' or 'learned'"),
        (TINY | {"num_heads_dec": 3}, "multiple of num_heads"),
        (TINY | {"dim_att": 0}, "describe no model"),
    ):
        with pytest.raises(UserError, match=message):
            model_config(settings)
    with pytest.raises(UserError, match="describe no vocabulary: .*overlap"):
        vocabulary(TINY, 200)


def test_what_only_training_needs_may_be_left_out():
    short = {k: v for k, v in TINY.items() if not k.startswith("drop_")}
    assert model_config(short) == model_config(
        TINY | {"drop_path": 0.1, "drop_units": 0.1, "drop_att": 0.0}
    )


def test_an_image_size_may_be_one_number():
    assert model_config(TINY | {"image_size": 320}).image_size == (320, 320)


def test_mlp_widths_are_whole_multiples_and_the_bridge_has_the_encoders():
    config = model_config(TINY | {"dim_mlp": 47, "dim_mlp_dec": 31})
    assert config.encoder_mlp_dim == 32 and config.mlp_dim == 24
    assert config.projection_mlp_ratio == 2


def test_the_vocabulary_follows_the_settings():
    for settings, bins, expected in (
        (TINY, 90, (90, 200, 300, 100, 400)),
        (TINY, None, (100, 200, 300, 100, 400)),
        (TINY | {"vocab_size": 300}, None, (100, 200, 300, 0, 300)),
        (variant_settings("vit-b", 640, multi_task=False), None, (1000, 1000, 3000, 0, 3000)),
        (variant_settings("vit-b", 640, multi_task=True), None, (1000, 1000, 3000, 32000, 35000)),
    ):
        v = vocabulary(settings, bins)
        assert (v.num_bins, v.coord0, v.text0, v.num_text, v.size) == expected


def test_built_in_categories():
    names = coco_categories().names
    assert len(names) == 80 and names[1] == "person" and names[90] == "toothbrush"
    assert names[10] == "traffic light" and 12 not in names and max(names) == 90


@pytest.mark.data
def test_built_in_categories_are_those_of_the_annotations(real_data):
    file = next((real_data / "coco" / "annotations").glob("instances_*.json"))
    rows = json.loads(file.read_text())["categories"]
    assert coco_categories().names == {row["id"]: row["name"] for row in rows}


# ---- positions at another size


def test_learned_positions_are_interpolated_and_nothing_else_changes():
    config = model_config(TINY | OTHER)
    state = to_state_dict(official_variables(empty_model(config), np.random.default_rng(0)), config)
    rows = torch.arange(3.0).repeat_interleave(2)[:, None]  # a ramp over the 3 x 2 grid
    state["projection.positions"] = rows.expand(6, 8).clone()
    resized, new = resize_positions(state, config, (96, 64))
    assert new == replace(config, image_size=(96, 64))
    changed = {k for k in state if state[k].shape != resized[k].shape}
    assert changed == {"encoder.transformer.positions", "projection.positions"}
    assert all(torch.equal(state[k], resized[k]) for k in state.keys() - changed)
    ramp = resized["projection.positions"].view(6, 4, 8)
    assert (ramp.diff(dim=0)[1:-1] > 0).all() and ramp.diff(dim=1).abs().max() < 1e-5
    model = build_model(new)
    model.load_state_dict(resized)
    same, _ = resize_positions(state, config, config.image_size)
    assert all(torch.equal(state[k], same[k]) for k in state)
    with pytest.raises(UserError, match="less than one patch"):
        resize_positions(state, config, (8, 8))


# ---- the script


def convert(*args):
    convert_official_weights.main([str(arg) for arg in args])


def test_the_script_writes_a_weight_file_that_runs(tiny, tmp_path, capsys):
    checkpoint, settings, variables = tiny
    out = tmp_path / "new folder" / "w.safetensors"
    convert(checkpoint, out, "--config", settings)
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert capsys.readouterr().out == f"{digest}  {out}\n"
    assert (out.parent / "w.safetensors.sha256").read_text() == f"{digest}  w.safetensors\n"
    model = load_model(out)
    wanted = to_state_dict(variables, model.config)
    assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())
    assert model.config == model_config(TINY) and model.config.image_mean == (0.0, 0.0, 0.0)
    predictor = Predictor(out)
    assert predictor.resize_mode == "letterbox" and predictor.vocab.num_bins == 90
    assert predictor.categories == coco_categories()
    assert predictor.tasks == {"detection": {"max_objects": 6}}  # 32 positions
    found = predictor.detect(np.full((30, 50, 3), 80, np.uint8))
    assert found.boxes.shape == (len(found.labels), 4)


def test_the_scripts_options(tiny, tmp_path):
    checkpoint, settings, _ = tiny
    out = tmp_path / "w.safetensors"
    rows = [{"id": 5, "name": "cat"}, {"id": 3, "name": "dog"}]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": rows}))
    convert(checkpoint / "ckpt-7", out, "--config", settings, "--annotations", file)
    assert Predictor(out).categories.names == {3: "dog", 5: "cat"}
    options = ["--num-classes", 3, "--resize", 64]
    convert(checkpoint, out, "--config", settings, *options)
    predictor = Predictor(out)
    assert predictor.categories.names == {1: "class 1", 2: "class 2", 3: "class 3"}
    assert predictor.model.config.image_size == (64, 64)
    predictor.detect(np.zeros((30, 50, 3), np.uint8))


@pytest.mark.parametrize(
    "place",
    [
        {"quantization_bins": 70},
        {"task": {"name": "object_detection", "quantization_bins": 70}},
        {"task": {"name": "captioning"}, "tasks": [{}, {"quantization_bins": 70}]},
    ],
)
def test_the_number_of_bins_is_found_where_the_official_code_writes_it(tiny, tmp_path, place):
    checkpoint, _, _ = tiny
    settings, out = tmp_path / "config.json", tmp_path / "w.safetensors"
    settings.write_text(json.dumps({"model": TINY} | place))
    convert(checkpoint, out, "--config", settings)
    assert Predictor(out).vocab.num_bins == 70
    settings.write_text(json.dumps({"model": TINY, "quantization_bins": 71} | {"task": place}))
    if "quantization_bins" in place:
        with pytest.raises(UserError, match=r"several values of 'quantization_bins': \[71, 70\]"):
            convert(checkpoint, out, "--config", settings)


def test_classes_without_a_token_are_refused(tiny, tmp_path):
    checkpoint, settings, _ = tiny  # ids 100 to 199 are classes
    out = tmp_path / "w.safetensors"
    convert(checkpoint, out, "--config", settings, "--num-classes", 99)
    Predictor(out)
    with pytest.raises(UserError, match="class id 100 has no token, .* ends at 99"):
        convert(checkpoint, tmp_path / "x.safetensors", "--config", settings, "--num-classes", 100)
    assert not (tmp_path / "x.safetensors").exists()


def test_multi_task_weights_record_every_task(tmp_path, capsys):
    words = ["".join(pair) for pair in product("abcdefgh", repeat=2)]
    text = TextTokenizer.train([" ".join(words)] * 2, 60)
    text.save(tmp_path / "pieces.json")
    settings = TINY | {"max_seq_len": 300, "vocab_size": 300 + text.size}
    (tmp_path / "config.json").write_text(json.dumps({"model": settings}))
    variables = official_variables(empty_model(model_config(settings)), np.random.default_rng(0))
    checkpoint, out = tmp_path / "ckpt-0", tmp_path / "w.safetensors"
    write_checkpoint(checkpoint, variables)
    options = ["--config", tmp_path / "config.json", "--task", "multi"]
    convert(checkpoint, out, *options)
    assert "without --text-model" in capsys.readouterr().err
    tasks = Predictor(out).tasks
    assert set(tasks) == {"detection", "segmentation", "keypoint"}
    assert tasks["detection"] == {"max_objects": 60}
    assert tasks["segmentation"]["max_points"] == 128 and tasks["segmentation"]["crop"] is None
    options += ["--text-model", tmp_path / "pieces.json"]
    convert(checkpoint, out, *options)
    predictor = Predictor(out)
    assert set(predictor.tasks) == {*tasks, "captioning"}
    assert predictor.tokenizer("captioning").max_tokens == 128
    image = np.full((30, 50, 3), 80, np.uint8)
    predictor.caption(image)
    predictor.segment(image, np.array([[3.0, 4, 30, 20]]), "person")
    # fewer pieces than text ids: the last ids are never said
    assert predictor.tokenizer("captioning").allowed(torch.zeros(1, 1)).sum() == text.size - 1
    more = {"text_vocab_shift": 290}
    (tmp_path / "config.json").write_text(json.dumps({"model": settings | more}))
    convert(checkpoint, out, *options)
    predictor = Predictor(out)
    assert predictor.vocab.num_text == text.size + 10
    assert predictor.tokenizer("captioning").allowed(torch.zeros(1, 1)).sum() == text.size - 1
    predictor.caption(image)
    more = {"text_vocab_shift": 301}
    (tmp_path / "config.json").write_text(json.dumps({"model": settings | more}))
    with pytest.raises(UserError, match="do not fit the tasks: vocabulary must have"):
        convert(checkpoint, out, *options)


def test_errors_of_the_script_are_one_line_and_leave_no_file(tiny, tmp_path):
    checkpoint, settings, _ = tiny
    out = tmp_path / "w.safetensors"
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "text.json").write_text("hello")
    for args, message in (
        ((checkpoint, out, "--variant", "vit-b"), "--variant and --image-size go together"),
        ((checkpoint, out, "--config", settings, "--image-size", 64), "go together"),
        ((checkpoint, out, "--config", settings, "--text-model", settings), "is for --task multi"),
        ((checkpoint, out, "--variant", "vit-b", "--image-size", 0), "--image-size must be at"),
        ((checkpoint, out, "--variant", "vit-b", "--image-size", 640), "another variant"),
        ((checkpoint, tmp_path / "w.pth", "--config", settings), "must end in .safetensors"),
        ((checkpoint, out, "--config", tmp_path / "none.json"), "cannot read .*none.json"),
        ((checkpoint, out, "--config", tmp_path / "text.json"), "cannot read .*text.json"),
        ((checkpoint, out, "--config", tmp_path / "empty.json"), "no object 'model'"),
        ((tmp_path / "nowhere", out, "--config", settings), "cannot read .*nowhere.index"),
        ((checkpoint, out, "--config", settings, "--annotations", settings), "no list 'images'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            convert(*args)
        assert "\n" not in str(error.value)
    assert not out.exists()


# ---- the official numbers


@pytest.mark.data
@pytest.mark.parametrize("name", LOGITS_ATOL)
def test_official_checkpoints_are_read_whole(reference, name):
    folder = reference / "models" / name
    content = json.loads((folder / "config.json").read_text())
    wanted = content["checkpoint_keys"]
    wanted.pop("_CHECKPOINTABLE_OBJECT_GRAPH")
    read = read_checkpoint(folder / "ckpt" / "ckpt-0")
    assert {key: list(values.shape) for key, values in read.items()} == wanted
    model = [v for key, v in read.items() if is_model_variable(key)]
    assert len(model) == content["num_variables"]
    assert sum(v.size for v in model) == content["num_params_total"]
    config = model_config(content["model"])
    assert (
        sum(p.numel() for p in empty_model(config).parameters()) == content["num_params_trainable"]
    )


@pytest.mark.data
def test_a_trained_checkpoint_has_slots_that_are_ignored(reference):
    folder = reference / "models" / "vit_a"
    config = model_config(json.loads((folder / "config.json").read_text())["model"])
    first, third = (read_checkpoint(folder / "ckpt" / f"ckpt-{i}") for i in (0, 3))
    assert len(third) == 366 and len(first) == 124
    before, after = to_state_dict(first, config), to_state_dict(third, config)
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == len(before)
    listed = json.loads((folder / "checkpoint_keys_by_optimizer.json").read_text())
    for keys in listed.values():
        values = {k: np.zeros(shape) for k, (shape, _) in keys.items() if is_model_variable(k)}
        assert len(values) == 121
        to_state_dict(values, config)


@pytest.mark.data
@pytest.mark.parametrize("name", LOGITS_ATOL)
def test_a_converted_file_gives_the_official_numbers(reference, name, tmp_path):
    folder, out = reference / "models" / name, tmp_path / "w.safetensors"
    convert(folder / "ckpt" / "ckpt-0", out, "--config", folder / "config.json")
    model, data = load_model(out), np.load(folder / "forward.npz")
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2)
    atol = LOGITS_ATOL[name]
    with torch.no_grad():
        pairs = [(model.encode(images), data["encoded"])]
        for key in ("seq", "seq_multi"):
            logits = model(images, torch.from_numpy(data[key]))
            pairs.append((logits, data[f"logits_{key}"]))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours.numpy(), theirs, atol=atol, rtol=0)
    Predictor(out).detect(np.full((30, 50, 3), 80, np.uint8))


@pytest.mark.data
@pytest.mark.parametrize(
    ("variant", "task", "millions"),
    [
        ("vit-b", "det_finetune", 115.2),
        ("vit-l", "det_finetune", 341.2),
        ("resnet", "det_finetune", 36.6),
        ("resnet-c", "det_finetune", 84.7),
        ("vit-b", "multi_task", 131.6),
    ],
)
def test_every_variable_of_the_published_sizes_has_its_place(reference, variant, task, millions):
    file = reference / "variable_shapes" / f"variable_shapes_{variant}_{task}_640.json"
    content = json.loads(file.read_text())
    config = model_config(variant_settings(variant, 640, multi_task=task == "multi_task"))
    assert config == model_config(content["model_config"])
    model = empty_model(config)
    wanted = {k: tuple(v["shape"]) for k, v in content["variables"].items() if is_model_variable(k)}
    places = sources(model).values()
    ours = {ROOT + v + SUFFIX: source.official for source in places for v in source.variables}
    assert ours == wanted
    assert list(model.encoder.grid) == content["encoder_grid"]
    trainable = sum(p.numel() for p in model.parameters())
    assert trainable == content["trainable_params"]
    assert round(trainable / 1e6, 1) == millions


def test_every_variant_builds_at_every_published_size():
    for variant in VARIANTS:
        for size in (640, 1024, 1333):
            model = empty_model(model_config(variant_settings(variant, size, multi_task=False)))
            assert model.config.image_size == (size, size)
