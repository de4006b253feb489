"""What the script of keypoints does."""

from pathlib import Path

import numpy as np

from infer.box_arguments import (
    add_box_arguments,
    check_box_arguments,
    check_boxes_known,
    read_box_arguments,
)
from infer.keypoint import KeypointOptions
from infer.results import Keypoints
from infer.script import Answer, Item, answer_images, infer_parser, load_predictor
from utils import visualize
from utils.cli import snapshot
from utils.errors import UserError
from utils.images import list_images


def keypoint_script(doc: str, base: type, argv: list[str] | None) -> None:
    """Keypoints of the persons in given or detected boxes of images, printed and drawn.

    Args:
        base: the CFG class.
    """
    args = infer_parser(doc)
    add_box_arguments(args)
    args = args.parse_args(argv)
    cfg = snapshot(base, args.set)
    paths = list_images(args.image)
    check_box_arguments(args, len(paths))
    predictor = load_predictor(args, cfg, cfg.coco_keypoint_weights)
    check_boxes_known(args, predictor, "keypoint")
    options = keypoint_options(cfg)
    threshold = cfg.score_threshold if args.score_threshold is None else args.score_threshold

    def answer(items: list[Item]) -> list[Answer]:
        return [describe(path, image) for path, image in items]

    def describe(path: Path, image: np.ndarray) -> Answer:
        boxes, labels = read_box_arguments(args, image.shape[:2])
        found = predictor.keypoints(image, boxes, labels, options, score_threshold=threshold)
        pictures = {"keypoint_detection": draw(image, found)}
        return Answer(table(path, image, found), {"objects": found.to_json()}, pictures)

    answer_images(args, answer)


def keypoint_options(cfg) -> KeypointOptions:
    """From the settings.

    Raises:
        UserError: a value that cannot work.
    """
    try:
        return KeypointOptions(
            top_k=cfg.top_k,
            top_p=cfg.keypoint_top_p,
            temperature=cfg.temperature,
            suppress_invisible=cfg.keypoint_suppress_invisible,
            official_resampling=cfg.keypoint_official_resampling,
            points_score_weight=cfg.keypoint_score_weight,
            seed=cfg.seed,
        )
    except ValueError as error:
        raise UserError(f"settings of keypoints: {error}") from error


def draw(image: np.ndarray, found: Keypoints) -> np.ndarray:
    """Skeletons, and the boxes they were asked for; points the model passed on are left out."""
    colors = [visualize.PALETTE[n % len(visualize.PALETTE)] for n in range(len(found))]
    boxes = visualize.draw_detections(image, found.boxes, found.names, found.scores, colors=colors)
    return visualize.draw_keypoints(boxes, found.points, found.skeleton.edges, colors=colors)


def table(path: Path, image: np.ndarray, found: Keypoints) -> str:
    """A block of lines per object, pixels of the original image."""
    head = f"{path} ({image.shape[1]} x {image.shape[0]})"
    if not len(found):
        return f"{head}\nno object found"
    lines = [head]
    width = max(map(len, found.skeleton.names))
    for n, (name, score, box) in enumerate(
        zip(found.names, found.scores, found.boxes, strict=True)
    ):
        corners = " ".join(f"{value:.1f}" for value in box)
        lines.append(f"{name} {n + 1}: score {score:.2f}, box {corners}")
        for joint, (x, y, visibility), probability in zip(
            found.skeleton.names, found.points[n], found.point_scores[n], strict=True
        ):
            place = (
                f"{x:8.1f}{y:8.1f}  {probability:5.2f}" if visibility > 0 else "       -       -"
            )
            lines.append(f"  {joint:<{width}}{place}")
    return "\n".join(lines)
