"""Class names a person typed, checked against those of the data."""

import difflib
from collections.abc import Iterable, Sequence

from utils.errors import UserError


def check_class_names(wanted: Sequence[str], known: Iterable[str], where: str) -> None:
    """Raises a UserError with the nearest names if one of `wanted` is not in `known`."""
    known = sorted(known)
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:5]
            raise UserError(f"unknown class {name!r} in {where}; near it: {', '.join(near)}")
