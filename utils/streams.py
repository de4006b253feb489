"""Standard output and standard error that end no program by what cannot be written or shown.

A log may lose its reader (`| tee` that ended, a terminal that was closed) or its disk. That ends no
training: lines that nobody reads are dropped. Results that cannot be written are an error. What the
console's encoding lacks is shown as an escape such as `\\u732b`.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from utils.errors import UserError


class ReaderGone(Exception):
    """Nobody reads the results any more, as in `… | head`."""


class _Stream:
    """A text stream; `failed` says what happens where the system refuses a line."""

    def __init__(self, stream: TextIO | None):
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self.failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.failed(error)

    def failed(self, error: OSError) -> None:
        """What is said to people: nobody listens."""

    def __getattr__(self, name: str):
        if name == "_stream":  # not there yet, while it is copied
            raise AttributeError(name)
        return getattr(self._stream, name)


class _Results(_Stream):
    """Standard output: what cannot be written is missing, and that must be known."""

    def failed(self, error: OSError) -> None:
        with contextlib.suppress(OSError, ValueError):  # or Python complains when it ends
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from error
        raise UserError(
            f"cannot write the results to standard output: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """In this context `sys.stdout` and `sys.stderr` are such streams."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Results(sys.stdout), _Stream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
