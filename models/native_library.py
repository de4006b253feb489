"""native_step.cpp as a library: compiled when it is first asked for, then kept.

It takes a few seconds and any g++ with OpenMP, another compiler by CXX. The file lies in the cache
folder of the user, its name is a digest of the source, the command and the kind of machine. There
is one library for weights in float32 and one for weights in bfloat16.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import threading
from functools import cache as once
from pathlib import Path

import torch

from utils.errors import UserError, one_line
from utils.files import atomic_path

SOURCE = Path(__file__).with_name("native_step.cpp")
COMPILERS = ("g++", "c++")  # g++ first: its threads are those that torch uses on Linux
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
VECTORS = {  # by what torch finds
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
}
NUMBERS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}  # of which weights may be
ADVICE = "name a C++ compiler with OpenMP in CXX, or set decode_mode=plain"
PATIENCE = 120  # seconds for the compiler
one_at_a_time = threading.Lock()


@once
def obstacle(dtype: torch.dtype = torch.float32) -> str | None:
    """Why the library cannot be had here, in a line; None if it can."""
    try:
        library(dtype)
    except UserError as error:
        return str(error)
    return None


@once
def library(dtype: torch.dtype = torch.float32) -> ctypes.CDLL:
    """The library, for this processor.

    Args:
        dtype: of weights and cache, one of `NUMBERS`.

    Raises:
        UserError: there is no C++ compiler, it fails, or its product cannot be kept or loaded.
    """
    with one_at_a_time:
        try:
            loaded = ctypes.CDLL(str(compiled_file(dtype)))
            loaded.decoder_step.restype = None
            return loaded
        except (OSError, RuntimeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the native step cannot be used ({one_line(error)}); {ADVICE}"
            ) from error


def compiled_file(dtype: torch.dtype = torch.float32) -> Path:
    """Where the library is; it is compiled if it is not there yet."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise UserError(f"there is no C++ compiler; install g++, {ADVICE}")
    vectors = VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())
    flags = (*FLAGS, *vectors, *NUMBERS[dtype])
    command = [*shlex.split(compiler), *flags, str(SOURCE), "-o"]
    kind = " ".join([platform.system(), platform.machine(), *command])
    key = hashlib.sha256(kind.encode() + SOURCE.read_bytes()).hexdigest()[:16]
    path = cache_folder() / f"native_step_{key}.so"
    if not path.is_file():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            compile_to(temporary, command)
    elif hasattr(os, "getuid") and path.stat().st_uid not in (os.getuid(), 0):
        raise UserError(f"{path} belongs to somebody else; remove it, or set decode_mode=plain")
    return path


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


def cache_folder() -> Path:
    """Where compiled code is kept: `pix2seq` in XDG_CACHE_HOME, by default ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "pix2seq"
