"""Training steps on synthetic tensors: images per second and share of the machine's matmul rate.

python benchmarks/train_step.py
python benchmarks/train_step.py --profile detection
python benchmarks/train_step.py --size vit-b-640 --batch 32 --device cuda --compile

Two ways on models of the same size and on the same batches, measured alternately, medians:
  ours    mixed precision where there is a GPU, sequences cut behind the last weight, only positions
          with weight projected onto the vocabulary, fused AdamW, torch.compile by choice
  plain   a loop as the PyTorch ports write it: float32, sequences of full length, logits of every
          position, AdamW as torch builds it
MFU: the FLOPs of our step (products alone, counted by torch) over its time, as a share of the rate
of a large matrix product of the same type, measured in the same turns. On a CPU one thread works
and its own processor time counts: other programs on the machine matter little.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import large_products, machine
from dataset.batch import Batch, TrainItem, collate
from models import ModelConfig, Pix2Seq, build_model
from tokenizer.base import TaskTokenizer, TokenSequence
from tokenizer.captioning import CaptionTokenizer
from tokenizer.detection import DetectionTokenizer
from tokenizer.keypoint import KeypointTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from train.loss import autocast, batch_loss
from train.optim import build_optimizer
from utils.cli import run
from utils.devices import pick_device

TASKS = ("detection", "segmentation", "keypoint", "captioning")
ALL = "multi-task"
MATRIX = 1024  # side of the product that measures the matmul rate of a CPU
SENTENCE = "a man rides one brown horse on the beach while two dogs run behind him"
SIZES = {  # of the model, and of the tokens
    "small": {
        "model": {
            "encoder": "vit_tiny_patch16_224", "image_size": (224, 224), "dim": 256,
            "num_layers": 3, "num_heads": 8, "mlp_dim": 1024,
        },
        "batch": 4,
        "objects": 20, "points": 32, "outlines": 4, "captions": 2, "words": 32,
    },
    "vit-b-640": {
        "model": {
            "encoder": "official_vit", "image_size": (640, 640), "dim": 512, "num_layers": 6,
            "num_heads": 16, "mlp_dim": 2048,
        },
        "batch": 32,
        "objects": 100, "points": 128, "outlines": 10, "captions": 5, "words": 128,
    },
}  # fmt: skip


def parse(argv=None) -> argparse.Namespace:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--size", choices=SIZES, default="small")
    args.add_argument("--tasks", nargs="+", choices=(*TASKS, ALL), default=[*TASKS, ALL])
    args.add_argument("--batch", type=int, default=0, help="images of a task; 0 = by size")
    args.add_argument("--repeat", type=int, default=3, help="turns")
    args.add_argument("--device", default="auto")
    args.add_argument("--amp", choices=("auto", "off", "bf16"), default="auto")
    args.add_argument("--compile", action="store_true", help="our forward and backward")
    args.add_argument("--profile", metavar="TASK", choices=(*TASKS, ALL), help="print its top ops")
    args.add_argument("--json", type=Path, help="write the figures there")
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return args.parse_args(argv)


def build_tokenizers(size: dict) -> dict[str, TaskTokenizer]:
    text = TextTokenizer.train([SENTENCE] * 2, 200)
    vocab = Vocabulary(num_text=text.size)
    return {
        "detection": DetectionTokenizer(vocab, size["objects"]),
        "segmentation": SegmentationTokenizer(
            vocab, size["points"], max_objects=size["outlines"], first_end_only=True
        ),
        "keypoint": KeypointTokenizer(vocab),
        "captioning": CaptionTokenizer(
            vocab, text, size["words"], num_captions=size["captions"], pad_weight=0.0
        ),
    }


def sequence(tokenizer: TaskTokenizer, side: int, rng: np.random.Generator) -> TokenSequence:
    """A training sequence of made-up annotation, as long as those of COCO are."""
    window = (side, side)
    corners = np.sort(rng.random((int(rng.integers(1, 15)), 2, 2)) * side, axis=1)  # (N, 2, 2)
    boxes = corners.reshape(-1, 4).astype(np.float32)
    labels = np.ones(len(boxes), np.int64)
    if tokenizer.task == "detection":
        return tokenizer.sequence(boxes, labels, window, rng)
    if tokenizer.task == "keypoint":
        points = np.concatenate([rng.random((17, 2)) * side, np.ones((17, 1))], 1)
        return tokenizer.sequence(boxes[0], 1, points, window, rng)
    if tokenizer.task == "segmentation":
        outlines = [[(rng.random((int(rng.integers(8, 28)), 2)) * side).astype("f")] for _ in boxes]
        return tokenizer.sequence(boxes, labels, outlines, window, rng)
    return tokenizer.sequence([" ".join(rng.permutation(SENTENCE.split())[:11])], rng)


def build_batches(tokenizer: TaskTokenizer, side: int, batch: int, num_lengths: int):
    """The same samples as the loader hands them over, and with sequences of full length."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    items = [
        TrainItem(image, (side, side), sequence(tokenizer, side, rng), n) for n in range(batch)
    ]
    cut, (inputs, targets, weights) = collate(items, num_lengths), stack_tokens(items)
    images = cut.images.contiguous()
    return cut, Batch(images, cut.unpadded, inputs, targets, weights, cut.image_ids)


def stack_tokens(items: list[TrainItem]) -> list[Tensor]:
    """Input, target and weight of full length."""
    columns = zip(*((i.tokens.input, i.tokens.target, i.tokens.weight) for i in items), strict=True)
    return [torch.from_numpy(np.stack(column)) for column in columns]


