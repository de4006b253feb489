"""Decoding by onnxruntime beside ours and transformers, alternately within one run.

python benchmarks/onnx_decode.py
python benchmarks/onnx_decode.py --batch 1 8 --tokens 500

A model of random weights is exported to a temporary folder (a minute or two). All ways get the same
number of threads; onnxruntime's greedy tokens must equal ours. The encoder's pass and the tokens
are timed separately; --model, --vocab, --tokens and --batch are those of benchmarks/decode.py.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import numpy as np
import torch

from benchmarks.decode import DIMS, hf_decode, in_turns, show
from benchmarks.machine import machine
from infer import run_onnx
from models import ModelConfig, Pix2Seq, build_model
from models.onnx_graphs import export_graphs
from utils.cli import log, run

PROMPT = 10


def parse(argv=None) -> argparse.Namespace:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--model", choices=DIMS, default="deit3_s_384")
    args.add_argument("--vocab", type=int, default=3000)
    args.add_argument("--tokens", type=int, default=100)
    args.add_argument("--batch", type=int, nargs="+", default=[1], help="images, e.g. 1 8")
    args.add_argument("--repeat", type=int, default=5, help="turns")
    args.add_argument("--no-hf", action="store_true", help="leave transformers out")
    args.add_argument("--json", type=Path, help="write the figures there")
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return args.parse_args(argv)


def greedy(exported: run_onnx.Model, encoded: dict, num_tokens: int) -> np.ndarray:
    """(B, num_tokens) greedy tokens after the prompt."""
    decoding, found = run_onnx.Decoding(exported, encoded, num_tokens), []
    tokens = np.full((len(encoded["memory"]), 1), PROMPT)  # (B, 1)
    for _ in range(num_tokens):
        tokens = decoding.read(tokens)[:, -1:].argmax(2)
        found.append(tokens)
    return np.concatenate(found, 1)


def measure(
    args: argparse.Namespace, model: Pix2Seq, exported: run_onnx.Model, batch: int, hf
) -> dict:
    """One line of the table: `batch` images, one sequence each."""
    images = torch.rand(batch, 3, *model.config.image_size)
    pixels, prompt = images.numpy(), torch.full((batch, 1), PROMPT)
    memory, encoded = model.encode(images), exported.encode(pixels)
    ours = model.generate(memory, prompt, max_new_tokens=args.tokens)[0].numpy()
    theirs = greedy(exported, encoded, args.tokens)
    assert (ours == theirs).all(), "onnxruntime decodes other tokens"
    ways = {
        "encode": lambda: model.encode(images),
        "encode_onnx": lambda: exported.encode(pixels),
        "ours": lambda: model.generate(memory, prompt, max_new_tokens=args.tokens),
        "onnx": lambda: greedy(exported, encoded, args.tokens),
    }
    if hf:
        ways["hf"] = lambda: hf(batch)
    took = in_turns(ways, args.repeat, model.device)
    out = {"batch": batch, "identical_tokens": int((ours == theirs).sum())}
    for way in ("encode", "encode_onnx"):
        out[f"{way}_ms_per_image"] = 1e3 * took[way] / batch
    for way in ("ours", "onnx", "hf") if hf else ("ours", "onnx"):
        out[f"{way}_ms_per_token"] = 1e3 * took[way] / args.tokens
        out[f"ratio_{way}_per_token"] = took[way] / took["ours"]
    out["ratio_onnx_encode"] = took["encode_onnx"] / took["encode"]
    whole = took["encode_onnx"] + took["onnx"]
    out["ratio_onnx_image"] = whole / (took["encode"] + took["ours"])
    return out


@torch.no_grad()
def main(argv=None):
    args = parse(argv)
    torch.manual_seed(0)
    config = ModelConfig(**DIMS[args.model], vocab_size=args.vocab, max_len=args.tokens + 16)
    model = build_model(config).eval()
    args.device, args.dtype = "cpu", "float32"  # of transformers
    hf = None if args.no_hf else hf_decode(args, math.prod(model.encoder.grid))
    with tempfile.TemporaryDirectory() as folder:
        log("exporting (a minute or two)")
        export_graphs(model, Path(folder))
        (Path(folder) / "model.json").write_text(json.dumps({"config": config.to_json()}))
        exported = run_onnx.Model(Path(folder), torch.get_num_threads())
    model.prepare(mode="auto")
    out = {"machine": machine(model.device), "torch": torch.__version__, "batches": []}
    print(
        f"{args.model}, {args.tokens} tokens, {model.decode_mode}, {torch.get_num_threads()} "
        f"threads, {out['machine']}, torch {out['torch']}, onnxruntime {run_onnx.ort.__version__}"
    )
    for batch in args.batch:
        out["batches"].append(measure(args, model, exported, batch, hf))
        show(out["batches"][-1])
    if args.json:
        args.json.write_text(json.dumps(vars(args) | out, indent=2, default=str) + "\n")


if __name__ == "__main__":
    run(main)
