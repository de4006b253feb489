"""Training: learns, resumes exactly, leaves the documented files, refuses what cannot work."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from config import CFG, VocCFG
from dataset.loader import build_eval_loader
from infer.predictor import Predictor
from models import load_model
from models.decode_step.native import obstacle
from tests.conftest import TINY
from tests.tiny_models import tiny
from tests.training import StopAt, losses, resume
from train import build as train_build
from train import train_coco_object_detection, train_voc_object_detection
from train import validate as validation
from train.checkpoint import load_checkpoint
from train.engine import train
from train.loss import token_losses, weighted_mean
from train.optim import build_optimizer, lr_factor
from train.state import rng_state
from utils.cli import snapshot
from utils.devices import pick_device
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def settings(demo_set, tmp_path, *more):
    return [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", *more]


def test_training_learns(demo_set, tmp_path):
    more = [
        "augment=false",
        "max_steps=60",
        "epochs=60",
        "eval_every=60",
        "lr=3e-3",
        "train_limit=4",
    ]
    run_dir = train(snapshot(CFG, settings(demo_set, tmp_path, *more)), ["detection"])
    history = losses(run_dir)
    assert len(history) == 60 and np.mean(history[-5:]) < 0.6 * np.mean(history[:3])


def test_a_run_leaves_the_documented_files(demo_set, tmp_path):
    overrides = settings(demo_set, tmp_path)
    run_dir = train(snapshot(CFG, overrides), ["detection"])
    assert run_dir.parent == tmp_path / "runs" / "detection"
    names = {path.name for path in run_dir.iterdir()}
    assert {"settings.json", "last.ckpt", "last.safetensors", "best.safetensors", "best",
            "metrics.jsonl", "log.txt", "pictures"} <= names  # fmt: skip
    assert {p.name for p in (run_dir / "best").iterdir()} == {
        "results.json", "metrics.json", "per_class.csv",
    }  # fmt: skip
    assert json.loads((run_dir / "settings.json").read_text())["img_size"] == 64
    events = EventAccumulator(str(run_dir))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "train/lr", "train/grad_norm", "train/images_per_s"} <= set(scalars)
    assert "val/detection/AP50" in scalars
    assert set(events.Tags()["images"]) == {"train/detection", "val/detection"}
    again = train(snapshot(CFG, overrides), ["detection"])
    assert again != run_dir, "a run folder is never reused"


def test_the_same_seed_gives_the_same_run_whatever_the_workers(demo_set, tmp_path):
    runs = [
        train(snapshot(CFG, settings(demo_set, tmp_path, more)), ["detection"])
        for more in ("num_workers=0", "num_workers=2")
    ]
    assert losses(runs[0]) == losses(runs[1]) and len(losses(runs[0])) == 6
    other = train(snapshot(CFG, settings(demo_set, tmp_path, "seed=1")), ["detection"])
    assert losses(other) != losses(runs[0])


def test_signals_are_given_back_after_a_run(demo_set, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(snapshot(CFG, settings(demo_set, tmp_path, "max_steps=1")), ["detection"])
    assert signal.getsignal(signal.SIGTERM) == before


DROPS = ("drop_units=0.1", "drop_path=0.1")


@pytest.fixture(scope="module")
def whole_run(demo_set, tmp_path_factory):
    """A run with dropout that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return train(snapshot(CFG, settings(demo_set, folder, *DROPS)), ["detection"])


