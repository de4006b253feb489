"""Convert weights of two small PyTorch ports of Pix2Seq to a weight file of ours.

    python download/convert_port_weights.py --port moein pix2seq_weights.pth \\
        weights/moein.safetensors --encoder deit3_small_patch16_384_in21ft1k \\
        --num-classes 20 --num-bins 384 --image-size 384
    python download/convert_port_weights.py --port jjjymmm coco_multi_task.pth \\
        weights/jjjymmm.safetensors --encoder deit3_small_patch16_384_in21ft1k \\
        --num-classes 91 --num-bins 384 --image-size 384 --task multi

moein is moein-shariatnia/Pix2Seq, jjjymmm is JJJYmmm/Pix2SeqV2-Pytorch. Every tensor must find its
place. The weight file also says how that port makes model input of an image (stretched, or
letterboxed in the middle of black; no antialias; ImageNet normalisation) and that it rounds
coordinates down, so its boxes are decoded half a bin higher. The ports' VOC classes are known, and
for 91 classes those of COCO; name others with --class-names.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import run
from utils.errors import UserError

BLACK = (0.0,)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, metavar="IN.pth")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--port", choices=("moein", "jjjymmm"), required=True)
    parser.add_argument(
        "--encoder", required=True, metavar="NAME", help="a timm model, old or new name"
    )
    parser.add_argument("--num-classes", type=int, required=True, metavar="N", help="class tokens")
    parser.add_argument("--num-bins", type=int, required=True, metavar="N")
    parser.add_argument(
        "--image-size", type=int, nargs="+", required=True, metavar="N", help="side, or H W"
    )
    parser.add_argument(
        "--heads", type=int, default=8, metavar="N", help="of the decoder (default: 8)"
    )
    parser.add_argument(
        "--task", choices=("detection", "multi"),
        help="what it was trained for: answers start at BOS, or at the task's token (default: "
        "detection for moein, multi for jjjymmm)",
    )  # fmt: skip
    parser.add_argument(
        "--resize-mode", choices=("stretch", "letterbox"),
        help="default: stretch for moein, letterbox for jjjymmm (whose VOC models stretch)",
    )  # fmt: skip
    parser.add_argument(
        "--pad-value", type=float, nargs="+", default=BLACK, metavar="V",
        help="of a letterbox, in [0, 1], for all channels or each (default: black)",
    )  # fmt: skip
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE",
        help='one name per line, JSON {"id": name}, or a COCO annotation file',
    )  # fmt: skip
    for name in ("dim", "layers", "max-len"):
        parser.add_argument(
            f"--{name}", type=int, metavar="N", help="only checked: the tensors tell it"
        )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        raise UserError(f"the weight file must end in .safetensors, got {args.out}")
    if len(args.image_size) > 2 or min(args.image_size) < 1:
        raise UserError(f"--image-size must be one side or H W, got {args.image_size}")
    if len(args.pad_value) not in (1, 3):
        raise UserError(f"--pad-value must be one number or three, got {len(args.pad_value)}")
    args.task = args.task or ("detection" if args.port == "moein" else "multi")
    args.resize_mode = args.resize_mode or ("stretch" if args.port == "moein" else "letterbox")
    if args.port == "moein" and args.task == "multi":
        raise UserError("--port moein has one task; leave --task out")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from download.port_model import convert  # torch takes seconds: only now

    vocab = convert(args)
    print(f"{args.out}: detection starts at token {vocab.prompts['detection']}, {args.resize_mode}")


if __name__ == "__main__":
    run(main)
