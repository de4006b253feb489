"""Decoding speed, beside what else one could use and beside what the machine can do.

python benchmarks/decode.py
python benchmarks/decode.py --batch 1 8 64 --rows --flatness results/flatness.png
python benchmarks/decode.py --also plain static compiled
python benchmarks/decode.py --model vit_b_640 --tokens 500 --slow-tokens 0 --batch 1 64 \
    --mode static --dtype bfloat16 --device cuda
python benchmarks/decode.py --model vit_b_640 --stopping 7

Ways, measured alternately within one run, medians, on the same random weights and the same memory
(with one thread of a CPU, its processor time, which other programs change less):
  ours    the cached loop as the scripts run it (native on a CPU, see models/decode_step/),
          or as --mode says; with --also in others as well
  ports   image and whole sequence through the model again for every token, as the simple PyTorch
          ports do; in float32 its greedy tokens must equal ours
  float32 with --dtype int8, the same rounded weights read as float32 and keys and values of the
          image as they are, in the native step as well
  hf      transformers' VisionEncoderDecoderModel.generate of the same dimensions (other random
          weights), if transformers is installed
The limit: the bytes that one step must read (weights, or weights and cross-attention's keys and
values) at the rate at which this machine sums up a buffer of that size, measured in the same turns;
or the products of the step at the measured rate of a large matrix product, whichever is slower.

`--stopping N`: detection of one picture instead, from its pixels to named boxes, with a budget of
100 objects: all of it, and an answer that ends when objects run out. The weights are random; scores
are scripted, so that the first N objects score high and all others low.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from copy import copy
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import torch
from torch import Tensor

from benchmarks.machine import large_products, machine, peak_memory_mb
from infer.detection import WHOLE_BUDGET, DetectionOptions, detect
from infer.trained_model import TrainedModel
from models import ModelConfig, Pix2Seq, build_model
from models.decode_step import CHOICES, MODES
from models.generate import GenerationRequest, generate
from tokenizer.detection import DetectionTokenizer
from tokenizer.vocabulary import Vocabulary
from utils.categories import Categories
from utils.cli import log, run
from utils.devices import pick_device

DIMS = {
    "deit3_s_384": {
        "encoder": "deit3_small_patch16_384.fb_in22k_ft_in1k", "image_size": (384, 384),
        "dim": 256, "num_layers": 6, "num_heads": 8, "mlp_dim": 2048,
    },
    "vit_b_640": {
        "encoder": "official_vit", "image_size": (640, 640),
        "dim": 512, "num_layers": 6, "num_heads": 16, "mlp_dim": 2048,
    },
    "tiny": {  # to try a benchmark out
        "encoder": "test_vit", "image_size": (64, 64),
        "dim": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 64,
    },
}  # fmt: skip
BUDGET = 100  # objects, of --stopping
MATRIX = 1536  # side of the product that measures the matmul rate


def parse(argv=None) -> argparse.Namespace:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--model", choices=DIMS, default="deit3_s_384")
    args.add_argument("--vocab", type=int, default=3000)
    args.add_argument("--tokens", type=int, default=100)
    args.add_argument("--batch", type=int, nargs="+", default=[1], help="images, e.g. 1 8 64")
    args.add_argument("--repeat", type=int, default=5, help="turns")
    args.add_argument("--slow-tokens", type=int, default=20, help="of the ports' way; 0 = skip it")
    args.add_argument("--mode", choices=CHOICES, default="auto", help="of ours")
    args.add_argument("--also", choices=MODES, nargs="+", default=[], help="of ours, too")
    args.add_argument(
        "--dtype", choices=("float32", "bfloat16", "int8"), default="float32", help="of ours"
    )
    args.add_argument("--no-hf", action="store_true", help="leave transformers out")
    args.add_argument(
        "--rows", action="store_true", help="also 20 objects x 8 samples of one image"
    )
    args.add_argument(
        "--stopping", type=int, metavar="N", help="measure that alone, for answers of N objects"
    )
    args.add_argument("--flatness", type=Path, help="draw the time of each token there (PNG)")
    args.add_argument("--device", default="auto")
    args.add_argument("--json", type=Path, help="write the figures there")
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return args.parse_args(argv)


def ports_way(model: Pix2Seq, images: Tensor, prompt: Tensor, num_tokens: int) -> Tensor:
    """(B, num_tokens) greedy tokens, image and sequence anew for each."""
    tokens = prompt
    for _ in range(num_tokens):
        tokens = torch.cat([tokens, model(images, tokens)[:, -1:].argmax(2)], 1)
    return tokens[:, prompt.shape[1] :]


def hf_decode(args: argparse.Namespace, memory_len: int) -> Callable[[int], object] | None:
    """The decode of a batch by transformers from an encoded image; None where it is missing."""
    try:
        from transformers import BartConfig, BartForCausalLM, ViTConfig, ViTModel
        from transformers import VisionEncoderDecoderModel as HfModel
        from transformers.modeling_outputs import BaseModelOutput
    except ImportError:
        log("transformers is not installed: its generate is left out")
        return None
    dims = DIMS[args.model]
    decoder = BartConfig(
        vocab_size=args.vocab, d_model=dims["dim"], decoder_layers=dims["num_layers"],
        decoder_attention_heads=dims["num_heads"], decoder_ffn_dim=dims["mlp_dim"],
        max_position_embeddings=args.tokens + 8, add_cross_attention=True, is_decoder=True,
        bos_token_id=1, pad_token_id=0, eos_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    encoder = ViTConfig(
        hidden_size=dims["dim"], num_hidden_layers=1, num_attention_heads=dims["num_heads"],
        intermediate_size=dims["dim"],
    )  # fmt: skip
    model = HfModel(encoder=ViTModel(encoder), decoder=BartForCausalLM(decoder)).eval()
    dtype = "float32" if args.dtype == "int8" else args.dtype
    model.to(pick_device(args.device), dtype=getattr(torch, dtype))
    model.generation_config.decoder_start_token_id = 1

    def decode(batch: int) -> object:
        hidden = torch.randn(batch, memory_len, dims["dim"], device=model.device)
        memory = BaseModelOutput(hidden.to(model.dtype))
        return model.generate(
            encoder_outputs=memory, max_new_tokens=args.tokens, min_new_tokens=args.tokens,
            do_sample=False, num_beams=1, pad_token_id=0,
        )  # fmt: skip

    return decode


def in_turns(ways: dict[str, Callable[[], object]], repeat: int, device: torch.device) -> dict:
    """Median seconds of each way after a warm-up of each, the ways one after another."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def step_numbers(model: Pix2Seq, memory_len: int) -> tuple[int, int]:
    """How many weights a step reads, and how many numbers of an image's keys and values."""
    c, layers = model.config, model.decoder.layers
    unread = sum(p.numel() for layer in layers for p in layer.cross_attention.kv.parameters())
    weights = sum(p.numel() for p in layers.parameters()) - unread + c.vocab_size * c.dim
    return weights, len(layers) * 2 * memory_len * c.dim