def our_step(model: Pix2Seq, optimizer, batches: list[Batch], dtype: torch.dtype | None) -> Tensor:
    """As `train.engine.train_step` does it."""
    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        batch = batch.to(model.device, non_blocking=True)
        with autocast(model.device, dtype):
            loss = batch_loss(model, batch)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf)
    optimizer.step()
    return loss.detach()


def plain_step(model: Pix2Seq, optimizer, batches: list[Batch]) -> Tensor:
    """As the ports do it."""
    optimizer.zero_grad()
    for batch in batches:
        batch = batch.to(model.device)
        logits = model(batch.images.float() / 255, batch.input_tokens)  # (B * N, T, V)
        losses = F.cross_entropy(
            logits.flatten(0, 1), batch.target_tokens.flatten(), reduction="none"
        )
        weights = batch.token_weights.flatten()
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
    optimizer.step()
    return loss.detach()


def in_turns(ways: dict[str, Callable[[], object]], repeat: int, device: torch.device) -> dict:
    """Median seconds of each way after a warm-up of each, the ways one after another."""
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if not on_cpu:
                torch.cuda.synchronize(device)
            if turn:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def count_flops(model: Pix2Seq, batches: list[Batch]) -> int:
    """Of forward and backward; attention as plain products, which are the ones torch counts."""
    model = copy.deepcopy(model).to("meta")  # only shapes count
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            batch_loss(model, batch.to("meta")).backward()
    return counter.get_total_flops()


class Bench:
    """Two models of one size, and the batches of every task."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.size, self.device = args, SIZES[args.size], pick_device(args.device)
        on_gpu = self.device.type == "cuda"
        mixed = args.amp == "bf16" or (args.amp == "auto" and on_gpu)
        self.dtype = torch.bfloat16 if mixed else None
        side, batch = self.size["model"]["image_size"][0], args.batch or self.size["batch"]
        tokenizers = build_tokenizers(self.size)
        self.batches = {
            task: build_batches(tokenizer, side, batch, 8 if args.compile or on_gpu else 0)
            for task, tokenizer in tokenizers.items()
        }
        if on_gpu:
            self.batches = {t: [b.pin_memory() for b in two] for t, two in self.batches.items()}
        vocab = next(iter(tokenizers.values())).vocab
        max_len = max(tokenizer.max_len for tokenizer in tokenizers.values())
        config = ModelConfig(**self.size["model"], vocab_size=vocab.size, max_len=max_len)
        self.model, self.plain_model = (
            build_model(config).to(self.device).train() for _ in range(2)
        )
        options = {"lr": 1e-5, "weight_decay": 0.05, "betas": (0.9, 0.95)}
        self.optimizer = build_optimizer(self.model, **options)
        self.plain_optimizer = torch.optim.AdamW(self.plain_model.parameters(), **options)

    def measure(self, task: str) -> dict:
        """One line of the table."""
        cut, whole = zip(*self._of(task), strict=True)
        flops = count_flops(self.plain_model, cut)
        work, multiply = large_products(self.device, self.dtype, MATRIX)
        ways = {
            "ours": lambda: our_step(self.model, self.optimizer, cut, self.dtype),
            "plain": lambda: plain_step(self.plain_model, self.plain_optimizer, whole),
            "matmul": multiply,
        }
        took = in_turns(ways, self.args.repeat, self.device)
        rate, images = work / took["matmul"], sum(map(len, cut))
        return {
            "images": images,
            "tokens": max(b.input_tokens.shape[-1] for b in cut),
            "full_tokens": max(b.input_tokens.shape[-1] for b in whole),
            "ours_ms": 1e3 * took["ours"],
            "plain_ms": 1e3 * took["plain"],
            "images_per_s": images / took["ours"],
            "ratio": took["plain"] / took["ours"],
            "step_gflops": flops / 1e9,
            "matmul_gflops_per_s": rate / 1e9,
            "mfu": flops / took["ours"] / rate,
        }

    def profile(self, task: str) -> None:
        cut, _ = zip(*self._of(task), strict=True)
        our_step(self.model, self.optimizer, cut, self.dtype)
        with torch.profiler.profile() as profile:
            our_step(self.model, self.optimizer, cut, self.dtype)
        order = f"self_{self.device.type}_time_total"
        print(profile.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=45))

    def _of(self, task: str) -> list:
        return list(self.batches.values()) if task == ALL else [self.batches[task]]


def main(argv=None):
    args = parse(argv)
    torch.manual_seed(0)
    if pick_device(args.device).type == "cpu":
        torch.set_num_threads(1)
    bench = Bench(args)
    if args.compile:
        bench.model.compile()
    if args.profile:
        bench.profile(args.profile)
        return
    kind = "bf16" if bench.dtype else "float32"
    print(f"{args.size}, ours in {kind}, {machine(bench.device)}, torch {torch.__version__}")
    figures = {}
    for task in args.tasks:
        figures[task] = row = bench.measure(task)
        if len(figures) == 1:
            print(f"{'':13}" + "".join(f"{name:>15.14}" for name in row))
        print(f"{task:13}" + "".join(f"{value:15.2f}" for value in row.values()))
    if args.json:
        out = {"machine": machine(bench.device), "torch": torch.__version__, "ours": kind}
        args.json.write_text(json.dumps(vars(args) | out | figures, indent=2, default=str) + "\n")


if __name__ == "__main__":
    run(main)
