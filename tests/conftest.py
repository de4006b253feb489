"""Shared fixtures: data outside the repository (skipped when absent) and small drawn sets."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("PIX2SEQ_TEST_DATA", ROOT.parent / "shared"))


def _outside(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(
            f"no {folder} data at {path}; set PIX2SEQ_TEST_DATA to the folder that holds it"
        )
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real COCO and VOC-format samples."""
    return _outside("real")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Numbers produced by the official implementation."""
    return _outside("reference")
