"""Converts the official model: its settings, its categories and its variables.

The categories are the 80 of COCO 2017, with the gaps in their ids. Checkpoint variables become the
state dict of our model, every one in its place and shape.

Layouts: official dense kernels are (in, out), attention kernels have heads (in, nh, hd) or
(nh, hd, out), convolutions are (h, w, in, out). Ours fuses queries, keys and values.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from download.official_settings import COMMON, OPTIONAL, RESNET
from models import ModelConfig, Pix2Seq, build_model
from models.encoder import build_encoder
from tokenizer.vocabulary import Vocabulary
from utils.categories import Categories
from utils.errors import UserError, one_line

NAMES = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat,
10 traffic light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat,
18 dog, 19 horse, 20 sheep, 21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack,
28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee, 35 skis, 36 snowboard, 37 sports ball,
38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard, 43 tennis racket,
44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple,
54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair,
63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse,
75 remote, 76 keyboard, 77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink,
82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier,
90 toothbrush
"""
ROOT, SUFFIX = "model/", "/.ATTRIBUTES/VARIABLE_VALUE"
IGNORED = re.compile(
    r"/\.OPTIMIZER_SLOT/|^(optimizer|save_counter|global_step|_CHECKPOINTABLE_OBJECT_GRAPH)(/|$)"
)

NORM = {"weight": "gamma", "bias": "beta"}
LEAVES = {
    nn.Linear: {"weight": "kernel", "bias": "bias"},
    nn.Conv2d: {"weight": "kernel", "bias": "bias"},
    nn.LayerNorm: NORM,
    nn.BatchNorm2d: NORM | {"running_mean": "moving_mean", "running_var": "moving_variance"},
}
MLP = {
    "mlp_ln": ["mlp/layernorms/0"],
    "mlp.dense1": ["mlp/mlp_layers/0/dense1"],
    "mlp.dense2": ["mlp/mlp_layers/0/dense2"],
}
ENCODER_BLOCK = {
    "attention_ln": ["mha_ln"],
    "attention.qkv": ["mha/_query_dense", "mha/_key_dense", "mha/_value_dense"],
    "attention.out": ["mha/_output_dense"],
    **MLP,
}
DECODER_LAYER = {
    "self_ln": ["self_ln"],
    "self_attention.qkv": ["self_mha/_query_dense", "self_mha/_key_dense", "self_mha/_value_dense"],
    "self_attention.out": ["self_mha/_output_dense"],
    "cross_ln": ["cross_ln"],
    "cross_attention.q": ["cross_mha/_query_dense"],
    "cross_attention.kv": ["cross_mha/_key_dense", "cross_mha/_value_dense"],
    "cross_attention.out": ["cross_mha/_output_dense"],
    **MLP,
}
RESNET_BLOCK = {
    "conv1": ["conv_relu_dropblock_layers/0/conv2d"],
    "bn1": ["conv_relu_dropblock_layers/1/bn"],
    "conv2": ["conv_relu_dropblock_layers/3/conv2d"],
    "bn2": ["conv_relu_dropblock_layers/4/bn"],
    "conv3": ["conv_relu_dropblock_layers/6/conv2d"],
    "bn3": ["conv_relu_dropblock_layers/7/bn"],
    "downsample.0": ["projection_layers/0/conv2d"],
    "downsample.1": ["projection_layers/1/bn"],
}
MODULES = {
    "encoder.stem_conv": ["encoder/stem_conv"],
    "encoder.stem_projection": ["encoder/stem_projection"],
    "encoder.resnet.stem_conv": ["encoder/resnet/initial_conv_relu_max_pool/0/conv2d"],
    "encoder.resnet.stem_bn": ["encoder/resnet/initial_conv_relu_max_pool/2/bn"],
    "encoder.transformer.stem_ln": ["encoder/stem_ln"],
    "encoder.transformer.output_ln": ["encoder/output_ln"],
    "projection.proj": ["proj"],
    "projection.proj_ln": ["proj_ln"],
    **{f"projection.{ours}": [f"proj_{theirs[0]}"] for ours, theirs in MLP.items()},
    "decoder.output_ln": ["decoder/output_ln"],
}
REPEATED = [  # our module with its numbers, theirs, what is inside
    (
        r"encoder\.transformer\.blocks\.(\d+)",
        "encoder/transformer_encoder/enc_layers/{}",
        ENCODER_BLOCK,
    ),
    (
        r"encoder\.resnet\.groups\.(\d+)\.(\d+)",
        "encoder/resnet/block_groups/{}/layers/{}",
        RESNET_BLOCK,
    ),
    (r"decoder\.layers\.(\d+)", "decoder/decoder/dec_layers/{}", DECODER_LAYER),
]


