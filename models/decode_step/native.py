"""The decoding step in C++ for CPUs, nearly as fast as weights can be read from memory.

native.cpp is compiled at its first use, in a few seconds, by g++ with OpenMP or by the compiler
that CXX names. The library is kept in the user's cache folder; its name holds digests of what it
was made from and of its content. There is one library for float32 weights, one for bfloat16 and one
for int8: matrices in int8 (`quantize`), keys and values of images in bfloat16, all else in float32.
`NativeStep` passes it the addresses of weights and cache: nothing is copied.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from functools import cache as once
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoder import Cache, Decoder, DecoderLayer, LayerCache
from utils.errors import UserError, one_line
from utils.files import cache_folder

SOURCE = Path(__file__).with_name("native.cpp")
COMPILERS = ("g++", "c++")  # g++ first: its threads are those that torch uses on Linux
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
VECTORS = {  # by the CPU capability that torch reports
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
}
NUMBERS = {  # types of weights -> flags
    torch.float32: (), torch.bfloat16: ("-DBFLOAT16",), torch.int8: ("-DINT8",),
}  # fmt: skip
ADVICE = "name a C++ compiler with OpenMP in CXX, or set decode_mode=plain"
PATIENCE = 120  # seconds for the compiler
CONTAINERS = ("", "self_attention", "cross_attention", "mlp")  # of a decoder layer
LAYER_PARTS = {  # what they hold
    *("self_ln", "cross_ln", "mlp_ln", "self_attention.qkv", "self_attention.out"),
    *("cross_attention.q", "cross_attention.kv", "cross_attention.out", "mlp.dense1", "mlp.dense2"),
}
LANES = 16  # numbers in a vector of the widest processor that native.cpp knows
INT8_MAX = 127  # symmetric: -128 is not used
one_at_a_time = threading.Lock()


@once
def obstacle(dtype: torch.dtype = torch.float32) -> str | None:
    """Why the library cannot be used here, in one line; None if it can."""
    try:
        library(dtype)
    except UserError as error:
        return str(error)
    return None


@once
def library(dtype: torch.dtype = torch.float32) -> ctypes.CDLL:
    """The compiled library for this processor.

    Args:
        dtype: of the weights, one of `NUMBERS`; the cache is of the same type. With int8,
            the cache of the tokens is float32, keys and values of the image are bfloat16.

    Raises:
        UserError: there is no C++ compiler, it fails, or the library cannot be stored or loaded.
    """
    with one_at_a_time:
        try:
            path = compiled_file(dtype)
            try:
                return _load(path)
            except OSError:  # made for another system: a home that several machines share
                path.unlink(missing_ok=True)
                return _load(compiled_file(dtype))
        except (OSError, RuntimeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the native step cannot be used ({one_line(error)}); {ADVICE}"
            ) from error


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    loaded.decoder_step.restype = None
    return loaded


def compiled_file(dtype: torch.dtype = torch.float32) -> Path:
    """Path of the library, which is compiled if it is not there yet, or not as it was compiled.

    Its name ends in a digest of its content: to load a file that was cut off kills the process.
    """
    # The command: compiler, vectors of this processor, type of the weights.
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise UserError(f"there is no C++ compiler; install g++, {ADVICE}")
    vectors = VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())
    flags = (*FLAGS, *vectors, *NUMBERS[dtype])
    command = [*shlex.split(compiler), *flags, str(SOURCE), "-o"]

    # The file: one for each command, source and kind of machine.
    kind = " ".join([platform.system(), platform.machine(), *platform.libc_ver(), *command])
    key = hashlib.sha256(kind.encode() + SOURCE.read_bytes()).hexdigest()[:16]
    folder = cache_folder()
    for path in sorted(folder.glob(f"native_step_{key}_*.so")):
        if hasattr(os, "getuid") and path.stat().st_uid not in (os.getuid(), 0):
            raise UserError(f"{path} belongs to somebody else; remove it, or set decode_mode=plain")
        if path == _named_by_content(path, key):
            return path
        path.unlink(missing_ok=True)  # damaged; another process may have seen it, too
    return _compile_into(folder, key, command)


def _named_by_content(library: Path, key: str, folder: Path | None = None) -> Path:
    """Where a library belongs."""
    digest = hashlib.sha256(library.read_bytes()).hexdigest()[:16]
    return (folder or library.parent) / f"native_step_{key}_{digest}.so"


def _compile_into(folder: Path, key: str, command: list[str]) -> Path:
    """Compiles in a folder of its own, so that any number of processes may do so at once.

    Raises:
        UserError: the compiler fails, or nothing can be written there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            fresh = Path(own) / "native_step.so"
            compile_to(fresh, command)
            path = _named_by_content(fresh, key, folder)
            os.replace(fresh, path)
        return path
    except OSError as error:
        raise UserError(
            f"cannot write the native step to {folder} ({error.strerror or error}); set "
            "XDG_CACHE_HOME to a folder that can be written, or decode_mode=plain"
        ) from error


