"""Check a dataset before training on it: errors, label statistics, annotated samples.

python dataset/check_dataset.py /my/folder
python dataset/check_dataset.py /my/folder --preset finetune --set init_weights=FILE
python dataset/check_dataset.py --set train_json=a.json val_json=b.json
python dataset/check_dataset.py --dataset coco --set coco_root=/data/coco
python dataset/check_dataset.py --dataset coco --task keypoint --split val --decode
python dataset/check_dataset.py --dataset voc --split 2012:train,2012:val --set voc_root=/data/VOC

FOLDER is what your labelling tool exported (docs/formats.md). Prints each kind of error with its
count and a few examples, in three groups:
  - training stops at it (with --set bad_samples=skip: leaves it out and counts it)
  - training leaves it out
  - training accepts it

The last lines are advice on the settings of the training. Give --preset and --set as you give them
to the training: with init_weights the image size is that of the file, and the preset finetune picks
other settings from your data.

For each annotation file two pictures are written into --out-dir: label statistics, and annotated
samples. Look at them. Only the headers of the images are read; --decode reads all pixels, which
also finds truncated files. Exit status: 0 = training can start, 1 = training stops at errors,
2 = there is nothing to check.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import PRESETS
from tokenizer.vocabulary import TASK_NAMES
from utils.cli import load_settings, log, parser, pick_names, run
from utils.errors import UserError
from utils.files import find_weight_file, name_of_path
from utils.setting_rules import PAIRS, TRAINING_PAIRS

# The preset finetune needs weights here as in a training: they decide what it picks.
FINETUNING = (*PAIRS, *(pair for pair in TRAINING_PAIRS if "finetune" in pair.names))


def parse(argv=None):
    args = parser(__doc__, presets=PRESETS)
    args.add_argument(
        "folder",
        type=Path,
        nargs="?",
        help="your dataset, in any format of docs/formats.md; the same as --set data=FOLDER",
    )
    args.add_argument(
        "--dataset", help="coco (also for a folder of your own) or voc; default: the setting"
    )
    args.add_argument(
        "--task",
        default="all",
        help=f"one or several, with commas, of {', '.join(TASK_NAMES)}; default: all",
    )
    args.add_argument(
        "--split", help="train, val, test, or VOC sets such as 2007:test; default: all"
    )
    args.add_argument("--decode", action="store_true", help="read all pixels of all images")
    args.add_argument(
        "--out-dir",
        type=Path,
        help="folder for the pictures; default: dataset_check/<name of the dataset>",
    )
    args = args.parse_args(argv)
    if args.folder is not None:
        args.set.append(f"data={args.folder}")
    return args


def kinds_to_check(kind_of: Mapping[str, str], known: Collection[str]) -> list[str]:
    """The kinds of annotation files of these tasks; reports kinds that have no check.

    Args:
        kind_of: task -> kind of its files.
        known: the kinds that can be checked.

    Raises:
        UserError: none can.
    """
    others = [task for task, kind in kind_of.items() if kind not in known]
    kinds = list(dict.fromkeys(kind for kind in kind_of.values() if kind in known))
    if others and not kinds:
        raise UserError(f"no check for the files of {', '.join(others)}; name other tasks")
    if others:
        log(f"notice: no check for the files of {', '.join(others)}")
    return kinds


def read_settings(args) -> tuple[object, Callable]:
    """The settings, and what loads them once more with those of a weight file.

    Raises:
        UserError: they are wrong, or the weights to start from are not there.
    """
    load = partial(load_settings, args, PRESETS["default"], presets=PRESETS, pairs=FINETUNING)
    cfg = load()
    if cfg.init_weights is not None:
        find_weight_file(cfg.init_weights, "name another with --set init_weights=FILE")
    return cfg, load


def check_training(cfg, load, tasks: list[str], parts: dict[str, tuple], args):
    """What training would say to the data, with the settings that it would have.

    Args:
        load: called as load(inherited=settings of the weight file) -> settings.
        parts: see `open_sources`.
    """
    from dataset.annotation_errors import AnnotationErrors
    from dataset.check.use import check_use, open_sources

    dataset = args.dataset or cfg.dataset
    errors = AnnotationErrors(dataset, report=True)
    sources = open_sources(cfg, tasks, parts, dataset=dataset, errors=errors)
    learned = {task: found["train"] for task, found in sources.items() if "train" in found}
    if cfg.init_weights is not None and learned:
        from train.init_weights import start_settings

        cfg = start_settings(load, list(learned), lambda _, task: learned[task])
    return check_use(cfg, sources, errors, decode=args.decode)


def main(argv=None) -> None:
    args = parse(argv)
    cfg, load = read_settings(args)
    dataset = args.dataset or cfg.dataset
    tasks = list(TASK_NAMES) if args.task == "all" else pick_names("--task", args.task, TASK_NAMES)
    out_dir = args.out_dir or Path("dataset_check") / dataset

    # these take seconds to import: only now, when arguments and settings are understood
    from dataset.annotation_errors import OUTLINE_KINDS
    from dataset.check.annotations import CHECKS, check_coco_files, check_parts, check_voc_sets
    from dataset.check.report import check_images, save_figures
    from dataset.find_dataset import data_of
    from dataset.tasks import find_task, tasks_of_data

    # the annotation files
    data = data_of(cfg) if dataset == "coco" else None
    if data is not None:
        out_dir = args.out_dir or Path("dataset_check") / name_of_path(data.path)
        tasks = tasks_of_data(data, tasks)
        if not tasks:
            raise UserError(f"{data.path} has no annotations of {args.task}; use --task all")
        kinds = kinds_to_check({t: find_task(t).annotation_kind for t in tasks}, CHECKS)
        splits = [args.split] if args.split else [n for n in data.names if n != "all"]
        log(data.describe(kinds[0], splits))
        groups = check_parts(data, splits, kinds)
        parts = {split: (data, split) for split in splits if split != "test"}
    elif dataset == "coco":
        kind_of = {t: find_task(t).annotation_kind for t in tasks if "coco" in find_task(t).sources}
        kinds = kinds_to_check(kind_of, CHECKS)
        splits = [args.split] if args.split else ["train", "val"]
        groups = check_coco_files(cfg.coco_root, splits, kinds)
        parts = {split: (cfg.coco_root, split) for split in splits}
    else:
        if not any(dataset in find_task(task).sources for task in tasks):
            raise UserError(f"{dataset} has no annotations of {args.task}; use --task all")
        sets = args.split or f"{cfg.voc_sets},{cfg.voc_eval_sets}"
        groups = check_voc_sets(cfg.voc_root, sets, cfg.classes or None)
        parts = {"train": (cfg.voc_root, args.split or cfg.voc_sets)}
        parts |= {} if args.split else {"val": (cfg.voc_root, cfg.voc_eval_sets)}

    # the report, and the images of each folder or set
    num_errors = 0
    for name, group in groups.items():
        for checked in group:
            if "segmentation" not in tasks:  # no other task reads outlines
                checked.errors.forget(OUTLINE_KINDS)
            print(checked.text(), end="\n\n")
            save_figures(checked, out_dir)
        images = check_images(name, group, decode=args.decode, threads=cfg.num_workers)
        print(images.text(), end="\n\n")
        num_errors += sum(checked.num_errors for checked in (*group, images))
    tasks = [task for task in tasks if dataset in find_task(task).sources]
    use = check_training(cfg, load, tasks, parts, args)
    print(use.text(), end="\n\n")
    num_errors += use.num_errors
    print(f"{num_errors} errors" if num_errors else "nothing that training would refuse")
    log(f"pictures of the labels: {out_dir}")
    if num_errors:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