@pytest.mark.parametrize("stop", [1, 3, 4])  # within an epoch of three steps, and between two
def test_resume_continues_bit_for_bit(demo_set, whole_run, tmp_path, monkeypatch, stop):
    overrides = settings(demo_set, tmp_path, *DROPS)
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.StopSignal", lambda _: StopAt(stop))
        part = train(snapshot(CFG, overrides), ["detection"])
    assert len(losses(part)) == stop
    assert resume(overrides, ["detection"], part) == part
    assert losses(part) == losses(whole_run)
    states = [load_model(run / "last.safetensors").state_dict() for run in (whole_run, part)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_resume_takes_the_settings_of_the_run_and_newer_overrides(demo_set, tmp_path):
    run_dir = train(snapshot(CFG, settings(demo_set, tmp_path, "epochs=1")), ["detection"])
    runs = f"runs_dir={tmp_path / 'runs'}"
    assert resume([runs, "epochs=2"], ["detection"], "auto") == run_dir
    assert len(losses(run_dir)) == 6
    saved = json.loads((run_dir / "settings.json").read_text())
    assert saved["img_size"] == 64 and saved["epochs"] == 2


def test_voc_and_coco_layout_of_one_set_train_alike(demo_set, tmp_path):
    common = [*TINY, f"runs_dir={tmp_path}", "max_steps=2"]
    coco = train_coco_object_detection.main(["--set", *common, f"coco_root={demo_set}"])
    voc = train_voc_object_detection.main(
        ["--set", *common, f"voc_root={demo_set}", "voc_sets=2012:train", "voc_eval_sets=2012:val"]
    )
    names = [
        set(Predictor(run / "last.safetensors").categories.names.values()) for run in (coco, voc)
    ]
    assert names[0] == names[1] and len(names[0]) == 10
    metrics = json.loads((voc / "best" / "metrics.json").read_text())
    assert list(metrics)[:2] == ["mAP50", "mAP50_11point"]


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    parents = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            _state, parent, *_ = file.read_text().rpartition(")")[2].split()
            parents.append((int(file.parent.name), int(parent)))
    found = [pid]
    for parent in found:
        found += [child for child, other in parents if other == parent]
    return found[1:]


@pytest.mark.parametrize(
    ("number", "everyone"),
    [
        pytest.param(
            signal.SIGTERM,
            True,
            marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc"),
        ),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
    ],
)  # test_stopping.py has both signals within a process
def test_a_signal_to_all_saves_and_leaves_with_its_status(demo_set, tmp_path, number, everyone):
    """As Ctrl-C, service managers and job schedulers send it: to the loader's workers, too."""
    command = [sys.executable, ROOT / "train" / "train_coco_object_detection.py", "--set"]
    command += settings(demo_set, tmp_path, "epochs=10000", "eval_every=10000", "num_workers=1")
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    ) as process:
        deadline, lines = time.monotonic() + 120, []
        while time.monotonic() < deadline and process.poll() is None:
            lines = list((tmp_path / "runs").glob("detection/*/metrics.jsonl"))
            if lines and len(lines[0].read_text().splitlines()) > 2:
                break
            time.sleep(0.1)
        workers = descendants(process.pid)
        assert workers
        for worker in workers if everyone else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, number)
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number, stderr
    assert f"{number.name}: saved step" in stderr and "--resume" in stderr
    assert (lines[0].parent / "last.ckpt").is_file()


def test_starting_from_weights_of_the_same_model(demo_set, tmp_path, tiny_weights):
    more = [f"init_weights={tiny_weights}", "lr=0", "max_steps=1"]
    run_dir = train(snapshot(CFG, settings(demo_set, tmp_path, *more)), ["detection"])
    before, after = (load_model(p) for p in (tiny_weights, run_dir / "last.safetensors"))
    after = after.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.state_dict().items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=15", "batch_size=15 is more than the 14 training samples"),
        ("coco_root=/nowhere", "/nowhere"),
        ("classes=dragon", "unknown class 'dragon'"),
        ("encoder=resnet5", "no encoder 'resnet5'"),
        ("num_bins=5000", "num_bins=5000 does not fit"),
        ("dim=30", "multiple of num_heads"),
        ("class_corruption=all", "corruption must be one of"),
        ("lr_schedule=step", "lr_schedule must be"),
        ("amp=fp8", "amp must be one of"),
        ("device=tpu7", "device must be"),
        ("device=cuda:99", "does not exist"),
        ("pixel_transform=none.json", "no pixel_transform file"),
        ("init_weights=none.safetensors", "no weight file at none.safetensors"),
        ("lr=1e6 max_nonfinite=1", "the detection loss is nan"),
    ],
)
def test_what_cannot_work_is_one_line(demo_set, tmp_path, override, message):
    with pytest.raises(UserError, match=message) as error:
        train(snapshot(CFG, settings(demo_set, tmp_path, *override.split())), ["detection"])
    assert "\n" not in str(error.value)
    if not override.startswith("lr="):
        assert not (tmp_path / "runs").exists(), "a run that cannot start leaves no folder"


