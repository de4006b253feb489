"""Settings: typed overrides, read-only, presets; errors in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from config import CFG, PRESETS
from utils.cli import (
    find_preset,
    load_settings,
    parser,
    pick_names,
    settings_dict,
    settings_types,
    snapshot,
)
from utils.errors import ALIASES, UserError, near_settings

ROOT = Path(__file__).resolve().parents[1]


def test_overrides_are_typed_by_the_annotation():
    cfg = snapshot(
        CFG,
        ["epochs=3", "lr=1", "augment=false", "coco_root=~/x", "classes=cat,dog", "betas=0.8,0.9"],
    )
    assert (cfg.epochs, cfg.lr, cfg.augment) == (3, 1.0, False) and isinstance(cfg.lr, float)
    assert cfg.coco_root == Path("~/x").expanduser()
    assert cfg.classes == ("cat", "dog") and cfg.betas == (0.8, 0.9)
    assert snapshot(CFG, ["encoder_stride=16"]).encoder_stride == 16
    assert snapshot(CFG, ["encoder_stride=none"]).encoder_stride is None


def test_overrides_do_not_leak_and_snapshots_are_read_only():
    before = CFG.epochs
    cfg = snapshot(CFG, [f"epochs={before + 1}"])
    assert before == CFG.epochs != cfg.epochs
    with pytest.raises(AttributeError, match="read-only"):
        cfg.epochs = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", "no setting 'epoch' in config.py; similar names: epochs"),
        ("EPOCHS=3", "no setting 'EPOCHS' in config.py; similar names: epochs"),
        ("xyz=3", "no setting 'xyz' in config.py; class CFG there has all names"),
        ("learning_rate=3", "similar names: lr$"),
        ("SOLVER.IMS_PER_BATCH=3", "similar names: batch_size$"),
        ("imgsz=3", "similar names: img_size$"),
        ("epochs", "--set wants name=value, got 'epochs'"),
        ("epochs=three", "epochs must be of type int, got 'three'"),
        ("augment=maybe", "augment must be true or false"),
        ("betas=1", "betas must be 2 values with commas"),
    ],
)
def test_a_wrong_override_says_what_to_do(override, message):
    with pytest.raises(UserError, match=message):
        snapshot(CFG, [override])


def test_every_setting_is_annotated_and_presets_invent_none():
    kinds = settings_types(CFG)
    for preset in PRESETS.values():
        names = {name for name in vars(preset) if not name.startswith("_")}
        assert names <= set(kinds), names - set(kinds)


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_the_run_folder(preset):
    cfg = snapshot(PRESETS[preset], ["classes=a,b", "max_minutes=1.5"])
    again = snapshot(PRESETS[preset], ["epochs=7"], saved=settings_dict(cfg))
    assert settings_dict(again) == settings_dict(cfg) | {"epochs": 7}
    assert all(type(getattr(again, n)) is type(getattr(cfg, n)) for n in settings_types(CFG))


def test_one_chain_of_precedence(tmp_path):
    """CFG < preset < the run or weight file < --config < --set."""
    file = tmp_path / "settings.json"
    written = {"lr": 0.3, "dim": 30, "betas": [0.3, 0.3], "tasks": ["detection"]}
    file.write_text(json.dumps(written))
    inherited = {"lr": 0.2, "dim": 20, "num_layers": 2, "betas": [0.2, 0.2]}
    args = parser("", presets=PRESETS).parse_args(
        ["--preset", "demo", "--config", str(file), "--set", "lr=0.4"]
    )
    cfg = load_settings(args, CFG, presets=PRESETS, inherited=inherited)
    assert (cfg.lr, cfg.dim, cfg.num_layers) == (0.4, 30, 2)
    assert cfg.betas == (0.3, 0.3) and isinstance(cfg.betas, tuple)
    assert cfg.num_heads == PRESETS["demo"].num_heads != CFG.num_heads
    assert cfg.weight_decay == CFG.weight_decay


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold a JSON object"),
        ("{", "cannot read"),
        ('{"learning_rate": 1}', "no setting 'learning_rate'"),
        ('{"dim": "wide"}', "dim must be of type int, got 'wide'"),
    ],
)
def test_a_wrong_file_of_settings_is_one_line(tmp_path, text, message):
    file = tmp_path / "settings.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        snapshot(CFG, file=file)
    with pytest.raises(UserError, match="--config"):
        snapshot(CFG, file=tmp_path / "none.json")


def test_names_with_commas_come_in_the_known_order_and_typos_are_guessed():
    assert pick_names("--task", "c, a,c", ["a", "b", "c"]) == ["a", "c"]
    with pytest.raises(UserError, match="--task must .* got 'detect'; did you mean detection?"):
        pick_names("--task", "detect", ["detection", "captioning"])


def test_an_unknown_preset_names_the_known():
    with pytest.raises(UserError, match="no preset 'demos'.*did you mean demo"):
        find_preset(PRESETS, "demos")
    with pytest.raises(UserError, match=r"'fine_tune' in config.py; did you mean finetune\?$"):
        find_preset(PRESETS, "fine_tune")
    with pytest.raises(UserError, match="there is: default, .*finetune"):
        find_preset(PRESETS, "xyz")


def test_a_name_of_another_library_hints_at_one_setting_of_ours():
    ours = settings_types(CFG)
    names = [name for others in ALIASES.values() for name in others]
    assert (
        len(names) == len(set(names)) and not set(names) & set(ours) and set(ALIASES) <= set(ours)
    )
    for setting, others in ALIASES.items():
        for name in others:
            assert (
                near_settings(name, ours) == near_settings(f"A.{name.upper()}", ours) == [setting]
            )


SCRIPTS = [
    "train/train_coco_object_detection.py",
    "train/train_voc_object_detection.py",
    "infer/infer_single_image_object_detection.py",
    "infer/infer_single_image_voc.py",
    "train/train_multi_task.py",
    "infer/infer_single_image_multi_task.py",
    "infer/evaluate.py",
    "train/train_coco_img_captioning.py",
    "infer/infer_single_image_caption.py",
    "dataset/build_captioning_vocab.py",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help_and_runs_from_any_folder(script, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "--set" in done.stdout and not list(tmp_path.iterdir())


def test_a_user_error_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, ROOT / "train/train_coco_object_detection.py", "--set"]
    done = subprocess.run(
        [*command, f"coco_root={tmp_path / 'none'}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    debug = subprocess.run(
        [*command, "no_such_setting=1", "--debug"], cwd=tmp_path, capture_output=True, text=True
    )
    assert debug.returncode == 2 and "Traceback" in debug.stderr


@pytest.mark.parametrize("option", ["--resume", "--config", "--set", "--preset", "--task"])
def test_an_empty_word_is_a_variable_that_is_not_set(option, tmp_path, monkeypatch):
    """No run starts, no default is taken."""
    monkeypatch.chdir(tmp_path)
    from train import train_multi_task

    for words in ([option, ""], ["--set", "classes=", option, ""], [f"{option}="]):
        with pytest.raises(UserError, match=f"^{option} has an empty value; is a variable not set"):
            train_multi_task.main(words)
    assert not list(tmp_path.iterdir())
    assert parser("").parse_args(["--set", "classes="]).set == ["classes="]


def bare(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """Runs a Python that has its own library alone."""
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("script", [*SCRIPTS, "dataset/check_dataset.py", "infer/app.py"])
def test_without_the_packages_every_script_says_which_python_has_them(script, tmp_path):
    done = bare(ROOT / script, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {Path(script).name}: this needs the packages of req")
    assert "run it with .venv/bin/python" in done.stderr


def test_a_program_of_somebody_else_gets_the_import_error(tmp_path):
    (tmp_path / "mine.py").write_text(
        f"import sys\nsys.path.append({str(ROOT)!r})\nimport infer.boxes"
    )
    done = bare("mine.py", cwd=tmp_path)
    assert done.returncode == 1 and "ModuleNotFoundError: No module named 'numpy'" in done.stderr
