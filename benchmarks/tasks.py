"""Images per second of everything a weight file can say, split by stage.

python benchmarks/tasks.py
python benchmarks/tasks.py --weights weights/coco_multi_task.safetensors --images "photos/*.jpg"

How the time grows with the number of objects asked for, the pixels of the image and the batch:
each line changes one of them. Images are drawn scenes, or some of yours, stretched to the size; how
many masks and persons follow depends on what is found in them, which `found` counts.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import cv2
import numpy as np
import torch

from benchmarks.machine import machine
from config import CFG
from dataset.demo.write import DemoSet, draw_image
from infer.batches import as_tensor
from infer.detection import DetectionOptions
from infer.multi_task import AllTasksOptions, Stopwatch, find_all
from infer.predictor import Predictor
from models.decode_step import CHOICES
from utils.cli import run
from utils.devices import pick_device
from utils.errors import UserError
from utils.images import list_images, load_image


def parse(argv=None) -> argparse.Namespace:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--weights", type=Path, default=CFG.demo_weights)
    args.add_argument("--images", help="file, folder or glob; default: drawn scenes")
    args.add_argument("--objects", type=int, nargs="+", default=[1, 4, 8], help="to ask for")
    args.add_argument("--sizes", nargs="+", default=["480x640", "960x1280"], help="HxW of images")
    args.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    args.add_argument("--repeat", type=int, default=3)
    args.add_argument("--mode", choices=CHOICES, default="auto", help="of decoding")
    args.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args.add_argument("--device", default="auto")
    args.add_argument("--json", type=Path, help="write the figures there")
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return args.parse_args(argv)


def sides(size: str) -> tuple[int, int]:
    """(H, W) of "HxW".

    Raises:
        UserError: it is no size.
    """
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) * int(width)):
        raise UserError(f"--sizes must be like 480x640 (HxW), got {size!r}")
    return int(height), int(width)


def load_pictures(pattern: str | None, most: int) -> list[np.ndarray]:
    """At most so many, (H, W, 3) uint8."""
    if pattern is not None:
        return [load_image(path) for path in list_images(pattern)[:most]]
    scenes = DemoSet(train=0, val=most, size=(256, 384), seed=0)
    return [draw_image(scenes, "val", index)[0].image for index in range(most)]


def measure(
    predictor: Predictor,
    pictures: list[np.ndarray],
    objects: int,
    size: str,
    batch: int,
    repeat: int,
) -> dict:
    """One line: median time of a batch, and of its stages."""
    height, width = sides(size)
    chosen = [pictures[i % len(pictures)] for i in range(batch)]
    images = [as_tensor(cv2.resize(picture, (width, height))) for picture in chosen]
    times, stages, found = [], {}, []
    for turn in range(repeat + 1):
        stopwatch = Stopwatch(predictor.model)
        options = AllTasksOptions(detection=DetectionOptions(max_objects=objects))
        start = time.perf_counter()
        found = find_all(predictor, images, options, stage=stopwatch.stage)
        if turn:  # the first one warms up
            times.append(time.perf_counter() - start)
            for name, value in stopwatch.seconds.items():
                stages.setdefault(name, []).append(1e3 * value)
    detected = sum(len(one.objects.boxes) for one in found if one.objects is not None)
    return {
        "asked": objects, "size": size, "batch": batch, "objects": detected,
        "images_per_s": batch / statistics.median(times),
        "ms": {name: statistics.median(values) for name, values in stages.items()},
    }  # fmt: skip


def main(argv=None):
    args = parse(argv)
    device, pictures = pick_device(args.device), load_pictures(args.images, max(args.batch))
    for size in args.sizes:
        sides(size)  # now, not after the first ones
    predictor = Predictor(args.weights, device, dtype=getattr(torch, args.dtype), mode=args.mode)
    mode = predictor.model.decode_mode
    print(f"{args.weights.name} ({', '.join(predictor.tasks)}), {mode}, {machine(device)}")
    first = (args.objects[-1], args.sizes[0], args.batch[0])
    cases = [first]
    cases += [(n, *first[1:]) for n in args.objects[:-1]]
    cases += [(first[0], size, first[2]) for size in args.sizes[1:]]
    cases += [(*first[:2], batch) for batch in args.batch[1:]]
    out = {"machine": machine(device), "torch": torch.__version__, "cases": []}
    for case in cases:
        line = measure(predictor, pictures, *case, args.repeat)
        out["cases"].append(line)
        stages = "  ".join(f"{name} {value:.0f} ms" for name, value in line["ms"].items())
        print(
            f"asked {line['asked']:>3}  {line['size']:>9}  batch {line['batch']:>3}  found "
            f"{line['objects']:>3}  {line['images_per_s']:7.2f} images/s  {stages}"
        )
    if args.json:
        args.json.write_text(json.dumps(vars(args) | out, indent=2, default=str) + "\n")


if __name__ == "__main__":
    run(main)
