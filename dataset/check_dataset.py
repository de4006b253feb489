"""Look through a dataset before training on it: errors, label statistics, annotated samples.

python dataset/check_dataset.py --dataset coco --set coco_root=/data/coco
python dataset/check_dataset.py --dataset coco --task keypoint --split val --decode
python dataset/check_dataset.py --dataset voc --split 2012:train,2012:val --set voc_root=/data/VOC

Prints every kind of fault with its count and a few examples, by what training does about it:
refuses (with --set bad_samples=skip: leaves out and counts), leaves out, accepts. Writes for each
annotation file a picture of label statistics and one of annotated samples into --out-dir. Images
are measured by their headers; --decode reads all their pixels, which also finds files that are cut
off. Exit status: 0 if training refuses nothing, 1 if it does, 2 if there is nothing to check.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import PRESETS
from dataset.annotation_errors import AnnotationErrors
from dataset.check.coco import check_coco
from dataset.check.figures import save_samples, save_statistics
from dataset.check.report import Checked, check_images
from dataset.check.voc import check_voc
from dataset.tasks import TASKS, find_task
from dataset.voc_detection import parse_voc_sets
from utils.cli import load_settings, log, parser, run
from utils.errors import UserError

KIND_OF = {  # task -> kind of annotation file
    "detection": "instances",
    "segmentation": "instances",
    "keypoint": "person_keypoints",
    "captioning": "captions",
}


def parse(argv=None):
    args = parser(__doc__, presets=PRESETS)
    args.add_argument("--dataset", help="coco or voc; default: the setting")
    args.add_argument("--task", default="all", help=f"one of {', '.join(TASKS)}; default: all")
    args.add_argument("--split", help="train or val, or VOC sets such as 2007:test; default: all")
    args.add_argument("--decode", action="store_true", help="read all pixels of all images")
    args.add_argument(
        "--out-dir", type=Path, help="for the pictures; default: dataset_check/<dataset>"
    )
    return args.parse_args(argv)


def main(argv=None) -> None:
    args = parse(argv)
    cfg = load_settings(args, PRESETS["default"], presets=PRESETS)
    dataset = args.dataset or cfg.dataset
    if dataset not in ("coco", "voc"):
        raise UserError(f"--dataset must be coco or voc, got {dataset!r}")
    if args.task != "all" and dataset not in find_task(args.task).sources:
        raise UserError(f"{dataset} has no annotations of {args.task}; use --task all")
    groups = _coco(cfg, args) if dataset == "coco" else _voc(cfg, args)
    out_dir = args.out_dir or Path("dataset_check") / dataset
    errors = 0
    for name, group in groups.items():
        for checked in group:
            print(checked.text(), end="\n\n")
            _draw(checked, out_dir)
        images = AnnotationErrors(name, report=True)
        entries = [entry for checked in group for entry in checked.images]
        threads = cfg.num_workers
        number = check_images(entries, images, decode=args.decode, threads=threads)
        how = "all pixels read" if args.decode else "headers read; --decode reads the pixels too"
        of_images = Checked(f"images of {name}", images, [], [f"{number} images, {how}"])
        print(of_images.text(), end="\n\n")
        errors += sum(checked.num_errors for checked in (*group, of_images))
    print(f"{errors} errors" if errors else "nothing that training would refuse")
    log(f"pictures of the labels: {out_dir}")
    if errors:
        sys.exit(1)


def _coco(cfg, args) -> dict[str, list[Checked]]:
    """Split -> its annotation files; with --task all those that are there."""
    splits = [args.split] if args.split else ["train", "val"]
    kinds = list(dict.fromkeys(KIND_OF.values())) if args.task == "all" else [KIND_OF[args.task]]
    groups: dict[str, list[Checked]] = {}
    missing: list[UserError] = []
    for split in splits:
        for kind in kinds:
            path = cfg.coco_root.expanduser() / "annotations" / f"{kind}_{split}2017.json"
            if len(splits) * len(kinds) > 1 and cfg.coco_root.is_dir() and not path.is_file():
                log(f"notice: no {path}")
                missing.append(UserError(f"no annotation file in {path.parent}"))
                continue
            groups.setdefault(f"{split}2017", []).append(check_coco(cfg.coco_root, split, kind))
    if not groups:
        raise missing[0]
    return groups


def _voc(cfg, args) -> dict[str, list[Checked]]:
    """VOC set -> its check, in a list."""
    sets = args.split or f"{cfg.voc_sets},{cfg.voc_eval_sets}"
    classes = cfg.classes or None
    return {
        f"VOC{year} {split}": [check_voc(cfg.voc_root, year, split, classes)]
        for year, split in parse_voc_sets(sets)
    }


def _draw(checked: Checked, out_dir: Path) -> None:
    if not checked.panels:
        return  # there is nothing to draw
    stem = Path(checked.name).stem.replace(" ", "_")
    save_statistics(out_dir / f"{stem}_statistics.png", Path(checked.name).stem, checked.panels)
    save_samples(out_dir / f"{stem}_samples.png", checked)


if __name__ == "__main__":
    run(main)
