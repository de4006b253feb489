"""Training data: images per second and core of every stage, beside the bound of decoding alone.

python benchmarks/data.py
python benchmarks/data.py --coco-root data/coco --img-size 640 --json data.json

One thread works, and its own processor time counts: other programs on the machine matter little.
The bound is what no loader can leave out: reading the file, decoding it at the size that ours has
and resizing it. The loader, its stages and the bound take turns; medians over the repeats.

  read       annotation, and JPEG to pixels
  move       the transforms of pixels, boxes, points and outlines
  tokenise   objects to tokens
  collate    tensors: a batch of 8, per image
  colour     the colour jitter of the default settings; switched off in the sum
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import cv2
import numpy as np
import torch

from benchmarks.machine import machine
from config import CFG
from dataset.batch import Batch, TrainItem, collate
from dataset.demo.write import DemoSet, write_demo_set
from dataset.geometry import Geometry
from dataset.loader import TrainSet
from dataset.sample import PerObject, Sample
from dataset.tasks import TASKS, build_source, build_tokenizer, build_train_set
from dataset.transforms import color_jitter
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from utils.cli import log, run
from utils.images import REDUCED, reduction

BATCH = 8
STAGES = ("read", "move", "tokenise", "collate")


def parse(argv=None) -> argparse.Namespace:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--coco-root", type=Path, help="COCO folder (default: a drawn set)")
    args.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    args.add_argument("--img-size", type=int, default=640, help="side of the model input")
    args.add_argument("--images", type=int, default=40, help="of each task")
    args.add_argument("--repeat", type=int, default=7, help="turns")
    args.add_argument(
        "--shared",
        action="store_true",
        help="copy each batch to memory shared with the training, as a worker process does",
    )
    args.add_argument("--json", type=Path, help="write the figures there")
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return args.parse_args(argv)


class Clock:
    """Adds up processor seconds by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable, *args):
        start = time.process_time()
        out = work(*args)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
        return out


def load_in_stages(data: TrainSet, keys: list[tuple[int, int]], clock: Clock) -> list[Sample]:
    """What `load` does, stage by stage."""
    samples, items = [], []
    for epoch, index in keys:
        sample = clock("read", data.source.read, index, data.at_least)
        rng = clock("move", np.random.default_rng, [data.seed, epoch, index])
        for transform in data.transforms:
            sample = clock("move", transform, sample, rng)
        tokens = clock("tokenise", data.make_sequence, sample, rng)
        items.append(TrainItem(sample.image, sample.geometry.size, tokens, sample.image_id))
        samples.append(sample)
    clock("collate", collate, items)
    return samples


def load(data: TrainSet, keys: list[tuple[int, int]], shared: bool) -> Batch:
    batch = collate([data[key] for key in keys])
    if shared:
        batch.images.share_memory_()
    return batch


def bound_of(path: Path, geometry: Geometry, at_least: tuple[int, int] | None) -> np.ndarray:
    """Decoding and resizing alone."""
    blocks = reduction(geometry.orig_size, at_least, exact=False) if at_least else 1
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), REDUCED[blocks])
    if blocks == 1:
        y, x, height, width = geometry.crop
        pixels = pixels[y : y + height, x : x + width]
    return cv2.resize(pixels, geometry.resized[::-1])


def measure(data: TrainSet, num_images: int, repeat: int, shared: bool) -> dict:
    """One line of the table: milliseconds per image of each stage, and the ratios."""
    indices = np.linspace(0, len(data) - 1, min(num_images, len(data))).astype(int).tolist()
    colour, times = color_jitter(CFG.color_jitter), []
    for epoch in range(repeat + 1):  # the first one warms up
        clock, num_coloured = Clock(), 0
        for start in range(0, len(indices), BATCH):
            keys = [(epoch, index) for index in indices[start : start + BATCH]]
            samples = load_in_stages(data, keys, clock)
            # the colour jitter of a few is enough
            if start == 0:
                for sample in samples:
                    clock("colour", colour, sample, np.random.default_rng(0))
                num_coloured = len(samples)
            for (_, index), sample in zip(keys, samples, strict=True):
                path = path_of(data.source, index)
                clock("bound", bound_of, path, sample.geometry, data.at_least)
            del samples, sample
            clock("whole", load, data, keys, shared)
        clock.seconds["colour"] *= len(indices) / num_coloured
        times.append({name: 1e3 * s / len(indices) for name, s in clock.seconds.items()})
    # medians over the turns
    names = (*STAGES, "whole", "bound", "colour")
    out = {n: statistics.median(row[n] for row in times[1:] if n in row) for n in names}
    total = [row["whole"] for row in times[1:]]
    bounds = [row["bound"] for row in times[1:]]
    return {f"{name}_ms": value for name, value in out.items()} | {
        "images": len(indices),
        "images_per_s": 1e3 / statistics.median(total),
        "bound_images_per_s": 1e3 / out["bound"],
        "share_of_bound": statistics.median(b / t for b, t in zip(bounds, total, strict=True)),
        "tokenise_share": statistics.median(
            row["tokenise"] / t for row, t in zip(times[1:], total, strict=True)
        ),
    }


def path_of(source, index: int) -> Path:
    """The image file of item `index`, which may be one object of an image."""
    image = source.items[index][0] if isinstance(source, PerObject) else index
    return source.image_path(image)


def train_set(task: str, root: Path, img_size: int) -> TrainSet:
    """As the default settings have it, without colour jitter."""
    options, extra = {}, {}
    if task == "keypoint":
        options, extra = {"per_object": True}, {"crop": CFG.keypoint_crop}
    source = build_source(task, "coco", root, "train", **options)
    text = {}
    if task == "captioning":
        captions = [text for texts in source.references.values() for text in texts]
        text = {"text": TextTokenizer.train(captions, 2000)}
    num_text = text["text"].size if text else 0
    tokenizer = build_tokenizer(task, Vocabulary(num_text=num_text), **text)
    size = (img_size, img_size)
    return build_train_set(task, source, tokenizer, size, seed=0, **extra)


def show(figures: dict[str, dict]) -> None:
    columns = [*(f"{stage}_ms" for stage in STAGES), "whole_ms", "bound_ms", "colour_ms"]
    columns += ["images_per_s", "share_of_bound", "tokenise_share"]
    print(f"{'':14}" + "".join(f"{name.removesuffix('_ms'):>15}" for name in columns))
    for task, row in figures.items():
        print(f"{task:14}" + "".join(f"{row[name]:15.3f}" for name in columns))


def main(argv=None):
    args = parse(argv)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = args.coco_root
        if root is None:
            root = Path(folder) / "demo"
            log("drawing pictures of 480 to 640 pixels")
            write_demo_set(DemoSet(args.images, 1, (480, 640), 0), root, workers=1, progress=False)
        figures = {}
        for task in args.tasks:
            data = train_set(task, root, args.img_size)
            figures[task] = measure(data, args.images, args.repeat, args.shared)
    print(f"{args.img_size} px, milliseconds per image on one core, {machine(torch.device('cpu'))}")
    show(figures)
    if args.json:
        out = {"machine": machine(torch.device("cpu")), "torch": torch.__version__}
        args.json.write_text(json.dumps(vars(args) | out | figures, indent=2, default=str) + "\n")


if __name__ == "__main__":
    run(main)
