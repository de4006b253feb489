"""Autoregressive decoding: encode once, then one token per step through the cache.

Read `generate` first: it is the whole loop. Its phases follow below, then code that only makes it
faster, then the sampling of a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.decode_step import DecodeStep, build_step, no_cudnn_attention
from models.decoder import Cache, Decoder

CHECK_ENDED_EVERY = 8  # on a GPU: steps between two checks of which rows have ended
NUCLEUS_FIRST_TRY = 64  # this number of best ids usually contains the nucleus
REMOVED = -1e10  # logit of a token that truncation removed, as in the official code


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is sampled: top_k = 1 is greedy; top_k = 0 and top_p = 1 mean no truncation."""

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


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """What to generate.

    Args:
        prompt: (B, P) or (B, N, P) ids, N prompts per image.
        eos_id: token that ends a sequence; later positions repeat it. None = there is none.
        stop: called after every token with what the live rows have so far, a `Generated` of
            (R, t); returns (R,) bool, True = this row ends here.
        num_samples: continuations per prompt.
        allowed: (R, t) generated so far -> (V,) or (R, V) bool, the task's grammar, usually
            `TaskTokenizer.allowed` (tokenizer/). It limits the choice, not the scores.
        suppress: ids that are removed before anything else, from the scores as well.
        score_range: [lo, hi) ids, e.g. the classes: also return the best of them at every step.
        unscored_range: [lo, hi) ids, if no scores are needed: only their logits are computed, and
            all log-probs are nan. It must contain `eos_id` and all ids that `allowed` permits.
        uniforms: (B * N * num_samples, >= max_new_tokens) random numbers in [0, 1) for sampling
            (`uniforms_of_images`), column t for step t; None = drawn from `generator`.
        generator: random generator for sampling; None = torch's global one.
        mode: how the steps are computed, one of `models.decode_step.MODES`.
    """

    prompt: Tensor
    max_new_tokens: int
    eos_id: int | None = None
    stop: Callable[[Generated], Tensor] | None = None
    options: SamplingOptions = SamplingOptions()
    num_samples: int = 1
    allowed: Callable[[Tensor], Tensor] | None = None
    suppress: Sequence[int] = ()
    score_range: tuple[int, int] | None = None
    unscored_range: tuple[int, int] | None = None
    uniforms: Tensor | None = None
    generator: torch.Generator | None = None
    mode: str = "plain"

    def __post_init__(self):
        if self.score_range is not None and self.unscored_range is not None:
            raise ValueError("score_range needs scores, unscored_range computes none; give one")

    @property
    def id_range(self) -> slice:
        """The ids that get logits."""
        return slice(*(self.unscored_range or (0, None)))


@dataclass
class Generated:
    """The continuations of all prompts, R = B * N * num_samples rows.

    The index of a row is (image * N + prompt) * num_samples + sample. After its end, a row repeats
    `eos_id` (0 if there is none) with log-prob 0, also in `best`. Log-probs are those of the full
    softmax at temperature 1, without grammar or truncation, so they can be used as scores.
    """

    tokens: Tensor  # (R, max_new_tokens) int64
    log_probs: Tensor  # (R, max_new_tokens) float32
    best: Tensor | None = None  # (R, max_new_tokens) int64, best id of `score_range` at every step
    best_log_probs: Tensor | None = None  # (R, max_new_tokens) float32, its log-prob

    def as_tuple(self) -> tuple[Tensor, ...]:
        """(tokens, log_probs), and with a `score_range` also (best, best_log_probs)."""
        if self.best is None:
            return self.tokens, self.log_probs
        return self.tokens, self.log_probs, self.best, self.best_log_probs

    def so_far(self, rows: Tensor, num_steps: int) -> Generated:
        """The first steps of the given rows (R',)."""
        return Generated(*(values[rows, :num_steps] for values in self.as_tuple()))


