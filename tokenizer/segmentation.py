"""Instance segmentation as tokens: the outline of one object, given its box and class."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tokenizer.base import TaskTokenizer, TokenSequence
from tokenizer.vocabulary import (
    PROMPT_LEN,
    Vocabulary,
    instance_prompt,
    points_to_tokens,
    tokens_to_points,
)
from utils.masks import MIN_POINTS, cut_polygons, fit_polygons


class SegmentationTokenizer(TaskTokenizer):
    """Polygons  <->  `y x y x … separator separator y x …`, ended by padding.

    The prompt is `task ymin xmin ymax xmax class`, so that all objects of an image are sequences
    of their own on one encoder pass. An outline that fills `max_points` has no end token.

    Args:
        max_points: of all outlines of one object, a separator counted as a point; two tokens each.
            Longer outlines are simplified, so this is a setting of speed.
        cut_outlines: cut longer ones at `max_points` instead, as officially.
        max_objects: per image in training; of more a random choice is kept.
        random_start: turn every outline so that it starts at a random point (paper section 3.2;
            officially off).
        pad_weight: loss weight of padding targets.
        first_end_only: weigh the first padding target alone; officially all of them count.
        weigh_absent: give the sequences of objects that are not there (an image has fewer than
            `max_objects`) their loss too, as officially; otherwise none.
        crop: how the image is shown, for the record of the weight file: None = the whole of it,
            else the surroundings of the box, widened by this share of its sides on each side.
    """

    task, prompt_len = "segmentation", PROMPT_LEN

    def __init__(
        self,
        vocab: Vocabulary,
        max_points: int = 128,
        *,
        max_objects: int = 10,
        random_start: bool = True,
        pad_weight: float = 1.0,
        first_end_only: bool = False,
        weigh_absent: bool = False,
        crop: float | None = None,
        cut_outlines: bool = False,
    ):
        super().__init__(vocab)
        if max_points < MIN_POINTS or max_objects < 1:
            raise ValueError(
                f"max_points must be at least {MIN_POINTS} and max_objects at least 1, "
                f"got {max_points} and {max_objects}"
            )
        if crop is not None and crop < 0:
            raise ValueError(f"crop must be None or not negative, got {crop}")
        self.max_points, self.max_objects, self.random_start = max_points, max_objects, random_start
        self.pad_weight, self.first_end_only = pad_weight, first_end_only
        self.weigh_absent, self.crop = weigh_absent, crop
        self._shorten = cut_polygons if cut_outlines else fit_polygons

    def settings(self) -> dict:
        return {"max_points": self.max_points, "crop": self.crop}

    @property
    def max_new_tokens(self) -> int:
        return 2 * self.max_points

    @property
    def eos_id(self) -> int:
        return self.vocab.pad

    def prompts(self, boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(N, 6), see `instance_prompt`."""
        return instance_prompt(self.vocab, self.task, boxes, labels, size)

    def encode(self, polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
        """The outlines of one object as tokens, from their first points on.

        Args:
            polygons: parts, each (M, 2) of (x, y), pixels of the model input.
            size: (H, W) of the model input.

        Returns:
            (R,) token ids, R <= `max_new_tokens`; without padding.
        """
        parts = [
            points_to_tokens(self.vocab, part, size).reshape(-1)
            for part in self._shorten(polygons, self.max_points)
        ]
        between = np.full(2, self.vocab.separator)
        joined = [piece for part in parts for piece in (between, part)][1:]
        return np.concatenate(joined) if joined else np.zeros(0, np.int64)

    def sequence(
        self,
        boxes: np.ndarray,
        labels: np.ndarray,
        polygons: Sequence[Sequence[np.ndarray]],
        size: tuple[int, int],
        rng: np.random.Generator,
    ) -> TokenSequence:
        """Training sequences of an image: a random choice of its objects, random first points.

        Args:
            boxes, labels: (N, 4) xyxy pixels of the model input, (N,) class ids.
            polygons: N objects, see `encode`.

        Returns:
            arrays of shape (max_objects, max_len).
        """
        order = rng.permutation(len(labels))[: self.max_objects]
        chosen = [
            self._shorten([part for part in polygons[i] if len(part)], self.max_points)
            for i in order
        ]
        if self.random_start:
            shares = iter(rng.random(sum(map(len, chosen))).tolist())
            chosen = [
                [turn(part, int(next(shares) * len(part))) for part in parts] for parts in chosen
            ]
        return self.sequence_from_draws(
            np.asarray(boxes)[order], np.asarray(labels)[order], chosen, size, shortened=True
        )

    def sequence_from_draws(
        self,
        boxes: np.ndarray,
        labels: np.ndarray,
        polygons: Sequence[Sequence[np.ndarray]],
        size: tuple[int, int],
        *,
        shortened: bool = False,
    ) -> TokenSequence:
        """The training sequences of these objects, at most `max_objects`, in the given order.

        The random choices of `sequence` (which objects, where outlines begin) have been made.

        Args:
            boxes, labels, polygons, size: see `sequence`; label 0 is an object that is not there.
            shortened: no outline has more than `max_points` any more.

        Returns:
            arrays of shape (max_objects, max_len).
        """
        if not shortened:
            polygons = [self._shorten(parts, self.max_points) for parts in polygons]
        prompts = np.full((self.max_objects, PROMPT_LEN), self.vocab.pad)
        prompts[: len(labels)] = self.prompts(boxes, labels, size)
        there = prompts[:, 0] != self.vocab.pad
        present = [parts if there[i] else [] for i, parts in enumerate(polygons)]
        answers, lengths = self._answers(present, size)
        sequence = self.shift(
            prompts,
            answers,
            answers,
            np.ones((), np.float32),
            pad_weight=np.where(there | self.weigh_absent, self.pad_weight, 0)[:, None],
        )
        if not self.first_end_only:
            return sequence
        counts = np.arange(self.max_len) < PROMPT_LEN + lengths[:, None]  # up to the first end
        return replace(sequence, weight=sequence.weight * counts)

    def _answers(
        self, polygons: Sequence[Sequence[np.ndarray]], size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`encode` of all objects at once: (max_objects, R) padded, and how long each is.

        Their outlines fit.
        """
        between = np.full((1, 2), np.nan, np.float32)
        pieces, lengths = [], np.zeros(self.max_objects, np.int64)
        for i, parts in enumerate(polygons):
            joined = [piece for part in parts for piece in (between, part)][1:]
            lengths[i] = sum(map(len, joined))
            pieces += joined
        out = np.full((self.max_objects, self.max_points, 2), self.vocab.pad)
        if pieces:
            points = np.concatenate(pieces)
            tokens = points_to_tokens(self.vocab, points, size)  # (all points, 2)
            tokens[np.isnan(points[:, 0])] = self.vocab.separator
            out[np.arange(self.max_points) < lengths[:, None]] = tokens  # row after row
        return out.reshape(self.max_objects, -1), 2 * lengths

    def decode(self, tokens: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
        """Any token sequence as polygons (official `decode_instance_seq_to_points` and after).

        The first pair with a padding token ends the outline, a pair with a separator token begins
        a new part; invisible points and parts of fewer than three points, which enclose nothing,
        are dropped.

        Args:
            tokens: (T,) generated ids, prompt not included.
            size: (H, W) of the model input.

        Returns:
            parts, each (M, 2) float32 of (x, y), pixels of the model input, clipped to it.
        """
        v, (h, w) = self.vocab, size
        tokens = np.asarray(tokens, np.int64)
        pairs = tokens[: len(tokens) // 2 * 2].reshape(-1, 2)
        ends = np.flatnonzero((pairs == v.pad).any(1))
        pairs = pairs[: ends[0]] if len(ends) else pairs
        points = np.clip(tokens_to_points(v, pairs.reshape(-1), size), 0, np.float32([w, h]))
        breaks = (pairs == v.separator).any(1)
        parts = np.split(points, np.flatnonzero(breaks))
        parts = [part[~np.isnan(part).any(1)] for part in parts]
        return [part for part in parts if len(part) >= MIN_POINTS]

    @property
    def answer_range(self) -> tuple[int, int]:
        """[first, last + 1) range of ids that contains all tokens of the grammar."""
        v = self.vocab
        ids = [*v.coord_range, v.pad + 1, v.separator + 1]
        return min(v.coord0, v.pad, v.separator), max(ids)

    def allowed(self, tokens: Tensor) -> Tensor:
        """The grammar: (R, t) generated so far -> (R, V) bool, what may come next.

        Pairs of coordinates, pairs of separators after at least a triangle, and the end.
        """
        v, (rows, step) = self.vocab, tokens.shape
        mask = torch.zeros(rows, v.size, dtype=torch.bool, device=tokens.device)
        if step == 0:
            mask[:, slice(*v.coord_range)] = True
            return mask
        last = tokens[:, -1]
        ended, parting = last == v.pad, last == v.separator
        if step % 2:
            mask[:, slice(*v.coord_range)] = ~(ended | parting)[:, None]
            mask[:, v.separator] = parting
            mask[:, v.pad] = ended
            return mask
        full = self._long_enough(tokens) & ~ended
        mask[:, slice(*v.coord_range)] = ~ended[:, None]
        mask[:, v.separator] = full
        mask[:, v.pad] = full | ended
        return mask

    def _long_enough(self, tokens: Tensor) -> Tensor:
        """(R, t) -> (R,) bool: the last part has the points that a polygon needs."""
        needed = 2 * MIN_POINTS
        if tokens.shape[1] < needed:
            return tokens.new_zeros(len(tokens), dtype=torch.bool)
        return (tokens[:, -needed:] != self.vocab.separator).all(1)


def turn(polygon: np.ndarray, start: int) -> np.ndarray:
    """The same outline, beginning at point `start`."""
    return np.concatenate([polygon[start:], polygon[:start]])
