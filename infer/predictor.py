"""The Python API: `Predictor(weights).detect(image)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from infer.detection import PAPER, DecodingOptions, detect
from infer.results import Detections
from models import Pix2Seq, load_model
from tokenizer import DetectionTokenizer, Vocabulary
from utils.categories import Categories
from utils.errors import UserError
from utils.images import as_image

ImageLike = str | Path | Image.Image | np.ndarray


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
            batch = [
                torch.from_numpy(np.ascontiguousarray(as_image(image))).permute(2, 0, 1)
                for image in images[start : start + batch_size]
            ]
            found += detect(
                self.model,
                tokenizer,
                self.categories,
                batch,
                options,
                resize_mode=self.resize_mode,
                generator=generator,
            )
        return found
