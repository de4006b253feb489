"""Ranges of settings: whatever lies outside is a line, at once, from every script."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dataset.check_dataset as check_dataset
import infer.evaluate as evaluate
import infer.infer_single_image_multi_task as infer_multi_task
import infer.infer_single_image_object_detection as infer_detection
import train.train_coco_object_detection as train_detection
from config import CFG, PRESETS
from models.config import CHOICES
from models.decode_step import CHOICES as DECODE_MODES
from tests.test_imports import SCRIPTS, modules, named, required, script_modules
from tokenizer.detection import CORRUPTIONS
from tokenizer.vocabulary import TASK_NAMES
from train.loss import LossType
from train.optim import parse_schedule
from utils import setting_rules
from utils.cli import Parser, settings_types, snapshot
from utils.errors import UserError
from utils.setting_rules import OPTIONS, PAIRS, RULES, TRAINING_PAIRS, OneOf, describe

ROOT = Path(__file__).resolve().parents[1]
IMAGE = str(ROOT / "images" / "demo.jpg")
MAINS = {
    "train": (train_detection.main, []),
    "evaluate": (evaluate.main, ["--weights", "none.safetensors"]),
    "infer": (infer_detection.main, ["--image", IMAGE]),
    "check": (check_dataset.main, []),
}
TYPES = settings_types(CFG)
SUSPECTS = ("0", "-1", "-1e9", "nan", "inf", "-inf", "1e30", "9" * 40, "9" * 5000, "", " ", "word")
SUSPECTS += ("0,0", "nan,nan", "1.5", "true", "none", "\0", "(", "xent@-1", "cuda:x", "2:", "é")
WRONG = """
epochs=0 batch_size=0 accumulate_steps=0 log_every=0 eval_every=0 eval_batch_size=0
keep_checkpoints=0 max_objects=0 max_points=2 seg_max_objects=0 seg_samples=0 img_size=0 dim=0
num_heads=0 num_layers=0 num_bins=1 max_caption_tokens=1 captions_per_image=0 caption_beams=0
encoder_stride=0 max_nonfinite=0 num_lengths=0 prefetch_batches=0 temperature=0
caption_temperature=0 seg_threshold=0 min_scale=0 max_scale=0 encoder_lr_factor=0 layer_decay=0
resnet_width=0 detection_weight=0 top_p=1.5 caption_top_p=-0.1 top_k=-1 num_workers=-1 lr=-1
weight_decay=-1 min_scale=-1 flip_prob=2 train_limit=-3 eval_limit=-1 drop_path=1 caption_drop=1
ema_decay=1 betas=0.9,1 score_threshold=50 seed=-1 warmup_epochs=-1 end_lr_factor=2 max_minutes=-1
save_minutes=-1 keypoint_score_weight=1.1 keypoint_sigmas=0.1,0 resnet_depth=18 device=tpu
device=cuda:x voc_sets=2007 eval_split=test dataset=imagenet num_workers=100000 num_layers=1000000
decay_exclude=( loss=xent@2 lr_schedule=exp
"""
RIGHT = """
lr=0 clip_grad=-1 clip_grad=0 num_workers=0 train_limit=0 max_steps=0 max_minutes=0 max_len=0
top_k=0 top_p=0 top_p=1 color_jitter=0 flip_prob=0 flip_prob=1 drop_path=0 ema_decay=0
caption_pad_weight=0 eos_weight=0 save_minutes=0 save_steps=0 early_stop_patience=0 layer_decay=1
encoder_stride=none init_weights=none keypoint_score_weight=none keypoint_score_weight=0 classes=
decay_exclude= keypoint_sigmas= pixel_transform= coco_root=. score_threshold=0 score_threshold=1
weight_decay=0 device=cuda:1 voc_sets=2007:train,VOC2012:val
"""


def complaint(*overrides: str) -> str:
    try:
        snapshot(CFG, overrides)
    except UserError as error:
        return str(error)
    return ""


NEEDED = {name: ["train_json=a.json"] for name in setting_rules.PARTS}
NEEDED["encoder_int8"] = ["infer_dtype=int8"]


def wrong_values(name: str) -> list[str]:
    """Suspects that are outside the range of a setting, or of another type."""
    needed = NEEDED.get(name, [])
    return [text for text in SUSPECTS if complaint(*needed, f"{name}={text}")]


def test_every_setting_has_a_rule_and_a_sentence():
    rows = describe(CFG)
    assert set(rows) == set(RULES) == set(TYPES)
    for name, (default, limits, sentence) in rows.items():
        assert default == getattr(CFG, name) and limits and len(sentence) > 5, name


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_satisfy_all_rules(preset):
    needs_weights = preset in ("demo_multi_task", "finetune")
    starts = ["init_weights=x.safetensors"] if needs_weights else []
    snapshot(PRESETS[preset], starts, pairs=TRAINING_PAIRS)


@pytest.mark.parametrize("name", RULES)
def test_what_lies_outside_is_one_line_that_names_the_setting(name):
    """Numbers may not be huge, infinite or no numbers; words must be known; nothing may be empty
    that has no meaning when it is."""
    kind = TYPES[name]
    wrong = wrong_values(name)
    for text in wrong:
        line = complaint(*NEEDED.get(name, []), f"{name}={text}")
        assert line.startswith(f"{name} must be ") and "got " in line and len(line) < 400
        assert "\n" not in line and "\0" not in line
    if kind in (int, float):
        assert {"nan", "inf", "-inf", "1e30", "9" * 40, "", "word", "\0"} <= set(wrong)
    if kind is bool:
        assert {"-1", "nan", "", "word", "1.5", "none"} <= set(wrong)
    if kind is Path:
        assert {"", " ", "\0"} <= set(wrong)
    if kind is str and name != "pixel_transform":
        assert {"", " ", "\0"} <= set(wrong)
    if isinstance(RULES[name], OneOf):
        assert {"word", "", "1.5"} <= set(wrong)


@pytest.mark.parametrize("override", WRONG.split())
def test_values_without_a_meaning_are_refused(override):
    assert complaint(override).startswith(override.partition("=")[0] + " must be ")


@pytest.mark.parametrize("override", RIGHT.split())
def test_values_that_switch_off_are_accepted(override):
    assert complaint(override) == ""


@pytest.mark.parametrize("name", RULES)
def test_what_is_accepted_is_in_the_range(name):
    for text in set(SUSPECTS) - set(wrong_values(name)):
        value = getattr(snapshot(CFG, [*NEEDED.get(name, []), f"{name}={text}"]), name)
        assert value is None or RULES[name].problem(value) == ""


@pytest.mark.parametrize("place", ["--config", "config.py"])
def test_the_same_holds_for_files_and_for_config_py(place, tmp_path):
    values = {"epochs": 0, "lr": -1, "amp": "fp8", "dim": "wide", "augment": 3, "classes": [1]}
    if place == "--config":
        (tmp_path / "s.json").write_text(json.dumps(values))
        with pytest.raises(UserError) as error:
            snapshot(CFG, file=tmp_path / "s.json")
    else:
        with pytest.raises(UserError) as error:
            snapshot(type("Edited", (CFG,), values))
    lines = str(error.value).splitlines()
    assert len(lines) == len(values)
    assert all(any(f"{name} must be" in line for line in lines) for name in values)


@pytest.mark.parametrize("script", MAINS)
def test_every_script_refuses_before_anything_else(script, tmp_path, monkeypatch):
    """All settings at once, each with a value that is wrong: a line each, and nothing is opened."""
    monkeypatch.chdir(tmp_path)
    main, arguments = MAINS[script]
    first = {name: wrong_values(name)[0] for name in RULES}
    overrides = [f"{name}={text}" for name, text in first.items()]
    with pytest.raises(UserError) as error:
        main([*arguments, "--set", *overrides])
    lines = str(error.value).splitlines()
    assert len(lines) == len(RULES)
    assert all(any(line.startswith(f"{name} must be ") for line in lines) for name in RULES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", MAINS)
def test_in_a_process_two_bad_settings_are_two_lines(script, tmp_path):
    """No traceback, status 2, no dataset opened, no run folder, nothing heavy imported."""
    path = {"train": "train/train_coco_object_detection.py", "evaluate": "infer/evaluate.py",
            "infer": "infer/infer_single_image_object_detection.py",
            "check": "dataset/check_dataset.py"}[script]  # fmt: skip
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{path!r}, *{MAINS[script][1]}, '--set', 'temperature=0', 'epochs=-1',"
        " 'coco_root=/nowhere']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / path)!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stdout.strip() == "False"
    assert done.stderr.splitlines() == [
        "error: temperature must be above 0, got 0.0; greedy is top_k=1",
        "error: epochs must be at least 1, got -1",
    ]
    assert not list(tmp_path.iterdir())


def test_options_are_told_together_with_the_settings():
    arguments = ["--image", IMAGE, "--score-threshold", "50", "--max-objects", "0"]
    arguments += ["--num-samples", "-1", "--num-captions", "0", "--device", "gpu"]
    with pytest.raises(UserError) as error:
        infer_multi_task.main([*arguments, "--set", "epochs=0"])
    starts = ["--score-threshold", "--max-objects", "--num-samples", "--num-captions", "--device"]
    lines = str(error.value).splitlines()
    assert len(lines) == 6
    assert all(any(line.startswith(f"{s} must be ") for line in lines) for s in [*starts, "epochs"])


@pytest.mark.parametrize(
    "path", [p for p in SCRIPTS if "train/" in named(p) or "infer/" in named(p)], ids=named
)
def test_every_number_on_a_command_line_has_a_range(path, monkeypatch):
    """An option of a script without a rule in `OPTIONS` would not be checked."""
    if "utils.cli.parser" not in modules(path) | script_modules(path):
        return  # it has no settings
    seen = []

    class Enough(Exception): ...

    def stop(self, *_):
        seen.extend(self._actions)
        raise Enough

    monkeypatch.setattr(Parser, "parse_args", stop)
    module = __import__(named(path).removesuffix(".py").replace("/", "."), fromlist=["main"])
    with contextlib.suppress(Enough):
        module.main(required(path))
    assert seen
    assert {action.dest for action in seen if action.type in (int, float)} <= set(OPTIONS)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"{prefix}min_scale=1.5", f"{prefix}max_scale=1.2"] for prefix in
          ("", "seg_", "keypoint_", "caption_")),
        ["keypoint_official_resampling=true", "top_k=5"],
        ["data=a", "train_json=b"],
        ["data=a", "test_json=b"],
        ["val_json=a"],
        ["val_images=b"],
        ["dataset=voc", "data=a"],
        ["dataset=voc", "train_json=a"],
        ["fsdp=true", "amp=fp16"],
        ["fsdp=true", "ema_decay=0.9"],
        ["freeze_batch_norm=true", "pretrained=false"],
        ["dim=100", "num_heads=16"],
        ["encoder=official_vit"],
        ["encoder=official_vit", "pretrained=false", "encoder_stride=16"],
        ["encoder=official_vit", "pretrained=false", "img_size=100"],
        ["encoder=official_vit", "pretrained=false", "encoder_dim=100"],
        ["encoder=official_resnet", "pretrained=false", "resnet_width=0.33"],
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_one_line(overrides):
    with pytest.raises(UserError) as error:
        snapshot(CFG, overrides, pairs=TRAINING_PAIRS)
    assert "\n" not in str(error.value)
    assert overrides[0].partition("=")[0] in str(error.value)
    assert set(PAIRS) <= set(TRAINING_PAIRS)


def test_words_and_limits_are_those_of_the_library():
    """The rules stand apart from the library, which they keep from being imported."""
    for name, words in CHOICES.items():
        if name in RULES:
            assert set(RULES[name].values) <= set(words)
    assert set(RULES["decode_mode"].values) == set(DECODE_MODES)
    assert set(RULES["class_corruption"].values) == set(CORRUPTIONS)
    assert set(setting_rules.TASK_NAMES) <= set(TASK_NAMES)


@pytest.mark.parametrize(
    ("name", "parse", "texts"),
    [
        (
            "loss",
            LossType.parse,
            "xent xent@1 xent@1.1 focal@2 logistic@.5 logistic@0.51 mse",
        ),
        ("lr_schedule", parse_schedule, "linear cosine@0.8 exp@0.1 exp linear@2 cosine@1.2.3 cos"),
    ],
)
def test_words_with_a_number_are_those_that_the_library_parses(name, parse, texts):
    for text in texts.split():
        known = True
        try:
            parse(text)
        except ValueError:
            known = False
        assert known == (RULES[name].problem(text) == ""), text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "3"], "--set epochs=3"),
        (["--epochs=3"], "--set epochs=3"),
        (["--batch-size", "3"], "--set batch_size=3"),
        (["--epochs", "--debug"], "--set epochs=VALUE"),
        (["epochs=3"], "--set epochs=3"),
        (["--learning-rate", "3"], "--set lr=3"),
        (["--weights", "a"], "--set init_weights=a"),
        (["--out-dirs", "a"], "see --help"),  # runs_dir is not near enough
        (["--prest", "demo"], "did you mean --preset?"),
        (["--resum", "auto", "x"], "see --help"),
        (["x"], "unknown argument 'x'"),
        (["--qqqq"], "see --help"),
        (["--config"], "--config: expected one argument"),
    ],
)
def test_an_unknown_argument_says_what_was_meant(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        train_detection.main(arguments)
    assert "\n" not in str(error.value)
