"""Fine-tuning: what is picked from the data, and images with rare classes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from config import CFG, FinetuneCFG
from dataset.coco_detection import CocoDetection
from dataset.sample import PerObject, RepeatRare, repeat_factors
from dataset.tasks import TASKS, count_samples, open_source
from tests.conftest import TINY
from tests.training import losses, resume
from train.build import build_source_of
from train.engine import start
from train.init_weights import pick_budget, pick_schedule, pick_settings, start_settings
from utils.cli import snapshot
from utils.errors import UserError

DETECTION = ["detection"]


def load_with(overrides):
    return lambda inherited: snapshot(FinetuneCFG, overrides, saved=inherited)


@pytest.fixture
def settings(demo_set, tiny_weights, tmp_path):
    keep = [item for item in TINY if item.startswith(("num_workers", "device", "log_every"))]
    paths = [f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", "freeze_batch_norm=false"]
    return [*keep, *paths, f"init_weights={tiny_weights}", "max_steps=2"]


def test_weights_and_data_say_what_a_fine_tuning_is(settings, capsys):
    run_dir = start(DETECTION, load_with(settings))
    used = json.loads((run_dir / "settings.json").read_text())
    counts = CocoDetection(used["coco_root"]).objects_per_image()
    assert used["encoder"] == "test_vit" and used["dim"] == 32, "as the weights have it"
    assert used["max_objects"] == pick_budget(counts) > counts.max()
    assert used["batch_size"] == 14 // 8, "eight steps an epoch"
    assert f"max_objects={used['max_objects']} batch_size=1 epochs=120" in capsys.readouterr().err


def test_what_is_given_is_not_picked(settings, capsys):
    given = ["max_objects=7", "batch_size=3", "lr=0.002", "epochs=5"]
    run_dir = start(DETECTION, load_with([*settings, *given]))
    used = json.loads((run_dir / "settings.json").read_text())
    assert [used[item.partition("=")[0]] for item in given] == [7, 3, 0.002, 5]
    assert len(losses(run_dir)) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("picked for")]
    assert "warmup_epochs=" in line and not any(f" {item.split('=')[0]}=" in line for item in given)


def test_without_weights_there_is_no_fine_tuning(demo_set):
    from utils.setting_rules import TRAINING_PAIRS

    with pytest.raises(UserError, match="^preset finetune needs --set init_weights=FILE") as error:
        snapshot(FinetuneCFG, [f"coco_root={demo_set}"], pairs=TRAINING_PAIRS)
    assert "got" not in str(error.value)


@pytest.mark.parametrize("num_images", [0, 1, 5, 40, 300, 5000, 118_287])
def test_a_schedule_fits_every_size(num_images):
    picked = pick_schedule(num_images, 16, fewest=num_images)
    assert 1 <= picked["batch_size"] <= 16 and picked["batch_size"] <= max(num_images, 1)
    assert 8 <= picked["epochs"] <= 120 and 1 <= picked["eval_every"] <= picked["epochs"]
    assert 0 < picked["warmup_epochs"] < picked["epochs"] / 2


def test_a_step_needs_no_more_images_than_there_are(settings, monkeypatch):
    """Of the smallest task, with all processes and accumulated batches."""
    assert pick_schedule(2000, 16, fewest=12)["batch_size"] == 12
    run_dir = start(DETECTION, load_with([*settings, "accumulate_steps=3"]))
    assert json.loads((run_dir / "settings.json").read_text())["batch_size"] == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    tasks, cfg = ["detection", "captioning"], load_with([*settings, "accumulate_steps=5"])(None)
    counts = {"detection": 4000, "captioning": 240}

    def open_task(_, task):
        rows = np.ones(counts[task], int)
        return SimpleNamespace(image_ids=rows, objects_per_image=lambda: rows)

    picked = pick_settings(cfg, tasks, open_task)
    assert picked["batch_size"] == 16 and picked["epochs"] == 8
    counts |= {"captioning": 90}
    assert pick_settings(cfg, tasks, open_task)["batch_size"] == 90 // (2 * 5)


@pytest.mark.parametrize("crops", ["true", "false"])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_samples_are_counted_as_training_makes_them(task, crops, demo_set, caption_vocab):
    places = [f"coco_root={demo_set}", f"caption_vocab={caption_vocab}"]
    cfg = snapshot(CFG, [*places, f"seg_crop={crops}"])
    images = open_source(task, "coco", cfg.coco_root, "train")
    assert count_samples(cfg, task, images) == len(build_source_of(cfg, task, train=True))


def test_crops_of_the_weights_count_unless_given_otherwise(settings, monkeypatch):
    monkeypatch.setattr("train.init_weights._settings_of_tasks", lambda *_: {"seg_crop": True})
    seen = []
    monkeypatch.setattr(
        "train.init_weights.pick_settings", lambda cfg, *_: seen.append(cfg.seg_crop) or {}
    )
    for given in ([], ["seg_crop=false"]):
        start_settings(load_with([*settings, *given]), ["segmentation"])
    assert seen == [True, False]


def test_objects_in_crops_count_one_by_one(settings):
    """100 images of 50 persons each are 5,000 crops: no 120 passes over them."""
    few, many = np.ones(100, int), np.zeros((5000, 2), int)
    source = SimpleNamespace(
        image_ids=few, objects_per_image=lambda: few, learnable_objects=lambda: many
    )

    def picked(task, *more):
        return pick_settings(load_with([*settings, *more])(None), [task], lambda *_: source)

    of_images, of_objects = picked("detection"), picked("keypoint")
    assert of_objects["epochs"] < of_images["epochs"]
    assert picked("segmentation", "seg_crop=true")["epochs"] == of_objects["epochs"]
    assert picked("segmentation", "seg_crop=false")["epochs"] == of_images["epochs"]


def test_a_large_encoder_learns_more_slowly_than_its_decoder(settings, monkeypatch):
    cfg = load_with([*settings, "encoder_lr_factor=0.7"])(None)
    sources = SimpleNamespace(image_ids=[0] * 20, objects_per_image=lambda: np.ones(20, int))
    small = pick_settings(cfg, DETECTION, lambda *_: sources)
    monkeypatch.setattr("train.init_weights.count_parameters", lambda _: 115_000_000)
    large = pick_settings(cfg, DETECTION, lambda *_: sources)
    assert large["lr"] < small["lr"]
    assert large["encoder_lr_factor"] < small["encoder_lr_factor"] == 1
    used = load_with([*settings, "encoder_lr_factor=0.7"])(large)
    assert used.encoder_lr_factor == 0.7 and used.lr == large["lr"], "what is given is kept"


def test_a_budget_holds_the_fullest_image_and_ends_at_100():
    for counts in ([0], [3, 1], [30, 2], [99], [500, 3]):
        budget = pick_budget(np.array(counts))
        assert min(max(counts) + 1, 100) <= budget <= 100


def test_weights_are_judged_before_the_first_step(settings, capsys):
    run_dir = start(DETECTION, load_with([*settings, "eval_first=true", "epochs=1"]))
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    judged = [row["step"] for row in rows if any(name.startswith("val/") for name in row)]
    assert judged[0] == 0 and judged[-1] == 2
    assert "step 0/2  detection AP" in capsys.readouterr().err
    resumed = resume([], DETECTION, run_dir)
    again = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert again == rows, "not once more"


# ---- repeat-factor sampling --------------------------------------------------------------------


def test_the_factor_is_that_of_the_rarest_class():
    labels = [np.array([1, 1])] * 6 + [np.array([1, 2])] * 3 + [np.array([], int)]
    factors = repeat_factors(labels, threshold=0.4)
    # class 1 is on 9 of 10 images, class 2 on 3 of 10
    assert np.allclose(factors, [1] * 6 + [np.sqrt(0.4 / 0.3)] * 3 + [1])
    assert (repeat_factors(labels, threshold=0.0) == 1).all()


def test_rare_samples_are_there_as_often_as_their_factor(demo_set):
    for source in (CocoDetection(demo_set), PerObject(CocoDetection(demo_set))):
        repeated = RepeatRare(source, threshold=1.0, seed=0)
        items = getattr(source, "items", None)
        labels = [source.objects(i)[1] for i in range(len(source))] if items is None else [
            source.objects(image)[1][[number]] for image, number in items.tolist()
        ]  # fmt: skip
        factors = repeat_factors(labels, 1.0)
        times = np.bincount(repeated.numbers, minlength=len(source))
        assert (np.abs(times - factors) < 1).all() and (times > 1).any()
        assert len(repeated) == times.sum()
        for index in (0, len(repeated) - 1):
            number = int(repeated.numbers[index])
            one, other = repeated.read(index), source.read(number)
            assert one.image_id == other.image_id and np.array_equal(one.boxes, other.boxes)
            assert repeated.image_path(index) == source.image_path(number)
        assert np.array_equal(repeated.numbers, RepeatRare(source, 1.0, 0).numbers)


def test_a_training_shows_rare_classes_more_often(settings, capsys):
    start(DETECTION, load_with([*settings, "repeat_threshold=1", "batch_size=2"]))
    steps = int(capsys.readouterr().err.partition(" epochs of ")[2].split()[0])
    assert steps > 14 // 2
