"""Memory that a training step takes: computed without a device, or measured on this one.

python benchmarks/memory.py --preset multi_task --task all --set batch_size=4
python benchmarks/memory.py --preset multi_task --task all --fits 40 80 141
python benchmarks/memory.py --preset demo --task segmentation --text-pieces 32000 --measure \
    --set batch_size=4 max_points=128 seg_max_objects=10

A whole step is run, forward, backward and optimiser, on tensors that have a size but no memory
(`FakeTensorMode`), and the most that lives at a time is added up: weights, gradients, the two
moments of AdamW, what the gradient needs, passing tensors. Every position of the longest sequences
carries weight: no batch takes more. Attention is counted as the fused kernels of a GPU keep it.
What an allocator wastes and what libraries take for themselves are not counted: a device needs
somewhat more (`--fits` leaves it a tenth).

`--measure` runs the step with memory on this machine. Both are told for logits in parts, as
training computes them, and for all logits at a time (`Decoder.losses`).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from contextlib import ExitStack
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

import models.decoder
import models.layers
from config import PRESETS
from dataset.batch import Batch
from models import Pix2Seq, build_model
from tokenizer.vocabulary import TASK_NAMES, Vocabulary
from train.distributed import recompute_activations
from train.loss import autocast, batch_loss
from train.settings import batch_sizes, build_tokenizers, model_config_from_settings
from utils.cli import load_settings, parser, pick_names, run
from utils.errors import UserError

GIB = 2**30
KEPT_FREE = 0.1  # share of a device that `--fits` does not fill
WHOLE = 2**62  # bytes of logits at a time: all


def shapes(cfg, tasks: list[str], vocab: Vocabulary) -> dict[str, tuple[int, int]]:
    """Sequences of an image and their tokens, the most that a task has."""
    lengths = {"captioning": cfg.max_caption_tokens}
    known = [task for task in tasks if task != "captioning"]  # its tokenizer needs a file
    for task, tokenizer in build_tokenizers(cfg, known, vocab).items():
        lengths[task] = tokenizer.max_len
    counts = {
        "segmentation": 1 if cfg.seg_crop else cfg.seg_max_objects,
        "captioning": cfg.captions_per_image,
    }
    return {task: (counts.get(task, 1), lengths[task]) for task in tasks}


def full_batch(size: int, num_sequences: int, length: int, side: int) -> Batch:
    """A batch of which every position carries weight."""
    shape = (size, num_sequences, length) if num_sequences > 1 else (size, length)
    tokens = torch.zeros(shape, dtype=torch.long)
    return Batch(
        images=torch.zeros(size, 3, side, side, dtype=torch.uint8),
        unpadded=torch.full((size, 2), side),
        input_tokens=tokens,
        target_tokens=tokens.clone(),
        token_weights=torch.ones(shape),
        image_ids=[0] * size,
        supervised=torch.arange(size * num_sequences * length),
    )


def peak(cfg, tasks: list[str], vocab: Vocabulary, *, at_once: int, measure: bool) -> int:
    """Bytes that live at the same time in a step of all tasks, at most.

    Args:
        at_once: bytes of logits that are computed at a time.
        measure: use memory; otherwise tensors have sizes alone.
    """
    sizes, sequences = batch_sizes(cfg, tasks), shapes(cfg, tasks, vocab)
    dtype = None if cfg.amp == "off" else torch.bfloat16
    with ExitStack() as stack:
        stack.enter_context(patch.object(models.decoder, "LOGITS_AT_ONCE", at_once))
        longest = max(length for _, length in sequences.values())
        model = build_model(
            model_config_from_settings(cfg, vocab, max_len=cfg.max_len or longest)
        ).train()
        if not measure:
            stack.enter_context(_without_memory(model))
            for module in (models.layers, models.decoder):  # on a CPU it would be in float32
                stack.enter_context(patch.object(module, "attend", _attend))
        if cfg.recompute_activations:
            recompute_activations(model.blocks)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        batches = [full_batch(sizes[task], *sequences[task], cfg.img_size) for task in tasks]
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            for parameter in model.parameters():  # the moments are there, as after a first step
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            _step(model, optimizer, batches, dtype, tracker)
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return snapshot["Total"]


def _without_memory(model: Pix2Seq) -> FakeTensorMode:
    """Leaves parameters and buffers nothing but a size; a model can only be built with values.

    Returns:
        the mode to work in.
    """
    mode = FakeTensorMode()
    for module in model.modules():
        for values in (module._parameters, module._buffers):
            for name, value in values.items():
                if value is not None:
                    values[name] = mode.from_tensor(value)
    return mode


def _step(
    model: Pix2Seq,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    dtype: torch.dtype | None,
    tracker: MemTracker,
) -> None:
    """As `train.engine.train_step` does it."""
    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        tracker.reset_mod_stats()
        with autocast(model.device, dtype):
            loss = batch_loss(model, batch)
        loss.backward()
        del loss
    optimizer.step()


def _attend(q: Tensor, k: Tensor, v: Tensor, *, mask=None, is_causal=False, drop=0.0) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask, drop, is_causal)


def largest_batch(cfg, tasks: list[str], vocab: Vocabulary, gigabytes: list[float]) -> list[str]:
    """A line per device: images of each task in a step.

    From some images on memory grows evenly with them; below, something else may be the most.
    """
    sizes = 8, 24
    peaks, at_once = [], models.decoder.LOGITS_AT_ONCE
    for size in sizes:
        own = {f"{task}_batch_size": size for task in TASK_NAMES}
        with patch.dict(cfg.__dict__, own | {"batch_size": size}):
            peaks.append(peak(cfg, tasks, vocab, at_once=at_once, measure=False))
    slope = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    fixed = peaks[0] - sizes[0] * slope
    lines = [f"computed: {fixed / GIB:.2f} GiB and {slope / GIB:.2f} GiB for an image of each task"]
    for size in gigabytes:
        most = int(((1 - KEPT_FREE) * size * 1e9 - fixed) // slope)
        lines.append(
            f"computed: {size:g} GB hold batch_size={most}"
            if most > 0
            else f"{size:g} GB do not hold one"
        )
    return lines


def main(argv=None):
    args = parser(__doc__, presets=PRESETS)
    args.add_argument(
        "--task", default="detection", help="of one step, several with commas, or all"
    )
    args.add_argument("--text-pieces", type=int, help="default: 32000, without captions none")
    args.add_argument("--fits", type=float, nargs="+", metavar="GB", help="memory of devices")
    args.add_argument("--measure", action="store_true", help="run the step on this machine")
    args = args.parse_args(argv)
    cfg = load_settings(args, PRESETS["default"], presets=PRESETS)
    tasks = list(TASK_NAMES) if args.task == "all" else pick_names("--task", args.task, TASK_NAMES)
    if args.fits and args.measure:
        raise UserError("--fits computes and --measure measures; leave one out")
    num_text = 32000 if "captioning" in tasks else 0  # those of the official code
    num_text = num_text if args.text_pieces is None else args.text_pieces
    vocab = Vocabulary(num_bins=cfg.num_bins, num_text=num_text)
    if args.fits:
        print("\n".join(largest_batch(cfg, tasks, vocab, args.fits)))
        return
    word = "measured" if args.measure else "computed"
    found = {}
    for name, at_once in (("parts", models.decoder.LOGITS_AT_ONCE), ("whole", WHOLE)):
        found[name] = peak(cfg, tasks, vocab, at_once=at_once, measure=args.measure)
        print(f"{word}, logits in {name}: {found[name] / GIB:.2f} GiB", flush=True)
    print(f"whole / parts: {found['whole'] / found['parts']:.2f}")


if __name__ == "__main__":
    run(main)
