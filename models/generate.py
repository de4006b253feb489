"""Autoregressive decoding: encode once, then one token per step through the cache.

Beam search keeps the best continuations instead of one greedy guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.decode_step.modes import next_logits
from models.decoder import Cache, Decoder

LOOK_EVERY = 8  # tokens between two looks at what is finished, on a GPU
FEW = 64  # ids that mostly hold the nucleus
REMOVED = -1e10  # logit of a token that truncation removed, as in the official code


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is picked: top_k = 1 is greedy, top_k = 0 and top_p = 1 switch truncation off."""

    temperature: float = 1.0
    top_k: int = 1
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}; greedy is top_k=1")
        if self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise ValueError(
                f"top_k must be >= 0 and top_p in [0, 1], got top_k={self.top_k}, "
                f"top_p={self.top_p}"
            )


def top_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Truncates to the k best, then to the nucleus of mass p (official `top_logits`).

    The nucleus holds the tokens whose cumulative probability, themselves included, is at most
    `top_p`, and always the best one; ties at either threshold are all kept.

    Args:
        logits: (R, V)

    Returns:
        (R, V), `REMOVED` where a token is out.
    """
    if top_k > 0:
        worst = logits.topk(min(top_k, logits.shape[1]), dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < worst, REMOVED)
    if top_p < 1:
        ordered, upto = leading(logits, top_p)
        inside = upto <= top_p
        inside[:, 0] = True
        worst = ordered.masked_fill(~inside, torch.inf).amin(1, keepdim=True)
        logits = logits.masked_fill(logits < worst, REMOVED)
    return logits


def leading(logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The best logits of each row in falling order, and their cumulative probabilities.

    As many as it takes for more than `top_p` in every row: on a CPU a few are tried first, because
    sorting all of them can take as long as decoding.
    """
    probs, num_ids = logits.softmax(1), logits.shape[1]
    if logits.device.type == "cpu" and num_ids > FEW:
        ordered, ids = logits.topk(FEW, dim=1)
        upto = probs.gather(1, ids).cumsum(1)
        if (upto[:, -1] > top_p).all():
            return ordered, upto
    ordered, ids = logits.sort(dim=1, descending=True)
    return ordered, probs.gather(1, ids).cumsum(1)


def sample(logits: Tensor, options: SamplingOptions, uniforms: Tensor | None = None) -> Tensor:
    """(R, V) -> (R,) token ids; of equal best logits greedy takes the first.

    Args:
        uniforms: (R,) numbers in [0, 1) that choose the tokens; greedy needs none.
    """
    if options.top_k == 1:
        return logits.argmax(1)
    kept = top_logits(logits / options.temperature, options.top_k, options.top_p)
    return draw(kept.softmax(1), uniforms)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """(R, V) -> (R,) indices: a number per row is looked up in the cumulative distribution.

    `torch.multinomial` makes R * V random numbers, which took a tenth of an inference on a CPU. In
    exchange what is less probable than 3e-8 is never drawn.

    Args:
        uniforms: (R,) float32 in [0, 1): below 1 by 2^-24 at least, which keeps the product below
            the last sum.

    Raises:
        ValueError: on a CPU, where looking costs nothing: a row is nan, or zero everywhere.
    """
    upto = probs.cumsum(1)
    if upto.device.type == "cpu" and not (upto[:, -1] > 0).all():
        raise ValueError("no token can be drawn: probabilities are nan, or the grammar allows none")
    drawn = torch.searchsorted(upto, uniforms[:, None] * upto[:, -1:], right=True)[:, 0]
    return drawn.clamp(max=probs.shape[1] - 1)


def uniforms_of_images(
    prompt: Tensor,
    image_ids: Sequence[int | str] | None = None,
    *,
    seed: int = 0,
    num_samples: int = 1,
    num_steps: int,
) -> Tensor:
    """The random numbers of `generate` that belong to an image and a prompt, whatever the batch.

    A picture gives the same answer in every batch, at every place in it, beside any other prompts
    and on any number of processes.

    Args:
        prompt: (B, P) or (B, N, P) ids, N prompts per image.
        image_ids: (B,) what tells the images apart; None = all have the same numbers.
        seed: other seeds give other numbers.
        num_steps: numbers per row, at least the tokens to be generated.

    Returns:
        (B * N * num_samples, num_steps) float32 in [0, 1), samples fastest, on the device of
        `prompt`.
    """
    rows = prompt.reshape(len(prompt), -1, prompt.shape[-1]).tolist()  # B lists of N prompts
    image_ids = [0] * len(rows) if image_ids is None else image_ids
    numbers = [
        np.random.default_rng([seed % 2**64, _number_of(image_id), *ids]).random(
            (num_samples, num_steps), np.float32
        )
        for image_id, prompts in zip(image_ids, rows, strict=True)
        for ids in prompts
    ]
    joined = np.concatenate(numbers) if numbers else np.zeros((0, num_steps), np.float32)
    return torch.from_numpy(joined).to(prompt.device)


