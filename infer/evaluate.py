"""Evaluate a weight file on a dataset.

python infer/evaluate.py --task detection --dataset coco --split val --weights W
python infer/evaluate.py --task detection --dataset voc --split 2007:test --weights W
python infer/evaluate.py --task segmentation --boxes detected --weights W
python infer/evaluate.py --task keypoint --boxes gt --weights W
python infer/evaluate.py --task captioning --dataset coco --split val --weights W

Prints the table of average precision and writes into --out-dir: results.json (rows of the COCO
results format), metrics.json and per_class.csv (of captioning: one row per image).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import PRESETS
from dataset.build import TASKS, build_source
from infer.detection import DecodingOptions
from infer.evaluate_captioning import evaluate_captioning
from infer.evaluate_detection import evaluate_detection
from infer.evaluate_keypoints import evaluate_keypoints
from infer.evaluate_segmentation import evaluate_segmentation
from infer.keypoint_script import keypoint_options
from infer.predictor import Predictor
from infer.report import Report
from infer.script import caption_options
from infer.segmentation_script import segmentation_options
from utils.cli import find_preset, log, parser, run, snapshot
from utils.device import pick_device


def _detection(cfg, args: argparse.Namespace, predictor: Predictor, source) -> Report:
    return evaluate_detection(
        predictor,
        source,
        DecodingOptions(cfg.top_k, cfg.top_p, cfg.temperature, cfg.seed),
        batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        max_objects=args.max_objects,
        progress=True,
    )


def _captioning(cfg, args: argparse.Namespace, predictor: Predictor, source) -> Report:
    return evaluate_captioning(
        predictor,
        source,
        caption_options(cfg),
        batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        progress=True,
    )


def _segmentation(cfg, args: argparse.Namespace, predictor: Predictor, source) -> Report:
    return evaluate_segmentation(
        predictor,
        source,
        segmentation_options(cfg),
        boxes=args.boxes,
        detection_options=DecodingOptions(cfg.top_k, cfg.top_p, cfg.temperature, cfg.seed),
        batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        progress=True,
    )


def _keypoint(cfg, args: argparse.Namespace, predictor: Predictor, source) -> Report:
    return evaluate_keypoints(
        predictor,
        source,
        keypoint_options(cfg),
        boxes=args.boxes,
        detection_options=DecodingOptions(cfg.top_k, cfg.top_p, cfg.temperature, cfg.seed),
        sigmas=cfg.keypoint_sigmas,
        batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        progress=True,
    )


EVALUATORS = {
    "keypoint": _keypoint,
    "segmentation": _segmentation,
    "detection": _detection,
    "captioning": _captioning,
}


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
    report = EVALUATORS[args.task](cfg, args, predictor, source)
    name = f"{args.task}_{dataset}_{split}".replace(":", "-").replace(",", "+")
    out_dir = args.out_dir or Path("results") / name
    report.save(out_dir)
    print(report.table)
    if "AP" in report.metrics:
        print(report.per_class.to_string(index=False, float_format="{:.3f}".format))
    log(f"wrote results.json, metrics.json and per_class.csv to {out_dir}")


if __name__ == "__main__":
    run(main)
