"""ONNX export: the graphs compute what the model computes, and run.py finds the same boxes."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.batch import letterbox_batch
from dataset.geometry import Geometry
from infer import export_onnx
from infer.predictor import Predictor
from models import ModelConfig, build_model
from models.weights import save_model
from tokenizer.vocabulary import Vocabulary
from utils.cli import run
from utils.errors import UserError
from utils.images import load_image

for package in export_onnx.NEEDED:
    pytest.importorskip(package)
from infer import run_onnx  # noqa: E402, needs them
from infer.onnx_export import new_folder  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "encoder": "test_vit", "image_size": (32, 64), "dim": 32, "num_heads": 2, "num_layers": 1,
    "mlp_dim": 48, "max_len": 64, "tie_embeddings": False,
}  # fmt: skip
VIT = {
    "encoder": "official_vit", "encoder_patch": 16, "encoder_dim": 32, "encoder_layers": 1,
    "encoder_heads": 2, "encoder_mlp_dim": 48,
}  # fmt: skip
VARIANTS = {
    "official ViT, class token, learned positions": VIT
    | {"encoder_cls_token": True, "encoder_positions": "learned", "image_size": (64, 64)},
    "official ResNet": VIT | {"encoder": "official_resnet", "resnet_width": 0.25},
    "official ResNet to stride 16": VIT | {"encoder": "official_resnet_c", "resnet_width": 0.25},
    "timm CNN": {"encoder": "test_resnet", "projection_positions": "learned"},
    "timm CNN, an earlier stage": {"encoder": "test_efficientnet", "encoder_stride": 16},
    "sin-cos positions, no bias": {
        "decoder_positions": "sin_cos", "output_bias": False,
    },
    "post-norm, tied embeddings": {
        "tie_embeddings": True, "decoder_norm": "post", "projection": "average", "num_layers": 2,
    },
}  # fmt: skip


def write_weights(path: Path, vocab: Vocabulary | None = None, **changes) -> Path:
    """A random detector whose arg max is a coordinate, or a class that has a name."""
    torch.manual_seed(1)
    vocab = vocab or Vocabulary.for_classes(3, num_bins=100)
    model = build_model(ModelConfig(**SMALL | {"vocab_size": vocab.size} | changes)).eval()
    names = [{"id": i, "name": f"thing {i}", "source_id": i} for i in (1, 2, 3)]
    with torch.no_grad():
        if model.decoder.output_bias is not None:
            model.decoder.output_bias[vocab.class0 + 1 : vocab.class0 + 4] += 9
            model.decoder.output_bias[slice(*vocab.coord_range)] += 12
        for name, parameter in model.decoder.named_parameters():  # no near ties, no repetition
            if name in ("token_embedding", "output_embedding", "positions"):
                parameter.mul_(20)
    meta = {
        "vocabulary": vocab.to_json(), "categories": names, "resize_mode": "letterbox",
        "tasks": {"detection": {"max_objects": 12}},
    }  # fmt: skip
    save_model(model, path, meta=meta)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, weights) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "exported"
    export_onnx.main([str(weights), str(out)])
    return out


def photos() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*s, 3), np.uint8) for s in ((40, 90), (90, 40), (7, 5))]


def test_the_folder_finds_the_boxes_of_the_predictor(weights, exported):
    from infer.detection import DetectionOptions

    model, predictor = run_onnx.Model(exported, threads=1), Predictor(weights)
    num_objects = 0
    for picture, most in [(photo, most) for photo in photos() for most in (None, 3)]:
        options = DetectionOptions(top_k=1, stop_objects=0, max_objects=most)
        wanted, found = predictor.detect(picture, options), model.detect(picture, most)
        assert [one["label"] for one in found] == wanted.names
        boxes = np.reshape([one["box"] for one in found], (-1, 4))
        np.testing.assert_allclose(boxes, wanted.boxes, atol=1e-3)
        np.testing.assert_allclose([one["score"] for one in found], wanted.scores, atol=1e-5)
        num_objects += len(found)
    assert num_objects > 0


def test_several_sequences_of_an_image_share_its_keys(weights, exported):
    model, torch_model = run_onnx.Model(exported, threads=1), Predictor(weights).model
    images, tokens = torch.rand(2, 3, 32, 64), torch.randint(0, 99, (2, 3, 5))
    with torch.no_grad():
        wanted = torch_model(images, tokens).unflatten(0, (2, 3))  # (B, N, T, V)
    encoded = model.encode(images.numpy())
    empty = np.zeros((6, 2, 9, 16), np.float32)
    feeds = {k: v for k, v in encoded.items() if k != "memory"}
    feeds |= {"k_0": empty, "v_0": empty, "tokens": tokens.numpy(), "position": np.zeros(1, int)}
    logits, k, v = model.decoder.run(None, feeds)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    # The caches are plain outputs: what comes next reads them.
    feeds |= {"k_0": k, "v_0": v, "tokens": tokens[..., :1].numpy(), "position": np.array([5])}
    longer = torch.cat([tokens, tokens[..., :1]], 2)
    with torch.no_grad():
        wanted = torch_model(images, longer).unflatten(0, (2, 3))
    np.testing.assert_allclose(
        model.decoder.run(None, feeds)[0][:, :, 0], wanted[:, :, 5], atol=1e-4
    )


def test_the_check_notices_other_weights(weights, exported):
    from infer.onnx_export import check_folder

    other = Predictor(weights, mode="plain")
    with torch.no_grad():
        other.model.decoder.layers[0].mlp.dense2.bias[0] += 1e-2
    with pytest.raises(UserError, match="logits differ by .* more than 0.0001"):
        check_folder(other, exported, export_onnx.PICTURE)


def test_run_py_needs_neither_torch_nor_this_repository(weights, exported, tmp_path):
    from infer.detection import DetectionOptions

    Image.fromarray(photos()[0]).save(tmp_path / "photo.png")
    shutil.copytree(exported, tmp_path / "moved")
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'cv2', 'timm', 'onnx', 'utils', 'models')))\n"
        "runpy.run_path('moved/run.py', run_name='__main__')\n"
    )
    arguments = ["photo.png", "--json", "found.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and " ms\n" in done.stdout, done.stderr
    (row,) = json.loads((tmp_path / "found.json").read_text())
    wanted = Predictor(weights).detect(photos()[0], DetectionOptions(top_k=1, stop_objects=0))
    np.testing.assert_allclose([one["box"] for one in row["objects"]], wanted.boxes, atol=1e-3)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
def test_run_py_resizes_as_the_model_was_trained(mode, centered, antialias):
    about = {
        "size": [32, 64], "resize_mode": mode, "antialias": antialias, "centered": centered,
        "pad_value": [0.1, 0.2, 0.3],
    }  # fmt: skip
    for picture in photos():
        geometry = Geometry.letterbox(picture.shape[:2], (32, 64), mode, centered=centered)
        image = torch.from_numpy(picture).permute(2, 0, 1)
        wanted = letterbox_batch(
            [image], [geometry], pad_value=about["pad_value"], antialias=antialias
        )
        pixels, scale, shift = run_onnx.letterbox(picture, about)
        np.testing.assert_allclose(pixels, wanted[0], atol=1e-5)
        np.testing.assert_allclose(np.float64([3, 4]) * scale + shift, geometry.points([3.0, 4.0]))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("foreign", "written by this project"),
        ("missing", "no weight file at"),
        ("full", "is not empty; name a new one"),
        ("file", "is a file; name a new folder"),
        ("extra", "pip install onnxscript"),
    ],
)
def test_what_cannot_be_exported_is_one_line(case, message, weights, tmp_path, monkeypatch):
    out, source = tmp_path / "out", weights
    monkeypatch.setattr(export_onnx, "NEEDED", ("json", "onnxscript") if case == "extra" else ())
    if case == "extra":
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "onnx" in name else 1)
    elif case == "full":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    elif case == "file":
        out.write_text("mine")
    elif case == "missing":
        source = tmp_path / "none.safetensors"
    else:
        from safetensors.torch import save_file

        source = tmp_path / "foreign.safetensors"
        save_file({"a": torch.zeros(1)}, source)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        export_onnx.main([str(source), str(out)])
    assert sorted(tmp_path.rglob("*")) == before


TOY = """
import torch
import torch.nn.functional as F
from torch import nn