def compile_to(path: Path, command: list[str]) -> None:
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            [*command, str(path)], capture_output=True, text=True, env=environment, timeout=PATIENCE
        )
    except OSError as error:
        problem = f"{command[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        problem = f"{command[0]}: not ready after {PATIENCE} s"
    else:
        if done.returncode == 0:
            return
        errors = [line.strip() for line in done.stderr.splitlines() if "error" in line]
        problem = errors[0] if errors else f"status {done.returncode}"
    raise UserError(f"the C++ compiler failed ({problem}); {ADVICE}")


class _Linear(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("scale", ctypes.c_void_p),
        ("out_features", ctypes.c_int64), ("in_features", ctypes.c_int64),
    ]  # fmt: skip


class _Norm(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float),
    ]  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("self_ln", "cross_ln", "mlp_ln")),
        *((name, _Linear) for name in ("qkv", "self_out", "q", "cross_out", "dense1", "dense2")),
        *((name, ctypes.c_void_p) for name in ("k", "v", "memory_k", "memory_v")),
    ]


class _Decoder(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)), ("output_ln", _Norm), ("head", _Linear),
        *((name, ctypes.c_int64) for name in (
            "num_layers", "num_rows", "num_images", "num_heads", "dim", "mlp_dim", "max_len",
            "memory_len",
        )),
        ("post_norm", ctypes.c_int32),
    ]  # fmt: skip


def suits_native_step(decoder: Decoder) -> bool:
    """Whether the decoder has the parts, sizes and types that native.cpp knows.

    Its layers must have these parts and no others, sizes must be whole vectors, and matrices
    contiguous. `models.decode_step.agrees_with_modules` notices a `forward` that was changed.
    """
    for layer in decoder.layers:
        modules = dict(layer.named_modules())
        parts = {n for n, m in modules.items() if isinstance(m, (nn.Linear, nn.LayerNorm))}
        loose = [p for name in CONTAINERS for p in modules[name].parameters(recurse=False)]
        if parts != LAYER_PARTS or loose:
            return False
    dtype = decoder.token_embedding.dtype
    head_dim = decoder.token_embedding.shape[1] // decoder.num_heads
    sizes = head_dim, decoder.layers[0].mlp.dense1.out_features
    whole = dtype in NUMBERS and not any(size % LANES for size in sizes)
    return whole and all(p.is_contiguous() and p.dtype == dtype for p in decoder.parameters())


@torch.no_grad()
def quantize(decoder: Decoder) -> dict[nn.Parameter, tuple[Tensor, Tensor]]:
    """Rounds the matrices that a step reads to int8, symmetric, with a scale per output channel.

    The parameters are overwritten by what the rounded numbers mean, so that the modules compute
    with the same weights as the native step. Keys and values of the image are projected once, so
    their matrices stay as they are; `Decoder.init_cache` keeps the results as bfloat16.

    Returns:
        parameter (out, in) -> its numbers (out, in) int8 and scales (out,) float32.
    """
    parts = ("self_attention.qkv", "self_attention.out", "cross_attention.q", "cross_attention.out")
    linears = [
        layer.get_submodule(name)
        for layer in decoder.layers
        for name in (*parts, "mlp.dense1", "mlp.dense2")
    ]
    quantized = {}
    for weight in (*(linear.weight for linear in linears), decoder.output_weight):
        scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / INT8_MAX
        numbers = (weight / scale[:, None]).round().clamp(-INT8_MAX, INT8_MAX)
        weight.copy_(numbers * scale[:, None])
        quantized[weight] = numbers.to(torch.int8), scale
    return quantized


