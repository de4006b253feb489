"""Checkpoints: whole or not there, the newest few kept, exact; what a kill leaves is no trap."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kill_test import compare, kill_test
from config import CFG
from tests.conftest import TINY
from tests.training import StopAt, compare_apart_from_best, losses, resume, state_of
from train import train_coco_object_detection
from train.checkpoint import (
    Saver,
    checkpoints,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from train.engine import train
from train.guards import Stopped
from utils.cli import snapshot
from utils.errors import UserError
from utils.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
DETECTION = ["detection"]


@pytest.fixture
def settings(demo_set, tmp_path):
    return [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", "eval_limit=1"]


def settings_of(overrides):
    return dict(item.split("=", 1) for item in overrides)


@pytest.fixture
def state(settings):
    return state_of(settings, DETECTION)


@pytest.fixture
def two(state, tmp_path):
    """A folder with the checkpoints of steps 4 and 2, newest first."""
    for state.step in (2, 4):
        save_checkpoint(tmp_path, state, keep=2)
    return tmp_path


# ---- exact resume ------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 3])  # frozen; at the end of an epoch, not evaluated yet
def test_everything_continues_bit_for_bit(settings, monkeypatch, stop):
    overrides = [*settings, "drop_units=0.1", "ema_decay=0.9", "layer_decay=0.8"]
    overrides += ["freeze_encoder_steps=2", "keep_checkpoints=1", "max_steps=4"]
    whole = train(snapshot(CFG, overrides), DETECTION)
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.StopSignal", lambda _: StopAt(stop))
        part = train(snapshot(CFG, overrides), DETECTION)
    assert len(losses(part)) == stop
    torch.rand(7)  # whatever happens in between
    assert resume(["num_workers=2"], DETECTION, part) == part
    assert compare_apart_from_best(whole, part) == []


def test_the_scale_of_fp16_continues_too(settings, monkeypatch):
    overrides = [*settings, "amp=fp16", "ema_decay=0.9", "max_steps=4"]
    whole = train(snapshot(CFG, overrides), DETECTION)
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.StopSignal", lambda _: StopAt(2))
        part = train(snapshot(CFG, overrides), DETECTION)
    saved = torch.load(part / "last.ckpt", weights_only=True)
    assert saved["scaler"]["scale"] > 1 and saved["scaler"]["_growth_tracker"] == 2
    resume([], DETECTION, part)
    assert compare_apart_from_best(whole, part) == []


@pytest.mark.parametrize(("before", "after"), [("off", "fp16"), ("fp16", "off")])
def test_another_gpu_may_need_another_precision(settings, monkeypatch, before, after):
    """`amp=auto` is bfloat16 on one and fp16, with a scale, on the next."""
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.StopSignal", lambda _: StopAt(2))
        run = train(snapshot(CFG, [*settings, f"amp={before}", "max_steps=4"]), DETECTION)
    resume([f"amp={after}"], DETECTION, run)
    saved = torch.load(run / "last.ckpt", weights_only=True)
    assert saved["step"] == 4 and bool(saved["scaler"]) == (after == "fp16")


def stop_at_once(_):
    raise Stopped("asked")


def test_a_resumed_run_that_is_stopped_at_once_writes_nothing_again(settings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.StopSignal", lambda _: StopAt(2))
        run = train(snapshot(CFG, [*settings, "max_steps=4"]), DETECTION)
        before = (run / "last.ckpt").stat().st_mtime_ns
        patch.setattr("train.engine.train_epoch", stop_at_once)
        resume([], DETECTION, run)
    assert (run / "last.ckpt").stat().st_mtime_ns == before


def test_batches_may_be_cut_otherwise_but_steps_keep_their_images(settings, tmp_path):
    """Halving the batch and accumulating two of them is what to do about too little memory."""
    old = state_of([*settings, "batch_size=4"], DETECTION)
    ids = [old.streams["detection"].next().image_ids for _ in range(3)]
    one, other = (
        state_of([*settings, f"batch_size={size}", f"accumulate_steps={4 // size}"], DETECTION)
        for size in (2, 1)
    )
    old = state_of([*settings, "batch_size=4"], DETECTION)
    old.streams["detection"].next()
    save_checkpoint(tmp_path, old)
    for new in (one, other):
        load_checkpoint(tmp_path, new)
        stream = new.streams["detection"]
        again = [i for _ in range(8 // stream.batch_size) for i in stream.next().image_ids]
        assert again == ids[1] + ids[2]
    with pytest.raises(UserError, match="its steps have 4 images, these would have 2"):
        load_checkpoint(tmp_path, state_of([*settings, "batch_size=2"], DETECTION))


def test_how_often_is_saved_changes_nothing(settings):
    runs = [
        train(snapshot(CFG, [*settings, "ema_decay=0.9", "max_steps=4", *more]), DETECTION)
        for more in (("save_steps=1",), ("save_minutes=1e-9", "keep_checkpoints=4"))
    ]
    assert compare(*runs) == []
    assert [len(checkpoints(run)) for run in runs] == [2, 4]
    assert torch.load(runs[0] / "last-1.ckpt", weights_only=True)["step"] == 3


def test_a_finished_run_is_left_as_it_is(settings, tmp_path):
    argv = ["--resume", "auto", "--set", *settings, "max_steps=1"]
    run_dir = train_coco_object_detection.main(argv)
    before = (run_dir / "last.ckpt").stat().st_mtime_ns
    assert train_coco_object_detection.main(argv) == run_dir
    assert (run_dir / "last.ckpt").stat().st_mtime_ns == before
    assert len(checkpoints(run_dir)) == 1


def test_auto_without_a_run_starts_one_and_says_so(settings, capsys):
    run_dir = resume([*settings, "max_steps=1"], DETECTION, "auto")
    assert "no run to resume" in capsys.readouterr().err and (run_dir / "last.ckpt").is_file()


def test_rates_of_a_resumed_run_follow_its_settings(settings, tmp_path):
    old = state_of(settings, DETECTION)
    save_checkpoint(tmp_path, old)
    new = state_of([*settings, "lr=5", "weight_decay=0.3"], DETECTION)
    load_checkpoint(tmp_path, new)
    again = state_of([*settings, "lr=5"], DETECTION)
    assert new.scheduler.base_lrs == again.scheduler.base_lrs == [5]
    for state in (new, again):
        state.optimizer.step()
        state.scheduler.step()
    assert new.scheduler.get_last_lr() == again.scheduler.get_last_lr() != [0]
    assert new.optimizer.param_groups[0]["weight_decay"] == 0.3


# ---- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(state, tmp_path, keep):
    for state.step in range(1, 6):
        save_checkpoint(tmp_path, state, keep=keep)
    steps = [torch.load(path, weights_only=True)["step"] for path in checkpoints(tmp_path)]
    assert steps == [5, 4, 3][:keep] and len(list(tmp_path.iterdir())) == keep
    save_checkpoint(tmp_path, state, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # within a tensor: only a checksum can tell
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"hello"),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut": _cut,
    "flipped": _flip,
    "other": lambda path: torch.save([1, 2], path),
    "pickle": lambda path: torch.save({"step": StopAt(1)}, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_told_and_the_one_before_used(two, state, capsys, damage):
    DAMAGES[damage](two / "last.ckpt")
    state.step = 0
    assert load_checkpoint(two, state) == two / "last-1.ckpt" and state.step == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "last.ckpt is damaged" in told[0]
    DAMAGES[damage](two / "last-1.ckpt")
    with pytest.raises(UserError, match=r"all its checkpoints \(1\) are damaged") as error:
        load_checkpoint(two, state)
    assert "\n" not in str(error.value)


def test_no_whole_checkpoint_makes_room_for_a_damaged_one(two, state):
    DAMAGES["cut"](two / "last.ckpt")
    load_checkpoint(two, state)
    state.step = 3
    save_checkpoint(two, state, keep=2)
    assert (two / "last.ckpt.damaged").is_file()
    steps = [torch.load(path, weights_only=True)["step"] for path in checkpoints(two)]
    assert steps == [3, 2]


def test_weights_are_there_before_the_checkpoint_says_so(state, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    saver = Saver(tmp_path, keep=1, steps=0, minutes=0)
    monkeypatch.setattr("train.checkpoint.save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        saver.save(state)
    assert (tmp_path / "last.safetensors").is_file()


def test_an_epoch_is_saved_before_it_is_evaluated(settings, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    overrides = [*settings, "save_minutes=60", "keep_checkpoints=3", "max_steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(snapshot(CFG, overrides), DETECTION)
    (run_dir,) = (Path(settings_of(settings)["runs_dir"]) / "detection").iterdir()
    (saved,) = checkpoints(run_dir)
    assert torch.load(saved, weights_only=True)["step"] == 1
    resume([], DETECTION, run_dir)
    assert checkpoints(run_dir) == [saved], "that of the same step was replaced"
    assert torch.load(saved, weights_only=True)["evaluated"] == 1


def test_a_kill_between_two_renames_loses_nothing(two, state):
    (two / "last.ckpt").replace(two / "last-1.ckpt")
    (two / ".last.99.ckpt").write_bytes(b"half")  # as they were called before
    (two / "best").mkdir()
    for path in (two / "last.ckpt", two / "last-1.ckpt", two / "best" / "metrics.json"):
        with pytest.raises(UserError), atomic_path(path) as temporary:
            raise OSError("killed")
        temporary.write_bytes(b"half")
    remove_leftovers(two)
    assert load_checkpoint(two, state).name == "last-1.ckpt" and state.step == 4
    assert {path.name for path in two.rglob("*")} == {"last-1.ckpt", "best"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dim=64", "the model of a run cannot change: dim is 32 there and 64 here"),
        ("num_layers=1", "num_layers is 2 there and 1 here"),
        ("num_bins=500", "num_bins is 1000 there, 500 here"),
        ("classes=cat,fish", "it knows 1 person, .* the data has only 2 of them"),
        ("encoder_lr_factor=0.5", "parameter groups"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(two, settings, override, message):
    with pytest.raises(UserError, match=f"cannot continue from .*last.ckpt.*{message}") as error:
        load_checkpoint(two, state_of([*settings, override], DETECTION))
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_version_is_refused(two, state):
    torch.save({"step": 1}, two / "last.ckpt")
    with pytest.raises(UserError, match="another version"):
        load_checkpoint(two, state)


def test_an_unwritable_folder_is_one_line(state, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_checkpoint(tmp_path / "file", state)


def test_when_to_save(tmp_path):
    by_steps = Saver(tmp_path, keep=1, steps=4, minutes=60)
    assert [step for step in range(1, 10) if by_steps.due(step)] == [4, 8]
    every_epoch = Saver(tmp_path, keep=1, steps=0, minutes=0)
    assert every_epoch.due(3, epoch_end=True) and not every_epoch.due(3)
    assert Saver(tmp_path, keep=1, steps=0, minutes=1e-9).due(1)


# ---- killed ------------------------------------------------------------------------------------

SUICIDAL = """
import os, signal, sys
sys.path.insert(0, {root!r})
from train import engine, train_coco_object_detection
from utils.cli import run
step = engine.train_step

