"""The download of official weights against a server on this machine: resume, convert, once."""

import importlib.util
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch

from download.official_model import model_config
from infer.predictor import Predictor
from models import build_model
from tests.test_convert_official import TINY
from tests.test_download import PYTHON, ROOT, TOOLS, bin_of, server, tree  # noqa: F401
from tests.tf_writer import official_variables, write_checkpoint
from utils import files
from utils.errors import UserError

PACKAGES = os.path.dirname(os.path.dirname(np.__file__))  # PYTHON itself does not know of them
SCRIPT = ROOT / "download" / "download_official_weights.sh"
NAMES = [
    *(f"obj365_{model}_640" for model in ("resnet", "resnetc", "vit_b", "vit_l")),
    *(
        f"coco_{model}_{size}"
        for model in ("resnet", "resnetc", "vit_b", "vit_l")
        for size in (640, 1024, 1333)
    ),
    *(f"multi_vit_b_{size}" for size in (640, 1024)),
]
pytestmark = pytest.mark.skipif(
    not shutil.which("bash") or not (shutil.which("curl") or shutil.which("wget")),
    reason="needs bash and curl or wget",
)


@pytest.fixture
def official(server, tmp_path):  # noqa: F811
    """A tiny checkpoint in every place of the server; returns a function that runs the script.

    The interpreter given to the script is the real one, but it converts the tiny model whatever
    the size that the script asks for, and notes what that was.
    """
    with torch.device("meta"):
        model = build_model(model_config(TINY))
    source = tmp_path / "source"
    write_checkpoint(
        source / "ckpt-7", official_variables(model, np.random.default_rng(0)), num_shards=2
    )
    for folder in (
        "coco_det_finetune/resnet_1024x1024",
        "coco_det_finetune/vit_b_640x640",
        "obj365_pretrain/vit_l_640x640_b256_s400k",
        "multi_task/ckpt/vit_b_640x640",
    ):
        for file in source.iterdir():
            server.files[f"/{folder}/{file.name}"] = file.read_bytes()
    server.files["/multi_task/data/c4_en_32k_spm.model"] = b"pieces"
    (tmp_path / "config.json").write_text(json.dumps({"model": TINY}))
    python, asked = tmp_path / "python", tmp_path / "asked.txt"
    python.write_text(
        "#!/bin/sh\n"
        'case "$1" in *convert_official_weights.py)\n'
        f'    echo "$@" >"{asked}"\n'
        f'    set -- "$1" "$2" "$3" --config "{tmp_path}/config.json" ;;\n'
        "esac\n"
        f'exec "{PYTHON}" "$@"\n'
    )
    python.chmod(0o755)
    target = tmp_path / "a weights folder"

    def run(*args, **extra):
        base = f"http://127.0.0.1:{server.server_address[1]}/"
        env = {"PATH": os.environ["PATH"], "OFFICIAL_BASE_URL": base, "no_proxy": "*"}
        env |= {"PYTHON": str(python), "PYTHONPATH": f"{PACKAGES}{os.pathsep}{tmp_path}"} | extra
        command = ["bash", str(SCRIPT), *args, str(target)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    run.target, run.asked = target, asked
    return run


def asked(run):
    """What the converter was asked for, paths left out."""
    return run.asked.read_text().split(".safetensors ")[1].strip()


def test_weights_are_fetched_and_converted_once(official, server):  # noqa: F811
    index = "/coco_det_finetune/resnet_1024x1024/ckpt-7.index"
    data = index.replace("index", "data-00001-of-00002")
    server.cut[data] = 1000
    done = official("coco_resnet_1024")
    assert done.returncode == 2
    assert "no connection, or it broke off; run this again" in done.stderr.splitlines()[-1]
    server.log.clear()
    done = official("coco_resnet_1024")
    assert done.returncode == 0, done.stderr
    assert server.log == [(data, 1000)]  # the rest of the one file that was missing
    weights = official.target / "coco_resnet_1024.safetensors"
    assert f"--weights {weights}" in done.stdout
    assert asked(official) == "--variant resnet --image-size 1024"
    assert len(Predictor(weights).categories.names) == 80
    assert not list(official.target.rglob("*.part"))
    stamp = weights.stat().st_mtime_ns
    done = official("coco_resnet_1024", "--remove-checkpoint")
    assert done.returncode == 0 and weights.stat().st_mtime_ns == stamp
    assert len(server.log) == 1
    assert tree(official.target) == [weights.name, weights.name + ".sha256"]


def test_multi_task_weights_come_with_their_text_pieces(official, tmp_path):
    package = tmp_path / "sentencepiece.py"
    if importlib.util.find_spec("sentencepiece") is None:
        done = official("multi_vit_b_640")
        assert done.returncode == 2 and "-m pip install sentencepiece" in done.stderr
        package.touch()
    done = official("multi_vit_b_640", "--remove-checkpoint")
    assert done.returncode == 0, done.stderr
    pieces = official.target / "c4_en_32k_spm.model"
    assert pieces.read_bytes() == b"pieces"
    options = "--variant vit-b --image-size 640 --task multi --text-model"
    assert asked(official) == f"{options} {pieces}"


def test_damaged_and_missing_files_are_one_line(official, server):  # noqa: F811
    folder = "/obj365_pretrain/vit_l_640x640_b256_s400k"
    body = server.files[f"{folder}/ckpt-7.data-00000-of-00002"]
    middle = len(body) // 2
    damaged = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    server.files[f"{folder}/ckpt-7.data-00000-of-00002"] = damaged
    done = official("obj365_vit_l_640")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "ckpt-7.data-00000-of-00002 is damaged" in last
    assert asked(official) == "--variant vit-l --image-size 640 --num-classes 365"
    del server.files[f"{folder}/ckpt-7.index"]
    (official.target / "obj365_vit_l_640" / "ckpt-7.index").unlink()
    done = official("obj365_vit_l_640")
    assert done.returncode == 2
    assert "ckpt-7.index: the server refused (status 404)" in done.stderr.splitlines()[-1]
    server.files[f"{folder}/ckpt-7.index"] = b"<html>log in</html>"
    done = official("obj365_vit_l_640")
    assert done.returncode == 2
    assert "ckpt-7.index is damaged" in done.stderr.splitlines()[-1]


def test_wrong_names_are_one_line(official, server, tmp_path):  # noqa: F811
    for name in (
        "vit_b",
        "coco_vit_b_641",
        "obj365_vit_b_1024",
        "multi_resnet_640",
        "coco_vit_640",
    ):
        done = official(name)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"no official weights {name}; see --help" in done.stderr
    done = official("--fast")
    assert done.returncode == 2 and "unknown option --fast" in done.stderr
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{PYTHON}" -S "$@"\n')
    bare.chmod(0o755)
    done = official("coco_resnet_1024", PYTHON=str(bare), PYTHONPATH="")
    assert done.returncode == 2 and "has no PyTorch; run make install" in done.stderr
    path = bin_of(tmp_path, [tool for tool in TOOLS if tool not in ("curl", "wget")])
    done = official("coco_resnet_1024", PATH=path)
    assert done.returncode == 2 and "curl or wget is needed" in done.stderr
    assert server.log == []


def test_official_weights_that_are_not_there_are_to_be_downloaded(tmp_path, monkeypatch):
    """By their names alone, and into the folder that was named; near files do not matter."""
    monkeypatch.setattr(files, "WEIGHTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multi_vit_b_64.safetensors").touch()
    command = "download it: download/download_official_weights.sh "
    for name in NAMES:
        for path, target in ((name, ""), (f"{name}.safetensors", ""), (f"a b/{name}", " 'a b'")):
            with pytest.raises(UserError) as error:
                files.find_weight_file(path, "train one")
            assert str(error.value) == f"no weight file at {path}; {command}{name}{target}"
    for name in ("coco_vit_b_641", "multi_resnet_640", "obj365_vit_b_1024", "my_coco_vit_b_640"):
        with pytest.raises(UserError, match="; train one$"):
            files.find_weight_file(f"none/{name}.safetensors", "train one")
    (tmp_path / f"{NAMES[0]}.safetensors").touch()
    for path in (f"elsewhere/{NAMES[0]}.safetensors", NAMES[0]):
        with pytest.raises(UserError, match=f"did you mean {tmp_path}/{NAMES[0]}.safetensors"):
            files.find_weight_file(path)


def test_help_names_what_there_is_and_so_does_the_table():
    assert os.access(SCRIPT, os.X_OK)
    done = subprocess.run(["bash", SCRIPT, "--help"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and done.stderr == ""
    table = (ROOT / "weights" / "README.md").read_text()
    rows = [line.split("|")[1].strip(" `") for line in table.splitlines() if line.startswith("| `")]
    assert [name for name in rows if name.startswith(("obj365", "coco_", "multi_"))] == NAMES
    text = SCRIPT.read_text()
    start, end = text.index("# describe NAME"), text.index("# fetch URL")
    command = text[start:end] + 'for n in "$@"; do describe "$n" && echo "$FOLDER"; done'
    done = subprocess.run(["bash", "-c", command, "-", *NAMES], capture_output=True, text=True)
    folders = done.stdout.split()
    assert len(folders) == len(set(folders)) == len(NAMES)
    assert all(f"`{folder}`" in table for folder in folders)
