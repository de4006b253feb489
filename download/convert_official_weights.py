"""Convert a checkpoint of the official TensorFlow implementation to a weight file of ours.

    python download/convert_official_weights.py CHECKPOINT weights/official.safetensors \\
        --variant vit-b --image-size 640
    python download/convert_official_weights.py CHECKPOINT OUT.safetensors --config config.json

CHECKPOINT is a prefix (`.../ckpt-93324`) or a folder with a `checkpoint` file. TensorFlow is not
needed. Every variable must find its place; optimiser slots are ignored. Beside OUT stands its
sha256 sum, OUT.sha256.
"""

import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from dataset.coco_format import read_annotations
from dataset.tasks import TASKS, build_tokenizer
from download.official_model import (
    VARIANTS,
    coco_categories,
    is_model_variable,
    model_config,
    resize_positions,
    to_state_dict,
    variant_settings,
    vocabulary,
)
from download.tf_checkpoint import read_checkpoint
from models import ModelConfig, build_model, save_model
from tokenizer.coordinates import PROMPT_LEN
from tokenizer.detection import TOKENS_PER_OBJECT
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from utils.categories import Categories
from utils.cli import log, run
from utils.errors import UserError
from utils.files import read_json, write_text_atomic

MAX_OBJECTS, MAX_POINTS, MAX_CAPTION = 100, 128, 128  # in all official configs


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--variant", choices=VARIANTS, help="a published size, with --image-size")
    model.add_argument(
        "--config", type=Path, metavar="FILE.json", help="official settings with a 'model' object"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="side that the checkpoint was trained with"
    )
    parser.add_argument(
        "--task", choices=("detection", "multi"), default="detection",
        help="what it was trained for (default: detection)",
    )  # fmt: skip
    parser.add_argument(
        "--text-model", type=Path, metavar="FILE",
        help="c4_en_32k_spm.model, the pieces of the captions (multi)",
    )  # fmt: skip
    parser.add_argument(
        "--resize", type=int, metavar="N", help="side of the input from now on; default: unchanged"
    )
    names = parser.add_mutually_exclusive_group()
    names.add_argument(
        "--annotations", type=Path, metavar="FILE.json",
        help="COCO annotation file with the category names (default: those of COCO 2017)",
    )  # fmt: skip
    names.add_argument(
        "--num-classes", type=int, metavar="N", help="name the classes 1 to N by their numbers"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if (args.variant is None) != (args.image_size is None):
        raise UserError("--variant and --image-size go together; --config holds the size itself")
    if args.text_model is not None and args.task != "multi":
        raise UserError("--text-model is for --task multi")
    if args.out.suffix != ".safetensors":
        raise UserError(f"the weight file must end in .safetensors, got {args.out}")
    for name in ("image_size", "resize", "num_classes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    return args


def read_settings(args: argparse.Namespace) -> tuple[ModelConfig, Vocabulary]:
    """What the checkpoint was trained with."""
    if args.variant is not None:
        settings = variant_settings(args.variant, args.image_size, multi_task=args.task == "multi")
        return model_config(settings), vocabulary(settings)
    content = read_json(args.config, "name an official config.json")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{args.config} has no object 'model'; name an official config.json")
    settings = content["model"]
    return model_config(settings), vocabulary(settings, read_num_bins(args.config, content))


def read_num_bins(file: Path, content: dict) -> int | None:
    """`quantization_bins`, which stand with the task or with each of the tasks; None = nowhere."""
    tasks = content.get("tasks")
    places = [content, content.get("task"), *(tasks if isinstance(tasks, list) else [])]
    places = [place for place in places if isinstance(place, dict)]
    bins = [place["quantization_bins"] for place in places if "quantization_bins" in place]
    if any(number != bins[0] for number in bins):
        raise UserError(f"{file} has several values of 'quantization_bins': {bins}; leave one")
    return bins[0] if bins else None


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


def task_settings(vocab: Vocabulary, args: argparse.Namespace, max_len: int) -> dict[str, dict]:
    """Settings of the tokenizers, by task, as a training run records them.

    Lengths are the official ones, or what a smaller decoder has room for.
    """
    names = list(TASKS) if args.task == "multi" else ["detection"]
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


def convert(args: argparse.Namespace) -> str:
    """Writes the weight file and its checksum; returns the checksum."""
    config, vocab = read_settings(args)
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


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    print(f"{convert(args)}  {args.out}")


if __name__ == "__main__":
    run(main)
