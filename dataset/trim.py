"""Batches without the tail that no loss looks at."""

from torch import Tensor

TOKENS = ("input_tokens", "target_tokens", "token_weights")


def trim(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cuts the sequences behind the last target that carries weight in any of them.

    Attention is causal, so nothing that is learned sees what comes later. By their official
    weights most tasks weigh padding, and nothing is cut.

    Args:
        batch: its `TOKENS` are (B, T) or (B, N, T).
    """
    weighted = batch["token_weights"].flatten(0, -2).any(0).nonzero()  # (positions, 1)
    if not len(weighted):
        return batch
    end = int(weighted.max()) + 1
    return batch | {name: batch[name][..., :end].contiguous() for name in TOKENS}
