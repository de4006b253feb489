"""Rules of the house: imports point downwards in no circle, files and functions can be held."""

import ast
import re
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import pytest

from tokenizer.vocabulary import TASK_NAMES

ROOT = Path(__file__).resolve().parents[1]
OURS = {
    "benchmarks",
    "config",
    "dataset",
    "download",
    "infer",
    "models",
    "tokenizer",
    "train",
    "utils",
}
MAY_IMPORT = {
    "utils": {"utils"},
    "tokenizer": {"tokenizer", "utils"},
    "models": {"models", "utils"},
    "dataset": {"dataset", "tokenizer", "utils"},
    "infer": {"infer", "dataset", "models", "tokenizer", "utils"},
    "train": {"train", "infer", "dataset", "models", "tokenizer", "utils"},
}
ALSO = {"dataset/check_dataset.py": {"train"}}  # a script that asks which settings training picks
SCRIPT = re.compile(r"^if __name__ == ", re.MULTILINE)  # scripts may read the settings
FILES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = [path for path in FILES if SCRIPT.search(path.read_text())]
SCRIPTS += sorted(p for p in (ROOT / "download").glob("*.py") if SCRIPT.search(p.read_text()))
LIBRARY = [path for path in FILES if path not in SCRIPTS and path.stem != "__init__"]
ONE_CLASS = {"train/validate.py"}  # that one looks for by name, in a few lines
RIDDLES = {"how", "asked", "said", "told", "given"}  # names of locals that say nothing
MAX_PARAMETERS, MAX_LINES = 8, 60  # of a function
# name -> files that it may reach by imports, itself included
CLOSURES = {
    "train/train_coco_object_detection.py": 75,
    "infer/infer_single_image_object_detection.py": 50,
}
HEAVY = {
    *("torch", "torchvision", "timm", "albumentations", "pandas", "matplotlib"),
    *("transformers", "tokenizers", "tensorboard", "scipy"),
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules(path: Path) -> set[str]:
    """Dotted names that a file imports, inside its functions too."""
    return imported_names(parsed(path))


def imported_names(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@cache
def imported_files(path: Path) -> frozenset[Path]:
    """Our own files that a file imports."""
    places = [ROOT / name.replace(".", "/") for name in modules(path)]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return frozenset(file for file in files if file.is_file() and file != path)


def reached(path: Path) -> set[Path]:
    """All our files that a file imports, and theirs, and so on."""
    seen, waiting = set(), [path]
    while waiting:
        new = imported_files(waiting.pop()) - seen
        seen |= new
        waiting += new
    return seen


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [each.arg for each in every if each.arg not in ("self", "cls")]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_imports_point_downwards(path):
    allowed = set(MAY_IMPORT[path.relative_to(ROOT).parts[0]])
    if path in SCRIPTS or path.stem == "script":
        allowed.add("config")
    allowed |= ALSO.get(named(path), set())
    assert {name.partition(".")[0] for name in modules(path)} & OURS <= allowed


def test_no_import_runs_in_a_circle():
    files = [path for path in FILES if path.stem != "__init__"]
    assert [named(path) for path in files if path in reached(path)] == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_import_is_for_types_alone(path):
    """An import of our own that only type checkers see hides a circle."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            names = {name for part in node.body for name in imported_names(part)}
            assert not {name.partition(".")[0] for name in names} & OURS, f"line {node.lineno}"


@pytest.mark.parametrize("script", CLOSURES)
def test_a_script_reaches_few_files(script):
    files = [path for path in reached(ROOT / script) if path.stem != "__init__"]
    most = CLOSURES[script] + 3 * (
        len(TASK_NAMES) - 4
    )  # a further task has tokenizer, data, inference
    assert len({*files, ROOT / script}) <= most, sorted(map(named, files))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_file_is_one_thing_that_one_looks_for(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 450
    of_another_task = path.stem.removeprefix("coco_") in TASK_NAMES[4:]
    if path in LIBRARY and named(path) not in ONE_CLASS and not of_another_task:
        assert lines >= 60


@pytest.mark.parametrize("path", FILES, ids=named)
def test_functions_can_be_held(path):
    """Public adapters and constructors may have more parameters: their names are the interface."""
    for function in functions(path):
        place = f"{function.name}, line {function.lineno}"
        assert function.end_lineno - function.lineno < MAX_LINES, place
        names = parameters(function)
        if function.name not in ("__init__", "generate", "beam_search"):
            assert len(names) <= MAX_PARAMETERS, f"{place}: {names}"
        if function.args.kwarg:
            names.append(function.args.kwarg.arg)
        stored = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
        names += [node.id for node in stored if isinstance(node.ctx, ast.Store)]
        assert not RIDDLES & set(names), place


def test_training_leaves_the_command_line_to_one_module():
    users = [p for p in FILES if named(p).startswith("train/") and "argparse" in modules(p)]
    assert [named(path) for path in users if path.stem != "script"] == []


def test_an_exported_program_without_onnxruntime_says_what_to_install():
    path = ROOT / "infer" / "run_onnx.py"
    code = (
        "import runpy, sys\n"
        "sys.modules['onnxruntime'] = None  # as if it were not installed\n"
        f"sys.argv = [{str(path)!r}, *sys.argv[1:]]\n"
        f"runpy.run_path({str(path)!r}, run_name='__main__')\n"
    )
    run = partial(subprocess.run, capture_output=True, text=True, timeout=120)
    done = run([sys.executable, "-c", code, "photo.jpg"])
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ") and "pip install onnxruntime" in done.stderr
    done = run([sys.executable, "-c", code, "--help"])
    assert done.returncode == 0 and "PHOTO" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--set", "no_such_setting=1"]], ids=" ".join)
@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_a_command_line_is_understood_before_anything_heavy_is_imported(path, arguments, tmp_path):
    """Not timed, which a busy machine would spoil: what takes the time are these imports."""
    if "--set" in arguments and "utils.cli.parser" not in modules(path) | script_modules(path):
        return  # it has no settings
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(path)!r}, *{required(path) + arguments}]\n"
        "try:\n"
        f"    runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "except SystemExit as left:\n"
        "    print(left.code, *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    status, *loaded = done.stdout.splitlines()[-1].split()
    assert status == ("0" if "--help" in arguments else "2"), done.stderr
    assert HEAVY & set(loaded) == set()


def script_modules(path: Path) -> set[str]:
    """What the module that scripts of a room share imports for them."""
    shared = path.parent / "script.py"
    return modules(shared) if shared in imported_files(path) else set()


def required(path: Path) -> list[str]:
    """Arguments that a script cannot do without."""
    if path.name.startswith("infer_single_image"):
        return ["--image", str(ROOT / "images" / "demo.jpg")]
    if path.name == "evaluate.py":
        return ["--weights", "none.safetensors"]
    return []


def test_no_token_id_is_a_number_outside_the_vocabulary():
    """The ids that earlier code had scattered: shifts, prompts, special tokens."""
    pattern = re.compile(r"(?<![\w.])(1000|3000|500|501|550)(?![\w.])")
    allowed = {"tokenizer/vocabulary.py", "models/config.py"}
    for path in FILES:
        name = named(path)
        if not name.startswith(("tokenizer", "models", "infer")) or name in allowed:
            continue
        numbers = {str(n.value) for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant)}
        assert not any(pattern.fullmatch(number) for number in numbers), name
