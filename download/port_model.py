"""Converts the models of two small PyTorch ports of Pix2Seq: their tensors, classes and tokens.

Both ports save a timm encoder and an `nn.TransformerDecoder`, the same modules under the same
names. They hide padding from attention, this model does not: only what follows a PAD token differs,
and nothing is read there.
"""

import argparse
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from dataset.batch import Resizing
from dataset.voc_detection import VOC_CLASSES
from download.official_model import coco_categories
from models import ModelConfig, build_model, save_model
from tokenizer.detection import TOKENS_PER_OBJECT, DetectionTokenizer
from tokenizer.vocabulary import Vocabulary
from utils.categories import Categories
from utils.errors import UserError, one_line
from utils.files import read_json, read_text, split_lines

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
COCO_CLASSES = 91  # ids 0 to 90


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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pth file; nothing but tensors is unpickled."""
    if not path.is_file():
        raise UserError(f"no weight file at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it refuses in the end
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose text tells how to run it all the same
        raise UserError(
            f"{path} contains more than tensors, and the rest might run code; write it "
            "with torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # bytes of another kind fail in any way
        reason = one_line(error)
        raise UserError(f"{path} is not a valid file of torch.save: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(
            f"{path} must hold a state dict of tensors (torch.save(model.state_dict()))"
        )
    return {name: v.float() if v.is_floating_point() else v for name, v in content.items()}


def timm_name(name: str) -> str:
    """Today's timm name of a model; timm still builds those of older versions, not all else."""
    try:
        timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        if timm.is_model(name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the name is deprecated
                cfg = timm.create_model(name).pretrained_cfg
            return ".".join(filter(None, (cfg["architecture"], cfg["tag"])))
    return name


def read_class_names(path: Path | None, num_classes: int) -> dict[int, str]:
    """The port's class number (0 for its first class token) -> name."""
    if path is None and num_classes == COCO_CLASSES:
        return coco_categories().names
    if path is None:
        known = num_classes == len(VOC_CLASSES)
        return dict(enumerate(VOC_CLASSES if known else [f"class {i}" for i in range(num_classes)]))
    advice = "name another file with --class-names"
    try:
        if path.suffix != ".json":
            lines = map(str.strip, split_lines(read_text(path, advice)))
            return dict(enumerate(filter(None, lines)))
        rows = read_json(path, advice)
        if "categories" in rows:
            return {int(row["id"]): str(row["name"]) for row in rows["categories"]}
        return {int(i): str(name) for i, name in rows.items() if name != "N/A"}  # COCO's gaps
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read class names from {path}: {error}") from error


def read_categories(path: Path | None, num_classes: int) -> tuple[Categories, int]:
    """The classes, and the class id of the first class token: ids start at 1."""
    names = read_class_names(path, num_classes)
    if not names or min(names) < 0 or max(names) >= num_classes:
        have = f"{min(names)} to {max(names)}" if names else "none"
        raise UserError(f"class numbers must be 0 to {num_classes - 1}, {path} has {have}")
    first_label = 1 if 0 in names else 0
    names = {number + first_label: name for number, name in names.items()}
    try:
        return Categories(names, {i: i for i in names}), first_label
    except ValueError as error:
        raise UserError(f"--num-classes: {error}") from error


def check_sizes(args: argparse.Namespace, sizes: dict[str, int]) -> None:
    """What was said on the command line must be what the tensors say."""
    found = {"dim": sizes["dim"], "layers": sizes["num_layers"], "max_len": sizes["max_len"] + 1}
    for name, value in found.items():
        if getattr(args, name) not in (None, value):
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {getattr(args, name)}, the tensors say {value}")
    if sizes["max_len"] < TOKENS_PER_OBJECT:
        raise UserError(f"a decoder of {sizes['max_len']} positions has no room for one object")


def vocabulary(args: argparse.Namespace, size: int, first_label: int) -> Vocabulary:
    """The port's token layout; `size` is the number of rows of its embedding."""
    wanted = args.num_bins + args.num_classes + 3  # with BOS, EOS and PAD
    if size < wanted or (args.port == "moein" and size != wanted):
        raise UserError(
            f"the embedding has {size} tokens, {args.port} with --num-bins {args.num_bins} and "
            f"--num-classes {args.num_classes} has {wanted}" + (" or more" * (args.port != "moein"))
        )
    try:
        return Vocabulary.simple(
            args.num_bins,
            args.num_classes,
            first_label=first_label,
            size=size,
            multi_task=args.task == "multi",
        )
    except ValueError as error:
        raise UserError(f"no layout for these sizes: {error}") from error


def convert(args: argparse.Namespace) -> Vocabulary:
    """Writes the weight file."""
    state = read_weights(args.weights)
    sizes = decoder_sizes(state)
    check_sizes(args, sizes)
    categories, first_label = read_categories(args.class_names, args.num_classes)
    vocab = vocabulary(args, sizes["vocab_size"], first_label)
    try:
        config = ModelConfig(
            encoder=timm_name(args.encoder),
            image_size=tuple(args.image_size * 2)[:2],
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
            projection="average",
            num_heads=args.heads,
            tie_embeddings=False,
            decoder_norm="post",
            drop_path=0.0,
            drop_attention=0.1,
            **sizes,
        )
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"no model of these sizes: {error}") from error
    model = build_model(config)
    prefix = getattr(model.encoder.backbone, "num_prefix_tokens", 0)
    if prefix != 1:
        raise UserError(
            f"encoder {config.encoder} puts {prefix} tokens in front of the image's, the ports "
            "drop exactly one; name the encoder that the weights were trained with"
        )
    model.load_state_dict(to_state_dict(state, model.state_dict(), config.num_layers))
    tokenizer = DetectionTokenizer(vocab, config.max_len // TOKENS_PER_OBJECT, noise=False)
    resizing = Resizing(
        antialias=False,
        pad_value=args.pad_value[0] if len(args.pad_value) == 1 else args.pad_value,
        centered=True,
    )
    meta = {
        "vocabulary": vocab.to_json(),
        "categories": categories.to_json(),
        "resize_mode": args.resize_mode,
        "resizing": vars(resizing),
        "tasks": {tokenizer.task: tokenizer.settings()},
    }
    save_model(model, args.out, meta=meta)
    return vocab
