"""Memory that training takes, computed without a device: what a step keeps for its gradient.

python benchmarks/memory.py --preset det_finetune --set encoder_layers=24 encoder_dim=1024 encoder_mlp_dim=4096 encoder_heads=16 batch_size=8

Tensors that the backward pass needs are counted once each, in the float type of --dtype; weights,
their gradients and AdamW's two moments are float32. Buffers that exist for a moment and what an
allocator wastes are not counted, so a device needs somewhat more.
"""  # noqa: E501

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import torch

from config import PRESETS
from models import build_model
from models.recompute import recompute_activations
from tokenizer import Vocabulary
from train import build
from train.build_model import model_config
from utils.cli import find_preset, parser, run, snapshot

GIB = 2**30


def kept_bytes(cfg, dtype: torch.dtype, *, recompute: bool) -> tuple[int, int]:
    """Bytes of weights alone and of what one batch of detection keeps for its gradient."""
    vocab = Vocabulary(num_bins=cfg.num_bins)
    tokenizers = build.tokenizers(cfg, ["detection"], vocab)
    model = build_model(model_config(cfg, vocab, tokenizers))
    weights = sum(p.numel() for p in model.parameters()) * 4
    model = model.to("meta", dtype)
    if recompute:
        recompute_activations(model.blocks)
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}  # storage -> bytes

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    images = torch.empty(cfg.batch_size, 3, cfg.img_size, cfg.img_size, device="meta", dtype=dtype)
    length = tokenizers["detection"].max_len
    tokens = torch.zeros(cfg.batch_size, length, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(images, tokens).flatten(0, 1).float()
        loss = torch.nn.functional.cross_entropy(logits, tokens.flatten())
    assert loss.requires_grad
    return weights, sum(kept.values())


def main(argv=None):
    args = parser(__doc__)
    args.add_argument("--preset", default="default", help=f"one of {', '.join(PRESETS)}")
    args.add_argument("--dtype", default="bfloat16", help="of activations: float32 | bfloat16")
    args = args.parse_args(argv)
    cfg = snapshot(find_preset(PRESETS, args.preset), args.set)
    for recompute in (False, True):
        weights, kept = kept_bytes(cfg, getattr(torch, args.dtype), recompute=recompute)
        print(
            f"recompute_activations={str(recompute).lower():<5} weights, gradients, moments "
            f"{4 * weights / GIB:.2f} GiB, activations {kept / GIB:.2f} GiB, "
            f"together {(4 * weights + kept) / GIB:.2f} GiB"
        )


if __name__ == "__main__":
    run(main)
