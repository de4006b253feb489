"""Convert a checkpoint of the official TensorFlow implementation to a weight file of ours.

    python download/convert_official_weights.py CHECKPOINT weights/official.safetensors \\
        --variant vit-b --image-size 640
    python download/convert_official_weights.py CHECKPOINT OUT.safetensors --config config.json

CHECKPOINT is a prefix (`.../ckpt-93324`) or a folder with a `checkpoint` file. TensorFlow is not
needed. Every variable must have its place in the model; optimiser slots are ignored. The SHA-256
of OUT is written to OUT.sha256.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from download.official_settings import VARIANTS
from utils.cli import run
from utils.errors import UserError


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--variant", choices=VARIANTS, help="a published size, with --image-size")
    model.add_argument(
        "--config", type=Path, metavar="FILE.json", help="official settings with a 'model' object"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="side that the checkpoint was trained with"
    )
    parser.add_argument(
        "--task", choices=("detection", "multi"), default="detection",
        help="what it was trained for (default: detection)",
    )  # fmt: skip
    parser.add_argument(
        "--text-model", type=Path, metavar="FILE",
        help="c4_en_32k_spm.model, the pieces of the captions (multi)",
    )  # fmt: skip
    parser.add_argument(
        "--resize", type=int, metavar="N", help="side of the input from now on; default: unchanged"
    )
    names = parser.add_mutually_exclusive_group()
    names.add_argument(
        "--annotations", type=Path, metavar="FILE.json",
        help="COCO annotation file with the category names (default: those of COCO 2017)",
    )  # fmt: skip
    names.add_argument(
        "--num-classes", type=int, metavar="N", help="name the classes 1 to N by their numbers"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if (args.variant is None) != (args.image_size is None):
        raise UserError("--variant and --image-size go together; --config holds the size itself")
    if args.text_model is not None and args.task != "multi":
        raise UserError("--text-model is for --task multi")
    if args.out.suffix != ".safetensors":
        raise UserError(f"the weight file must end in .safetensors, got {args.out}")
    for name in ("image_size", "resize", "num_classes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from download.official_weights import convert  # torch takes seconds: only now

    print(f"{convert(args)}  {args.out}")


if __name__ == "__main__":
    run(main)
