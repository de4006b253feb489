"""Several tasks in one model: the same targets as alone, exact resume, one encoder pass."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config import CFG
from dataset.tasks import TASKS
from infer import infer_single_image_multi_task, infer_single_image_object_detection
from infer.detection import DetectionOptions
from infer.keypoint import KeypointOptions
from infer.multi_task import AllTasksOptions
from infer.predictor import Predictor
from infer.results import Detections
from models import load_model, save_model
from tests.training import StopAt, metrics, resume, state_of
from train import train_multi_task
from train.build import join_categories
from train.engine import train, train_step
from train.settings import task_weights
from utils.categories import Categories
from utils.cli import pick_names, snapshot
from utils.errors import UserError
from utils.images import load_image

ALL = ["detection", "segmentation", "keypoint", "captioning"]
PAIR = ["detection", "captioning"]


@pytest.fixture
def settings(multi_settings, tmp_path):
    return [*multi_settings, f"runs_dir={tmp_path / 'runs'}"]


@pytest.fixture
def no_validation(monkeypatch):
    monkeypatch.setattr("train.engine.evaluate", lambda *_: {})


@pytest.fixture
def seen(monkeypatch, no_validation):
    """Task -> the batches that its loss was computed on, in the runs of a test."""
    steps = []

    def record(state, micro, *more):
        steps.extend(map(dict, micro))
        return train_step(state, micro, *more)

    monkeypatch.setattr("train.engine.train_step", record)
    return steps


def supervised(batch):
    """(sequence, position, target, weight) of every target that carries weight."""
    targets, weights = (t.flatten(0, -2) for t in (batch.target_tokens, batch.token_weights))
    where = weights.nonzero()
    rows, columns = where.T
    return [*map(tuple, where.tolist())], targets[rows, columns], weights[rows, columns]


def curves(run_dir):
    return [
        {k: v for k, v in line.items() if k.startswith("train/loss") or k == "step"}
        for line in metrics(run_dir)
        if "train/loss" in line
    ]


# ---- training --------------------------------------------------------------------------------


def test_supervised_targets_are_those_of_each_task_alone(settings, seen):
    """Earlier code lost the first target of every task when it trained several."""
    for tasks in [ALL, *([task] for task in ALL)]:
        train(snapshot(CFG, [*settings, "max_steps=1"]), tasks)
    together, *alone = seen
    assert list(together) == ALL
    prompts = {"detection": 1, "segmentation": 6, "keypoint": 6, "captioning": 1}
    for task, batches in zip(ALL, alone, strict=True):
        positions, targets, weights = supervised(together[task])
        expected = supervised(batches[task])
        assert positions == expected[0] and len(positions) > 20
        assert torch.equal(targets, expected[1]) and torch.equal(weights, expected[2])
        # the first word of an answer is a target, the prompt is none
        of_sequence = {}
        for sequence, position in positions:
            of_sequence.setdefault(sequence, []).append(position)
        first = [p[0] for p in of_sequence.values()]
        assert set(first) == {prompts[task] - 1}, task
        if task == "keypoint":  # no end token, nothing but the points
            length = together[task].target_tokens.shape[-1]
            assert all(p == list(range(5, length)) for p in of_sequence.values())


def test_every_step_takes_a_batch_of_each_task_and_shorter_ones_go_round(settings, seen):
    more = ["detection_batch_size=4", "captioning_batch_size=7", "epochs=2"]
    train(snapshot(CFG, [*settings, *more]), PAIR)
    assert len(seen) == 6, "an epoch is three batches of detection; captioning has two"
    assert all(len(s["detection"]) == 4 and len(s["captioning"]) == 7 for s in seen)
    ids = {task: [i for step in seen for i in step[task].image_ids] for task in PAIR}
    for first in (0, 12):  # both epochs of detection
        assert len(set(ids["detection"][first : first + 12])) == 12
    for first in (0, 14, 28):  # three of captioning
        assert len(set(ids["captioning"][first : first + 14])) == 14
    assert ids["captioning"][:14] != ids["captioning"][14:28]


def test_the_gradient_is_the_weighted_sum_of_the_tasks(settings):
    weights = {"detection": 0.5, "segmentation": 2.0, "keypoint": 1.0, "captioning": 0.25}
    overrides = [f"{task}_weight={weight}" for task, weight in weights.items()]
    overrides = [*settings, *overrides, "drop_units=0", "drop_path=0"]
    state = state_of(overrides, ALL)
    assert state.task_weights == weights
    batches = {task: stream.next() for task, stream in state.streams.items()}
    expected = 0.0
    for task, batch in batches.items():
        alone = state_of(overrides, ALL)
        alone.task_weights = {}
        train_step(alone, [{task: batch}], None, 0.0)
        gradient = torch.cat([p.grad.flatten() for p in alone.model.parameters()])
        expected = expected + weights[task] * gradient
    losses, norm, _ = train_step(state, [batches], None, 0.0)
    gradient = torch.cat([p.grad.flatten() for p in state.model.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm, expected.norm(), rtol=1e-4, atol=1e-6)
    assert list(losses) == ALL and state.step == 1


def test_weights_count_among_several_tasks_alone():
    cfg = snapshot(CFG, ["detection_weight=0.1"])
    assert task_weights(cfg, ["detection"]) == {"detection": 1.0}
    assert task_weights(cfg, PAIR) == {"detection": 0.1, "captioning": 1.0}
    with pytest.raises(UserError, match="keypoint_weight must be above 0, got 0.0; leave"):
        snapshot(CFG, ["keypoint_weight=0"])


@pytest.mark.parametrize("stop", [1, 4])  # inside both epochs; captioning in its second round
def test_resume_continues_every_task_bit_for_bit(settings, no_validation, monkeypatch, stop):
    overrides = [*settings, "drop_units=0.1", "detection_batch_size=4", "captioning_batch_size=7"]
    whole = train(snapshot(CFG, overrides), PAIR)
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.StopSignal", lambda _: StopAt(stop))
        part = train(snapshot(CFG, overrides), PAIR)
    assert len(curves(part)) == stop
    assert resume(overrides, PAIR, part) == part
    assert curves(part) == curves(whole) and len(curves(whole)) == 6
    states = [load_model(run / "last.safetensors").state_dict() for run in (whole, part)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_script_logs_validates_and_resumes_the_tasks_that_are_named(settings, tmp_path):
    overrides = [*settings, "eval_limit=2", "max_steps=1", "captioning_weight=0.5"]
    argv = ["--task", "captioning, detection", "--set", *overrides]
    run_dir = train_multi_task.main(argv)
    assert run_dir.parent.name == "detection+captioning", "one order, however they are named"
    (line,) = curves(run_dir)
    parts = [line[f"train/loss/{task}"] for task in PAIR]
    assert line["train/loss"] == pytest.approx(parts[0] + 0.5 * parts[1], abs=1e-5)
    logged = {key for line in metrics(run_dir) for key in line}
    assert {"val/detection/AP50", "val/captioning/CIDEr"} <= logged
    best = run_dir / "best"
    assert "AP50" in json.loads((best / "detection" / "metrics.json").read_text())
    assert "CIDEr" in json.loads((best / "captioning" / "metrics.json").read_text())
    more = ["--set", *settings, "eval_limit=2", "max_steps=2"]
    assert train_multi_task.main(["--resume", str(run_dir), *more]) == run_dir
    assert len(curves(run_dir)) == 2
    with pytest.raises(UserError, match=r"it trains detection\+captioning, not detection"):
        resume(settings, ["detection"], run_dir)


@pytest.mark.parametrize("names", ["detection,pose", "detect", "detection,"])
def test_an_unknown_task_names_the_known(names):
    with pytest.raises(UserError, match="detection, segmentation, keypoint, captioning"):
        train_multi_task.main(["--task", names])
    assert pick_names("--task", "captioning,keypoint,captioning", TASKS) == [
        "keypoint",
        "captioning",
    ]


def test_a_batch_that_a_task_cannot_fill_names_its_setting(settings):
    with pytest.raises(UserError, match="--set captioning_batch_size=14 or less"):
        train(snapshot(CFG, [*settings, "captioning_batch_size=99"]), PAIR)


# ---- categories ------------------------------------------------------------------------------


def source(names, ids=None):
    return SimpleNamespace(categories=Categories(names, ids or {i: i for i in names}))


def test_the_weights_know_the_categories_of_all_tasks():
    joined = join_categories(
        {
            "keypoint": source({1: "person"}),
            "captioning": source({}),
            "detection": source({1: "person", 3: "dog", 2: "cat"}),
        }
    )
    assert list(joined.names.items()) == [(1, "person"), (2, "cat"), (3, "dog")]
    assert joined.source_ids == {1: 1, 2: 2, 3: 3}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (source({1: "dog"}), "detection and keypoint disagree: category 1 'person'"),
        (source({1: "person"}, {1: 4000}), "disagree: category 1 'person' in the first is 4000"),
        (source({7: "person"}), "two categories 'person'"),
    ],
)
def test_annotation_files_that_disagree_are_refused(other, message):
    with pytest.raises(UserError, match=message):
        join_categories({"detection": source({1: "person"}), "keypoint": other})


def test_a_weight_file_of_all_tasks_names_every_class(multi_weights, demo_set):
    predictor = Predictor(multi_weights)
    rows = json.loads((demo_set / "annotations" / "instances_train2017.json").read_text())
    assert list(predictor.tasks) == list(TASKS)
    assert predictor.categories == Categories.from_coco(rows["categories"])
    assert predictor.tokenizer("keypoint").labels == (predictor.categories.ids_of_names["person"],)


# ---- inference -------------------------------------------------------------------------------


@pytest.fixture
def predictor(multi_weights):
    return Predictor(multi_weights)


@pytest.fixture
def pictures(demo_set):
    return [load_image(path) for path in sorted((demo_set / "val2017").iterdir())[:3]]


@pytest.fixture
def encoded(predictor, monkeypatch):
    """Sizes of the batches that went through the encoder."""
    sizes, encode = [], predictor.model.encode

    def count(images):
        sizes.append(len(images))
        return encode(images)

    monkeypatch.setattr(predictor.model, "encode", count)
    return sizes


def persons(predictor, count):
    """A detector's result: a dog and persons."""
    ids = predictor.categories.ids_of_names
    other = next(name for name in ids if name != "person")
    names = [other, *["person"] * count]
    boxes = np.float32([[5 + n, 6, 60 + n, 70] for n in range(count + 1)])
    scores = np.linspace(0.9, 0.5, count + 1, dtype=np.float32)
    return Detections(boxes, np.array([ids[name] for name in names]), scores, names)


