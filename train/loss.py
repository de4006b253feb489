"""The one loss: token-weighted cross entropy (official `compute_loss`)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.loader import Batch
from utils.pixels import pad_batch


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum of w * CE over sum of w; there is no other masking.

    Args:
        logits: (M, V) any float type; computed in float32.
        targets, weights: (M,)
    """
    loss = F.cross_entropy(logits.float(), targets, reduction="none")  # (M,)
    return (loss * weights).sum() / (weights.sum() + 1e-9)


def batch_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Loss of one task's batch, on the device the batch is on.

    Only positions that carry weight are projected onto the vocabulary.
    """
    images = pad_batch(batch.images, batch.unpadded)
    supervised = batch.token_weights > 0  # (B, T) or (B, N, T)
    logits = model(images, batch.input_tokens, supervised)  # (M, V)
    return weighted_cross_entropy(
        logits, batch.target_tokens[supervised], batch.token_weights[supervised]
    )


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Mixed precision of `dtype`, or none."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
