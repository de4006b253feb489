"""JSON values against annotated types: nothing that a file says is taken on trust."""

import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path


def fits(value: object, kind: object) -> bool:
    """Whether a JSON value is of an annotated type; numbers must be finite.

    Args:
        kind: bool, int, float, str, Path (a string), tuple, list, dict, `Sequence[…]` or `… | …`.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType) or origin is typing.Union:
        return any(fits(value, one) for one in inner)
    if origin in (tuple, list, Sequence):
        fixed = origin is tuple and inner[-1] is not Ellipsis
        if not isinstance(value, (list, tuple)) or (fixed and len(value) != len(inner)):
            return False
        return all(fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if kind in (int, float):
        number = isinstance(value, (int,) if kind is int else (int, float))
        return number and not isinstance(value, bool) and math.isfinite(value)
    if kind is types.NoneType:
        return value is None
    return isinstance(value, str if kind is Path else kind)


def check_fields(values: object, kinds: Mapping[str, object]) -> None:
    """Checks a JSON object against annotated names; names may be missing.

    Raises:
        ValueError: it is no object, or a name is unknown or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it must be an object, got {shown(values)}")
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"it has the unknown field {shown(name)}")
        if not fits(value, kinds[name]):
            kind = kinds[name]
            expected = kind.__name__ if isinstance(kind, type) else str(kind)
            raise ValueError(f"{name} must be of type {expected}, got {shown(value)}")


def shown(value: object, limit: int = 60) -> str:
    """A value from a file in a message: short, on one line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