ENCODERS = {"c1": "official_vit", "standard": "official_resnet", "c4": "official_resnet_c"}


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


def coco_categories() -> Categories:
    rows = [entry.split(maxsplit=1) for entry in NAMES.replace("\n", " ").split(",")]
    return Categories.from_coco([{"id": int(i), "name": name.strip()} for i, name in rows])


@dataclass(frozen=True)
class Source:
    """The official variables that make one tensor of ours."""

    variables: tuple[str, ...]  # without `model/` and suffix; joined along our first axis
    official: tuple[int, ...]  # shape of each of them
    ours: tuple[int, ...]  # shape that each becomes

    def convert(self, values: np.ndarray) -> np.ndarray:
        """One official variable in our layout."""
        if len(self.ours) == 4:
            return values.transpose(3, 2, 0, 1)
        if self.variables[0].endswith("/kernel"):
            return values.reshape(self.ours[::-1]).T
        return values.reshape(self.ours)


def is_model_variable(key: str) -> bool:
    """Whether a checkpoint key is part of the model; the others belong to its training."""
    return not IGNORED.search(key)


def to_state_dict(
    variables: Mapping[str, np.ndarray], config: ModelConfig, *, partial: bool = False
) -> dict[str, Tensor]:
    """The state dict of `build_model(config)` from the variables of a checkpoint.

    Args:
        variables: checkpoint key -> values, as `read_checkpoint` gives them; gradients by the same
            keys are gradients of our tensors.
        partial: leave out tensors whose variables are not given, instead of refusing.

    Raises:
        UserError: a variable is missing, has no place in this model or has another shape; it is
            named.
    """
    with torch.device("meta"):
        model = build_model(config)
    places = sources(model)
    given = {key.removesuffix(SUFFIX): v for key, v in variables.items() if is_model_variable(key)}
    _check(places, {key: np.shape(values) for key, values in given.items()}, partial)
    if partial:
        places = {k: s for k, s in places.items() if all(ROOT + v in given for v in s.variables)}
    state = {}
    for name, tensor in model.state_dict().items():
        if name in places:
            source = places[name]
            parts = [source.convert(np.asarray(given[ROOT + v])) for v in source.variables]
            values = np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
            state[name] = torch.from_numpy(values)
        elif not partial:  # a batch norm's count of batches, which nothing reads
            assert name.endswith("num_batches_tracked"), f"{name} has no official counterpart"
            state[name] = torch.zeros_like(tensor, device="cpu")
    return state


def _check(places: dict[str, Source], given: dict[str, tuple[int, ...]], partial: bool) -> None:
    """Raises a UserError that names the first variable that does not fit."""
    wanted = {ROOT + v: source.official for source in places.values() for v in source.variables}
    missing = sorted(wanted.keys() - given.keys())
    if missing and not partial:
        raise UserError(
            f"{len(missing)} variables of this model are not in the checkpoint, {missing[0]} "
            "first; is it another variant?"
        )
    extra = sorted(given.keys() - wanted.keys())
    if extra:
        raise UserError(
            f"{len(extra)} variables of the checkpoint have no place in this model, {extra[0]} "
            "first; is it another variant?"
        )
    for key, shape in sorted(given.items()):
        if tuple(shape) != wanted[key]:
            raise UserError(
                f"{key} has the shape {tuple(shape)} in the checkpoint, {wanted[key]} in this "
                "model; is it another variant, task or image size?"
            )


