"""Exports a weight file to a folder of ONNX graphs and checks that they compute the same.

The graphs are made in `models/onnx_graphs.py`. `infer/run_onnx.py` is copied into the folder as
run.py; the check here runs that very file.
"""

from __future__ import annotations

import importlib
import os
import re
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
OPERATOR = re.compile(  # as torch names it in its errors
    r"No ONNX function found for <OpOverload\(op='([^']+)'|translating node .*torch\.ops\.([\w.]+)"
)
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
    resizing = asdict(trained.resizing)
    if np.ndim(resizing["pad_value"]) == 0:
        resizing["pad_value"] = [resizing["pad_value"]] * 3
    rules = {"detection": describe_detection(trained)} if "detection" in tasks else {}
    return {
        "format": FORMAT,
        "weights": trained.weights_record,
        "config": config.to_json(),
        "image": {"size": config.image_size, "resize_mode": trained.resize_mode, **resizing},
        "vocabulary": vocab.to_json() | ranges,
        "categories": trained.categories.to_json(),
        "tasks": tasks,
        **rules,
    }


def describe_detection(trained: Predictor) -> dict:
    """What run.py needs for detection: numbers and tables instead of rules in code.

    Returns:
        prompt, max_objects
        allowed: for each of the five tokens of an object, the range [first, end) to choose from
        eos: the token that may come instead of an object; None = an answer has no end
        class_range: [first, end) of the tokens whose probability is the score
        names: class token (as text) -> name, without class 0 and classes that have no name
        coord0, num_bins, bin_shift: a coordinate is (token - coord0 + bin_shift) / (num_bins - 1)
        xyxy_order: where xmin, ymin, xmax, ymax are among the four coordinates
    """
    tokenizer, vocab = trained.tokenizer("detection"), trained.vocab
    first, _ = vocab.class_range
    # Without an end token nothing is ruled out, as in `infer.detection.detect`.
    allowed = [vocab.coord_range] * 4 + [vocab.class_range]
    if tokenizer.eos_id is None:
        allowed = [(0, vocab.size)] * 5
    return {
        "prompt": tokenizer.prompt.tolist(),
        "max_objects": tokenizer.max_objects,
        "allowed": allowed,
        "eos": tokenizer.eos_id,
        "class_range": vocab.class_range,
        "names": {
            str(first + label - vocab.first_label): name
            for label, name in trained.categories.names.items()
            if label in vocab.labels
        },
        "coord0": vocab.coord0,
        "num_bins": vocab.num_bins,
        "bin_shift": 0.5 if vocab.floors else 0.0,
        "xyxy_order": [0, 1, 2, 3] if vocab.x_first else [1, 0, 3, 2],
    }


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` on success and is removed on failure.

    Args:
        out: new, or empty (`check_arguments`): that may be the current folder, or be mounted.
    """
    out = Path(os.path.realpath(out))
    parent = out if out.is_dir() else out.parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=parent) as folder:
        inner = Path(folder) / "export"
        inner.mkdir()
        yield inner
        if parent is not out:
            inner.rename(out)
            return
        for file in inner.iterdir():
            file.rename(out / file.name)


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
        raise UserError(f"{trained.name} cannot be exported: {explain(error)}") from error
    write_json_atomic(folder / "model.json", describe(trained))
    shutil.copyfile(run_onnx.__file__, folder / "run.py")


def explain(error: BaseException) -> str:
    """Why torch could not write the encoder as ONNX, and what to do, in one line."""
    # torch wraps errors three times; the innermost one says most.
    causes = [error]
    while (cause := causes[0].__cause__ or causes[0].__context__) is not None:
        causes.insert(0, cause)
    for cause in causes:
        if isinstance(cause, UserError):  # of our own functions, such as attention
            return str(cause)
        if found := OPERATOR.search(str(cause)):
            return (
                f"its encoder uses the operator {found[1] or found[2]}, which torch cannot write "
                f"as ONNX ({one_line(causes[0])}); compute the same with other operators"
            )
    return (
        f"torch.export cannot follow its encoder ({one_line(causes[0])}); the traceback (--debug) "
        "says where"
    )


# ---- the check -------------------------------------------------------------------------------


def check_folder(trained: Predictor, folder: Path, picture: Path) -> dict[str, float]:
    """Compares the folder with the model, on a random and a real picture.

    Returns:
        the largest difference of a logit, and how many tokens and boxes were compared.

    Raises:
        UserError: they differ.
    """
    exported, real = run_onnx.Model(folder, torch.get_num_threads()), load_image(picture)
    generator = np.random.default_rng(0)
    random = generator.random((3, *trained.model.config.image_size), np.float32)
    pixels = np.stack([random, run_onnx.letterbox(real, exported.about["image"])[0]])
    # Encoders take most of the time: all comparisons of tokens share one pass of each.
    with torch.no_grad():
        memory = trained.model.encode(torch.from_numpy(pixels))  # (2, S, D)
    encoded = exported.encode(pixels)
    alone = exported.encode(pixels[:1])  # the number of images is free
    largest = max(
        compare_logits(trained, exported, memory, encoded, generator),
        compare_logits(trained, exported, memory[:1], alone, generator),
    )
    if not largest <= MOST_DIFFERENCE:
        raise UserError(
            f"the exported logits differ by {largest:.2g} from those of {trained.name}, more than "
            f"{MOST_DIFFERENCE:g}; nothing was written. Please report it"
        )
    tokens = sum(compare_tokens(trained, exported, memory, encoded, t) for t in trained.tasks)
    boxes = compare_boxes(trained, exported, real) if "detection" in trained.tasks else 0
    return {"largest_difference": largest, "tokens": tokens, "boxes": boxes}


@torch.no_grad()
def compare_logits(
    trained: Predictor,
    exported: run_onnx.Model,
    memory: torch.Tensor,
    encoded: dict[str, np.ndarray],
    generator: np.random.Generator,
) -> float:
    """The largest difference of the logits on random tokens, several of them in one step.

    Args:
        memory, encoded: B images, encoded by the model and by the exported encoder.
    """
    config, decoder = trained.model.config, trained.model.decoder
    length = min(3 * READ_AT_ONCE, config.max_len)
    tokens = generator.integers(0, config.vocab_size, (len(memory), length))
    wanted = decoder.logits(decoder(torch.from_numpy(tokens), memory)).numpy()  # (B, T, V)
    # More places than tokens: those that are not read yet must not count.
    decoding, largest, start = run_onnx.Decoding(exported, encoded, length + READ_AT_ONCE), 0.0, 0
    for count in [min(READ_AT_ONCE, length)] + [1] * (length - READ_AT_ONCE):
        end = start + count
        difference = np.abs(decoding.read(tokens[:, start:end]) - wanted[:, start:end]).max()
        largest, start = max(largest, float(difference)), end
    return largest


@torch.no_grad()
def compare_tokens(
    trained: Predictor,
    exported: run_onnx.Model,
    memory: torch.Tensor,
    encoded: dict[str, np.ndarray],
    task: str,
) -> int:
    """Compares greedy tokens over a whole answer; returns their number.

    Args:
        memory, encoded: as for `compare_logits`.

    Raises:
        UserError: they differ.
    """
    tokenizer = trained.tokenizer(task)
    tokens = np.tile(tokenizer.prompt, (len(memory), 1))  # (B, 1), the prompt of the task
    count = tokenizer.max_len
    wanted, *_ = trained.model.generate(memory, torch.from_numpy(tokens), max_new_tokens=count)
    decoding, found = run_onnx.Decoding(exported, encoded, count), []
    for _ in range(count):
        tokens = decoding.read(tokens)[:, -1:].argmax(2)  # (B, 1)
        found.append(tokens)
    found = np.concatenate(found, 1)  # (B, T)
    if (found != wanted.numpy()).any():
        first = np.argwhere(found != wanted.numpy())[:, 1].min()
        raise UserError(
            f"the exported model decodes other tokens for {task} from token {first} on; nothing "
            "was written. Please report it"
        )
    return found.size


def compare_boxes(trained: Predictor, exported: run_onnx.Model, picture: np.ndarray) -> int:
    """Compares greedily detected boxes in a picture; returns their number.

    Raises:
        UserError: they differ.
    """
    options = replace(DetectionOptions(), top_k=1, stop_objects=0)
    image = torch.from_numpy(picture).permute(2, 0, 1)
    (wanted,) = detection.detect(trained, [image], options)
    found = exported.detect(picture)
    boxes = np.float32([one["box"] for one in found]).reshape(-1, 4)
    if [one["label"] for one in found] != wanted.names or (
        np.abs(boxes - wanted.boxes).max(initial=0) > MOST_PIXELS
    ):
        raise UserError(
            "the exported model finds other boxes in the picture of the check; nothing was "
            "written. Please report it"
        )
    return len(found)
