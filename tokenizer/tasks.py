"""The registry of task tokenizers; builds them from options or from a weight file.

For a new task see docs/tasks.md, "A fifth task".
"""

import typing

from tokenizer.base import TaskTokenizer
from tokenizer.captioning import CaptionTokenizer
from tokenizer.detection import DetectionTokenizer
from tokenizer.keypoint import KeypointTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.vocabulary import Vocabulary
from utils.errors import UserError, one_line
from utils.files import check_fields

TOKENIZERS: dict[str, type[TaskTokenizer]] = {
    "detection": DetectionTokenizer,
    "segmentation": SegmentationTokenizer,
    "keypoint": KeypointTokenizer,
    "captioning": CaptionTokenizer,
}
# What checking the values of an unknown file may raise
MISFITS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError)


def build_tokenizer(task: str, vocab: Vocabulary, **options) -> TaskTokenizer:
    """Builds the tokenizer of a task with options of its class.

    Raises:
        UserError: there is no such task.
    """
    if task not in TOKENIZERS:
        raise UserError(f"task must be one of {sorted(TOKENIZERS)}, got {task!r}")
    return TOKENIZERS[task](vocab, **options)


def build_saved_tokenizer(
    task: str, settings: dict, vocab: Vocabulary, max_len: int, source: str
) -> TaskTokenizer:
    """The tokenizer that a weight file describes.

    Args:
        settings: of the file.
        max_len: positions of the decoder.
        source: names the file in errors.

    Raises:
        UserError: the settings are none of that task, or the decoder has no room for it.
    """
    try:
        kinds = typing.get_type_hints(TOKENIZERS[task].__init__)
        check_fields(settings, kinds)
        tokenizer = build_tokenizer(task, vocab, **settings)
        if tokenizer.max_len > max_len:
            raise ValueError(f"it needs {tokenizer.max_len} positions of {max_len}")
    except MISFITS as error:
        raise UserError(
            f"the metadata of {source} describes no {task}: {one_line(error)}; convert or train "
            "the weights again"
        ) from error
    return tokenizer
