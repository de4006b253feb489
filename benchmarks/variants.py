"""Compares settings of inference on one dataset: images a second, quality, and what is shown.

python benchmarks/variants.py --task detection --weights W --set data=FOLDER \
    --variant eval_stop_objects=0 --variant eval_stop_objects=2
python benchmarks/variants.py --task segmentation --preset demo_multi_task --weights W \
    --variant eval_seg_agree=0 --variant eval_seg_agree=0.85 --variant "seg_samples=2 seg_top_p=0.4"

Every variant is evaluated in turn, as often as --repeat says; times are medians, without loading
weights and without scoring, images read in this process. With OMP_NUM_THREADS=1 they are the
process's own time, which other programs change less. "same" counts the images whose results that
score at least score_threshold equal those of the first variant.
"""

import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import PRESETS
from infer.script import predictor_of
from utils.cli import load_settings, parser, run

HOW_TO_COMPUTE = ("infer_dtype", "encoder_int8", "decode_mode", "device", "matmul_precision")


def shown_rows(rows: list[dict], threshold: float) -> dict[object, list[str]]:
    """Image id -> its results that are shown, as text, in a fixed order."""
    found = defaultdict(list)
    for row in rows:
        if row.get("score", 1) >= threshold:
            found[row["image_id"]].append(json.dumps(row, sort_keys=True))
    return {image_id: sorted(texts) for image_id, texts in found.items()}


def main(argv=None):
    args = parser(__doc__, presets=PRESETS)
    args.add_argument("--task", default="detection")
    args.add_argument("--weights", type=Path, required=True)
    args.add_argument("--split", default="val")
    args.add_argument("--variant", action="append", required=True, help="settings, name=value ...")
    args.add_argument("--repeat", type=int, default=1)
    args = args.parse_args(argv)
    variants, common = {}, [*(args.set or []), "num_workers=0"]
    for text in args.variant:
        args.set = [*common, *text.split()]
        variants[text] = load_settings(args, PRESETS["default"], presets=PRESETS)

    import torch

    from benchmarks.machine import machine
    from dataset.find_dataset import place_of_data
    from dataset.tasks import build_source
    from infer import batches
    from infer.tasks import evaluate_task

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    predict_all, seconds = batches.predict_all, defaultdict(list)

    def timed(*arguments):
        start = clock()
        found = predict_all(*arguments)
        seconds[text].append(clock() - start)
        return found

    batches.predict_all = timed
    predictors, how = {}, {}  # one for each way to compute
    for text, settings in variants.items():
        how[text] = tuple(getattr(settings, name) for name in HOW_TO_COMPUTE)
        if how[text] not in predictors:
            predictors[how[text]] = predictor_of(args.weights, settings)
    cfg = next(iter(variants.values()))  # data and threshold
    root, split = place_of_data(cfg, cfg.dataset, args.split)
    limit = cfg.eval_limit or None
    source = build_source(args.task, cfg.dataset, root, split, limit=limit)
    print(f"{args.weights.name}, {args.task}, {len(source)} images, {machine(torch.device('cpu'))}")
    reports = {}
    for _ in range(args.repeat):
        for text, settings in variants.items():
            predictor = predictors[how[text]]
            reports[text] = evaluate_task(args.task, settings, predictor, source)
    first = None
    for text, report in reports.items():
        shown = shown_rows(report.results, cfg.score_threshold)
        first = shown if first is None else first
        ids = source.image_ids.tolist() if hasattr(source.image_ids, "tolist") else source.image_ids
        same = sum(shown.get(i) == first.get(i) for i in ids)
        objects = sum(map(len, shown.values()))
        took = statistics.median(seconds[text])
        name, value = next(iter(report.metrics.items()))
        print(
            f"{text:<40} {len(source) / took:7.2f} images/s  {name} {value:.4f}  "
            f"shown {objects}, same in {same} of {len(source)}",
            flush=True,
        )


if __name__ == "__main__":
    run(main)
