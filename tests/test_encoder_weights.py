"""Where an encoder and its first weights come from: files, folders, the hub, own classes."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

from config import CFG
from download.encoder_weights import match_in_order
from models import ModelConfig, build_model, load_model, save_model
from models.encoder import build_encoder, check_encoder, image_statistics, load_class
from models.weights import read_header
from tests.conftest import TINY
from tests.training import resume
from train.engine import train
from train.settings import check_settings, settle_encoder
from utils.cli import snapshot
from utils.devices import ALONE
from utils.encoder_weights import pretrained_file, read_source, timm_shapes
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ModelConfig(
    encoder="test_vit", image_size=(64, 64), dim=32, num_heads=4, num_layers=1, mlp_dim=64,
    max_len=40, drop_path=0.0,
)  # fmt: skip


def config_of(encoder: str, **changes) -> ModelConfig:
    return replace(CONFIG, encoder=encoder, **changes)


def drawn(encoder: str) -> dict[str, torch.Tensor]:
    """The state dict of a timm model with its head; batch statistics are no trivial ones either."""
    torch.manual_seed(7)
    values = timm.create_model(encoder).state_dict()
    return {n: torch.rand_like(v) if v.is_floating_point() else v for n, v in values.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Encoder -> a file of its weights."""
    folder = tmp_path_factory.mktemp("encoders")
    names = ("test_vit", "test_vit2", "test_efficientnet", "test_resnet")
    for name in names:
        save_file(drawn(name), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in names}


def refusal(function, *args, **options) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("test_vit", {}),
        ("test_vit", {"encoder_stride": 16}),
        ("test_vit", {"projection": "average"}),
        ("test_efficientnet", {}),
        ("test_efficientnet", {"encoder_stride": 16}),
        ("test_resnet", {"encoder_stride": 16}),
    ],
)
def test_every_tensor_of_the_encoder_is_that_of_the_file(files, name, changes):
    encoder = build_encoder(config_of(name, **changes), weights=files[name])
    theirs = {n.replace(".", "_"): v for n, v in drawn(name).items()}
    for own_name, value in encoder.backbone.state_dict().items():
        expected = theirs[own_name.removeprefix("model.").replace(".", "_")]
        if expected.shape != value.shape:
            assert "pos_embed" in own_name  # resampled
        else:
            assert torch.equal(value, expected), own_name


