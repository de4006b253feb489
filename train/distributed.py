"""Training on several processes, one for each device, as `torchrun` starts them.

Without torchrun there is one process and nothing of this costs anything. The model is wrapped for
the processes, and becomes whole again for a checkpoint. Activation checkpointing saves memory and
costs time.
"""

import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

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
from utils.devices import ALONE, World
from utils.errors import UserError

TIMEOUT = timedelta(hours=1)  # the others wait while one fetches weights or writes files
POLL_SECONDS = 0.5
TELL_SECONDS = 1.0  # the store may live in the process that failed: the others read it meanwhile
LEAVE_SECONDS = 3.0  # later: when one leaves, torchrun ends all, the one with the message too
FAILED = "pix2seq/failed"  # key of the message of the first process that failed


@contextmanager
def session() -> Iterator[World]:
    """Joins the processes that torchrun started; an error in one of them ends all.

    The process that fails first raises its error, the others leave with exit status 2, and one on
    each machine repeats the message.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE
        return
    rank = int(os.environ["RANK"])
    if dist.is_initialized():  # a session inside a session is the same one
        yield World(rank, size)
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_local_rank() % torch.cuda.device_count())
    # Objects and token counts travel on the CPU, so that nothing waits for the accelerator.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    watch = _Watch(rank)
    try:
        world = World(rank, size)
        yield world
        world.gather(None)  # nobody leaves while another still asks for something
        watch.stop()  # before the store it looks into goes
        dist.destroy_process_group()
    except Exception as error:
        if watch.tell(error):
            raise
        time.sleep(LEAVE_SECONDS)
        raise SystemExit(2) from None  # another one failed first: this is what came of it
    finally:
        watch.stop()


class _Watch:
    """A thread that ends this process when another one failed, also while it waits for that one."""

    def __init__(self, rank: int):
        self.rank, self.over = rank, threading.Event()
        self.store = (
            dist.distributed_c10d._get_default_store().clone()
        )  # the main thread may wait inside its own
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def tell(self, error: Exception) -> bool:
        """Whether this process is the first that failed; then the others learn why."""
        self.over.set()
        lines = traceback.format_exception(error)
        text = str(error) if isinstance(error, UserError) else lines[-1].strip()
        message = f"rank {self.rank}: {text}"
        try:
            first = self.store.compare_set(FAILED, "", message).decode() == message
        except RuntimeError:  # the process that keeps the store is gone
            return False
        if first:
            time.sleep(TELL_SECONDS)
        return first

    def stop(self) -> None:
        self.over.set()
        self.thread.join()
        self.store = None

    def _look(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            try:
                failed = self.store.check([FAILED])
                message = self.store.get(FAILED).decode() if failed else ""
            except RuntimeError:
                failed, message = True, "another process of this training is gone"
            if failed and not self.over.is_set():
                if _local_rank() == 0:
                    print(f"error on {message}", file=sys.stderr, flush=True)
                time.sleep(LEAVE_SECONDS)
                os._exit(2)  # the main thread may wait for the other for ever


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def local_device(device: torch.device, world: World) -> torch.device:
    """The device of this process, where `device` is the same for all.

    Raises:
        UserError: there is no device for every process of this machine.
    """
    if world.size == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise UserError(f"device={device} is one device for {world.size} processes; use cuda")
    if _local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} CUDA devices for more processes; use "
            f"torchrun --nproc-per-node {torch.cuda.device_count()}"
        )
    return torch.device("cuda", _local_rank())


def parallelise(model: Pix2Seq, world: World, *, fsdp: bool = False) -> nn.Module:
    """What to call in place of `model` in training; `model` keeps its names and methods.

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
            log("batch norm goes by the images of each process: SyncBatchNorm needs CUDA")
    if fsdp:
        mesh = init_device_mesh(model.device.type, (world.size,))
        for block in getattr(model.encoder, "blocks", ()):
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return _copies(model, unused=bool(_unused_parameters(model)))


def _copies(model: nn.Module, *, unused: bool) -> DistributedDataParallel:
    ids = [model.device] if model.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=unused)


def wrap_again(model: Pix2Seq, *, unused: bool) -> DistributedDataParallel:
    """Copies of a model whose parameters ask for other gradients than before.

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
    """Forward and backward of one part of a step: gradients travel with the last part alone.

    Sharded ones travel with every part: holding them whole until the end is what FSDP avoids.
    """
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def whole(values, *, to_host: bool = False):
    """Sharded tensors anywhere in `values` become plain ones, on every process.

    `torch.distributed.checkpoint.state_dict` is no substitute: before the first step, reading the
    optimiser's state there makes a step with zero gradients, which counts in the bias correction,
    so a run would depend on when it is saved; and full states kept on the host reach rank 0 alone.

    Args:
        to_host: keep them in the memory of the host: on the device is then one at a time.
    """

    def gather(value):
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.cpu() if to_host else full

    return tree_map(gather, values)


def whole_model(model: Pix2Seq) -> Pix2Seq:
    """`model`, or with FSDP a plain copy of it: every process decodes at its own pace."""
    if not isinstance(model, FSDPModule):
        return model
    with torch.random.fork_rng(devices=()):  # the initial weights are drawn, then overwritten
        out = build_model(model.config)
    out.load_state_dict(whole(model.state_dict()))
    out.meta = model.meta
    return out.to(model.device)


def load_whole_model(model: Pix2Seq, values: dict[str, Tensor]) -> None:
    """Inverse of `whole(model.state_dict())`."""
    own = model.state_dict()
    model.load_state_dict({name: _like(v, own.get(name)) for name, v in values.items()})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, values: dict) -> None:
    """Inverse of `whole(optimizer.state_dict())`."""
    optimizer.load_state_dict(values)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = _like(value, parameter)


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


def recompute_activations(modules: Iterable[nn.Module]) -> None:
    """Keeps only what goes into each of these modules; gradients and parameters stay as they are.

    The forward pass of the modules is computed twice. Modules with batch norm, whose statistics
    would be updated twice as well, are left as they are.
    """
    for module in modules:
        if any(isinstance(part, _BatchNorm) for part in module.modules()):
            continue
        module.forward = _Recomputed(module.forward)
