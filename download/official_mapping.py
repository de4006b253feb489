"""Official checkpoint variables -> state dict of our model, every one in its place and shape.

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

from models import ModelConfig, Pix2Seq, build_model
from models.encoder import build_encoder
from utils.errors import UserError

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