def test_an_image_is_encoded_once_and_persons_in_batches(predictor, encoded, pictures, monkeypatch):
    monkeypatch.setattr(
        "infer.multi_task.detect", lambda *a, **k: [persons(predictor, 5) for _ in a[1]]
    )
    found = predictor.all_tasks(
        pictures[0], AllTasksOptions(keypoints=KeypointOptions(max_crops=3))
    )
    assert encoded == [1, 3, 2], "the whole image, then crops"
    assert len(found.objects) == len(found.masks) == 6 and len(found.captions) == 1
    assert found.keypoints.names == ["person"] * 5
    np.testing.assert_array_equal(found.keypoints.boxes, found.objects.boxes[1:])
    encoded.clear()
    found = predictor.all_tasks(pictures)
    assert encoded == [3, 15] and [len(one.keypoints) for one in found] == [5, 5, 5]


def test_every_task_says_what_it_says_alone(predictor, pictures):
    """Though they share the encoder pass. What the random model finds is called by any name."""
    names = {i: f"class {i}" for i in range(1, 900)}
    predictor.categories = Categories(names, {i: i for i in names})
    predictor.tasks["keypoint"] |= {"labels": list(names)}
    together = predictor.all_tasks(pictures, AllTasksOptions(score_threshold=0.0))
    objects = predictor.detect(pictures, DetectionOptions().showing(0.0))
    for one, alone in zip(together, objects, strict=True):
        np.testing.assert_array_equal(one.objects.boxes, alone.boxes)
        np.testing.assert_array_equal(one.objects.scores, alone.scores)
    assert sum(map(len, objects)), "nothing was compared"
    boxes, labels, scores = (
        [getattr(one, k) for one in objects] for k in ("boxes", "labels", "scores")
    )
    masks = predictor.segment(pictures, boxes, labels, scores=scores)
    assert [one.masks.rles for one in together] == [one.rles for one in masks]
    captions = predictor.caption(pictures)
    assert [one.captions.texts for one in together] == [one.texts for one in captions]
    points = predictor.keypoints(pictures, boxes, labels, scores=scores)
    for one, alone in zip(together, points, strict=True):
        np.testing.assert_array_equal(one.keypoints.points, alone.points)
        np.testing.assert_array_equal(one.keypoints.scores, alone.scores)


