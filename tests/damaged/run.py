"""Runs a case and takes down what a person would see."""

import contextlib
import io
from pathlib import Path

from tests.damaged.case import Case
from tests.damaged.place import Place
from utils.errors import UserError


def produce(case: Case, folder: Path) -> str:
    """The line that a case ends in, "error: …" or "notice: …", without the path of `folder`.

    Raises:
        AssertionError: it was accepted in silence, said more than a line, or ran code.
        Exception: what else a case raised: a person would see a traceback.
    """
    place, said = Place(folder), io.StringIO()
    case.make(place)
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            case.read(place)
            line = said.getvalue().strip()
        except UserError as error:
            line = f"error: {error}"
    assert line, f"{case.about}, {case.what}: accepted in silence"
    assert "\n" not in line, line
    assert not (folder / "ran").exists(), f"{case.about}, {case.what}: its code ran"
    return line.replace(f"{folder}/", "").replace(str(folder), "the folder")
