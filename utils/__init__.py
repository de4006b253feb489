"""What all other folders use. A script of ours ends here in one line if packages are missing."""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("numpy", "cv2", "PIL", "torch", "torchvision", "timm", "safetensors", "albumentations")


def check_packages(script: str) -> None:
    """Leaves with exit status 2 if a script of this repository lacks what requirements.txt names.

    A program of somebody else gets the ImportError.

    Args:
        script: the path of the program that runs.
    """
    if Path(script).resolve().parent.parent != ROOT:
        return
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(
            f"error: {Path(script).name}: this needs the packages of requirements.txt (no "
            f"{missing[0]} here); run it with .venv/bin/python, which make install creates",
            file=sys.stderr,
        )
        sys.exit(2)


check_packages(next(iter(sys.argv), ""))
