"""What curves show and where they go: kinds of tokens, even windows, loggers, the text log."""

import importlib
import json
import sys
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config import CFG
from infer.results import Report
from tests.conftest import TINY
from tests.training import StopAt, metrics, resume, state_of
from train import console, loggers, train_coco_object_detection, train_multi_task
from train.engine import train, train_step
from train.loss import LOSS_KINDS, TokenKinds, batch_loss
from train.run_folder import RunRecords
from train.state import StepRecord
from utils.cli import log, snapshot
from utils.errors import UserError

ALL = ["detection", "segmentation", "keypoint", "captioning"]
DETECTION = ["detection"]


@pytest.fixture
def settings(demo_set, tmp_path):
    return [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", "eval_limit=1"]


@pytest.fixture
def no_validation(monkeypatch):
    monkeypatch.setattr("train.engine.evaluate", lambda *_: {})


# ---- kinds of tokens ---------------------------------------------------------------------------


def test_the_kinds_share_out_the_loss_of_every_task(multi_settings):
    state = state_of([*multi_settings, "drop_units=0", "drop_path=0"], ALL)
    batches = {task: stream.next() for task, stream in state.streams.items()}
    with torch.no_grad():
        expected = {task: batch_loss(state.forward, batch) for task, batch in batches.items()}
    losses, _, kinds = train_step(state, [batches], None, 0.0)
    occurring = {
        "detection": {"coordinates", "classes", "noise", "ends"},
        "segmentation": {"coordinates", "ends"},
        "keypoint": {"coordinates", "invisible"},
        "captioning": {"text", "ends"},
    }
    for task, sums in kinds.items():
        loss, weight = sums.sum(0)
        torch.testing.assert_close(loss / weight, losses[task], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses[task], expected[task], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weight, batches[task].token_weights.sum(), rtol=1e-4, atol=1e-4)
        found = {kind for kind, row in zip(LOSS_KINDS, sums, strict=True) if row[1] > 0}
        assert found <= occurring[task] and len(found) > 0


def test_every_token_is_of_one_kind(multi_settings):
    vocab = state_of(multi_settings, ["captioning"]).token_kinds["captioning"].vocab
    kind_of = {
        vocab.coord0: "coordinates",
        vocab.class0 + 3: "classes",
        vocab.fake: "noise",
        vocab.invisible: "invisible",
        vocab.text0 + 5: "text",
        vocab.text0 + 1: "ends",
        vocab.pad: "ends",
        vocab.separator: "ends",
    }
    targets = torch.tensor(list(kind_of))
    losses, weights = torch.rand(len(targets)), torch.rand(len(targets))
    sums = TokenKinds(vocab, vocab.text0 + 1).sums(losses, weights, targets)
    for number, kind in enumerate(LOSS_KINDS):
        mine = torch.tensor([name == kind for name in kind_of.values()])
        assert sums[number].tolist() == pytest.approx(
            [float((losses * weights)[mine].sum()), float(weights[mine].sum())]
        )


# ---- even windows ------------------------------------------------------------------------------


def points(run_dir, name="train/loss"):
    return {row["step"]: row[name] for row in metrics(run_dir) if name in row}


def test_a_point_is_the_mean_of_the_last_steps_at_the_end_and_after_resume(
    settings, no_validation, monkeypatch
):
    every = train(snapshot(CFG, settings), DETECTION)  # six steps
    overrides = [*settings, "log_every=4"]
    whole = train(snapshot(CFG, overrides), DETECTION)
    single = points(every)
    for name in ("train/loss", "train/grad_norm"):
        single, means = points(every, name), points(whole, name)
        assert list(means) == [4, 6]
        for step, value in means.items():
            last = [single[k] for k in range(step - 3, step + 1)]
            assert value == pytest.approx(np.mean(last), abs=2e-5)
    for stop in (3, 5):
        with monkeypatch.context() as patch:
            patch.setattr("train.engine.StopSignal", lambda _, stop=stop: StopAt(stop))
            part = train(snapshot(CFG, overrides), DETECTION)
        resume([], DETECTION, part)
        for name in metrics(whole)[0]:
            if name != "train/images_per_s":
                assert points(part, name) == points(whole, name), name


def test_a_step_that_was_skipped_counts_nowhere(multi_settings):
    state = state_of([*multi_settings, "log_every=3"], DETECTION)
    rows = []
    for factor in (1.0, float("nan"), 1.0):
        batch = state.streams["detection"].next()
        losses, norm, kinds = train_step(state, [{"detection": batch}], None, 0.0)
        rows.append(
            StepRecord(losses["detection"][None] * factor, norm, factor * kinds["detection"][None])
        )
    state.window.steps.extend(rows)
    means = state.window.means(DETECTION, state.world, {})
    expected = float(rows[0].losses + rows[2].losses) / 2
    assert means["train/loss"] == pytest.approx(expected)
    weights = rows[0].kinds + rows[2].kinds
    loss, weight = weights[0, 0].tolist()
    assert means["train/loss/detection/coordinates"] == pytest.approx(loss / weight)


# ---- what is shown of an evaluation ------------------------------------------------------------


def test_a_size_without_objects_is_a_dash_and_no_point(settings, capsys):
    report = Report({"AP": 0.25, "AP50": -1.0}, None, "", [])
    assert console.figures_text({"detection": report}) == "  detection AP 0.250, AP50 -"
    run_dir = train(snapshot(CFG, [*settings, "max_steps=1"]), DETECTION)
    found = json.loads((run_dir / "best" / "metrics.json").read_text())
    assert -1 in found.values(), "or this tests nothing"
    assert all(v >= 0 for row in metrics(run_dir) for k, v in row.items() if k.startswith("val/"))


def test_the_best_step_is_marked(settings, capsys):
    run_dir = train(snapshot(CFG, settings), DETECTION)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    best, steps = points(run_dir, "val/best"), points(run_dir, "val/best_step")
    values = points(run_dir, "val/detection/AP")
    assert list(best) == list(values) == [3, 6]
    assert best[6] == max(values.values()) and steps[6] == max(values, key=values.get)
    marked = [line.endswith("  best") for line in lines]
    assert marked == [steps[step] == step for step in (3, 6)]
    assert (run_dir / "pictures" / "best_detection.png").is_file()


# ---- loggers -----------------------------------------------------------------------------------


def test_tensorboard_has_curves_pictures_and_texts(settings):
    run_dir = train(snapshot(CFG, [*settings, "max_steps=1"]), DETECTION)
    events = EventAccumulator(str(run_dir), {"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"train/detection", "val/detection"}
    for name in ("train/detection", "val/detection"):
        image = events.Images(name)[-1]
        file = run_dir / "pictures" / f"{name.replace('/', '_')}.png"
        assert file.read_bytes()[:4] == image.encoded_image_string[:4] == b"\x89PNG"
    assert "train/loss/detection/coordinates" in events.Tags()["scalars"]
    assert any("settings" in name for name in events.Tags()["tensors"])


def test_without_a_logger_the_folder_has_it_all(settings):
    run_dir = train(snapshot(CFG, [*settings, "max_steps=1", "logger=none"]), DETECTION)
    assert not list(run_dir.glob("events.*")) and points(run_dir)
    names = {path.name for path in (run_dir / "pictures").iterdir()}
    assert {"train_detection.png", "val_detection.png"} <= names


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_logger_that_is_not_installed_is_one_line_before_any_data(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()  # results of earlier runs, in the folder that one works in
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    overrides = [*TINY, "coco_root=/nowhere", f"runs_dir={tmp_path / 'runs'}"]
    with pytest.raises(UserError, match=f"needs the package {name}: pip install {name}") as error:
        train(snapshot(CFG, [*overrides, f"logger=tensorboard,{name}"]), DETECTION)
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_loggers_are_named_with_commas():
    assert loggers.logger_names("none") == []
    assert loggers.logger_names("wandb,tensorboard,wandb") == ["wandb", "tensorboard"]
    for wrong in ("mlflow", "wandb,", "none,wandb", "wandb trackio"):
        with pytest.raises(UserError, match="logger must be none, or some of"):
            snapshot(CFG, [f"logger={wrong}"])


def write_records(folder, logger):
    """A run of two sittings."""
    for step in (0, 2):
        records = RunRecords(folder, step=step, logger=logger, settings={"lr": 0.1})
        records.scalars(step + 1, {"train/loss": 0.5})
        records.image(step + 1, "val/detection", np.zeros((8, 8, 3), np.uint8))
        records.text(step + 1, "best", "AP 0.5 at step 1")
        records.close()
        time.sleep(1.1)  # wandb names a folder by the second


def test_wandb_keeps_a_run_without_a_network(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb").teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "detection" / "2026-01-31_12-00-00"
    folder.mkdir(parents=True)
    loggers.check_loggers("wandb")
    write_records(folder, "wandb")
    kept = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert kept and all(path.stat().st_size > 100 for path in kept)
    assert len({path.name for path in kept}) == 1, "the same run goes on"
    assert list(folder.rglob("media/images/val/detection*.png"))
    out, err = capfd.readouterr()
    assert out == "" and "wandb sync" in err


def test_wandb_without_an_account_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("wandb").teardown()
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(UserError, match="finds no API key; run `wandb login`, or set WANDB_MODE"):
        loggers.check_loggers("wandb")


def test_trackio_keeps_a_run_on_this_machine(tmp_path, monkeypatch, capfd):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads TRACKIO_DIR when it is imported
    folder = tmp_path / "detection" / "2026-01-31_12-00-00"
    folder.mkdir(parents=True)
    write_records(folder, "trackio")
    api = importlib.import_module("trackio").Api()
    (run,) = api.runs("pix2seq")
    assert run.name == "detection-2026-01-31_12-00-00"
    assert list((tmp_path / "store").rglob("*.png"))
    assert capfd.readouterr().out == ""


# ---- the text log ------------------------------------------------------------------------------


def test_the_log_is_what_the_terminal_says_also_after_resume(settings, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.StopSignal", lambda _: StopAt(4))
        run_dir = train(snapshot(CFG, settings), DETECTION)
    said = capsys.readouterr().err
    resume([], DETECTION, run_dir)
    said += capsys.readouterr().err
    lines = (run_dir / "log.txt").read_text().splitlines()
    heads = [line for line in lines if line.startswith("== 20")]
    assert len(heads) == 2 and lines[0] == heads[0]
    assert [line for line in lines if line not in heads] == said.splitlines()
    log("nothing of this run")
    assert "nothing of this run" not in (run_dir / "log.txt").read_text()


def test_the_log_ends_with_the_error(settings, tmp_path, no_validation):
    with pytest.raises(UserError) as error:
        train(snapshot(CFG, [*settings, "lr=1e6", "max_nonfinite=1"]), DETECTION)
    (path,) = tmp_path.rglob("log.txt")
    assert path.read_text().splitlines()[-1] == f"error: {error.value}"


# ---- a run from another run's settings ---------------------------------------------------------


def test_a_run_starts_from_the_settings_of_another(settings, no_validation, capsys):
    first = train_coco_object_detection.main(["--set", *settings, "max_steps=1"])
    file = first / "settings.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"of_another_version": 1, "finetune": True}))
    capsys.readouterr()
    second = train_coco_object_detection.main(["--config", str(file), "--set", "max_steps=2"])
    assert second != first and len(points(second)) == 2
    again = json.loads((second / "settings.json").read_text())
    assert again == values | {"max_steps": 2}
    said = capsys.readouterr().err.splitlines()[0]
    assert str(file) in said and "a run of detection" in said and "max_steps=2" in said
    assert "no settings any more: of_another_version" in said
    assert points(second)[1] == points(first)[1]


def test_tasks_and_captions_come_with_the_settings_of_a_run(
    multi_settings, tmp_path, no_validation, caption_vocab
):
    own = tmp_path / "vocab.json"
    own.write_bytes(caption_vocab.read_bytes())
    overrides = [*multi_settings, f"runs_dir={tmp_path / 'runs'}", f"caption_vocab={own}"]
    tasks = "detection,captioning"
    first = train_multi_task.main(["--task", tasks, "--set", *overrides, "max_steps=1"])
    own.unlink()
    second = train_multi_task.main(["--config", str(first / "settings.json")])
    assert json.loads((second / "settings.json").read_text())["tasks"] == tasks.split(",")
    assert second.parent == first.parent and second != first


def test_a_typo_in_a_file_of_ones_own_is_still_told(tmp_path):
    (tmp_path / "mine.json").write_text('{"learning": 1}')
    with pytest.raises(UserError, match="no setting 'learning'"):
        train_coco_object_detection.main(["--config", str(tmp_path / "mine.json")])
