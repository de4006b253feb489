"""Annotations as token sequences and back: one vocabulary, one tokenizer per task."""

from tokenizer.detection import DetectionTokenizer
from tokenizer.task import TaskTokenizer, TokenSequence
from tokenizer.vocabulary import Vocabulary

__all__ = ["DetectionTokenizer", "TaskTokenizer", "TokenSequence", "Vocabulary"]
