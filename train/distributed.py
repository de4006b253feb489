"""Training on several processes, one for each device, as `torchrun` starts them.

The model is wrapped for the processes that `utils.devices.session` joins, and becomes whole again
for a checkpoint. With one process nothing of this costs anything. Activation checkpointing saves
memory and costs time.
"""

import gc
import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from models import Pix2Seq, build_model
from utils.cli import log
from utils.devices import World


def parallelise(model: Pix2Seq, world: World, *, fsdp: bool = False) -> nn.Module:
    """Wraps `model` for training on several processes; `model` keeps its names and methods.

    Args:
        fsdp: shard parameters, gradients and optimiser state instead of copying them. The blocks
            of the encoder become whole one at a time, the rest once a step.
    """
    if world.size == 1:
        return model
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        if model.device.type == "cuda":
            model.encoder = convert_sync_batchnorm(model.encoder)
        else:
            log("batch norm uses the images of each process alone: SyncBatchNorm needs CUDA")
    if fsdp:
        mesh = init_device_mesh(model.device.type, (world.size,))
        for block in getattr(model.encoder, "blocks", ()):
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return _copies(model, unused=bool(_unused_parameters(model)))


def _copies(model: nn.Module, *, unused: bool) -> DistributedDataParallel:
    ids = [model.device] if model.device.type == "cuda" else None
    # Buffers would be sent in every forward: constant positions, and batch statistics, which
    # SyncBatchNorm keeps equal anyway (`share_statistics` does it elsewhere).
    options = inspect.signature(DistributedDataParallel).parameters  # renamed in torch 2.14
    sync = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    return DistributedDataParallel(
        model, device_ids=ids, find_unused_parameters=unused, **{sync: False}
    )


@torch.no_grad()
def share_statistics(model: nn.Module, world: World) -> None:
    """Copies the batch statistics of the first process to all, so that they evaluate one model.

    Without SyncBatchNorm, which needs CUDA, each process has statistics of its own images.
    """
    if world.size == 1:
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


def wrap_again(model: Pix2Seq, *, unused: bool) -> DistributedDataParallel:
    """Wraps a model again after its trainable parameters changed.

    DDP looks at that only once. The wrapper from before must not be held by anyone any more.

    Args:
        unused: `find_unused_parameters` of the wrapper from before.
    """
    gc.collect()  # the hooks of the old wrapper leave with it
    return _copies(model, unused=unused)


def _unused_parameters(model: Pix2Seq) -> list[str]:
    """Parameters that no loss depends on, such as a norm that a timm model pools with."""
    was_training = model.training
    model.eval()  # no draws, no statistics
    images = torch.zeros(1, 3, *model.config.image_size, device=model.device)
    tokens = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model.forward(images, tokens).sum().backward()  # as it is, not as it may be compiled
    names = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return names


def synchronised(module: nn.Module, last: bool) -> AbstractContextManager:
    """Context of one accumulated batch: gradients are only exchanged in the last one.

    Sharded ones travel with every part: holding them whole until the end is what FSDP avoids.
    """
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def whole(values, *, to_host: bool = False, keep: bool = True):
    """Gathers sharded tensors anywhere in `values`; all processes must call it.

    `torch.distributed.checkpoint.state_dict` is no substitute: before the first step, reading the
    optimiser's state there makes a step with zero gradients, which counts in the bias correction,
    so a run would depend on when it is saved; and full states kept on the host reach rank 0 alone.

    Args:
        to_host: keep them in the memory of the host: on the device is then one at a time.
        keep: False on a process that does not need them: it only helps the others.
    """

    def gather(value):
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        if not keep:
            return None
        return full.cpu() if to_host else full

    return tree_map(gather, values)


def whole_model(
    model: Pix2Seq, *, keep: bool = True, device: torch.device | None = None
) -> Pix2Seq | None:
    """`model`, or with FSDP an unsharded copy: processes decode independently.

    Args:
        keep: see `whole`; without it there is no copy.
        device: of the copy; None = that of the model.
    """
    if not isinstance(model, FSDPModule):
        return model
    values = whole(model.state_dict(), to_host=True, keep=keep)
    if not keep:
        return None
    with torch.random.fork_rng(devices=()):  # the initial weights are drawn, then overwritten
        out = build_model(model.config)
    out.load_state_dict(values)
    out.meta = model.meta
    return out.to(device or model.device)


def load_whole_model(model: Pix2Seq, values: dict[str, Tensor]) -> None:
    """Inverse of `whole(model.state_dict())`."""
    own = model.state_dict()
    model.load_state_dict({name: _like(v, own.get(name)) for name, v in values.items()})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, values: dict) -> None:
    """Inverse of `whole(optimizer.state_dict())`.

    Each tensor is sharded before the next one reaches the device: whole, the state may not fit.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: _like(value, parameters[number]) for name, value in of_one.items()}
        for number, of_one in values["state"].items()
        if number < len(parameters)  # others are refused below
    }
    optimizer.load_state_dict(values | {"state": state})


def _like(value: Tensor, other: Tensor | None) -> Tensor:
    """A plain tensor, sharded as `other` is."""
    if not isinstance(other, DTensor) or value.shape != other.shape:
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)


class _Recomputed:
    """A `forward` whose inner activations are computed again when the gradient needs them."""

    def __init__(self, forward: Callable):
        self.forward = forward

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


def report_no_blocks(encoder: nn.Module, cfg) -> None:
    """Says so where a setting that saves memory reaches no block of the encoder."""
    blocks = list(getattr(encoder, "blocks", ()))
    without = [block for block in blocks if not _has_batch_norm(block)]
    for name, reached in {"recompute_activations": without, "fsdp": blocks}.items():
        if getattr(cfg, name) and not reached:
            reason = f"{cfg.encoder} has no blocks for it"
            log(f"notice: {name} saves memory in the decoder alone: {reason}")


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def recompute_activations(modules: Iterable[nn.Module]) -> None:
    """Stores only the inputs of these modules and recomputes the rest; gradients are equal.

    The forward pass of the modules is computed twice. Modules with batch norm, whose statistics
    would be updated twice as well, are left as they are.
    """
    for module in modules:
        if not _has_batch_norm(module):
            module.forward = _Recomputed(module.forward)
