"""What the tasks of one training share: which they are, batch sizes, weights, categories."""

from collections.abc import Sequence

from dataset.build import TASKS
from train.records import find_run_dir, read_settings
from utils.categories import Categories
from utils.cli import snapshot
from utils.errors import UserError
from utils.plain import shown


def tasks_of_run(base: type, overrides: list[str], name: str) -> list[str]:
    """The tasks that the run folder `name` (`--resume`) trains; all of them for "auto"."""
    if name == "auto":
        return list(TASKS)
    settings = read_settings(find_run_dir(snapshot(base, overrides).runs_dir, TASKS, name))
    tasks = settings.get("tasks", list(TASKS))
    if not isinstance(tasks, list) or not tasks or any(task not in TASKS for task in tasks):
        raise UserError(f"the settings of {name} name no tasks of ours, got {shown(tasks)}")
    return tasks


def batch_sizes(cfg, tasks: Sequence[str]) -> dict[str, int]:
    """Images of each task in a step; a task without a setting of its own has `batch_size`."""
    sizes = {task: getattr(cfg, f"{task}_batch_size", 0) or cfg.batch_size for task in tasks}
    for task, size in sizes.items():
        if size < 1:
            raise UserError(f"batch size of {task} must be at least 1, got {size}")
    return sizes


def task_weights(cfg, tasks: Sequence[str]) -> dict[str, float]:
    """Factors of the losses in their sum: 1 for a task that is alone or has no such setting.

    Raises:
        UserError: a weight that teaches nothing.
    """
    if len(tasks) == 1:
        return dict.fromkeys(tasks, 1.0)
    weights = {task: getattr(cfg, f"{task}_weight", 1.0) for task in tasks}
    for task, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise UserError(
                f"{task}_weight must be above 0, got {weight}; leave the task out with --task"
            )
    return weights


def join_categories(sources: dict) -> Categories:
    """The categories of all tasks, by class id, which must mean the same in every task.

    Captions have none; keypoints have those that have points, a part of the others'.

    Args:
        sources: task -> source of Samples with `.categories`.

    Raises:
        UserError: two annotation files disagree.
    """
    if len(sources) == 1:
        return next(iter(sources.values())).categories
    rows: dict[int, tuple[str, int]] = {}
    told: dict[int, str] = {}  # class id -> the task it is known from
    for task, source in sources.items():
        categories = source.categories
        for class_id, name in categories.names.items():
            row = name, categories.source_ids[class_id]
            known = rows.setdefault(class_id, row)
            first = told.setdefault(class_id, task)
            if known != row:
                raise UserError(
                    f"the annotation files of {first} and {task} disagree: category {known[1]} "
                    f"{known[0]!r} of the one is {row[1]} {row[0]!r} of the other"
                )
    rows = dict(sorted(rows.items()))
    names = [name for name, _ in rows.values()]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the annotation files of the tasks have two categories {name!r}")
    return Categories(
        {i: row[0] for i, row in rows.items()}, {i: row[1] for i, row in rows.items()}
    )
