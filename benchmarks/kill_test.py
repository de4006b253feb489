"""Kills a training with SIGKILL at random moments, resumes it, and compares it with one left alone.

python benchmarks/kill_test.py
python benchmarks/kill_test.py --kills 3 --steps 60 --seed 1

A tiny model learns a small drawn set on the CPU, with a worker process, dropout, a moving average
of the weights and evaluations. Every life of the killed run starts with the same command line,
`--resume auto`. At the end everything in the checkpoints (weights, optimiser, schedule, average,
random generators, place in the data, best metric) and all logged losses must be equal bit for bit.
Exit status 1 if they are not.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

import torch
from safetensors.torch import load_file

from dataset.demo.write import DemoSet, write_demo_set
from train.checkpoint import checkpoints
from utils.cli import log, run
from utils.errors import UserError

SETTINGS = [
    *("encoder=test_vit", "pretrained=false", "img_size=64", "dim=32", "num_layers=2"),
    *("num_heads=4", "mlp_dim=64", "max_objects=8", "batch_size=4", "num_workers=1"),
    *("device=cpu", "epochs=100000", "warmup_epochs=2", "lr=1e-3", "eval_batch_size=4"),
    *("drop_units=0.1", "drop_path=0.1", "ema_decay=0.99", "eval_every=40", "log_every=1"),
    *("save_steps=5",),
]


def main(argv=None) -> None:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--kills", type=int, default=20)
    args.add_argument("--steps", type=int, default=600, help="of the whole training")
    args.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = args.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        differences = kill_test(Path(folder), args.kills, args.steps, args.seed)
    for difference in differences:
        print(f"not equal: {difference}")
    if differences:
        sys.exit(1)
    print(f"killed {args.kills} times in {args.steps} steps: equal to the run left alone")


def kill_test(folder: Path, kills: int, steps: int, seed: int) -> list[str]:
    """Runs both trainings in `folder`, with a line per kill; returns what is not equal."""
    data = folder / "data"
    small = DemoSet(train=14, val=6, size=(96, 128), seed=5)
    write_demo_set(small, data, workers=1, progress=False)
    overrides = [*SETTINGS, f"coco_root={data}", f"max_steps={steps}"]

    log("the run that is left alone ...")
    began = time.monotonic()
    process = start(overrides, folder / "whole")
    startup = wait_for_first_step(process, folder / "whole") - began
    finish(process)
    training = time.monotonic() - began - startup
    log(f"{startup:.1f} s until the first step, {training:.1f} s of training")

    rng = random.Random(seed)
    for kill in range(1, kills + 1):
        began = time.monotonic()
        process = start(overrides, folder / "killed")
        delay = rng.random() * startup  # one in four dies while it starts, the others later:
        if rng.random() >= 0.25:
            wait_for_first_step(process, folder / "killed")
            delay = rng.random() * training / kills
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        else:
            finish(process)
            raise UserError(f"the run ended before kill {kill}; train longer: --steps {2 * steps}")
        life = time.monotonic() - began
        log(f"kill {kill:2} after {life:4.1f} s: {what_is_left(folder / 'killed')}")
    finish(start(overrides, folder / "killed"))
    return compare(*(newest(folder / name) for name in ("whole", "killed")))


def start(overrides: list[str], runs: Path) -> subprocess.Popen:
    """A life of the training, in a process group of its own."""
    script = ROOT / "train" / "train_coco_object_detection.py"
    command = [sys.executable, script, "--resume", "auto", "--set", *overrides, f"runs_dir={runs}"]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=(runs.parent / f"{runs.name}.log").open("a"),
        start_new_session=True,
    )


def wait_for_first_step(process: subprocess.Popen, runs: Path) -> float:
    """The moment at which this life logs a loss; resuming puts a shorter file in place first."""
    known = {path: path.stat().st_ino for path in runs.glob("*/*/metrics.jsonl")}
    sizes: dict[tuple[Path, int], int] = {}
    while process.poll() is None:
        for path in runs.glob("*/*/metrics.jsonl"):
            stat = path.stat()
            if path not in known and stat.st_size:
                return time.monotonic()
            size = sizes.setdefault((path, stat.st_ino), stat.st_size)
            if stat.st_ino != known.get(path) and stat.st_size > size:
                return time.monotonic()
        time.sleep(0.02)
    return time.monotonic()


def finish(process: subprocess.Popen) -> None:
    """Waits for the end.

    Raises:
        UserError: the training failed, with its last words.
    """
    if process.wait():
        raise UserError(f"the training ended with status {process.returncode}")


def what_is_left(runs: Path) -> str:
    """A line about the run folder that a kill left."""
    found = list(runs.glob("*/*/"))
    if not found:
        return "no run folder yet"
    last = max(found)
    steps = [row["step"] for row in metrics(last)]
    torn = [path.name for path in last.glob(".*")]
    text = f"step {max(steps, default=0)}, {len(checkpoints(last))} checkpoints"
    return text + (f", half-written {', '.join(torn)}" if torn else "")


def newest(runs: Path) -> Path:
    """The run folder that was trained to the end."""
    return max(path.parent for path in runs.glob("*/*/last.ckpt"))


def compare(whole: Path, killed: Path) -> list[str]:
    """Names of what is not equal bit for bit."""
    states = [torch.load(run / "last.ckpt", weights_only=True) for run in (whole, killed)]
    for state in states:
        del state["seconds"]  # the time that it took
        state["window"].pop("times", None)
    found = list(different("", *states))
    for name in ("last.safetensors", "last_ema.safetensors", "best.safetensors"):
        found += different(name, *(load_file(run / name) for run in (whole, killed)))
    found += different("metrics", *(metrics(run) for run in (whole, killed)))
    return found


def metrics(run_dir: Path) -> list[dict]:
    """The logged numbers, without the speed."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in row.items() if k != "train/images_per_s"} for row in rows]


def different(name: str, a, b):
    """Yields the places at which two nested values differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from different(f"{name}/{key}", a[key], b[key])
    elif isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from different(f"{name}/{i}", x, y)
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not torch.equal(a, b):
            yield name
    elif a != b:
        yield name


if __name__ == "__main__":
    run(main)
