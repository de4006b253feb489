"""The detection scripts of COCO and VOC: they differ in their default weights."""

from pathlib import Path

import numpy as np

from infer.detection import DecodingOptions
from infer.results import Detections
from infer.script import Answer, Item, answer_images, infer_parser, load_predictor
from utils.cli import snapshot
from utils.images import list_images
from utils.visualize import draw_detections

BATCH = 16


def detection_script(doc: str, base: type, weights_setting: str, argv: list[str] | None) -> None:
    """Detects objects in one or many images, prints them and draws object_detection.png.

    Args:
        base: the CFG class.
        weights_setting: name of the setting that holds the default weight file.
    """
    args = infer_parser(doc)
    args.add_argument("--max-objects", type=int, help="ask for fewer objects: faster")
    args = args.parse_args(argv)
    cfg = snapshot(base, args.set)
    list_images(args.image)  # complains before the weights are loaded
    predictor = load_predictor(args, cfg, getattr(cfg, weights_setting))
    options = detection_options(cfg)
    threshold = cfg.score_threshold if args.score_threshold is None else args.score_threshold

    def answer(items: list[Item]) -> list[Answer]:
        images = [image for _, image in items]
        found = predictor.detect(images, options, max_objects=args.max_objects)
        return [
            describe(*item, one.above(threshold)) for item, one in zip(items, found, strict=True)
        ]

    def describe(path: Path, image: np.ndarray, found: Detections) -> Answer:
        pictures = {"object_detection": draw(image, found)}
        text = table(path, image, found, threshold)
        return Answer(text, {"objects": found.to_json()}, pictures)

    answer_images(args, answer, batch_size=BATCH)


def detection_options(cfg) -> DecodingOptions:
    """From the settings."""
    return DecodingOptions(cfg.top_k, cfg.top_p, cfg.temperature, cfg.seed)


def draw(image: np.ndarray, found: Detections) -> np.ndarray:
    """Boxes with names and scores."""
    return draw_detections(image, found.boxes, found.names, found.scores)


def table(path: Path, image: np.ndarray, found: Detections, threshold: float) -> str:
    """One line per object, boxes in pixels of the original image."""
    head = f"{path} ({image.shape[1]} x {image.shape[0]})"
    if not len(found):
        return f"{head}\nno object with a score of at least {threshold:g}"
    width = max(len("label"), *map(len, found.names))
    lines = [head, f"{'label':<{width}}  score    xmin    ymin    xmax    ymax"]
    for name, score, box in zip(found.names, found.scores, found.boxes, strict=True):
        lines.append(f"{name:<{width}}  {score:5.2f}" + "".join(f"{value:8.1f}" for value in box))
    return "\n".join(lines)
