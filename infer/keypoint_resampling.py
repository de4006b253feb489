"""Keypoints that all get a place: what the model calls invisible is drawn anew afterwards.

The model says what it wants, `invisible` too, sees what it has said and goes on from there. Only
then are these tokens replaced by ones from the same logits without `invisible`. (Suppressing the
token while sampling makes the model continue from places that it did not mean: it has seen no such
sequence in training, and the points after the first invisible one are lost.)

The official code does the same with a slip in the truncation of what is drawn anew; published
keypoint scores were made with it, so it can be asked for.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.generate import REMOVED, SamplingOptions, draw, sample
from models.pix2seq import Pix2Seq

SUPPRESSION = 1e9  # taken off the logit of the invisible token


def generate_resampled(
    model: Pix2Seq,
    memory: Tensor,
    prompt: Tensor,
    invisible: int,
    uniforms: Tensor,
    options: SamplingOptions,
    *,
    allowed: Callable[[Tensor], Tensor] | None = None,
    official: bool = False,
) -> tuple[Tensor, Tensor]:
    """Answers of keypoints in which every `invisible` token is replaced.

    Args:
        memory: (R, S, D) encoded images, one for each prompt.
        prompt: (R, P)
        uniforms: (R, 2 * T) numbers in [0, 1): the first half chooses the T tokens of an answer,
            the second half those that are drawn anew.
        allowed: the grammar, see `Pix2Seq.generate`; it must be the same at every step.
        official: truncate with `official_truncation`; top_k at most 1.

    Returns:
        tokens, log_probs: (R, T), log-probs without the invisible token.
    """
    # What the model wants, `invisible` included
    uniforms, again = uniforms.tensor_split(2, dim=1)  # each (R, T)
    tokens, _ = model.generate(
        memory,
        prompt,
        max_new_tokens=uniforms.shape[1],
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        allowed=allowed,
        uniforms=uniforms,
    )
    # The logits of every step, after all that was said before it
    with torch.no_grad():
        hidden = model.decoder(torch.cat([prompt, tokens[:, :-1]], 1), memory)
        logits = model.decoder.logits(hidden[:, prompt.shape[1] - 1 :]).float()  # (R, T, V)
    logits[..., invisible] -= SUPPRESSION
    # Other tokens in the places of `invisible`.
    places = tokens == invisible  # (R, T)
    if official:
        cut = official_truncation(logits / options.temperature, options.top_k, options.top_p)
        kept = cut.softmax(-1)
        drawn = draw(kept.flatten(0, 1), again.flatten()).view(tokens.shape)
        tokens = torch.where(places, drawn, tokens)
    elif places.any():
        choices = logits[places]  # (M, V)
        if allowed is not None:
            choices = choices.masked_fill(~allowed(tokens[:, :0]), -torch.inf)
        tokens[places] = sample(choices, options, again[places])
    return tokens, logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]


def official_truncation(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """`top_logits` as the official code runs it on logits of three dimensions.

    What is meant to be the threshold of a row is taken along the wrong axis: top-k compares all
    positions with the best of the last one, top-p entry v with the v-th best of the first one at
    most, which lets most of the vocabulary through.

    Args:
        logits: (R, T, V)
        top_k: 0 or 1; officially more than one cannot run.

    Returns:
        (R, T, V), `REMOVED` where a token is out.
    """
    if top_k > 0:
        logits = logits.masked_fill(logits < logits[:, -1:].amax(2, keepdim=True), REMOVED)
    if top_p < 1:
        ordered = logits.sort(dim=2, descending=True).values
        inside = ordered.softmax(2).cumsum(2) <= top_p
        worst = ordered.masked_fill(~inside, -REMOVED).amin(2, keepdim=True)  # (R, T, 1)
        logits = logits.masked_fill(logits < torch.minimum(worst, ordered[:, :1]), REMOVED)
    return logits
