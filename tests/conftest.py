"""Shared fixtures: data outside the repository (skipped when absent) and small drawn sets."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("PIX2SEQ_TEST_DATA", ROOT.parent / "shared"))


def _outside(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(
            f"no {folder} data at {path}; set PIX2SEQ_TEST_DATA to the folder that holds it"
        )
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real COCO and VOC-format samples."""
    return _outside("real")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Numbers produced by the official implementation."""
    return _outside("reference")


TINY = [  # settings of a model that trains in seconds
    *("encoder=test_vit", "pretrained=false", "img_size=64", "dim=32", "num_layers=2"),
    *("num_heads=4", "mlp_dim=64", "max_objects=8", "batch_size=4", "num_workers=0", "epochs=2"),
    *("warmup_epochs=0.5", "lr=1e-3", "eval_batch_size=4", "device=cpu", "log_every=1"),
]


@pytest.fixture(scope="session")
def demo_set(tmp_path_factory) -> Path:
    """A small drawn set in COCO and VOC layout: 14 training and 6 validation pictures."""
    from dataset.demo.write import DemoSet, write_demo_set

    out = tmp_path_factory.mktemp("demo") / "set"
    write_demo_set(DemoSet(train=14, val=6, size=(96, 128), seed=5), out, workers=1, progress=False)
    return out


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory, demo_set) -> Path:
    """A weight file of a detection model that has learned the class names of `demo_set`."""
    from config import CFG
    from train.engine import train
    from utils.cli import snapshot

    runs = tmp_path_factory.mktemp("runs")
    overrides = [*TINY, f"coco_root={demo_set}", f"runs_dir={runs}", "augment=false"]
    overrides += ["epochs=30", "eval_every=30", "lr=3e-3"]
    return train(snapshot(CFG, overrides), ["detection"]) / "last.safetensors"


@pytest.fixture(scope="session")
def caption_vocab(tmp_path_factory, demo_set) -> Path:
    """Sub-word pieces of the captions of `demo_set`."""
    from dataset import build_captioning_vocab

    out = tmp_path_factory.mktemp("vocab") / "captions.json"
    build_captioning_vocab.main(["--set", f"coco_root={demo_set}", "--out", str(out)])
    return out


@pytest.fixture(scope="session")
def multi_settings(demo_set, caption_vocab) -> list[str]:
    """Settings of a tiny model of all tasks on `demo_set`."""
    short = ["max_points=8", "seg_max_objects=3", "max_caption_tokens=12", "captions_per_image=2"]
    return [*TINY, *short, f"coco_root={demo_set}", f"caption_vocab={caption_vocab}"]


@pytest.fixture(scope="session")
def multi_weights(tmp_path_factory, multi_settings) -> Path:
    """A weight file of a barely trained model of all tasks on `demo_set`."""
    from config import CFG
    from dataset.tasks import TASKS
    from train.engine import train
    from utils.cli import snapshot

    runs = tmp_path_factory.mktemp("runs")
    overrides = [*multi_settings, f"runs_dir={runs}", "max_steps=2", "eval_limit=2"]
    return train(snapshot(CFG, overrides), list(TASKS)) / "last.safetensors"


def pytest_sessionfinish():
    """Loader processes that a test left behind must not keep the run from ending."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for a fault
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
