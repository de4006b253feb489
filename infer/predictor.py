"""The Python API: `Predictor(weights).detect(image)`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from infer import captioning, detection, keypoint, multi_task, segmentation
from infer.batches import ImageLike, batches_of
from infer.boxes import Labels, check_box_values, label_boxes
from infer.captioning import CaptionOptions
from infer.detection import DetectionOptions, check_threshold
from infer.keypoint import KeypointOptions
from infer.multi_task import AllTasksOptions
from infer.results import (
    AllTasks,
    Captions,
    Detections,
    ImageResult,
    InstanceMasks,
    Keypoints,
    Origin,
    columns,
    with_origin,
)
from infer.segmentation import SegmentationOptions
from infer.trained_model import TrainedModel
from models.pix2seq import Pix2Seq
from models.weights import load_model
from utils.files import describe_weights, find_weight_file, is_hub_name, path_text


class Predictor(TrainedModel):
    """Runs a weight file on images. The file contains everything that it needs.

    An image is a path, a PIL image, a uint8 array (H, W, 3) or a tensor (3, H, W) of torch, uint8
    or float from 0 to 1. Arrays and tensors are in RGB order: `image[..., ::-1]` turns the BGR of
    OpenCV. Every method takes one image or a list of them; the result of a list is a list. Numbers
    may be numpy's. Results know the size of their image and its path, so `found.plot()` needs no
    image where it was a file. Images that are encoded already go to the functions of
    `infer/<task>.py`, which take a `Predictor` as their first argument.

    Args:
        weights: path of a weight file, or a model that is loaded already.
        device: e.g. "cpu", "cuda", "cuda:1".
        dtype, mode, encoder_int8: how it computes, see `Pix2Seq.prepare`; a model that is given
            stays as it is.

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
        encoder_int8: bool = False,
    ):
        self._weight_file: Path | None = None  # None: a model is given
        if isinstance(weights, Pix2Seq):
            super().__init__(weights)
        else:
            file = find_weight_file(weights)
            self._weight_stamp = _stamp(file)
            model = load_model(weights, device)
            model.prepare(dtype=dtype, mode=mode, fold=True, encoder_int8=encoder_int8)
            super().__init__(model, path_text(weights) if is_hub_name(weights) else str(file))
            self._weight_file = file.absolute()

    @cached_property
    def weights_record(self) -> dict[str, str | None]:
        """Which weights these are, for JSON: `name`, `revision` (a commit of the hub), `sha256`.

        The checksum is computed at the first use. What is not known is None; so is the checksum if
        the file was replaced since it was loaded.
        """
        if self._weight_file is None or _stamp(self._weight_file) != self._weight_stamp:
            return {"name": self.name, "revision": None, "sha256": None}
        return describe_weights(self.name, self._weight_file)

    def detect(
        self,
        images: ImageLike | list[ImageLike],
        options: DetectionOptions = DetectionOptions(),
        *,
        max_objects: int | None = None,
        score_threshold: float = 0.0,
        batch_size: int = 16,
    ) -> Detections | list[Detections]:
        """Finds objects.

        An answer ends where objects have run out: after `options.stop_objects` in a row that score
        below `options.stop_score`. To score weights by a metric, use `stop_objects=0`.

        Args:
            max_objects: how many to ask for; fewer is faster.
            score_threshold: objects that score lower are left out; 0 keeps all.

        Returns:
            `Detections` in pixels of the image, best first.
        """
        if max_objects is not None:
            options = replace(options, max_objects=max_objects)
        check_threshold(score_threshold)
        found, paths = [], _paths_of(images)
        for tensors, (batch_paths,) in batches_of(images, paths=paths, batch_size=batch_size):
            objects = detection.detect(self, tensors, options)
            objects = [one.above(score_threshold) for one in objects]
            found += self._with_origins(objects, tensors, batch_paths)
        return found if isinstance(images, (list, tuple)) else found[0]

    def segment(
        self,
        images: ImageLike | list[ImageLike],
        boxes: np.ndarray | list[np.ndarray] | None = None,
        labels: Labels | list[Labels] = None,
        options: SegmentationOptions = SegmentationOptions(),
        *,
        scores: np.ndarray | list[np.ndarray] | None = None,
        score_threshold: float = 0.3,
        batch_size: int = 16,
    ) -> InstanceMasks | list[InstanceMasks]:
        """Masks of the objects in the given boxes, or of all that the same weights detect.

        Args:
            images: of a list, boxes, labels and scores are lists too, or None.
            boxes: (N, 4) xyxy pixels of the image, with an area in it; None = detect them.
            labels: class ids or names, (N,) or one for all; None = ask the detection task, and
                take the first class if the weights do not know that task.
            scores: (N,) of the boxes or one for all, which the masks take over; None = the
                probability of a class that was asked for, otherwise 1.
            score_threshold: of detected boxes.

        Returns:
            `InstanceMasks` in pixels of the image, in the order of the boxes.
        """
        crops = self.tokenizer("segmentation").crop is not None
        check_box_values(boxes, labels, scores, score_threshold)
        found, values = [], {"boxes": boxes, "labels": labels, "scores": scores}
        values["paths"] = _paths_of(images)
        for tensors, of_batch in batches_of(images, batch_size=batch_size, **values):
            batch_boxes, batch_labels, batch_scores, batch_paths = of_batch
            # One encoder pass serves detection and masks, unless masks need crops.
            encoded = None if crops else self.encode(tensors)
            if batch_boxes is None:
                shown = DetectionOptions().showing(score_threshold)
                objects = detection.detect(self, tensors, shown, encoded=encoded)
                rows = columns([one.above(score_threshold) for one in objects])
            else:
                rows = label_boxes(self, tensors, batch_boxes, batch_labels, batch_scores, encoded)
            # rows: boxes, labels and scores, each of all images
            masks = segmentation.segment(self, tensors, *rows, options, encoded=encoded)
            found += self._with_origins(masks, tensors, batch_paths)
        return found if isinstance(images, (list, tuple)) else found[0]

    def keypoints(
        self,
        images: ImageLike | list[ImageLike],
        boxes: np.ndarray | list[np.ndarray] | None = None,
        labels: Labels | list[Labels] = None,
        options: KeypointOptions = KeypointOptions(),
        *,
        scores: np.ndarray | list[np.ndarray] | None = None,
        score_threshold: float = 0.3,
        batch_size: int = 16,
    ) -> Keypoints | list[Keypoints]:
        """Keypoints of the objects in the given boxes, or of the persons that are detected.

        Args:
            images, boxes, scores, score_threshold: as for `segment`; scores are mixed with the
                points' (`KeypointOptions.points_score_weight`).
            labels: class ids or names, (N,) or one for all; None = person.

        Returns:
            `Keypoints` in pixels of the image, in the order of the boxes.
        """
        check_box_values(boxes, labels, scores, score_threshold)
        if labels is None:
            labels = self.tokenizer("keypoint").labels[0]
        found, values = [], {"boxes": boxes, "labels": labels, "scores": scores}
        values["paths"] = _paths_of(images)
        for tensors, of_batch in batches_of(images, batch_size=batch_size, **values):
            batch_boxes, batch_labels, batch_scores, batch_paths = of_batch
            # The given boxes, or those of the persons that are detected
            if batch_boxes is None:
                shown = DetectionOptions().showing(score_threshold)
                objects = detection.detect(self, tensors, shown)
                objects = [one.above(score_threshold) for one in objects]
                rows = columns(keypoint.with_keypoints(self, objects))
            else:
                rows = label_boxes(self, tensors, batch_boxes, batch_labels, batch_scores)
            # rows: boxes, labels and scores, each of all images
            points = keypoint.find_keypoints(self, tensors, *rows, options)
            found += self._with_origins(points, tensors, batch_paths)
        return found if isinstance(images, (list, tuple)) else found[0]

    def caption(
        self,
        images: ImageLike | list[ImageLike],
        options: CaptionOptions = CaptionOptions(),
        *,
        batch_size: int = 16,
    ) -> Captions | list[Captions]:
        """Describes images: `Captions`, best first."""
        found, paths = [], _paths_of(images)
        for tensors, (batch_paths,) in batches_of(images, paths=paths, batch_size=batch_size):
            captions = captioning.caption(self, tensors, options)
            found += self._with_origins(captions, tensors, batch_paths)
        return found if isinstance(images, (list, tuple)) else found[0]

    def all_tasks(
        self,
        images: ImageLike | list[ImageLike],
        options: AllTasksOptions = AllTasksOptions(),
        *,
        batch_size: int = 16,
    ) -> AllTasks | list[AllTasks]:
        """Captions, objects, masks and persons' keypoints, for the tasks that the weights know."""
        multi_task.check_can_start(self)
        found, paths = [], _paths_of(images)
        for tensors, (batch_paths,) in batches_of(images, paths=paths, batch_size=batch_size):
            everything = multi_task.find_all(self, tensors, options)
            found += self._with_origins(everything, tensors, batch_paths)
        return found if isinstance(images, (list, tuple)) else found[0]

    def _with_origins(
        self,
        results: Sequence[ImageResult],
        tensors: Sequence[torch.Tensor],
        paths: Sequence[Path | None] | None,
    ) -> list[ImageResult]:
        """B results with the sizes and paths of their images."""
        paths = paths or [None] * len(results)
        sizes = [tuple(image.shape[1:]) for image in tensors]
        origins = [Origin(*one, self.categories) for one in zip(sizes, paths, strict=True)]
        return list(map(with_origin, results, origins))


def _stamp(file: Path) -> tuple[int, int]:
    """Changes when a file is replaced; a training may do that to the weights of its run."""
    state = file.stat()
    return state.st_mtime_ns, state.st_size


def _paths_of(images: ImageLike | list[ImageLike]) -> Path | list[Path | None] | None:
    """The path of each image that is a file."""
    if isinstance(images, (list, tuple)):
        return list(map(_paths_of, images))
    return Path(images) if isinstance(images, (str, Path)) else None
