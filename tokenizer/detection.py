"""Object detection as tokens: `ymin xmin ymax xmax class` per object.

Noise objects are the sequence augmentation of Pix2Seq (paper section 2.2; `data_utils.py`).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokenizer.base import TaskTokenizer, TokenSequence
from tokenizer.vocabulary import Vocabulary, dequantize, quantize

TOKENS_PER_OBJECT = 5
CORRUPTIONS = ("none", "rand_cls", "real_n_fake_cls", "rand_n_fake_cls", "real_n_rand_n_fake_cls")


@dataclass(frozen=True)
class ClassDraws:
    """The four random numbers of class corruption per object, in the official order."""

    rand_cls: np.ndarray  # int in [0, coord0 - class0)
    rand_n_fake: np.ndarray  # uniform
    real_n_fake: np.ndarray  # uniform
    real_n_rand_n_fake: np.ndarray  # uniform

    @classmethod
    def sample(cls, num: int, num_classes: int, rng: np.random.Generator) -> "ClassDraws":
        return cls(rng.integers(0, num_classes, num), *rng.random((3, num)))


class DetectionTokenizer(TaskTokenizer):
    """Boxes and labels  <->  `[ymin xmin ymax xmax class] * max_objects`.

    There is no end token: in training *noise objects* fill the budget (their class is the fake
    class, their coordinates carry no loss), so the model can always be asked for `max_objects`
    boxes and the probability of the class tells real ones from noise.

    In the simple layout, which is read but not trained, an object is `xmin ymin xmax ymax class`,
    there is no noise and an end token stops.

    Args:
        max_objects: object budget, 100 in the papers (500 tokens).
        noise: fill the budget with noise objects in training; otherwise it is padded.
        corruption: what the decoder is shown instead of the true class, one of `CORRUPTIONS`;
            the official default "rand_n_fake_cls" shows a random or the fake class.
        noise_weight: loss weight of a noise object's class token.
        pad_weight: loss weight of padding targets.
    """

    task = "detection"
    layouts = ("official", "simple")

    def __init__(
        self,
        vocab: Vocabulary,
        max_objects: int = 100,
        *,
        noise: bool = True,
        corruption: str = "rand_n_fake_cls",
        noise_weight: float = 1.0,
        pad_weight: float = 0.1,
    ):
        super().__init__(vocab)
        if corruption not in CORRUPTIONS:
            raise ValueError(f"corruption must be one of {CORRUPTIONS}, got {corruption!r}")
        if max_objects < 1:
            raise ValueError(f"max_objects must be at least 1, got {max_objects}")
        self.max_objects, self.noise, self.corruption = max_objects, noise, corruption
        self.noise_weight, self.pad_weight = noise_weight, pad_weight

    def settings(self) -> dict:
        return {"max_objects": self.max_objects}

    @property
    def max_new_tokens(self) -> int:
        return TOKENS_PER_OBJECT * self.max_objects

    @property
    def eos_id(self) -> int | None:
        return self.vocab.eos

    def encode(self, boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Objects as tokens, in the given order.

        Args:
            boxes, labels: (N, 4) xyxy pixels of the model input; (N,) class ids (>= 1), the
                vocabulary's `noise_label`, or 0 for a padding object (five padding tokens).
            size: (H, W) of the model input.

        Returns:
            (5 * N,) token ids.
        """
        v, (h, w) = self.vocab, size
        labels = np.asarray(labels, dtype=np.int64)
        boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        coords = (boxes / np.array([w, h, w, h], np.float32))[:, self._order]
        tokens = np.empty((len(labels), TOKENS_PER_OBJECT), np.int64)
        tokens[:, :4] = v.coord0 + quantize(coords, v.num_bins, floor=v.floors)
        tokens[:, 4] = v.class0 + labels - v.first_label
        tokens[labels == 0] = v.pad
        return tokens.reshape(-1)

    def sequence(
        self,
        boxes: np.ndarray,
        labels: np.ndarray,
        size: tuple[int, int],
        rng: np.random.Generator,
        extent: tuple[int, int] | None = None,
    ) -> TokenSequence:
        """Training sequence: objects in random order, then noise objects, with corrupted classes.

        Args:
            boxes, labels: as for `encode`; with more than `max_objects` a random choice is kept.
            extent: (h, w) of the picture content inside the model input, where noise boxes are
                drawn; the whole input when None.
        """
        order = rng.permutation(len(labels))[: self.max_objects]
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)[order]
        labels = np.asarray(labels, np.int64)[order]
        if self.noise:
            h, w = extent or size
            scale = np.array([w, h, w, h], np.float32)
            extra = noise_boxes(boxes / scale, self.max_objects - len(labels), rng) * scale
            boxes = np.concatenate([boxes, extra])
            labels = np.concatenate([labels, np.full(len(extra), self.vocab.noise_label)])
        lo, hi = self.vocab.class_range
        return self.sequence_from_draws(
            boxes, labels, size, ClassDraws.sample(len(labels), hi - lo, rng)
        )

    def sequence_from_draws(
        self, boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int], draws: ClassDraws
    ) -> TokenSequence:
        """The training sequence of these objects, noise objects included, in the given order.

        Args:
            draws: what is shown instead of their classes, see `corrupt`.
        """
        if self.vocab.layout != "official":
            raise ValueError(f"layout must be 'official' in training, got {self.vocab.layout!r}")
        answer = self.encode(boxes, labels, size)
        return self.shift(
            self.prompt,
            self.corrupt(answer, draws),
            answer,
            self.weights(labels),
            pad_weight=self.pad_weight,
        )

    def corrupt(self, answer: np.ndarray, draws: ClassDraws) -> np.ndarray:
        """(5 * N,) the answer with its class tokens replaced; boxes and padding stay.

        A random class is drawn from all class tokens, so by chance it may be the true one.
        """
        v, shown = self.vocab, answer.copy()
        real = answer[4::TOKENS_PER_OBJECT]  # (N,)
        random = v.class0 + draws.rand_cls
        random_or_fake = np.where(draws.rand_n_fake > 0.5, random, v.fake)
        keep, replacement = {  # whether the true class stays, and what takes its place otherwise
            "none": (True, real),
            "rand_cls": (False, random),
            "real_n_fake_cls": (draws.real_n_fake > 0.5, v.fake),
            "rand_n_fake_cls": (False, random_or_fake),
            "real_n_rand_n_fake_cls": (draws.real_n_rand_n_fake > 0.5, random_or_fake),
        }[self.corruption]
        shown[4::TOKENS_PER_OBJECT] = np.where((real == v.pad) | keep, real, replacement)
        return shown

    def weights(self, labels: np.ndarray) -> np.ndarray:
        """(5 * N,) loss weights before padding targets get theirs."""
        is_noise = np.asarray(labels) == self.vocab.noise_label
        weights = np.ones((len(labels), TOKENS_PER_OBJECT), np.float32)
        weights[is_noise, :4] = 0
        weights[is_noise, 4] = self.noise_weight
        return weights.reshape(-1)

    def decode(
        self,
        tokens: np.ndarray,
        size: tuple[int, int],
        class_tokens: np.ndarray | None = None,
        class_log_probs: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Any token sequence as objects, up to the end token; an unfinished object is dropped.

        Args:
            tokens: (T,) generated ids, prompt not included.
            size: (H, W) of the model input.
            class_tokens, class_log_probs: (T,) per step, the arg max of the class range and its
                log-probability under the full softmax (`generate(score_range=...)`); without
                them the generated class tokens count, at score 1.

        Returns:
            boxes (N, 4) xyxy pixels clipped to `size`, labels (N,), scores (N,). Label 0 means
            "no class": the token is outside the class range, or its probability underflows.
        """
        v, (h, w) = self.vocab, size
        tokens = np.asarray(tokens, np.int64)
        ends = np.flatnonzero(tokens == v.eos)  # none in the official layout, whose `eos` is None
        n = (ends[0] if len(ends) else len(tokens)) // TOKENS_PER_OBJECT
        objects = tokens[: n * TOKENS_PER_OBJECT].reshape(n, TOKENS_PER_OBJECT)
        bins = objects[:, :4] - v.coord0
        coords = np.clip(dequantize(bins, v.num_bins, floor=v.floors), 0, 1)[:, self._order]
        boxes = coords * np.array([w, h, w, h], np.float32)
        classes, scores = objects[:, 4], np.ones(n, np.float32)
        if class_tokens is not None:
            classes = np.asarray(class_tokens, np.int64)[4::TOKENS_PER_OBJECT][:n]
            scores = np.exp(np.asarray(class_log_probs, np.float32)[4::TOKENS_PER_OBJECT][:n])
        lo, hi = v.class_range
        labels = classes - lo + v.first_label
        known = (classes >= lo) & (classes < hi) & (labels > 0) & (scores > 0)
        return boxes, np.where(known, labels, 0), scores

    def allowed(self, tokens: Tensor) -> Tensor:
        """The grammar: (R, t) generated so far -> (V,) bool, what may come next.

        Detection applies it to the simple layout only. The official layout is decoded freely:
        `decode` clips an id of another kind. Classes include the fake one, as in training.
        """
        v, step = self.vocab, tokens.shape[1] % TOKENS_PER_OBJECT
        mask = torch.zeros(v.size, dtype=torch.bool, device=tokens.device)
        if step == 4:
            mask[slice(*v.class_range)] = True
        else:
            mask[slice(*v.coord_range)] = True
        if step == 4 and v.fake is not None:
            mask[v.fake] = True
        if step == 0 and v.eos is not None:
            mask[v.eos] = True
        return mask

    def ran_out(self, class_log_probs: Tensor, in_a_row: int, score: float) -> Tensor:
        """Whether decoding may stop: the last `in_a_row` objects all score below `score`.

        Args:
            class_log_probs: (R, t) so far, as for `decode`.

        Returns:
            (R,) bool, False inside an object.
        """
        rows, num_steps = class_log_probs.shape
        if num_steps % TOKENS_PER_OBJECT or num_steps < in_a_row * TOKENS_PER_OBJECT:
            return class_log_probs.new_zeros(rows, dtype=torch.bool)
        scores = class_log_probs[:, 4::TOKENS_PER_OBJECT][:, -in_a_row:].exp()  # (R, in_a_row)
        return (scores < score).all(1)

    @property
    def _order(self) -> list[int]:
        """Columns of xyxy as the layout writes them; its own inverse."""
        return [0, 1, 2, 3] if self.vocab.x_first else [1, 0, 3, 2]


def _truncated_normal(rng: np.random.Generator, std: float, shape: tuple[int, ...]) -> np.ndarray:
    """Normal draws; those beyond two standard deviations (4.6 %) are left out."""
    size = math.prod(shape)
    kept = np.zeros(0, np.float32)
    while len(kept) < size:  # enough are drawn for once to do, mostly
        draws = rng.standard_normal(size + size // 10 + 8, np.float32)
        kept = np.concatenate([kept, draws[np.abs(draws) <= 2]])
    return std * kept[:size].reshape(shape)


def _boxes_at(centers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    half = sizes / 2
    return np.concatenate([centers - half, centers + half], axis=1)  # (N, 4)


def random_boxes(num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, 4) boxes in [0, 1]: uniform centres, sides |truncated normal 0.5|, independent."""
    centers = rng.random((num, 2), np.float32)
    return _boxes_at(centers, np.abs(_truncated_normal(rng, 0.5, (num, 2))))


def shifted_boxes(boxes: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, 4) boxes with the sizes of real ones at uniform centres."""
    chosen = _draw_rows(boxes, num, rng)
    return _boxes_at(rng.random((num, 2), np.float32), chosen[:, 2:] - chosen[:, :2])


def jittered_boxes(boxes: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, 4) near-duplicates: each edge moves by a truncated normal 0.05 of the box's side."""
    chosen = _draw_rows(boxes, num, rng)
    sides = chosen[:, 2:] - chosen[:, :2]
    moves = _truncated_normal(rng, 0.05, (num, 2, 2))  # corner, axis
    return chosen + (moves * sides[:, None]).reshape(-1, 4)


def _draw_rows(boxes: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """`num` rows without replacement from as many copies of `boxes` as that takes."""
    copies = -(-num // len(boxes))
    return boxes[rng.permutation(copies * len(boxes))[:num] % len(boxes)]


def noise_boxes(boxes: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes of noise objects, to be appended to the real ones.

    A uniform number of them are jittered duplicates of real boxes; of the rest about half are
    real boxes at another place and half are random. Without a real box all are random.

    Args:
        boxes: (N, 4) float32 real boxes in [0, 1] of the picture content (not of the padded
            input), in any coordinate order whose second half minus first half is the size.
        num: how many are wanted.

    Returns:
        (num, 4) float32 in [0, 1], in random order.
    """
    if len(boxes) == 0:
        noise = random_boxes(num, rng)
    else:
        num_duplicates = int(rng.integers(0, num + 1))
        num_bad = num - num_duplicates
        # officially as many of both kinds are made, and a random half of all of them is kept
        num_shifted = int(rng.hypergeometric(num_bad, num_bad, num_bad))
        noise = np.concatenate(
            [
                jittered_boxes(boxes, num_duplicates, rng),
                shifted_boxes(boxes, num_bad, rng)[:num_shifted],
                random_boxes(num_bad - num_shifted, rng),
            ]
        )[rng.permutation(num)]
    return np.minimum(np.maximum(noise, 0), 1)  # `np.clip` takes as long as all the rest
