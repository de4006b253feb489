"""What the script of all tasks does."""

import argparse
from pathlib import Path

import numpy as np

from infer.caption_script import caption_options
from infer.detection_script import detection_options
from infer.detection_script import draw as draw_objects
from infer.detection_script import table as table_of_objects
from infer.encode import as_tensor
from infer.keypoint_script import draw as draw_keypoints
from infer.keypoint_script import keypoint_options
from infer.keypoint_script import table as table_of_keypoints
from infer.multi_task import AllTasksOptions, AllTasksRun
from infer.results import AllTasks
from infer.script import Answer, Item, answer_images, infer_parser, load_predictor
from infer.segmentation_script import draw as draw_masks
from infer.segmentation_script import segmentation_options
from infer.segmentation_script import table as table_of_masks
from utils.cli import log, snapshot
from utils.images import list_images

PICTURES = ("object_detection", "instance_segmentation", "keypoint_detection")


def multi_task_script(doc: str, base: type, argv: list[str] | None) -> None:
    """Everything the weights know about images, printed and drawn, a picture per kind of result.

    Args:
        base: the CFG class.
    """
    args = infer_parser(doc)
    args.add_argument("--num-captions", type=int, default=1, help="per image, best first")
    args.add_argument("--num-samples", type=int, help="outlines per object; default: the setting")
    args.add_argument("--max-objects", type=int, help="ask for fewer objects: faster")
    args.add_argument("--timing", action="store_true", help="print the seconds of each stage")
    args = args.parse_args(argv)
    cfg = snapshot(base, args.set)
    list_images(args.image)  # complains before the weights are loaded
    predictor = load_predictor(args, cfg, cfg.coco_multi_task_weights)
    options, seconds, encoded = all_tasks_options(cfg, args), {}, {}
    run = AllTasksRun(predictor, options, seconds=seconds, encoded=encoded)

    def answer(items: list[Item]) -> list[Answer]:
        found = run([as_tensor(image) for _, image in items])
        return [
            Answer(
                describe(path, image, one, options.score_threshold),
                one.to_json(),
                draw(image, one),
            )
            for (path, image), one in zip(items, found, strict=True)
        ]

    answer_images(args, answer)
    if args.timing:
        log(timing_table(seconds, encoded))


def all_tasks_options(cfg, args: argparse.Namespace) -> AllTasksOptions:
    """From the settings and the command line.

    Raises:
        UserError: a value that cannot work.
    """
    threshold = cfg.score_threshold if args.score_threshold is None else args.score_threshold
    return AllTasksOptions(
        detection_options(cfg),
        segmentation_options(cfg, args.num_samples),
        keypoint_options(cfg),
        caption_options(cfg, args.num_captions),
        args.max_objects,
        threshold,
    )


def timing_table(seconds: dict[str, float], encoded: dict[str, list[int]]) -> str:
    """A line per stage: its seconds, and what it sent through the encoder.

    Args:
        seconds, encoded: what `AllTasksRun` counted.
    """
    lines = [f"{'stage':<14}seconds  share  passes of the encoder"]
    total = sum(seconds.values())
    for stage, time in seconds.items():
        sizes = encoded[stage]
        what = "image" if stage == "encoder" else "crop"
        passes = f"{len(sizes)}, of {sum(sizes)} {what}{'s' if sum(sizes) != 1 else ''}"
        lines.append(f"{stage:<14}{time:7.3f}  {time / total:5.0%}  {passes if sizes else '-'}")
    return "\n".join([*lines, f"{'total':<14}{total:7.3f}"])


def draw(image: np.ndarray, found: AllTasks) -> dict[str, np.ndarray]:
    """A picture per kind of result that the weights know; without a finding the bare image."""
    draws = (draw_objects, draw_masks, draw_keypoints)
    results = (found.objects, found.masks, found.keypoints)
    rows = zip(PICTURES, draws, results, strict=True)
    return {name: draw_one(image, result) for name, draw_one, result in rows if result is not None}


def describe(path: Path, image: np.ndarray, found: AllTasks, threshold: float) -> str:
    """Captions, a line per object, a block per person; pixels of the original image."""
    blocks = [f"{path} ({image.shape[1]} x {image.shape[0]})"]
    if found.captions is not None:
        blocks.append("\n".join(found.captions.texts))
    if found.objects is not None:
        no_masks = found.masks is None or not len(found.objects)
        table = (
            table_of_objects(path, image, found.objects, threshold)
            if no_masks
            else table_of_masks(path, image, found.masks)
        )
        blocks.append(_body(table))
    if found.keypoints is not None and len(found.keypoints):
        blocks.append(_body(table_of_keypoints(path, image, found.keypoints)))
    return "\n".join(blocks)


def _body(table: str) -> str:
    """A table without its first line, which names the image."""
    return table.partition("\n")[2]
