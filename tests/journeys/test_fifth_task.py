"""A new task as docs/tasks.md tells it: its files are written, and its commands are run."""

import json
import re
from pathlib import Path

import pytest

from tests.journeys.clone import ROOT, SMALL_MODEL, Clone
from tests.journeys.page import read_commands

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "tasks.md").read_text().partition("## A fifth task")[2]
SETTINGS = SMALL_MODEL | {  # a few steps of a small model
    "batch_size": 4,
    "num_workers": 0,
    "max_steps": 6,
    "log_every": 1,
    "lr": 1e-3,
}
SECONDS = 120  # for a command


@pytest.fixture(scope="module")
def clone(fresh_clone, drawn_set) -> Clone:
    """A clone with the new task in it."""
    fresh_clone.edit_settings(SETTINGS | {"coco_root": drawn_set})
    follow_the_page(fresh_clone.root)
    return fresh_clone


def follow_the_page(root: Path) -> None:
    """Does what a reader does: a name is appended, files are made, entries are added to files."""
    (task, names, file), *others = re.findall(
        r"[Aa]ppend `\"(\w+)\"` to `(\w+)` in\s+`(\S+)`", PAGE
    )
    assert not others
    path = root / file
    text, found = re.subn(
        rf"^({names}\b.* = \(.*?),?\)$", rf'\1, "{task}")', path.read_text(), flags=re.M
    )
    assert found == 1, f"{file} has no tuple {names}"
    path.write_text(text)
    for block in (command.text for command in read_commands(PAGE) if command.language):
        path = root / re.match(r"# (\S+\.py)\n", block)[1]
        old = path.read_text() + "\n\n" if path.exists() else ""
        path.write_text(old + block)


@pytest.fixture(scope="module")
def weights(clone) -> Path:
    """Those of a training of the new task alone."""
    clone.run("python train/train_coco_pointing.py", seconds=SECONDS)
    (path,) = clone.root.glob("runs/pointing/*/last.safetensors")
    return path


def test_the_new_task_trains(weights):
    rows = [json.loads(line) for line in (weights.parent / "metrics.jsonl").open()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == SETTINGS["max_steps"] and losses[-1] < losses[0]
    assert any(name.endswith("/AP") for row in rows for name in row), "it is validated, too"


def test_the_new_task_is_evaluated(clone, weights):
    command = f"python infer/evaluate.py --task pointing --weights {weights}"
    done = clone.run(command, seconds=SECONDS)
    out = clone.root / "results" / "pointing_coco_val"
    ap = json.loads((out / "metrics.json").read_text())["AP"]
    assert 0 <= ap <= 1 and f"AP = {ap:.3f}" in done.stdout
    assert isinstance(json.loads((out / "results.json").read_text()), list)


def test_the_new_task_infers(clone, weights):
    command = (
        f"python infer/infer_single_image_pointing.py --image images/demo.jpg --weights {weights}"
    )
    done = clone.run(f"{command} --json", seconds=SECONDS)
    (row,) = json.loads(done.stdout)
    assert isinstance(row["points"], list)
    done = clone.run(command, seconds=SECONDS)
    assert all(point["label"] in done.stdout for point in row["points"])


def test_the_new_task_joins_another(clone):
    (command,) = re.findall(r"`(train_multi_task\.py --task \S+)`", PAGE)
    clone.run(f"python train/{command}", seconds=SECONDS)
    (path,) = clone.root.glob("runs/detection+pointing/*/last.safetensors")
    done = clone.run(f"python infer/evaluate.py --task all --weights {path}", seconds=SECONDS)
    assert re.search(r"^detection ", done.stdout, re.M) and re.search(
        r"^pointing ", done.stdout, re.M
    )


def test_the_new_files_keep_the_rules(clone):
    clone.run("make lint", seconds=SECONDS)
