"""`pix2seq` in a program whose own packages have the names of ours, imported before and after."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pix2seq
from tests.conftest import ROOT
from tests.test_imports import FILES, named

OWN = ("utils", "config", "models", "dataset", "train", "tokenizer", "infer")
MODULES = ("files", "cli", "errors", "images", "loader", "engine", "predictor", "results")
PLAIN = {"utils/errors.py", "infer/__init__.py"}  # what a user names, and packages of the caller

PROGRAM = """
import multiprocessing, pickle, sys
import utils.files, config, models  # before
sys.path.append({root!r})

def size_of(image):
    return image.shape

def check():
    for name in {own}:
        assert sys.modules[name].mine == name and sys.modules[name].__file__.startswith({here!r})
    files = {{m: str(getattr(m, "__file__", "")) for m in list(sys.modules.values())}}
    ours = [m for m, f in files.items() if f.startswith({root!r}) and "site-packages" not in f]
    assert ours and all(m.__name__.split(".")[0] == "pix2seq" for m in ours), ours[:9]

if __name__ == "__main__":
{body}
    import dataset, train, tokenizer, infer.predictor, utils.images  # after
    assert infer.predictor.mine == "infer.predictor" and utils.files.mine == "utils.files"
    check()
    print("well done")
"""
LIGHT = """
    import pix2seq
    from pix2seq.config import CFG
    from pix2seq.utils.errors import UserError
    from pix2seq.utils.cli import snapshot
    assert pix2seq.UserError is UserError and pix2seq.utils.errors.UserError is UserError
    assert snapshot(CFG, ["seed=7"]).seed == 7
    try:
        snapshot(CFG, ["no=7"])
    except UserError:
        pass
    error = pickle.loads(pickle.dumps(UserError("a")))
    assert type(error) is UserError and type(error).__module__ == "pix2seq.utils.errors"
"""
HEAVY = """
    from pix2seq import Predictor
    predictor = Predictor({weights!r})
    found = predictor.detect({image!r}, score_threshold=0.3)
    again = pickle.loads(pickle.dumps(found))
    assert repr(again) == repr(found) and len(found) > 2
    assert len(found.to_dataframe()) == len(found.to_yolo().splitlines()) == len(found)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(repr, (found,)) == repr(found)
        assert pool.apply(found.plot).shape == found.plot().shape
    from pix2seq.dataset.find_dataset import formats
    assert all(m.__name__.startswith("pix2seq.dataset.formats.") for m in formats().values())
    from pix2seq.dataset.coco_detection import CocoDetection
    from pix2seq.dataset.loader import build_eval_loader
    from pix2seq.config import CFG
    source = CocoDetection({data!r}, "val")
    loader = build_eval_loader(source, batch_size=2, num_workers=2)
    assert sum(map(len, loader)) == len(source) > 0
"""


def run_program(folder: Path, body: str, **values) -> subprocess.CompletedProcess:
    """Runs a program that has packages with the names of ours, and modules with their names."""
    for name in OWN:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"mine = {name!r}")
        for module in MODULES:
            (folder / name / f"{module}.py").write_text(f"mine = '{name}.{module}'")
    body = body.format(**values)
    text = PROGRAM.format(root=str(ROOT), own=OWN, here=str(folder), body=body)
    (folder / "main.py").write_text(text)
    command = [sys.executable, str(folder / "main.py")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def test_programs_keep_their_packages(tmp_path):
    done = run_program(tmp_path, LIGHT)
    assert done.stdout == "well done\n", done.stderr


@pytest.mark.slow
def test_models_workers_and_pickles_live_in_the_package(tmp_path, demo_set):
    folder = tmp_path / "program"
    folder.mkdir()
    weights, image = ROOT / "weights" / "demo.safetensors", ROOT / "images" / "demo.jpg"
    values = {"weights": str(weights), "image": str(image), "data": str(demo_set)}
    done = run_program(folder, HEAVY, **values)
    assert done.stdout == "well done\n", done.stderr


@pytest.mark.parametrize(
    "source, expected",
    [
        ("from utils.files import a as b", "from pix2seq.utils.files import a as b"),
        ("from utils import files", "from pix2seq.utils import files"),
        ("import utils.files as f, numpy.linalg", "import pix2seq.utils.files as f, numpy.linalg"),
        ("import utils.files", "import pix2seq.utils.files as _, pix2seq.utils as utils"),
        ("import utilsfoo, torch.utils", "import utilsfoo, torch.utils"),
        ("from . import utils", "from . import utils"),
        ("import_module(f'dataset.{x}')", "import_module(f'pix2seq.dataset.{x}')"),
        ("importlib.import_module('infer.a')", "importlib.import_module('pix2seq.infer.a')"),
        ("import_module(name)", "import_module(name)"),
        ("def f():\n    from config import CFG", "def f():\n    from pix2seq.config import CFG"),
    ],
)
def test_imports_of_our_modules_are_renamed(source, expected):
    tree = pix2seq._Rename().visit(ast.parse(source))
    assert ast.unparse(ast.fix_missing_locations(tree)) == expected


def test_the_folders_of_the_repository_are_those_of_the_package():
    folders = {path.relative_to(ROOT).parts[0] for path in FILES}
    assert folders | {"config", "download"} == set(pix2seq.OURS)


@pytest.mark.parametrize("path", [p for p in FILES if named(p) not in PLAIN], ids=named)
def test_modules_are_imported_by_names_that_can_be_renamed(path):
    """`import_module` wants the name written out, or an f-string that begins with it."""
    for node in ast.walk(ast.parse(path.read_text())):
        called = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1]
        if called == "import_module":
            name = node.args[0]
            first = name.values[0] if isinstance(name, ast.JoinedStr) else name
            relative = ast.unparse(first) == "{__name__}" or "__name__" in ast.unparse(first)
            assert relative or isinstance(first, ast.Constant), f"line {node.lineno}"
