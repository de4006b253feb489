"""Segment objects: a table on stdout and instance_segmentation.png.

python infer/infer_single_image_segmentation.py --image a.jpg --box 40 60 200 120 --label dog
python infer/infer_single_image_segmentation.py --image a.jpg --box 40,60,200,120 --json masks.json

Without --box the same weights detect the objects first, if they were trained for that. The JSON
holds the masks as COCO run lengths.
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
    args.add_argument(
        "--num-samples", type=int, help="most outlines per object; default: the setting"
    )
    args = args.parse_args(argv)
    cfg = load_settings(args, CFG)
    threshold = pick_threshold(args, cfg)
    paths = find_images(args.image, args.recursive)
    check_box_arguments(args, len(paths))

    # What takes long to import comes after the command line is understood.
    from infer.segmentation import SegmentationOptions, draw, table

    # The weights
    options = SegmentationOptions.from_settings(cfg, args.num_samples)
    predictor = load_predictor(args, cfg, cfg.coco_segmentation_weights)
    check_boxes_known(args, predictor, "segmentation")
    classes = pick_classes(args, predictor)

    # Segment the given or detected objects, print and draw
    with Output(args, paths, predictor) as output:  # prints the results when it is left
        for path, image in read_images(paths):
            boxes, labels = read_box_arguments(args, image.shape[:2])
            found = predictor.segment(image, boxes, labels, options, score_threshold=threshold)
            found = found.only(classes)
            text = table(path, image, found)
            pictures = {"instance_segmentation": draw(image, found)}
            row = {"objects": found.to_json()}
            output.add(path, image, text, row, pictures, found=found)


if __name__ == "__main__":
    run(main)
