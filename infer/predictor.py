"""The Python API: `Predictor(weights).detect(image)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infer.batches import decode_images
from infer.captioning import GREEDY, CaptionOptions, caption
from infer.classify import Labels, check_boxes, label_boxes
from infer.detection import PAPER, DecodingOptions, detect
from infer.encode import Encoded, ImageLike, encode_images
from infer.keypoint import PAPER as PAPER_KEYPOINTS
from infer.keypoint import KeypointOptions, find_keypoints, with_keypoints
from infer.multi_task import DEFAULTS, AllTasksOptions, AllTasksRun
from infer.results import AllTasks, Captions, Detections, InstanceMasks, Keypoints
from infer.segmentation import PAPER as PAPER_SEGMENTATION
from infer.segmentation import SegmentationOptions, segment
from infer.weight_meta import read_meta, tokenizer_of
from models import Pix2Seq, load_model
from tokenizer.captioning import CaptionTokenizer
from tokenizer.detection import DetectionTokenizer
from tokenizer.keypoint import KeypointTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from utils.categories import Categories
from utils.errors import UserError


class Predictor:
    """Runs a weight file on images. Everything it needs to know stands in that file.

    `detect`, `segment`, `keypoints`, `caption` and `all_tasks` take images as they come.
    `detector`, `segmenter`, `keypoint_finder` and `captioner` are the same tasks for those who have
    batches of tensors, perhaps encoded already: the functions of `infer/<task>.py`, made ready.

    Args:
        weights: path of a weight file, or a model that is loaded already.
        device: e.g. "cpu", "cuda", "cuda:1".
        dtype, mode: how it computes, see `Pix2Seq.prepare`; a model that is given stays as it is.

    Raises:
        UserError: no such weight file, or not one of ours.
    """

    def __init__(
        self,
        weights: str | Path | Pix2Seq,
        device: str | torch.device = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        mode: str = "auto",
    ):
        if isinstance(weights, Pix2Seq):
            self.source, self.model = "the given model", weights
        else:
            self.source, self.model = str(weights), load_model(weights, device)
            self.model.prepare(dtype=dtype, mode=mode)
        meta = read_meta(self.model.meta, self.model.config, self.source)
        self.tasks, self.vocab, self.categories = meta.tasks, meta.vocab, meta.categories
        self.resize_mode, self.resizing = meta.resize_mode, meta.resizing
        self._caption_tokenizer: CaptionTokenizer | None = None

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

    def encode(self, images: Sequence[Tensor]) -> Encoded:
        """B uint8 (3, h, w) originals, encoded once for as many tasks as you like."""
        return encode_images(self.model, images, **self._resizing)

    @property
    def _resizing(self) -> dict:
        return {"resize_mode": self.resize_mode, "resizing": self.resizing}

    def detection_tokenizer(self, max_objects: int | None = None) -> DetectionTokenizer:
        """The tokenizer the weights were trained with, or with a smaller object budget."""
        trained = self.require("detection")["max_objects"]
        wanted = trained if max_objects is None else max_objects
        if not 1 <= wanted <= trained:
            raise UserError(f"max_objects must be 1 to {trained} for {self.source}, got {wanted}")
        return DetectionTokenizer(self.vocab, wanted)

    def detector(
        self,
        options: DecodingOptions = PAPER,
        *,
        max_objects: int | None = None,
        categories: Categories | None = None,
    ) -> Callable[..., list[Detections]]:
        """`infer.detection.detect` of images, encoded and image_ids.

        Args:
            categories: the classes that count; None = all that the weights know.
        """
        tokenizer, known = self.detection_tokenizer(max_objects), categories or self.categories
        return partial(detect, self.model, tokenizer, known, options=options, **self._resizing)

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
        decode = self.detector(options, max_objects=max_objects)
        return decode_images(images, decode, batch_size=batch_size)

    def segmentation_tokenizer(self) -> SegmentationTokenizer:
        """The tokenizer the weights were trained with."""
        return SegmentationTokenizer(self.vocab, **self.require("segmentation"))

    def segmenter(
        self, options: SegmentationOptions = PAPER_SEGMENTATION
    ) -> Callable[..., list[InstanceMasks]]:
        """`infer.segmentation.segment` of images, boxes, labels, scores, encoded, image_ids."""
        tokenizer, known = self.segmentation_tokenizer(), self.categories
        return partial(segment, self.model, tokenizer, known, options=options, **self._resizing)

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
            boxes: (N, 4) xyxy pixels of the image, with an area in it; None = detect them.
            labels: class ids or names, (N,) or one for all; None = ask the detection task, and
                take the first class if the weights do not know that task.
            scores: (N,) of the boxes, which the masks take over; 1 when None.
            score_threshold: of detected boxes.

        Returns:
            `InstanceMasks` in pixels of the image, in the order of the boxes; a list for a list.
        """
        segmenter = self.segmenter(options)
        only_crops = self.segmentation_tokenizer().crop is not None
        only_crops &= boxes is not None and labels is not None

        def decode(tensors: list[Tensor], *given):
            encoded = None if only_crops else self.encode(tensors)
            asked = self._asked(tensors, encoded, *given, score_threshold)
            return segmenter(tensors, *asked, encoded=encoded)

        given = (boxes, labels, scores)
        return decode_images(images, decode, *given, batch_size=batch_size)

    def _asked(
        self,
        tensors: list[Tensor],
        encoded: Encoded | None,
        boxes: list | None,
        labels: list | None,
        scores: list | None,
        threshold: float,
    ) -> tuple[list, list, list | None]:
        """Boxes, class ids and scores per image: those given, completed, or detected ones."""
        if boxes is None:
            return self._detected(tensors, encoded, threshold)
        for tensor, of_image in zip(tensors, boxes, strict=True):
            check_boxes(of_image, tuple(tensor.shape[1:]))
        return (*label_boxes(self, boxes, labels, encoded), scores)

    def _detected(self, tensors: list[Tensor], encoded: Encoded | None, threshold: float) -> tuple:
        """Boxes, labels and scores per image."""
        found = [one.above(threshold) for one in self.detector()(tensors, encoded=encoded)]
        return tuple([getattr(one, k) for one in found] for k in ("boxes", "labels", "scores"))

    def keypoint_tokenizer(self) -> KeypointTokenizer:
        """The tokenizer the weights were trained with."""
        return KeypointTokenizer(self.vocab, **self.require("keypoint"))

    def keypoint_finder(
        self, options: KeypointOptions = PAPER_KEYPOINTS
    ) -> Callable[..., list[Keypoints]]:
        """`infer.keypoint.find_keypoints` of images, boxes, labels, scores and image_ids."""
        tokenizer, known = self.keypoint_tokenizer(), self.categories
        return partial(
            find_keypoints, self.model, tokenizer, known, options=options, **self._resizing
        )

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
        tokenizer, finder = self.keypoint_tokenizer(), self.keypoint_finder(options)

        def decode(tensors: list[Tensor], *given):
            asked = self._asked(tensors, None, *given, score_threshold)
            if boxes is None:
                asked = with_keypoints(tokenizer, *asked)
            return finder(tensors, *asked)

        given = (boxes, tokenizer.labels[0] if labels is None else labels, scores)
        return decode_images(images, decode, *given, batch_size=batch_size)

    def caption_tokenizer(self) -> CaptionTokenizer:
        """The tokenizer the weights were trained with; it is built once."""
        if self._caption_tokenizer is None:
            settings = self.require("captioning")
            self._caption_tokenizer = tokenizer_of(
                "captioning", settings, self.vocab, self.model.config, self.source
            )
        return self._caption_tokenizer

    def captioner(self, options: CaptionOptions = GREEDY) -> Callable[..., list[Captions]]:
        """`infer.captioning.caption` of images, encoded and image_ids."""
        tokenizer = self.caption_tokenizer()
        return partial(caption, self.model, tokenizer, options=options, **self._resizing)

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
        decode = self.captioner(options)
        return decode_images(images, decode, batch_size=batch_size)

    def all_tasks(
        self,
        images: ImageLike | list[ImageLike],
        options: AllTasksOptions = DEFAULTS,
        *,
        batch_size: int = 16,
    ) -> AllTasks | list[AllTasks]:
        """Captions, objects, masks and persons' keypoints, as far as the weights know them."""
        return decode_images(images, AllTasksRun(self, options), batch_size=batch_size)
