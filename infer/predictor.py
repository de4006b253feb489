"""The Python API: `Predictor(weights).detect(image)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infer.all_tasks import DEFAULTS, AllTasksOptions, AllTasksRun
from infer.captioning import GREEDY, CaptionOptions, caption
from infer.classify import Labels, class_ids, classify_boxes
from infer.detection import PAPER, DecodingOptions, detect
from infer.encode import Encoded, ImageLike, as_tensor, encode_images
from infer.keypoints import PAPER as PAPER_KEYPOINTS
from infer.keypoints import KeypointOptions, find_keypoints, with_keypoints
from infer.results import AllTasks, Captions, Detections, InstanceMasks, Keypoints
from infer.segmentation import PAPER as PAPER_SEGMENTATION
from infer.segmentation import SegmentationOptions, segment
from models import Pix2Seq, load_model
from tokenizer import (
    CaptionTokenizer,
    DetectionTokenizer,
    KeypointTokenizer,
    SegmentationTokenizer,
    Vocabulary,
)
from utils.categories import Categories
from utils.errors import UserError
from utils.pixels import Resizing


class Predictor:
    """Runs a weight file on images. Everything it needs to know stands in that file.

    Args:
        weights: path of a weight file, or a model that is loaded already.
        device: e.g. "cpu", "cuda", "cuda:1".

    Raises:
        UserError: no such weight file, or not one of ours.
    """

    def __init__(self, weights: str | Path | Pix2Seq, device: str | torch.device = "cpu"):
        self.source = "the given model" if isinstance(weights, Pix2Seq) else str(weights)
        self.model = weights if isinstance(weights, Pix2Seq) else load_model(weights, device)
        meta = self.model.meta
        self.tasks: dict[str, dict] = meta["tasks"]
        self.vocab = Vocabulary.from_json(meta["vocabulary"])
        self.categories = Categories.from_json(meta["categories"])
        self.resize_mode: str = meta["resize_mode"]
        self._caption_tokenizer: CaptionTokenizer | None = None
        self.resizing = Resizing(**meta.get("resizing", {}))

    def require(self, task: str) -> dict:
        """Settings of a task the weights were trained for.

        Raises:
            UserError: they were not.
        """
        if task not in self.tasks:
            raise UserError(
                f"{self.source} was trained for {', '.join(self.tasks)}, not for {task}; "
                "name other weights with --weights"
            )
        return self.tasks[task]

    def detection_tokenizer(self, max_objects: int | None = None) -> DetectionTokenizer:
        """The tokenizer the weights were trained with, or with a smaller object budget."""
        trained = self.require("detection")["max_objects"]
        wanted = trained if max_objects is None else max_objects
        if not 1 <= wanted <= trained:
            raise UserError(f"max_objects must be 1 to {trained} for {self.source}, got {wanted}")
        return DetectionTokenizer(self.vocab, wanted)

    def detect(
        self,
        images: ImageLike | list[ImageLike],
        options: DecodingOptions = PAPER,
        *,
        max_objects: int | None = None,
        batch_size: int = 16,
    ) -> Detections | list[Detections]:
        """Finds objects.

        Args:
            images: a path, a PIL image or an RGB uint8 array (H, W, 3), or a list of them.
            max_objects: how many to ask for; fewer is faster.

        Returns:
            `Detections` in pixels of the image, best first; a list for a list.
        """
        if not isinstance(images, list):
            return self.detect([images], options, max_objects=max_objects)[0]
        tokenizer = self.detection_tokenizer(max_objects)
        generator = torch.Generator(self.model.device).manual_seed(options.seed)
        found: list[Detections] = []
        for start in range(0, len(images), batch_size):
            batch = [as_tensor(image) for image in images[start : start + batch_size]]
            found += detect(
                self.model,
                tokenizer,
                self.categories,
                batch,
                options,
                resize_mode=self.resize_mode,
                resizing=self.resizing,
                generator=generator,
            )
        return found

    def segmentation_tokenizer(self) -> SegmentationTokenizer:
        """The tokenizer the weights were trained with."""
        return SegmentationTokenizer(self.vocab, **self.require("segmentation"))

    def segment(
        self,
        images: ImageLike | list[ImageLike],
        boxes: np.ndarray | list[np.ndarray] | None = None,
        labels: Labels | list[Labels] = None,
        options: SegmentationOptions = PAPER_SEGMENTATION,
        *,
        scores: np.ndarray | list[np.ndarray] | None = None,
        score_threshold: float = 0.3,
        batch_size: int = 16,
    ) -> InstanceMasks | list[InstanceMasks]:
        """Masks of the objects in given boxes, or of all that the same weights detect.

        Args:
            images: a path, a PIL image or an RGB uint8 array (H, W, 3), or a list of them; then
                boxes, labels and scores are lists too, or None.
            boxes: (N, 4) xyxy pixels of the image; None = detect them.
            labels: class ids or names, (N,) or one for all; None = ask the detection task, and
                take the first class if the weights do not know that task.
            scores: (N,) of the boxes, which the masks take over; 1 when None.
            score_threshold: of detected boxes.

        Returns:
            `InstanceMasks` in pixels of the image, in the order of the boxes; a list for a list.
        """
        if not isinstance(images, list):
            given = [None if value is None else [value] for value in (boxes, labels, scores)]
            more = {"scores": given[2], "score_threshold": score_threshold}
            return self.segment([images], given[0], given[1], options, **more)[0]
        tokenizer = self.segmentation_tokenizer()
        generator = torch.Generator(self.model.device).manual_seed(options.seed)
        if isinstance(labels, (int, str)):
            labels = [labels] * len(images)
        only_crops = tokenizer.crop is not None and boxes is not None and labels is not None
        found: list[InstanceMasks] = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            batch = [as_tensor(image) for image in images[part]]
            encoded = None if only_crops else self.encode(batch)
            if boxes is None:
                asked = self._detected(batch, encoded, score_threshold)
            else:
                asked = self._asked(boxes[part], labels and labels[part], encoded)
                asked += (scores and scores[part],)
            found += segment(
                self.model,
                tokenizer,
                self.categories,
                batch,
                *asked,
                options,
                resize_mode=self.resize_mode,
                resizing=self.resizing,
                encoded=encoded,
                generator=generator,
            )
        return found

    def _detected(self, images: list[Tensor], encoded: Encoded, threshold: float) -> tuple:
        """Boxes, labels and scores per image."""
        tokenizer = self.detection_tokenizer()
        found = detect(self.model, tokenizer, self.categories, images, encoded=encoded)
        found = [one.above(threshold) for one in found]
        return tuple([getattr(one, k) for one in found] for k in ("boxes", "labels", "scores"))

    def _asked(self, boxes: list, labels: list | None, encoded: Encoded | None) -> tuple:
        """Boxes and class ids per image, for what `segment` was given."""
        boxes = [np.asarray(b, np.float32).reshape(-1, 4) for b in boxes]
        if labels is None and len(self.categories.names) > 1 and "detection" in self.tasks:
            tokenizer = self.detection_tokenizer()
            return boxes, classify_boxes(self.model, tokenizer, self.categories, encoded, boxes)
        labels = labels or [next(iter(self.categories.names))] * len(boxes)
        pairs = zip(labels, boxes, strict=True)
        return boxes, [class_ids(k, len(b), self.categories, self.source) for k, b in pairs]

    def keypoint_tokenizer(self) -> KeypointTokenizer:
        """The tokenizer the weights were trained with."""
        return KeypointTokenizer(self.vocab, **self.require("keypoint"))

    def keypoints(
        self,
        images: ImageLike | list[ImageLike],
        boxes: np.ndarray | list[np.ndarray] | None = None,
        labels: Labels | list[Labels] = None,
        options: KeypointOptions = PAPER_KEYPOINTS,
        *,
        scores: np.ndarray | list[np.ndarray] | None = None,
        score_threshold: float = 0.3,
        batch_size: int = 16,
    ) -> Keypoints | list[Keypoints]:
        """Keypoints of the objects in given boxes, or of the persons that the same weights detect.

        Args:
            images, boxes, scores, score_threshold: as for `segment`; scores are mixed with the
                points' (`KeypointOptions.points_score_weight`).
            labels: class ids or names, (N,) or one for all; None = person.

        Returns:
            `Keypoints` in pixels of the image, in the order of the boxes; a list for a list.
        """
        if not isinstance(images, list):
            given = [None if value is None else [value] for value in (boxes, labels, scores)]
            more = {"scores": given[2], "score_threshold": score_threshold}
            return self.keypoints([images], given[0], given[1], options, **more)[0]
        tokenizer = self.keypoint_tokenizer()
        generator = torch.Generator(self.model.device).manual_seed(options.seed)
        how = {"resize_mode": self.resize_mode, "resizing": self.resizing, "generator": generator}
        labels = tokenizer.labels[0] if labels is None else labels
        if isinstance(labels, (int, str)):
            labels = [labels] * len(images)
        found: list[Keypoints] = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            batch = [as_tensor(image) for image in images[part]]
            if boxes is None:
                asked = self._detected(batch, self.encode(batch), score_threshold)
                asked = with_keypoints(tokenizer, *asked)
            else:
                asked = (*self._asked(boxes[part], labels[part], None), scores and scores[part])
            asked = (self.model, tokenizer, self.categories, batch, *asked)
            found += find_keypoints(*asked, options, **how)
        return found

    def caption_tokenizer(self) -> CaptionTokenizer:
        """The tokenizer the weights were trained with; it is built once."""
        if self._caption_tokenizer is None:
            self._caption_tokenizer = CaptionTokenizer(self.vocab, **self.require("captioning"))
        return self._caption_tokenizer

    def caption(
        self,
        images: ImageLike | list[ImageLike],
        options: CaptionOptions = GREEDY,
        *,
        batch_size: int = 16,
    ) -> Captions | list[Captions]:
        """Describes images.

        Args:
            images: a path, a PIL image or an RGB uint8 array (H, W, 3), or a list of them.

        Returns:
            `Captions`, best first; a list for a list.
        """
        if not isinstance(images, list):
            return self.caption([images], options)[0]
        tokenizer = self.caption_tokenizer()
        generator = torch.Generator(self.model.device).manual_seed(options.seed)
        found: list[Captions] = []
        for start in range(0, len(images), batch_size):
            batch = [as_tensor(image) for image in images[start : start + batch_size]]
            found += caption(
                self.model,
                tokenizer,
                batch,
                options,
                encoded=self.encode(batch),
                generator=generator,
            )
        return found

    def all_tasks(
        self,
        images: ImageLike | list[ImageLike],
        options: AllTasksOptions = DEFAULTS,
        *,
        batch_size: int = 16,
    ) -> AllTasks | list[AllTasks]:
        """Captions, objects, masks and persons' keypoints, as far as the weights know them."""
        if not isinstance(images, list):
            return self.all_tasks([images], options)[0]
        run, found = AllTasksRun(self, options), []
        for start in range(0, len(images), batch_size):
            found += run([as_tensor(image) for image in images[start : start + batch_size]])
        return found

    def encode(self, images: Sequence[Tensor]) -> Encoded:
        """B uint8 (3, h, w) originals, encoded once for as many tasks as you like."""
        return encode_images(
            self.model, images, resize_mode=self.resize_mode, resizing=self.resizing
        )
