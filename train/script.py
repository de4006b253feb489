"""Shared code of all train scripts: parse, then start or resume a run.

Arguments and settings are understood before torch and the rest are imported, which takes seconds.
"""

from functools import partial
from pathlib import Path

from config import PRESETS
from tokenizer import vocabulary
from train.run_folder import find_run_dir, read_settings
from utils.cli import load_settings, log, parser, pick_names, read_config, settings_types
from utils.errors import UserError
from utils.files import shown
from utils.setting_rules import TRAINING_PAIRS


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
    # Arguments and settings.
    known = list(vocabulary.TASK_NAMES)
    args = parser(doc, presets=PRESETS)
    args.add_argument(
        "--resume",
        metavar="RUN",
        help="continue the run in this folder; auto: the newest run, or a new one if there is none",
    )
    if tasks is None:
        args.add_argument(
            "--task", help=f"one or several, with commas, of {', '.join(known)}; default: all"
        )
    args = args.parse_args(argv)
    # of a run that goes on more settings are to come: together they are checked with those
    pairs = () if args.resume else TRAINING_PAIRS
    load = partial(load_settings, args, base, presets=PRESETS, pairs=pairs)
    cfg = load()
    if cfg.dataset != dataset:
        raise UserError(f"this script trains on {dataset}, the settings say dataset={cfg.dataset}")

    # Tasks: those of `--task`; without it those of the run to resume, or all.
    if tasks is None:
        tasks = known
        if args.task is not None:
            tasks = pick_names("--task", args.task, known)
        elif args.resume not in (None, "auto"):
            tasks = _tasks_of_run(cfg.runs_dir, args.resume, known)
        elif args.config is not None:
            tasks = _checked_tasks(read_config(args.config).get("tasks", known), args.config, known)

    if args.config is not None:
        log(_config_text(args.config, base, args.set))

    from train import engine  # torch and all that needs it

    if args.resume:
        return engine.resume(args.resume, tasks, load)
    return engine.start(tasks, load)


def _tasks_of_run(runs_dir: Path, name: str, known: list[str]) -> list[str]:
    """The tasks that a run folder trains."""
    tasks = read_settings(find_run_dir(runs_dir, known, name)).get("tasks", known)
    return _checked_tasks(tasks, name, known)


def _checked_tasks(tasks: object, name: str | Path, known: list[str]) -> list[str]:
    if not isinstance(tasks, list) or not tasks or any(task not in known for task in tasks):
        raise UserError(f"the settings of {name} name no tasks of ours, got {shown(tasks)}")
    return tasks


def _config_text(file: Path, base: type, overrides: list[str]) -> str:
    """What is taken from the file of `--config`, which has been checked."""
    values, known = read_config(file), settings_types(base)
    tasks = values.pop("tasks", None)
    origin = f"a run of {', '.join(map(str, tasks))}" if isinstance(tasks, list) else "a file"
    others = sorted(set(values) - set(known))
    text = f"settings of {file} ({origin}): {len(values) - len(others)} of {len(known)} taken"
    if overrides:
        text += f"; --set replaces {' '.join(overrides)}"
    return text + (f"; no settings any more: {', '.join(others)}" if others else "")
