"""Annotations as token sequences and back: one vocabulary, one tokenizer per task."""

from importlib import import_module

import utils  # noqa: F401, looks for missing packages before they are imported

_HOMES = {
    "CaptionTokenizer": "captioning",
    "DetectionTokenizer": "detection",
    "KeypointTokenizer": "keypoint",
    "SegmentationTokenizer": "segmentation",
    "TaskTokenizer": "base",
    "TextTokenizer": "text",
    "TokenSequence": "base",
    "Vocabulary": "vocabulary",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """A class by its short name; only its own module is imported (the others need torch)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
