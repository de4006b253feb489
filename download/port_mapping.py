"""Tensors of the small PyTorch ports as ours: a timm encoder and an `nn.TransformerDecoder`.

moein-shariatnia/Pix2Seq and JJJYmmm/Pix2SeqV2-Pytorch save the same modules under the same names.
They hide padding from attention, this model does not: only what follows a PAD token differs, and
nothing is read there.
"""

from collections.abc import Mapping

from torch import Tensor

from utils.errors import UserError

ENCODER = ("encoder.model.", "encoder.backbone.")  # theirs, ours; what follows is timm's
EMBEDDING, POSITIONS = "decoder.embedding.weight", "decoder.decoder_pos_embed"
MEMORY_POSITIONS = "decoder.encoder_pos_embed"
DECODER = {
    EMBEDDING: "decoder.token_embedding",
    "decoder.output.weight": "decoder.output_embedding",
    "decoder.output.bias": "decoder.output_bias",
    POSITIONS: "decoder.positions",
    MEMORY_POSITIONS: "decoder.memory_positions",
}
LAYER = ("decoder.decoder.layers.{}.", "decoder.layers.{}.")
BLOCK = {  # one of theirs may hold the rows of several of ours
    "self_attn.in_proj_": ("self_attention.qkv.",),
    "self_attn.out_proj.": ("self_attention.out.",),
    "multihead_attn.in_proj_": ("cross_attention.q.", "cross_attention.kv."),
    "multihead_attn.out_proj.": ("cross_attention.out.",),
    "linear1.": ("mlp.dense1.",),
    "linear2.": ("mlp.dense2.",),
    "norm1.": ("self_ln.",),
    "norm2.": ("cross_ln.",),
    "norm3.": ("mlp_ln.",),
}
COMPUTED = ("relative_position_index", "attn_mask")  # buffers that old timm versions saved


def decoder_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What a port's tensors say about its decoder, under the names of `ModelConfig`.

    Raises:
        UserError: a tensor that would say it is missing.
    """
    hidden = LAYER[0] + "linear1.weight"
    for name, ndim in ((EMBEDDING, 2), (POSITIONS, 3), (hidden.format(0), 2)):
        if name not in state or state[name].ndim != ndim:
            raise UserError(f"no tensor {name} of {ndim} axes; these are not a port's weights")
    num_layers = 1
    while hidden.format(num_layers) in state:
        num_layers += 1
    vocab_size, dim = state[EMBEDDING].shape
    return {
        "dim": dim,
        "num_layers": num_layers,
        "mlp_dim": len(state[hidden.format(0)]),
        "vocab_size": vocab_size,
        "max_len": state[POSITIONS].shape[1],
    }


def to_state_dict(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], num_layers: int
) -> dict[str, Tensor]:
    """A port's state dict as that of a `Pix2Seq`.

    Args:
        wanted: the state dict to fill, for names and shapes.

    Raises:
        UserError: a tensor is missing, left over or of another shape; the first is named.
    """
    names = _names(wanted, num_layers)
    given = {name for name in state if not name.endswith(COMPUTED)}
    for what, found in (("missing", names.keys() - given), ("left over", given - names.keys())):
        if found:
            raise UserError(
                f"{len(found)} tensors are {what}, {min(found)} first; check --encoder (timm may "
                "have renamed an old model's tensors)"
            )
    out = {}
    for name, ours in names.items():
        tensor, targets = state[name], [wanted[key] for key in ours]
        shape = tuple(targets[0].shape)
        if len(targets) > 1:
            shape = (sum(len(target) for target in targets), *shape[1:])
        batch = (1,) if name in (POSITIONS, MEMORY_POSITIONS) else ()
        if tuple(tensor.shape) != batch + shape:
            raise UserError(
                f"tensor {name} must have the shape {batch + shape} for these sizes, got "
                f"{tuple(tensor.shape)}"
            )
        rows = [len(target) for target in targets]
        pieces = tensor.reshape(shape).split(rows) if len(targets) > 1 else [tensor.reshape(shape)]
        out |= dict(zip(ours, pieces, strict=True))
    return out


def _names(wanted: Mapping[str, Tensor], num_layers: int) -> dict[str, tuple[str, ...]]:
    """Every name that a port's file must have -> ours."""
    theirs, ours = ENCODER
    names = {theirs + key.removeprefix(ours): (key,) for key in wanted if key.startswith(ours)}
    names |= {port: (key,) for port, key in DECODER.items()}
    for i in range(num_layers):
        theirs, ours = (prefix.format(i) for prefix in LAYER)
        for port, keys in BLOCK.items():
            for kind in ("weight", "bias"):
                names[theirs + port + kind] = tuple(ours + key + kind for key in keys)
    return names