def test_other_weights_to_start_from_are_refused(demo_set, tmp_path, tiny_weights):
    with pytest.raises(UserError, match="is a different model: only .* fit"):
        train(
            snapshot(CFG, settings(demo_set, tmp_path, f"init_weights={tiny_weights}", "dim=64")),
            ["detection"],
        )


def test_resume_without_a_run_says_so(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        resume([], ["detection"], tmp_path)


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    for content in (b"", b"hello", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "last.ckpt").write_bytes(content)
        with pytest.raises(UserError, match="cannot continue from"):
            load_checkpoint(tmp_path, state=None)


def test_the_script_of_one_dataset_refuses_the_other(tmp_path):
    with pytest.raises(UserError, match="trains on voc, the settings say dataset=coco"):
        train_voc_object_detection.main(["--preset", "demo", "--set", f"runs_dir={tmp_path}"])
    assert VocCFG.dataset == "voc"


def test_the_loss_is_the_weighted_mean():
    logits, targets = torch.randn(6, 9), torch.randint(0, 9, (6,))
    weights = torch.tensor([0.0, 0.1, 1, 1, 2, 0])
    rows = nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = (rows * weights).sum() / weights.sum()
    torch.testing.assert_close(weighted_mean(token_losses(logits, targets), weights), expected)


@pytest.mark.parametrize(
    ("schedule", "half"), [("linear", 0.505), ("cosine", 0.505), ("constant", 1)]
)
def test_schedule(schedule, half):
    options = {"total_steps": 110, "warmup_steps": 10, "end_factor": 0.01, "schedule": schedule}
    assert lr_factor(0, **options) == 0 and lr_factor(5, **options) == 0.5
    assert lr_factor(10, **options) == 1
    assert lr_factor(60, **options) == pytest.approx(half)
    assert lr_factor(10_000, **options) == pytest.approx(1 if schedule == "constant" else 0.01)


def test_what_decays_is_a_setting():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    options = {"lr": 0.1, "weight_decay": 0.5, "betas": (0.9, 0.95)}
    everything = build_optimizer(model, decay_all=True, **options)
    assert [g["weight_decay"] for g in everything.param_groups] == [0.5]
    matrices = build_optimizer(model, decay_all=False, **options)
    decayed = {g["weight_decay"]: sum(p.ndim for p in g["params"]) for g in matrices.param_groups}
    assert decayed == {0.5: 2, 0.0: 3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss=mse", "loss must be xent"),
        ("lr_schedule=step", "lr_schedule must be"),
        ("lr_scaling=cubic", "lr_scaling must be"),
        ("amp=fp8", "amp must be one of"),
        ("device=tpu7", "device must be"),
        ("decay_exclude=(", "decay_exclude must be regular expressions"),
        ("decode_mode=natve", "decode_mode must be one of auto, plain.*'natve'"),
        ("bad_samples=maybe", "bad_samples must be refuse or skip, got 'maybe'"),
        ("resize_mode=crop", "resize_mode must be letterbox or stretch, got 'crop'"),
        ("class_corruption=all", "corruption must be one of"),
        ("encoder=resnet5", "no encoder 'resnet5'"),
        ("dim=30", "multiple of num_heads"),
        ("num_bins=5000", "num_bins=5000 does not fit"),
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("ema_decay=1", "ema_decay must be"),
        ("layer_decay=0", "layer_decay must be"),
        ("encoder_lr_factor=0", "encoder_lr_factor must be"),
        ("fsdp=true amp=fp16", "fsdp=true goes with amp=bf16 or amp=off"),
        ("fsdp=true ema_decay=0.9", "fsdp=true does not work with ema_decay"),
        ("freeze_batch_norm=true", "freeze_batch_norm=true keeps the statistics of a trained"),
        ("init_weights=none.safetensors", "no weight file at none.safetensors"),
        ("pixel_transform=none.json", "no pixel_transform file"),
        *((f"{name}=0", f"{name} must be at least 1.*, got 0") for name in
          ("accumulate_steps", "num_lengths", "prefetch_batches", "eval_batch_size", "eval_every",
           "log_every", "keep_checkpoints")),
        *((f"{name}=-1", f"{name} must be at least 0.*, got -1") for name in
          ("save_steps", "save_minutes", "max_steps", "freeze_encoder_steps",
           "early_stop_patience", "num_workers")),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_before_any_data_is_opened(tmp_path, override, message):
    overrides = [*TINY, "coco_root=/nowhere", f"runs_dir={tmp_path / 'runs'}", *override.split()]
    with pytest.raises(UserError, match=message) as error:
        train(snapshot(CFG, overrides), ["detection"])
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("split", "train_limit", "eval_limit", "trained", "judged"),
    [
        ("val", 5, 2, 5, 2),
        ("train", 5, 2, 5, 2),
        ("train", 2, 5, 2, 2),
        ("train", 0, 3, 14, 3),
        ("train", 3, 0, 3, 3),
    ],
)
def test_limits_count_on_either_split(
    demo_set, tmp_path, split, train_limit, eval_limit, trained, judged
):
    limits = (f"eval_split={split}", f"train_limit={train_limit}", f"eval_limit={eval_limit}")
    cfg = snapshot(CFG, [*settings(demo_set, tmp_path), *limits])
    sources = (train_build.build_source_of(cfg, "detection", train=t) for t in (True, False))
    assert [len(source) for source in sources] == [trained, judged]


def test_a_tail_leaves_steps_to_lower_the_rate(demo_set, tmp_path):
    more = ("max_steps=5", "warmup_steps=2", "tail_steps=3")
    with pytest.raises(UserError, match="tail_steps=3 leaves no step .* 5, 2 of them warm-up"):
        train(snapshot(CFG, settings(demo_set, tmp_path, *more)), ["detection"])


def test_a_training_on_the_cpu_touches_no_gpu(monkeypatch):
    """It may be full, or somebody else's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: pytest.fail("CUDA was initialised"))
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", torch.cuda.init)
    assert pick_device("cpu") == torch.device("cpu")
    assert rng_state()["cuda"] == []
    loader = build_eval_loader([], batch_size=1, num_workers=0)
    assert not loader.pin_memory


@pytest.mark.parametrize(
    ("device", "compiled", "num_lengths"), [("cpu", 0, 0), ("cpu", 1, 8), ("cuda", 0, 8)]
)
def test_lengths_are_few_where_each_is_planned_anew(
    monkeypatch, demo_set, tmp_path, device, compiled, num_lengths
):
    asked, build = [], train_build.build_train_loader
    monkeypatch.setattr("train.settings.pick_device", lambda _: torch.device(device))
    monkeypatch.setattr(
        train_build,
        "build_train_loader",
        lambda *args, **options: asked.append(options["num_lengths"]) or build(*args, **options),
    )
    cfg = snapshot(CFG, settings(demo_set, tmp_path, f"compile={bool(compiled)}"))
    sources = {"detection": train_build.build_source_of(cfg, "detection", train=True)}
    vocab = train_build.build_vocabulary(cfg, ["detection"])
    tokenizers = train_build.build_tokenizers(cfg, ["detection"], vocab, sources)
    train_build.build_streams(cfg, sources, tokenizers)
    assert asked == [num_lengths]


@pytest.mark.parametrize("setting", ["auto", "native", "plain", "static", "compiled"])
def test_validation_decodes_fast_and_leaves_the_model_as_it_was(monkeypatch, setting):
    decoded, model = [], tiny().train()
    monkeypatch.setattr(validation, "TrainedModel", lambda model: model)
    monkeypatch.setattr(
        validation, "evaluate_task", lambda *args, **_: decoded.append(args[2].decode_mode)
    )
    monkeypatch.setattr(validation, "draw_pairs", lambda *_: np.zeros((8, 8, 3), np.uint8))
    before = [value.clone() for value in model.state_dict().values()]
    validation.validate(snapshot(CFG, [f"decode_mode={setting}"]), "detection", model, None)
    fast = "native" if obstacle() is None else "plain"
    wanted = {"plain": "plain", "static": "static", "compiled": "static"}.get(setting, fast)
    assert decoded == [wanted] and model.decode_mode == "plain" and model.training
    after = model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
