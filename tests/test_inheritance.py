"""A run goes on from its folder alone; a new one takes its model from the file it starts from."""

import json
import shutil
from dataclasses import fields, replace

import pytest

from config import CFG
from models import ModelConfig, load_model
from models.config import NAMES, RATES
from tests.conftest import TINY
from tests.training import StopAt, compare_apart_from_best, resume
from train import train_coco_img_captioning, train_coco_object_detection
from train.checkpoint import check_record
from train.engine import train
from train.init_weights import settings_of_weights
from utils.cli import snapshot
from utils.errors import UserError

BOTH = ["detection", "captioning"]
FEW = ["max_steps=1", "eval_limit=1", "batch_size=2", "num_workers=0", "device=cpu"]


# ---- resume ------------------------------------------------------------------------------------


def test_a_run_goes_on_from_its_folder_alone(multi_settings, multi_weights, tmp_path, monkeypatch):
    """Without the weights it started from, its caption vocabulary, or a network."""
    given, vocab = tmp_path / "given.safetensors", tmp_path / "vocab.json"
    shutil.copy(multi_weights, given)
    shutil.copy(snapshot(CFG, multi_settings).caption_vocab, vocab)
    overrides = [*multi_settings, f"init_weights={given}", f"caption_vocab={vocab}"]
    overrides += [f"runs_dir={tmp_path / 'runs'}", "max_steps=4", "ema_decay=0.9", "eval_limit=1"]
    whole = train(snapshot(CFG, overrides), BOTH)
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.StopSignal", lambda _: StopAt(2))
        part = train(snapshot(CFG, overrides), BOTH)
    given.unlink()
    vocab.unlink()
    (part / "last.safetensors").unlink()
    resume([], BOTH, part)
    assert compare_apart_from_best(whole, part) == []
    before, after = (load_model(run / "last.safetensors").meta for run in (whole, part))
    assert before == after


def test_nothing_pretrained_is_fetched_on_resume(demo_set, tmp_path, monkeypatch):
    overrides = [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path}", *FEW]
    run = train(snapshot(CFG, overrides), ["detection"])
    asked = []
    build = train.__globals__["build_run"].__globals__["build_model"]
    monkeypatch.setattr(
        "train.build.build_model",
        lambda config, *, pretrained, **_: asked.append(pretrained) or build(config),
    )
    resume(["pretrained=true", "max_steps=2"], ["detection"], run)
    assert asked == [False]


def record_of(model, **meta) -> str:
    return json.dumps({"config": model.config.to_json(), "meta": model.meta | meta})


@pytest.mark.parametrize("name", [f.name for f in fields(ModelConfig)])
def test_a_setting_of_the_model_that_differs_is_named(name, tiny_weights):
    model = load_model(tiny_weights)
    value = getattr(model.config, name)
    other = {bool: lambda: not value, int: lambda: 2 * value, float: lambda: value / 2 + 0.01}
    changed = {"image_size": (128, 128), "image_mean": (0.1, 0.1, 0.1), "image_std": (1.0,) * 3,
               "encoder": "resnet18", "encoder_stride": 8, "projection": "linear",
               "decoder_norm": "post", "resnet_depth": 101, "resnet_width": 0.5}  # fmt: skip
    if name in changed:
        value = changed[name]
    elif isinstance(value, str):
        value = "learned" if value == "sin_cos" else "sin_cos"
    else:
        value = other[type(value)]()
    record = record_of(model)
    model.config = replace(model.config, **{name: value})
    if name in RATES:
        check_record(record, model)  # belongs to the training
        return
    with pytest.raises(
        ValueError, match=f"the model of a run cannot change: {NAMES.get(name, name)} is"
    ):
        check_record(record, model)


@pytest.mark.parametrize(
    "classes",
    [
        [{"id": 1, "name": "ant", "source_id": 1}, {"id": 2, "name": "cat", "source_id": 2}],
        [{"id": 2, "name": "cat", "source_id": 2}, {"id": 3, "name": "dog", "source_id": 3}],
        [{"id": 1, "name": "cat", "source_id": 1}],
        [],
    ],
)
def test_other_classes_are_refused_in_one_line(classes, tiny_weights):
    model = load_model(tiny_weights)
    model.meta = model.meta | {
        "categories": [
            {"id": 1, "name": "cat", "source_id": 1}, {"id": 2, "name": "dog", "source_id": 2},
        ]
    }  # fmt: skip
    check_record(record_of(model), model)
    with pytest.raises(
        ValueError, match="classes of a run cannot change: it knows .* the data has"
    ) as error:
        check_record(record_of(model, categories=classes), model)
    assert "\n" not in str(error.value)


