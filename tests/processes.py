"""What one of several processes does in `test_distributed.py`: trains, evaluates, or fails.

The argument is a JSON file: a list of cases, run one after the other by all processes.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from config import CFG
from dataset.tasks import build_source
from infer import captioning, detection, keypoint, segmentation
from infer.batches import EvalLoop
from infer.predictor import Predictor
from tests.training import StopAt, resume
from train import engine
from train.distributed import share_statistics
from train.run_folder import RunRecords
from utils.cli import run, snapshot
from utils.devices import session
from utils.errors import UserError

EVALUATORS = {
    "detection": detection.evaluate,
    "segmentation": segmentation.evaluate,
    "keypoint": keypoint.evaluate,
    "captioning": captioning.evaluate,
}


def train_case(overrides: list[str], tasks: list[str], stop: int = 0) -> dict:
    """Losses of all steps, unrounded, the run folder, and whether the weights were sharded.

    Args:
        stop: leave after so many steps and resume; 0 = train in one go.
    """
    losses = []
    scalars = RunRecords.scalars

    def keep(self, step, values):
        losses.extend(v for name, v in values.items() if name == "train/loss")
        scalars(self, step, values)

    sharded = []
    train_epoch = engine.train_epoch

    def look(sitting):
        sharded.append(sitting.run.state.sharded)
        return train_epoch(sitting)

    signal = engine.StopSignal
    RunRecords.scalars, engine.train_epoch = keep, look
    try:
        if stop:
            engine.StopSignal = lambda _: StopAt(stop)
        run_dir = engine.train(snapshot(CFG, overrides), tasks)
        engine.StopSignal = signal
        if stop:
            run_dir = resume([], tasks, run_dir)
    finally:
        RunRecords.scalars, engine.train_epoch, engine.StopSignal = scalars, train_epoch, signal
    return {"losses": losses, "run_dir": str(run_dir), "sharded": all(sharded)}


def evaluate_case(weights: str, root: str, task: str, world) -> dict:
    """Results of an evaluation in which every draw matters."""
    source = build_source(task, "coco", Path(root), "train")
    predictor = Predictor(weights)
    named = [predictor.vocab.class0 + label for label in predictor.categories.names]
    with torch.no_grad():  # hardly trained: let the arg max fall on classes that have a name
        predictor.model.decoder.output_bias[named] += 10
        if task == "detection":  # and coordinates on bins, or no box would have an area
            predictor.model.decoder.output_bias[slice(*predictor.vocab.coord_range)] += 20
    report = EVALUATORS[task](predictor, source, loop=EvalLoop(batch_size=3, world=world))
    return {"results": report.results, "metrics": report.metrics}


def statistics_case(world) -> list[list[float]]:
    """The statistics of batch norm on every process, before and after they are shared."""
    norm = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
    norm[0].running_mean += world.rank + 1
    before = world.gather(norm[0].running_mean.item())
    share_statistics(norm, world)
    return [before, world.gather(norm[0].running_mean.item())]


def fail_on_rank_1(kind: str, world) -> None:
    """The others are in the middle of an exchange that rank 1 never joins."""
    if world.rank == 1:
        raise UserError("the disk is full") if kind == "user" else RuntimeError("a defect")
    world.gather(torch.zeros(1))


def main() -> None:
    with session() as world:
        for case in json.loads(Path(sys.argv[1]).read_text()):
            if "fail" in case:
                fail_on_rank_1(case["fail"], world)
            elif "statistics" in case:
                out = statistics_case(world)
            elif "overrides" in case:
                out = train_case(case["overrides"], case["tasks"], case.get("stop", 0))
            else:
                out = evaluate_case(case["weights"], case["root"], case["task"], world)
            if world.is_main:
                Path(case["out"]).write_text(json.dumps(out))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main)
