"""Captioning as tokens: the pieces of a sentence, ended by `</s>`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tokenizer.base import TaskTokenizer, TokenSequence
from tokenizer.text import END, PAD, TextTokenizer
from tokenizer.vocabulary import Vocabulary


class CaptionTokenizer(TaskTokenizer):
    """A caption  <->  `text0 + piece …, text0 + 1`; the captions of an image share its encoding.

    The prompt is the task token. In training every token the decoder is shown (the prompt and
    padding too) is replaced by the fake token with probability `drop`, so that captions are read
    off the image more than off the words before.

    Args:
        text: sub-word tokenizer, or the JSON values it left in a weight file; a vocabulary with
            more text ids than it has pieces leaves the last ones unused.
        max_tokens: of an answer, `</s>` included; longer captions are cut, `</s>` stays.
        num_captions: per image and training step.
        drop: share of the input tokens that are replaced.
        end_weight: loss weight of `</s>`.
        pad_weight: loss weight of what comes after `</s>`: padding. Officially it counts as much
            as words do; 0 = the end is learned from `</s>` alone.
    """

    task = "captioning"

    def __init__(
        self,
        vocab: Vocabulary,
        text: TextTokenizer | dict,
        max_tokens: int = 128,
        *,
        num_captions: int = 5,
        drop: float = 0.5,
        end_weight: float = 0.1,
        pad_weight: float = 1.0,
    ):
        super().__init__(vocab)
        self.text = TextTokenizer.from_json(text) if isinstance(text, dict) else text
        if self.text.size > vocab.num_text:
            raise ValueError(
                f"vocabulary must have {self.text.size} text ids for this tokenizer, got only "
                f"{vocab.num_text}"
            )
        if max_tokens < 2 or num_captions < 1 or not 0 <= drop < 1:
            raise ValueError(
                "max_tokens must be at least 2, num_captions at least 1 and drop in [0, 1), got "
                f"{max_tokens}, {num_captions} and {drop}"
            )
        self.max_tokens, self.num_captions, self.drop = max_tokens, num_captions, drop
        self.end_weight, self.pad_weight = end_weight, pad_weight

    def settings(self) -> dict:
        return {"text": self.text.to_json(), "max_tokens": self.max_tokens}

    @property
    def eos_id(self) -> int:
        """Token of `</s>`, where decoding may stop."""
        return self.vocab.text0 + END

    @property
    def max_new_tokens(self) -> int:
        return self.max_tokens

    def encode(self, caption: str) -> np.ndarray:
        """(R,) token ids, R <= `max_tokens`, the last one `eos_id`."""
        pieces = self.text.encode(caption)[: self.max_tokens - 1]
        return self.vocab.text0 + np.array([*pieces, END], np.int64)

    def sequence(self, captions: Sequence[str], rng: np.random.Generator) -> TokenSequence:
        """Training sequences of an image: `num_captions` of its captions.

        Of more captions a random choice without repetition is taken; of fewer all, and randomly
        chosen ones again to make up the number.

        Returns:
            arrays of shape (num_captions, max_len).
        """
        if not captions:
            raise ValueError("an image needs at least one caption to learn from, got none")
        order = rng.permutation(len(captions))[: self.num_captions]
        again = rng.integers(len(captions), size=self.num_captions - len(order))
        chosen = [captions[i] for i in (*order, *again)]
        draws = rng.random((self.num_captions, self.max_len))
        return self.sequence_from_draws([self.encode(caption) for caption in chosen], draws)

    def sequence_from_draws(
        self, answers: Sequence[np.ndarray], draws: np.ndarray
    ) -> TokenSequence:
        """The training sequences of these captions, in the given order.

        Args:
            answers: N captions as `encode` writes them.
            draws: (N, max_len) uniform; an input token whose draw is above `drop` is shown.
        """
        padded = np.full((len(answers), self.max_tokens), self.vocab.pad)
        lengths = np.array([[len(answer)] for answer in answers])  # (N, 1)
        padded[np.arange(self.max_tokens) < lengths] = np.concatenate(answers)
        out = self.shift(
            self.prompt,
            padded,
            padded,
            np.where(padded == self.eos_id, self.end_weight, 1),
            pad_weight=self.pad_weight,
        )
        if self.drop == 0:
            return out
        return replace(out, input=np.where(draws > self.drop, out.input, self.vocab.fake))

    def decode(self, tokens: np.ndarray) -> str:
        """Any (T,) token sequence as a caption: text up to the first `</s>`, other ids left out."""
        pieces = np.asarray(tokens, np.int64) - self.vocab.text0
        return self.text.decode(pieces[pieces >= 0])

    def allowed(self, tokens: Tensor) -> Tensor:
        """The grammar: (R, t) generated so far -> (V,) bool, what may come next.

        Pieces and, after the first one, the end.
        """
        mask = torch.zeros(self.vocab.size, dtype=torch.bool, device=tokens.device)
        text0 = self.vocab.text0
        mask[text0 : text0 + self.text.size] = True
        mask[self.vocab.text0 + PAD] = False
        mask[self.eos_id] = tokens.shape[1] > 0
        return mask
