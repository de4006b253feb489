"""Decoding speed of the cached loop against re-running the whole model per token.

python benchmarks/decode.py
python benchmarks/decode.py --tokens 500 --img-size 640 --device cuda

Same weights (random), same image, same greedy tokens; the two ways are measured in turns within
one run and the medians are compared. The whole-model way is what the simple PyTorch ports do: for
every token the image is encoded again and the decoder reads the whole sequence again.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import torch
from torch import Tensor

from models import ModelConfig, Pix2Seq, build_model
from utils.cli import log, run
from utils.device import pick_device


def parse(argv=None) -> argparse.Namespace:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--encoder", default="deit3_small_patch16_384.fb_in22k_ft_in1k")
    args.add_argument("--img-size", type=int, default=384)
    args.add_argument("--dim", type=int, default=256)
    args.add_argument("--layers", type=int, default=6)
    args.add_argument("--heads", type=int, default=8)
    args.add_argument("--mlp-dim", type=int, default=2048)
    args.add_argument("--vocab", type=int, default=3000)
    args.add_argument("--tokens", type=int, default=100)
    args.add_argument("--batch", type=int, default=1)
    args.add_argument("--repeat", type=int, default=5, help="cached runs; the slow way runs less")
    args.add_argument("--slow-tokens", type=int, default=100, help="tokens of the slow way")
    args.add_argument("--slow-repeat", type=int, default=1, help="0 = the cached way alone")
    args.add_argument("--device", default="auto")
    args.add_argument("--json", type=Path, help="write the figures there")
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return args.parse_args(argv)


def whole_model_per_token(
    model: Pix2Seq, images: Tensor, prompt: Tensor, num_tokens: int
) -> Tensor:
    """The ports' way: (B, num_tokens) greedy tokens, image and sequence anew for each."""
    tokens = prompt
    for _ in range(num_tokens):
        tokens = torch.cat([tokens, model(images, tokens)[:, -1:].argmax(2)], 1)
    return tokens[:, prompt.shape[1] :]


def seconds(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict:
    device = pick_device(args.device)
    torch.manual_seed(0)
    config = ModelConfig(
        encoder=args.encoder, image_size=(args.img_size, args.img_size), dim=args.dim,
        num_layers=args.layers, num_heads=args.heads, mlp_dim=args.mlp_dim,
        vocab_size=args.vocab, max_len=args.tokens + 1,
    )  # fmt: skip
    images = torch.rand(args.batch, 3, args.img_size, args.img_size, device=device)
    prompt = torch.full((args.batch, 1), 10, device=device)
    slow_tokens = min(args.slow_tokens, args.tokens)

    def decode() -> Tensor:
        return model.generate(memory, prompt, max_new_tokens=args.tokens)[0]

    memory = model.encode(images)
    fast = decode()  # also the warm-up
    times = {"encode": [], "decode": [], "whole": []}
    for turn in range(args.repeat):
        times["encode"].append(seconds(lambda: model.encode(images), device))
        times["decode"].append(seconds(decode, device))
        if turn < args.slow_repeat:
            slow = []
            took = seconds(
                lambda: slow.append(whole_model_per_token(model, images, prompt, slow_tokens)),  # noqa: B023
                device,
            )
            times["whole"].append(took / slow_tokens)
            assert torch.equal(slow[0], fast[:, :slow_tokens]), "the two ways differ"
    encode, decode_s = (statistics.median(times[key]) for key in ("encode", "decode"))
    cached = decode_s / args.tokens
    out = {
        "machine": machine(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
        "encode_ms": 1e3 * encode,
        "cached_ms_per_token": 1e3 * cached,
        "cached_ms_per_image": 1e3 * (encode + decode_s),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if times["whole"]:
        whole = statistics.median(times["whole"])
        out |= {
            "whole_model_ms_per_token": 1e3 * whole,
            "ratio_per_token": whole / cached,
            "ratio_end_to_end": whole * args.tokens / (encode + decode_s),
            "identical_tokens": slow_tokens * args.batch,
        }
    return out


def machine(device: torch.device) -> str:
    """The processor that did the work, by name where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({torch.get_num_threads()} threads)"


def main(argv=None):
    args = parse(argv)
    out = measure(args)
    log(
        f"{args.encoder} at {args.img_size} px, decoder {args.layers} x {args.dim}, "
        f"{args.tokens} tokens, batch {args.batch}"
    )
    for name, value in out.items():
        print(f"{name:<26} {value:.2f}" if isinstance(value, float) else f"{name:<26} {value}")
    if args.json:
        args.json.write_text(json.dumps(vars(args) | out, indent=2, default=str) + "\n")


if __name__ == "__main__":
    run(main)
