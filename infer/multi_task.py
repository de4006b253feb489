"""All tasks that the weights know, for the same images, from one encoder pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infer import detection, keypoint, segmentation
from infer.batches import as_tensor
from infer.captioning import CaptionOptions, caption
from infer.detection import DetectionOptions, detect
from infer.keypoint import KeypointOptions, find_keypoints, with_keypoints
from infer.results import AllTasks, columns
from infer.segmentation import SegmentationOptions, segment
from infer.trained_model import TrainedModel
from models.pix2seq import Pix2Seq
from utils.errors import UserError
from utils.visualize import draw_detections, draw_keypoints, draw_masks


@dataclass(frozen=True)
class AllTasksOptions:
    """Decoding options of each task; the defaults are those of the tasks."""

    detection: DetectionOptions = DetectionOptions()
    segmentation: SegmentationOptions = SegmentationOptions()
    keypoints: KeypointOptions = KeypointOptions()
    captions: CaptionOptions = CaptionOptions()
    score_threshold: float = 0.3  # detections that score lower are left out


def check_can_start(trained: TrainedModel) -> None:
    """Checks that the weights know captioning, or detection, which the other tasks need.

    Raises:
        UserError: they do not.
    """
    if not {"captioning", "detection"} & set(trained.tasks):
        raise UserError(
            f"{trained.name} was trained for {', '.join(trained.tasks)} alone, which needs boxes; "
            "use the script of that task, or name weights of several tasks with --weights"
        )


def find_all(
    trained: TrainedModel,
    images: Sequence[Tensor],
    options: AllTasksOptions = AllTasksOptions(),
    *,
    stage: Callable[[str], AbstractContextManager] = nullcontext,
) -> list[AllTasks]:
    """Captions, objects, masks and persons' keypoints of a batch of images.

    The images are encoded once. Every task gives the same result as alone, with the same boxes.

    Args:
        images: B uint8 (3, h, w) originals of any sizes.
        stage: called with the name of each stage, gives a context for it: see `Stopwatch`.

    Returns:
        B `AllTasks`.
    """
    # One encoder pass, and the tasks that look at whole images
    known = trained.tasks
    captions = objects = masks = keypoints = [None] * len(images)
    with stage("encoder"):
        images = [image.to(trained.model.device, non_blocking=True) for image in images]
        encoded = trained.encode(images)
    if "captioning" in known:
        with stage("captioning"):
            captions = caption(trained, images, options.captions, encoded=encoded)
    if "detection" in known:
        with stage("detection"):
            shown = options.detection.showing(options.score_threshold)
            found = detect(trained, images, shown, encoded=encoded)
        objects = [one.above(options.score_threshold) for one in found]
        # Masks and keypoints are asked for in the detected boxes.
        if "segmentation" in known:
            with stage("segmentation"):
                boxes = columns(objects)
                masks = segment(trained, images, *boxes, options.segmentation, encoded=encoded)
        if "keypoint" in known:
            persons = columns(with_keypoints(trained, objects))
            with stage("keypoint"):
                keypoints = find_keypoints(trained, images, *persons, options.keypoints)
    return [AllTasks(*row) for row in zip(captions, objects, masks, keypoints, strict=True)]


def draw(image: np.ndarray, found: AllTasks) -> dict[str, np.ndarray]:
    """One picture per kind of result; without objects, the unchanged image."""
    pictures = {}
    if found.objects is not None:
        pictures["object_detection"] = detection.draw(image, found.objects)
    if found.masks is not None:
        pictures["instance_segmentation"] = segmentation.draw(image, found.masks)
    if found.keypoints is not None:
        pictures["keypoint_detection"] = keypoint.draw(image, found.keypoints)
    return pictures


def answer_frames(
    model: TrainedModel,
    frames: list[np.ndarray],
    options: AllTasksOptions,
    classes: Sequence[str] | None = None,
) -> list[tuple[dict, np.ndarray]]:
    """Row of JSON and annotated picture of each frame of a video: masks, boxes, keypoints in one.

    Args:
        frames: (H, W, 3) uint8 RGB.
        classes: names of those that are shown; None = all.
    """
    answers = []
    for frame in frames:
        (found,) = find_all(model, [as_tensor(frame)], options)
        found = found.only(classes)
        answers.append((found.to_json(), draw_together(frame, found)))
    return answers


def draw_together(image: np.ndarray, found: AllTasks) -> np.ndarray:
    """Masks, boxes and keypoints in one copy of the image; each object has one box and one name.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    boxes = next((one for one in (found.objects, found.masks) if one is not None), found.keypoints)
    if found.masks:
        image = draw_masks(image, found.masks.masks, found.masks.names)
    if boxes is not None:
        image = draw_detections(image, boxes.boxes, boxes.names, boxes.scores)
    if found.keypoints is not None:
        image = draw_keypoints(image, found.keypoints.points, found.keypoints.skeleton.edges)
    return image


def table(path: Path, image: np.ndarray, found: AllTasks, threshold: float) -> str:
    """Captions, a line per object, a block per person; pixels of the original image."""
    blocks = [f"{path} ({image.shape[1]} x {image.shape[0]})"]
    if found.captions is not None:
        blocks.append("\n".join(found.captions.texts))
    if found.masks is not None and len(found.objects):
        blocks.append(_body(segmentation.table(path, image, found.masks)))
    elif found.objects is not None:
        blocks.append(_body(detection.table(path, image, found.objects, threshold)))
    if found.keypoints is not None and len(found.keypoints):
        blocks.append(_body(keypoint.table(path, image, found.keypoints)))
    return "\n".join(blocks)


def _body(text: str) -> str:
    """A table without its first line, which names the image."""
    return text.partition("\n")[2]


class Stopwatch:
    """Adds up the seconds and encoder inputs of each stage of `find_all`.

    `find_all(trained, images, stage=stopwatch.stage)`
    """

    def __init__(self, model: Pix2Seq):
        self.model = model
        self.seconds: dict[str, float] = {}  # stage -> seconds
        self.passes: dict[str, list[int]] = {}  # stage -> images of each encoder pass

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the time in this context."""
        passes = self.passes.setdefault(name, [])
        counter = self.model.encoder.register_forward_hook(
            lambda _, args, __: passes.append(len(args[0]))
        )
        start = time.perf_counter()
        try:
            yield
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)
        finally:
            counter.remove()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def table(self) -> str:
        """A line per stage: its seconds, and its passes of the encoder."""
        lines = [f"{'stage':<14}seconds  share  passes of the encoder"]
        total = sum(self.seconds.values())
        for stage, seconds in self.seconds.items():
            sizes = self.passes[stage]
            unit = "image" if stage == "encoder" else "crop"
            passes = f"{len(sizes)}, of {sum(sizes)} {unit}{'s' if sum(sizes) != 1 else ''}"
            share = f"{seconds / total:5.0%}"
            lines.append(f"{stage:<14}{seconds:7.3f}  {share}  {passes if sizes else '-'}")
        return "\n".join([*lines, f"{'total':<14}{total:7.3f}"])
