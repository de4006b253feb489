"""Beam search: keeps the best continuations of a prompt instead of one greedy guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.decode_step.modes import build_step
from models.decoder import Cache, Decoder
from models.generate import read_prompt
from models.layers import no_cudnn_attention


@torch.no_grad()
@no_cudnn_attention()
def beam_search(
    decoder: Decoder,
    memory: Tensor,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    eos_id: int,
    num_beams: int,
    length_penalty: float = 1.0,
    allowed: Callable[[Tensor], Tensor] | None = None,
    suppress: Sequence[int] = (),
    mode: str = "plain",
) -> tuple[Tensor, Tensor]:
    """The best continuations of one prompt per image.

    At every step the unfinished rows of an image are continued in all ways and the `num_beams`
    best are kept; those that end leave for the list of finished ones. The search stops when no
    unfinished row would, at its present length, enter that list.

    Args:
        memory: (B, S, D) encoded images.
        prompt: (B, P) ids.
        length_penalty: rows are ranked by the sum of their log-probs / length ** this; 0 favours
            short ones, 1 is the mean per token.
        allowed: (R, t) generated so far -> (V,) or (R, V) bool, the task's grammar.
        suppress: ids removed before anything else, scores included.
        mode: how the steps are computed, see `models.decode_step.modes.MODES`.

    Returns:
        tokens (B, num_beams, max_new_tokens), best first, `eos_id` from the first one on, which is
        missing in a row that used up all tokens; log_probs (B, num_beams), the sum over the tokens
        up to and with the first `eos_id` under the full softmax without grammar, -inf for the rest
        if there are fewer continuations than beams.
    """
    images, beams = len(prompt), num_beams
    tokens = prompt.new_full((images, beams, max_new_tokens), eos_id)
    live = memory.new_full((images, beams), -torch.inf, dtype=torch.float32)
    finished = Finished(tokens, live.clone(), live.clone())
    live[:, 0] = 0  # all rows start alike: one is enough
    first_row = torch.arange(images, device=prompt.device)[:, None] * beams  # (B, 1)
    logits, cache = read_prompt(decoder, memory, prompt, beams, max_new_tokens)
    step = build_step(decoder, cache, mode)
    for t in range(max_new_tokens):
        # Continue: every row in all ways that the grammar allows.
        mask = None if allowed is None else allowed(tokens.flatten(0, 1)[:, :t])
        each = log_probs_of(logits, mask, suppress).unflatten(0, (images, beams))
        total = live[:, :, None] + each  # (B, beams, V)

        # End: rows with `eos_id` leave for the list of finished ones.
        scale = (t + 1) ** length_penalty
        finished.add(tokens, total[:, :, eos_id], scale)  # their tokens are `eos_id` from here on
        total[:, :, eos_id] = -torch.inf

        # Keep: the best of all others.
        live, index = total.flatten(1).topk(beams)  # (B, beams)
        parent, token = index // total.shape[2], index % total.shape[2]
        tokens = tokens.take_along_dim(parent[:, :, None], 1)
        tokens[:, :, t] = token

        # Stop when nothing can improve, or read the kept tokens; the cache follows its rows.
        if (live[:, 0] / scale <= finished.rank[:, -1]).all():  # one device sync per token
            break
        if t + 1 < max_new_tokens:
            reorder(cache, (first_row + parent).flatten())
            logits = step(token.flatten(), slice(None))  # (B * beams, V)
    else:
        finished.add(tokens, live, max_new_tokens**length_penalty)
    return finished.tokens, finished.log_probs


def log_probs_of(logits: Tensor, mask: Tensor | None, suppress: Sequence[int]) -> Tensor:
    """(R, V) logits -> log-probs, -inf where the grammar does not go."""
    if suppress:
        logits[:, list(suppress)] = -torch.inf
    log_probs = logits.log_softmax(1)
    return log_probs if mask is None else log_probs.masked_fill(~mask, -torch.inf)


@dataclass
class Finished:
    """The best rows of each image that have ended."""

    tokens: Tensor  # (B, K, T)
    log_probs: Tensor  # (B, K), -inf where there is none
    rank: Tensor  # (B, K), what they are sorted by

    def add(self, tokens: Tensor, log_probs: Tensor, scale: float) -> None:
        """Further rows (B, K', T) with the sums of their log-probs; only the best K stay."""
        rank = torch.cat([self.rank, log_probs / scale], 1)
        self.rank, index = rank.topk(self.rank.shape[1])  # (B, K)
        self.log_probs = torch.cat([self.log_probs, log_probs], 1).gather(1, index)
        self.tokens = torch.cat([self.tokens, tokens], 1).take_along_dim(index[:, :, None], 1)


def reorder(cache: Cache, rows: Tensor) -> None:
    """Row i of every self-attention cache becomes what row `rows[i]` was.

    Cross-attention is per image and stays: a row may only be replaced by one of its own image.
    """
    moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
    if not len(moved):
        return
    for layer in cache.layers:
        for values in (layer.k, layer.v):
            values[moved, :, : cache.length] = values[rows[moved], :, : cache.length]
