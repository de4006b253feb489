"""What the script of segmentation does."""

from pathlib import Path

import numpy as np

from infer.box_arguments import (
    add_box_arguments,
    check_box_arguments,
    check_boxes_known,
    read_box_arguments,
)
from infer.results import InstanceMasks
from infer.script import Answer, Item, answer_images, infer_parser, load_predictor
from infer.segmentation import SegmentationOptions
from utils.cli import snapshot
from utils.errors import UserError
from utils.images import list_images
from utils.visualize import draw_detections, draw_masks


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
    check_box_arguments(args, len(paths))
    predictor = load_predictor(args, cfg, cfg.coco_segmentation_weights)
    check_boxes_known(args, predictor, "segmentation")
    options = segmentation_options(cfg, args.num_samples)
    threshold = cfg.score_threshold if args.score_threshold is None else args.score_threshold

    def answer(items: list[Item]) -> list[Answer]:
        return [describe(path, image) for path, image in items]

    def describe(path: Path, image: np.ndarray) -> Answer:
        boxes, labels = read_box_arguments(args, image.shape[:2])
        found = predictor.segment(image, boxes, labels, options, score_threshold=threshold)
        pictures = {"instance_segmentation": draw(image, found)}
        return Answer(table(path, image, found), {"objects": found.to_json()}, pictures)

    answer_images(args, answer)


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
