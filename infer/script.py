"""Functions that the scripts of infer/ share: options, weights to use, boxes, where results go.

Nothing here imports torch before the command line is understood.
"""

import argparse
import itertools
import json
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from utils.cli import log, parser
from utils.errors import UserError
from utils.files import check_place, find_weight_file, is_hub_name, is_stream, write_json_atomic
from utils.images import list_images, load_image

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv", ".3gp")
URL = re.compile(r"https?://", re.IGNORECASE)
ADDRESSES: dict[Path, str] = {}  # file of a picture that was fetched -> where it is from

# ---- options ---------------------------------------------------------------------------------


def infer_parser(doc: str, *, pictures: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of every inference script.

    Args:
        pictures: the script draws scored objects; otherwise it prints text alone.
    """
    args = parser(doc)
    args.add_argument(
        "--image",
        required=True,
        nargs="+",
        action="extend",
        help="files, folders (not their subfolders), globs or http(s) addresses",
    )
    args.add_argument(
        "--weights",
        type=Path,
        help="a file, a run folder or hf://owner/name/FILE; default: the task's path in config.py",
    )
    if pictures:
        args.add_argument(
            "--out-dir", type=Path, default=Path(), help="for the pictures; default: this folder"
        )
        args.add_argument("--score-threshold", type=float, help="default: the setting")
    args.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="print JSON instead of the table, or also write it to FILE",
    )
    args.add_argument("--device", help="auto, cpu, cuda, cuda:1; default: the setting")
    return args


def add_video_arguments(args: argparse.ArgumentParser) -> None:
    """Adds `--stride` and `--max-frames`; `--image` may name a video or a camera then."""
    args.add_argument(
        "--stride", type=int, default=1, metavar="N", help="of a video: every N-th frame"
    )
    args.add_argument("--max-frames", type=int, metavar="N", help="of a video or camera: stop then")


def open_clip(args: argparse.Namespace):
    """The video (by its suffix) or the camera (a number) that `--image` names; None = pictures.

    Raises:
        UserError: it cannot be opened, or something else is named beside it.
    """
    clips = [n for n in args.image if n.lower().endswith(VIDEOS) or is_camera(n)]
    if not clips:
        return None
    if len(args.image) > 1:
        raise UserError(f"--image names {clips[0]} and more; a video or camera goes alone")
    return import_module("infer.video").Clip(clips[0], args)


def is_camera(name: str) -> bool:
    """Whether `--image` means the camera of this number: a file of that name comes first."""
    return name.isdecimal() and not Path(name).exists()


def check_places(args: argparse.Namespace) -> None:
    """Tries the places for pictures and JSON, before anything takes its time.

    Raises:
        UserError: nothing can be written there.
    """
    if getattr(args, "out_dir", None) is not None:
        check_place(args.out_dir)
    if args.json in (None, "-") or is_stream(args.json):
        return
    path = Path(args.json)
    if path.is_dir():
        raise UserError(f"cannot write --json {path}: it is a folder; name a file in it")
    check_place(path.parent)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(1) not in (b"", b"["):  # an image, say
                raise UserError(f"--json {path} is there and holds no results; name another file")


def pick_threshold(args: argparse.Namespace, cfg) -> float:
    """`--score-threshold`, else the setting."""
    return cfg.score_threshold if args.score_threshold is None else args.score_threshold


# ---- boxes -----------------------------------------------------------------------------------


def add_box_arguments(args: argparse.ArgumentParser) -> None:
    """Adds `--box x y w h` and `--label NAME`, both repeatable."""
    args.add_argument(
        "--box",
        nargs="+",
        action="append",
        metavar="X",
        help="x y w h (or x,y,w,h) in pixels of the image; repeat it for more; "
        "default: what the same weights detect",
    )
    args.add_argument(
        "--label",
        action="append",
        help="class in the box, by name: one for all boxes or one for each",
    )


def check_box_arguments(args: argparse.Namespace, num_images: int) -> None:
    """Checks that boxes are given for one image.

    Raises:
        UserError: for several.
    """
    if args.box and num_images > 1:
        raise UserError(f"--box is about one image, --image names {num_images}")


def check_boxes_known(args: argparse.Namespace, predictor, task: str) -> None:
    """Checks that the weights know the task, and that boxes are given or can be detected.

    Raises:
        UserError: one of it is missing.
    """
    predictor.require(task)
    if not (args.box or args.label) and "detection" not in predictor.tasks:
        raise UserError(
            f"{predictor.name} cannot detect, so it needs to be told where to look: "
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
        if args.label:
            raise UserError("--label names what is in a --box; give --box x y w h too")
        return None, None
    # Boxes: four numbers, some part of them in the image
    boxes = []
    for words in args.box:
        text = " ".join(words)
        try:
            x, y, w, h = map(float, text.replace(",", " ").split())
        except ValueError:
            raise UserError(f"--box must be four numbers x y w h, got {text!r}") from None
        box = np.clip([x, y, x + w, y + h], 0, [size[1], size[0]] * 2)
        if not (w > 0 and h > 0 and box[2] > box[0] and box[3] > box[1]):
            raise UserError(
                f"--box {text} holds no pixel of the image ({size[1]} x {size[0]}); "
                "it is x y w h in pixels"
            )
        boxes.append(box)
    # Labels: one for all, or one for each
    labels = args.label
    if labels and len(labels) not in (1, len(boxes)):
        raise UserError(f"give one --label or one per --box: {len(labels)} for {len(boxes)}")
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
    log(
        f"notice: no weights at {weights}, using the demo weights (they know drawn scenes only); "
        "name others with --weights"
    )
    return predictor_of(cfg.demo_weights, cfg, args.device)


def predictor_of(weights: Path, cfg, device: str | None = None):
    """Loads a `Predictor` that computes as the settings say.

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
    predictor = Predictor(file, device, dtype=dtype, mode=cfg.decode_mode)
    could_be_native = cfg.decode_mode == "auto" and device.type == "cpu"
    if could_be_native and (reason := obstacle(dtype)):
        log(f"notice: decoding takes longer than it could: {reason}")
    return predictor


# ---- images and results ----------------------------------------------------------------------


def find_images(patterns: Sequence[str]) -> list[Path]:
    """The images that `--image` names, each once.

    Raises:
        UserError: one of the patterns names none.
    """
    paths = [
        path
        for pattern in patterns
        for path in (_fetched(pattern) if URL.match(pattern) else list_images(pattern))
    ]
    return list({os.path.abspath(path): path for path in reversed(paths)}.values())[::-1]


def _fetched(url: str) -> list[Path]:
    path = import_module("utils.fetch").fetch_picture(url)
    ADDRESSES[path] = url
    return [path]


def read_images(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Reads images one after the other, see `read_batches`."""
    for batch in read_batches(paths, 1):
        yield from batch


def read_batches(paths: Sequence[Path], size: int) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """Reads images in batches; of several images, unreadable ones are reported and left out.

    Yields:
        up to `size` pairs of path and (H, W, 3) uint8 RGB pixels.

    Raises:
        UserError: at the end, if images were left out; at once if there is one image alone.
    """
    batch, unread = [], []
    for path in paths:
        try:
            image = load_image(path)
        except UserError as error:
            if len(paths) == 1:
                raise
            log(f"left out: {error}")
            unread.append(path)
            continue
        batch.append((path, image))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
    if unread:
        raise UserError(
            f"{len(unread)} of {len(paths)} images could not be read, {unread[0]} first"
        )


class Output:
    """Writes the results of a script: pictures to `--out-dir`, the rest to stdout and `--json`.

    It is a context. At its end the results are printed, also if an error ended it.
    """

    def __init__(self, args: argparse.Namespace, paths: Sequence[Path]):
        self.args = args
        self.begins = name_pictures(paths)
        self.inputs = {path.absolute() for path in paths}
        self.rows: list[dict] = []
        self.texts: list[str] = []

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        if self.rows:
            print_results(self.args, self.rows, self.texts)

    def add(
        self,
        path: Path,
        image: np.ndarray,
        text: str,
        row: dict,
        pictures: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Adds the result of an image; pictures are written at once.

        Args:
            text: for people.
            row: of the JSON, beside path and size of the image.
            pictures: name -> RGB uint8.
        """
        from utils.visualize import save_image

        for name, picture in (pictures or {}).items():
            target = self.args.out_dir / f"{self.begins[path]}{name}.png"
            while target.absolute() in self.inputs:  # a picture of an earlier call, say
                target = target.with_stem(target.stem + "-2")
            save_image(target, picture)
            log(f"drew {target}")
        name = ADDRESSES.get(path, str(path))
        self.rows.append({"image": name, "size": [image.shape[1], image.shape[0]], **row})
        self.texts.append(text.replace(str(path), name))


def name_pictures(paths: Sequence[Path]) -> dict[Path, str]:
    """The beginning of the names of each image's pictures: no two are equal, in any case.

    It is nothing for one image; of several `<stem>_`, with the suffix where stems repeat, with the
    folders where names repeat, and with a number where that does not do.
    """
    if len(paths) == 1:
        return {paths[0]: ""}
    top = os.path.commonpath([path.absolute().parent for path in paths])
    longer = (
        lambda path: path.stem,
        lambda path: path.name,
        lambda path: "_".join(path.absolute().relative_to(top).parts),
    )
    counts = [Counter(_plain(name(path)) for path in paths) for name in longer]
    out, taken = {}, set()
    for path in paths:
        names = [name(path) for name in longer]
        alone = [n for n, count in zip(names, counts, strict=True) if count[_plain(n)] == 1]
        start = (alone or names[-1:])[0]
        numbered = (f"{start}-{i}" for i in itertools.count(2))
        chosen = next(n for n in itertools.chain([start], numbered) if _plain(n) not in taken)
        taken.add(_plain(chosen))
        out[path] = f"{chosen}_"
    return out


def _plain(name: str) -> str:
    """A name as file systems compare it that ignore case and the normal form."""
    return unicodedata.normalize("NFC", name.casefold())


def print_results(args: argparse.Namespace, rows: list[dict], texts: list[str]) -> None:
    """Prints the texts, or the rows as JSON; `--json FILE` writes the rows too."""
    if args.json == "-":
        json.dump(rows, sys.stdout, indent=2)
        print()
    else:
        print("\n\n".join(texts))
    if args.json not in (None, "-"):
        write_json_atomic(args.json, rows)
