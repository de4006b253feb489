"""A model with the metadata of its weight file: vocabulary, classes, tasks, resizing.

Every task function of `infer/` takes a `TrainedModel`.
"""

import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset.batch import Resizing, letterbox_batch
from dataset.geometry import Geometry, crop_to_box
from models.config import ModelConfig
from models.pix2seq import Pix2Seq
from tokenizer.base import TaskTokenizer
from tokenizer.tasks import MISFITS, TOKENIZERS, build_saved_tokenizer
from tokenizer.vocabulary import Vocabulary
from utils.categories import Categories
from utils.errors import UserError, one_line
from utils.files import check_fields, shown

HEAVY = ("captioning",)  # tasks whose tokenizer is built when it is needed


@dataclass(frozen=True)
class Encoded:
    """Encoded images with their geometries (original pixels to model input)."""

    memory: Tensor  # (B, S, D)
    geometries: list[Geometry]  # B, original pixels -> model input


class TrainedModel:
    """A model with its vocabulary, categories, tasks and tokenizers.

    Args:
        model: with `meta`, as `load_model` and the training make it.
        name: what error messages call the model, such as the path of its file.

    Raises:
        UserError: `meta` is incomplete or does not fit the model.
    """

    def __init__(self, model: Pix2Seq, name: str = "the given model"):
        meta = read_meta(model.meta, model.config, name)
        self.model, self.name = model, name
        self.tasks, self.vocab, self.categories = meta.tasks, meta.vocab, meta.categories
        self.resize_mode, self.resizing = meta.resize_mode, meta.resizing
        self._tokenizers: dict[tuple, TaskTokenizer] = {}

    def require(self, task: str) -> dict:
        """The tokenizer settings of a task that the weights were trained for.

        Raises:
            UserError: they were not trained for it.
        """
        if task not in self.tasks:
            raise UserError(
                f"{self.name} was trained for {', '.join(self.tasks)}, not for {task}; "
                "name other weights with --weights"
            )
        return self.tasks[task]

    def tokenizer(self, task: str, **changes) -> TaskTokenizer:
        """The tokenizer that the weights were trained with; it is built once.

        Args:
            changes: settings that differ from those of the training, such as a smaller
                `max_objects`.

        Raises:
            UserError: the weights were not trained for the task, or describe it wrongly.
        """
        key = (task, *sorted(changes.items()))
        settings = self.require(task) | changes
        if key not in self._tokenizers:
            self._tokenizers[key] = build_saved_tokenizer(
                task, settings, self.vocab, self.model.config.max_len, self.name
            )
        return self._tokenizers[key]

    def encode(self, images: Sequence[Tensor]) -> Encoded:
        """Encodes B uint8 (3, h, w) originals; all tasks can use the result."""
        return self._encode_regions(images, [None] * len(images))

    def encode_crops(self, images: Sequence[Tensor], boxes: np.ndarray, pad: float) -> Encoded:
        """Encodes the crop around one box in each image.

        Args:
            images: R uint8 (3, h, w) originals; one with several boxes comes several times.
            boxes: (R, 4) xyxy original pixels.
            pad: what is added on each side of a box, in sides of the box.
        """
        regions = [
            crop_to_box(box, tuple(image.shape[1:]), pad)
            for image, box in zip(images, boxes, strict=True)
        ]
        return self._encode_regions(images, regions)

    def crop_batches(
        self, images: Sequence[Tensor], boxes: Sequence[np.ndarray], pad: float, most: int
    ) -> Iterator[tuple[slice, np.ndarray, Encoded]]:
        """Encodes the crops around all boxes of a batch of images.

        Args:
            images: B uint8 (3, h, w) originals.
            boxes: B of (N, 4) xyxy original pixels.
            pad: see `encode_crops`.
            most: crops that are encoded together.

        Yields:
            which of the R boxes of all images it is about, the number of the image of each, and
            the encoded crops.
        """
        images = [image.to(self.model.device, non_blocking=True) for image in images]  # once
        owners = np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])  # (R,)
        flat_boxes = np.concatenate(boxes)  # (R, 4)
        for start in range(0, len(owners), most):
            part = slice(start, start + most)
            of_part = [images[i] for i in owners[part]]
            yield part, owners[part], self.encode_crops(of_part, flat_boxes[part], pad)

    def _encode_regions(
        self, images: Sequence[Tensor], regions: Sequence[tuple[int, int, int, int] | None]
    ) -> Encoded:
        """Resizes on the device and encodes.

        Args:
            regions: y0, x0, height, width of the part to encode; None = the whole image.
        """
        geometries = [
            Geometry.letterbox(
                tuple(image.shape[1:]),
                self.model.config.image_size,
                self.resize_mode,
                region,
                centered=self.resizing.centered,
            )
            for image, region in zip(images, regions, strict=True)
        ]
        inputs = letterbox_batch(
            images,
            geometries,
            self.model.device,
            pad_value=self.resizing.pad_value,
            antialias=self.resizing.antialias,
        )
        with torch.no_grad():
            return Encoded(self.model.encode(inputs), geometries)


