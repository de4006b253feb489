"""Find the keypoints of persons: a table on stdout and keypoint_detection.png.

python infer/infer_single_image_keypoint.py --image a.jpg --box 40 60 120 300
python infer/infer_single_image_keypoint.py --image a.jpg --box 40,60,120,300 --json points.json

Without --box the same weights detect the persons first, if they were trained for that.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from infer.image_files import Output, find_images, read_images
from infer.script import (
    add_box_arguments,
    check_box_arguments,
    check_boxes_known,
    infer_parser,
    load_predictor,
    pick_classes,
    pick_threshold,
    read_box_arguments,
)
from utils.cli import load_settings, run


def main(argv=None):
    # The command line and the settings
    args = infer_parser(__doc__)
    add_box_arguments(args)
    args = args.parse_args(argv)
    cfg = load_settings(args, CFG)
    threshold = pick_threshold(args, cfg)
    paths = find_images(args.image, args.recursive)
    check_box_arguments(args, len(paths))

    # What takes long to import comes after the command line is understood.
    from infer.keypoint import KeypointOptions, draw, table

    # The weights
    options = KeypointOptions.from_settings(cfg)
    predictor = load_predictor(args, cfg, cfg.coco_keypoint_weights)
    check_boxes_known(args, predictor, "keypoint")
    classes = pick_classes(args, predictor)

    # Keypoints of the persons in given or detected boxes: print and draw
    with Output(args, paths, predictor) as output:  # prints the results when it is left
        for path, image in read_images(paths):
            boxes, labels = read_box_arguments(args, image.shape[:2])
            found = predictor.keypoints(image, boxes, labels, options, score_threshold=threshold)
            found = found.only(classes)
            text = table(path, image, found)
            pictures = {"keypoint_detection": draw(image, found)}
            row = {"objects": found.to_json()}
            output.add(path, image, text, row, pictures, found=found)


if __name__ == "__main__":
    run(main)
