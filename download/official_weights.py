"""Writes a weight file of ours from a checkpoint of the official TensorFlow implementation."""

import argparse
import hashlib
from pathlib import Path

import torch

from dataset.coco_format import read_annotations
from download.official_model import (
    coco_categories,
    is_model_variable,
    model_config,
    resize_positions,
    to_state_dict,
    vocabulary,
)
from download.official_settings import read_official_config, variant_settings
from download.tf_checkpoint import read_checkpoint
from models import build_model, save_model
from tokenizer.detection import TOKENS_PER_OBJECT
from tokenizer.tasks import build_tokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import PROMPT_LEN, Vocabulary
from utils.categories import Categories
from utils.cli import log
from utils.errors import UserError
from utils.files import write_text_atomic

MAX_OBJECTS, MAX_POINTS, MAX_CAPTION = 100, 128, 128  # in all official configs


def read_categories(args: argparse.Namespace, vocab: Vocabulary) -> Categories:
    """The classes that the user names, or those of COCO.

    Raises:
        UserError: the vocabulary has no token for one of them.
    """
    if args.annotations is not None:
        categories = Categories.from_coco(read_annotations(args.annotations)["categories"])
    elif args.num_classes is not None:
        names = [f"class {i}" for i in range(1, args.num_classes + 1)]
        categories = Categories.from_names(names)
    else:
        categories = coco_categories()
    last = max(categories.names, default=1)
    if last not in vocab.labels:
        raise UserError(
            f"class id {last} has no token, the vocabulary of these settings ends at "
            f"{vocab.labels.stop - 1}; name the classes that were trained with --annotations or "
            "--num-classes"
        )
    return categories


OFFICIAL_TASKS = ("detection", "segmentation", "keypoint", "captioning")


def task_settings(vocab: Vocabulary, args: argparse.Namespace, max_len: int) -> dict[str, dict]:
    """Settings of the tokenizers, by task, as a training run records them.

    Lengths are the official ones, or what a smaller decoder has room for.
    """
    names = list(OFFICIAL_TASKS) if args.task == "multi" else ["detection"]
    options: dict[str, dict] = {
        "detection": {"max_objects": min(MAX_OBJECTS, max_len // TOKENS_PER_OBJECT)},
        "segmentation": {"max_points": min(MAX_POINTS, (max_len + 1 - PROMPT_LEN) // 2)},
    }
    if args.text_model is not None:
        text = TextTokenizer.load(args.text_model)
        options["captioning"] = {"text": text, "max_tokens": min(MAX_CAPTION, max_len)}
    elif "captioning" in names:
        names.remove("captioning")
        log("notice: without --text-model the weights cannot write captions")
    try:
        tokenizers = [build_tokenizer(name, vocab, **options.get(name, {})) for name in names]
    except ValueError as error:
        raise UserError(f"the official settings do not fit the tasks: {error}") from error
    for tokenizer in tokenizers:
        if tokenizer.max_new_tokens < 1 or tokenizer.max_len > max_len:
            raise UserError(f"a decoder of {max_len} positions has no room for {tokenizer.task}")
    return {tokenizer.task: tokenizer.settings() for tokenizer in tokenizers}


def sha256(path: Path) -> str:
    digest = hashlib.sha256()  # `hashlib.file_digest` needs Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _settings(args: argparse.Namespace) -> tuple[dict, int | None]:
    """The `model` settings that the checkpoint was trained with, and its coordinate bins."""
    if args.variant is None:
        return read_official_config(args.config)
    return variant_settings(args.variant, args.image_size, multi_task=args.task == "multi"), None


def convert(args: argparse.Namespace) -> str:
    """Writes the weight file and its checksum; returns the checksum."""
    settings, num_bins = _settings(args)
    config, vocab = model_config(settings), vocabulary(settings, num_bins)
    meta = {
        "vocabulary": vocab.to_json(),
        "categories": read_categories(args, vocab).to_json(),
        "resize_mode": "letterbox",
        "tasks": task_settings(vocab, args, config.max_len),
    }
    state = to_state_dict(read_checkpoint(args.checkpoint, is_model_variable), config)
    if args.resize is not None:
        state, config = resize_positions(state, config, (args.resize, args.resize))
    with torch.device("meta"):
        model = build_model(config)
    model.load_state_dict(state, assign=True)
    save_model(model, args.out, meta=meta)
    digest = sha256(args.out)
    write_text_atomic(args.out.with_name(args.out.name + ".sha256"), f"{digest}  {args.out.name}\n")
    return digest
