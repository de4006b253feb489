"""How many captions of demo pictures state the right counts and categories.

python infer/evaluate.py --task captioning --preset demo_multi_task \\
    --weights weights/demo.safetensors
python benchmarks/demo_captions.py results/captioning_coco_val/results.json

A caption is right when it counts something ("two red cats"; where nothing is there, also when it
counts nothing) and every category that it counts is there as often as it says.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

from dataset.demo.captions import stated_counts
from utils.cli import run
from utils.errors import UserError


def states_the_truth(caption: str, there: Counter, categories: list[str]) -> bool:
    """
    Args:
        there: category -> how often it is in the picture.
    """
    said: Counter = Counter()
    for number, _, category in stated_counts(caption, categories):
        said[category] += number
    empty = not any(there.values())
    return all(there[name] == n for name, n in said.items()) and bool(said or empty)


def main(argv=None):
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("results", type=Path, help="results.json of infer/evaluate.py")
    args.add_argument("--demo-root", type=Path, default=ROOT / "data" / "demo")
    args.add_argument("--split", default="val")
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = args.parse_args(argv)
    for path in (args.results, args.demo_root):
        if not path.exists():
            raise UserError(f"nothing at {path}; name it: --help")
    file = args.demo_root / "annotations" / f"instances_{args.split}2017.json"
    truth = json.loads(file.read_text())
    names = {row["id"]: row["name"] for row in truth["categories"]}
    there: dict[int, Counter] = {row["id"]: Counter() for row in truth["images"]}
    for row in truth["annotations"]:
        there[row["image_id"]][names[row["category_id"]]] += not row["iscrowd"]
    rows = json.loads(args.results.read_text())
    if not rows:
        raise UserError(f"{args.results} holds no captions")
    categories = list(names.values())
    right = [states_the_truth(row["caption"], there[row["image_id"]], categories) for row in rows]
    share = sum(right) / len(rows)
    print(f"{sum(right)} of {len(rows)} captions state the right counts ({share:.2f})")


if __name__ == "__main__":
    run(main)