def test_a_run_does_not_go_on_with_other_classes_or_keypoints(multi_settings, demo_set, tmp_path):
    """Whoever adds a class to a data set finds the others under other ids."""
    data = tmp_path / "data"
    shutil.copytree(demo_set, data)
    overrides = [*multi_settings, f"coco_root={data}", f"runs_dir={tmp_path / 'runs'}", *FEW]
    run = train(snapshot(CFG, overrides), ["keypoint"])
    for split in ("train", "val"):
        file = data / "annotations" / f"person_keypoints_{split}2017.json"
        values = json.loads(file.read_text())
        for category in values["categories"]:
            if "keypoints" in category:
                category["keypoints"][0] = "snout"
        file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="its keypoints differ.*snout.*init_weights=") as error:
        resume(["max_steps=2"], ["keypoint"], run)
    assert "\n" not in str(error.value)


# ---- init_weights ------------------------------------------------------------------------------


def start(script, *overrides, more=()):
    return script.main([*more, "--set", *FEW, *overrides])


def test_a_new_run_takes_its_model_from_the_file(demo_set, tmp_path, tiny_weights, capsys):
    """The defaults are another encoder, width, depth and image size."""
    overrides = [f"coco_root={demo_set}", f"runs_dir={tmp_path}", f"init_weights={tiny_weights}"]
    run = start(train_coco_object_detection, *overrides)
    text = capsys.readouterr().err
    (line,) = (line for line in text.splitlines() if line.startswith("settings as in"))
    given, made = (load_model(path).config for path in (tiny_weights, run / "last.safetensors"))
    for field in fields(ModelConfig):
        if field.name not in (*RATES, "max_len"):
            assert getattr(given, field.name) == getattr(made, field.name), field.name
    assert f"{tiny_weights}: " in line and "dim=32" in line and "img_size=64" in line
    assert "max_objects" not in line
    assert "which gives 100% of the parameters" in text or "tensors taken" in text


def test_a_run_folder_gives_what_the_file_in_it_gives(
    demo_set, tmp_path, multi_weights, tiny_weights
):
    for weights, script in (
        (tiny_weights, train_coco_object_detection),
        (multi_weights, train_coco_img_captioning),  # with its pieces of text
    ):
        folder = tmp_path / script.__name__
        folder.mkdir()
        shutil.copy(weights, folder / "best.safetensors")
        runs = [
            start(script, f"coco_root={demo_set}", f"runs_dir={folder}", f"init_weights={path}")
            for path in (folder, folder / "best.safetensors")
        ]
        configs = [load_model(run / "last.safetensors").config for run in runs]
        assert configs[0] == configs[1]
    with pytest.raises(UserError, match="--set init_weights=FILE"):
        start(train_coco_object_detection, f"coco_root={demo_set}", f"init_weights={demo_set}")


@pytest.mark.parametrize("preset", ["default", "demo", "from_scratch"])
def test_the_file_comes_before_the_preset_and_after_the_command_line(
    demo_set, tmp_path, tiny_weights, preset
):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"num_bins": 200, "img_size": 96}))
    overrides = [f"coco_root={demo_set}", f"runs_dir={tmp_path}", f"init_weights={tiny_weights}"]
    overrides += ["img_size=128", "max_objects=3", "epochs=1"]
    more = ["--preset", preset, "--config", str(config)]
    run = start(train_coco_object_detection, *overrides, more=more)
    settings = json.loads((run / "settings.json").read_text())
    assert (settings["img_size"], settings["num_bins"], settings["dim"]) == (128, 200, 32)
    assert settings["encoder"] == "test_vit" and settings["num_heads"] == 4


def test_a_setting_that_contradicts_the_file_is_named(demo_set, tmp_path, tiny_weights):
    overrides = [f"coco_root={demo_set}", f"runs_dir={tmp_path}", f"init_weights={tiny_weights}"]
    with pytest.raises(UserError, match=r"dim is 32 there and 64 here.*leave these") as error:
        start(train_coco_object_detection, *overrides, "dim=64")
    assert "\n" not in str(error.value)


def test_captions_go_on_with_the_pieces_of_the_file(demo_set, tmp_path, multi_weights):
    overrides = [f"coco_root={demo_set}", f"runs_dir={tmp_path}", f"init_weights={multi_weights}"]
    run = start(train_coco_img_captioning, *overrides)
    given, made = (load_model(p).meta["tasks"] for p in (multi_weights, run / "last.safetensors"))
    assert given["captioning"]["text"] == made["captioning"]["text"]


def test_what_the_file_decides_is_all_of_its_shape(tiny_weights):
    """A field that is added to the model is inherited without anybody thinking of it."""
    names = {NAMES.get(field.name, field.name) for field in fields(ModelConfig)}
    assert names - {*RATES, "max_len"} <= set(settings_of_weights(tiny_weights))
