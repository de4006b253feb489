"""Memory that training takes, computed without a device: what a step keeps for its gradient.

python benchmarks/memory.py --preset det_finetune --set batch_size=8 encoder_layers=24

Tensors that the backward pass needs are counted once each, in the float type of --dtype, attention
as the fused kernels keep it (no matrix of probabilities); weights, gradients and the two moments
of AdamW are float32, beside them the weights in bfloat16. With recompute_activations a block
keeps its inputs, and one block at a time all it needs. Passing buffers and what an allocator
wastes are not counted: a device needs somewhat more.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import PRESETS
from models import Pix2Seq, build_model
from tokenizer.vocabulary import Vocabulary
from train.build import build_model_config, build_tokenizers
from utils.cli import load_settings, parser, run
from utils.errors import UserError

GIB = 2**30


class FusedAttention(torch.autograd.Function):
    """Stands in for the kernels of an accelerator: keeps inputs, output and one number per row."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("this counts what a forward pass keeps; there is no backward pass")


class Kept:
    """Bytes that a forward pass keeps for its gradient, by the block that asked for them first."""

    def __init__(self, model: Pix2Seq):
        self.weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self.storages: dict[int, tuple[int, nn.Module | None]] = {}  # bytes, block
        self.inputs: dict[int, int] = {}  # of blocks
        self.block = None
        for block in model.blocks:
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.storages.setdefault(storage._cdata, (storage.nbytes(), self.block))
        return tensor

    def total(self) -> int:
        return sum(size for size, _ in self.storages.values())

    def recomputed(self) -> int:
        """The same where blocks keep their inputs alone and are computed again one at a time."""
        of_block = dict.fromkeys((block for _, block in self.storages.values()), 0)
        for key, (size, block) in self.storages.items():
            if block is None or key not in self.inputs:
                of_block[block] += size
        outside = of_block.pop(None, 0)
        shared = sum(size for key, size in self.inputs.items() if self._inside(key))
        return outside + shared + max(of_block.values())

    def _inside(self, key: int) -> bool:
        """Whether an input is not among what is kept outside of blocks."""
        return self.storages.get(key, (0, self))[1] is not None

    def _enter(self, block: nn.Module, args: tuple) -> None:
        self.block = block
        for value in args:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.inputs[storage._cdata] = storage.nbytes()

    def _leave(self, *_) -> None:
        self.block = None


def kept_by_detection(cfg, dtype: torch.dtype) -> tuple[int, Kept]:
    """Number of parameters, and what one batch of detection keeps."""
    vocab = Vocabulary(num_bins=cfg.num_bins)
    tokenizers = build_tokenizers(cfg, ["detection"], vocab)
    model = build_model(build_model_config(cfg, vocab, tokenizers)).to("meta", dtype)
    kept = Kept(model)
    images = torch.empty(cfg.batch_size, 3, cfg.img_size, cfg.img_size, device="meta", dtype=dtype)
    length = tokenizers["detection"].max_len
    tokens = torch.zeros(cfg.batch_size, length, dtype=torch.long, device="meta")
    with (
        patch.object(F, "scaled_dot_product_attention", _attend),
        torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor),
    ):
        logits = model(images, tokens).flatten(0, 1).float()
        kept.loss = F.cross_entropy(logits, tokens.flatten())  # holds the graph
    return sum(p.numel() for p in model.parameters()), kept


def _attend(q: Tensor, k: Tensor, v: Tensor, *_, **__) -> Tensor:
    return FusedAttention.apply(q, k, v)


def main(argv=None):
    args = parser(__doc__, presets=PRESETS)
    args.add_argument("--dtype", default="bfloat16", help="of activations: float32 | bfloat16")
    args = args.parse_args(argv)
    cfg = load_settings(args, PRESETS["default"], presets=PRESETS)
    if args.dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype must be float32 or bfloat16, got {args.dtype}")
    parameters, kept = kept_by_detection(cfg, getattr(torch, args.dtype))
    # weight, gradient and two moments of four bytes, and the copy that autocast makes
    fixed = (16 + 2 * (args.dtype == "bfloat16")) * parameters / GIB
    print(f"{parameters / 1e6:.0f} M parameters; with gradients and moments {fixed:.2f} GiB")
    for recompute, size in (("false", kept.total()), ("true", kept.recomputed())):
        print(
            f"recompute_activations={recompute}: activations {size / GIB:.2f} GiB, "
            f"together {fixed + size / GIB:.2f} GiB"
        )


if __name__ == "__main__":
    run(main)