def step_bytes(model: Pix2Seq, batch: int, memory_len: int) -> tuple[int, int]:
    """Bytes of the weights that a step reads, and of cross-attention's keys and values."""
    weights, kv = step_numbers(model, memory_len)
    size = model.dtype.itemsize
    weight_size, kv_size = (1, 2) if model.decoder.int8 else (size, size)
    return weights * weight_size, batch * kv * kv_size


def measure(args: argparse.Namespace, model: Pix2Seq, batch: int, hf) -> dict:
    """One line of the table: `batch` images, one sequence each."""
    device, c = model.device, model.config
    images = torch.rand(batch, 3, *c.image_size, device=device)
    prompt = torch.full((batch, 1), 10, device=device)
    memory = model.encode(images)
    weight_bytes, kv_bytes = step_bytes(model, batch, memory.shape[1])
    weights = torch.ones(weight_bytes // 4, device=device)
    with_kv = torch.ones((weight_bytes + kv_bytes) // 4, device=device)
    flops, multiply = large_products(device, model.dtype, MATRIX)
    ours = model.generate(memory, prompt, max_new_tokens=args.tokens)[0]
    ways = {
        "encode": lambda: model.encode(images),
        "ours": lambda: model.generate(memory, prompt, max_new_tokens=args.tokens),
        "read_weights": lambda: [weights.sum() for _ in range(10)],
        "read_weights_kv": lambda: [with_kv.sum() for _ in range(10)],
        "matmul": multiply,
    }
    for mode in args.also:
        request = GenerationRequest(prompt, args.tokens, mode=mode)
        ways[mode] = decode = partial(generate, model.decoder, memory, request)
        if model.dtype == torch.float32:
            assert torch.equal(decode().tokens, ours), f"mode {mode} says other tokens"
    if model.decoder.int8:
        whole = copy(model.decoder)  # the same parameters
        whole.int8 = {}
        request = GenerationRequest(prompt, args.tokens, mode=model.decode_mode)
        ways["float32"] = partial(generate, whole, memory, request)
        as_float32 = (ways["float32"]().tokens == ours).float().mean().item()
    slow_tokens = min(args.slow_tokens, args.tokens) if batch == args.batch[0] else 0
    if slow_tokens:
        slow = ports_way(model, images, prompt, slow_tokens)
        if args.dtype == "float32":
            assert torch.equal(slow, ours[:, :slow_tokens]), "the ports' way says other tokens"
        ways["ports"] = lambda: ports_way(model, images, prompt, 3)
    if hf:
        ways["hf"] = lambda: hf(batch)
    took = in_turns(ways, args.repeat, device)
    per_token = took["ours"] / args.tokens
    rate = flops / took["matmul"]
    compute = 2 * batch * sum(step_numbers(model, memory.shape[1])) / rate
    bound = max(took["read_weights"] / 10, compute)
    out = {
        "batch": batch,
        "encode_ms": 1e3 * took["encode"],
        "ours_ms_per_token": 1e3 * per_token,
        "ours_ms_per_image": 1e3 * (took["encode"] + took["ours"]) / batch,
        "limit_ms_per_token": 1e3 * bound,
        "limit_kv_ms_per_token": 1e3 * max(took["read_weights_kv"] / 10, compute),
        "times_the_limit": per_token / bound,
        "matmul_gflops": rate / 1e9,
        "peak_memory_mb": peak_memory_mb(device),
    }
    if model.decoder.int8:
        out["float32_ms_per_token"] = 1e3 * took["float32"] / args.tokens
        out["times_float32"] = took["ours"] / took["float32"]
        out["tokens_as_float32"] = as_float32
    for mode in args.also:
        out[f"{mode}_ms_per_token"] = 1e3 * took[mode] / args.tokens
        out[f"ratio_{mode}"] = took["ours"] / took[mode]
    if slow_tokens:
        # of the first tokens: the sequence that is read again is still short, so a lower bound
        ports = took["ports"] / 3
        out |= {
            "ports_ms_per_token": 1e3 * ports,
            "ratio_ports_per_token": ports / per_token,
            "ratio_ports_end_to_end": ports * args.tokens / (took["encode"] + took["ours"]),
            "identical_tokens": int((slow == ours[:, :slow_tokens]).sum()),
        }
    if hf:
        hf_token = took["hf"] / args.tokens
        out |= {"hf_ms_per_token": 1e3 * hf_token, "ratio_hf_per_token": hf_token / per_token}
    return out


def measure_rows(model: Pix2Seq, repeat: int) -> dict:
    """One image: 20 objects x 8 samples against 1 object x 8 samples, time of a step."""
    device, tokens = model.device, 10
    memory = model.encode(torch.rand(1, 3, *model.config.image_size, device=device))
    flops, multiply = large_products(device, model.dtype, MATRIX)

    def decode(objects: int) -> None:
        prompt = torch.full((1, objects, 6), 10, device=device)
        model.generate(memory, prompt, max_new_tokens=tokens, num_samples=8)

    ways = {"1x8": lambda: decode(1), "20x8": lambda: decode(20), "matmul": multiply}
    took = in_turns(ways, repeat, device)
    numbers = sum(step_numbers(model, memory.shape[1]))
    kv_bytes = step_bytes(model, 1, memory.shape[1])[1]
    rate, step = flops / took["matmul"], took["20x8"] / tokens
    return {
        "step_1x8_ms": 1e3 * took["1x8"] / tokens,
        "step_20x8_ms": 1e3 * step,
        "ratio_20x8": took["20x8"] / took["1x8"],
        "share_of_matmul_rate": 2 * 160 * numbers / step / rate,
        "cross_kv_mb": kv_bytes / 1e6,
        "cross_kv_mb_if_copied": 160 * kv_bytes / 1e6,
        "peak_memory_mb": peak_memory_mb(device),
    }


class Scripted(TrainedModel):
    """Random weights that detect; the scores that end an answer are scripted."""

    def __init__(self, model: Pix2Seq, num_objects: int):
        names = Categories.from_names([f"class {n}" for n in range(1, 81)])
        vocab = Vocabulary.for_classes(max(names.names), num_bins=1000)
        tasks = {"detection": {"max_objects": BUDGET}}
        model.meta = {
            "vocabulary": vocab.to_json(), "categories": names.to_json(), "tasks": tasks,
            "resize_mode": "letterbox",
        }  # fmt: skip
        super().__init__(model)
        self.scripted = ScriptedTokenizer(vocab, BUDGET)
        self.scripted.num_objects = num_objects

    def tokenizer(self, task: str, **changes) -> DetectionTokenizer:
        return self.scripted


class ScriptedTokenizer(DetectionTokenizer):
    num_objects: int
    asked: int = 0  # tokens of the last answer

    def ran_out(self, class_log_probs: Tensor, in_a_row: int, score: float) -> Tensor:
        scripted = torch.full_like(class_log_probs, -torch.inf)
        scripted[:, : 5 * self.num_objects] = 0
        self.asked = class_log_probs.shape[1]
        return super().ran_out(scripted, in_a_row, score)


def measure_stopping(model: Pix2Seq, num_objects: int, repeat: int) -> dict:
    """One picture from its pixels to boxes: the whole budget, and until objects run out."""
    trained = Scripted(model, num_objects)
    pixels = torch.randint(0, 256, (3, 480, 640), dtype=torch.uint8)
    encoded = trained.encode([pixels])
    options = DetectionOptions()
    ways = {
        "encode": lambda: trained.encode([pixels]),
        "all": lambda: detect(trained, [pixels], WHOLE_BUDGET, encoded=encoded),
        "stopped": lambda: detect(trained, [pixels], options, encoded=encoded),
    }
    took = in_turns(ways, repeat, model.device)
    return {
        "objects": num_objects,
        "tokens": trained.scripted.asked,
        "share_of_tokens": trained.scripted.asked / (5 * BUDGET),
        **{f"{name}_ms": 1e3 * seconds for name, seconds in took.items()},
        "ratio_decoding": took["all"] / took["stopped"],
        "ratio_picture": (took["encode"] + took["all"]) / (took["encode"] + took["stopped"]),
    }


def draw_flatness(args: argparse.Namespace, model: Pix2Seq) -> None:
    """Median time of each token by its position, as a picture."""
    from matplotlib.figure import Figure

    memory = model.encode(torch.rand(1, 3, *model.config.image_size, device=model.device))
    prompt, marks = torch.full((1, 1), 10, device=model.device), []

    def mark(_) -> Tensor:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        marks[-1].append(time.perf_counter())
        return torch.ones(args.vocab, dtype=torch.bool, device=model.device)

    for _ in range(2 * args.repeat + 1):
        marks.append([])
        model.generate(memory, prompt, max_new_tokens=args.tokens, allowed=mark)
    steps = 1e3 * torch.tensor(marks[1:], dtype=torch.float64).diff(dim=1).median(0).values
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="token", ylabel="ms", title=args.model)
    axes.plot(range(1, args.tokens), steps.tolist())
    axes.set_ylim(bottom=0)
    args.flatness.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.flatness, dpi=80)


