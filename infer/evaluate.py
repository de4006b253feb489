"""Evaluate a weight file on a dataset.

python infer/evaluate.py --task detection --dataset coco --split val --weights W
python infer/evaluate.py --task detection --dataset voc --split 2007:test --weights W
python infer/evaluate.py --task segmentation --boxes detected --weights W
python infer/evaluate.py --task keypoint --boxes gt --weights W
python infer/evaluate.py --task captioning --dataset coco --split val --weights W

Prints the table of average precision and writes into --out-dir: results.json (rows of the COCO
results format), metrics.json and per_class.csv (of captioning: one row per image).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import PRESETS
from dataset.build import TASKS, build_source
from infer.predictor import Predictor
from infer.tasks import Request, evaluate_task
from utils.cli import find_preset, log, parser, run, snapshot
from utils.device import pick_device


def main(argv=None):
    args = parser(__doc__)
    args.add_argument("--task", default="detection", help=f"one of {', '.join(TASKS)}")
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
    args.add_argument("--preset", default="default", help=f"one of {', '.join(PRESETS)}")
    args.add_argument("--device", help="default: the setting")
    args = args.parse_args(argv)
    cfg = snapshot(find_preset(PRESETS, args.preset), args.set)
    dataset, split = args.dataset or cfg.dataset, args.split or "val"
    root, limit = cfg.coco_root, cfg.train_limit if split == "train" else cfg.eval_limit
    sets = split
    if dataset == "voc":
        root = cfg.voc_root
        sets = {"train": cfg.voc_sets, "val": cfg.voc_eval_sets}.get(split, split)
    source = build_source(
        args.task, dataset, root, sets, classes=cfg.classes or None, limit=limit or None
    )
    predictor = Predictor(args.weights, pick_device(args.device or cfg.device))
    request = Request(args.boxes, args.max_objects)
    report = evaluate_task(args.task, cfg, predictor, source, request)
    name = f"{args.task}_{dataset}_{split}".replace(":", "-").replace(",", "+")
    out_dir = args.out_dir or Path("results") / name
    report.save(out_dir)
    print(report.table)
    if "AP" in report.metrics:
        print(report.per_class.to_string(index=False, float_format="{:.3f}".format))
    log(f"wrote results.json, metrics.json and per_class.csv to {out_dir}")


if __name__ == "__main__":
    run(main)
