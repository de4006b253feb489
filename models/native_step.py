"""One token per row in native code: at the speed at which weights can be read.

`native_step.cpp` is compiled when it is first asked for (two seconds, any g++ or clang++ with
OpenMP) and kept in the cache folder of the user.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from functools import cache as once
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoder import Cache, Decoder, DecoderLayer, LayerCache
from utils.errors import UserError, one_line
from utils.files import atomic_path

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILERS = ("g++", "c++", "clang++")  # g++ first: its threads are those that torch uses on Linux
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
MARCH = {"AVX2": "-march=x86-64-v3", "AVX512": "-march=x86-64-v4"}  # by what torch finds
ADVICE = "name another one in CXX, or set decode_mode=plain"
LANES = 16  # of the widest processor native_step.cpp knows


def address(array: Tensor | None) -> int | None:
    if array is not None and not array.is_contiguous():
        raise ValueError(f"the native step reads contiguous arrays, got strides {array.stride()}")
    return None if array is None else array.data_ptr()


class _Linear(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p),
        ("out_features", ctypes.c_int64), ("in_features", ctypes.c_int64),
    ]  # fmt: skip

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> _Linear:
        return cls(address(weight), address(bias), *weight.shape)


class _Norm(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float),
    ]  # fmt: skip

    @classmethod
    def of(cls, norm: nn.LayerNorm | nn.Identity) -> _Norm:
        if isinstance(norm, nn.Identity):
            return cls()
        return cls(address(norm.weight), address(norm.bias), norm.eps)


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("self_ln", "cross_ln", "mlp_ln")),
        *((name, _Linear) for name in ("qkv", "self_out", "q", "cross_out", "dense1", "dense2")),
        *((name, ctypes.c_void_p) for name in ("k", "v", "memory_k", "memory_v")),
    ]

    @classmethod
    def of(cls, layer: DecoderLayer, cache: LayerCache) -> _Layer:
        attention, cross, mlp = layer.self_attention, layer.cross_attention, layer.mlp
        norms = (layer.self_ln, layer.cross_ln, layer.mlp_ln)
        linears = (attention.qkv, attention.out, cross.q, cross.out, mlp.dense1, mlp.dense2)
        return cls(
            *map(_Norm.of, norms),
            *(_Linear.of(linear.weight, linear.bias) for linear in linears),
            *map(address, (cache.k, cache.v, cache.memory_k, cache.memory_v)),
        )


class _Decoder(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)), ("output_ln", _Norm), ("head", _Linear),
        *((name, ctypes.c_int64) for name in (
            "num_layers", "num_rows", "num_images", "num_heads", "dim", "mlp_dim", "max_len",
            "memory_len",
        )),
        ("post_norm", ctypes.c_int32),
    ]  # fmt: skip


def suits_native_step(decoder: Decoder, cache: Cache) -> bool:
    """Whether the sizes are whole vectors, as `NativeStep` needs them."""
    sizes = (cache.layers[0].k.shape[3], decoder.layers[0].mlp.dense1.out_features)
    return not any(size % LANES for size in sizes)


@once
def native_is_available() -> bool:
    """Whether native_step.cpp can be compiled here, or was."""
    try:
        compiled_step()
    except UserError:
        return False
    return True


class NativeStep:
    """The decoder for one new token per row, float32 on a CPU.

    Its weights and its cache are read where they lie: they must not move meanwhile.

    Raises:
        UserError: no C++ compiler, or it fails.
    """

    def __init__(self, decoder: Decoder, cache: Cache):
        self.step = compiled_step().decoder_step
        self.decoder, self.cache = decoder, cache
        self.layers = (_Layer * len(cache.layers))(*map(_Layer.of, decoder.layers, cache.layers))
        num_rows, num_heads, max_len, head_dim = cache.layers[0].k.shape
        num_images, _, memory_len, _ = cache.layers[0].memory_k.shape
        dim, mlp_dim = num_heads * head_dim, decoder.layers[0].mlp.dense1.out_features
        self.arguments = _Decoder(
            self.layers, _Norm.of(decoder.output_ln), _Linear(), len(self.layers), num_rows,
            num_images, num_heads, dim, mlp_dim, max_len, memory_len, decoder.layers[0].post_norm,
        )  # fmt: skip
        self.scratch = torch.zeros(num_rows + LANES - 1, 2 * dim + max(3 * dim, mlp_dim))

    def __call__(self, tokens: Tensor, part: slice) -> Tensor:
        """(R,) ids -> (R, len(part)) logits"""
        position, decoder = self.cache.length, self.decoder
        if position >= decoder.max_len:
            raise ValueError(f"sequence must have at most {decoder.max_len} tokens, got more")
        x = F.embedding(tokens, decoder.token_embedding) + decoder.positions[position]  # (R, D)
        table = decoder.output_table(part)
        logits = x.new_empty(len(x), len(table[0]))
        self.arguments.head = _Linear.of(*table)
        arrays = map(address, (x, self.scratch, logits))
        self.step(self.arguments, *arrays, position, torch.get_num_threads())
        self.cache.length = position + 1
        return logits


@once
def compiled_step() -> ctypes.CDLL:
    """native_step.cpp, compiled for this processor.

    Raises:
        UserError: there is no C++ compiler, or it fails.
    """
    flags = (*FLAGS, *filter(None, [MARCH.get(torch.backends.cpu.get_cpu_capability())]))
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise UserError(f"no C++ compiler for decode_mode=native; install g++, {ADVICE}")
    command = [*shlex.split(compiler), *flags, str(SOURCE), "-o"]
    key = hashlib.sha256(" ".join(command).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    path = cache_folder() / f"native_step_{key}.so"
    if not path.is_file():
        with atomic_path(path) as temporary:
            compile_to(temporary, command)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"cannot load {path} ({one_line(error)}); delete it, {ADVICE}") from error
    loaded.decoder_step.argtypes = [
        ctypes.POINTER(_Decoder), *[ctypes.c_void_p] * 3, ctypes.c_int64, ctypes.c_int32
    ]  # fmt: skip
    loaded.decoder_step.restype = None
    return loaded


def compile_to(path: Path, command: list[str]) -> None:
    try:
        done = subprocess.run([*command, str(path)], capture_output=True, text=True)
    except OSError as error:
        problem = f"{command[0]}: {error.strerror}"
    else:
        if done.returncode == 0:
            return
        errors = [line.strip() for line in done.stderr.splitlines() if "error" in line]
        problem = errors[0] if errors else f"status {done.returncode}"
    raise UserError(f"the C++ compiler failed ({problem}); {ADVICE}")


def cache_folder() -> Path:
    """Where compiled code is kept: `pix2seq` in XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pix2seq"
