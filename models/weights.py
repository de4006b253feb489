"""Weight files: safetensors that describe themselves. Nothing is ever unpickled.

A file is checked before memory is allocated: a damaged or malicious one costs nothing.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.config import ModelConfig
from models.pix2seq import Pix2Seq, build_model
from utils.encoder_weights import check_finite
from utils.errors import UserError, one_line
from utils.files import atomic_path, find_weight_file

MAX_LAYERS = 512  # of encoder or decoder; building a layer takes time even without memory
MAX_SIZE = 1 << 20  # largest value of any other number in a config
MAX_BUFFERS = 1 << 30  # bytes of tensors that are computed, not stored, such as sin-cos positions
FORMAT = "pix2seq/1"


def read_metadata(path: object, texts: Mapping[str, str]) -> tuple[ModelConfig, dict]:
    """`ModelConfig` and `meta` from the metadata of a weight file.

    Raises:
        UserError: they are missing, are not JSON, or describe no model.
    """
    # Both are JSON texts.
    values = {}
    for name in ("config", "meta"):
        try:
            values[name] = json.loads(texts[name])
        except KeyError as error:
            raise UserError(
                f"the metadata of {path} has no {name!r}; convert or train the weights again"
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{name!r} in the metadata of {path} is not valid JSON: {one_line(error)}"
            ) from error
    if not isinstance(values["meta"], dict):
        raise UserError(f"'meta' in the metadata of {path} must be an object")

    # The config is one of a model, and of one that is not absurdly large.
    try:
        config = ModelConfig.from_json(values["config"])
        for name, value in vars(config).items():
            limit = MAX_LAYERS if name.endswith("layers") else MAX_SIZE
            sizes = value if name == "image_size" else (value,)
            if any(isinstance(n, (int, float)) and n > limit for n in sizes):
                raise ValueError(f"{name} must be at most {limit}, got {value}")
    except (ValueError, TypeError) as error:
        raise UserError(f"the config of {path} describes no model: {one_line(error)}") from error
    return config, values["meta"]


def check_tensors(path: object, file: safe_open, config: ModelConfig) -> None:
    """Compares the tensors of a file with those of the architecture `config`.

    Raises:
        UserError: they differ; the first difference is named.
    """
    # Build the model on the meta device, which allocates nothing.
    try:
        with torch.device("meta"):
            model = build_model(config)
    except (ValueError, TypeError, RuntimeError, OverflowError, AssertionError) as error:
        raise UserError(f"the config of {path} describes no model: {one_line(error)}") from error
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    floats = {name for name, value in model.state_dict().items() if value.is_floating_point()}
    found = {name: file.get_slice(name) for name in used_tensors(file, model.encoder)}

    # Same names, shapes and kinds of numbers.
    problem = _first_difference(wanted, floats, found)
    if problem:
        raise UserError(f"the weights in {path} do not fit its config: {problem}")

    # Buffers are not in the file, so its size does not limit theirs.
    size = sum(math.prod(b.shape) * b.element_size() for b in model.buffers())
    if size > MAX_BUFFERS:
        raise UserError(
            f"the config of {path} asks for {size / 2**30:.0f} GiB of position embeddings, more "
            "than any model needs; check image_size and max_len"
        )


def used_tensors(file: safe_open, encoder: torch.nn.Module) -> list[str]:
    """Names of the tensors of a file, without unused encoder stages of older files."""
    unused = tuple(f"encoder.backbone.{prefix}" for prefix in getattr(encoder, "unused", ()))
    return [name for name in file.keys() if not name.startswith(unused)]  # noqa: SIM118


def _first_difference(wanted: dict[str, tuple], floats: set[str], found: dict) -> str:
    """What is wrong with the tensors of a file, in words; empty if nothing is.

    Args:
        wanted: name -> shape.
        floats: names of those that hold floating-point numbers.
        found: name -> slice of the file.
    """
    for name in sorted(wanted.keys() & found.keys()):
        shape, dtype = tuple(found[name].get_shape()), found[name].get_dtype()
        if shape != wanted[name]:
            return f"{name} is {shape} in the file, {wanted[name]} by its config"
        if (name in floats) != (dtype in ("F64", "F32", "F16", "BF16")):
            return f"{name} is of type {dtype}"
    for verb, names in (("adds", found.keys() - wanted.keys()), ("lacks", wanted.keys() - found)):
        if names:
            return f"the file {verb} {min(names)}"
    return ""


def write_tensors(
    path: str | Path, tensors: dict[str, torch.Tensor], texts: dict[str, str]
) -> None:
    """Writes a safetensors file, atomically.

    Args:
        texts: its metadata.
    """
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=texts)
        except SafetensorError as error:  # of a full disk, too: it holds the number in words
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise OSError(one_line(error)) from error
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def save_model(
    model: Pix2Seq, path: str | Path, *, meta: dict | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes weights, `ModelConfig` and `meta` to one file, atomically.

    Args:
        meta: what else the file records, JSON values; None = `model.meta`.
        dtype: store floating-point weights in this type, e.g. `torch.float16`; None = as they are.
    """
    tensors = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in model.state_dict().items()
    }
    texts = {
        "format": FORMAT,
        "config": json.dumps(model.config.to_json()),
        "meta": json.dumps(model.meta if meta is None else meta),
    }
    write_tensors(path, tensors, texts)


def read_header(path: str | Path) -> tuple[ModelConfig, dict]:
    """`ModelConfig` and `meta` of a weight file, without its tensors.

    Raises:
        UserError: the file is missing or is not a weight file of this project.
    """
    with _opened(Path(path)) as file:
        return read_metadata(path, file.metadata())


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """A weight file of ours, open."""
    path = find_weight_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            if texts.get("format") != FORMAT:
                raise UserError(
                    f"{path} was not written by this project (format {texts.get('format')!r}, "
                    f"wanted {FORMAT!r}); convert it, see download/"
                )
            yield file
    except (SafetensorError, OSError) as error:
        # of a file that was cut, the header is whole and lists more than there is
        is_cut = "not fully covered" in str(error)
        problem = "is incomplete" if is_cut else "is not a safetensors file"
        remedy = "download or copy it again" if is_cut else "convert it, see download/"
        raise UserError(f"{path} {problem} ({one_line(error)}); {remedy}") from error


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Pix2Seq:
    """Loads a weight file, or the best one of a run folder, in float32 and eval mode.

    Raises:
        UserError: the file is missing, is not a weight file of this project, or its tensors do not
            fit its config.
    """
    with _opened(Path(path)) as file:
        config, meta = read_metadata(path, file.metadata())
        check_tensors(path, file, config)
        with torch.device("cpu"):  # the default of the caller may be another, or meta
            model = build_model(config)
        tensors = {name: file.get_tensor(name) for name in used_tensors(file, model.encoder)}
    check_finite(path, tensors)
    model.load_state_dict(tensors)
    model.meta = meta
    return model.to(device).eval()
