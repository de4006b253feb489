"""Captioning: images -> one encoder pass -> text pieces -> sentences; scored and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset.batch import EvalBatch
from infer.batches import EvalLoop, evaluate_all
from infer.results import Captions, Report
from infer.trained_model import Encoded, TrainedModel
from models.beam_search import beam_search
from models.generate import GenerationRequest, SamplingOptions, uniforms_of_images
from tokenizer.captioning import CaptionTokenizer
from utils.caption_metrics import ptb_tokenize, score_captions


@dataclass(frozen=True)
class CaptionOptions:
    """How captions are decoded; the default is greedy, which evaluations use.

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
        SamplingOptions(self.temperature, self.top_k, self.top_p)  # raises what is wrong with them
        if self.num_captions < 1 or self.num_beams < 1:
            raise ValueError(
                "num_captions and num_beams must be at least 1, got "
                f"{self.num_captions} and {self.num_beams}"
            )

    @classmethod
    def from_settings(cls, cfg, num_captions: int = 1) -> CaptionOptions:
        """The options of the settings."""
        return cls(
            num_captions=num_captions,
            num_beams=cfg.caption_beams,
            top_k=cfg.caption_top_k,
            top_p=cfg.caption_top_p,
            temperature=cfg.caption_temperature,
            length_penalty=cfg.caption_length_penalty,
            seed=cfg.seed,
        )

    @property
    def beams(self) -> int:
        """Width of the beam search; 1 = no beam search."""
        greedy = self.num_beams > 1 or self.top_k == 1
        return max(self.num_beams, self.num_captions) if greedy else 1


def caption(
    trained: TrainedModel,
    images: Sequence[Tensor],
    options: CaptionOptions = CaptionOptions(),
    *,
    encoded: Encoded | None = None,
    image_ids: Sequence[int | str] | None = None,
) -> list[Captions]:
    """Captions for a batch of images; the grammar allows text tokens only.

    Args:
        images: B uint8 (3, h, w) originals of any sizes.
        encoded: the images if they are encoded already.
        image_ids: B, to which the draws belong with `options.seed`; None = the same for each image.

    Returns:
        B `Captions`, `options.num_captions` each, best first.
    """
    tokenizer = trained.tokenizer("captioning")
    encoded = encoded or trained.encode(images)
    tokens, log_probs = _generate(trained, tokenizer, encoded.memory, options, image_ids)
    # The score is the geometric mean of the tokens' probabilities
    ended = tokens == tokenizer.eos_id
    lengths = (~ended).sum(2) + ended.any(2)  # (B, n), the end counts
    scores = np.exp(log_probs / lengths)
    # Sentences, best first
    found = []
    for rows, row_scores in zip(tokens, scores, strict=True):
        order = np.arange(len(rows))
        if options.beams == 1:  # a beam search has sorted them its own way
            order = np.argsort(-row_scores, kind="stable")
        order = order[: options.num_captions]
        texts = [tokenizer.decode(rows[i]) for i in order]
        found.append(Captions(texts, row_scores[order].astype(np.float32)))
    return found


def _generate(
    trained: TrainedModel,
    tokenizer: CaptionTokenizer,
    memory: Tensor,
    options: CaptionOptions,
    image_ids: Sequence[int | str] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (B, n, T) and the sums of their log-probs (B, n), by beam search or sampling."""
    model = trained.model
    prompt = torch.from_numpy(tokenizer.prompt).to(model.device).expand(len(memory), -1)  # (B, 1)
    # The best of a beam search
    if options.beams > 1:
        tokens, log_probs = beam_search(
            model.decoder,
            memory,
            GenerationRequest(
                prompt,
                max_new_tokens=tokenizer.max_new_tokens,
                eos_id=tokenizer.eos_id,
                allowed=tokenizer.allowed,
                mode=model.decode_mode,
            ),
            num_beams=options.beams,
            length_penalty=options.length_penalty,
        )
        return tokens.cpu().numpy(), log_probs.cpu().numpy()
    # Or samples, of which greedy is one: every image has random numbers of its own
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
        max_new_tokens=tokenizer.max_new_tokens,
        eos_id=tokenizer.eos_id,
        allowed=tokenizer.allowed,
        top_k=options.top_k,
        top_p=options.top_p,
        temperature=options.temperature,
        num_samples=options.num_captions,
        uniforms=uniforms,
    )
    shape = (len(memory), options.num_captions)
    return (
        tokens.unflatten(0, shape).cpu().numpy(),
        log_probs.sum(1).unflatten(0, shape).cpu().numpy(),
    )


def evaluate(
    trained: TrainedModel,
    source,
    options: CaptionOptions = CaptionOptions(),
    loop: EvalLoop = EvalLoop(),
) -> Report:
    """Captions every image of the source and scores the best caption of each.

    Args:
        source: `CocoCaptions`.
    """

    def predict(batch: EvalBatch) -> list[Captions]:
        return caption(trained, batch.images, options, image_ids=batch.image_ids)

    def score(found: dict[int | str, Captions]) -> Report:
        rows = [row for image_id, captions in found.items() for row in captions.to_coco(image_id)]
        return score_results(source.references, rows)

    return evaluate_all(source, predict, score, loop)


def score_results(references: dict[int, list[str]], results: list[dict]) -> Report:
    """CIDEr, BLEU and ROUGE-L of a COCO caption results file; one row per image, not per class.

    Args:
        references: image id -> captions.
        results: rows of image_id and caption, one per image, all with references. Images without
            a row do not count, as in the official evaluation.
    """
    words = [ptb_tokenize(row["caption"]) for row in results]
    truth = [[ptb_tokenize(text) for text in references[row["image_id"]]] for row in results]
    metrics, each = score_captions(words, truth)
    import pandas as pd  # takes half a second, and evaluations alone need it

    per_image = pd.DataFrame(results)[["image_id", "caption"]].assign(**each)
    lines = [f"{name:<8} = {value:.3f}" for name, value in metrics.items()]
    return Report(metrics, per_image, "\n".join([f"{len(results)} images", *lines]), results)


def draw(image: np.ndarray, found: Captions) -> np.ndarray:
    """The image with its best caption."""
    return found.plot(image)


def table(found: Captions) -> str:
    """One line per caption, best first."""
    return "\n".join(found.texts)
