"""Draw the synthetic demo set: COCO 2017 and VOC layout, boxes, masks, keypoints, captions.

    python download/make_demo_dataset.py                         # 2000 + 200 pictures in data/demo
    python download/make_demo_dataset.py --out data/tiny --train 50 --val 10
    python download/make_demo_dataset.py --sample images/demo.jpg --size 400 520 --seed 149

The same arguments give the same files, whatever the number of workers.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from dataset.demo.scene import draw_scene
from dataset.demo.write import VAL_ID0, DemoSet, save_jpeg, write_demo_set
from utils.cli import run
from utils.errors import UserError


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help="folder to make (default: data/demo of this repository)"
    )
    parser.add_argument("--train", type=int, default=2000, help="training pictures (default: 2000)")
    parser.add_argument("--val", type=int, default=200, help="validation pictures (default: 200)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(256, 320), metavar=("MIN", "MAX"),
        help="shortest and longest side of a picture, pixels (default: 256 320)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, other pictures (default: 0)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all)"
    )
    parser.add_argument(
        "--sample", type=Path, metavar="FILE", help="draw just one picture, MIN high and MAX wide"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if args.train < 0 or args.val < 0 or not 0 < args.train + args.val <= VAL_ID0:
        raise UserError(f"--train and --val must be 0 to {VAL_ID0} pictures and not both 0")
    if not 96 <= args.size[0] <= args.size[1] <= 2048:
        raise UserError(
            f"--size must be 96 <= MIN <= MAX <= 2048, got {args.size[0]} {args.size[1]}"
        )
    if args.seed < 0:
        raise UserError(f"--seed must not be negative, got {args.seed}")
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, got {args.workers}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    demo = DemoSet(args.train, args.val, tuple(args.size), args.seed)
    if args.sample is not None:
        rng = np.random.default_rng(args.seed)
        save_jpeg(args.sample, draw_scene(rng, args.size[0], args.size[1]).image)
        print(f"drew {args.sample}", file=sys.stderr)
        return
    out = args.out if args.out is not None else ROOT / "data" / "demo"
    made = write_demo_set(demo, out, workers=args.workers)
    what = f"{demo.train} training and {demo.val} validation pictures"
    print(f"{out}: {what}" + ("" if made else " are there already; nothing to do"), file=sys.stderr)


if __name__ == "__main__":
    run(main)
