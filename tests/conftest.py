"""Shared fixtures: data outside the repository (skipped when absent) and small drawn sets.

`make test` runs the tests in several processes (pytest-xdist). What is slow to make is made by one
of them and shared by all.
"""

import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # one of several processes
if IS_WORKER:  # before torch is imported: they share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from filelock import FileLock

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


LONGEST = (  # files of tests, by their time
    *("test_distributed", "test_readme", "test_train", "test_native_step", "test_console"),
    *("test_other_packages", "test_checkpoint", "test_multi_task", "test_cli", "test_segmentation"),
    *("test_imports", "test_stopping", "test_keypoints", "test_output", "test_infer", "test_onnx"),
    *("test_report", "test_loggers", "test_extending", "test_training_options"),
)

TINY = [  # settings of a model that trains in seconds
    *("encoder=test_vit", "pretrained=false", "img_size=64", "dim=32", "num_layers=2"),
    *("num_heads=4", "mlp_dim=64", "max_objects=8", "batch_size=4", "num_workers=0", "epochs=2"),
    *("warmup_epochs=0.5", "lr=1e-3", "eval_batch_size=4", "device=cpu", "log_every=1"),
]


@pytest.fixture(scope="session", autouse=True)
def encoders_tried_once():
    """A training first tries its encoder; here hundreds of them have the same few encoders."""
    settings = sys.modules.get("train.settings")
    if settings is None:  # no test of this run trains
        yield
        return
    from models.encoder import is_class

    check = settings.check_encoder
    once = functools.cache(check)  # a refusal is not kept

    def check_encoder(config) -> None:
        (check if is_class(config.encoder) else once)(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "check_encoder", check_encoder)
        yield


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], Path]], Path]:
    """`make_once(name, make)`: the path that `make(folder)` returns, the same in all processes.

    The first process that asks makes it in a new folder; the others wait.
    """
    root = tmp_path_factory.getbasetemp()
    if IS_WORKER:
        root = root.parent  # of all processes of this run

    def once(name: str, make: Callable[[Path], Path]) -> Path:
        folder, made = root / f"shared_{name}", root / f"shared_{name}.path"
        with FileLock(f"{folder}.lock"):
            if not made.exists():
                folder.mkdir(exist_ok=True)
                made.write_text(str(make(folder)))
        return Path(made.read_text())

    return once


@pytest.fixture(scope="session")
def demo_set(make_once) -> Path:
    """A small drawn set in COCO and VOC layout: 14 training and 6 validation pictures."""
    from dataset.demo.write import DemoSet, write_demo_set

    def draw(folder: Path) -> Path:
        size = DemoSet(train=14, val=6, size=(96, 128), seed=5)
        write_demo_set(size, folder / "set", workers=1, progress=False)
        return folder / "set"

    return make_once("demo", draw)


@pytest.fixture(scope="session")
def tiny_weights(make_once, demo_set) -> Path:
    """A weight file of a detection model that has learned the class names of `demo_set`."""
    from config import CFG
    from train.engine import train
    from utils.cli import snapshot

    overrides = [*TINY, f"coco_root={demo_set}", "augment=false"]
    overrides += ["epochs=30", "eval_every=30", "lr=3e-3"]

    def learn(folder: Path) -> Path:
        run_dir = train(snapshot(CFG, [*overrides, f"runs_dir={folder}"]), ["detection"])
        return run_dir / "last.safetensors"

    return make_once("tiny_weights", learn)


@pytest.fixture(scope="session")
def caption_vocab(make_once, demo_set) -> Path:
    """Sub-word pieces of the captions of `demo_set`."""
    from dataset import build_captioning_vocab

    def build(folder: Path) -> Path:
        out = folder / "captions.json"
        build_captioning_vocab.main(["--set", f"coco_root={demo_set}", "--out", str(out)])
        return out

    return make_once("vocab", build)


@pytest.fixture(scope="session")
def multi_settings(demo_set, caption_vocab) -> list[str]:
    """Settings of a tiny model of all tasks on `demo_set`."""
    short = ["max_points=8", "seg_max_objects=3", "max_caption_tokens=12", "captions_per_image=2"]
    return [*TINY, *short, f"coco_root={demo_set}", f"caption_vocab={caption_vocab}"]


@pytest.fixture(scope="session")
def multi_weights(make_once, multi_settings) -> Path:
    """A weight file of a barely trained model of all tasks on `demo_set`."""
    from config import CFG
    from dataset.tasks import TASKS
    from train.engine import train
    from utils.cli import snapshot

    def learn(folder: Path) -> Path:
        overrides = [*multi_settings, f"runs_dir={folder}", "max_steps=2", "eval_limit=2"]
        return train(snapshot(CFG, overrides), list(TASKS)) / "last.safetensors"

    return make_once("multi_weights", learn)


def pytest_collection_modifyitems(items):
    """Longest files first, so that several processes end at about the same time."""
    if IS_WORKER:
        place = {name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_sessionfinish():
    """Loader processes that a test left behind must not keep the run from ending."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for a fault
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
