"""The time of an image encoder, as it is trained, as it predicts, and in ONNX Runtime.

python benchmarks/encoder.py
python benchmarks/encoder.py --encoder efficientnet_lite0 official_resnet --batch 8
python benchmarks/encoder.py --encoder vit_base_patch16_224

Ways, measured alternately within one run, medians, on the same random weights and images:
  rows      images and feature maps channel by channel (NCHW), batch norms as layers of their own
  last      channels last, as in training
  folded    channels last, batch norms folded into the convolutions, as a `Predictor` encodes
  onnx      ONNX Runtime, if onnx and onnxruntime are installed
  bfloat16  `infer_dtype=bfloat16`, on a processor with bfloat16 units
  int8      `infer_dtype=int8 encoder_int8=true`, an encoder with linear layers, if torchao is
            installed
Beside the median stands the time of the fastest turn, which other programs disturb least; beside
bfloat16 and int8 the mean difference from float32, in per cent of the mean number.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import torch
from torch import Tensor, nn

from benchmarks.machine import machine
from models import ModelConfig, Pix2Seq, build_model
from models.prepare import quantize_encoder
from utils.cli import log, run
from utils.devices import has_bfloat16_units

ROUNDED = ("bfloat16", "int8")
TRANSFORMER = {"encoder_dim": 512, "encoder_layers": 6, "encoder_heads": 8, "encoder_mlp_dim": 2048}


def parse(argv=None) -> argparse.Namespace:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--encoder", nargs="+", default=["resnet50", "official_resnet"])
    args.add_argument("--size", type=int, default=384, help="pixels")
    args.add_argument("--batch", type=int, default=1)
    args.add_argument("--repeat", type=int, default=15, help="turns")
    args.add_argument("--no-onnx", action="store_true", help="leave ONNX Runtime out")
    args.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return args.parse_args(argv)


def build(args: argparse.Namespace, encoder: str) -> Pix2Seq:
    """A model whose batch norms are as after a training."""
    torch.manual_seed(0)
    sizes = {"dim": 64, "num_layers": 1, "num_heads": 4, "mlp_dim": 64, "vocab_size": 100}
    official = TRANSFORMER if encoder.startswith("official") else {}
    config = ModelConfig(
        encoder=encoder, image_size=(args.size, args.size), max_len=20, drop_path=0.0, **sizes,
        **official,
    )  # fmt: skip
    model = build_model(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1)
    model.prepare(fold=True)
    return model


def by_rows(encoder: nn.Module, images: Tensor) -> Tensor:
    """The encoder with feature maps channel by channel."""
    first = next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))
    hook = first.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        return encoder(images)
    finally:
        hook.remove()


def in_onnx_runtime(encoder: nn.Module, images: Tensor) -> Callable[[], Tensor] | None:
    """The encoder in ONNX Runtime; None where it is missing."""
    if missing := [n for n in ("onnxruntime", "onnx", "onnxscript") if not _is_there(n)]:
        log(f"{', '.join(missing)} not installed: ONNX Runtime is left out")
        return None
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        torch.onnx.export(encoder, (images,), path, dynamo=True, external_data=False, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: images.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def in_fewer_bits(encoder: nn.Module, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The ways that round, as far as this processor and installation have them."""
    ways = {}
    if has_bfloat16_units():
        half, halved = deepcopy(encoder).bfloat16(), images.bfloat16()
        ways["bfloat16"] = lambda: half(halved).float()
    if _is_there("torchao") and any(isinstance(m, nn.Linear) for m in encoder.modules()):
        rounded = quantize_encoder(encoder)
        ways["int8"] = lambda: rounded(images)
    return ways


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@torch.no_grad()
def main(argv=None):
    args = parse(argv)
    threads = torch.get_num_threads()
    print(f"{machine(torch.device('cpu'))}, {threads} threads, torch {torch.__version__}")
    for name in args.encoder:
        model = build(args, name)
        images = torch.rand(args.batch, 3, args.size, args.size)
        ways = {
            "rows": lambda m=model, x=images: by_rows(m.encoder, x),
            "last": lambda m=model, x=images: m.encoder(x),
        }
        if model.fast_encoder:
            ways["folded"] = lambda m=model, x=images: m.fast_encoder[0](x)
        if not args.no_onnx and (onnx := in_onnx_runtime(model.encoder, images)):
            ways["onnx"] = onnx
        expected = model.encoder(images)
        for way in ways.values():
            torch.testing.assert_close(way(), expected, atol=1e-3, rtol=1e-3)
        fast = model.fast_encoder[0] if model.fast_encoder else model.encoder
        ways |= in_fewer_bits(fast, images)
        times = {way: [] for way in ways}
        for _ in range(args.repeat):
            for way, call in ways.items():
                start = time.perf_counter()
                call()
                times[way].append(1e3 * (time.perf_counter() - start))
        print(f"{name}, {args.size} px, {args.batch} images: ms")
        for way, each in times.items():
            rounding = ""
            if way in ROUNDED:
                difference = (ways[way]() - expected).abs().mean() / expected.abs().mean()
                rounding = f"{100 * difference:8.1f} %"
            print(f"  {way:8} {statistics.median(each):8.1f} {min(each):8.1f}{rounding}")


if __name__ == "__main__":
    run(main)
