"""Evaluate a weight file on a dataset.

python infer/evaluate.py --task detection --dataset coco --split val --weights W
python infer/evaluate.py --task detection --dataset voc --split 2007:test --weights W
python infer/evaluate.py --task segmentation --boxes detected --weights W
python infer/evaluate.py --task keypoint --boxes gt --weights W
python infer/evaluate.py --task captioning --dataset coco --split val --weights W
python infer/evaluate.py --task all --likelihood --weights W
python infer/evaluate.py --set data=FOLDER --split test --weights W
torchrun --nproc-per-node 8 infer/evaluate.py --task all --weights W

Prints the table of average precision. Writes into --out-dir: metrics.json, results.json (the
predictions in COCO's results format), per_class.csv (for captioning: one row per image) and
report.html, a page with figures and the worst pictures (docs/evaluation.md). For several tasks it
prints one line each and writes one folder each.

Weights in the folder of a run are evaluated with the task and settings of that run (dataset,
folders, sets, decoding): --weights RUN is enough. --config and --set override these settings.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import PRESETS
from infer.script import predictor_of
from tokenizer.vocabulary import TASK_NAMES
from utils.cli import load_settings, log, parser, pick_names, run
from utils.errors import UserError
from utils.files import check_place, find_weight_file, name_of_path, read_json

PARTS = ("train", "val", "test")


def main(argv=None):
    # The command line and the settings; those of the run that made the weights are the defaults
    args = _parser().parse_args(argv)
    saved = settings_beside(args.weights)
    cfg = load_settings(args, PRESETS["default"], presets=PRESETS, inherited=saved)
    dataset, split = args.dataset or cfg.dataset, args.split or cfg.eval_split
    chosen = args.task or ",".join(saved["tasks"] if saved else ["detection"])
    tasks = None if chosen == "all" else pick_names("--task", chosen, TASK_NAMES)
    name = f"{chosen}_{name_of_data(cfg, dataset)}_{split}".replace(":", "-").replace(",", "+")
    out_dir = args.out_dir or Path("results") / name
    check_place(out_dir)
    weights = find_weight_file(args.weights)

    # What takes long to import comes after the command line is understood.
    from infer.tasks import Request, check_request, evaluate_task
    from utils.devices import (
        CoreWatch,
        local_device,
        memory_errors,
        pick_device,
        session,
        warn_if_busy,
    )

    watch = CoreWatch()
    with session() as world:
        # The weights and the data
        if saved:
            log(f"settings of {weights.parent}: {' '.join(data_settings(cfg, dataset))}")
        device = local_device(pick_device(args.device or cfg.device), world)
        predictor = predictor_of(args.weights, cfg, str(device))
        record = predictor.weights_record  # now: a training may replace the file
        tasks = tasks or _tasks_of(cfg, predictor, dataset)
        request = Request(args.boxes, args.max_objects, 0 if args.likelihood else None)
        check_request(cfg, predictor, tasks, request)
        _describe_data(cfg, tasks, split)
        sources = {task: _source(cfg, task, dataset, split) for task in tasks}
        warn_if_busy(watch, predictor.model.device)

        # Evaluate one task after the other; the first process has the results
        reports = {}
        folders = {task: out_dir / task if len(tasks) > 1 else out_dir for task in tasks}
        for task, source in sources.items():
            with memory_errors(device):
                reports[task] = evaluate_task(task, cfg, predictor, source, request, world=world)
            if world.is_main:
                reports[task].save(folders[task], record)
    if not world.is_main:
        return
    _print(reports, sources, args.likelihood)
    several = f"{out_dir}/{{{','.join(tasks)}}}" if len(tasks) > 1 else out_dir
    log(f"wrote results.json, metrics.json and per_class.csv to {several}")
    if args.report:
        facts = [predictor.name, name_of_data(cfg, dataset), split]
        for task, report in reports.items():
            boxed = task in ("segmentation", "keypoint")
            more = [f"boxes: {args.boxes}"] * boxed
            _write_report(task, cfg, sources[task], report, folders[task], [*facts, *more])


def _write_report(task: str, cfg, source, report, folder: Path, facts: list[str]) -> None:
    """Writes the page about one task, if the task has one."""
    log(f"making the report of {task}")
    write_report = importlib.import_module("infer.report.write").write_report
    page = write_report(task, cfg, source, report, folder, facts)
    log(f"wrote {page}" if page else f"notice: {task} has no report, see infer/report/write.py")


def _print(reports: dict, sources: dict, likelihood: bool) -> None:
    """The table of one task, or a line per task; and the likelihood of the annotation."""
    from infer.likelihood import likelihood_table
    from infer.results import compact_table

    if len(reports) == 1:
        (report,) = reports.values()
        print(report.table)
        if "AP" in report.metrics:
            print(report.per_class.to_string(index=False, float_format="{:.3f}".format))
    else:
        print(compact_table(reports, {task: len(source) for task, source in sources.items()}))
    if likelihood:
        for task, report in reports.items():
            print(f"\n{task}: {likelihood_table(report.metrics)}")


def settings_beside(weights: Path) -> dict | None:
    """The settings of the run in whose folder the weights are; None if they are elsewhere."""
    weights = weights.expanduser()
    path = (weights if weights.is_dir() else weights.parent) / "settings.json"
    if not path.is_file():
        return None
    values = read_json(path, "correct it, or move the weights elsewhere")
    tasks = values.get("tasks") if isinstance(values, dict) else None
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        return None  # of another program
    return values


def data_settings(cfg, dataset: str) -> list[str]:
    """Settings that say which images are evaluated, as "name=value"."""
    names = ["coco_root"] if dataset == "coco" else ["voc_root", "voc_eval_sets"]
    if cfg.data is not None or cfg.train_json is not None:
        names = ["data", *(f"{part}_{what}" for part in PARTS for what in ("json", "images"))]
        names.append("val_share")
    names = ["dataset", *names, "eval_split", "classes", "eval_limit", "train_limit"]
    values = {name: getattr(cfg, name) for name in names}
    return [f"{name}={value}" for name, value in values.items() if value not in ((), 0, None)]


def name_of_data(cfg, dataset: str) -> str:
    """The dataset part of the results folder's name: the dataset, or what `data` is called."""
    path = cfg.data or cfg.train_json
    return dataset if path is None else name_of_path(path)


