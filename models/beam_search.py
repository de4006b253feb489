"""Beam search: keeps the best continuations of a prompt instead of one greedy guess."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.decode_step import build_step, no_cudnn_attention
from models.decoder import Cache, Decoder
from models.generate import GenerationRequest, read_prompt


@torch.no_grad()
@no_cudnn_attention()
def beam_search(
    decoder: Decoder,
    memory: Tensor,
    request: GenerationRequest,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The best continuations of one prompt per image.

    At every step the unfinished rows of an image are continued in all ways and the best are kept.
    The search stops when no unfinished row would, at its present length, be among the best
    finished ones.

    Args:
        memory: (B, S, D) encoded images.
        request: its prompt (B, P), `max_new_tokens`, `eos_id`, `allowed`, `suppress` and `mode`;
            nothing is sampled.
        length_penalty: rows are ranked by the sum of their log-probs / length ** this; 0 favours
            short ones, 1 is the mean per token.

    Returns:
        tokens (B, num_beams, max_new_tokens), best first, `eos_id` from the first one on.
        log_probs (B, num_beams), the sum up to and with the first `eos_id`, under the full softmax
        without grammar; -inf if there are fewer continuations than beams.
    """
    prompt, num_steps, eos_id = request.prompt, request.max_new_tokens, request.eos_id
    images, beams = len(prompt), num_beams
    tokens = prompt.new_full((images, beams, num_steps), eos_id)
    sums = memory.new_full((images, beams), -torch.inf, dtype=torch.float32)
    finished = Finished(tokens, sums.clone(), sums.clone())
    sums[:, 0] = 0  # all rows start alike: one is enough
    first_row = torch.arange(images, device=prompt.device)[:, None] * beams  # (B, 1)
    logits, cache = read_prompt(decoder, memory, prompt, beams, num_steps)
    step = build_step(decoder, cache, request.mode)
    for t in range(num_steps):
        # Continue: every row in all ways that the grammar allows.
        new = log_probs_of(logits, tokens.flatten(0, 1)[:, :t], request)  # (B * beams, V)
        total = sums[:, :, None] + new.unflatten(0, (images, beams))  # (B, beams, V)

        # End: rows with `eos_id` leave for the list of finished ones.
        scale = (t + 1) ** length_penalty
        finished.add(tokens, total[:, :, eos_id], scale)  # from column t on `tokens` is `eos_id`
        total[:, :, eos_id] = -torch.inf

        # Keep: the best of all others.
        sums, index = total.flatten(1).topk(beams)  # (B, beams)
        parent, token = index // total.shape[2], index % total.shape[2]
        tokens = tokens.take_along_dim(parent[:, :, None], 1)
        tokens[:, :, t] = token

        # Stop when nothing can improve, or read the kept tokens; the cache follows its rows.
        if (sums[:, 0] / scale <= finished.rank[:, -1]).all():  # one device sync per token
            break
        if t + 1 < num_steps:
            reorder(cache, (first_row + parent).flatten())
            logits = step(token.flatten())  # (B * beams, V)
    else:
        finished.add(tokens, sums, num_steps**length_penalty)
    return finished.tokens, finished.log_probs


def log_probs_of(logits: Tensor, tokens: Tensor, request: GenerationRequest) -> Tensor:
    """(R, V) logits after tokens (R, t) -> log-probs, -inf for tokens outside the grammar."""
    if request.suppress:
        logits[:, list(request.suppress)] = -torch.inf
    log_probs = logits.log_softmax(1)
    if request.allowed is None:
        return log_probs
    return log_probs.masked_fill(~request.allowed(tokens), -torch.inf)


@dataclass
class Finished:
    """The best finished sequences of each image."""

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

    Cross-attention is per image and stays: a row may only be replaced by one of its own image. The
    tensors are written in place, because native steps and CUDA graphs hold their addresses.
    """
    moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
    if not len(moved):
        return
    for layer in cache.layers:
        for values in (layer.k, layer.v):
            values[moved, :, : cache.length] = values[rows[moved], :, : cache.length]
