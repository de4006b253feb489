"""Padding is the vocabulary's pad, whatever number that is."""

import numpy as np
import pytest

from dataset.tasks import TASKS
from tokenizer.captioning import CaptionTokenizer
from tokenizer.detection import DetectionTokenizer
from tokenizer.keypoint import KeypointTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary

SIZE = (64, 80)
TEXT = TextTokenizer.train(["a red car on the road", "two cats and a dog"] * 3, 60)
OUTLINE = np.float32([[3, 4], [20, 5], [15, 30], [9, 12]])
BOXES = np.float32([[3, 4, 20, 30], [30, 10, 60, 40]])
POINTS = np.concatenate([np.random.default_rng(0).random((17, 2)) * 60, np.ones((17, 1))], 1)


def sequences(vocab, task):
    """A sequence that is padded where the task pads, and one of nothing."""
    rng = np.random.default_rng(0)
    if task == "detection":
        tokenizer = DetectionTokenizer(vocab, 6, noise=False, pad_weight=0.3)
        return [tokenizer.sequence(BOXES[:n], [3, 5][:n], SIZE, rng) for n in (2, 0)]
    if task == "segmentation":
        tokenizer = SegmentationTokenizer(
            vocab, 9, max_objects=3, pad_weight=0.3, weigh_absent=True
        )
        parts = [[OUTLINE], [OUTLINE, OUTLINE + 9]]
        return [tokenizer.sequence(BOXES[:n], [3, 5][:n], parts[:n], SIZE, rng) for n in (2, 0)]
    if task == "keypoint":
        tokenizer = KeypointTokenizer(vocab, pad_weight=0.3)
        return [tokenizer.sequence(BOXES[0], label, POINTS, SIZE, rng) for label in (1, 0)]
    tokenizer = CaptionTokenizer(vocab, TEXT, 30, num_captions=2, drop=0.0, pad_weight=0.3)
    return [tokenizer.sequence(["a red cat", "two dogs"], rng)]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("pad", [5, 29, 42])
def test_another_pad_changes_the_id_and_nothing_else(task, pad):
    usual, other = (
        sequences(Vocabulary(num_text=TEXT.size, pad=number), task) for number in (0, pad)
    )
    padded = False
    for one, its in zip(usual, other, strict=True):
        for name in ("input", "target"):
            ids = getattr(one, name)
            padded |= bool((ids == 0).any())
            np.testing.assert_array_equal(np.where(ids == 0, pad, ids), getattr(its, name))
        np.testing.assert_array_equal(one.weight, its.weight)
    assert padded