def step_or_die(state, *more):
    if state.step == 4 and not os.path.exists({marker!r}):
        open({marker!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(state, *more)

engine.train_step = step_or_die
run(train_coco_object_detection.main)
"""


@pytest.mark.slow
def test_torchrun_restarts_a_killed_worker_where_it_was(settings, tmp_path):
    overrides = [*settings, "ema_decay=0.9", "save_steps=3"]
    whole = train(snapshot(CFG, overrides), DETECTION)
    marker, script = tmp_path / "died", tmp_path / "script.py"
    script.write_text(SUICIDAL.format(root=str(ROOT), marker=str(marker)))
    runs = tmp_path / "killed"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "1", "--max-restarts", "1", script, "--resume", "auto"]
    command += ["--set", *overrides, f"runs_dir={runs}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (part,) = (runs / "detection").iterdir()
    assert marker.exists() and "from step 3" in done.stderr
    assert compare(whole, part) == []


@pytest.mark.slow
def test_a_killed_run_ends_like_one_left_alone(tmp_path):
    assert kill_test(tmp_path, kills=3, steps=120, seed=1) == []


def test_the_comparison_sees_a_difference(tmp_path, settings):
    run = train(snapshot(CFG, [*settings, "ema_decay=0.9", "max_steps=1"]), DETECTION)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert compare(run, other) == []
    values = torch.load(other / "last.ckpt", weights_only=True)
    values["rng"][0]["python"] = (3, (1, 2), None)
    values["model"]["decoder.output_bias"][5] += 1e-7
    torch.save(values, other / "last.ckpt")
    names = compare(run, other)
    assert any("rng" in name for name in names) and "/model/decoder.output_bias" in names
