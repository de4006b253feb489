"""The base of the task tokenizers: input, target and loss weights of a sequence, token kinds."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenSequence:
    """One training sequence: after `input[: t + 1]` the decoder should predict `target[t]`."""

    input: np.ndarray  # (T,) int64, starts with the prompt
    target: np.ndarray  # (T,) int64
    weight: np.ndarray  # (T,) float32, all the loss masking there is


class TaskTokenizer:
    """Base of the task tokenizers: annotations as tokens, and tokens as results.

    A subclass has `encode` and its inverse `decode`; `sequence`, which makes training sequences;
    `allowed`, the grammar of an answer; and `max_new_tokens`. Our tokenizers split `sequence`: it
    draws random numbers, and `sequence_from_draws` makes the sequences without further randomness.
    """

    task: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]] = ("official",)  # of the vocabulary, that it can read
    prompt_len: ClassVar[int] = 1  # tokens of the prompt
    max_new_tokens: int  # of the longest answer, without the prompt; a property of the subclass

    def __init__(self, vocab: Vocabulary):
        if vocab.layout not in self.layouts:
            raise ValueError(
                f"vocabulary layout must be one of {self.layouts} for {self.task}, got "
                f"{vocab.layout!r}"
            )
        self.vocab = vocab

    def settings(self) -> dict:
        """The options that a weight file records of this tokenizer, as JSON values.

        `type(self)(vocab, **self.settings())` decodes the tokens of a model trained with `self`.
        """
        return {}

    @property
    def eos_id(self) -> int | None:
        """The token that ends an answer; None = answers have a fixed length."""
        return None

    @property
    def max_len(self) -> int:
        """Number of decoder positions: the prompt and the answer without its last token."""
        return self.prompt_len + self.max_new_tokens - 1

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
        pad_weight: float | np.ndarray,
        max_len: int | None = None,
    ) -> TokenSequence:
        """Input and target of one training sequence, or of N at once, padded to `max_len`.

        Args:
            prompt: (P,) tokens with no loss, unless they are padding; (N, P) or one for all where
                there are N.
            shown, wanted: (R,) or (N, R), the answer as the decoder reads it and as it should
                predict it.
            weight: (R,) or (N, R) loss weights of the answer.
            pad_weight: weight of every target that is padding; (N, 1) if they differ. As
                officially that includes the prompt of an object that is not there, which is
                padding throughout.
            max_len: length T of the result; None = that of the tokenizer.

        Returns:
            arrays of shape (T,) or (N, T).

        Raises:
            ValueError: the answer is longer.
        """
        max_len = self.max_len if max_len is None else max_len
        start, end = prompt.shape[-1], prompt.shape[-1] + wanted.shape[-1]
        if end - 1 > max_len:
            raise ValueError(f"sequence must have at most {max_len} tokens, got {end - 1}")
        shape = (*wanted.shape[:-1], max_len + 1)
        pad = self.vocab.pad
        inputs, targets = np.full(shape, pad, np.int64), np.full(shape, pad, np.int64)
        weights = np.zeros(shape, np.float32)
        inputs[..., :start] = targets[..., :start] = prompt
        inputs[..., start:end], targets[..., start:end] = shown, wanted
        weights[..., start:end] = weight
        np.copyto(weights, pad_weight, where=targets == pad)
        return TokenSequence(inputs[..., :-1], targets[..., 1:], weights[..., 1:])


TOKEN_KINDS = ("coordinates", "classes", "text", "ends")  # whose losses are shown apart


def kinds_of(targets: Tensor, vocab: Vocabulary, eos_id: int | None) -> Tensor:
    """(M,) ids -> (M,) numbers of their kinds in `TOKEN_KINDS`.

    Coordinates are the bins and "not labelled"; classes the fake one of noise objects too; ends all
    that ends or parts something: padding, separators, `eos_id`.
    """
    coordinates, classes, text, ends = range(len(TOKEN_KINDS))
    kinds = torch.full_like(targets, ends)
    for kind, (lo, hi) in (
        (coordinates, vocab.coord_range),
        (classes, vocab.class_range),
        (text, (vocab.text0, vocab.size)),
    ):
        kinds = kinds.masked_fill((targets >= lo) & (targets < hi), kind)
    kinds = kinds.masked_fill(targets == vocab.invisible, coordinates)
    kinds = kinds.masked_fill(targets == vocab.fake, classes)
    if eos_id is not None:
        kinds = kinds.masked_fill(targets == eos_id, ends)
    return kinds
