"""How a run ends before its end: signals are heard at once, what was not done is done again."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.kill_test import compare
from config import CFG
from infer.tasks import evaluate_task
from tests.conftest import TINY
from tests.training import StopAt, losses, metrics, resume
from train.engine import train
from train.guards import Stopped, StopSignal
from train.state import TaskStream
from utils.cli import snapshot

TASKS = ["detection", "segmentation"]
MORE = ("eval_limit=2", "ema_decay=0.9")
FIVE_STEPS = ("drop_units=0.1", "max_steps=5")


@pytest.fixture(autouse=True)
def hang_up():
    """Also where the tests were started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def settings(multi_settings, tmp_path):
    return [*multi_settings, f"runs_dir={tmp_path / 'runs'}", *MORE]


@pytest.fixture(scope="module")
def whole_run(multi_settings, tmp_path_factory):
    """A run that heard no signal."""
    folder = tmp_path_factory.mktemp("whole")
    return train(snapshot(CFG, [*multi_settings, f"runs_dir={folder}", *MORE, *FIVE_STEPS]), TASKS)


def signalled(number=signal.SIGTERM):
    """Sends this process a signal, then waits as for data that never come."""
    os.kill(os.getpid(), number)
    time.sleep(60)
    raise AssertionError("nobody heard the signal")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_heard_while_waiting_for_data(
    settings, whole_run, tmp_path, monkeypatch, number
):
    """One stream has delivered its batch of the step, the other never does."""
    following, calls = TaskStream.next, []

    def wait_in_the_end(stream):
        calls.append(stream)
        return signalled(number) if len(calls) == 6 else following(stream)

    with monkeypatch.context() as patch:
        patch.setattr(TaskStream, "next", wait_in_the_end)
        began = time.monotonic()
        with pytest.raises(SystemExit) as left:
            train(snapshot(CFG, [*settings, *FIVE_STEPS]), TASKS)
        assert time.monotonic() - began < 50 and left.value.code == 128 + number
    (part,) = (tmp_path / "runs").glob("*/*/")
    assert torch.load(part / "last.ckpt", weights_only=True)["step"] == 2
    resume([], TASKS, part)
    assert compare(whole_run, part) == []


def test_a_signal_is_heard_during_an_evaluation_which_is_done_again(settings, monkeypatch):
    overrides = [*settings, "max_steps=3"]
    whole = train(snapshot(CFG, overrides), TASKS)
    with monkeypatch.context() as patch:
        patch.setattr("train.validate.evaluate_task", lambda *_, **__: signalled())
        with pytest.raises(SystemExit):
            train(snapshot(CFG, overrides), TASKS)
    (part,) = set(whole.parent.iterdir()) - {whole}
    saved = torch.load(part / "last.ckpt", weights_only=True)
    assert (saved["step"], saved["evaluated"]) == (3, -1)
    assert not (part / "best.safetensors").exists()
    resume([], TASKS, part)
    assert compare(whole, part) == []


def test_a_signal_between_two_contexts_is_heard_in_the_next_and_elsewhere_kept():
    stop = StopSignal(0)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason() == "SIGTERM"
        with pytest.raises(Stopped), stop.interrupts():
            raise AssertionError("it was heard before")
        os.kill(os.getpid(), signal.SIGHUP)  # a shell sends more than one kind
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    finally:
        stop.restore()


def test_a_closed_terminal_does_not_end_what_ignores_it():
    """As `nohup` starts a program."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignal(0)
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.reason()
    finally:
        stop.restore()
        signal.signal(signal.SIGHUP, before)


# ---- the time is up ----------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 3, 4])  # within an epoch of three steps, and at its end
def test_a_run_whose_time_is_up_is_evaluated(settings, monkeypatch, stop):
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.StopSignal", lambda _: StopAt(stop))
        run = train(snapshot(CFG, settings), TASKS)
    assert (run / "best.safetensors").is_file()
    rows = [row for row in metrics(run) if any(name.startswith("val/") for name in row)]
    assert {row["step"] for row in rows} >= {stop}
    saved = torch.load(run / "last.ckpt", weights_only=True)
    assert saved["evaluated"] == (stop // 3 * 3 or -1), "an extra look is not a due one"


def test_the_best_weights_of_a_run_whose_time_was_up_are_not_replaced_by_worse(
    settings, monkeypatch
):
    """The extra evaluation finds 0.9, the due one of the run that goes on 0.1."""
    real, values = evaluate_task, iter([0.9] * len(TASKS) + [0.1] * 99)

    def scored(*args, **kwargs):
        report, value = real(*args, **kwargs), next(values)
        return replace(report, metrics=dict.fromkeys(report.metrics, value))

    monkeypatch.setattr("train.validate.evaluate_task", scored)
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.StopSignal", lambda _: StopAt(1))
        run = train(snapshot(CFG, [*settings, "max_steps=3"]), TASKS)
    best = (run / "best.safetensors").read_bytes()
    resume([], TASKS, run)
    saved = torch.load(run / "last.ckpt", weights_only=True)
    assert (saved["step"], saved["evaluated"], saved["best_step"]) == (3, 3, 1)
    assert saved["best"] == pytest.approx(0.9)
    assert (run / "best.safetensors").read_bytes() == best


# ---- curves ------------------------------------------------------------------------------------


def test_every_point_of_the_curves_averages_as_many_steps(demo_set, tmp_path):
    """Epochs have three steps, points four."""
    common = [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path}", "epochs=4", "eval_every=4"]
    each, fourth = (
        train(snapshot(CFG, [*common, "eval_limit=1", f"log_every={every}"]), ["detection"])
        for every in (1, 4)
    )
    assert [row["step"] for row in metrics(fourth) if "train/loss" in row] == [4, 8, 12]
    windows = np.reshape(losses(each), (3, 4)).mean(1)
    np.testing.assert_allclose(losses(fourth), windows, atol=1e-5)
    values = [v for row in metrics(each) for name, v in row.items() if name.startswith("val/")]
    assert values and min(values) >= 0, "-1 says that there is no object of a size"


def test_a_signal_in_a_finalizer_is_heard_after_it(capsys):
    """Python prints what a finalizer raises as a traceback, and drops it."""
    ended = []

    class Workers:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append(True)

    stop = StopSignal(0)
    try:
        with stop.interrupts():
            Workers()
        assert ended and stop.reason() == "SIGTERM"
        with pytest.raises(Stopped), stop.interrupts():
            pass
    finally:
        stop.restore()
    assert "Traceback" not in capsys.readouterr().err
