"""Hours that a training on the whole of COCO takes, computed from its FLOPs on no GPU.

python benchmarks/training_hours.py
python benchmarks/training_hours.py --preset from_scratch --utilisation 0.25
python benchmarks/training_hours.py --preset multi_task --task all --set img_size=1024

The products of a training step, forward and backward, are counted by torch on tensors that have a
shape alone (device "meta"). Shapes are those of training: the batch of the preset, sequences of the
length that the tasks have, logits where a target carries weight. What is computed twice to save
memory counts twice. Attention counts as whole products; causal kernels save a part of it.

hours = steps x FLOPs of a step / (peak of the GPU x utilisation x GPUs)

The utilisation is an assumption, not a measurement. It is meant to hold what the products leave
out: other operations, the optimiser, communication, waiting for data. Evaluation comes on top.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import full_batch, shapes
from config import PRESETS
from dataset.batch import Batch
from models import Pix2Seq, build_model
from tokenizer.detection import TOKENS_PER_OBJECT
from tokenizer.tasks import TOKENIZERS
from tokenizer.vocabulary import TASK_NAMES, Vocabulary
from train.distributed import recompute_activations
from train.loss import batch_loss
from train.optim import count_steps
from train.settings import batch_sizes, model_config_from_settings
from utils.cli import find_preset, load_settings, parser, pick_names, run

JOBS = {"det_finetune": "detection", "from_scratch": "detection", "multi_task": "all"}
NUM_IMAGES = 118_287  # of train2017; every annotation file of it lists them all
NUM_OBJECTS = 7  # in an image of train2017, the mean; noise objects fill the rest of the budget
NUM_TEXT = 32_000  # pieces of the official captions
PEAKS = {"A100": 312e12, "H100, H200": 989e12}  # FLOP/s, bf16, dense, as the vendor states them
GPUS = (1, 8)


@dataclass(frozen=True)
class Job:
    """A training and what was counted."""

    preset: str
    tasks: list[str]
    images: int  # of all tasks in a step
    steps: int
    flops: int  # of a step

    def hours(self, peak: float, gpus: int, utilisation: float) -> float:
        """Args: peak: FLOP/s of a GPU."""
        return self.steps * self.flops / (peak * utilisation * gpus) / 3600


def build_batches(cfg, tasks: list[str], vocab: Vocabulary) -> dict[str, Batch]:
    """A batch of each task, with shapes alone, as long as those of training are.

    Sequences are not cut: the official weights of padding are above 0. The prompt has no loss, and
    of noise objects only the class has one.
    """
    sizes, batches = batch_sizes(cfg, tasks), {}
    for task, (num, length) in shapes(cfg, tasks, vocab).items():
        weighted = length - TOKENIZERS[task].prompt_len + 1  # targets of a sequence
        if task == "detection" and cfg.noise_objects:
            noise = max(cfg.max_objects - NUM_OBJECTS, 0)
            weighted -= noise * (TOKENS_PER_OBJECT - 1)
        with torch.device("meta"):
            batch = full_batch(sizes[task], num, length, cfg.img_size)
            supervised = torch.arange(sizes[task] * num * weighted)
        batches[task] = replace(batch, supervised=supervised)
    return batches


def build_shapes(cfg, batches: dict[str, Batch], vocab: Vocabulary) -> Pix2Seq:
    """The model of a preset in training, with shapes alone."""
    longest = max(batch.input_tokens.shape[-1] for batch in batches.values())
    with torch.device("meta"):
        model = build_model(
            model_config_from_settings(cfg, vocab, max_len=cfg.max_len or longest)
        ).train()
    if cfg.recompute_activations:
        recompute_activations(model.blocks)
    return model.to("meta")  # constants too


def count_flops(model: Pix2Seq, batches: dict[str, Batch]) -> int:
    """FLOPs of the products of forward and backward, on the device of the model.

    Attention is computed as plain products, which are the ones torch counts on every device.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for batch in batches.values():
            batch_loss(model, batch).backward()
    return counter.get_total_flops()


def count_all_steps(cfg, num_images: int) -> int:
    """Optimiser steps of the run, as `train.build.count_run_steps` counts them."""
    if cfg.whole_epochs:
        return cfg.epochs * (num_images // cfg.batch_size)
    return count_steps(num_images, cfg.batch_size, epochs=cfg.epochs, warmup_epochs=0)[0]


def count_job(cfg, preset: str, tasks: list[str], num_images: int) -> Job:
    """Counts a step, and how many of them the preset makes."""
    vocab = Vocabulary(num_bins=cfg.num_bins, num_text=NUM_TEXT if "captioning" in tasks else 0)
    batches = build_batches(cfg, tasks, vocab)
    flops = count_flops(build_shapes(cfg, batches, vocab), batches)
    images = sum(batch_sizes(cfg, tasks).values())
    return Job(preset, tasks, images, count_all_steps(cfg, num_images), flops)


def table(jobs: list[Job], utilisation: float) -> str:
    """A Markdown table of the hours."""
    head = ["preset", "tasks", "steps", "images a step", "TFLOP a step", "EFLOP in all"]
    head += [f"{name}: {gpus} GPU{'s' * (gpus > 1)}" for name in PEAKS for gpus in GPUS]
    rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for job in jobs:
        tasks = "all four" if len(job.tasks) == len(TASK_NAMES) else ", ".join(job.tasks)
        hours = [job.hours(peak, gpus, utilisation) for peak in PEAKS.values() for gpus in GPUS]
        row = [f"`{job.preset}`", tasks, f"{job.steps:,}", str(job.images)]
        row += [f"{job.flops / 1e12:.1f}", f"{job.steps * job.flops / 1e18:.1f}"]
        rows.append(row + [f"{h:.0f} h" if h >= 10 else f"{h:.1f} h" for h in hours])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv=None):
    args = parser(__doc__, presets=PRESETS)
    args.add_argument("--task", help="of one step, several with commas, or all; default: by preset")
    args.add_argument(
        "--utilisation", type=float, default=0.35, help="assumed share of the peak, default 0.35"
    )
    args.add_argument(
        "--num-images", type=int, default=NUM_IMAGES, help=f"to train on, default {NUM_IMAGES}"
    )
    args = args.parse_args(argv)
    jobs = []
    for preset in [args.preset] if args.preset else JOBS:
        cfg = load_settings(args, find_preset(PRESETS, preset))
        wanted = args.task or JOBS.get(preset, "detection")
        tasks = list(TASK_NAMES) if wanted == "all" else pick_names("--task", wanted, TASK_NAMES)
        jobs.append(count_job(cfg, preset, tasks, args.num_images))
    print(table(jobs, args.utilisation))
    print(f"\nComputed, not measured; the utilisation of {args.utilisation:g} is an assumption.")


if __name__ == "__main__":
    run(main)
