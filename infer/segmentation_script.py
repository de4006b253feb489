"""What the script of segmentation does."""

from pathlib import Path

import numpy as np

from infer.box_arguments import add_box_arguments, read_box_arguments
from infer.predictor import Predictor
from infer.results import InstanceMasks
from infer.script import infer_parser, load_predictor, picture_names, print_results, read_images
from infer.segmentation import SegmentationOptions
from utils.cli import log, snapshot
from utils.errors import UserError
from utils.images import list_images
from utils.visualize import draw_detections, draw_masks, save_image


def segmentation_script(doc: str, base: type, argv: list[str] | None) -> None:
    """Masks of the given or detected objects of images, printed and drawn.

    Args:
        base: the CFG class.
    """
    args = infer_parser(doc)
    add_box_arguments(args)
    args.add_argument("--num-samples", type=int, help="outlines per object; default: the setting")
    args = args.parse_args(argv)
    cfg = snapshot(base, args.set)
    paths = list_images(args.image)
    if args.box and len(paths) > 1:
        raise UserError(f"--box is about one image, --image names {len(paths)}")
    predictor = load_predictor(args, cfg, cfg.coco_segmentation_weights)
    _check_tasks(predictor, has_boxes=bool(args.box or args.label))
    options = segmentation_options(cfg, args.num_samples)
    threshold = cfg.score_threshold if args.score_threshold is None else args.score_threshold
    pictures = dict(zip(paths, picture_names(paths, "instance_segmentation"), strict=True))
    rows, texts = [], []
    try:
        for path, image in read_images(args.image):
            boxes, labels = read_box_arguments(args, image.shape[:2])
            found = predictor.segment(image, boxes, labels, options, score_threshold=threshold)
            save_image(args.out_dir / pictures[path], draw(image, found))
            log(f"drew {args.out_dir / pictures[path]}")
            size = [image.shape[1], image.shape[0]]
            rows.append({"image": str(path), "size": size, "objects": found.to_json()})
            texts.append(table(path, image, found))
    finally:
        if rows:
            print_results(args, rows, texts)


def segmentation_options(cfg, num_samples: int | None = None) -> SegmentationOptions:
    """From the settings.

    Raises:
        UserError: a value that cannot work.
    """
    try:
        return SegmentationOptions(
            top_k=cfg.top_k,
            top_p=cfg.seg_top_p,
            temperature=cfg.temperature,
            num_samples=cfg.seg_samples if num_samples is None else num_samples,
            threshold=cfg.seg_threshold,
            grammar=cfg.seg_grammar,
            seed=cfg.seed,
        )
    except ValueError as error:
        raise UserError(f"settings of segmentation: {error}") from error


def draw(image: np.ndarray, found: InstanceMasks) -> np.ndarray:
    """Masks, and the boxes they were asked for."""
    if not len(found):
        return image.copy()
    tinted = draw_masks(image, found.masks, found.names)
    return draw_detections(tinted, found.boxes, found.names, found.scores)


def table(path: Path, image: np.ndarray, found: InstanceMasks) -> str:
    """One line per object, pixels of the original image."""
    head = f"{path} ({image.shape[1]} x {image.shape[0]})"
    if not len(found):
        return f"{head}\nno object found"
    width = max(len("label"), *map(len, found.names))
    lines = [head, f"{'label':<{width}}  score    xmin    ymin    xmax    ymax    pixels"]
    areas = found.masks.sum(axis=(1, 2))
    for name, score, box, area in zip(found.names, found.scores, found.boxes, areas, strict=True):
        numbers = "".join(f"{value:8.1f}" for value in box)
        lines.append(f"{name:<{width}}  {score:5.2f}{numbers}{area:10d}")
    return "\n".join(lines)


def _check_tasks(predictor: Predictor, *, has_boxes: bool) -> None:
    """Says in one line what is missing before anything is computed."""
    predictor.require("segmentation")
    if not has_boxes and "detection" not in predictor.tasks:
        raise UserError(
            f"{predictor.source} cannot detect, so it needs to be told where to look: "
            "add --box x y w h, or name weights of several tasks with --weights"
        )
