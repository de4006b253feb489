"""What all train scripts do: parse, then start or resume a run."""

import argparse
from pathlib import Path

from config import PRESETS
from dataset.tasks import TASKS
from train import engine
from train.build import tasks_of_run
from utils.cli import find_preset, load_settings, parser, pick_names
from utils.errors import UserError


def train_script(
    doc: str, base: type, *, tasks: list[str] | None, dataset: str, argv: list[str] | None = None
) -> Path:
    """Parses the command line of a train script and trains.

    Args:
        base: the CFG class of the script; `--preset` names another.
        tasks: what it trains; None: `--task` chooses.
        dataset: the only dataset this script trains on.

    Returns:
        the run folder.
    """
    args = parser(doc, presets=PRESETS)
    args.add_argument(
        "--resume", metavar="RUN", help="continue this run folder; auto: the newest, or a new one"
    )
    if tasks is None:
        args.add_argument("--task", help=f"with commas, of {', '.join(TASKS)}; default: all")
    args = args.parse_args(argv)
    if args.preset:
        base = find_preset(PRESETS, args.preset)
    if tasks is None:
        tasks = _tasks(args, base)
    cfg = load_settings(args, base)
    if cfg.dataset != dataset:
        raise UserError(f"this script trains on {dataset}, the settings say dataset={cfg.dataset}")
    if args.resume:
        return engine.resume(base, args.set, tasks, args.resume, file=args.config)
    return engine.train(cfg, tasks)


def _tasks(args: argparse.Namespace, base: type) -> list[str]:
    """Those of `--task`; without it those of the run to resume, or all."""
    if args.task is not None:
        return pick_names("--task", args.task, list(TASKS))
    if args.resume:
        return tasks_of_run(base, args.set, args.resume)
    return list(TASKS)
