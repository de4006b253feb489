"""Functions that the scripts of infer/ share: options, weights to use, boxes.

Nothing here imports torch before the command line is understood.
"""

import argparse
from importlib import import_module
from pathlib import Path

import numpy as np

from utils.categories import check_class_names
from utils.cli import log, parser
from utils.errors import UserError
from utils.files import check_place, explain_download, find_weight_file, is_hub_name, is_stream

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv", ".3gp")

DETECTION = "infer_single_image_object_detection.py has it"
MULTI_TASK = "infer_single_image_multi_task.py has it"
SEGMENTATION = "infer_single_image_segmentation.py has it"
ELSEWHERE = {  # options that some scripts lack -> what to say there
    **dict.fromkeys(("--max-objects", "--stride", "--max-frames"), DETECTION),
    **dict.fromkeys(("--num-captions", "--num-samples", "--timing"), MULTI_TASK),
    **dict.fromkeys(("--box", "--label", "--xyxy"), SEGMENTATION),
}
OF_PICTURES = dict.fromkeys(
    ("--out-dir", "--score-threshold", "--classes", "--crops", "--yolo"),
    f"this script prints text and draws nothing; {DETECTION}",
)

# ---- options ---------------------------------------------------------------------------------


def infer_parser(doc: str, *, pictures: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of every inference script.

    Args:
        pictures: the script draws scored objects; otherwise it prints text alone.
    """
    args = parser(doc)
    args.elsewhere = ELSEWHERE if pictures else ELSEWHERE | OF_PICTURES
    args.add_argument(
        "--image",
        required=True,
        nargs="+",
        action="extend",
        help="files, folders (without subfolders), globs or http(s) addresses of pictures",
    )
    args.add_argument("--recursive", action="store_true", help="also read subfolders")
    args.add_argument(
        "--weights",
        type=Path,
        help="a weight file, a run folder or hf://owner/name/FILE; default: the file that "
        "config.py names for the task, else the demo weights (they only know drawn scenes)",
    )
    if pictures:
        _add_options_of_pictures(args)
    args.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="without FILE: print JSON instead of the table; with FILE: print the table and write "
        "JSON to FILE",
    )
    args.add_argument("--csv", metavar="FILE", help="write a CSV file, a row for each result")
    args.add_argument(
        "--device", help="auto (a GPU if there is one), cpu, cuda or cuda:1; default: the setting"
    )
    return args


def _add_options_of_pictures(args: argparse.ArgumentParser) -> None:
    args.add_argument(
        "--out-dir",
        type=Path,
        default=Path(),
        help="folder for the pictures with results; default: the current folder",
    )
    args.add_argument(
        "--score-threshold",
        type=float,
        metavar="0..1",
        help="leave out objects that score lower; default: score_threshold in config.py (0.3)",
    )
    args.add_argument("--classes", metavar="NAMES", help="only these classes, such as cat,dog")
    args.add_argument(
        "--crops",
        type=Path,
        metavar="DIR",
        help="write a cut-out of each object, by class; DIR must be new or empty",
    )
    args.add_argument(
        "--yolo",
        type=Path,
        metavar="DIR",
        help="write labels in YOLO format, and data.yaml; DIR must be new or empty",
    )


def add_video_arguments(args: argparse.ArgumentParser) -> None:
    """Adds `--stride` and `--max-frames`; `--image` may name a video or a camera then."""
    args.add_argument(
        "--stride", type=int, default=1, metavar="N", help="video: process every N-th frame only"
    )
    args.add_argument(
        "--max-frames", type=int, metavar="N", help="video or camera: stop after N frames"
    )


def open_clip(args: argparse.Namespace):
    """The video (by its suffix) or the camera (a number) that `--image` names; None = pictures.

    Raises:
        UserError: it cannot be opened, something else is named beside it, or an option is given
            that is for pictures.
    """
    clips = [n for n in args.image if n.lower().endswith(VIDEOS) or is_camera(n)]
    if not clips:
        return None
    if len(args.image) > 1:
        raise UserError(f"--image has {clips[0]} and other inputs; give a video or camera alone")
    for option in ("csv", "crops", "yolo", "timing"):
        if getattr(args, option, None):
            lines = "a video or camera writes JSON lines, see docs/video.md"
            raise UserError(f"--{option} is for pictures; {lines}")
    return import_module("infer.video").Clip(clips[0], args)


def is_camera(name: str) -> bool:
    """Whether `--image` is the number of a camera; a file with that name has precedence."""
    return name.isdecimal() and not Path(name).exists()


def check_exports(args: argparse.Namespace, predictor) -> None:
    """Checks that the weights find objects, where a script is to write or cut out some.

    Raises:
        UserError: they do not.
    """
    for option in ("crops", "yolo"):
        if getattr(args, option) is not None and "detection" not in predictor.tasks:
            raise UserError(f"--{option} needs objects; {predictor.name} does not know detection")


def check_places(args: argparse.Namespace) -> None:
    """Checks that all output paths can be written, before anything long starts.

    Raises:
        UserError: nothing can be written there, or what is there is not ours.
    """
    if getattr(args, "out_dir", None) is not None:
        check_place(args.out_dir)
    for option in ("crops", "yolo"):
        if (folder := getattr(args, option, None)) is not None:
            check_place(folder)
            if folder.is_dir() and any(folder.iterdir()):
                raise UserError(f"--{option} {folder} is not empty; name a new folder")
    for option, begin in (("json", b"["), ("csv", b"image,")):
        path = getattr(args, option, None)
        if path is None or is_stream(path):
            continue
        if path == "-":
            if option == "json":  # which is printed then
                continue
            raise UserError("--csv writes a file; name it, or /dev/stdout")
        path = Path(path)
        if path.is_dir():
            raise UserError(f"cannot write --{option} {path}: it is a folder; name a file in it")
        check_place(path.parent)
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(begin)) not in (b"", begin):  # an image, say
                    raise UserError(
                        f"--{option} {path} exists and is not a results file; name another file"
                    )


def pick_threshold(args: argparse.Namespace, cfg) -> float:
    """The threshold of `--score-threshold`, else of the setting."""
    return cfg.score_threshold if args.score_threshold is None else args.score_threshold


# ---- boxes -----------------------------------------------------------------------------------


def add_box_arguments(args: argparse.ArgumentParser) -> None:
    """Adds `--box x y w h` and `--label NAME`, both repeatable, and `--xyxy`."""
    args.add_argument(
        "--box",
        nargs="+",
        action="append",
        metavar="X",
        help="x y width height (or with commas) in pixels of the image; repeat the option for more "
        "boxes; default: the objects that the same weights detect",
    )
    args.add_argument(
        "--xyxy", action="store_true", help="--box is xmin ymin xmax ymax, as in the results"
    )
    args.add_argument(
        "--label",
        action="append",
        help="name of the class in the box; give it once for all boxes or once for each box",
    )


def check_box_arguments(args: argparse.Namespace, num_images: int) -> None:
    """Checks that boxes are given for one image.

    Raises:
        UserError: for several.
    """
    if args.box and num_images > 1:
        raise UserError(f"--box needs exactly one image, --image has {num_images}")


def check_boxes_known(args: argparse.Namespace, predictor, task: str) -> None:
    """Checks that the weights know the task, and that boxes are given or detectable.

    Raises:
        UserError: one of it is missing.
    """
    predictor.require(task)
    if not (args.box or args.label) and "detection" not in predictor.tasks:
        raise UserError(
            f"{predictor.name} cannot detect objects, so it needs boxes: "
            "add --box x y w h, or name weights of several tasks with --weights"
        )


def read_box_arguments(
    args: argparse.Namespace, size: tuple[int, int]
) -> tuple[np.ndarray | None, str | list[str] | None]:
    """Reads the boxes and labels of `add_box_arguments`.

    Args:
        size: (H, W) of the image.

    Returns:
        boxes (N, 4) float32 xyxy cut to the image, and labels, None if not given.

    Raises:
        UserError: not four numbers, a box outside the image, or labels that fit no box.
    """
    if args.box is None:
        if args.xyxy:
            raise UserError("--xyxy says how a --box is written; give --box xmin ymin xmax ymax")
        if args.label:
            raise UserError("--label names what is in a --box; give --box x y w h too")
        return None, None
    # Boxes: four numbers, some part of them in the image
    boxes, form = [], "xmin ymin xmax ymax" if args.xyxy else "x y w h"
    for words in args.box:
        text = " ".join(words)
        try:
            x, y, w, h = map(float, text.replace(",", " ").split())
        except ValueError:
            raise UserError(f"--box must be four numbers {form}, got {text!r}") from None
        if args.xyxy:
            w, h = w - x, h - y
        box = np.clip([x, y, x + w, y + h], 0, [size[1], size[0]] * 2)
        if not (w > 0 and h > 0 and box[2] > box[0] and box[3] > box[1]):
            raise UserError(
                f"--box {text} holds no pixel of the image ({size[1]} x {size[0]}); "
                f"it is {form} in pixels"
            )
        boxes.append(box)
    # Labels: one for all, or one for each
    labels = args.label
    if labels and len(labels) not in (1, len(boxes)):
        raise UserError(f"--label: give one, or one per box; got {len(labels)} for {len(boxes)}")
    return np.float32(boxes), labels[0] if labels and len(labels) == 1 else labels


# ---- weights ---------------------------------------------------------------------------------


def load_predictor(args: argparse.Namespace, cfg, weights: Path):
    """Loads `--weights`, else the weights of the setting, else the demo weights.

    The places for the results are tried first.

    Args:
        weights: the setting.

    Raises:
        UserError: none of these files is there, or no result can be written.
    """
    check_places(args)
    if args.weights is not None:
        return predictor_of(args.weights, cfg, args.device)
    if weights.exists() or is_hub_name(weights):
        return predictor_of(weights, cfg, args.device)
    if not cfg.demo_weights.exists():
        raise UserError(
            f"no weights at {weights}; train some, or name a weight file with --weights"
        )
    remedy = explain_download(weights) or "name others with --weights"
    log(
        f"notice: no weights at {weights}, using the demo weights (they know drawn scenes only); "
        f"{remedy}"
    )
    return predictor_of(cfg.demo_weights, cfg, args.device)


def predictor_of(weights: Path, cfg, device: str | None = None):
    """Loads a `Predictor` with the number type and decoding of the settings.

    Args:
        device: None = that of the settings.

    Raises:
        UserError: no such weight file, or one that this machine cannot compute as the settings say.
    """
    file = find_weight_file(weights)
    if file.parent == weights.expanduser():
        log(f"weights: {file}")
    # Only now: torch takes seconds to import.
    import torch

    from infer.predictor import Predictor
    from models.decode_step.native import obstacle
    from utils.devices import check_bfloat16, pick_device, set_matmul_precision

    set_matmul_precision(cfg.matmul_precision)
    device, dtype = pick_device(device or cfg.device), getattr(torch, cfg.infer_dtype)
    if device.type == "cpu" and cfg.infer_dtype == "bfloat16":
        emulate = cfg.emulate_bfloat16
        check_bfloat16("infer_dtype=bfloat16", "infer_dtype=float32", emulate=emulate)
    predictor = Predictor(
        weights, device, dtype=dtype, mode=cfg.decode_mode, encoder_int8=cfg.encoder_int8
    )
    could_be_native = cfg.decode_mode == "auto" and device.type == "cpu"
    if could_be_native and predictor.model.decode_mode != "native":
        reason = obstacle(dtype) or "the native step does not suit this decoder"
        log(f"notice: decoding takes longer than it could: {reason}")
    return predictor


def pick_classes(args: argparse.Namespace, predictor) -> list[str] | None:
    """The names of `--classes`; None = all.

    Raises:
        UserError: the weights know no class of that name.
    """
    if args.classes is None:
        return None
    names = [name.strip() for name in args.classes.split(",")]
    check_class_names(names, predictor.categories.names.values(), predictor.name)
    return names
