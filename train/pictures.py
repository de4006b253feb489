"""Pictures of a training: the model's input batch, and annotation beside prediction.

A leaf that a run loads when it starts. What is drawn into the pictures of a batch comes from its
tokens alone: a wrong tokenizer, mirror or crop shows.
"""

import contextlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

from dataset.batch import Batch, pad_batch
from dataset.sample import ChangedSource, Sample
from models import Pix2Seq
from tokenizer.base import TaskTokenizer
from tokenizer.vocabulary import tokens_to_points
from utils.categories import Categories
from utils.errors import UserError
from utils.visualize import (
    PALETTE,
    contact_sheet,
    draw_caption,
    draw_detections,
    draw_keypoints,
    draw_masks,
    find_font,
    load_font,
)

MAX_PICTURES = 16  # of a batch
LEAST_SIDE = 320  # pixels of a picture, about
MAX_CAPTIONS = 3  # of an image
COLUMNS = 4


# ---- a batch as the model sees it ----------------------------------------------------------------


def draw_batch(
    batch: Batch, model: Pix2Seq, tokenizer: TaskTokenizer, categories: Categories
) -> np.ndarray:
    """Draws a training batch after augmentation, with the annotation decoded from its tokens.

    The pixels are those that the encoder gets, brought back into [0, 255] for the eye; under each
    are its id and what its tokens are about.

    Args:
        batch: on the host.
        categories: names of the class ids.

    Returns:
        (H, W, 3) uint8 RGB, a sheet of the first `MAX_PICTURES` images.
    """
    few = slice(MAX_PICTURES)
    mean, std = model.mean.cpu(), model.std.cpu()
    seen = (pad_batch(batch.images[few], batch.unpadded[few]) - mean) / std  # what the encoder gets
    pixels = ((seen * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    draw = DRAWN.get(tokenizer.task, _draw_nothing)
    pictures = []
    rows = zip(batch.image_ids[few], pixels, batch.input_tokens, batch.target_tokens, strict=False)
    for image_id, image, shown, wanted in rows:
        length = wanted.shape[-1]
        prompts = shown.reshape(-1, length)[:, : tokenizer.prompt_len].numpy()  # (N, P)
        answers = wanted.reshape(-1, length)[:, tokenizer.prompt_len - 1 :].numpy()  # (N, R)
        picture = enlarge(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        picture, text = draw(tokenizer, picture, prompts, answers, categories.names)
        pictures.append(draw_caption(picture, f"{image_id}: {text}"))
    return contact_sheet(pictures, COLUMNS)


def _draw_detection(tokenizer, image: np.ndarray, prompts, answers, names: dict[int, str]):
    boxes, labels, _ = tokenizer.decode(answers[0], image.shape[:2])
    real = labels > 0
    words = [names.get(int(label), "?") for label in labels[real]]
    picture = draw_detections(image, boxes[real], words)
    noise = int((answers[0][4::5] == tokenizer.vocab.fake).sum())
    return picture, f"objects {real.sum()}, noise {noise}"


def _draw_outlines(tokenizer, image: np.ndarray, prompts, answers, names: dict[int, str]):
    boxes, words, masks = [], [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        box, label = read_prompt(tokenizer, prompt, image.shape[:2])
        if label:
            boxes.append(box)
            words.append(names.get(label, "?"))
            masks.append(fill_polygons(tokenizer.decode(answer, image.shape[:2]), image.shape[:2]))
    if not boxes:
        return image, "outlines 0"
    picture = draw_masks(image, np.stack(masks), words)
    return draw_detections(picture, np.stack(boxes), words), f"outlines {len(boxes)}"


def _draw_points(tokenizer, image: np.ndarray, prompts, answers, names: dict[int, str]):
    box, label = read_prompt(tokenizer, prompts[0], image.shape[:2])
    if not label:
        return image, "no object"
    points, found = tokenizer.decode(answers[0], box, image.shape[:2])
    points = np.concatenate([points, 2.0 * found[:, None]], 1)  # (K, 3)
    word = names.get(label, "?")
    picture = draw_detections(image, box[None], [word], colors=[PALETTE[0]])
    picture = draw_keypoints(picture, points[None], tokenizer.skeleton.edges)
    return picture, f"{word}, {found.sum()} of {len(found)} points"


def _draw_texts(tokenizer, image: np.ndarray, prompts, answers, names: dict[int, str]):
    return image, " / ".join(tokenizer.decode(answer) for answer in answers[:MAX_CAPTIONS])


def _draw_nothing(tokenizer, image: np.ndarray, prompts, answers, names: dict[int, str]):
    return image, f"{answers.shape[-1]} tokens"


# task -> (tokenizer, image, prompts (N, P), answers (N, R), names) -> picture and text
DRAWN: dict[str, Callable] = {
    "detection": _draw_detection,
    "segmentation": _draw_outlines,
    "keypoint": _draw_points,
    "captioning": _draw_texts,
}


def enlarge(image: np.ndarray) -> np.ndarray:
    """Enlarges a small model input by an integer factor, so that lines and names fit.

    Args:
        image: (H, W, 3) uint8.
    """
    factor = max(1, LEAST_SIDE // max(image.shape[:2]))
    return image.repeat(factor, 0).repeat(factor, 1)


def read_prompt(
    tokenizer: TaskTokenizer, prompt: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, int]:
    """Inverse of `instance_prompt` for one object.

    Args:
        prompt: (6,) token ids.
        size: (H, W) of the model input.

    Returns:
        (4,) xyxy pixels of the model input, and the class id; 0 for an object that is not there.
    """
    v = tokenizer.vocab
    if prompt[0] == v.pad:
        return np.zeros(4, np.float32), 0
    return tokens_to_points(v, prompt[1:5], size).reshape(4), int(prompt[5]) - v.class0


def fill_polygons(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool mask enclosed by the parts of one object, each (M, 2) of (x, y) pixels."""
    mask = np.zeros(size, np.uint8)
    parts = [np.round(part).astype(np.int32) for part in polygons if len(part)]
    if parts:
        cv2.fillPoly(mask, parts, 1)
    return mask.astype(bool)


# ---- annotation beside prediction ----------------------------------------------------------------


class Chosen(ChangedSource):
    """A source restricted to some of its images."""

    def __init__(self, source, numbers: Sequence[int]):
        super().__init__(source)
        self.numbers = list(numbers)
        self.image_ids = np.asarray(source.image_ids)[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Sample:
        return self.source[self.numbers[index]]

    def objects(self, index: int):
        return self.source.objects(self.numbers[index])


def choose_images(source, most: int) -> list[int]:
    """Chooses images with objects from the whole source; always the same ones.

    Those that cannot be read are left out; the evaluation has named them.
    """
    numbers = list(range(len(source)))
    if hasattr(source, "objects"):  # captions have none
        numbers = [i for i in numbers if len(source.objects(i)[0])] or numbers
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)
    chosen = []
    for place in places.tolist():
        with contextlib.suppress(UserError):
            source[numbers[place]]
            chosen.append(numbers[place])
    return chosen


def draw_pairs(source, most: int, predict: Callable[[Chosen], list[np.ndarray]]) -> np.ndarray:
    """Draws annotation and prediction of a few images, always the same ones.

    Args:
        predict: draws the predictions on the images of a source.

    Returns:
        (H, W, 3) uint8 RGB, pairs from left to right.
    """
    chosen = Chosen(source, choose_images(source, most))
    if not len(chosen):
        return np.full((32, 32, 3), 255, np.uint8)
    predicted = predict(chosen)
    truth = [draw_annotation(chosen[i], chosen) for i in range(len(chosen))]
    if len(truth) != len(predicted):  # a task of its own may leave out images
        return contact_sheet(predicted, COLUMNS)
    sheet = []
    for left, right in zip(truth, predicted, strict=True):
        sheet += [titled(left, "annotation"), titled(right, "prediction")]
    return contact_sheet(sheet, COLUMNS)


def draw_annotation(sample: Sample, source) -> np.ndarray:
    """A copy of the image with its boxes, outlines, keypoints or captions."""
    if sample.captions:
        return draw_caption(sample.image, " / ".join(sample.captions[:MAX_CAPTIONS]))
    picture = sample.image
    words = [source.categories.names.get(int(label), "?") for label in sample.labels]
    if sample.polygons:
        masks = [fill_polygons(parts, picture.shape[:2]) for parts in sample.polygons]
        picture = draw_masks(picture, np.stack(masks), words)
    if sample.keypoints is None:
        return draw_detections(picture, sample.boxes, words)
    colors = [PALETTE[n % len(PALETTE)] for n in range(len(words))]
    picture = draw_detections(picture, sample.boxes, words, colors=colors)
    return draw_keypoints(picture, sample.keypoints, source.skeleton.edges, colors=colors)


def titled(image: np.ndarray, text: str) -> np.ndarray:
    """Adds a white strip with a title above the picture."""
    font = load_font(max(11, round(0.04 * image.shape[1])), find_font(text))
    strip = sum(font.getmetrics()) + font.size // 2
    picture = Image.new("RGB", (image.shape[1], image.shape[0] + strip), "white")
    picture.paste(Image.fromarray(image), (0, strip))
    place = (font.size // 2, font.size // 4)
    ImageDraw.Draw(picture).text(place, text, fill=(0, 0, 0), font=font)
    return np.asarray(picture).copy()
