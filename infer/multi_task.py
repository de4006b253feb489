"""Everything a model of several tasks has to say about images, from one encoder pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infer.captioning import GREEDY, CaptionOptions
from infer.detection import PAPER as PAPER_DETECTION
from infer.detection import DecodingOptions
from infer.encode import Encoded
from infer.keypoint import PAPER as PAPER_KEYPOINTS
from infer.keypoint import KeypointOptions, with_keypoints
from infer.results import AllTasks, Captions, Detections, InstanceMasks, Keypoints
from infer.segmentation import PAPER as PAPER_SEGMENTATION
from infer.segmentation import SegmentationOptions
from utils.errors import UserError

if TYPE_CHECKING:
    from infer.predictor import Predictor


@dataclass(frozen=True)
class AllTasksOptions:
    """How each task is decoded. The defaults are those of the tasks."""

    detection: DecodingOptions = PAPER_DETECTION
    segmentation: SegmentationOptions = PAPER_SEGMENTATION
    keypoints: KeypointOptions = PAPER_KEYPOINTS
    captions: CaptionOptions = GREEDY
    max_objects: int | None = None  # to ask for; None = as many as the weights were trained for
    score_threshold: float = 0.3  # of detections: what scores less is no object


DEFAULTS = AllTasksOptions()


class AllTasksRun:
    """Decodes batches of images one after another.

    Every task says what it says when it is asked alone, with the same boxes.

    Args:
        seconds: where the time of each stage is added up, for those who want to know.
        encoded: where each stage lists how many images it sent through the encoder at a time: the
            first one the whole images, the others crops to boxes if they need such.

    Raises:
        UserError: the weights know neither captions nor detection, which the others need.
    """

    def __init__(
        self,
        predictor: Predictor,
        options: AllTasksOptions = DEFAULTS,
        *,
        seconds: dict[str, float] | None = None,
        encoded: dict[str, list[int]] | None = None,
    ):
        known = predictor.tasks
        if not {"captioning", "detection"} & set(known):
            raise UserError(
                f"{predictor.source} was trained for {', '.join(known)} alone, which needs boxes; "
                "use the script of that task, or name weights of several tasks with --weights"
            )
        self.predictor, self.options = predictor, options
        self.seconds = {} if seconds is None else seconds
        self.encoded = {} if encoded is None else encoded

    def __call__(self, images: Sequence[Tensor]) -> list[AllTasks]:
        """B uint8 (3, h, w) originals -> B results; the images are encoded once."""
        known = self.predictor.tasks
        with self._stage("encoder"):
            device = self.predictor.model.device
            images = [image.to(device, non_blocking=True) for image in images]  # for all stages
            encoded = self.predictor.encode(images)
        captions = objects = masks = keypoints = [None] * len(images)
        if "captioning" in known:
            captions = self._caption(images, encoded)
        if "detection" in known:
            objects = self._detect(images, encoded)
            if "segmentation" in known:
                masks = self._segment(images, encoded, objects)
            if "keypoint" in known:
                keypoints = self._keypoints(images, objects)
        rows = zip(captions, objects, masks, keypoints, strict=True)
        return [AllTasks(*row) for row in rows]

    def _caption(self, images: Sequence[Tensor], encoded: Encoded) -> list[Captions]:
        with self._stage("captioning"):
            captioner = self.predictor.captioner(self.options.captions)
            return captioner(images, encoded=encoded)

    def _detect(self, images: Sequence[Tensor], encoded: Encoded) -> list[Detections]:
        options, most = self.options.detection, self.options.max_objects
        with self._stage("detection"):
            detector = self.predictor.detector(options, max_objects=most)
            found = detector(images, encoded=encoded)
        return [objects.above(self.options.score_threshold) for objects in found]

    def _segment(
        self, images: Sequence[Tensor], encoded: Encoded, objects: list[Detections]
    ) -> list[InstanceMasks]:
        with self._stage("segmentation"):
            segmenter = self.predictor.segmenter(self.options.segmentation)
            return segmenter(images, *_asked(objects), encoded=encoded)

    def _keypoints(self, images: Sequence[Tensor], objects: list[Detections]) -> list[Keypoints]:
        persons = with_keypoints(self.predictor.keypoint_tokenizer(), *_asked(objects))
        with self._stage("keypoint"):
            finder = self.predictor.keypoint_finder(self.options.keypoints)
            return finder(images, *persons)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        model, passes = self.predictor.model, self.encoded.setdefault(name, [])
        counter = model.encoder.register_forward_hook(
            lambda _, args, __: passes.append(len(args[0]))
        )
        start = time.perf_counter()
        try:
            yield
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
        finally:
            counter.remove()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _asked(objects: list[Detections]) -> tuple[list, list, list]:
    """Boxes, labels and scores per image."""
    return tuple([getattr(one, k) for one in objects] for k in ("boxes", "labels", "scores"))