def shared_categories(model: Categories, data: Categories) -> Categories:
    """The model's class ids with the names and ids of the data, where the names agree.

    Raises:
        UserError: no name is shared.
    """
    ids = {name: data.source_ids[i] for i, name in data.names.items()}
    names = {i: name for i, name in model.names.items() if name in ids}
    if not names:
        raise UserError(
            f"the weights know the classes {_few(model)}, the data {_few(data)}: none in common; "
            "evaluate on the data they were trained for, or train on this data"
        )
    return Categories(names, {i: ids[name] for i, name in names.items()})


def _few(categories: Categories) -> str:
    names = list(categories.names.values())
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


@dataclass(frozen=True)
class WeightMeta:
    """The checked `meta` of a weight file."""

    tasks: dict[str, dict]  # name -> settings of its tokenizer
    vocab: Vocabulary
    categories: Categories
    resize_mode: str
    resizing: Resizing


def read_meta(meta: dict, config: ModelConfig, source: str) -> WeightMeta:
    """Checks the `meta` of a model, which the training and the converters write.

    Args:
        source: names the file in errors.

    Raises:
        UserError: something is missing, of another type, or does not fit the model.
    """
    try:
        for name in ("vocabulary", "categories", "tasks", "resize_mode"):
            if name not in meta:
                raise ValueError(f"it has no {name!r}")
        # Vocabulary and classes
        check_fields(meta["vocabulary"], typing.get_type_hints(Vocabulary))
        vocab = Vocabulary.from_json(meta["vocabulary"])
        if vocab.size > config.vocab_size:
            raise ValueError(f"{vocab.size} tokens, but the model has {config.vocab_size}")
        categories = _read_categories(meta["categories"], vocab)
        # How images are resized
        if meta["resize_mode"] not in ("letterbox", "stretch"):
            raise ValueError(
                f"resize_mode must be letterbox or stretch, got {shown(meta['resize_mode'])}"
            )
        resizing = meta.get("resizing", {})
        check_fields(resizing, typing.get_type_hints(Resizing))
        # Tasks
        tasks = meta["tasks"]
        check_fields(tasks, dict.fromkeys(TOKENIZERS, dict))
        if not tasks:
            raise ValueError("it names no task")
    except MISFITS as error:
        raise UserError(
            f"the metadata of {source} is not valid: {one_line(error)}; convert or train "
            "the weights again"
        ) from error
    for task, settings in tasks.items():
        if task not in HEAVY:
            build_saved_tokenizer(task, settings, vocab, config.max_len, source)
    return WeightMeta(tasks, vocab, categories, meta["resize_mode"], Resizing(**resizing))


def _read_categories(rows: object, vocab: Vocabulary) -> Categories:
    if not isinstance(rows, list):
        raise ValueError(f"categories must be a list, got {shown(rows)}")
    for row in rows:
        check_fields(row, {"id": int, "name": str, "source_id": int})
    categories = Categories.from_json(rows)
    if len(categories.names) < len(rows):
        raise ValueError("a class id stands there twice")
    for class_id in categories.names:
        if class_id not in vocab.labels:
            raise ValueError(f"class id {class_id} has no token")
    return categories