class Toy(nn.Module):
    num_prefix_tokens = 0

    def __init__(self, image_size, pretrained):
        super().__init__()
        self.dim, self.grid = 16, (image_size[0] // 16, image_size[1] // 16)
        self.conv = nn.Conv2d(3, 16, kernel_size=16, stride=16)

    def forward(self, images):
        x = self.conv(images).flatten(2).transpose(1, 2)  # (B, S, 16)
        heads = x.unflatten(2, (4, 4)).transpose(1, 2)
        return {}
"""
ATTENTION = "F.scaled_dot_product_attention(heads, {}).transpose(1, 2).flatten(2)"


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (ATTENTION.format("heads, heads, is_causal=True"), "give the mask as attn_mask instead"),
        (ATTENTION.format("heads[:, :2], heads[:, :2], enable_gqa=True"), "repeat_interleave"),
        ("torch.special.bessel_j0(x)", "uses the operator prims.bessel_j0, which torch cannot"),
        ("x + 1 if x.sum() > 0 else x", "torch.export cannot follow its encoder"),
    ],
)
def test_an_encoder_that_onnx_lacks_is_one_line(result, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "toy_encoder.py").write_text(TOY.replace("{}", result))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_encoder", raising=False)
    source = write_weights(tmp_path / "w.safetensors", encoder="toy_encoder:Toy")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", str(source), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as left:
        run(export_onnx.main)
    output = capsys.readouterr()
    progress, error = output.err.splitlines()
    assert left.value.code == 2 and not output.out and progress.startswith("exporting")
    assert error.startswith(f"error: {source} cannot be exported: ") and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("picture", "missing", "message"),
    [
        ("none.jpg", None, "No such file"),
        ("photo.txt", None, "cannot identify image file"),
        ("photo.png", "model.json", "run the run.py of an exported folder"),
        ("photo.png", "encoder.onnx", "File doesn't exist"),
        ("photo.png", "detection", "the model knows detection, not detection"),
    ],
)
def test_run_py_says_in_one_line_what_is_wrong(
    picture, missing, message, exported, tmp_path, monkeypatch, capsys
):
    Image.fromarray(photos()[0]).save(tmp_path / "photo.png")
    (tmp_path / "photo.txt").write_text("no picture")
    folder = shutil.copytree(exported, tmp_path / "folder")
    if missing == "detection":
        about = json.loads((folder / "model.json").read_text())
        del about["detection"]
        (folder / "model.json").write_text(json.dumps(about))
    elif missing:
        (folder / missing).unlink()
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path / picture)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(folder / "run.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert left.value.code == 2 and message in error and error.count("\n") == 1


def test_run_py_goes_on_after_a_picture_that_cannot_be_read(
    exported, tmp_path, monkeypatch, capsys
):
    Image.fromarray(photos()[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    Image.fromarray(photos()[1]).save(tmp_path / "c.png")
    files = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png", "found.json")]
    monkeypatch.setattr(sys, "argv", ["run.py", *files[:3], "--json", files[3]])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(exported / "run.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert left.value.code == 2 and files[1] in error and error.count("\n") == 1
    assert [row["image"] for row in json.loads(Path(files[3]).read_text())] == files[:3:2]


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "RGBA", "LA", "P"])
def test_run_py_reads_pictures_as_the_predictor_does(mode, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 4), np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        run_onnx.read_picture(tmp_path / "a.png"), load_image(tmp_path / "a.png")
    )


@pytest.mark.parametrize("case", ["new", "empty", "current", "link"])
def test_any_new_or_empty_folder_can_take_an_export(case, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    if case != "new":
        folder.mkdir()
    if case == "link":
        (tmp_path / "link").symlink_to(folder)
    if case == "current":
        monkeypatch.chdir(folder)
    out = {"current": Path("."), "link": tmp_path / "link"}.get(case, folder)
    with pytest.raises(ValueError), new_folder(out) as inner:
        raise ValueError
    assert not folder.exists() if case == "new" else not any(folder.iterdir())
    with new_folder(out) as inner:
        (inner / "model.json").touch()
    assert [path.name for path in folder.iterdir()] == ["model.json"]
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "link"}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_encoder_and_decoder_can_be_exported(variant, tmp_path):
    """The export compares logits, tokens and boxes itself."""
    source = write_weights(tmp_path / "w.safetensors", **VARIANTS[variant])
    export_onnx.main([str(source), str(tmp_path / "out")])
    assert (tmp_path / "out" / "model.json").is_file()


@pytest.mark.slow
def test_a_vocabulary_with_an_end_token_has_its_grammar(tmp_path):
    vocab = Vocabulary.simple(num_bins=50, num_classes=4)
    source = write_weights(tmp_path / "w.safetensors", vocab)
    export_onnx.main([str(source), str(tmp_path / "out")])
