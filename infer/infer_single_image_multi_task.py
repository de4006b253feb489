"""Run all tasks on images: captions, objects, masks, and keypoints of persons.

python infer/infer_single_image_multi_task.py --image images/demo.jpg
python infer/infer_single_image_multi_task.py --image a.jpg --num-captions 3 --json all.json
python infer/infer_single_image_multi_task.py --image a.jpg --timing
python infer/infer_single_image_multi_task.py --image clip.mp4 --stride 5

Only tasks that the weights were trained for are run. Text is written to stdout;
object_detection.png, instance_segmentation.png and keypoint_detection.png to --out-dir. Each image
is encoded once. Tasks that use crops of objects encode the crops once more. --timing shows this and
the seconds of each stage.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from infer.image_files import Output, find_images, read_images
from infer.script import (
    add_video_arguments,
    check_exports,
    infer_parser,
    load_predictor,
    open_clip,
    pick_classes,
    pick_threshold,
)
from utils.cli import load_settings, log, run


def main(argv=None):
    # The command line and the settings
    args = infer_parser(__doc__)
    args.add_argument("--num-captions", type=int, default=1, help="number of captions per image")
    args.add_argument(
        "--num-samples", type=int, help="most outlines per object; default: the setting"
    )
    args.add_argument("--max-objects", type=int, help="most objects to decode; fewer are faster")
    args.add_argument("--timing", action="store_true", help="print the seconds of each stage")
    add_video_arguments(args)
    args = args.parse_args(argv)
    cfg = load_settings(args, CFG)
    threshold = pick_threshold(args, cfg)
    clip = open_clip(args)
    paths = [] if clip else find_images(args.image, args.recursive)

    # What takes long to import comes after the command line is understood.
    from infer import multi_task
    from infer.batches import as_tensor
    from infer.captioning import CaptionOptions
    from infer.detection import DetectionOptions
    from infer.keypoint import KeypointOptions
    from infer.segmentation import SegmentationOptions

    # The weights, and how each task is decoded
    options = multi_task.AllTasksOptions(
        DetectionOptions.from_settings(cfg, args.max_objects),
        SegmentationOptions.from_settings(cfg, args.num_samples),
        KeypointOptions.from_settings(cfg),
        CaptionOptions.from_settings(cfg, args.num_captions),
        threshold,
    )
    predictor = load_predictor(args, cfg, cfg.coco_multi_task_weights)
    multi_task.check_can_start(predictor)
    classes = pick_classes(args, predictor)
    check_exports(args, predictor)

    if clip:
        clip.annotate(
            lambda frames: multi_task.answer_frames(predictor, frames, options, classes),
            predictor.weights_record,
        )
        return

    # Ask everything, print and draw
    stopwatch = multi_task.Stopwatch(predictor.model)
    with Output(args, paths, predictor) as output:  # prints the results when it is left
        for path, image in read_images(paths):
            (found,) = multi_task.find_all(
                predictor, [as_tensor(image)], options, stage=stopwatch.stage
            )
            found = found.only(classes)
            text = multi_task.table(path, image, found, threshold)
            rows = (found.masks, found.objects, found.captions)  # the first that there is
            rows = next(one for one in rows if one is not None)
            pictures = multi_task.draw(image, found)
            output.add(path, image, text, found.to_json(), pictures, found=rows)
    if args.timing:
        log(stopwatch.table())


if __name__ == "__main__":
    run(main)
