"""Imports point downwards: the table of the house, enforced."""

import ast
import re
from pathlib import Path

import pytest

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
SCRIPT = re.compile(r"^if __name__ == ", re.MULTILINE)  # scripts may read the settings
FILES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """First parts of the names of our own modules that a file imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names.add(node.module)
    return {name.partition(".")[0] for name in names} & OURS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    text = path.read_text()
    folder = path.relative_to(ROOT).parts[0]
    allowed = set(MAY_IMPORT[folder])
    if SCRIPT.search(text) or path.stem == "script":
        allowed.add("config")
    assert imported(ast.parse(text)) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable_in_one_go(path):
    assert len(path.read_text().splitlines()) <= 450


def test_no_token_id_is_a_number_outside_the_vocabulary():
    """The ids that earlier code had scattered: shifts, prompts, special tokens."""
    pattern = re.compile(r"(?<![\w.])(1000|3000|500|501|550)(?![\w.])")
    allowed = {"tokenizer/vocabulary.py", "models/config.py"}
    for path in FILES:
        name = str(path.relative_to(ROOT))
        if not name.startswith(("tokenizer", "models", "infer")) or name in allowed:
            continue
        tree = ast.parse(path.read_text())
        numbers = {str(n.value) for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        assert not any(pattern.fullmatch(number) for number in numbers), name
