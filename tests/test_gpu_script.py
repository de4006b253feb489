"""`benchmarks/gpu.sh` without a GPU: its dry run, its wrong uses, and steps that fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("decode_float32", "decode_half", "decode_compiled", "train_step", "train_compiled", "data")
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


def gpu_script(*words, python=sys.executable):
    return subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", *words],
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("words", [["--dry"], ["--dry-run", "OLD"]], ids=["option", "old folder"])
def test_a_wrong_use_is_one_line_and_starts_nothing(words, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    done = gpu_script(*[str(old) if word == "OLD" else word for word in words])
    lines = [line for line in done.stderr.splitlines() if "mkdir" not in line]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert not done.stdout and not any(old.iterdir())


def test_a_step_that_fails_is_named_and_the_others_go_on(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *data.py*|*table.py*) exit 0 ;; *) echo broken; exit 3 ;; esac\n'
    )
    python.chmod(0o755)
    done = gpu_script("--dry-run", str(tmp_path / "out"), python=python)
    assert done.returncode == 1
    assert done.stderr.strip() == f"failed: tests {' '.join(STEPS[:-1])}"
    assert done.stdout.count("broken") == len(STEPS)


@pytest.mark.slow
def test_the_dry_run_measures_every_step(tmp_path):
    done = gpu_script("--dry-run", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in STEPS:
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text()), name
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("| static |") == table.count("| plain |") == 4, table  # 2 types, 2 batches
    assert table.count("| compiled |") >= 2 and "MFU" in table
    assert "images of detection a second on one core" in table