@torch.no_grad()
@no_cudnn_attention()
def generate(decoder: Decoder, memory: Tensor, request: GenerationRequest) -> Generated:
    """Continues prompts. Encode an image once, then call this once per task.

    The instances of an image are its N prompts. The decoder should be in eval mode.

    Args:
        memory: (B, S, D) encoded images.

    Raises:
        ValueError: prompts and images do not fit, or the decoder has too few positions.
    """
    num_steps, id_range, allowed = request.max_new_tokens, request.id_range, request.allowed
    prompt = request.prompt.flatten(0, -2).long()  # (B * N, P)
    may_end = request.eos_id is not None or request.stop is not None
    check_request(decoder, memory, request)

    # Read the prompts; the logits of the first tokens come with them.
    logits, cache = read_prompt(decoder, memory, prompt, request.num_samples, num_steps, id_range)
    step = build_step(decoder, cache, request.mode, id_range)
    live = LiveRows.all_of(logits, len(memory), step)
    out = empty_results(request, len(logits))
    suppressed, uniforms = columns_to_suppress(request), numbers_to_draw(request, len(logits))

    for t in range(num_steps):
        # Filter: suppressed ids leave the scores as well, the grammar only limits the choice.
        if len(suppressed):
            logits[:, suppressed] = -torch.inf  # (R, V)
        choices = logits
        if allowed is not None:
            mask = allowed(out.tokens[live.rows, :t])[..., id_range]
            choices = logits.masked_fill(~mask, -torch.inf)

        # Pick.
        numbers = None if uniforms is None else uniforms[live.rows, t]
        column = sample(choices, request.options, numbers)  # (R,)
        token = id_range.start + column

        # Record, and note which rows end here.
        token = record(out, live, t, token, logits, request)
        if request.stop is not None:
            live.ended |= request.stop(out.so_far(live.rows, t + 1))

        # Stop when all rows have ended, or go on without those that have.
        if may_end and is_time_to_check(t, token.device):
            if live.ended.all():
                break
            token = live.compact(token)

        # Next.
        if t + 1 < num_steps:
            logits = live.step(token)
    return out


# ---- before the loop -------------------------------------------------------------------------


def check_request(decoder: Decoder, memory: Tensor, request: GenerationRequest) -> None:
    """Checks a request before decoding starts."""
    if len(request.prompt) != len(memory):
        raise ValueError(
            f"prompt must have an entry for each of {len(memory)} images, got {len(request.prompt)}"
        )
    needed = request.prompt.shape[-1] + request.max_new_tokens - 1  # the last token is not read
    if needed > decoder.max_len:
        raise ValueError(f"sequence must have at most {decoder.max_len} tokens, got {needed}")


def read_prompt(
    decoder: Decoder,
    memory: Tensor,
    prompt: Tensor,
    num_samples: int,
    max_new_tokens: int,
    id_range: slice = slice(None),
) -> tuple[Tensor, Cache]:
    """Reads every prompt once and prepares `num_samples` continuations of it.

    Args:
        prompt: (B * N, P)
        id_range: the ids that get logits.

    Returns:
        (R, V) float32 logits of the first tokens, and the cache; R = B * N * num_samples.
    """
    cache = decoder.init_cache(memory, num_rows=len(prompt), max_len=prompt.shape[1])
    hidden = decoder(prompt, cache=cache)[:, -1]  # (B * N, D)
    logits = decoder.logits(hidden, id_range).float().repeat_interleave(num_samples, dim=0)
    return logits, cache.spread(num_samples, prompt.shape[1] + max_new_tokens)


def empty_results(request: GenerationRequest, num_rows: int) -> Generated:
    """Result tensors to fill in, initially `eos_id` with log-prob 0."""
    shape, device = (num_rows, request.max_new_tokens), request.prompt.device
    tokens = torch.full(shape, request.eos_id or 0, dtype=torch.long, device=device)
    if request.unscored_range is not None:
        return Generated(tokens, torch.full(shape, torch.nan, dtype=torch.float32, device=device))
    log_probs = torch.zeros(shape, dtype=torch.float32, device=device)
    if request.score_range is None:
        return Generated(tokens, log_probs)
    return Generated(tokens, log_probs, tokens.clone(), log_probs.clone())


def columns_to_suppress(request: GenerationRequest) -> Tensor:
    """Columns of the logits whose ids are suppressed."""
    start, stop = request.id_range.start, request.id_range.stop
    stop = torch.inf if stop is None else stop
    columns = [i - start for i in request.suppress if start <= i < stop]
    return torch.tensor(columns, dtype=torch.long, device=request.prompt.device)


