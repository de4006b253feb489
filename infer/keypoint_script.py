"""What the script of keypoints does."""

from pathlib import Path

import numpy as np

from infer.box_arguments import add_box_arguments, read_box_arguments
from infer.keypoints import KeypointOptions
from infer.predictor import Predictor
from infer.results import Keypoints
from infer.script import infer_parser, load_predictor, picture_names, print_results, read_images
from utils import visualize
from utils.cli import log, snapshot
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
    if args.box and len(paths) > 1:
        raise UserError(f"--box is about one image, --image names {len(paths)}")
    predictor = load_predictor(args, cfg, cfg.coco_keypoint_weights)
    _check_tasks(predictor, args.box is not None)
    options = keypoint_options(cfg)
    threshold = cfg.score_threshold if args.score_threshold is None else args.score_threshold
    pictures = dict(zip(paths, picture_names(paths, "keypoint_detection"), strict=True))
    rows, texts = [], []
    try:
        for path, image in read_images(args.image):
            boxes, labels = read_box_arguments(args, image.shape[:2])
            found = predictor.keypoints(image, boxes, labels, options, score_threshold=threshold)
            visualize.save_image(args.out_dir / pictures[path], draw(image, found))
            log(f"drew {args.out_dir / pictures[path]}")
            size = [image.shape[1], image.shape[0]]
            rows.append({"image": str(path), "size": size, "objects": found.to_json()})
            texts.append(table(path, image, found))
    finally:
        if rows:
            print_results(args, rows, texts)


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


def _check_tasks(predictor: Predictor, has_boxes: bool) -> None:
    """Says in one line what is missing before anything is computed."""
    predictor.require("keypoint")
    if not has_boxes and "detection" not in predictor.tasks:
        raise UserError(
            f"{predictor.source} cannot detect, so it needs to be told where to look: "
            "add --box x y w h, or name weights of several tasks with --weights"
        )
