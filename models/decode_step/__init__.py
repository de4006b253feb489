"""How a decoding step is computed: one class per mode, and the function that chooses.

A step reads the newest token of every row into the cache and returns the logits of the next one.
All modes compute the same numbers as `Decoder.forward`, up to rounding:

    plain     the modules of the decoder, on every device (this file)
    native    C++ on a CPU, compiled at its first use, also with weights in int8 (native.py)
    static    tensors that keep their shape and place, on a GPU replayed as a CUDA graph
              (cuda_graph.py)
    compiled  static, with its kernels fused by torch.compile
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from models.decode_step.cuda_graph import StaticStep
from models.decode_step.native import (
    LANES,
    NativeStep,
    can_step_now,
    library,
    obstacle,
    suits_native_step,
)
from models.decoder import Cache, Decoder
from utils.errors import UserError

MODES = ("plain", "native", "static", "compiled")
AGREEMENT, AGREEMENT_BFLOAT16 = 1e-3, 0.05  # of a logit, between two modes
CHOICES = ("auto", *MODES)  # of settings; `choose_mode` says which mode "auto" is


class DecodeStep(Protocol):
    """What every mode looks like; built anew for every call of `generate`."""

    rows_may_leave: bool  # False: rows that have ended stay, `select` must not be called

    def __call__(self, tokens: Tensor) -> Tensor:
        """Reads one token per row.

        Args:
            tokens: (R,) ids.

        Returns:
            (R, V) float32 logits of what follows, to be used before the next call.
        """

    def select(self, rows: Tensor, images: Tensor) -> DecodeStep:
        """The step that goes on with some rows (R',), which belong to some images (B',)."""


class PlainStep:
    """The modules of the decoder, on every device."""

    rows_may_leave = True

    def __init__(self, decoder: Decoder, cache: Cache, id_range: slice = slice(None)):
        self.decoder, self.cache, self.id_range = decoder, cache, id_range

    def __call__(self, tokens: Tensor) -> Tensor:
        """(R,) ids -> (R, V) float32 logits, see `DecodeStep`."""
        hidden = self.decoder(tokens[:, None], cache=self.cache)[:, -1]  # (R, D)
        return self.decoder.logits(hidden, self.id_range).float()

    def select(self, rows: Tensor, images: Tensor) -> PlainStep:
        return PlainStep(self.decoder, self.cache.select(rows, images), self.id_range)


def build_step(
    decoder: Decoder, cache: Cache, mode: str, id_range: slice = slice(None)
) -> DecodeStep:
    """The step of a mode, after a prompt that is in the cache already.

    Where the native step cannot run (a model in training mode, mixed precision, odd sizes, parts
    of layers that it does not know), the plain one takes its place.

    Args:
        id_range: the ids of the vocabulary that get logits.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode in ("static", "compiled"):
        return StaticStep(decoder, cache, id_range, compiled=mode == "compiled")
    if mode == "native" and suits_native_step(decoder) and can_step_now(decoder, cache):
        return NativeStep(decoder, cache, id_range)
    return PlainStep(decoder, cache, id_range)


def choose_mode(decoder: Decoder, choice: str, *, int8: bool = False) -> str:
    """The mode that a setting means for this decoder, one of `MODES`.

    "auto" is "native" where that can run (on a CPU, with a C++ compiler), otherwise "plain".

    Args:
        int8: the weights are to be int8, which only "native" makes use of. "plain" computes with
            the same rounded weights, for comparisons.

    Raises:
        ValueError: there is no such mode.
        UserError: "native" was asked for and cannot run, or int8 without it.
    """
    if choice not in CHOICES:
        raise ValueError(f"mode must be one of {', '.join(CHOICES)}, got {choice!r}")
    dtype, device = decoder.token_embedding.dtype, decoder.token_embedding.device
    fits = device.type == "cpu" and suits_native_step(decoder)
    if int8 and choice != "plain":
        if choice not in ("auto", "native") or not fits:
            raise UserError(
                "infer_dtype=int8 is for decode_mode=native or auto, on a CPU, and sizes that are "
                f"multiples of {LANES}; set infer_dtype=float32 or bfloat16"
            )
        if reason := obstacle(torch.int8):  # compiles it now
            raise UserError(f"infer_dtype=int8 needs the native step: {reason}")
        return "native"
    if choice == "auto":
        return "native" if fits and obstacle(dtype) is None else "plain"
    if choice == "native":
        if not fits:
            raise UserError(
                "decode_mode=native is for float32, bfloat16 or int8 on a CPU and sizes that are "
                f"multiples of {LANES}; set decode_mode=auto"
            )
        library(dtype)  # compile now rather than at the first answer
    return choice


@torch.no_grad()
def agrees_with_modules(decoder: Decoder) -> bool:
    """Whether a native step computes what `Decoder.forward` computes, up to rounding.

    A decoder whose `forward` was changed has the parts that native.cpp knows, and computes
    something else with them. Two steps of one sequence, for an image of random numbers, show it,
    unless it concerns later steps or several sequences only.
    """
    table, precision = decoder.token_embedding, torch.get_float32_matmul_precision()
    exact = decoder if table.dtype == torch.float32 else copy.deepcopy(decoder).float()
    tolerance = AGREEMENT if table.dtype == torch.float32 else AGREEMENT_BFLOAT16
    training = [module for module in decoder.modules() if module.training]
    decoder.eval(), exact.eval()
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.autocast("cpu", enabled=False):
            plain, fast = _answer(PlainStep, exact), _answer(NativeStep, decoder)
    except Exception:  # the decoder is not ours: one that takes no small image, say
        return False
    finally:
        torch.set_float32_matmul_precision(precision)
        for module in training:
            module.training = True
    usual = float(plain.abs().nanmedian().nan_to_num())
    return torch.allclose(fast, plain, rtol=tolerance, atol=tolerance * usual, equal_nan=True)


def _answer(kind: type, decoder: Decoder) -> Tensor:
    """(1, V) logits of a decoder after two tokens, or after one if it takes no more."""
    places = 2 if decoder.memory_positions is None else len(decoder.memory_positions)
    table, generator = decoder.token_embedding, torch.Generator("cpu").manual_seed(0)
    memory = torch.randn(1, places, table.shape[1], generator=generator, device="cpu")
    steps = min(2, decoder.max_len)
    step = kind(decoder, decoder.init_cache(memory.to(table.dtype), 1, steps))
    for token in range(steps):
        logits = step(torch.tensor([token % len(table)], device="cpu"))
    return logits


class _CudnnSwitch:
    """The switch of cuDNN's attention, which all threads of the process share."""

    def __init__(self):
        self.lock, self.users, self.before = threading.Lock(), 0, True

    def enter(self) -> None:
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.before = torch.backends.cuda.cudnn_sdp_enabled()
                torch.backends.cuda.enable_cudnn_sdp(False)

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                torch.backends.cuda.enable_cudnn_sdp(self.before)


CUDNN_SWITCH = _CudnnSwitch()


@contextmanager
def no_cudnn_attention() -> Iterator[None]:
    """Switches cuDNN's attention kernels off, in the whole process, until the last thread leaves.

    torch prefers them for half types on newer GPUs. But cuDNN plans them anew for every length of
    the cache, and planning takes longer than many decoding steps.
    """
    CUDNN_SWITCH.enter()
    try:
        yield
    finally:
        CUDNN_SWITCH.leave()
