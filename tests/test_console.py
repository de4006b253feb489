"""What a run says: at its start, while it trains, at its end; with a terminal and without."""

import importlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest

from config import CFG, DemoCFG
from tests.conftest import ROOT, TINY
from tests.test_formats import flat
from tests.training import metrics, resume
from train import console
from train.engine import train
from utils.cli import settings_types, snapshot

SCRIPT = ROOT / "train" / "train_coco_object_detection.py"


@pytest.fixture
def settings(demo_set, tmp_path):
    return [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", "eval_limit=2"]


def trained(settings, capsys, *more, tasks=("detection",)):
    """The run folder, and what was said."""
    run_dir = train(snapshot(CFG, [*settings, *more]), list(tasks))
    return run_dir, capsys.readouterr().err


def said(text, name):
    """The rest of the one line that begins with `name`."""
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return line.removeprefix(name).strip()


# ---- start -------------------------------------------------------------------------------------


def test_the_start_is_about_ten_lines_that_say_what_will_happen(settings, capsys):
    run_dir, text = trained(settings, capsys, "max_steps=5")
    start = text[: text.index("epoch 1/")]
    assert len(start.splitlines()) <= 11
    assert str(run_dir) in said(start, "run folder") and "tensorboard" in said(start, "run folder")
    assert re.match(r"test_vit, \d+\.\d M parameters, images of 64 x 64$", said(start, "model"))
    assert said(start, "weights") == "new, nothing is pretrained"
    data = "detection on coco: 14 samples to train on, 2 samples to validate on"
    assert said(start, "data") == data
    assert re.match(r"10: \w+(, \w+){5}, …$", said(start, "classes"))
    schedule = "2 epochs of 3 steps, 5 steps; batch 4; lr 0.001, linear, warm-up 2 steps"
    assert said(start, "schedule") == schedule
    assert said(start, "device") == "cpu, float32"


def test_the_folder_of_ones_own_data_is_named_with_its_format(demo_set, tmp_path, monkeypatch):
    folder = flat(demo_set, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    for place in (folder, Path("mine")):
        run = SimpleNamespace(
            cfg=snapshot(CFG, [f"data={place}"]),
            sources={"detection": range(3)},
            eval_sources={"detection": range(2)},
        )
        text = console._data(run, "detection")
        assert text.startswith("detection on mine (Pascal VOC): 3 samples to train on, 2 samples")


def test_only_settings_that_differ_are_listed(settings, capsys):
    _, text = trained(settings, capsys, "max_steps=1", "classes=cat,fish", "augment=false")
    words = said(text, "settings").split()
    assert words[:2] == ["CFG", "with"]
    names = [word.partition("=")[0] for word in words[2:]]
    assert {"encoder", "augment", "classes", "runs_dir"} <= set(names)
    assert len(names) < 30 < len(settings_types(CFG))
    again = snapshot(CFG, words[2:])  # as --set takes it
    assert again.classes == ("cat", "fish") and again.augment is False


def test_settings_of_a_preset_are_no_difference():
    base, changed = console.changed_settings(snapshot(DemoCFG, ["lr=1", "img_size=128"]))
    assert base is DemoCFG and changed == ["lr=1.0"]


def test_the_start_says_how_much_comes_from_other_weights(settings, capsys, tiny_weights):
    _, text = trained(settings, capsys, "max_steps=1", f"init_weights={tiny_weights}")
    assert said(text, "weights") == f"{tiny_weights}, which gives 100% of the parameters"


# ---- while it trains ---------------------------------------------------------------------------


def test_every_epoch_leaves_a_line_with_its_loss_and_validation(settings, capsys):
    run_dir, text = trained(settings, capsys, "epochs=3", "eval_every=2")
    lines = [line for line in text.splitlines() if line.startswith("epoch ")]
    number = r"\d+\.\d\d\d"
    figures = rf"  detection AP {number}, AP50 {number}, AP75 {number}"
    for i, (line, more) in enumerate(zip(lines, ("", figures, figures), strict=True), 1):
        plain = rf"epoch {i}/3  step {3 * i}/9  loss {number}  \d+ s"
        assert re.fullmatch(plain + more + "(  best)?" * bool(more), line), line
    points = [row["train/loss"] for row in metrics(run_dir) if "train/loss" in row]
    assert f"loss {sum(points[:3]) / 3:.3f}" in lines[0]


def test_several_tasks_have_a_figure_each(multi_settings, tmp_path, capsys):
    settings = [*multi_settings, f"runs_dir={tmp_path}", "max_steps=1", "eval_limit=2"]
    run_dir, text = trained(settings, capsys, tasks=["detection", "captioning"])
    (line,) = (line for line in text.splitlines() if line.startswith("epoch 1/1"))
    assert re.search(r"  detection AP \d\.\d{3}  captioning BLEU-4 \d\.\d{3}  best$", line)
    assert said(text, "best:").startswith("mean of the 2 tasks ")
    assert "infer_single_image_multi_task.py" in said(text, "use it:")
    assert "--task detection,captioning " in said(text, "evaluate it:")


def test_progress_without_a_terminal_is_a_plain_line_now_and_then(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: clock.now)
    run = SimpleNamespace(
        world=SimpleNamespace(is_main=True),
        state=SimpleNamespace(step=7),
        steps=SimpleNamespace(epoch=5, total=12),
    )
    progress = console.Progress(run)
    values = {"train/loss": 2.5, "train/lr": 3e-5, "train/images_per_s": 123.4}
    for clock.now in (1, 29, 31, 40, 62):
        progress.step()
        progress.point(values)
    progress.close()
    line = "epoch 2/3  step 7/12  loss 2.500  lr 3.00e-05  images/s 123\n"
    assert capsys.readouterr().err == 2 * line


def test_without_a_terminal_there_is_no_bar(settings, tmp_path):
    command = [sys.executable, SCRIPT, "--set", *settings, "max_steps=2"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == b""
    assert b"\r" not in done.stderr and b"%|" not in done.stderr
    assert done.stderr.count(b"epoch 1/1  step 2/2") == 1


def test_on_a_terminal_a_bar_shows_loss_rate_and_speed(settings, tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    command = [sys.executable, SCRIPT, "--set", *settings, "max_steps=3"]
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL) as process:
        os.close(theirs)
        text = b""
        try:
            while part := os.read(ours, 65536):
                text += part
        except OSError:  # the end of a terminal, on Linux
            pass
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"\r.*3/3 .*loss=\d.*, lr=\d.*, images/s=\d", text)
    assert re.search(rb"epoch 1/1  step 3/3  loss ", text), "the line that stays"


# ---- end ---------------------------------------------------------------------------------------


def test_the_end_names_the_best_figure_its_step_and_its_file(settings, capsys):
    run_dir, text = trained(settings, capsys, "epochs=2")
    first = said(text, "best:")
    assert re.match(r"detection AP \d\.\d{3} at step [36], ", first)
    assert first.endswith(str(run_dir / "best.safetensors"))
    rows = {row["step"]: row["val/detection/AP"] for row in metrics(run_dir) if len(row) > 5
            and "val/detection/AP" in row}  # fmt: skip
    best = max(rows, key=rows.get)  # the first of several
    assert f"detection AP {rows[best]:.3f} at step {best}, " in first
    resume([], ["detection"], run_dir)  # it has ended: nothing new
    assert said(capsys.readouterr().err, "best:") == first


@pytest.mark.parametrize("task", ["detection", "segmentation", "keypoint", "captioning", "voc"])
def test_the_commands_at_the_end_work_when_they_are_pasted(
    multi_settings, demo_set, tmp_path, capsys, monkeypatch, task
):
    monkeypatch.chdir(tmp_path)
    settings = [*multi_settings, f"runs_dir={tmp_path / 'runs'}", "max_steps=1", "eval_limit=2"]
    settings += ["seg_samples=1", "train_limit=8", "batch_size=2"]
    if task == "voc":
        settings += ["dataset=voc", f"voc_root={demo_set}", "voc_sets=2012:train"]
        settings += ["voc_eval_sets=2012:val"]
    name = "detection" if task == "voc" else task
    run_dir, text = trained(settings, capsys, tasks=[name])
    evaluate, infer = (shlex.split(said(text, label)) for label in ("evaluate it:", "use it:"))
    for words in (evaluate, infer):
        assert shutil.which(words[0]) and Path(words[1]).is_file()
        assert str((run_dir / "best.safetensors").relative_to(tmp_path)) in words
        script = importlib.import_module(f"infer.{Path(words[1]).stem}")
        script.main(words[2:])
        assert capsys.readouterr().out
    figure = said(text, "best:").split()[2]
    (file,) = (tmp_path / "results").rglob("metrics.json")
    value = next(iter(json.loads(file.read_text()).values()))
    assert figure == (f"{value:.3f}" if value >= 0 else "-")


def test_a_command_needs_nothing_but_a_shell(settings, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, text = trained(settings, capsys, "max_steps=1")
    done = subprocess.run(said(text, "use it:"), shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr
