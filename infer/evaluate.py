"""Evaluate a weight file on a dataset.

python infer/evaluate.py --task detection --dataset coco --split val --weights W
python infer/evaluate.py --task detection --dataset voc --split 2007:test --weights W
python infer/evaluate.py --task segmentation --boxes detected --weights W
python infer/evaluate.py --task keypoint --boxes gt --weights W
python infer/evaluate.py --task captioning --dataset coco --split val --weights W
python infer/evaluate.py --task all --likelihood --weights W

Prints the table of average precision and writes into --out-dir: results.json (rows of the COCO
results format), metrics.json and per_class.csv (of captioning: one row per image). Of several tasks
("a,b", or all that the weights know and the dataset has) it prints a line each, and each has a
folder of its own in --out-dir.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import PRESETS
from infer.script import predictor_of
from tokenizer.vocabulary import TASKS
from utils.cli import load_settings, log, parser, pick_names, run
from utils.errors import UserError


def main(argv=None):
    # The command line and the settings
    args = _parser().parse_args(argv)
    cfg = load_settings(args, PRESETS["default"], presets=PRESETS)
    dataset, split = args.dataset or cfg.dataset, args.split or "val"
    tasks = None if args.task == "all" else pick_names("--task", args.task, TASKS)

    # What takes long to import comes after the command line is understood.
    from infer.batches import EvalLoop
    from infer.likelihood import (
        build_sequence_tokenizer,
        likelihood_table,
        measure_likelihood,
    )
    from infer.results import compact_table
    from infer.tasks import Request, evaluate_task

    # The weights and the data
    predictor = predictor_of(args.weights, cfg, args.device)
    tasks = tasks or _tasks_of(predictor, dataset)
    for task in tasks:
        predictor.require(task)  # before the first of them takes its time
        if args.likelihood:
            build_sequence_tokenizer(cfg, task, predictor)  # this may not be possible, too
    sources = {task: _source(cfg, task, dataset, split) for task in tasks}

    # Evaluate one task after the other
    name = f"{args.task}_{dataset}_{split}".replace(":", "-").replace(",", "+")
    out_dir = args.out_dir or Path("results") / name
    request = Request(args.boxes, args.max_objects)
    reports, figures = {}, {}
    for task, source in sources.items():
        reports[task] = evaluate_task(task, cfg, predictor, source, request)
        if args.likelihood:
            loop = EvalLoop.from_settings(cfg)
            figures[task] = measure_likelihood(cfg, task, predictor, source, loop)
            reports[task].metrics.update({f"likelihood/{k}": v for k, v in figures[task].items()})
        reports[task].save(out_dir / task if len(tasks) > 1 else out_dir)

    # Print
    if len(tasks) == 1:
        _print(reports[tasks[0]])
    else:
        print(compact_table(reports, {task: len(source) for task, source in sources.items()}))
    for task, values in figures.items():
        print(f"\n{task}: {likelihood_table(values)}")
    folders = f"{out_dir}/{{{','.join(tasks)}}}" if len(tasks) > 1 else out_dir
    log(f"wrote results.json, metrics.json and per_class.csv to {folders}")


def _parser():
    args = parser(__doc__, presets=PRESETS)
    args.add_argument(
        "--task",
        default="detection",
        help=f"of {', '.join(TASKS)}, several with commas, or all; default: detection",
    )
    args.add_argument("--dataset", help="coco or voc; default: the setting")
    args.add_argument("--split", help="train, val, or VOC sets such as 2007:test")
    args.add_argument("--weights", type=Path, required=True)
    args.add_argument("--out-dir", type=Path, help="default: results/<task>_<dataset>_<split>")
    args.add_argument("--max-objects", type=int, help="ask for fewer objects than trained for")
    args.add_argument(
        "--boxes",
        default="gt",
        help="of segmentation and keypoints: gt, detected (by the same weights) or a COCO results "
        "file of boxes; default: gt",
    )
    args.add_argument(
        "--likelihood",
        action="store_true",
        help="also the teacher-forced loss and token accuracy of the annotation",
    )
    args.add_argument("--device", help="default: the setting")
    return args


def _tasks_of(predictor, dataset: str) -> list[str]:
    """All tasks that the weights know and the dataset has annotations of."""
    from dataset.tasks import find_task

    known = [task for task in TASKS if task in predictor.tasks]
    tasks = [task for task in known if dataset in find_task(task).sources]
    if not tasks:
        raise UserError(
            f"{predictor.name} was trained for {', '.join(predictor.tasks)}: nothing that "
            f"dataset={dataset} has; datasets are coco and voc (detection alone)"
        )
    return tasks


def _source(cfg, task: str, dataset: str, split: str):
    """The images and annotations to evaluate on."""
    from dataset.tasks import build_source
    from infer.tasks import place_of_data

    limit = cfg.train_limit if split == "train" else cfg.eval_limit
    root, split = place_of_data(cfg, dataset, split)
    classes = cfg.classes or None
    return build_source(task, dataset, root, split, classes=classes, limit=limit or None)


def _print(report) -> None:
    print(report.table)
    if "AP" in report.metrics:
        print(report.per_class.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    run(main)
