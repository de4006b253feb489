"""Evaluate a weight file on a dataset.

python infer/evaluate.py --task detection --dataset coco --split val --weights W
python infer/evaluate.py --task detection --dataset voc --split 2007:test --weights W

Prints the table of average precision and writes into --out-dir: results.json (rows of the COCO
results format), metrics.json and per_class.csv.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from dataset.build import TASKS, build_source
from dataset.coco_detection import CocoDetection
from dataset.loader import build_eval_loader
from dataset.voc_detection import VocDetection
from infer.detection import PAPER, DecodingOptions, detect
from infer.predictor import Predictor
from infer.results import Detections
from utils.categories import Categories
from utils.coco_metrics import evaluate_coco
from utils.errors import UserError
from utils.files import atomic_path, write_json_atomic
from utils.voc_metrics import evaluate_voc


@dataclass(frozen=True)
class Report:
    """What an evaluation found."""

    metrics: dict[str, float]  # the first one is the one to compare models by
    per_class: pd.DataFrame
    table: str  # for people
    results: list[dict]  # rows of the COCO results format

    def save(self, folder: str | Path) -> None:
        """Writes results.json, metrics.json and per_class.csv."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder / "results.json", self.results, indent=None)
        write_json_atomic(folder / "metrics.json", self.metrics)
        with atomic_path(folder / "per_class.csv") as path:
            self.per_class.to_csv(path, index=False)


def evaluate_detection(
    predictor: Predictor,
    source: CocoDetection | VocDetection,
    options: DecodingOptions = PAPER,
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    max_objects: int | None = None,
    progress: bool = False,
) -> Report:
    """Detects on every image of the source (those without objects too) and scores the result.

    Classes are matched by name: what the weights call something else does not count.
    """
    tokenizer = predictor.detection_tokenizer(max_objects)
    categories = shared_categories(predictor.categories, source.categories)
    loader = build_eval_loader(source, batch_size=batch_size, num_workers=num_workers)
    generator = torch.Generator(predictor.model.device).manual_seed(options.seed)
    found: dict[int | str, Detections] = {}
    with tqdm(total=len(source), desc="evaluate", unit="image", disable=not progress) as bar:
        for batch in loader:
            detections = detect(
                predictor.model,
                tokenizer,
                categories,
                batch.images,
                options,
                resize_mode=predictor.resize_mode,
                generator=generator,
            )
            found |= dict(zip(batch.image_ids, detections, strict=True))
            bar.update(len(batch))
    score = score_coco if isinstance(source, CocoDetection) else score_voc
    return score(source, found, categories)


def shared_categories(model: Categories, data: Categories) -> Categories:
    """The model's class ids with the names and ids of the data, where the names agree.

    Raises:
        UserError: no name is shared.
    """
    ids = {name: data.source_ids[i] for i, name in data.names.items()}
    names = {i: name for i, name in model.names.items() if name in ids}
    if not names:
        raise UserError(
            f"the weights know the classes {_few(model)}, the data {_few(data)}: none is shared; "
            "evaluate on the data they were trained for, or train on this data"
        )
    return Categories(names, {i: ids[name] for i, name in names.items()})


def score_coco(
    source: CocoDetection, found: dict[int | str, Detections], categories: Categories
) -> Report:
    """COCO's twelve numbers."""
    results = [row for i, found_in in found.items() for row in found_in.to_coco(i, categories)]
    out = evaluate_coco(source.coco, results, "bbox", image_ids=list(found))
    per_class, table = out.pop("per_class"), out.pop("table")
    return Report(out, per_class, table, results)


def score_voc(
    source: VocDetection, found: dict[int | str, Detections], categories: Categories
) -> Report:
    """VOC AP50, area under the curve and 11-point."""
    results = [row for i, found_in in found.items() for row in found_in.to_coco(i, categories)]
    labels = {
        i: np.array([categories.source_ids[int(k)] for k in f.labels]) for i, f in found.items()
    }
    detections = {
        i: {"boxes": f.boxes, "labels": labels[i], "scores": f.scores} for i, f in found.items()
    }
    out = evaluate_voc(source.ground_truth(), detections, source.categories.names)
    per_class = out.pop("per_class")
    table = (
        f"{per_class.to_string(index=False, float_format='{:.3f}'.format)}\n\n"
        f"mAP50 (area under the curve) = {out['mAP50']:.3f}\n"
        f"mAP50 (11-point)             = {out['mAP50_11point']:.3f}"
    )
    return Report(out, per_class, table, results)


def _few(categories: Categories) -> str:
    names = list(categories.names.values())
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def main(argv=None):
    # Scripts alone read the settings: importing this module as a library does not.
    from config import PRESETS
    from utils.cli import find_preset, log, parser, snapshot
    from utils.device import pick_device

    args = parser(__doc__)
    args.add_argument("--task", default="detection", help=f"one of {', '.join(TASKS)}")
    args.add_argument("--dataset", help="coco or voc; default: the setting")
    args.add_argument("--split", help="train, val, or VOC sets such as 2007:test")
    args.add_argument("--weights", type=Path, required=True)
    args.add_argument("--out-dir", type=Path, help="default: results/<task>_<dataset>_<split>")
    args.add_argument("--max-objects", type=int, help="ask for fewer objects than trained for")
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
    report = evaluate_detection(
        predictor,
        source,
        DecodingOptions(cfg.top_k, cfg.top_p, cfg.temperature, cfg.seed),
        batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        max_objects=args.max_objects,
        progress=True,
    )
    name = f"{args.task}_{dataset}_{split}".replace(":", "-").replace(",", "+")
    out_dir = args.out_dir or Path("results") / name
    report.save(out_dir)
    print(report.table)
    if "AP" in report.metrics:
        print(report.per_class.to_string(index=False, float_format="{:.3f}".format))
    log(f"wrote results.json, metrics.json and per_class.csv to {out_dir}")


if __name__ == "__main__":
    from utils.cli import run

    run(main)
