"""What the single-image scripts share: options, weights to use, where results go."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from infer.predictor import Predictor
from models.decode_step.modes import check_decode_mode
from models.decode_step.native import obstacle
from utils.cli import log, parser
from utils.devices import pick_device
from utils.errors import UserError
from utils.files import write_json_atomic
from utils.images import list_images, load_image
from utils.visualize import save_image

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def infer_parser(doc: str, *, pictures: bool = True) -> argparse.ArgumentParser:
    """Options of every inference script.

    Args:
        pictures: the script draws scored objects; otherwise it prints text alone.
    """
    args = parser(doc)
    args.add_argument("--image", required=True, help="a file, a folder or a quoted glob")
    args.add_argument("--weights", type=Path, help="default: the task's path in config.py")
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


def load_predictor(args: argparse.Namespace, cfg, weights: Path) -> Predictor:
    """The predictor for `--weights`, else for the setting, else for the demo weights.

    Raises:
        UserError: none of these files is there.
    """
    if args.weights is not None:
        return predictor_of(args.weights, cfg, args.device)
    if weights.is_file():
        return predictor_of(weights, cfg, args.device)
    if not cfg.demo_weights.is_file():
        raise UserError(
            f"no weights at {weights}; train some, or name a weight file with --weights"
        )
    log(
        f"notice: no weights at {weights}, using the demo weights (they know drawn scenes only); "
        "name others with --weights"
    )
    return predictor_of(cfg.demo_weights, cfg, args.device)


def predictor_of(weights: Path, cfg, device: str | None = None) -> Predictor:
    """A predictor that computes as the settings say, on `device` or the device of the settings.

    Raises:
        UserError: no such weight file, or a setting that cannot be.
    """
    if cfg.infer_dtype not in DTYPES:
        raise UserError(f"infer_dtype must be one of {', '.join(DTYPES)}, got {cfg.infer_dtype!r}")
    check_decode_mode(cfg.decode_mode)
    device, dtype = pick_device(device or cfg.device), DTYPES[cfg.infer_dtype]
    predictor = Predictor(weights, device, dtype=dtype, mode=cfg.decode_mode)
    could_be_native = cfg.decode_mode == "auto" and device.type == "cpu"
    if could_be_native and (reason := obstacle(dtype)):
        log(f"notice: decoding takes longer than it could: {reason}")
    return predictor


@dataclass(frozen=True)
class Answer:
    """What a script says about an image."""

    text: str  # for people
    row: dict  # of the JSON, beside path and size of the image
    pictures: dict[str, np.ndarray] = field(default_factory=dict)  # name -> RGB uint8


Item = tuple[Path, np.ndarray]  # path and RGB pixels


def answer_images(
    args: argparse.Namespace, answer: Callable[[list[Item]], list[Answer]], *, batch_size: int = 1
) -> None:
    """Answers about the images of `--image`: pictures to `--out-dir`, the rest to stdout.

    Args:
        answer: of up to `batch_size` images.
    """
    paths, rows, texts, batch = list_images(args.image), [], [], []

    def flush() -> None:
        items = batch.copy()
        batch.clear()  # also if it fails: nothing is tried twice
        for (path, image), one in zip(items, answer(items) if items else [], strict=True):
            for name, picture in one.pictures.items():
                target = args.out_dir / picture_name(path, paths, name)
                save_image(target, picture)
                log(f"drew {target}")
            size = [image.shape[1], image.shape[0]]
            rows.append({"image": str(path), "size": size, **one.row})
            texts.append(one.text)

    try:
        for item in read_images(args.image):
            batch.append(item)
            if len(batch) == batch_size:
                flush()
    finally:  # what there is, also if an image could not be read
        flush()
        if rows:
            print_results(args, rows, texts)


def read_images(pattern: str) -> Iterator[tuple[Path, np.ndarray]]:
    """Path and RGB pixels of every image; of several, unreadable ones are reported and left out.

    Raises:
        UserError: no image there, or none that can be read.
    """
    paths, unread = list_images(pattern), []
    for path in paths:
        try:
            image = load_image(path)
        except UserError as error:
            if len(paths) == 1:
                raise
            log(f"left out: {error}")
            unread.append(path)
            continue
        yield path, image
    if unread:
        raise UserError(
            f"{len(unread)} of {len(paths)} images could not be read, {unread[0]} first"
        )


def picture_name(path: Path, paths: list[Path], name: str) -> str:
    """`name`.png for one image; for several `<stem>_name.png`, or with suffix if stems repeat."""
    if len(paths) == 1:
        return f"{name}.png"
    alone = [other.stem for other in paths].count(path.stem) == 1
    return f"{path.stem if alone else path.name}_{name}.png"


def print_results(args: argparse.Namespace, rows: list[dict], texts: list[str]) -> None:
    """Results to stdout: the texts, or the rows as JSON; `--json FILE` writes the rows too."""
    if args.json == "-":
        json.dump(rows, sys.stdout, indent=2)
        print()
    else:
        print("\n\n".join(texts))
    if args.json not in (None, "-"):
        write_json_atomic(args.json, rows)