def _parser():
    args = parser(__doc__, presets=PRESETS)
    args.add_argument(
        "--task",
        help=f"one or several, with commas, of {', '.join(TASK_NAMES)}; or all: each task that "
        "weights and dataset have; default: those of the run that made the weights, else detection",
    )
    args.add_argument(
        "--dataset", help="coco (also for --set data=FOLDER) or voc; default: the setting"
    )
    args.add_argument(
        "--split",
        help="train, val, test, or VOC sets such as 2007:test; default: eval_split in config.py",
    )
    args.add_argument(
        "--weights",
        type=Path,
        required=True,
        help="a weight file, a run folder (its best weights) or hf://owner/name/FILE",
    )
    args.add_argument(
        "--out-dir",
        type=Path,
        help="folder for the results; default: results/<task>_<dataset>_<split>",
    )
    args.add_argument("--max-objects", type=int, help="most objects to decode; fewer are faster")
    args.add_argument(
        "--boxes",
        default="gt",
        help="boxes for segmentation and keypoints: gt (ground truth), detected (by the same "
        "weights) or a COCO results file with boxes; default: gt",
    )
    args.add_argument(
        "--likelihood",
        action="store_true",
        help="also print the loss and the accuracy of the annotation's tokens (teacher forcing)",
    )
    args.add_argument(
        "--no-report", dest="report", action="store_false", help="do not write report.html"
    )
    args.add_argument(
        "--device", help="auto (a GPU if there is one), cpu, cuda or cuda:1; default: the setting"
    )
    return args


def _tasks_of(cfg, predictor, dataset: str) -> list[str]:
    """All tasks that the weights know and the dataset has annotations of."""
    from dataset.find_dataset import data_of
    from dataset.tasks import find_task, tasks_of_data

    known = [task for task in TASK_NAMES if task in predictor.tasks]
    tasks = [task for task in known if dataset in find_task(task).sources]
    data = data_of(cfg) if dataset == "coco" else None
    if data is not None:
        tasks = tasks_of_data(data, tasks)
    if not tasks:
        what = f"dataset={dataset}" if data is None else str(data.path)
        raise UserError(
            f"{predictor.name} was trained for {', '.join(predictor.tasks)}, but {what} has no "
            "annotations for these tasks; --dataset is coco or voc (detection only)"
        )
    return tasks


def _describe_data(cfg, tasks: list[str], split: str) -> None:
    """Says what `data` or `train_json` is, if one is set."""
    from dataset.find_dataset import data_of
    from dataset.tasks import find_task

    if data := data_of(cfg):
        log(data.describe(find_task(tasks[0]).annotation_kind, (split,)))


def _source(cfg, task: str, dataset: str, split: str):
    """The images and annotations to evaluate on."""
    from dataset.find_dataset import place_of_data
    from dataset.tasks import build_source

    limit = cfg.train_limit if split == "train" else cfg.eval_limit
    root, split = place_of_data(cfg, dataset, split)
    classes = cfg.classes or None
    options = {"limit": limit or None, "skip_bad": cfg.bad_samples == "skip"}
    return build_source(task, dataset, root, split, classes=classes, **options)


if __name__ == "__main__":
    run(main)
