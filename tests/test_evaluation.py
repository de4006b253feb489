"""Evaluation: defaults are those of the run, the first process scores, masks are made beside."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from config import CFG
from dataset.tasks import build_source
from infer import evaluate, segmentation
from infer.batches import EvalLoop, evaluate_all
from infer.predictor import Predictor
from infer.segmentation import SegmentationOptions
from infer.tasks import evaluate_task
from tests.conftest import ROOT, TINY
from tests.test_loader import Pictures
from train.engine import train
from utils.cli import snapshot
from utils.errors import UserError
from utils.files import file_sha256


@pytest.fixture(scope="module")
def run_dir(demo_set, tmp_path_factory):
    """A run on VOC's layout."""
    runs = tmp_path_factory.mktemp("runs")
    overrides = [*TINY, "dataset=voc", f"voc_root={demo_set}", "voc_sets=2012:train"]
    overrides += ["voc_eval_sets=2012:val", f"runs_dir={runs}", "epochs=1", "top_p=0.9"]
    return train(snapshot(CFG, overrides), ["detection"])


# ---- defaults ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["best", "last"])
def test_weights_are_evaluated_as_their_run_did(run_dir, tmp_path, capsys, name):
    out = tmp_path / "out"
    weights = str(run_dir / f"{name}.safetensors")
    evaluate.main(["--no-report", "--weights", weights, "--out-dir", str(out)])
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("settings of"))
    assert str(run_dir) in line and "dataset=voc" in line and "voc_eval_sets=2012:val" in line
    figures = [json.loads((d / "metrics.json").read_text()) for d in (out, run_dir / "best")]
    record = figures[0].pop("weights")
    assert record == {"name": weights, "revision": None, "sha256": file_sha256(Path(weights))}
    assert figures[0] == figures[1]


def test_command_line_and_config_come_before_the_run(run_dir, demo_set, tmp_path, capsys):
    weights, config = str(run_dir / "best.safetensors"), tmp_path / "config.json"
    config.write_text(json.dumps({"dataset": "coco", "coco_root": str(demo_set)}))
    more = ["--config", str(config), "--set", "eval_limit=2", "--out-dir", str(tmp_path / "out")]
    evaluate.main(["--no-report", "--weights", weights, *more])
    assert "dataset=coco" in capsys.readouterr().err
    assert "AP75" in json.loads((tmp_path / "out" / "metrics.json").read_text())


@pytest.mark.parametrize("content", ['{"lr": "high"}', "[1]", '{"tasks": 3}', '{"tasks": [1]}'])
def test_settings_of_another_program_do_not_count(run_dir, tmp_path, content):
    shutil.copy(run_dir / "best.safetensors", tmp_path / "w.safetensors")
    (tmp_path / "settings.json").write_text(content)
    assert evaluate.settings_beside(tmp_path / "w.safetensors") is None
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match="cannot read .*settings.json"):
        evaluate.settings_beside(tmp_path / "w.safetensors")


def test_the_settings_of_a_run_are_found_in_the_home_folder(run_dir, monkeypatch):
    """`--weights=~/RUN`: a shell leaves that to the program."""
    monkeypatch.setenv("HOME", str(run_dir.parent))
    settings = evaluate.settings_beside(Path("~") / run_dir.name)
    assert settings == evaluate.settings_beside(run_dir) is not None


