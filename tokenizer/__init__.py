"""Annotations as token sequences and back: one vocabulary, one tokenizer per task."""

from tokenizer.base import TaskTokenizer, TokenSequence
from tokenizer.captioning import CaptionTokenizer
from tokenizer.detection import DetectionTokenizer
from tokenizer.keypoint import KeypointTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary

__all__ = [
    "CaptionTokenizer",
    "DetectionTokenizer",
    "KeypointTokenizer",
    "SegmentationTokenizer",
    "TaskTokenizer",
    "TextTokenizer",
    "TokenSequence",
    "Vocabulary",
]
