"""Export weights to ONNX, with a small program that runs them without torch.

python infer/export_onnx.py weights/demo.safetensors exported/
python exported/run.py photo.jpg

OUT gets encoder.onnx, decoder.onnx, model.json (vocabulary, classes, resizing, decoding of each
task) and run.py. Before they appear there, the graphs are compared with the weights: logits within
1e-4, the same greedy tokens, the same boxes. See docs/export.md.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from utils.cli import log, run
from utils.errors import UserError
from utils.files import check_place, find_weight_file

PICTURE = Path(__file__).resolve().parents[1] / "images" / "demo.jpg"
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def parse(argv=None) -> argparse.Namespace:
    """Command line arguments."""
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument(
        "weights",
        type=Path,
        metavar="WEIGHTS",
        help="a weight file, a run folder or hf://owner/name/FILE",
    )
    args.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    args.add_argument("--image", type=Path, default=PICTURE, help="a picture to check with")
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return args.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Checks the arguments before anything long starts.

    Raises:
        UserError: a package or file is missing, or OUT holds something.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the export needs {', '.join(missing)}; install: pip install {' '.join(missing)}"
        )
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"OUT {args.out} is a file; name a new folder")
    if args.out.is_dir() and any(args.out.iterdir()):
        raise UserError(f"the folder OUT {args.out} is not empty; name a new one")
    check_place(args.out)
    if not args.image.is_file():
        raise UserError(f"no picture at --image {args.image}; name another")
    find_weight_file(args.weights)


def main(argv=None):
    # The command line
    args = parse(argv)
    check_arguments(args)

    # What takes long to import comes after the command line is understood.
    from infer.onnx_export import check_folder, export_folder, new_folder
    from infer.predictor import Predictor

    trained = Predictor(args.weights, mode="plain")
    with new_folder(args.out) as folder:
        start = time.perf_counter()
        log(f"exporting {trained.name} (a minute or two)")
        export_folder(trained, folder)
        log(f"exported in {time.perf_counter() - start:.0f} s; comparing with the weights")
        found = check_folder(trained, folder, args.image)
    log(
        f"the same: logits within {found['largest_difference']:.1g}, {found['tokens']} greedy "
        f"tokens, {found['boxes']} boxes"
    )
    print(f"wrote {args.out}: encoder.onnx, decoder.onnx, model.json, run.py")


if __name__ == "__main__":
    run(main)