def _number_of(image_id: int | str) -> int:
    """A number for any image id; the same in every process, unlike `hash`."""
    if isinstance(image_id, str):
        return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big")
    return int(image_id) % 2**64


@contextmanager
def no_cudnn_attention() -> Iterator[None]:
    """Attention by other kernels than those of cuDNN, in the whole process.

    torch prefers them for half types on newer GPUs, but they are planned anew, which takes longer
    than many steps, for every length of the cache.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@torch.no_grad()
@no_cudnn_attention()
def generate(
    decoder: Decoder,
    memory: Tensor,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    eos_id: int | None = None,
    options: SamplingOptions = SamplingOptions(),
    num_samples: int = 1,
    allowed: Callable[[Tensor], Tensor] | None = None,
    suppress: Sequence[int] = (),
    score_range: tuple[int, int] | None = None,
    unscored_range: tuple[int, int] | None = None,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
    mode: str = "plain",
) -> tuple[Tensor, ...]:
    """Continues prompts. Encode an image once, then call this per task and per instance.

    Args:
        memory: (B, S, D) encoded images.
        prompt: (B, P) or (B, N, P) ids, N prompts per image.
        eos_id: a row that says it is finished and says nothing else; None = never stop early.
        num_samples: continuations per prompt.
        allowed: (R, t) generated so far -> (V,) or (R, V) bool, the task's grammar.
        suppress: ids removed before anything else, scores included.
        score_range: [lo, hi) ids, e.g. the classes.
        unscored_range: [lo, hi) ids that hold all that may come, for callers who need no scores:
            only their logits are computed, the log-probs that come back are nan.
        uniforms: (B * N * num_samples, >= max_new_tokens) numbers in [0, 1) that choose the tokens
            (`uniforms_of_images`), column t those of step t; None = drawn from `generator`.
        generator: source of the draws; None = torch's global one.
        mode: how the steps are computed, see `models.decode_step.modes.MODES`.

    Returns:
        tokens, log_probs: (B * N * num_samples, max_new_tokens), samples fastest. Log-probs are
        under the full softmax at temperature 1 without grammar or truncation, so they serve as
        scores. From its first `eos_id` on, a row is `eos_id` at log-prob 0.
        With `score_range` also, of the same shape: the best id of that range at every step and
        its log-prob under the full softmax.
    """
    num_images, prompt = len(memory), prompt.flatten(0, -2).long()  # (B * N, P)
    num_rows = len(prompt) * num_samples
    tokens = prompt.new_full((num_rows, max_new_tokens), 0 if eos_id is None else eos_id)
    log_probs = memory.new_zeros((num_rows, max_new_tokens), dtype=torch.float32)
    best, best_log_probs = tokens.clone(), log_probs.clone()
    rows = torch.arange(num_rows, device=prompt.device)  # of the results, those still decoded
    done = torch.zeros_like(rows, dtype=torch.bool)
    part = slice(*(unscored_range or (None,)))
    first_id = part.start or 0
    suppress = [
        i - first_id for i in suppress if unscored_range is None or i in range(*unscored_range)
    ]
    suppress = torch.as_tensor(list(suppress), dtype=torch.long, device=prompt.device)
    if uniforms is None and options.top_k != 1:
        shape = num_rows, max_new_tokens
        uniforms = torch.rand(shape, generator=generator, device=prompt.device)
    logits, cache = read_prompt(decoder, memory, prompt, num_samples, max_new_tokens, part)
    read = next_logits(decoder, cache, mode)
    for step in range(max_new_tokens):
        if len(suppress):
            logits[:, suppress] = -torch.inf
        choices = logits
        if allowed is not None:
            mask = allowed(tokens[rows, :step])[..., part]
            choices = logits.masked_fill(~mask, -torch.inf)
        token = sample(choices, options, None if uniforms is None else uniforms[rows, step])
        if unscored_range is None:
            scores = logits.log_softmax(1)  # (R, V)
            log_prob = scores.gather(1, token[:, None])[:, 0]
        else:
            token, log_prob = token + first_id, log_probs.new_full(rows.shape, torch.nan)
        if score_range is not None:
            best_log_probs[rows, step], index = scores[:, slice(*score_range)].max(1)
            best[rows, step] = index + score_range[0]
        if eos_id is not None:
            token, log_prob = token.masked_fill(done, eos_id), log_prob.masked_fill(done, 0.0)
            done |= token == eos_id
        tokens[rows, step], log_probs[rows, step] = token, log_prob
        if eos_id is not None and time_to_look(step, done.device):
            if done.all():
                break
            if mode in ("plain", "native") and (kept := rows_to_keep(done, num_images)) is not None:
                chosen, images = kept
                rows, done, token = rows[chosen], done[chosen], token[chosen]
                cache, num_images = cache.select(chosen, images), len(images)
                read = next_logits(decoder, cache, mode)
        if step + 1 < max_new_tokens:
            logits = read(token[:, None], part)  # (R, V)
    return (tokens, log_probs) if score_range is None else (tokens, log_probs, best, best_log_probs)


def read_prompt(
    decoder: Decoder,
    memory: Tensor,
    prompt: Tensor,
    times: int,
    max_new_tokens: int,
    part: slice = slice(None),
) -> tuple[Tensor, Cache]:
    """Reads every prompt once and prepares `times` continuations of it.

    Args:
        prompt: (B * N, P)

    Returns:
        (R, V) float32 logits of what comes first, of a slice of the vocabulary; the cache of all
        R = B * N * times rows.
    """
    cache = decoder.init_cache(memory, *prompt.shape)
    logits = next_logits(decoder, cache)(prompt, part).repeat_interleave(times, dim=0)
    return logits, cache.spread(times, prompt.shape[1] + max_new_tokens)


def time_to_look(step: int, device: torch.device) -> bool:
    """Whether to ask which rows are done: seldom on a GPU, where asking means waiting."""
    return device.type == "cpu" or step % LOOK_EVERY == LOOK_EVERY - 1


def rows_to_keep(done: Tensor, num_images: int) -> tuple[Tensor, Tensor] | None:
    """The rows to go on with, when at most half of the present ones are worth decoding.

    Every image that has unfinished rows keeps as many as the one with the most, finished ones
    among them, for the rows of all images stay equally many.

    Args:
        done: (R,) bool, the rows of an image together.

    Returns:
        rows (R',), images (B',), in order; None while nothing is to be gained.
    """
    of_image = done.unflatten(0, (num_images, -1))  # (B, R / B)
    unfinished = (~of_image).sum(1)  # (B,)
    images = unfinished.nonzero()[:, 0]  # (B',)
    most = int(unfinished.max())
    if 2 * most * len(images) > len(done):
        return None
    first = of_image[images].int().argsort(dim=1, stable=True)[:, :most].sort(1).values
    return (images[:, None] * of_image.shape[1] + first).flatten(), images


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
    read = next_logits(decoder, cache, mode)
    for step in range(max_new_tokens):
        mask = None if allowed is None else allowed(tokens.flatten(0, 1)[:, :step])
        total = live[:, :, None] + _log_probs(logits, mask, suppress).unflatten(0, (images, beams))
        scale = (step + 1) ** length_penalty
        finished.add(tokens, total[:, :, eos_id], scale)  # their tokens are `eos_id` from here on
        total[:, :, eos_id] = -torch.inf
        live, index = total.flatten(1).topk(beams)  # (B, beams)
        parent, token = index // total.shape[2], index % total.shape[2]
        tokens = tokens.take_along_dim(parent[:, :, None], 1)
        tokens[:, :, step] = token
        if (live[:, 0] / scale <= finished.rank[:, -1]).all():  # one device sync per token
            break
        if step + 1 < max_new_tokens:
            reorder(cache, (first_row + parent).flatten())
            logits = read(token.flatten()[:, None])  # (B * beams, V)
    else:
        finished.add(tokens, live, max_new_tokens**length_penalty)
    return finished.tokens, finished.log_probs


def _log_probs(logits: Tensor, mask: Tensor | None, suppress: Sequence[int]) -> Tensor:
    """(R, V) logits -> log-probs, -inf where the grammar does not go."""
    if suppress:
        logits[:, list(suppress)] = -torch.inf
    log_probs = logits.log_softmax(1)
    return log_probs if mask is None else log_probs.masked_fill(~mask, -torch.inf)
