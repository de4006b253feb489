"""Prepares a model for inference: number type, decoding mode, batch norms folded into convolutions.

`Pix2Seq.prepare` loads this file when it is called: encoding and decoding do without it.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.decode_step import choose_mode
from models.decode_step.native import quantize

TRIAL_SIDE = 64  # pixels of the image that shows whether batch norms can be folded
FOLD_TOLERANCE = 1e-4  # of the largest number, between a model and one with folded batch norms


def prepare(model: nn.Module, dtype: torch.dtype, mode: str, fold: bool) -> None:
    """Sets number type, decoding mode and folded encoder of a `Pix2Seq`, see its `prepare`."""
    int8 = dtype == torch.int8
    for module in (model.encoder, model.projection, model.decoder):
        module.to(torch.float32 if int8 else dtype)
    model.decode_mode = choose_mode(model.decoder, mode, int8=int8)
    model.decoder.int8 = quantize(model.decoder) if int8 else {}
    folds = fold and model.dtype == torch.float32
    model.folded = _folded_encoder(model.encoder, model.device) if folds else ()
    if model.decode_mode == "compiled":
        (model.folded or (model.encoder,))[0].compile()


def _folded_encoder(encoder: nn.Module, device: torch.device) -> tuple[nn.Module, ...]:
    """The encoder with folded batch norms; nothing if it has none, or may not be folded."""
    if not hasattr(encoder, "features"):
        return ()
    generator = torch.Generator("cpu").manual_seed(0)
    options = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    image = torch.rand(1, 3, TRIAL_SIDE, TRIAL_SIDE, **options).to(device)
    folded = fold_batch_norms(encoder, lambda one: one.features(image))
    return () if folded is None else (folded,)


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
