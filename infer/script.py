"""Functions that the scripts of infer/ share: options, weights to use, boxes, where results go.

Nothing here imports torch before the command line is understood.
"""

import argparse
import importlib
import itertools
import json
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from utils.categories import check_class_names
from utils.cli import log, parser
from utils.errors import UserError
from utils.files import check_place, find_weight_file, is_stream, write_json_atomic
from utils.images import list_images, load_image

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
        help="files, folders (not their subfolders) or globs; several may be named",
    )
    args.add_argument("--recursive", action="store_true", help="look into subfolders, too")
    args.add_argument("--weights", type=Path, help="default: the task's path in config.py")
    if pictures:
        args.add_argument(
            "--out-dir", type=Path, default=Path(), help="for the pictures; default: this folder"
        )
        args.add_argument("--score-threshold", type=float, help="default: the setting")
        args.add_argument("--classes", metavar="NAMES", help="keep these alone, such as cat,dog")
        args.add_argument(
            "--crops", type=Path, metavar="DIR", help="write the cut-out of each object, by class"
        )
        args.add_argument(
            "--yolo", type=Path, metavar="DIR", help="write labels of YOLO, and data.yaml"
        )
    args.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="print JSON instead of the table, or also write it to FILE",
    )
    args.add_argument("--csv", metavar="FILE", help="write a table, a row for each object")
    args.add_argument("--device", help="auto, cpu, cuda, cuda:1; default: the setting")
    return args


def check_places(args: argparse.Namespace) -> None:
    """Tries the places for all that is written, before anything takes its time.

    Raises:
        UserError: nothing can be written there, or what is there is not ours.
    """
    if getattr(args, "out_dir", None) is not None:
        check_place(args.out_dir)
    for option in ("crops", "yolo"):
        if (folder := getattr(args, option, None)) is not None:
            check_place(folder)
            if next(folder.iterdir(), None) if folder.is_dir() else None:
                raise UserError(f"--{option} {folder} is not empty; name a new folder")
    for option, begin in (("json", b"["), ("csv", b"image,")):
        path = getattr(args, option, None)
        if path is None or (option, path) == ("json", "-") or is_stream(path):
            continue
        path = Path(path)
        if str(path) == "-":
            raise UserError("--csv writes a file; name it, or /dev/stdout")
        if path.is_dir():
            raise UserError(f"cannot write --{option} {path}: it is a folder; name a file in it")
        check_place(path.parent)
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(begin)) not in (b"", begin):  # an image, say
                    raise UserError(
                        f"--{option} {path} is there and holds no results; name another file"
                    )


def pick_threshold(args: argparse.Namespace, cfg) -> float:
    """`--score-threshold`, else the setting."""
    return cfg.score_threshold if args.score_threshold is None else args.score_threshold


# ---- boxes -----------------------------------------------------------------------------------


def add_box_arguments(args: argparse.ArgumentParser) -> None:
    """Adds `--box x y w h` and `--label NAME`, both repeatable, and `--xyxy`."""
    args.add_argument(
        "--box",
        nargs="+",
        action="append",
        metavar="X",
        help="x y w h (or x,y,w,h) in pixels of the image; repeat it for more; "
        "default: what the same weights detect",
    )
    args.add_argument(
        "--xyxy", action="store_true", help="a --box is xmin ymin xmax ymax, as the results have it"
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
    if weights.exists():
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


def find_images(patterns: Sequence[str], recursive: bool = False) -> list[Path]:
    """The images that `--image` names, each once.

    Raises:
        UserError: one of the patterns names none.
    """
    paths = [path for one in patterns for path in list_images(one, recursive=recursive)]
    return list({os.path.abspath(path): path for path in reversed(paths)}.values())[::-1]


def read_images(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Reads images one after the other, see `read_batches`."""
    for batch in read_batches(paths, 1):
        yield from batch


def read_batches(paths: Sequence[Path], size: int) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """Reads images in batches; of several images, unreadable ones are reported and left out.

    A terminal shows how many of several are done.

    Yields:
        up to `size` pairs of path and (H, W, 3) uint8 RGB pixels.

    Raises:
        UserError: at the end, if images were left out; at once if there is one image alone.
    """
    from tqdm import tqdm

    batch, unread = [], []
    disable = None if len(paths) > 1 else True  # None: no bar without a terminal
    with tqdm(total=len(paths), unit="image", disable=disable) as bar:
        for path in paths:
            try:
                batch.append((path, load_image(path)))
            except UserError as error:
                if len(paths) == 1:
                    raise
                _note(f"left out: {error}")
                unread.append(path)
                bar.update()
            if len(batch) == size:
                yield batch
                bar.update(size)
                batch = []
        if batch:
            yield batch
            bar.update(len(batch))
    if unread:
        raise UserError(
            f"{len(unread)} of {len(paths)} images could not be read, {unread[0]} first"
        )


def _note(text: str) -> None:
    """`log`, above the bar of `read_batches`."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        log(text)


class Output:
    """Writes the results of a script: pictures to `--out-dir`, the rest to stdout and `--json`.

    What other tools read goes to `--csv`, `--yolo` and `--crops`. It is a context. At its end the
    results are printed, also if an error ended it.

    Args:
        predictor: whose classes they are; only what is given as `found` needs it.
    """

    def __init__(self, args: argparse.Namespace, paths: Sequence[Path], predictor=None):
        self.args, self.predictor, self.exports = args, predictor, None
        if predictor is None and getattr(args, "csv", None) is not None:
            raise UserError("this script writes no --csv; --json FILE writes its results")
        self.begins = name_pictures(paths)
        self.inputs = {path.absolute() for path in paths}
        self.rows: list[dict] = []
        self.texts: list[str] = []

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        if self.rows:
            print_results(self.args, self.rows, self.texts)
        if self.exports is not None:
            self.exports.close()

    def add(
        self,
        path: Path,
        image: np.ndarray,
        text: str,
        row: dict,
        pictures: dict[str, np.ndarray] | None = None,
        *,
        found=None,
    ) -> None:
        """Adds the result of an image; pictures are written at once.

        Args:
            text: for people.
            row: of the JSON, beside path and size of the image.
            pictures: name -> RGB uint8.
            found: the result for tools: objects of one kind, or captions.
        """
        from utils.visualize import save_image

        for name, picture in (pictures or {}).items():
            target = self.args.out_dir / f"{self.begins[path]}{name}.png"
            while target.absolute() in self.inputs:  # a picture of an earlier call, say
                target = target.with_stem(target.stem + "-2")
            save_image(target, picture)
            _note(f"drew {target}")
        places = [getattr(self.args, name, None) for name in ("csv", "yolo", "crops")]
        if found is not None and any(places):
            if self.exports is None:
                formats = importlib.import_module("infer.result_formats")
                self.exports = formats.Exports(*places, self.predictor.categories)
            self.exports.add(path, self.begins[path][:-1] or path.stem, image, found)
        self.rows.append({"image": str(path), "size": [image.shape[1], image.shape[0]], **row})
        self.texts.append(text)


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