def numbers_to_draw(request: GenerationRequest, num_rows: int) -> Tensor | None:
    """(R, >= max_new_tokens) uniform random numbers for sampling; None for greedy decoding."""
    if request.options.top_k == 1:
        return None
    if request.uniforms is not None:
        return request.uniforms
    shape, device = (num_rows, request.max_new_tokens), request.prompt.device
    return torch.rand(shape, generator=request.generator, device=device, dtype=torch.float32)


# ---- in the loop -----------------------------------------------------------------------------


def record(
    out: Generated,
    live: LiveRows,
    t: int,
    token: Tensor,
    logits: Tensor,
    request: GenerationRequest,
) -> Tensor:
    """Writes step `t` to the results and notes which rows end with it.

    Args:
        token: (R,) what was picked.
        logits: (R, V) before the grammar.

    Returns:
        (R,) what was written: `eos_id`, or 0, in rows that have ended before.
    """
    ended_before = live.ended
    token = token.masked_fill(ended_before, request.eos_id or 0)
    if request.eos_id is not None:
        live.ended = ended_before | (token == request.eos_id)
    out.tokens[live.rows, t] = token
    if request.unscored_range is not None:
        return token
    log_probs = logits.log_softmax(1)  # (R, V)
    of_token = log_probs.gather(1, token[:, None])[:, 0]
    out.log_probs[live.rows, t] = of_token.masked_fill(ended_before, 0.0)
    if request.score_range is not None:
        lo, hi = request.score_range
        best_log_probs, best = log_probs[:, lo:hi].max(1)
        out.best_log_probs[live.rows, t] = best_log_probs.masked_fill(ended_before, 0.0)
        out.best[live.rows, t] = (best + lo).where(~ended_before, token)
    return token


@dataclass
class LiveRows:
    """The rows that are still decoded, grouped by image, with equally many rows per image."""

    rows: Tensor  # (R,) their numbers in the results
    ended: Tensor  # (R,) bool: have ended, but are still here
    num_images: int
    step: DecodeStep  # reads their next tokens

    @classmethod
    def all_of(cls, logits: Tensor, num_images: int, step: DecodeStep) -> LiveRows:
        """All rows of (R, V) logits at the start, when none has ended."""
        rows = torch.arange(len(logits), device=logits.device)
        return cls(rows, torch.zeros_like(rows, dtype=torch.bool), num_images, step)

    def compact(self, token: Tensor) -> Tensor:
        """Removes finished rows if that saves time; returns the tokens (R',) of the others."""
        kept = rows_to_keep(self.ended, self.num_images) if self.step.rows_may_leave else None
        if kept is None:
            return token
        chosen, images = kept
        self.rows, self.ended, self.num_images = self.rows[chosen], self.ended[chosen], len(images)
        self.step = self.step.select(chosen, images)
        return token[chosen]


# ---- only faster: rows that have ended leave --------------------------------------------------


def is_time_to_check(t: int, device: torch.device) -> bool:
    """Whether to check for finished rows; rarely on a GPU, because the check synchronises."""
    return device.type == "cpu" or t % CHECK_ENDED_EVERY == CHECK_ENDED_EVERY - 1


def rows_to_keep(ended: Tensor, num_images: int) -> tuple[Tensor, Tensor] | None:
    """The rows to continue with; None while more than half of them would remain.

    All images must have equally many rows. So every image with unfinished rows keeps as many as the
    image with the most, and some of these may have ended. Of 2 images with 4 rows each, 1 and 0 of
    them unfinished, the first image goes on with 1; with 3 and 1 all stay, for 2 * 3 > 8 / 2.

    Args:
        ended: (R,) bool, the rows of an image together.

    Returns:
        rows (R',), images (B',), in order.
    """
    of_image = ended.unflatten(0, (num_images, -1))  # (B, R / B)
    unfinished = (~of_image).sum(1)  # (B,)
    images = unfinished.nonzero()[:, 0]  # (B',)
    most = int(unfinished.max())
    if 2 * most * len(images) > len(ended):
        return None
    first = of_image[images].int().argsort(dim=1, stable=True)[:, :most].sort(1).values
    return (images[:, None] * of_image.shape[1] + first).flatten(), images


