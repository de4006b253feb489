"""Exports a weight file to a folder of ONNX graphs and checks that they compute the same.

The graphs are made in `models/onnx_graphs.py`. `infer/run_onnx.py` is copied into the folder as
run.py; the check here runs that very file.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from infer import detection, run_onnx
from infer.captioning import CaptionOptions
from infer.detection import DetectionOptions
from infer.keypoint import KeypointOptions
from infer.predictor import Predictor
from infer.segmentation import SegmentationOptions
from utils.errors import UserError, one_line
from utils.files import write_json_atomic
from utils.images import load_image

FORMAT = "pix2seq-onnx/1"
MOST_DIFFERENCE = 1e-4  # of a logit
MOST_PIXELS = 1e-2  # of a box side
READ_AT_ONCE = 4  # tokens of the random sequence, to read several and then one
OPTIONS = {
    "detection": DetectionOptions(),
    "segmentation": SegmentationOptions(),
    "keypoint": KeypointOptions(),
    "captioning": CaptionOptions(),
}


def describe(trained: Predictor) -> dict:
    """The content of model.json: everything that is not in the graphs, as JSON values."""
    config, vocab = trained.model.config, trained.vocab
    tasks = {}
    for task, settings in trained.tasks.items():
        tokenizer = trained.tokenizer(task)
        tasks[task] = {
            "settings": settings,
            "prompt": tokenizer.prompt.tolist(),  # instances: their box and class follow
            "prompt_len": tokenizer.prompt_len,
            "max_new_tokens": tokenizer.max_new_tokens,
            "eos": tokenizer.eos_id,
            "decoding": asdict(OPTIONS[task]),
        }
    ranges = {"class_range": vocab.class_range, "coord_range": vocab.coord_range}
    resizing = {"size": config.image_size, "resize_mode": trained.resize_mode}
    return {
        "format": FORMAT,
        "weights": Path(trained.name).name,
        "config": config.to_json(),
        "image": resizing | asdict(trained.resizing),
        "vocabulary": vocab.to_json() | ranges,
        "categories": trained.categories.to_json(),
        "tasks": tasks,
    }


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`; it is renamed on success and removed on failure."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        inner = Path(folder) / "export"
        inner.mkdir()
        yield inner
        if out.exists():
            out.rmdir()  # empty: `check_arguments`
        inner.rename(out)


def export_folder(trained: Predictor, folder: Path) -> None:
    """Writes both graphs, model.json and run.py.

    Args:
        trained: float32, on the CPU.

    Raises:
        UserError: the encoder computes something that ONNX does not know.
    """
    graphs = importlib.import_module("models.onnx_graphs")
    try:
        graphs.export_graphs(trained.model, folder)
    except OSError:
        raise
    except Exception as error:  # torch has many
        cause = error.__cause__ or error
        raise UserError(
            f"{trained.name} cannot be exported ({one_line(cause)}); the traceback (--debug) names "
            "the operation of the encoder that ONNX lacks"
        ) from error
    write_json_atomic(folder / "model.json", describe(trained))
    shutil.copyfile(run_onnx.__file__, folder / "run.py")


# ---- the check -------------------------------------------------------------------------------


def check_folder(trained: Predictor, folder: Path, picture: Path) -> dict[str, float]:
    """Compares the folder with the model, on a random and a real picture.

    Returns:
        the largest difference of a logit, and how many tokens and boxes were compared.

    Raises:
        UserError: they differ.
    """
    exported, real = run_onnx.Model(folder), load_image(picture)
    # Both pictures in one batch, then one alone: the number of images is free.
    generator = np.random.default_rng(0)
    size = trained.model.config.image_size
    random = generator.random((3, *size), np.float32)
    pixels = np.stack([random, run_onnx.letterbox(real, exported.about["image"])[0]])
    largest = max(
        compare_logits(trained, exported, part, generator) for part in (pixels, pixels[:1])
    )
    if not largest <= MOST_DIFFERENCE:
        raise UserError(
            f"the exported logits differ by {largest:.2g} from those of {trained.name}, more than "
            f"{MOST_DIFFERENCE:g}; nothing was written. Please report it"
        )
    tokens = sum(compare_tokens(trained, exported, pixels, task) for task in trained.tasks)
    boxes = compare_boxes(trained, exported, real) if "detection" in trained.tasks else 0
    return {"largest_difference": largest, "tokens": tokens, "boxes": boxes}


@torch.no_grad()
def compare_logits(
    trained: Predictor, exported: run_onnx.Model, pixels: np.ndarray, generator
) -> float:
    """The largest difference of the logits on random tokens, several of them in one step.

    Args:
        pixels: (B, 3, H, W) float32 in [0, 1].
    """
    config = trained.model.config
    length = min(3 * READ_AT_ONCE, config.max_len)
    tokens = generator.integers(0, config.vocab_size, (len(pixels), length))
    wanted = trained.model(torch.from_numpy(pixels), torch.from_numpy(tokens)).numpy()  # (B, T, V)
    decoding, largest, start = run_onnx.Decoding(exported, exported.encode(pixels)), 0.0, 0
    for count in [min(READ_AT_ONCE, length)] + [1] * (length - READ_AT_ONCE):
        end = start + count
        decoding.read(tokens[:, None, start:end])
        difference = np.abs(decoding.logits[:, 0] - wanted[:, start:end]).max()
        largest, start = max(largest, float(difference)), end
    return largest


def compare_tokens(
    trained: Predictor, exported: run_onnx.Model, pixels: np.ndarray, task: str
) -> int:
    """Compares greedy tokens over a whole answer; returns their number.

    Raises:
        UserError: they differ.
    """
    model, tokenizer = trained.model, trained.tokenizer(task)
    prompt = np.tile(tokenizer.prompt, (len(pixels), 1))  # (B, 1)
    count = tokenizer.max_len
    with torch.no_grad():
        memory = model.encode(torch.from_numpy(pixels))
    wanted, *_ = model.generate(memory, torch.from_numpy(prompt), max_new_tokens=count)
    decoding, found = run_onnx.Decoding(exported, exported.encode(pixels)), []
    logits = decoding.read(prompt[:, None])
    for _ in range(count - 1):
        found.append(logits.argmax(1))
        logits = decoding.read(found[-1][:, None, None])
    tokens = np.stack([*found, logits.argmax(1)], 1)
    if (tokens != wanted.numpy()).any():
        first = np.argwhere(tokens != wanted.numpy())[:, 1].min()
        raise UserError(
            f"the exported model decodes other tokens for {task} from token {first} on; nothing "
            "was written. Please report it"
        )
    return tokens.size


def compare_boxes(trained: Predictor, exported: run_onnx.Model, picture: np.ndarray) -> int:
    """Compares greedily detected boxes in a picture; returns their number.

    Raises:
        UserError: they differ.
    """
    options = replace(DetectionOptions(), top_k=1, stop_objects=0)
    image = torch.from_numpy(picture).permute(2, 0, 1)
    (wanted,) = detection.detect(trained, [image], options)
    (found,) = exported.detect([picture])
    if found["names"] != wanted.names or (
        np.abs(found["boxes"] - wanted.boxes).max(initial=0) > MOST_PIXELS
    ):
        raise UserError(
            "the exported model finds other boxes in the picture of the check; nothing was "
            "written. Please report it"
        )
    return len(wanted.names)
