"""Prepares a model for inference: number type, decoding mode, a copy of the encoder that is faster.

The copy has batch norms folded into convolutions and, if asked, linear layers in 8 bits.

`Pix2Seq.prepare` loads this file when it is called: encoding and decoding do without it.
"""

import logging
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.decode_step import agrees_with_modules, choose_mode
from models.decode_step.native import quantize
from utils.errors import UserError

TRIAL_SIDE = 64  # pixels of the image that shows whether batch norms can be folded
FOLD_TOLERANCE = 1e-4  # of the largest number, between a model and one with folded batch norms


def prepare(
    model: nn.Module, dtype: torch.dtype, mode: str, *, fold: bool, encoder_int8: bool
) -> None:
    """Sets number type, decoding mode and fast encoder of a `Pix2Seq`, see its `prepare`."""
    int8 = dtype == torch.int8
    if encoder_int8:
        _check_encoder_int8(model, int8)
    model.decode_mode, model.decoder.int8, model.fast_encoder = "plain", {}, ()
    for module in (model.encoder, model.projection, model.decoder):
        module.to(torch.float32 if int8 else dtype)
    model.decode_mode = _prepare_decoder(model.decoder, mode, int8=int8)
    folds = fold and model.dtype == torch.float32
    fast = _folded_encoder(model.encoder, model.device) if folds else None
    if encoder_int8:
        fast = quantize_encoder(fast or model.encoder)
    model.fast_encoder = () if fast is None else (fast,)
    if model.decode_mode == "compiled":
        (fast or model.encoder).compile()


def _prepare_decoder(decoder: nn.Module, choice: str, *, int8: bool) -> str:
    """Rounds the weights for int8 and returns the mode that a setting means.

    Mode "native" is left to a decoder that computes something else, or refused.

    Raises:
        UserError: see `choose_mode`; or "native" was asked for, or int8. The weights stay.
    """
    mode = choose_mode(decoder, choice, int8=int8)
    before = [parameter.detach().clone() for parameter in decoder.parameters()] if int8 else []
    decoder.int8 = quantize(decoder) if int8 else {}
    if mode != "native" or agrees_with_modules(decoder):
        return mode
    if choice == "auto" and not int8:
        return "plain"
    decoder.int8 = {}
    for parameter, value in zip(decoder.parameters(), before, strict=False):
        parameter.data.copy_(value)
    raise UserError(
        "the native step does not compute what this decoder's forward computes; "
        "set decode_mode=plain and infer_dtype=float32 or bfloat16"
    )


def _check_encoder_int8(model: nn.Module, int8: bool) -> None:
    """Raises: `UserError`: this model, or this installation, has no encoder in 8 bits."""
    problem = ""
    if not int8 or model.device.type != "cpu":
        problem = "is for infer_dtype=int8 on a CPU;"
    elif not any(isinstance(module, nn.Linear) for module in model.encoder.modules()):
        problem = "is for encoders with linear layers, and this one has none;"
    elif find_spec("torchao") is None:
        problem = "needs the package torchao: pip install torchao, or"
    if problem:
        raise UserError(f"encoder_int8 {problem} set encoder_int8=false")


def quantize_encoder(encoder: nn.Module) -> nn.Module:
    """A copy whose linear layers compute in 8 bits; all other parameters are shared.

    Weights get a scale per output channel when the copy is made, activations one per token while it
    computes. What a linear layer returns is float32 again.
    """
    notices = logging.getLogger("torch.utils._pytree")
    level = notices.level
    notices.setLevel(logging.ERROR)  # what torch says is for the authors of torchao
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
        from torchao.utils import should_reduce_range
    finally:
        notices.setLevel(level)
    copy = deepcopy(encoder, {id(t): t for t in (*encoder.parameters(), *encoder.buffers())})
    reduce_range = should_reduce_range(torch.device("cpu"))  # without VNNI, sums would overflow
    quantize_(
        copy,
        Int8DynamicActivationInt8WeightConfig(set_inductor_config=False, reduce_range=reduce_range),
    )
    return copy


def _folded_encoder(encoder: nn.Module, device: torch.device) -> nn.Module | None:
    """The encoder with folded batch norms; None if it has none, or may not be folded."""
    if not hasattr(encoder, "features"):
        return None
    generator = torch.Generator("cpu").manual_seed(0)
    options = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    image = torch.rand(1, 3, TRIAL_SIDE, TRIAL_SIDE, **options).to(device)
    exact = {"enabled": torch.backends.cudnn.enabled, "allow_tf32": False}
    with torch.backends.cudnn.flags(**exact):  # or a GPU rounds more than the comparison allows
        return fold_batch_norms(encoder, lambda one: one.features(image))


@torch.no_grad()
def fold_batch_norms(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> nn.Module | None:
    """A copy for inference, with batch norms folded into the convolutions before them.

    A first run shows which these are, a second one that the numbers stay. All other parameters are
    shared with `model`.

    Args:
        model: in eval mode.
        run: computes something small with `model` or the copy, through all of its convolutions.

    Returns:
        None where there is nothing to fold, or where the numbers would not stay.
    """
    if model.training or not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        return None
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    copy = deepcopy(model, shared)
    try:
        before, pairs = _pair_norms(copy, run)
        for norm_name, conv_name in pairs.items():
            norm = copy.get_submodule(norm_name)
            conv = fuse_conv_bn_eval(copy.get_submodule(conv_name), norm)
            copy.set_submodule(conv_name, conv.to(memory_format=torch.channels_last))
            more = [m for m in (getattr(norm, n, None) for n in ("drop", "act")) if m is not None]
            copy.set_submodule(norm_name, nn.Sequential(*more))  # timm's norms hold an activation
        after = run(copy)
    except Exception:  # the model is not ours: one that takes no small images, say
        return None
    stays = (after - before).abs().max() <= FOLD_TOLERANCE * before.abs().max()
    return copy if pairs and stays else None


def _pair_norms(
    model: nn.Module, run: Callable[[nn.Module], Tensor]
) -> tuple[Tensor, dict[str, str]]:
    """Runs a model and notes which batch norms take the very tensor that a convolution made.

    Returns:
        what `run` returns, and name of the norm -> name of the convolution.
    """
    made: list[tuple[str, Tensor]] = []  # held, so that no other tensor takes the place of one
    pairs: dict[str, str] = {}

    def note(name: str, _, inputs: tuple[Tensor], output: Tensor) -> None:
        made.append((name, output))

    def pair(name: str, _, inputs: tuple[Tensor]) -> None:
        found = [conv for conv, tensor in made if tensor is inputs[0]]
        if found:
            pairs[name] = found[-1]

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(partial(note, name)))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(partial(pair, name)))
    output = run(model)
    for hook in hooks:
        hook.remove()
    return output, pairs