# ---- sampling --------------------------------------------------------------------------------


def sort_best(logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Sorts the best logits of each row: (R, K) in falling order, and cumulative probabilities.

    As many as it takes to exceed `top_p` in every row. On a CPU a few are tried first, because
    sorting all of them can take as long as decoding.
    """
    probs, num_ids = logits.softmax(1), logits.shape[1]
    if logits.device.type == "cpu" and num_ids > NUCLEUS_FIRST_TRY:
        ordered, ids = logits.topk(NUCLEUS_FIRST_TRY, dim=1)
        upto = probs.gather(1, ids).cumsum(1)
        if (upto[:, -1] > top_p).all():
            return ordered, upto
    ordered, ids = logits.sort(dim=1, descending=True)
    return ordered, probs.gather(1, ids).cumsum(1)


def top_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Truncates to the k best, then to the nucleus of mass p (official `top_logits`).

    The nucleus holds the tokens whose cumulative probability, themselves included, is at most
    `top_p`, and always the best one. (Unlike in Hugging Face's, the token that crosses `top_p` is
    out.) Ties at either threshold are all kept.

    Args:
        logits: (R, V)

    Returns:
        (R, V), `REMOVED` where a token is out.
    """
    if top_k > 0:
        worst = logits.topk(min(top_k, logits.shape[1]), dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < worst, REMOVED)
    if top_p < 1:
        ordered, upto = sort_best(logits, top_p)
        inside = upto <= top_p
        inside[:, 0] = True
        worst = ordered.masked_fill(~inside, torch.inf).amin(1, keepdim=True)
        logits = logits.masked_fill(logits < worst, REMOVED)
    return logits


def sample(logits: Tensor, options: SamplingOptions, uniforms: Tensor | None = None) -> Tensor:
    """(R, V) -> (R,) columns, which are ids if all ids have logits; greedy takes the first best.

    Args:
        uniforms: (R,) numbers in [0, 1) that choose the tokens; greedy needs none.
    """
    if options.top_k == 1:
        return logits.argmax(1)
    kept = top_logits(logits / options.temperature, options.top_k, options.top_p)
    return draw(kept.softmax(1), uniforms)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """(R, V) -> (R,) indices, sampled by inverting the cumulative distribution.

    `torch.multinomial` makes R * V random numbers, which took a tenth of an inference on a CPU. The
    price of one number per row: ids less probable than 3e-8 are never drawn. Ids of probability 0
    are not drawn on any device.

    Args:
        uniforms: (R,) float32, at most 1 - 2^-24, which keeps the product below the last sum.

    Raises:
        ValueError: a row is nan or zero everywhere (checked on a CPU only).
    """
    upto = probs.cumsum(1)
    if upto.device.type == "cpu" and not (upto[:, -1] > 0).all():
        raise ValueError("no token can be drawn: probabilities are nan, or the grammar allows none")
    drawn = torch.searchsorted(upto, uniforms[:, None] * upto[:, -1:], right=True)  # (R, 1)
    drawn = drawn.clamp(max=probs.shape[1] - 1)
    # A GPU adds up in parallel: its sums may fall here and there, and a place that is found there
    # may be that of an id with probability 0, which the grammar has ruled out.
    possible = probs.gather(1, drawn) > 0
    return drawn.where(possible, probs.argmax(1, keepdim=True))[:, 0]


def uniforms_of_images(
    prompt: Tensor,
    image_ids: Sequence[int | str] | None = None,
    *,
    seed: int = 0,
    num_samples: int = 1,
    num_steps: int,
) -> Tensor:
    """Random numbers for `generate` that depend on image, prompt and sample, not on the batch.

    So a picture gives the same answer in every batch, beside any prompts, on any processes.

    Args:
        prompt: (B, P) or (B, N, P) ids, N prompts per image.
        image_ids: B ids; None = all images have the same numbers.
        num_steps: numbers per row, at least `max_new_tokens`.

    Returns:
        (B * N * num_samples, num_steps) float32 in [0, 1), rows as those of `Generated`, on the
        device of `prompt`.
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