def can_step_now(decoder: Decoder, cache: Cache) -> bool:
    """Whether `NativeStep` may run here: on a CPU, cache and weights of one type, no gradients."""
    return (
        decoder.token_embedding.device.type == "cpu"
        and decoder.token_embedding.dtype == cache.layers[0].k.dtype
        and not decoder.training
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


class NativeStep:
    """The decoder for one new token per row, on a CPU.

    It reads weights and cache in place and keeps them alive. They are float32 or bfloat16; with
    `Decoder.int8`, matrices are int8, keys and values of the images bfloat16 and all else float32.
    All computation is in float32.

    Raises:
        UserError: see `models.decode_step.native.library`.
    """

    rows_may_leave = True

    def __init__(self, decoder: Decoder, cache: Cache, id_range: slice = slice(None)):
        self.dtype, self.decoder, self.cache = decoder.token_embedding.dtype, decoder, cache
        self.id_range = id_range  # the ids of the vocabulary that get logits
        self.step = library(torch.int8 if decoder.int8 else self.dtype).decoder_step
        self.held: list[Tensor] = []  # what `layers` and `arguments` point at
        num_rows, num_heads, max_len, head_dim = cache.layers[0].k.shape
        num_images, _, memory_len, _ = cache.layers[0].memory_k.shape
        dim, mlp_dim = num_heads * head_dim, decoder.layers[0].mlp.dense1.out_features
        layers = map(self._layer, decoder.layers, cache.layers)
        self.layers = (_Layer * len(cache.layers))(*layers)
        self.arguments = _Decoder(
            self.layers, self._norm(decoder.output_ln), self._head(), len(self.layers), num_rows,
            num_images, num_heads, dim, mlp_dim, max_len, memory_len, decoder.layers[0].post_norm,
        )  # fmt: skip
        shape = num_rows + LANES - 1, 2 * dim + max(3 * dim, mlp_dim)
        self.scratch = torch.zeros(shape, dtype=torch.float32, device="cpu")

    def __call__(self, tokens: Tensor) -> Tensor:
        """(R,) ids -> (R, V) float32 logits, see `DecodeStep`."""
        position, decoder, sizes = self.cache.length, self.decoder, self.arguments
        if len(tokens) != sizes.num_rows:
            raise ValueError(f"tokens must be of {sizes.num_rows} rows, got {len(tokens)}")
        most = min(decoder.max_len, sizes.max_len)
        if position >= most:
            raise ValueError(f"sequence must have at most {most} tokens, got more")
        x = F.embedding(tokens, decoder.token_embedding).float()  # (R, D)
        x += decoder.positions[position]
        logits = x.new_empty(len(x), sizes.head.out_features)
        arrays = [ctypes.c_void_p(address(array)) for array in (x, self.scratch, logits)]
        threads = ctypes.c_int32(torch.get_num_threads())
        self.step(ctypes.byref(sizes), *arrays, ctypes.c_int64(position), threads)
        self.cache.length = position + 1
        return logits

    def select(self, rows: Tensor, images: Tensor) -> NativeStep:
        """The step of fewer rows, see `DecodeStep`."""
        return NativeStep(self.decoder, self.cache.select(rows, images), self.id_range)

    def _head(self) -> _Linear:
        weight, bias = self.decoder.output_table(self.id_range)
        if not self.decoder.int8:
            return self._matrix(weight, bias)
        numbers, scale = self.decoder.int8[self.decoder.output_weight]
        return self._matrix(numbers[self.id_range], bias, scale[self.id_range])

    def _layer(self, layer: DecoderLayer, cache: LayerCache) -> _Layer:
        attention, cross, mlp = layer.self_attention, layer.cross_attention, layer.mlp
        linears = (attention.qkv, attention.out, cross.q, cross.out, mlp.dense1, mlp.dense2)
        memory = torch.bfloat16 if self.decoder.int8 else self.dtype
        return _Layer(
            *map(self._norm, (layer.self_ln, layer.cross_ln, layer.mlp_ln)),
            *map(self._linear, linears),
            *map(self._held_address, (cache.k, cache.v)),
            *(self._held_address(array, memory) for array in (cache.memory_k, cache.memory_v)),
        )

    def _linear(self, linear: nn.Linear) -> _Linear:
        if not self.decoder.int8:
            return self._matrix(linear.weight, linear.bias)
        numbers, scale = self.decoder.int8[linear.weight]
        return self._matrix(numbers, linear.bias, scale)

    def _matrix(self, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> _Linear:
        self.held.append(weight)
        where = address(weight, self.dtype if scale is None else torch.int8)
        addresses = where, self._held_address(bias), self._held_address(scale)
        return _Linear(*addresses, *weight.shape)

    def _norm(self, norm: nn.LayerNorm | nn.Identity) -> _Norm:
        if isinstance(norm, nn.Identity):
            return _Norm()
        return _Norm(self._held_address(norm.weight), self._held_address(norm.bias), norm.eps)

    def _held_address(self, array: Tensor | None, dtype: torch.dtype | None = None) -> int | None:
        self.held.append(array)
        return address(array, dtype or self.dtype)


def address(array: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    if array is None:
        return None
    if array.device.type != "cpu" or not array.is_contiguous() or array.dtype != dtype:
        raise ValueError(
            f"the native step reads contiguous arrays of {dtype} on the CPU, got {array.dtype} on "
            f"{array.device} with strides {array.stride()}"
        )
    return array.data_ptr()
