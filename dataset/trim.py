"""Batches without the tail that no loss looks at."""

import numpy as np

TOKENS = ("input_tokens", "target_tokens", "token_weights")


def trim(batch: dict[str, np.ndarray], num_lengths: int = 0) -> dict[str, np.ndarray]:
    """Cuts the sequences behind the last target that carries weight in any of them.

    Attention is causal, so nothing that is learned sees what comes later. By their official
    weights most tasks weigh padding, and nothing is cut.

    Args:
        batch: its `TOKENS` are (B, T) or (B, N, T).
        num_lengths: the cut is rounded up to one of so many lengths, so that shapes come again
            (a compiled model is specialised on them, as is attention on a GPU); 0 = it is exact.
    """
    full = batch["token_weights"].shape[-1]
    weighted = np.flatnonzero(batch["token_weights"].reshape(-1, full).any(0))  # positions
    step = -(-full // num_lengths) if num_lengths else 1
    end = -(-(int(weighted[-1]) + 1) // step) * step if len(weighted) else full
    if end >= full:
        return batch
    return batch | {name: np.ascontiguousarray(batch[name][..., :end]) for name in TOKENS}