@torch.no_grad()
def main(argv=None):
    args = parse(argv)
    device = pick_device(args.device)
    if args.stopping is not None:
        args.tokens = 5 * BUDGET
    torch.manual_seed(0)
    config = ModelConfig(**DIMS[args.model], vocab_size=args.vocab, max_len=args.tokens + 16)
    model = build_model(config).to(device).eval()
    model.prepare(dtype=getattr(torch, args.dtype), mode=args.mode)
    hf = (
        None
        if args.no_hf or args.stopping is not None
        else hf_decode(args, math.prod(model.encoder.grid))
    )
    out = {"machine": machine(device), "torch": torch.__version__, "batches": []}
    print(
        f"{args.model}, {args.tokens} tokens, {args.dtype}, {model.decode_mode}, {out['machine']}, "
        f"torch {out['torch']}"
    )
    if args.stopping is not None:
        out["stopping"] = measure_stopping(model, args.stopping, args.repeat)
        show(out["stopping"])
    for batch in args.batch if args.stopping is None else ():
        out["batches"].append(measure(args, model, batch, hf))
        show(out["batches"][-1])
    if args.rows:
        out["rows"] = measure_rows(model, args.repeat)
        show(out["rows"])
    if args.flatness:
        draw_flatness(args, model)
    if args.json:
        args.json.write_text(json.dumps(vars(args) | out, indent=2, default=str) + "\n")


def show(figures: dict) -> None:
    for name, value in figures.items():
        print(f"  {name:<24} {value:.2f}" if isinstance(value, float) else f"  {name:<24} {value}")


if __name__ == "__main__":
    run(main)