def test_nothing_found_is_a_result(predictor, encoded, pictures):
    found = predictor.all_tasks(pictures[0], AllTasksOptions(score_threshold=1.0))
    assert encoded == [1]
    assert len(found.objects) == len(found.masks) == len(found.keypoints) == 0
    assert found.to_json()["objects"] == found.to_json()["keypoints"] == []
    assert len(found.to_json()["captions"]) == 1


def without(predictor, *tasks):
    for task in tasks:
        del predictor.tasks[task]
    return predictor


def test_only_what_the_weights_know_is_asked(predictor, pictures):
    found = without(predictor, "segmentation", "captioning").all_tasks(pictures[0])
    assert found.captions is None and found.masks is None and found.keypoints is not None
    assert set(found.to_json()) == {"objects", "keypoints"}
    with pytest.raises(UserError, match="was trained for keypoint.* alone, which needs boxes"):
        without(predictor, "detection").all_tasks(pictures[0])


STAGES = ["encoder", "captioning", "detection", "segmentation", "keypoint"]
PICTURES = {"object_detection.png", "instance_segmentation.png", "keypoint_detection.png"}


def test_the_script_prints_and_draws_everything(
    multi_weights, demo_set, tmp_path, monkeypatch, capsys
):
    predictor = Predictor(multi_weights)
    monkeypatch.setattr(
        "infer.multi_task.detect", lambda *a, **k: [persons(predictor, 2) for _ in a[1]]
    )
    image = sorted((demo_set / "val2017").iterdir())[0]
    argv = ["--image", str(image), "--weights", str(multi_weights), "--out-dir", str(tmp_path)]
    out = tmp_path / "all.json"
    infer_single_image_multi_task.main([*argv, "--num-captions", "2", "--json", str(out)])
    assert {path.name for path in tmp_path.iterdir()} == PICTURES | {"all.json"}
    text, log = capsys.readouterr()
    (row,) = json.loads(out.read_text())
    h, w = load_image(image).shape[:2]
    assert row["size"] == [w, h] and len(row["captions"]) == 2
    assert [o["label"] for o in row["objects"]][1:] == ["person"] * 2
    assert all(o["segmentation"]["size"] == [h, w] for o in row["objects"])
    assert len(row["keypoints"]) == 2 and "nose" in row["keypoints"][0]["keypoints"]
    assert text.startswith(f"{image} ({w} x {h})\n{row['captions'][0]['caption']}\n")
    assert text.count(f"{w} x {h}") == 1 and "person 2: score" in text and "nose" in text
    assert "seconds" not in log + text
    infer_single_image_multi_task.main([*argv, "--timing"])
    text_again, log = capsys.readouterr()
    stages = log[log.index("stage ") :].splitlines()[1:]
    assert [line.split()[0] for line in stages] == [*STAGES, "total"]
    assert "seconds" not in text_again and stages[0].endswith("1, of 1 image")
    assert stages[-2].endswith("1, of 2 crops") and all(s.endswith(" -") for s in stages[1:4])


