"""Arrays that were made from large or many files, kept in the user's cache, memory-mapped.

One process of a machine makes them; all others, workers included, map the same pages.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from utils.cli import log
from utils.files import cache_folder

FORMAT = 3  # raise it when the meaning of an array changes
SMALLEST = 4 << 20  # bytes; smaller files are read in less time than it takes to look
MANY = 256  # files; fewer small ones are read in little time
PATIENCE = 900.0  # seconds to wait for another process that makes the same arrays
CHUNK = 1 << 20


class Arrays(Mapping):
    """Read-only arrays by name. Those that are mapped travel to another process as a path."""

    def __init__(self, arrays: Mapping[str, np.ndarray], folder: Path | None = None):
        """
        Args:
            folder: where the arrays lie; None = in memory alone.
        """
        self._arrays, self.folder = dict(arrays), folder
        for array in self._arrays.values():
            array.flags.writeable = False

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self):
        if self.folder is None:
            return Arrays, (self._arrays,)
        return _map, (self.folder, list(self._arrays))


def cached_arrays(
    source: Path,
    name: str,
    build: Callable[[], Mapping[str, np.ndarray]],
    files: Sequence[Path] = (),
) -> Arrays:
    """The arrays that `build` makes from a file or several; made once, until one changes.

    Where the cache folder cannot be used, every process makes them for itself.

    Args:
        source: the file that they depend on.
        name: of this set of arrays; a file may have several.
        files: the files that they depend on, if these are others; of a folder its names count.

    Raises:
        OSError: a file is missing.
    """
    files = tuple(files) or (source,)
    stamp = _stamp(files)
    if stamp["size"] < SMALLEST and len(files) < MANY:
        return Arrays(build())
    path = str(source.resolve())
    key = hashlib.sha256(f"{name} {path}".encode(errors="surrogateescape")).hexdigest()[:16]
    folder = cache_folder() / "datasets" / f"{name}-{key}"
    lock = FileLock(folder.with_name(f"{folder.name}.lock"), timeout=PATIENCE)
    with contextlib.ExitStack() as held:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock)
            found = _open(folder, stamp)
        # NotImplementedError is how `FileLock` says that a file system has no locks
        except (OSError, Timeout, NotImplementedError) as error:
            return _unkept(source, folder, error, build())
        if found is not None:
            return found
        made = build()
        if _stamp(files) != stamp:  # it is being written: the next process looks again
            return Arrays(made)
        try:
            _write(folder, stamp, made)
            return _map(folder, list(made))
        except (OSError, ValueError) as error:
            return _unkept(source, folder, error, made)


def _unkept(source: Path, folder: Path, error: Exception, made: Mapping) -> Arrays:
    log(
        f"notice: cannot cache the contents of {source.name} in {folder.parent} ({error}); every "
        "process reads the file again: free some space, or set XDG_CACHE_HOME to another folder"
    )
    return Arrays(made)


def _stamp(files: Sequence[Path]) -> dict:
    """What changes when one of the files does."""
    if len(files) == 1:
        state = files[0].stat()
        times = {"modified": state.st_mtime_ns, "changed": state.st_ctime_ns}
        return {"format": FORMAT, "size": state.st_size, **times}
    digest, size = hashlib.sha256(), 0
    for path in files:
        state = path.stat()
        row = f"{path} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}\n"
        digest.update(row.encode(errors="surrogateescape"))
        size += state.st_size
    return {"format": FORMAT, "size": size, "files": digest.hexdigest()}


def _write(folder: Path, stamp: dict, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a folder that appears complete or not at all."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir()
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        sums = {name: _checksum(temporary / f"{name}.npy") for name in arrays}
        (temporary / "contents.json").write_text(json.dumps({"stamp": stamp, "sums": sums}))
        shutil.rmtree(folder, ignore_errors=True)  # processes that map it keep their pages
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open(folder: Path, stamp: dict) -> Arrays | None:
    """The arrays of a folder; None where it is missing, stale or damaged."""
    try:
        contents = json.loads((folder / "contents.json").read_text())
        if contents["stamp"] != stamp:
            return None
        sums = contents["sums"]
        if any(_checksum(folder / f"{name}.npy") != total for name, total in sums.items()):
            return None
        return _map(folder, list(sums))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _map(folder: Path, names: list[str]) -> Arrays:
    arrays = {}
    for name in names:
        path = folder / f"{name}.npy"
        mode = "r" if path.stat().st_size > CHUNK else None  # small ones are not worth a mapping
        arrays[name] = np.load(path, mmap_mode=mode).view(np.ndarray)
    return Arrays(arrays, folder)


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total
