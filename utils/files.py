"""Files that appear complete or not at all."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from utils.errors import UserError, one_line

TEMPORARY = re.compile(r"\.[\w-]+\.\d+(-[0-9a-f]{8})?\.\w+")  # names that `atomic_path` yields


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with its suffix; it replaces `path` on success.

    It is on the disk before it does: after a crash there is the old file or the new one.
    Missing parent folders are made; a failure leaves an existing `path` as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; choose another place") from error
    finally:
        with suppress(OSError):  # it is there only after a failure
            temporary.unlink()


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # there folders cannot be opened
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: str | Path, advice: str) -> object:
    """The content of a JSON file.

    Args:
        advice: what to do if it cannot be read.

    Raises:
        UserError: there is no such file, or it holds no JSON.
    """
    path = Path(path).expanduser()
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); {advice}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} as JSON ({one_line(error)}); {advice}") from error


def write_text_atomic(path: str | Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomic(path: str | Path, obj: object, *, indent: int | None = 2) -> None:
    """Standard JSON: numpy values become plain ones, NaN and infinities null.

    Args:
        indent: None for one compact line (large result files).
    """
    options = {"indent": indent, "ensure_ascii": False, "allow_nan": False, "default": _plain}
    try:
        text = json.dumps(obj, **options)
    except ValueError:  # rare, so only then is the whole object walked
        text = json.dumps(_without_nan(obj), **options)
    write_text_atomic(path, text + "\n")


def _plain(value):
    """What `json` does not know itself."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _without_nan(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
