"""Detect objects: a table on stdout and the picture object_detection.png.

python infer/infer_single_image_object_detection.py --image images/demo.jpg
python infer/infer_single_image_object_detection.py --image photos/ --json all.json
python infer/infer_single_image_object_detection.py --image clip.mp4 --stride 2

Use it for COCO weights and for detectors that you trained on your own data. If you give several
images, the pictures are called NAME_object_detection.png. --image may also be a video file or the
number of a camera; then an annotated MP4 and a JSON file with a line per frame are written to
--out-dir. docs/inference.md explains the results.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from infer.image_files import Output, find_images, read_batches
from infer.script import (
    add_video_arguments,
    infer_parser,
    load_predictor,
    open_clip,
    pick_classes,
    pick_threshold,
)
from utils.cli import load_settings, run

BATCH = 16  # images that are detected together


def main(argv=None):
    # The command line and the settings
    args = infer_parser(__doc__)
    args.add_argument("--max-objects", type=int, help="most objects to decode; fewer are faster")
    add_video_arguments(args)
    args = args.parse_args(argv)
    cfg = load_settings(args, CFG)
    threshold = pick_threshold(args, cfg)
    clip = open_clip(args)
    paths = [] if clip else find_images(args.image, args.recursive)

    # What takes long to import comes after the command line is understood.
    from infer.detection import DetectionOptions, answer_frames, draw, table

    # The weights
    options = DetectionOptions.from_settings(cfg, args.max_objects).showing(threshold)
    predictor = load_predictor(args, cfg, cfg.coco_detection_weights)
    classes = pick_classes(args, predictor)

    if clip:
        clip.annotate(
            lambda frames: answer_frames(predictor, frames, options, threshold, classes),
            predictor.weights_record,
        )
        return

    # Detect, print and draw
    with Output(args, paths, predictor) as output:  # prints the results when it is left
        for batch in read_batches(paths, BATCH):
            images = [image for _, image in batch]
            found = predictor.detect(images, options, score_threshold=threshold)
            for (path, image), objects in zip(batch, found, strict=True):
                objects = objects.only(classes)
                text = table(path, image, objects, threshold)
                pictures = {"object_detection": draw(image, objects)}
                row = {"objects": objects.to_json()}
                output.add(path, image, text, row, pictures, found=objects)


if __name__ == "__main__":
    run(main)
