"""Boxes on the command line, for the tasks that ask about given objects."""

import argparse

import numpy as np

from infer.predictor import Predictor
from utils.errors import UserError


def add_box_arguments(args: argparse.ArgumentParser) -> None:
    """`--box x y w h` and `--label NAME`, both repeatable."""
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
    """Says in one line what cannot work with these images.

    Raises:
        UserError: boxes of one image for several.
    """
    if args.box and num_images > 1:
        raise UserError(f"--box is about one image, --image names {num_images}")


def check_boxes_known(args: argparse.Namespace, predictor: Predictor, task: str) -> None:
    """Says in one line what is missing before anything is computed.

    Raises:
        UserError: the weights do not know the task, or nobody can say where to look.
    """
    predictor.require(task)
    if not (args.box or args.label) and "detection" not in predictor.tasks:
        raise UserError(
            f"{predictor.source} cannot detect, so it needs to be told where to look: "
            "add --box x y w h, or name weights of several tasks with --weights"
        )


def read_box_arguments(
    args: argparse.Namespace, size: tuple[int, int]
) -> tuple[np.ndarray | None, str | list[str] | None]:
    """The boxes and labels of `add_box_arguments`.

    Args:
        size: (H, W) of the image.

    Returns:
        boxes (N, 4) float32 xyxy cut to the image, and labels, None if not given.

    Raises:
        UserError: what was given is no box, or lies outside the image.
    """
    if args.box is None:
        if args.label:
            raise UserError("--label names what is in a --box; give --box x y w h too")
        return None, None
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
    labels = args.label
    if labels and len(labels) not in (1, len(boxes)):
        raise UserError(f"give one --label or one per --box: {len(labels)} for {len(boxes)}")
    return np.float32(boxes), labels[0] if labels and len(labels) == 1 else labels
