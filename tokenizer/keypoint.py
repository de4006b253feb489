"""Keypoints as tokens: the points of one object, given its box and class, in a crop of it."""

from collections.abc import Sequence

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
from utils.categories import COCO_PERSON, Skeleton, pairs_of


class KeypointTokenizer(TaskTokenizer):
    """Keypoints  <->  `y x` per point, the invisible token twice where a point is not labelled.

    The prompt is `task ymin xmin ymax xmax class`, the box in the frame of the cropped picture.
    All answers have one length, there is no end token. In training a random share of the points'
    tokens that the decoder is shown is invisible too: it must not just continue the points before.

    The official code draws that share once for a batch, this one for every sequence. At inference
    the model may say `invisible` and goes on from there; such places are drawn anew afterwards, so
    that every point has one (`infer/keypoint.py`).

    Args:
        names, edges: see `Skeleton`; the default is COCO's person. Edges are for pictures alone.
        labels: class ids of the objects that have these points.
        crop: how an object is shown: its box, widened by this share of its sides on each side.
        mask_inputs: show invisible tokens in training, as above.
        invisible_weight: loss weight of points that are not labelled.
        pad_weight: loss weight of padding targets (of an object that is not there).
    """

    task, prompt_len = "keypoint", PROMPT_LEN

    def __init__(
        self,
        vocab: Vocabulary,
        names: Sequence[str] = COCO_PERSON.names,
        edges: Sequence[Sequence[int]] | None = None,
        *,
        labels: Sequence[int] = (1,),
        crop: float = 0.5,
        mask_inputs: bool = True,
        invisible_weight: float = 0.1,
        pad_weight: float = 0.0,
    ):
        super().__init__(vocab)
        if crop < 0 or not labels:
            raise ValueError(
                f"crop must not be negative and labels not empty, got {crop} and {labels}"
            )
        if edges is None:
            edges = COCO_PERSON.edges if tuple(names) == COCO_PERSON.names else ()
        self.skeleton = Skeleton(tuple(names), pairs_of(edges))
        self.labels, self.crop, self.mask_inputs = tuple(labels), crop, mask_inputs
        self.invisible_weight, self.pad_weight = invisible_weight, pad_weight

    def settings(self) -> dict:
        return {
            "names": list(self.skeleton.names),
            "edges": [list(edge) for edge in self.skeleton.edges],
            "labels": list(self.labels),
            "crop": self.crop,
        }

    @property
    def max_new_tokens(self) -> int:
        return 2 * len(self.skeleton)

    def prompts(self, boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(N, 6), see `instance_prompt`."""
        return instance_prompt(self.vocab, self.task, boxes, labels, size)

    def encode(self, keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The points of one object as tokens.

        Args:
            keypoints: (K, 3) x, y in pixels of the model input, visibility (0 = not labelled).
            size: (H, W) of the model input.

        Returns:
            (2 K,) token ids.
        """
        keypoints = np.asarray(keypoints, np.float32)
        if keypoints.shape != (len(self.skeleton), 3):
            raise ValueError(
                f"keypoints must be of shape {(len(self.skeleton), 3)}, got {keypoints.shape}"
            )
        unlabelled = ~(keypoints[:, 2] > 0)
        return points_to_tokens(self.vocab, keypoints[:, :2], size, unlabelled).reshape(-1)

    def sequence(
        self,
        box: np.ndarray,
        label: int,
        keypoints: np.ndarray,
        size: tuple[int, int],
        rng: np.random.Generator,
    ) -> TokenSequence:
        """Training sequence of one object, of which a random share of the tokens is hidden."""
        hidden = np.zeros(self.max_new_tokens - 1, bool)
        if self.mask_inputs:
            ratio = rng.random()
            hidden = rng.random(len(hidden)) < ratio
        return self.sequence_from_draws(box, label, keypoints, size, hidden)

    def sequence_from_draws(
        self,
        box: np.ndarray,
        label: int,
        keypoints: np.ndarray,
        size: tuple[int, int],
        hidden: np.ndarray,
    ) -> TokenSequence:
        """The training sequence of one object whose hidden tokens are chosen already.

        Args:
            box, label: (4,) xyxy pixels of the model input and class id, or 0 for an object that
                is not there: padding throughout.
            keypoints: (K, 3), see `encode`.
            hidden: (2 K - 1,) bool, which tokens of the answer the decoder sees as invisible (the
                last one is never shown).
        """
        v = self.vocab
        prompt = self.prompts(np.asarray(box)[None], np.array([label]), size)[0]
        answer = self.encode(keypoints, size)
        if label == 0:
            answer[:] = v.pad
        shown = answer.copy()
        shown[:-1][hidden] = v.invisible
        weight = np.where(answer == v.invisible, self.invisible_weight, 1)
        return self.shift(prompt, shown, answer, weight, pad_weight=self.pad_weight)

    def decode(
        self, tokens: np.ndarray, box: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Any token sequence, even an invalid one, as points.

        Args:
            tokens: (T,) generated ids, prompt not included.
            box: (4,) xyxy pixels of the model input.
            size: (H, W) of the model input.

        Returns:
            points (K, 2) of (x, y), pixels of the model input; a coordinate that is not in the
            answer (invisible, padding, missing) is that of the box's centre. Not clipped, as
            officially: ids that are no coordinates lie far outside.
            found (K,) bool: both tokens of the point are coordinates.
        """
        v = self.vocab
        answer = np.full(self.max_new_tokens, v.invisible)
        tokens = np.asarray(tokens, np.int64)[: len(answer)]
        answer[: len(tokens)] = tokens
        points = tokens_to_points(v, answer, size)  # (K, 2), NaN where there is no coordinate
        low, high = v.coord_range
        found = ((answer >= low) & (answer < high)).reshape(-1, 2).all(1)
        centre = np.asarray(box, np.float32).reshape(2, 2).mean(0)
        return np.where(np.isnan(points), centre, points), found

    def allowed(self, tokens: Tensor) -> Tensor:
        """The grammar: (R, t) generated so far -> (V,) bool, what may come next.

        A coordinate or the invisible token; after one that is invisible either may come, so the
        official sampling is the same as long as it stays among the tokens of points.
        """
        v = self.vocab
        mask = torch.zeros(v.size, dtype=torch.bool, device=tokens.device)
        mask[slice(*v.coord_range)] = True
        mask[v.invisible] = True
        return mask


def weighted_scores(
    tokens: np.ndarray, log_probs: np.ndarray, box_scores: np.ndarray, weight: float, pad: int
) -> np.ndarray:
    """Scores of objects from box and point scores (official `compute_weighted_scores`).

    Args:
        tokens, log_probs: (N * S, T) of S answers per object, samples fastest.
        box_scores: (N,) in [0, 1].
        weight: of the mean probability of the tokens; the box's score has the rest.
        pad: the id whose tokens do not count; an answer of nothing else has probability 0.

    Returns:
        (N,) float32.
    """
    box_scores = np.asarray(box_scores, np.float32)
    if not len(box_scores):
        return box_scores
    counted = np.asarray(tokens) != pad
    sums = (np.exp(np.asarray(log_probs, np.float32)) * counted).sum(-1)
    means = sums / np.maximum(counted.sum(-1), 1)  # (N * S,)
    points = means.reshape(len(box_scores), -1).mean(1)
    return (weight * points + (1 - weight) * box_scores).astype(np.float32)
