"""Weights by name: fetched, recorded, kept; and shared with a card. The hub is on this machine."""

import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml

from config import CFG
from infer import evaluate, infer_single_image_object_detection
from infer.predictor import Predictor
from models.weights import read_header
from tests.conftest import TINY
from tests.hub_server import serve_hub
from tests.training import resume
from train.engine import train
from utils import hub as hub_files
from utils.cli import snapshot
from utils.errors import UserError
from utils.files import file_sha256, find_weight_file, path_text
from utils.hub import fetch, split_name

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "weights" / "demo.safetensors"
PUSH = runpy.run_path(str(ROOT / "weights" / "push.py"), run_name="push")
constants = huggingface_hub.constants


def forget():
    """What a process knows of the hub, so that the next call is as that of a new one."""
    hub_files._fetch.cache_clear()
    hub_files._describe.cache_clear()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub and an empty cache."""
    with serve_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "token")
        forget()
        yield server
    forget()


def refusal(function, *args) -> str:
    with pytest.raises(UserError) as error:
        function(*args)
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["w.safetensors", "a folder/w.safetensors"])
@pytest.mark.parametrize("revision", [None, "main", "refs/pr/1", "b" * 40])
def test_a_name_comes_apart_also_as_a_path(file, revision):
    name = f"hf://owner/na-me.1/{file}" + (f"@{revision}" if revision else "")
    assert split_name(name) == split_name(Path(name)) == ("owner/na-me.1", file, revision)
    assert path_text(Path(name)) == name


@pytest.mark.parametrize(
    "name", ["hf://owner", "hf://owner/name", "hf://owner/name/", "hf://o/n/../w", "hf://o/n/w@"]
)
def test_what_names_no_file_is_one_line(name):
    assert "write hf://owner/name/FILE" in refusal(find_weight_file, name)


# ---- fetching ------------------------------------------------------------------------------------


def test_a_branch_is_followed_a_commit_is_for_ever(hub, capsys):
    one = hub.commit("owner/name", {"a/w.safetensors": b"one"})
    found = fetch("hf://owner/name/a/w.safetensors")
    assert (found.path.read_bytes(), found.commit) == (b"one", one)
    assert found.sha256 == hashlib.sha256(b"one").hexdigest()
    assert found.name == f"hf://owner/name/a/w.safetensors@{one}"
    line = f"weights: {found.name} (SHA-256 {found.sha256})"
    assert capsys.readouterr().err.splitlines().count(line) == 1

    two = hub.commit("owner/name", {"a/w.safetensors": b"two"})
    assert fetch("hf://owner/name/a/w.safetensors") is found  # one process, one model
    forget()
    assert fetch("hf://owner/name/a/w.safetensors").commit == two
    count = len(hub.asked)
    assert fetch(found.name) == found
    assert len(hub.asked) == count  # the cache has it: nobody is asked


def test_without_a_network_the_cache_serves_and_one_line_says_what_is_missing(
    hub, monkeypatch, capsys
):
    hub.commit("owner/name", {"w.safetensors": b"one"})
    found = fetch("hf://owner/name/w.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.asked)
    forget()
    assert fetch("hf://owner/name/w.safetensors") == found
    text = refusal(fetch, "hf://owner/name/other.safetensors")
    assert "HF_HUB_OFFLINE is set" in text and "docs/hub.md" in text
    assert len(hub.asked) == count

    # The same where nobody listens, within seconds.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    capsys.readouterr()
    forget()
    began = time.monotonic()
    assert fetch("hf://owner/name/w.safetensors") == found
    assert "may not be the newest" in capsys.readouterr().err
    assert "http://127.0.0.1:9: " in refusal(fetch, "hf://owner/name/other.safetensors")
    assert time.monotonic() - began < 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://owner/none/w.safetensors", "no repository owner/none"),
        ("hf://owner/name/none.safetensors", "no file none.safetensors"),
        ("hf://owner/name/w.safetensors@none", "no revision 'none'"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, name, message):
    hub.commit("owner/name", {"w.safetensors": b"one"})
    assert message in refusal(fetch, name)


def test_a_page_in_place_of_weights_is_refused(hub):
    hub.commit("owner/name", {"w.safetensors": b"<!doctype html>"})
    assert "is a web page" in refusal(find_weight_file, "hf://owner/name/w.safetensors")


def test_a_predictor_by_name_is_that_of_the_file(hub, tiny_weights):
    hub.commit("owner/name", {"w.safetensors": tiny_weights.read_bytes()})
    ours, theirs = Predictor("hf://owner/name/w.safetensors"), Predictor(tiny_weights)
    states = ours.model.state_dict(), theirs.model.state_dict()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert ours.name == "hf://owner/name/w.safetensors"


# ---- what results say about their weights --------------------------------------------------------


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_results_name_their_weights(hub, tiny_weights, tmp_path, monkeypatch, capsys, mode):
    """The same file by name, by path and as a model: only what is known is recorded."""
    hub.mode = mode
    content = tiny_weights.read_bytes()
    commit = hub.commit("owner/name", {"w.safetensors": content})
    name, digest = "hf://owner/name/w.safetensors", hashlib.sha256(content).hexdigest()
    monkeypatch.chdir(tmp_path)
    wanted = {
        name: {"name": name, "revision": commit, "sha256": digest},
        str(tiny_weights): {"name": str(tiny_weights), "revision": None, "sha256": digest},
    }
    for weights, record in wanted.items():
        assert Predictor(weights).weights_record == record
        arguments = ["--image", str(ROOT / "images" / "demo.jpg"), "--weights", weights, "--json"]
        infer_single_image_object_detection.main(arguments)
        assert [row["weights"] for row in json.loads(capsys.readouterr().out)] == [record]
    given = Predictor(Predictor(tiny_weights).model).weights_record
    assert given == {"name": "the given model", "revision": None, "sha256": None}


def test_no_checksum_is_given_for_weights_that_were_replaced(tiny_weights, tmp_path):
    """A training that goes on may write better ones under the same name."""
    file = Path(shutil.copy(tiny_weights, tmp_path / "best.safetensors"))
    same, late = Predictor(file), Predictor(file)
    assert same.weights_record["sha256"] == file_sha256(file)
    file.write_bytes(file.read_bytes() + b"\0")
    assert late.weights_record == {"name": str(file), "revision": None, "sha256": None}


def test_nothing_is_read_for_results_without_json(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.files.file_sha256", None)
    picture = str(ROOT / "images" / "demo.jpg")
    arguments = ["--image", picture, "--weights", str(tiny_weights)]
    infer_single_image_object_detection.main(arguments)


def test_an_evaluation_by_name_is_recorded_and_pushed_with_its_weights_alone(
    hub, tiny_weights, demo_set, tmp_path
):
    content = tiny_weights.read_bytes()
    commit = hub.commit("owner/name", {"w.safetensors": content})
    name, out = "hf://owner/name/w.safetensors", tmp_path / "detection_coco_val"
    evaluate.main(
        ["--no-report", "--weights", name, "--out-dir", str(out), "--max-objects", "2", "--set",
         f"coco_root={demo_set}", "eval_limit=1"]
    )  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    assert list(metrics)[-1] == "weights"  # the first one is the one to compare models by
    assert metrics["weights"] == {"name": name, "revision": commit, "sha256": digest}
    figures = ["--metrics", str(out / "metrics.json")]
    push = PUSH["main"]
    push([str(tiny_weights), "owner/new", *figures])
    assert "| AP |" in hub.repos["owner/new"][-1][1]["README.md"].decode()
    text = refusal(push, [str(DEMO), "owner/other", *figures])
    assert "is about other weights" in text and digest in text


def test_a_run_records_commit_and_checksum_and_goes_on_without_the_hub(
    hub, tiny_weights, demo_set, tmp_path, monkeypatch
):
    content = tiny_weights.read_bytes()
    commit = hub.commit("owner/name", {"w.safetensors": content})
    overrides = [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", "max_steps=1"]
    overrides += ["eval_limit=1", "warmup_epochs=0", "init_weights=hf://owner/name/w.safetensors"]
    run = train(snapshot(CFG, overrides), ["detection"])
    digest = hashlib.sha256(content).hexdigest()
    settings = json.loads((run / "settings.json").read_text())
    pinned = f"hf://owner/name/w.safetensors@{commit}"
    assert (settings["init_weights"], settings["init_weights_sha256"]) == (pinned, digest)
    monkeypatch.setattr("utils.hub.fetch", None)
    resume(["max_steps=2"], ["detection"], run)
    meta = read_header(run / "last.safetensors")[1]
    assert meta["init_weights"] == {"file": pinned, "sha256": digest}


def test_another_file_than_the_wanted_one_is_refused(tiny_weights, demo_set, tmp_path):
    overrides = [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}"]
    overrides += [f"init_weights={tiny_weights}", f"init_weights_sha256={'0' * 64}"]
    text = refusal(train, snapshot(CFG, overrides), ["detection"])
    assert hashlib.sha256(tiny_weights.read_bytes()).hexdigest() in text
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_script_takes_weights_by_name(hub, tmp_path):
    """As a user runs it: only the environment names the server."""
    hub.commit("owner/name", {"demo.safetensors": DEMO.read_bytes()})
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    script = ROOT / "infer" / "infer_single_image_object_detection.py"
    command = [sys.executable, str(script), "--image", str(ROOT / "images" / "demo.jpg")]
    outputs = []
    for name in ("hf://owner/name/demo.safetensors", str(DEMO)):
        done = subprocess.run(
            [*command, "--weights", name, "--json"],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(json.loads(done.stdout))
    records = [row.pop("weights") for rows in outputs for row in rows]
    assert outputs[0] == outputs[1] and outputs[0][0]["objects"]
    assert records[0]["revision"] and records[0]["sha256"] == records[1]["sha256"]


# ---- sharing -------------------------------------------------------------------------------------


def evaluation(folder: Path) -> Path:
    file = folder / "detection_coco_val" / "metrics.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"AP": 0.51234, "AP50": 0.749, "AP_large": None}))
    return file


def front_matter(card: str) -> dict:
    return yaml.safe_load(re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL)[1])


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_what_is_pushed_is_fetched_by_its_name(
    hub, tiny_weights, tmp_path, monkeypatch, capsys, mode
):
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    hub.mode = mode
    PUSH["main"]([str(tiny_weights), "owner/new", "--metrics", str(evaluation(tmp_path))])
    name = capsys.readouterr().out.strip()
    assert fetch(name).path.read_bytes() == tiny_weights.read_bytes()
    assert fetch(name).name == name

    # The card says what the file records, and what was measured.
    card = hub.repos["owner/new"][-1][1]["README.md"].decode()
    values = front_matter(card)
    assert (values["pipeline_tag"], values["library_name"]) == (
        "object-detection",
        "pix2seq-pytorch",
    )
    (result,) = values["model-index"][0]["results"]
    numbers = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert numbers == {"AP": 0.5123, "AP50": 0.749}
    assert fetch(name).sha256 in card and "test_vit" in card and "| AP | 0.5123 |" in card

    # A card that somebody wrote stays.
    hub.commit("owner/new", {"README.md": b"mine"})
    PUSH["main"]([str(tiny_weights), "owner/new"])
    assert hub.repos["owner/new"][-1][1]["README.md"] == b"mine"


def test_a_dry_run_asks_nobody_and_overwrites_nothing(hub, tmp_path, capsys):
    arguments = [str(DEMO), "owner/demo", "--dry-run", str(tmp_path / "out")]
    PUSH["main"](arguments)
    assert (tmp_path / "out" / DEMO.name).read_bytes() == DEMO.read_bytes()
    values = front_matter((tmp_path / "out" / "README.md").read_text())
    assert {"object-detection", "keypoint-detection"} < set(values["tags"])
    assert not hub.asked
    assert "is there already" in refusal(PUSH["main"], arguments)


def test_what_cannot_be_pushed_is_one_line(hub, tiny_weights, tmp_path, monkeypatch):
    push, weights = PUSH["main"], str(tiny_weights)
    assert "not a valid owner/name" in refusal(push, [weights, "name"])
    (tmp_path / "m.json").write_text('{"AP": "good"}')
    assert "no metrics" in refusal(push, [weights, "o/n", "--metrics", str(tmp_path / "m.json")])
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "your token may write there" in refusal(push, [weights, "owner/name"])
    monkeypatch.setattr("huggingface_hub.utils.get_token", lambda: None)
    assert "hf auth login" in refusal(push, [weights, "owner/name"])
    assert not hub.repos
