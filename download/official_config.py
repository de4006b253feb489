"""The official model settings as ours: the four published sizes, and any `config.json`."""

from dataclasses import replace

from models import ModelConfig
from tokenizer import Vocabulary
from utils.errors import UserError, one_line

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
ENCODERS = {"c1": "official_vit", "standard": "official_resnet", "c4": "official_resnet_c"}


def variant_settings(variant: str, image_size: int, *, multi_task: bool) -> dict:
    """The official `model` settings of a published checkpoint."""
    vocab_size = COMMON["text_vocab_shift"] + NUM_TEXT if multi_task else COMMON["vocab_size"]
    own = {"image_size": [image_size, image_size], "vocab_size": vocab_size}
    return COMMON | RESNET | VARIANTS[variant] | own


def model_config(settings: dict) -> ModelConfig:
    """Official `model` settings -> ours.

    Raises:
        UserError: one is missing, or of a kind that this model does not have.
    """
    s = OPTIONAL | RESNET | settings  # no file needs to have these; a ViT's has none of RESNET
    try:
        size = s["image_size"]
        if s["resnet_variant"] not in ENCODERS or s["resnet_sk_ratio"]:
            raise UserError(
                f"resnet_variant must be one of {', '.join(ENCODERS)} with resnet_sk_ratio 0, got "
                f"{s['resnet_variant']!r} with {s['resnet_sk_ratio']}"
            )
        ratio, ratio_dec = s["dim_mlp"] // s["dim_att"], s["dim_mlp_dec"] // s["dim_att_dec"]
        return ModelConfig(
            encoder=ENCODERS[s["resnet_variant"]],
            encoder_dim=s["dim_att"],
            encoder_layers=s["num_encoder_layers"],
            encoder_heads=s["num_heads"],
            encoder_mlp_dim=s["dim_att"] * ratio,
            encoder_patch=s["patch_size"],
            encoder_positions=s["pos_encoding"],
            encoder_cls_token=s["use_cls_token"],
            resnet_depth=s["resnet_depth"],
            resnet_width=float(s["resnet_width_multiplier"]),
            image_size=(size, size) if isinstance(size, int) else tuple(size),
            image_mean=(0.0, 0.0, 0.0),
            image_std=(1.0, 1.0, 1.0),
            projection=s["dec_proj_mode"],
            projection_mlp_ratio=ratio,  # that of the encoder, as in the official code
            projection_positions=s["pos_encoding"],
            dim=s["dim_att_dec"],
            num_layers=s["num_decoder_layers"],
            num_heads=s["num_heads_dec"],
            mlp_dim=s["dim_att_dec"] * ratio_dec,
            vocab_size=s["vocab_size"],
            max_len=s["max_seq_len"],
            decoder_positions=s["pos_encoding_dec"],
            tie_embeddings=s["shared_decoder_embedding"],
            output_bias=s["decoder_output_bias"],
            drop_path=s["drop_path"],
            drop_units=s["drop_units"],
            drop_attention=s["drop_att"],
        )
    except KeyError as error:
        raise UserError(f"the official settings have no {error.args[0]!r} in 'model'") from error
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"the official settings describe no model: {one_line(error)}") from error


def vocabulary(settings: dict, num_bins: int | None = None) -> Vocabulary:
    """Token layout of official `model` settings.

    Args:
        num_bins: coordinate bins; None = 1000, or as many as the layout has room for.
    """
    s = COMMON | settings
    try:
        coord0, text0 = s["coord_vocab_shift"], min(s["text_vocab_shift"], s["vocab_size"])
        if num_bins is None:
            num_bins = min(Vocabulary().num_bins, text0 - coord0)
        base = Vocabulary(num_bins=num_bins, coord0=coord0, text0=text0)
        return replace(base, num_text=s["vocab_size"] - text0)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"the official settings describe no vocabulary: {one_line(error)}"
        ) from error