@pytest.mark.parametrize("prefix", ["module.", "encoder.backbone.", "model.encoder."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model_ema", None])
def test_wrappers_and_prefixes_change_nothing(files, tmp_path, prefix, wrapper):
    content = {prefix + n: v for n, v in drawn("test_efficientnet").items()}
    if wrapper:
        content = {wrapper: content | {"decoder.weight": torch.ones(2)}, "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    config = config_of("test_efficientnet")
    got = build_encoder(config, weights=tmp_path / "w.pth").state_dict()
    expected = build_encoder(config, weights=files["test_efficientnet"]).state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def damaged(tmp_path: Path, files: dict[str, Path], kind: str) -> Path:
    path = tmp_path / "w.pth"
    if kind == "code":
        torch.save({"model": Code()}, path)
    elif kind == "cut":
        path.write_bytes(files["test_vit"].read_bytes()[:5000])
    elif kind == "numbers":
        torch.save([1, 2], path)
    elif kind == "web page":
        path.write_text("<!doctype html><html>")
    elif kind == "nan":
        torch.save(drawn("test_vit") | {"cls_token": torch.full((1, 1, 64), torch.nan)}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("code", "contains more than tensors"),
        ("cut", "not a complete file"),
        ("numbers", "no tensors by name"),
        ("web page", "web page"),
        ("nan", "cls_token .* NaN"),
        ("absent", "No such file.*name another"),
    ],
)
def test_a_file_that_is_no_weights_is_one_line(files, tmp_path, monkeypatch, kind, message):
    monkeypatch.chdir(tmp_path)
    path = damaged(tmp_path, files, kind)
    assert re.search(message, refusal(build_encoder, CONFIG, weights=path))
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_model_name_the_model(files):
    text = refusal(build_encoder, CONFIG, weights=files["test_resnet"])
    assert "lacks cls_token, pos_embed" in text and text.endswith("looks like encoder=test_resnet")


def test_weights_of_a_larger_model_are_not_taken_in_part(tmp_path):
    deeper = drawn("test_vit")
    deeper |= {n.replace("blocks.0", "blocks.99"): v.clone() for n, v in deeper.items()}
    save_file(deeper, tmp_path / "w.safetensors")
    text = refusal(build_encoder, CONFIG, weights=tmp_path / "w.safetensors")
    assert "larger model" in text and "blocks.99." in text


def test_a_wrong_shape_names_the_tensor(tmp_path):
    tensors = drawn("test_resnet") | {"layer1.0.conv1.weight": torch.ones(3, 3)}
    save_file(tensors, tmp_path / "w.safetensors")
    text = refusal(build_encoder, config_of("test_resnet"), weights=tmp_path / "w.safetensors")
    assert "layer1.0.conv1.weight is (3, 3) in the file" in text


def test_an_official_encoder_takes_its_state_dict(tmp_path):
    options = {"encoder_dim": 32, "encoder_layers": 1, "encoder_heads": 2, "encoder_mlp_dim": 64}
    config = config_of("official_vit", **options)
    torch.manual_seed(1)
    saved = build_model(config)
    save_model(saved, tmp_path / "model.safetensors", meta={})  # its names begin with "encoder."
    encoder = build_encoder(config, weights=tmp_path / "model.safetensors")
    for name, value in saved.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value)
    text = refusal(
        build_encoder, replace(config, encoder_dim=64), weights=tmp_path / "model.safetensors"
    )
    assert "(32,) in the file, (64,)" in text or "32" in text


# ---- in a training -------------------------------------------------------------------------------


def settings(*overrides: str):
    return snapshot(CFG, [*TINY, "coco_root=/nowhere", *overrides])


def test_weights_that_do_not_fit_come_before_the_data(files):
    cfg = settle_encoder(settings(f"encoder_weights={files['test_resnet']}"))
    assert "looks like" in refusal(check_settings, cfg, ["detection"], ALONE)
    check_settings(cfg, ["detection"], ALONE, resumed=True)  # those of the checkpoint count


def test_a_checksum_that_is_wanted_is_compared(files):
    digest = hashlib.sha256(files["test_vit"].read_bytes()).hexdigest()
    wanted = f"encoder_weights={files['test_vit']}", f"encoder_weights_sha256={digest}"
    assert settle_encoder(settings(*wanted)).encoder_weights_sha256 == digest
    text = refusal(settle_encoder, settings(wanted[0], f"encoder_weights_sha256={'0' * 64}"))
    assert digest in text


def test_a_run_from_a_folder_of_timm_needs_it_only_once(files, demo_set, tmp_path, capsys):
    """Its weight files, and the run that goes on, do without; all record the checksum."""
    model = timm.create_model("test_vit", pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    model.load_state_dict(drawn("test_vit"))
    folder = tmp_path / "a folder"
    save_for_hf(model, folder, safe_serialization=True)
    overrides = [*TINY, f"encoder=local-dir:{folder}", "pretrained=true", f"coco_root={demo_set}"]
    overrides += [f"runs_dir={tmp_path / 'runs'}", "max_steps=1", "eval_limit=1", "lr=1e-12"]
    run = train(snapshot(CFG, [*overrides, "warmup_epochs=0"]), ["detection"])
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert f"encoder from {weights} (sha256 {digest[:16]}), the rest new" in capsys.readouterr().err

    weights.rename(tmp_path / "elsewhere.safetensors")
    folder.rename(tmp_path / "gone")
    assert json.loads((run / "settings.json").read_text())["encoder_weights_sha256"] == digest
    for _ in range(2):
        config, meta = read_header(run / "last.safetensors")
        assert (config.encoder, config.image_mean) == ("test_vit", (0.1, 0.2, 0.3))
        assert meta["encoder_weights"] == {"file": "model.safetensors", "sha256": digest}
        block = load_model(run).encoder.backbone.state_dict()["blocks.0.attn.qkv.weight"]
        torch.testing.assert_close(block, drawn("test_vit")["blocks.0.attn.qkv.weight"])
        resume(["max_steps=2"], ["detection"], run)


def test_model_args_that_change_the_architecture_are_refused(tmp_path):
    content = {"architecture": "test_vit", "model_args": {"depth": 2, "num_classes": 5}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert "model_args depth" in refusal(read_source, f"local-dir:{tmp_path}", with_weights=False)
    del content["model_args"]["depth"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_source(f"local-dir:{tmp_path}", with_weights=False).encoder == "test_vit"
    assert "found none" in refusal(read_source, f"local-dir:{tmp_path}", with_weights=True)


# ---- the network ---------------------------------------------------------------------------------

HUB = """
import hashlib, json, os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
folder, asked = sys.argv[1], []
class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        file = os.path.join(folder, self.path.rpartition("/")[2])
        known = os.path.isfile(file)
        self.send_response(200 if known else 404)
        content = open(file, "rb").read() if known else b""
        if not known:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", '"' + hashlib.sha1(content).hexdigest() + '"')
        self.send_header("X-Repo-Commit", "b" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
    do_HEAD = do_GET
    def log_message(self, *_): ...
server = HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["http_proxy"] = os.environ["HTTP_PROXY"] = f"http://127.0.0.1:{server.server_port}"
import huggingface_hub
from download import encoder_weights
from utils.encoder_weights import pretrained_file, read_source
from utils.errors import UserError
first = read_source("hf-hub:owner/name", with_weights=True)
timms = pretrained_file("test_vit")
count = len(asked)
again = read_source("hf-hub:owner/name", with_weights=True)
encoder_weights.main(["hf-hub:owner/name", "copy.safetensors"])
server.shutdown(); server.server_close()
refused = []
for offline in (False, True):
    huggingface_hub.constants.HF_HUB_OFFLINE = offline  # as the variable of that name sets it
    assert pretrained_file("test_vit") == timms
    try:
        pretrained_file("test_vit2")
    except UserError as error:
        refused.append(str(error))
print(json.dumps([first.encoder, first.mean, str(first.weights), str(timms), asked[:count],
    len(asked) - count, again == first, refused]))
"""


def test_the_hub_is_asked_once_through_the_proxy_then_its_cache(tmp_path):
    folder = tmp_path / "repository"
    model = timm.create_model("test_vit", pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    save_for_hf(model, folder, safe_serialization=True)
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    env |= {"HF_ENDPOINT": "http://hub.invalid", "HF_HOME": str(tmp_path / "cache")}
    env |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HUB, str(folder)],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout, done.stderr
    use, result = done.stdout.splitlines()
    assert use.endswith(" image_std=0.5,0.5,0.5 encoder_weights=copy.safetensors")
    assert " encoder=test_vit image_mean=0.1,0.2,0.3 " in use
    build_encoder(CONFIG, weights=tmp_path / "copy.safetensors")
    encoder, mean, weights, timms, asked, more, same, refused = json.loads(result)
    assert (encoder, mean, more, same) == ("test_vit", [0.1, 0.2, 0.3], 0, True)
    assert asked[0] == "http://hub.invalid/owner/name/resolve/main/config.json"
    content = (folder / "model.safetensors").read_bytes()
    assert Path(weights).read_bytes() == Path(timms).read_bytes() == content
    assert len(refused) == 2 and "HF_HUB_OFFLINE is set" in refused[1]
    assert all("encoder_weights=FILE" in line and "\n" not in line for line in refused)
    assert "Retry" not in done.stderr and "HTTP Request" not in done.stderr


def test_a_server_that_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        cfg = replace(timm.get_pretrained_cfg("resnet18"), hf_hub_id=None, url=address)
        monkeypatch.setattr("timm.get_pretrained_cfg", lambda *args, **options: cfg)
        text = refusal(pretrained_file, "resnet18")
        assert time.monotonic() - began < 3
    ways = ("encoder_weights=FILE", "download_encoder.sh resnet18", "HF_HUB_OFFLINE", "pretrained=")
    assert all(way in text for way in ways)


def test_pretrained_weights_are_asked_for_only_if_they_are_needed(monkeypatch, files, tmp_path):
    """Not for another file, another model, a run that goes on, or no weights at all."""

    def refuse(name: str):
        raise UserError(f"asked for {name}")

    monkeypatch.setattr("train.settings.pretrained_file", refuse)
    wanted = settings("pretrained=true")
    assert refusal(check_settings, wanted, ["detection"], ALONE) == "asked for test_vit"
    check_settings(wanted, ["detection"], ALONE, resumed=True)
    save_model(build_model(CONFIG), tmp_path / "model.safetensors", meta={})
    for other in ("pretrained=false", f"init_weights={tmp_path / 'model.safetensors'}"):
        check_settings(settings("pretrained=true", other), ["detection"], ALONE)
    file = settings("pretrained=true", f"encoder_weights={files['test_vit']}")
    check_settings(file, ["detection"], ALONE)


def test_weights_at_an_address_are_kept_as_torch_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    url = timm.get_pretrained_cfg("gcvit_xxtiny").url
    (tmp_path / "checkpoints").mkdir()
    kept = tmp_path / "checkpoints" / url.rpartition("/")[2]
    kept.write_bytes(b"weights")
    assert pretrained_file("gcvit_xxtiny") == kept


# ---- a class of one's own ------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "own_encoder.md").read_text()
EXAMPLE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """The current directory, in which modules are found; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("own_"):
            del sys.modules[name]


def test_the_example_of_the_page_makes_a_weight_file_that_opens_again(modules):
    assert len(EXAMPLE.splitlines()) <= 16
    (modules / "own_page.py").write_text(EXAMPLE)
    name = "own_page:Patches"
    mean, std = image_statistics(name)
    assert (mean, std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    config = config_of(name, image_mean=mean, image_std=std)
    check_encoder(config)
    model = build_model(config).eval()
    save_model(model, modules / "w.safetensors", meta={})
    images = torch.rand(2, 3, 64, 64)
    loaded = load_model(modules / "w.safetensors")
    torch.testing.assert_close(loaded.encode(images), model.encode(images), rtol=0, atol=0)
    encoder = build_encoder(config, weights=modules / "w.safetensors")
    assert torch.equal(encoder.conv.weight, model.encoder.conv.weight)

    # Where there is no such module, one line says what to do.
    (modules / "own_page.py").rename(modules / "other.txt")
    del sys.modules["own_page"]
    assert "needs the module 'own_page'" in refusal(load_model, modules / "w.safetensors")


FAULTS = {  # what is put in place of a line of the example -> the message
    ("class Patches(nn.Module):", "class Patches:"): "not a torch.nn.Module",
    ("class Patches(nn.Module):", "class Other(nn.Module):"): "no class 'Patches'",
    ("    num_prefix_tokens = 0", "    nothing = 0"): "needs the attributes dim",
    ("self.grid = 64, (", "self.grid = 64, list(("): "cannot import",
    ("(image_size[0] // 16, image_size[1] // 16)", "(4, 4.5)"): "needs the attributes dim",
    ("image_size[0] // 16", "image_size[0] // 8"): r"gives \(1, 16, 64\) .* give \(1, 32, 64\)",
    (".flatten(2)", ".no_such(2)"): "no attribute 'no_such'",
    ("        super().__init__()", "        raise ValueError('no')"): "ValueError: no",
    ("from torch import nn", "from torch import no_such"): "ImportError",
    ("from torch import nn", "import own_missing"): "needs the module 'own_missing'",
}


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_class_that_is_no_encoder_is_one_line(modules, number):
    (old, new), message = list(FAULTS.items())[number]
    assert old in EXAMPLE
    (modules / f"own_fault{number}.py").write_text(EXAMPLE.replace(old, new))
    text = refusal(check_encoder, config_of(f"own_fault{number}:Patches"))
    assert re.search(message, text), text


def test_a_weight_file_cannot_name_a_module_of_python():
    assert "standard library" in refusal(load_class, "antigravity:Module")
    assert "antigravity" not in sys.modules


# ---- the package index ---------------------------------------------------------------------------


def names_of_the_package(ours: dict[str, tuple]) -> list[str]:
    """As the package has them: blocks counted through, another name for each layer."""
    blocks = list(dict.fromkeys(re.findall(r"blocks\.\d+\.\d+", " ".join(ours))))
    out = []
    for name in ours:
        block = next((b for b in blocks if name.startswith(f"{b}.")), "")
        layer = name.removeprefix(f"{block}.")
        if layer.startswith("bn"):
            layer = f"_bn{int(layer[2]) - 1}{layer[3:]}"
        layer = layer.replace("conv_dw", "_depthwise_conv").replace("classifier", "_fc")
        out.append(f"_blocks.{blocks.index(block)}.{layer}" if block else f"_{layer.strip('_')}")
    return out


def test_tensors_of_the_package_find_their_names():
    ours = timm_shapes("tf_efficientnet_lite0")
    theirs = dict(zip(names_of_the_package(ours), ours.values(), strict=True))
    assert list(match_in_order(theirs, ours).items()) == list(zip(theirs, ours, strict=True))


def swap(names: list[str], one: str, other: str) -> list[str]:
    """All tensors of two layers or blocks change their places."""
    table = {one: other, other: one}
    pattern = re.compile("|".join(map(re.escape, table)))
    return [pattern.sub(lambda match: table[match[0]], name) for name in names]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("_blocks.3.", "_blocks.4."),
        ("_blocks.4._bn0", "_blocks.4._bn1"),
        ("_bn0.weight", "_bn0.bias"),
        ("_blocks.1._depthwise_conv", "_blocks.1.conv_pw"),
        ("_bn0.running_mean", "_bn0.running_var"),
    ],
)
def test_tensors_in_another_order_are_refused(one, other):
    """Shapes alone would not tell most of them."""
    ours = timm_shapes("tf_efficientnet_lite0")
    names = swap(names_of_the_package(ours), one, other)
    theirs = dict(zip(names, ours.values(), strict=True))
    assert len(theirs) == len(ours)
    refusal(match_in_order, theirs, ours)
