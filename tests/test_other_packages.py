"""The predictor can be imported beside packages of the caller that have the names of ours."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

NAMES = ("utils", "models", "dataset", "tokenizer", "train", "config")
MAIN = """
import importlib, sys
sys.path.append({root!r})
{first}
from infer.predictor import Predictor
for name in {names!r}:
    assert importlib.import_module(name).mine == 7, name
    assert importlib.import_module(name + ".own").value == 8, name
print(type(Predictor({root!r} + "/weights/demo.safetensors").detect({root!r} + "/images/demo.jpg")))
"""


def run(folder, names=NAMES, first=""):
    (folder / "main.py").write_text(MAIN.format(root=str(ROOT), names=names, first=first))
    command = [sys.executable, str(folder / "main.py")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["package", "imported before"])
def test_own_packages_stay_and_ours_are_found(tmp_path, kind):
    """Of every name, in one program: each name is treated apart from the others."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text("value = 8")
        (tmp_path / name / "__init__.py").write_text("mine = 7")
    imports = "\n".join(f"import {name}.own" for name in NAMES)
    done = run(tmp_path, first=imports if kind == "imported before" else "")
    assert done.returncode == 0 and "Detections" in done.stdout, done.stderr


def test_a_module_of_both_names_is_told_in_a_line(tmp_path):
    (tmp_path / "utils").mkdir()
    for name in ("__init__", "images"):
        (tmp_path / "utils" / f"{name}.py").touch()
    line = run(tmp_path).stderr.splitlines()[-1]
    assert line.startswith("ImportError: utils.images is a module of") and "rename yours" in line


def test_a_single_file_of_that_name_stays(tmp_path):
    (tmp_path / "utils.py").write_text("mine = 7")
    (tmp_path / "main.py").write_text(
        f"import sys\nsys.path.append({str(ROOT)!r})\nimport utils\n"
        "from infer.predictor import Predictor\nassert utils.mine == 7\n"
    )
    command = [sys.executable, str(tmp_path / "main.py")]
    subprocess.run(command, cwd=tmp_path, check=True)