def resize_positions(
    state: dict[str, Tensor], config: ModelConfig, size: tuple[int, int]
) -> tuple[dict[str, Tensor], ModelConfig]:
    """The same weights for another input size: learned 2-D positions are interpolated.

    Computed positions span the picture at any size, so they follow by themselves.

    Args:
        size: (H, W) of the new model input.

    Returns:
        A new state dict and its config.
    """
    resized = replace(config, image_size=size)
    with torch.device("meta"):
        old, new = (build_encoder(c).grid for c in (config, resized))
    if min(new) < 1:
        raise UserError(f"input size {size} is less than one patch; use a larger --resize")
    out = dict(state)
    for name in ("encoder.transformer.positions", "projection.positions"):
        if name in state:
            table = state[name][None]  # (1, S, D)
            out[name] = resample_abs_pos_embed(table, list(new), list(old), 0)[0].contiguous()
    return out, resized


def sources(model: Pix2Seq) -> dict[str, Source]:
    """Our tensor -> where it comes from, for all of them but counters of batches."""
    out = dict(_embeddings(model))
    for name, module in model.named_modules():
        leaves = next((table for kind, table in LEAVES.items() if isinstance(module, kind)), None)
        if leaves is None:
            continue
        objects = _official_objects(name)
        heads = model.config.encoder_heads if name.startswith("encoder") else model.config.num_heads
        for leaf, official_leaf in leaves.items():
            tensor = getattr(module, leaf)
            if tensor is None:
                continue
            ours = (tensor.shape[0] // len(objects), *tensor.shape[1:])
            official = _official_shape(objects[0], ours, heads)
            names = tuple(f"{path}/{official_leaf}" for path in objects)
            out[f"{name}.{leaf}"] = Source(names, official, ours)
    return out


def _embeddings(model: Pix2Seq) -> Iterator[tuple[str, Source]]:
    """Tensors that are parameters of their own."""
    encoder = "vit" if model.config.encoder == "official_vit" else "rest"
    inputs = "token_embedding" if model.config.tie_embeddings else "inp_token_embedding"
    names = {
        "encoder.transformer.positions": f"encoder/{encoder}.Svis_pos_embedding",
        "encoder.transformer.cls_token": f"encoder/{encoder}.Scls_token_embedding",
        "projection.positions": "proj.Svis_pos_embedding",
        "decoder.token_embedding": f"decoder/ar_decoder.S{inputs}",
        "decoder.output_embedding": "decoder/ar_decoder.Soutp_token_embedding",
        "decoder.output_bias": "decoder/ar_decoder.Soutp_bias",
        "decoder.positions": "decoder/ar_decoder.Sseq_pos_embedding",
    }
    for name, parameter in model.named_parameters():
        if name in names:
            shape = tuple(parameter.shape)
            yield name, Source((names[name],), shape, shape)


def _official_objects(name: str) -> list[str]:
    """Their modules for one of ours."""
    for pattern, path, inside in REPEATED:
        found = re.match(pattern + r"\.(.+)", name)
        if found:
            *numbers, rest = found.groups()
            return [f"{path.format(*numbers)}/{part}" for part in inside[rest]]
    return MODULES[name]


def _official_shape(path: str, ours: tuple[int, ...], heads: int) -> tuple[int, ...]:
    """Shape of a variable of the module `path` that becomes the shape `ours`."""
    if len(ours) == 4:
        return (ours[2], ours[3], ours[1], ours[0])
    shape = ours[::-1]  # (in, out), or (out,)
    if path.endswith("_output_dense"):
        return shape if len(shape) == 1 else (heads, shape[0] // heads, shape[1])
    if path.endswith("_dense"):
        return (*shape[:-1], heads, shape[-1] // heads)
    return shape
