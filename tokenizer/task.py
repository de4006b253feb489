"""What all tasks share: a sequence is shifted into input and target, and weights mask the loss."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenSequence:
    """One training sequence. `target[t]` is what the decoder should say after `input[: t + 1]`."""

    input: np.ndarray  # (T,) int64, starts with the prompt
    target: np.ndarray  # (T,) int64
    weight: np.ndarray  # (T,) float32, all the loss masking there is


class TaskTokenizer:
    """Base of the task tokenizers; a task is one subclass with symmetrical `encode` / `decode`."""

    task: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]] = ("official",)  # of the vocabulary, that it can read

    def __init__(self, vocab: Vocabulary):
        if vocab.layout not in self.layouts:
            raise ValueError(
                f"vocabulary layout must be one of {self.layouts} for {self.task}, got "
                f"{vocab.layout!r}"
            )
        self.vocab = vocab

    def settings(self) -> dict:
        """What a weight file must record of this tokenizer, as JSON values.

        `type(self)(vocab, **self.settings())` decodes what a model trained with `self` says.
        """
        return {}

    @property
    def max_len(self) -> int:
        """Positions a decoder needs for this task, prompt included."""
        raise NotImplementedError

    @property
    def prompt(self) -> np.ndarray:
        """(1,) the task token every sequence of this task starts with."""
        return np.array([self.vocab.prompts[self.task]], dtype=np.int64)

    def shift(
        self,
        prompt: np.ndarray,
        shown: np.ndarray,
        wanted: np.ndarray,
        weight: np.ndarray,
        *,
        max_len: int,
        eos_weight: float,
    ) -> TokenSequence:
        """Input and target of one sequence, padded to `max_len`.

        Args:
            prompt: (P,) tokens with no loss.
            shown, wanted: (R,) the response as the decoder sees it and as it should say it.
            weight: (R,) loss weights of the response.
            max_len: length T of the result; a longer response is an error.
            eos_weight: weight of every target that is padding.
        """
        length = len(prompt) + len(wanted) - 1
        if length > max_len:
            raise ValueError(f"sequence must have at most {max_len} tokens, got {length}")
        out = [np.zeros(max_len + 1, dtype) for dtype in (np.int64, np.int64, np.float32)]
        for row, response in zip(out, (shown, wanted, weight), strict=True):
            row[len(prompt) : length + 1] = response
        out[0][: len(prompt)] = out[1][: len(prompt)] = prompt
        out[2][out[1] == self.vocab.pad] = eos_weight
        return TokenSequence(out[0][:-1], out[1][1:], out[2][1:])
