"""Captioning: images -> one encoder pass -> text pieces -> sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset.preprocess import OFFICIAL_RESIZING, Resizing
from infer.encode import Encoded, encode_images
from infer.results import Captions
from models import Pix2Seq
from models.beam_search import beam_search
from models.generate import GenerationRequest, uniforms_of_images
from tokenizer.captioning import CaptionTokenizer


@dataclass(frozen=True)
class CaptionOptions:
    """How sentences are picked; the default, greedy, is what captioning is evaluated with.

    The official configuration says top_p 1, plain sampling: its authors report BLEU-4 14.1 that
    way and 35.3 with top_k 1 (google-research/pix2seq, issue 31).
    """

    num_captions: int = 1  # per image; several greedy ones are the best of a beam search
    num_beams: int = 1  # more than 1 = beam search; the next three are then not used
    top_k: int = 1
    top_p: float = 1.0
    temperature: float = 1.0
    length_penalty: float = 1.0  # beams are ranked by their log-prob / length ** this
    seed: int = 0  # of the draws: an image gives the same result in every batch

    def __post_init__(self):
        if self.num_captions < 1 or self.num_beams < 1:
            raise ValueError(
                "num_captions and num_beams must be at least 1, got "
                f"{self.num_captions} and {self.num_beams}"
            )

    @property
    def beams(self) -> int:
        """Width of the beam search, 1 = there is none."""
        greedy = self.num_beams > 1 or self.top_k == 1
        return max(self.num_beams, self.num_captions) if greedy else 1


GREEDY = CaptionOptions()


def caption(
    model: Pix2Seq,
    tokenizer: CaptionTokenizer,
    images: Sequence[Tensor],
    options: CaptionOptions = GREEDY,
    *,
    resize_mode: str = "letterbox",
    resizing: Resizing = OFFICIAL_RESIZING,
    encoded: Encoded | None = None,
    image_ids: Sequence[int | str] | None = None,
) -> list[Captions]:
    """Describes a batch of images. Only text comes out: the grammar rules all other ids out.

    Args:
        images: B uint8 (3, h, w) originals of any sizes.
        encoded: the images if they are encoded already.
        image_ids: B, to which the draws belong with `options.seed`; None = the same for each image.

    Returns:
        B `Captions`, `options.num_captions` each, best first.
    """
    if encoded is None:
        encoded = encode_images(model, images, resize_mode=resize_mode, resizing=resizing)
    prompt = torch.from_numpy(tokenizer.prompt).to(model.device)
    prompt = prompt.expand(len(encoded.memory), -1)  # (B, 1)
    tokens, log_probs = _decode(model, tokenizer, encoded.memory, prompt, options, image_ids)
    ended = tokens == tokenizer.eos_id
    lengths = (~ended).sum(2) + ended.any(2)  # (B, n), the end counts
    scores = np.exp(log_probs / lengths)
    found = []
    for rows, row_scores in zip(tokens, scores, strict=True):
        order = np.arange(len(rows))
        if options.beams == 1:  # a beam search has sorted them its own way
            order = np.argsort(-row_scores, kind="stable")
        order = order[: options.num_captions]
        texts = [tokenizer.decode(rows[i]) for i in order]
        found.append(Captions(texts, row_scores[order].astype(np.float32)))
    return found


def _decode(
    model: Pix2Seq,
    tokenizer: CaptionTokenizer,
    memory: Tensor,
    prompt: Tensor,
    options: CaptionOptions,
    image_ids: Sequence[int | str] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (B, n, T) and the sums of their log-probs (B, n)."""
    common = {
        "max_new_tokens": tokenizer.max_new_tokens,
        "eos_id": tokenizer.eos_id,
        "allowed": tokenizer.allowed,
    }
    if options.beams > 1:
        tokens, log_probs = beam_search(
            model.decoder,
            memory,
            GenerationRequest(prompt, mode=model.decode_mode, **common),
            num_beams=options.beams,
            length_penalty=options.length_penalty,
        )
        return tokens.cpu().numpy(), log_probs.cpu().numpy()
    uniforms = uniforms_of_images(
        prompt,
        image_ids,
        seed=options.seed,
        num_samples=options.num_captions,
        num_steps=tokenizer.max_new_tokens,
    )
    tokens, log_probs = model.generate(
        memory,
        prompt,
        top_k=options.top_k,
        top_p=options.top_p,
        temperature=options.temperature,
        num_samples=options.num_captions,
        uniforms=uniforms,
        **common,
    )
    shape = (len(memory), options.num_captions)
    return (
        tokens.unflatten(0, shape).cpu().numpy(),
        log_probs.sum(1).unflatten(0, shape).cpu().numpy(),
    )
