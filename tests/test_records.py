"""What a run leaves behind about itself, and which run `--resume` means."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from train.run_folder import (
    RunRecords,
    environment,
    find_run_dir,
    git_state,
    new_run_dir,
    read_settings,
    write_environment,
)
from utils.errors import UserError


def run_folder(parent, name, *files):
    folder = parent / "detection" / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).touch()
    return folder


def test_auto_is_the_newest_run_that_was_saved(tmp_path):
    assert find_run_dir(tmp_path, ["detection"], "auto") is None
    run_folder(tmp_path, "2026-01-01_00-00-09", "last.ckpt")
    run_folder(tmp_path, "2026-01-02_00-00-00-2", "last.ckpt")
    newest = run_folder(tmp_path, "2026-01-02_00-00-00-10", "last-1.ckpt")  # killed in between
    run_folder(tmp_path, "2026-01-03_00-00-00", ".last.123.ckpt")  # killed while saving
    assert find_run_dir(tmp_path, ["detection"], "auto") == newest
    assert find_run_dir(tmp_path, ["keypoint"], "auto") is None
    with pytest.raises(UserError, match="no run in"):
        find_run_dir(tmp_path, ["detection"], str(tmp_path))
    (newest / "settings.json").write_text("{}")
    for name in ("last.ckpt", "best.safetensors"):
        with pytest.raises(UserError, match=f"did you mean {newest}"):
            find_run_dir(tmp_path, ["detection"], str(newest / name))


def test_auto_takes_a_run_on_the_same_folder(tmp_path):
    runs = {}
    for number, settings in enumerate([{"data": "pets"}, {"train_json": "cells.json"}, {}]):
        run = run_folder(tmp_path, f"2026-01-0{number + 1}_00-00-00", "last.ckpt")
        (run / "settings.json").write_text(json.dumps(settings))
        runs[next(iter(settings.values()), None)] = run
    for name, run in runs.items():  # without a folder: the newest, whatever it trains on
        data = None if name is None else Path(name)
        assert find_run_dir(tmp_path, ["detection"], "auto", data=data) == run
    assert find_run_dir(tmp_path, ["detection"], "auto", data=Path("birds")) is None


def test_auto_takes_a_run_on_the_same_dataset(tmp_path):
    runs = {}
    for day, dataset in ((1, "coco"), (2, "voc")):
        runs[dataset] = run_folder(tmp_path, f"2026-01-0{day}_00-00-00", "last.ckpt")
        (runs[dataset] / "settings.json").write_text(json.dumps({"dataset": dataset}))
    for dataset, run in runs.items():
        assert find_run_dir(tmp_path, ["detection"], "auto", dataset=dataset) == run
        assert find_run_dir(tmp_path, ["detection"], str(run), dataset=dataset) == run
    assert find_run_dir(tmp_path, ["detection"], "auto", dataset="other") is None
    with pytest.raises(UserError, match="trains on voc, this script on coco"):
        find_run_dir(tmp_path, ["detection"], str(runs["voc"]), dataset="coco")


def test_a_run_folder_is_never_used_twice(tmp_path):
    folders = [new_run_dir(tmp_path, ["detection"]) for _ in range(3)]
    assert len(set(folders)) == 3


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_settings_are_one_line(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(UserError, match="resume another run") as error:
        read_settings(tmp_path)
    assert "\n" not in str(error.value)


def test_the_curves_of_a_killed_run_end_at_its_checkpoint(tmp_path):
    records = RunRecords(tmp_path)
    for step in range(1, 6):
        records.scalars(step, {"train/loss": step / 2})
    records.scalars(2, {"val/detection/AP": 0.5})
    records.scalars(4, {"val/detection/AP": 0.6})
    records.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')
    RunRecords(tmp_path, step=4, evaluated=2).close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "val/detection/AP" in row] == [2], "4 is repeated"


def test_the_environment_of_every_sitting_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    for step in (0, 7):
        write_environment(tmp_path, seed=5, device=torch.device("cpu"), step=step)
    lines = (tmp_path / "environment.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [0, 7] and rows[0]["seed"] == 5
    assert rows[0]["versions"]["torch"] and rows[0]["device"] == "cpu"
    assert rows[0]["variables"]["OMP_NUM_THREADS"] == "3" and "hidden" not in lines[0]
    assert {"command", "python", "git", "host", "gpus", "world_size"} <= set(rows[0])


def test_the_commit_is_told_and_whether_files_were_changed(tmp_path):
    def git(*arguments):
        options = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *options, *arguments], check=True)

    assert git_state(tmp_path) is None
    git("init", "-q")
    assert git_state(tmp_path) is None, "no commit yet"
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40 and not clean["dirty"]
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == clean | {"dirty": True}
    assert environment(torch.device("cpu"))["world_size"] >= 1
