"""What a weight file records besides the model: vocabulary, categories, tasks, resizing."""

import typing
from dataclasses import dataclass

from dataset.preprocess import Resizing
from dataset.tasks import TASKS, build_tokenizer
from models import ModelConfig
from tokenizer.base import TaskTokenizer
from tokenizer.vocabulary import Vocabulary
from utils.categories import Categories
from utils.errors import UserError, one_line
from utils.files import check_fields, shown

MISFITS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError)
HEAVY = ("captioning",)  # tasks whose tokenizer is built when it is needed


@dataclass(frozen=True)
class WeightMeta:
    """The checked `meta` of a weight file."""

    tasks: dict[str, dict]  # name -> settings of its tokenizer
    vocab: Vocabulary
    categories: Categories
    resize_mode: str
    resizing: Resizing


def read_meta(meta: dict, config: ModelConfig, source: str) -> WeightMeta:
    """`meta` of a model, as `train` and the converters write it.

    Args:
        source: names the file in errors.

    Raises:
        UserError: something is missing, of another type, or does not fit the model.
    """
    try:
        for name in ("vocabulary", "categories", "tasks", "resize_mode"):
            if name not in meta:
                raise ValueError(f"it has no {name!r}")
        check_fields(meta["vocabulary"], typing.get_type_hints(Vocabulary))
        vocab = Vocabulary.from_json(meta["vocabulary"])
        if vocab.size > config.vocab_size:
            raise ValueError(f"{vocab.size} tokens, but the model has {config.vocab_size}")
        categories = _read_categories(meta["categories"], vocab)
        if meta["resize_mode"] not in ("letterbox", "stretch"):
            raise ValueError(
                f"resize_mode must be letterbox or stretch, got {shown(meta['resize_mode'])}"
            )
        resizing = meta.get("resizing", {})
        check_fields(resizing, typing.get_type_hints(Resizing))
        tasks = meta["tasks"]
        check_fields(tasks, dict.fromkeys(TASKS, dict))
        if not tasks:
            raise ValueError("it names no task")
    except MISFITS as error:
        raise UserError(
            f"the metadata of {source} is no record of ours: {one_line(error)}; convert or train "
            "it anew"
        ) from error
    for task, settings in tasks.items():
        if task not in HEAVY:
            tokenizer_of(task, settings, vocab, config, source)
    return WeightMeta(tasks, vocab, categories, meta["resize_mode"], Resizing(**resizing))


def tokenizer_of(
    task: str, settings: dict, vocab: Vocabulary, config: ModelConfig, source: str
) -> TaskTokenizer:
    """The tokenizer that a weight file describes.

    Raises:
        UserError: the settings are none of that task, or the decoder has no room for it.
    """
    try:
        kinds = typing.get_type_hints(TASKS[task].tokenizer.__init__)
        check_fields(settings, kinds)
        tokenizer = build_tokenizer(task, vocab, **settings)
        if tokenizer.max_len > config.max_len:
            raise ValueError(f"it needs {tokenizer.max_len} positions of {config.max_len}")
    except MISFITS as error:
        raise UserError(
            f"the metadata of {source} describes no {task}: {one_line(error)}; convert or train "
            "it anew"
        ) from error
    return tokenizer


def _read_categories(rows: object, vocab: Vocabulary) -> Categories:
    if not isinstance(rows, list):
        raise ValueError(f"categories must be a list, got {shown(rows)}")
    for row in rows:
        check_fields(row, {"id": int, "name": str, "source_id": int})
    categories = Categories.from_json(rows)
    if len(categories.names) < len(rows):
        raise ValueError("a class id stands there twice")
    for class_id in categories.names:
        if class_id not in vocab.labels:
            raise ValueError(f"class id {class_id} has no token")
    return categories
