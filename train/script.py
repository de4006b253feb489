"""What all train scripts do: parse, then start or resume a run."""

from pathlib import Path

from config import PRESETS
from train import engine
from utils.cli import find_preset, parser, snapshot
from utils.errors import UserError


def train_script(
    doc: str, base: type, *, tasks: list[str], dataset: str, argv: list[str] | None = None
) -> Path:
    """Parses the command line of a train script and trains.

    Args:
        base: the CFG class of the script; `--preset` names another.
        dataset: the only dataset this script trains on.

    Returns:
        the run folder.
    """
    args = parser(doc)
    args.add_argument("--preset", help=f"settings to start from: {', '.join(PRESETS)}")
    args.add_argument(
        "--resume", metavar="RUN", help="continue this run folder, or auto: the newest"
    )
    args = args.parse_args(argv)
    if args.preset:
        base = find_preset(PRESETS, args.preset)
    if args.resume:
        return engine.resume(base, args.set, tasks, args.resume)
    cfg = snapshot(base, args.set)
    if cfg.dataset != dataset:
        raise UserError(f"this script trains on {dataset}, the settings say dataset={cfg.dataset}")
    return engine.train(cfg, tasks)
