"""The detection scripts of COCO and VOC: they differ in their default weights."""

from pathlib import Path

import numpy as np

from infer.detection import DecodingOptions
from infer.results import Detections
from infer.script import infer_parser, load_predictor, picture_names, print_results, read_images
from utils.cli import log, snapshot
from utils.images import list_images
from utils.visualize import draw_detections, save_image

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
    paths = list_images(args.image)
    predictor = load_predictor(args, cfg, getattr(cfg, weights_setting))
    options = DecodingOptions(cfg.top_k, cfg.top_p, cfg.temperature, cfg.seed)
    threshold = cfg.score_threshold if args.score_threshold is None else args.score_threshold
    pictures = dict(zip(paths, picture_names(paths, "object_detection"), strict=True))
    batch: list[tuple[Path, np.ndarray]] = []
    rows, texts = [], []

    def flush() -> None:
        images = [image for _, image in batch]
        for (path, image), found in zip(
            batch, predictor.detect(images, options, max_objects=args.max_objects), strict=True
        ):
            found = found.above(threshold)
            drawn = draw_detections(image, found.boxes, found.names, found.scores)
            save_image(args.out_dir / pictures[path], drawn)
            log(f"drew {args.out_dir / pictures[path]}")
            size = [image.shape[1], image.shape[0]]
            rows.append({"image": str(path), "size": size, "objects": found.to_json()})
            texts.append(table(path, image, found, threshold))
        batch.clear()

    try:
        for item in read_images(args.image):
            batch.append(item)
            if len(batch) == BATCH:
                flush()
    finally:
        if batch:
            flush()
        if rows:
            print_results(args, rows, texts)


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