def test_the_place_for_the_results_is_tried_before_the_weights(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/out"):
        evaluate.main(["--weights", "none", "--out-dir", str(tmp_path / "file" / "out")])


# ---- processes ---------------------------------------------------------------------------------


def test_the_first_process_scores_and_tells_the_others():
    """The rows of the results, hundreds of megabytes of COCO's, stay where they are needed."""
    told = []

    def world(rank, heard=None):
        def collect(value):
            return [value, {}] if rank == 0 else []

        def broadcast(value):
            told.append(value)
            return value or heard

        return SimpleNamespace(
            rank=rank, size=2, is_main=rank == 0, collect=collect, broadcast=broadcast
        )

    def score(found):
        assert set(found) == {100, 102}, "every second batch"
        return evaluate_report(len(found))

    def predict(batch):
        return batch.image_ids

    first = evaluate_all(Pictures(4), predict, score, EvalLoop(1, world=world(0)))
    assert first.results == [{"image_id": 1}] * 2 and told[0].results == []
    other = evaluate_all(
        Pictures(4), predict, lambda _: 1 / 0, EvalLoop(1, world=world(1, told[0]))
    )
    assert other.metrics == first.metrics and other.results == []


def evaluate_report(count: int):
    from infer.results import Report

    return Report({"AP": 0.5}, None, "", [{"image_id": 1}] * count)


@pytest.mark.slow
def test_torchrun_shares_the_images_and_prints_once(demo_set, multi_weights, tmp_path):
    arguments = [ROOT / "infer" / "evaluate.py", "--task", "detection,captioning", "--weights"]
    arguments += [multi_weights, "--set", f"coco_root={demo_set}", "eval_limit=6"]
    arguments += ["eval_batch_size=2", "num_workers=1", "device=cpu", "--out-dir"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    outputs = []
    for name, words in (("one", []), ("two", torchrun)):
        command = [sys.executable, *words, *arguments, tmp_path / name]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=240,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    for file in (tmp_path / "one").rglob("*.*"):
        other = tmp_path / "two" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == other.read_bytes(), file.name


# ---- masks -------------------------------------------------------------------------------------


@pytest.fixture
def predictor(multi_weights):
    """Masks of a model that has learned nothing must still have an area."""
    predictor = Predictor(multi_weights)
    with torch.no_grad():
        predictor.model.decoder.output_bias[slice(*predictor.vocab.coord_range)] += 20
    return predictor


def test_masks_made_in_other_processes_are_the_same(predictor, demo_set):
    source = build_source("segmentation", "coco", demo_set, "val")
    options = SegmentationOptions(num_samples=2)
    reports = [
        segmentation.evaluate(predictor, source, options, EvalLoop(2, workers))
        for workers in (0, 2)
    ]
    assert reports[0].results == reports[1].results != []
    assert reports[0].metrics == reports[1].metrics
    assert len({row["segmentation"]["counts"] for row in reports[0].results}) > 1


def test_a_process_of_masks_that_ends_is_one_line(predictor, demo_set, monkeypatch):
    monkeypatch.setattr(segmentation, "combine_samples", lambda *_: os._exit(3))
    source = build_source("segmentation", "coco", demo_set, "val")
    with pytest.raises(UserError, match="process that combines masks ended .*num_workers") as error:
        segmentation.evaluate(predictor, source, loop=EvalLoop(2, 1))
    assert "\n" not in str(error.value)


# ---- pictures that cannot be read --------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "task, dataset",
    [
        *((task, "coco") for task in ("detection", "segmentation", "captioning")),
        ("detection", "voc"),
    ],
)
def test_a_picture_that_is_left_out_does_not_count(
    predictor, demo_set, tmp_path, capsys, task, dataset, workers
):
    """With bad_samples=skip the figures are those of the set without the damaged picture."""
    root, split = shutil.copytree(demo_set, tmp_path / "set"), {"coco": "val", "voc": "2012:val"}
    source = build_source(task, dataset, root, split[dataset])
    path, bad_id = source.image_path(1), source.image_ids[1]
    settings = [*TINY, "eval_batch_size=2", "seg_samples=1", f"num_workers={workers}"]
    whole = evaluate_task(task, snapshot(CFG, settings), predictor, source)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(UserError, match="cannot read image"):
        evaluate_task(task, snapshot(CFG, settings), predictor, source)
    capsys.readouterr()
    cfg = snapshot(CFG, [*settings, "bad_samples=skip"])
    rest = evaluate_task(task, cfg, predictor, source)
    assert "1 images are left out of the evaluation: cannot read image" in capsys.readouterr().err
    assert rest.results == [row for row in whole.results if row["image_id"] != bad_id]
    if dataset == "voc":
        objects = len(source.objects(1)[1])
        assert rest.per_class["objects"].sum() == whole.per_class["objects"].sum() - objects
