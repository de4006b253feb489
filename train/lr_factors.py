"""Learning rates that differ within a model: a pretrained encoder learns slower, its first layers
slowest."""

from timm.models import group_parameters
from torch import nn

from models import Pix2Seq

BEHIND_BLOCKS = ("norm", "fc_norm", "head")  # which some encoders count as a layer of its own


def lr_factors(model: Pix2Seq, *, encoder: float = 1.0, layer_decay: float = 1.0) -> dict:
    """Name of a parameter -> factor of its rate; names that are not there have factor 1.

    Args:
        encoder: factor of the whole encoder.
        layer_decay: each block of the encoder learns at this factor of the one above it, the last
            one (and the norm behind it) at that of the encoder, and what comes before the blocks
            as one block more.

    Raises:
        ValueError: a factor that cannot be, or an encoder whose layers are not known.
    """
    if not encoder > 0:
        raise ValueError(f"encoder_lr_factor must be above 0, got {encoder}")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be above 0 and at most 1, got {layer_decay}")
    if encoder == layer_decay == 1:
        return {}
    names = [name for name, _ in model.encoder.named_parameters()]
    if layer_decay == 1:
        return {f"encoder.{name}": encoder for name in names}
    prefix, module = _layered(model.encoder)
    layers = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    top = max(layer for name, layer in layers.items() if name.split(".")[0] not in BEHIND_BLOCKS)
    return {
        f"encoder.{prefix}{name}": encoder * layer_decay ** max(top - layer, 0)
        for name, layer in layers.items()
    }


def _layered(encoder: nn.Module) -> tuple[str, nn.Module]:
    """The module that says which layer a parameter belongs to, and the prefix of its names."""
    for prefix, module in (("", encoder), ("backbone.", getattr(encoder, "backbone", None))):
        if hasattr(module, "group_matcher"):
            return prefix, module
    raise ValueError(
        "layer_decay is not known for this encoder (timm tells no layers of feature pyramids); "
        "leave encoder_stride out, or use encoder_lr_factor"
    )
