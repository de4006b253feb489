"""The settings of official models: those of the published sizes, or of a `config.json`.

Nothing here needs torch, so that a script knows its choices at once.
"""

from pathlib import Path

from utils.errors import UserError
from utils.files import read_json

COMMON = {
    "max_seq_len": 512,
    "vocab_size": 3000,
    "coord_vocab_shift": 1000,
    "text_vocab_shift": 3000,
    "use_cls_token": False,
    "shared_decoder_embedding": True,
    "decoder_output_bias": True,
    "patch_size": 16,
    "drop_path": 0.1,
    "drop_units": 0.1,
    "drop_att": 0.0,
    "dec_proj_mode": "mlp",
    "pos_encoding": "sin_cos",
    "pos_encoding_dec": "learned",
}  # configs/config_det_finetune.py; config_multi_task.py has another vocab_size only
OPTIONAL = {name: COMMON[name] for name in ("patch_size", "drop_path", "drop_units", "drop_att")}
RESNET = {"resnet_depth": 50, "resnet_sk_ratio": 0.0, "resnet_width_multiplier": 1}
NUM_TEXT = 32000  # pieces of c4_en_32k_spm.model


def _sizes(resnet_variant: str, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> dict:
    """Layers, width, width of the MLPs and heads of encoder and decoder."""
    names = ("num_encoder_layers", "dim_att", "dim_mlp", "num_heads")
    names_dec = ("num_decoder_layers", "dim_att_dec", "dim_mlp_dec", "num_heads_dec")
    sizes = dict(zip(names, encoder, strict=True)) | dict(zip(names_dec, decoder, strict=True))
    return {"resnet_variant": resnet_variant, **sizes}


VARIANTS = {
    "vit-b": _sizes("c1", (12, 768, 3072, 12), (6, 512, 2048, 16)),
    "vit-l": _sizes("c1", (24, 1024, 4096, 16), (8, 512, 2048, 16)),
    "resnet": _sizes("standard", (6, 256, 1024, 8), (6, 256, 1024, 8)),
    "resnet-c": _sizes("c4", (12, 512, 2048, 16), (8, 512, 2048, 16)),
}  # configs/config_base.py, architecture_config_map


def variant_settings(variant: str, image_size: int, *, multi_task: bool) -> dict:
    """The official `model` settings of a published checkpoint."""
    vocab_size = COMMON["text_vocab_shift"] + NUM_TEXT if multi_task else COMMON["vocab_size"]
    own = {"image_size": [image_size, image_size], "vocab_size": vocab_size}
    return COMMON | RESNET | VARIANTS[variant] | own


def read_official_config(file: Path) -> tuple[dict, int | None]:
    """The `model` settings of a config.json, and its coordinate bins (None = not stated)."""
    content = read_json(file, "name an official config.json")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{file} has no object 'model'; name an official config.json")
    return content["model"], read_num_bins(file, content)


def read_num_bins(file: Path, content: dict) -> int | None:
    """`quantization_bins`, which stand with the task or with each of the tasks; None = nowhere."""
    tasks = content.get("tasks")
    places = [content, content.get("task"), *(tasks if isinstance(tasks, list) else [])]
    places = [place for place in places if isinstance(place, dict)]
    bins = [place["quantization_bins"] for place in places if "quantization_bins" in place]
    if any(number != bins[0] for number in bins):
        raise UserError(f"{file} has several values of 'quantization_bins': {bins}; leave one")
    return bins[0] if bins else None
