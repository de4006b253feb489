"""What one of several processes does in `test_distributed.py`: trains, evaluates, or fails.

The argument is a JSON file: a list of cases, run one after the other by all processes.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from config import CFG
from dataset.build import build_source
from infer.evaluate_detection import evaluate_detection
from infer.evaluate_segmentation import evaluate_segmentation
from infer.predictor import Predictor
from train import engine
from train.distributed import session
from train.records import RunRecords
from utils.cli import run, snapshot
from utils.errors import UserError

EVALUATORS = {"detection": evaluate_detection, "segmentation": evaluate_segmentation}


def train_case(overrides: list[str], tasks: list[str]) -> dict:
    """Losses of all steps, unrounded, and the run folder."""
    losses = []
    scalars = RunRecords.scalars

    def keep(self, step, values):
        losses.extend(v for name, v in values.items() if name == "train/loss")
        scalars(self, step, values)

    RunRecords.scalars = keep
    try:
        run_dir = engine.train(snapshot(CFG, overrides), tasks)
    finally:
        RunRecords.scalars = scalars
    return {"losses": losses, "run_dir": str(run_dir)}


def evaluate_case(weights: str, root: str, task: str, world) -> dict:
    """Results of an evaluation in which every draw matters."""
    source = build_source(task, "coco", Path(root), "train")
    report = EVALUATORS[task](Predictor(weights), source, batch_size=3, world=world)
    return {"results": report.results, "metrics": report.metrics}


def fail_on_rank_1(kind: str, world) -> None:
    """The others are in the middle of an exchange that rank 1 never joins."""
    if world.rank == 1:
        raise UserError("the disk is full") if kind == "user" else RuntimeError("a defect")
    world.gather(torch.zeros(1))


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    for case in cases:
        if "overrides" in case:
            out = train_case(case["overrides"], case["tasks"])
        else:
            with session() as world:
                if "fail" in case:
                    fail_on_rank_1(case["fail"], world)
                out = evaluate_case(case["weights"], case["root"], case["task"], world)
        if out and os.environ.get("RANK", "0") == "0":
            Path(case["out"]).write_text(json.dumps(out))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main)
