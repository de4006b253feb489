"""Original images to model input, for evaluation and inference."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dataset.geometry import Geometry
from utils.pixels import PAD_VALUE


def letterbox_batch(
    images: Sequence[Tensor],
    geometries: Sequence[Geometry],
    device: torch.device | str = "cpu",
    *,
    pad_value: float | Sequence[float] = PAD_VALUE,
    antialias: bool = True,
) -> Tensor:
    """Sends the uint8 originals to the device and resizes and pads them there.

    Args:
        images: B uint8 (3, h, w) tensors of any sizes.
        geometries: one per image (`Geometry.letterbox`), all with the same model input (H, W).
        pad_value, antialias: see `Resizing`.

    Returns:
        (B, 3, H, W) float32 in [0, 1] on `device`.
    """
    sizes = {geometry.size for geometry in geometries}
    if len(sizes) != 1:
        raise ValueError(f"all geometries must have one model input size, got {sorted(sizes)}")
    out = torch.empty(len(images), 3, *sizes.pop(), device=device)
    out[:] = torch.tensor(pad_value, dtype=out.dtype, device=device).reshape(-1, 1, 1)
    for row, image, geometry in zip(out, images, geometries, strict=True):
        (y, x), (h, w) = geometry.pad, geometry.unpadded
        row[:, y : y + h, x : x + w] = geometry.resize_tensor(
            image.to(device, non_blocking=True), antialias=antialias
        )
    return out