def test_the_script_takes_folders_and_weights_of_fewer_tasks(
    multi_weights, tiny_weights, demo_set, tmp_path, capsys
):
    argv = [
        "--image",
        str(demo_set / "val2017"),
        "--score-threshold",
        "1",
        "--set",
        "seg_samples=1",
    ]
    folder = tmp_path / "all"
    infer_single_image_multi_task.main(
        [*argv, "--weights", str(multi_weights), "--out-dir", str(folder), "--json"]
    )
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 6 and len(list(folder.iterdir())) == 18
    assert all(row["objects"] == row["keypoints"] == [] for row in rows)
    argv[1] = str(sorted((demo_set / "val2017").iterdir())[0])
    argv += ["--weights", str(tiny_weights), "--out-dir"]
    infer_single_image_multi_task.main([*argv, str(tmp_path / "few")])
    few = capsys.readouterr().out
    assert "no object with a score of at least 1" in few
    assert [path.name for path in (tmp_path / "few").iterdir()] == ["object_detection.png"]
    infer_single_image_object_detection.main([*argv, str(tmp_path / "same")])
    assert capsys.readouterr().out == few


def test_a_given_model_works_like_its_file(predictor, pictures, tmp_path):
    path = tmp_path / "again.safetensors"
    save_model(predictor.model, path)
    again, given = (p.all_tasks(pictures[0]) for p in (Predictor(path), Predictor(predictor.model)))
    assert again.to_json() == given.to_json()
