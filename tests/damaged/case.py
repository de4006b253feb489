"""What a case is, and ways of damaging that several kinds of file share."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.damaged.place import Place


@dataclass(frozen=True)
class Case:
    """A crafted input."""

    about: str  # the kind of file
    what: str  # is wrong with it
    make: Callable[[Place], object]
    read: Callable[[Place], object]
    says: str  # a regular expression of the line it must produce
    notice: bool = False  # left out with a notice, instead of an error


def file(name: str, content: str | bytes | Callable[[Place], bytes]) -> Callable[[Place], None]:
    return lambda place: place.write(name, content(place) if callable(content) else content)


def cut(name: str, keep: float) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        path = place.root / name
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])

    return make
