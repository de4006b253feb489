"""A training that is killed, told to stop, and resumed, as README.md and docs/training.md say.

Its end has to be that of a training that nothing happened to: every byte of the weights, every
logged number.
"""

import json
import signal
from pathlib import Path

import pytest

from tests.journeys.clone import SMALL_MODEL, Clone, wait_until

pytestmark = pytest.mark.slow

TRAIN = "python train/train_coco_object_detection.py"
STEPS = 24  # of an epoch: the drawn set has as many pictures
EPOCHS = 4
SAVE_STEPS = 7  # no divisor of an epoch: checkpoints lie within epochs
SETTINGS = (
    SMALL_MODEL
    | {  # seconds instead of days; dropout and augmentation are on, as they are for a person
        "batch_size": 1,
        "num_workers": 2,
        "epochs": EPOCHS,
        "warmup_epochs": 1.0,
        "save_steps": SAVE_STEPS,
        "log_every": 1,
        "eval_limit": 2,
        "device": "cpu",
    }
)
SECONDS = 120  # for a life of the training


@pytest.fixture(scope="module")
def clone(fresh_clone, drawn_set) -> Clone:
    fresh_clone.edit_settings(SETTINGS | {"coco_root": drawn_set})
    return fresh_clone


def test_a_killed_and_stopped_run_ends_like_one_left_alone(clone):
    clone.run(f"{TRAIN} --set runs_dir=left_alone", seconds=SECONDS)
    (whole,) = clone.root.glob("left_alone/detection/*/")

    # killed without a warning in the middle of the second epoch, after a checkpoint in it
    status, step = interrupt(clone, TRAIN, signal.SIGKILL, after=STEPS + 6)
    assert status == -signal.SIGKILL
    assert STEPS < step < 2 * STEPS, "it died within the second epoch"
    (run,) = clone.root.glob("runs/detection/*/")
    assert (run / "last.ckpt").is_file()

    # resumed, and told to stop in the third epoch, then in the last one
    for after, number, command in (
        (2 * STEPS + 3, signal.SIGTERM, f"{TRAIN} --resume auto"),
        (3 * STEPS + 3, signal.SIGINT, f"{TRAIN} --resume {run}"),
    ):
        status, step = interrupt(clone, command, number, after=after)
        assert status == 128 + number, "143 after SIGTERM, 130 after Ctrl-C"
        assert after <= step < after + STEPS
    clone.run(f"{TRAIN} --resume auto", seconds=SECONDS)

    assert list(clone.root.glob("runs/detection/*/")) == [run], "all in the folder of the first"
    assert read_rows(run)[-1]["step"] == EPOCHS * STEPS
    for name in ("last.safetensors", "best.safetensors"):
        equal = read_weights(run / name) == read_weights(whole / name)
        assert equal, f"{name} differs"  # pytest would show a difference of megabytes
    assert read_rows(run) == read_rows(whole)


def test_a_run_at_its_end_is_left_as_it_is(clone):
    (run,) = clone.root.glob("runs/detection/*/")
    before = (run / "last.safetensors").stat().st_mtime_ns
    clone.run(f"{TRAIN} --resume auto", seconds=SECONDS)
    assert (run / "last.safetensors").stat().st_mtime_ns == before


def interrupt(clone: Clone, command: str, number: int, *, after: int) -> tuple[int, int]:
    """Runs a training, and sends it a signal once it has logged step `after`.

    Returns:
        its exit status, and the last step that it logged.
    """
    with clone.start(f"exec {command}") as process:

        def has_come_so_far() -> bool:
            assert process.poll() is None, clone.stderr.read_text()[-2000:]
            runs = clone.root.glob("runs/detection/*/")
            return any(find_last_step(run) >= after for run in runs)

        wait_until(has_come_so_far, seconds=SECONDS, what=f"step {after} of {command}")
        process.send_signal(number)
        status = process.wait(timeout=SECONDS)
    (run,) = clone.root.glob("runs/detection/*/")
    return status, find_last_step(run)


def read_weights(path: Path) -> tuple[dict, bytes]:
    """Header and tensors of a weight file.

    safetensors writes the entries of its metadata in another order in every process, so the files
    of two equal runs differ in the header; the bytes after it are compared as they are.
    """
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def find_last_step(run: Path) -> int:
    return max((row["step"] for row in read_rows(run)), default=0)


def read_rows(run: Path) -> list[dict]:
    """The numbers that were logged, without the speed; a line that is being written is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: row[name] for name in row if "images_per_s" not in name} for row in rows]
