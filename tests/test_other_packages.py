"""The predictor can be imported beside packages of the caller that have the names of ours."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

MAIN = """
import sys
sys.path.append({root!r})
{first}
from infer.predictor import Predictor
import {name}
assert {name}.mine == 7
from {name}.own import value
assert value == 8
print(type(Predictor({root!r} + "/weights/demo.safetensors").detect({root!r} + "/images/demo.jpg")))
"""


def run(folder, name, first):
    text = MAIN.format(root=str(ROOT), name=name, first=first)
    (folder / "main.py").write_text(text)
    command = [sys.executable, str(folder / "main.py")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["utils", "models", "dataset", "tokenizer", "train", "config"])
@pytest.mark.parametrize("kind", ["package", "imported before"])
def test_own_packages_stay_and_ours_are_found(tmp_path, name, kind):
    (tmp_path / name).mkdir()
    (tmp_path / name / "own.py").write_text("value = 8")
    (tmp_path / name / "__init__.py").write_text("mine = 7")
    done = run(tmp_path, name, f"import {name}.own" if kind == "imported before" else "")
    assert done.returncode == 0 and "Detections" in done.stdout, done.stderr


def test_a_module_of_both_names_is_told_in_a_line(tmp_path):
    (tmp_path / "utils").mkdir()
    for name in ("__init__", "images"):
        (tmp_path / "utils" / f"{name}.py").touch()
    done = run(tmp_path, "utils", "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("ImportError: utils.images is a module of") and "rename yours" in line


def test_a_single_file_of_that_name_stays(tmp_path):
    (tmp_path / "utils.py").write_text("mine = 7")
    (tmp_path / "main.py").write_text(
        f"import sys\nsys.path.append({str(ROOT)!r})\nimport utils\n"
        "from infer.predictor import Predictor\nassert utils.mine == 7\n"
    )
    command = [sys.executable, str(tmp_path / "main.py")]
    subprocess.run(command, cwd=tmp_path, check=True)
