"""Running trained models on images: `infer.predictor.Predictor`, and the scripts."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import utils  # noqa: F401, looks for missing packages before they are imported

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dataset", "models", "tokenizer", "utils")  # names that a program may have, too


def join_packages() -> None:
    """Makes our modules importable beside packages of the caller that have the same names.

    A program that appends this repository to `sys.path` keeps its own `utils`; our `utils.images`
    is then looked for in both folders.

    Raises:
        ImportError: both have a module of one name.
    """
    for name in PACKAGES:
        folder, spec = ROOT / name, find_spec(name)
        if Path(spec.origin or "").resolve() == folder / "__init__.py":
            continue
        package = import_module(name)
        places = list(getattr(package, "__path__", []))
        ours = {path.stem for path in folder.iterdir()} - {"__init__", "__pycache__"}
        theirs = {path.stem for place in places for path in Path(place).iterdir()}
        if both := sorted(ours & theirs):
            raise ImportError(
                f"{name}.{both[0]} is a module of {places[0]} and of {folder}; rename yours, or "
                f"import infer first with sys.path.insert(0, {str(ROOT)!r})"
            )
        package.__path__ = [*places, str(folder)]


if "." not in __name__:  # as `pix2seq.infer` its names are its own
    join_packages()
