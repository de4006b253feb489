"""Weight files: safetensors that describe themselves. Nothing is ever unpickled."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.checks import check_finite, check_tensors, read_metadata
from models.pix2seq import Pix2Seq, build_model
from utils.errors import UserError, one_line
from utils.files import atomic_path

FORMAT = "pix2seq/1"


def save_model(
    model: Pix2Seq, path: str | Path, *, meta: dict | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes weights, `ModelConfig` and `meta` (default: `model.meta`) to one file, atomically.

    Args:
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
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=texts)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Pix2Seq:
    """The model a weight file describes, float32, in eval mode.

    Raises:
        UserError: the file is missing, is no weight file of ours, or does not fit its own config.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weight file at {path}; train one, or name another with --weights")
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            if texts.get("format") != FORMAT:
                raise UserError(
                    f"{path} was not written by this project (format {texts.get('format')!r}, "
                    f"wanted {FORMAT!r}); convert it, see download/"
                )
            config, meta = read_metadata(path, texts)
            check_tensors(path, file, config)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no safetensors file ({one_line(error)}); convert it, see download/"
        ) from error
    check_finite(path, tensors)
    model = build_model(config)
    model.load_state_dict(tensors)
    model.meta = meta
    return model.to(device).eval()
