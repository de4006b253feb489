"""What the journeys share: a folder for each of them, fresh clones, a small drawn set."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.clone import ROOT, Clone


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """An empty folder outside the repository, removed with its gigabytes afterwards."""
    with tempfile.TemporaryDirectory(prefix="journey-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def fresh_clone(scratch) -> Clone:
    """A clone that nothing has been done in."""
    return Clone(scratch)


@pytest.fixture(scope="session")
def drawn_set(tmp_path_factory) -> Path:
    """24 training and 8 validation pictures in COCO and VOC layout."""
    out = tmp_path_factory.mktemp("drawn") / "set"
    script = ROOT / "download" / "make_demo_dataset.py"
    sizes = ["--train", "24", "--val", "8"]
    command = [sys.executable, script, "--out", out, *sizes]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    return out
