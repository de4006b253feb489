"""A fresh clone of the project, and its commands run in it as a person would run them.

Nothing of the library is imported here: a journey sees command lines, files and exit statuses.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
SMALL_MODEL = {  # settings of `class CFG` with which a training takes seconds
    "pretrained": False,  # True needs a download
    "encoder": "test_vit",
    "img_size": 64,
    "dim": 64,
    "num_layers": 2,
    "num_heads": 4,
    "mlp_dim": 128,
}
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses: only this machine can be reached


@dataclass(frozen=True)
class Done:
    """A command that ended with the expected exit status."""

    stdout: str
    stderr: str


class Clone:
    """A clone of the working tree's HEAD with its uncommitted changes, in an empty home.

    The clone has a `.venv` whose entries lead to the environment that runs pytest, for installing
    takes minutes and a network. The home folder is empty, so nothing cached is found in it.

    Args:
        folder: will hold the clone and the home; must exist.
    """

    def __init__(self, folder: Path):
        self.root, self.home = folder / "clone", folder / "home"
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"  # of the latest command
        self.home.mkdir()
        _run_git("clone", "--quiet", str(ROOT), str(self.root))
        self._copy_uncommitted()
        self._borrow_environment()
        self.environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.environment |= {
            "HOME": str(self.home),
            # Threads that spin at a barrier take minutes where other processes need the cores too.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PATH": f"{self.root / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "http_proxy": NOWHERE,
            "https_proxy": NOWHERE,
            "no_proxy": "127.0.0.1,localhost",
        }

    def run(self, command: str, *, seconds: float, status: int = 0, **environment: str) -> Done:
        """Runs a command line in the root of the clone.

        Args:
            seconds: the longest that it may take.
            status: the exit status that it has to end with.
            environment: variables beside those of the clone.
        """
        overdue = False
        with self.start(command, **environment) as process:
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                overdue = True
        stdout, stderr = self.stdout.read_text(), self.stderr.read_text()
        assert not overdue, f"{command}\ntook more than {seconds} s; {_shorten(stdout + stderr)}"
        assert process.returncode == status, (
            f"{command}\nended with status {process.returncode} instead of {status}; "
            f"{_shorten(stdout + stderr)}"
        )
        return Done(stdout, stderr)

    @contextlib.contextmanager
    def start(self, command: str, **environment: str) -> Iterator[subprocess.Popen]:
        """The process of a command, in a group of its own; at the end nothing of it is left.

        It writes to the files `stdout` and `stderr` of the clone: a pipe may be full, and is not at
        its end before all who hold it are.
        """
        with self.stdout.open("w") as stdout, self.stderr.open("w") as stderr:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.root,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # so that workers can be ended with it
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def edit_settings(self, settings: dict[str, object]) -> None:
        """Sets values of `class CFG` in config.py, as its first line tells people to."""
        path = self.root / "config.py"
        text = path.read_text()
        for name, value in settings.items():
            # the first line of that name is the one of CFG: presets follow it
            line = rf"^(    {name}: [^=\n]+ = ).*$"
            shown = json.dumps(str(value)) if isinstance(value, (str, Path)) else repr(value)
            shown = f"Path({shown})" if isinstance(value, Path) else shown
            text, found = re.subn(line, rf"\g<1>{shown}", text, count=1, flags=re.MULTILINE)
            assert found, f"config.py has no setting {name}"
        path.write_text(text)

    def _copy_uncommitted(self) -> None:
        """What `git status` shows in the working tree: changed, new and deleted files."""
        changed = _run_git("diff", "--name-only", "-z", "HEAD")
        new = _run_git("ls-files", "--others", "--exclude-standard", "-z")
        for name in filter(None, (changed + new).split("\0")):
            source, target = ROOT / name, self.root / name
            target.unlink(missing_ok=True)
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)

    def _borrow_environment(self) -> None:
        """Makes `.venv`, with the stamp that tells `make` that it is installed.

        The folder is the clone's own, so that the stamp of the lender stays as it is.
        """
        lender, own = Path(sys.prefix), self.root / ".venv"
        assert (lender / "pyvenv.cfg").is_file(), "run `make journeys`: they borrow .venv"
        own.mkdir()
        for entry in lender.iterdir():
            if entry.name != ".installed":
                (own / entry.name).symlink_to(entry)
        (own / ".installed").touch()  # newer than the requirements, which were cloned before


def _run_git(*arguments: str) -> str:
    """The output of a git command in the working tree."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def _shorten(text: str) -> str:
    """The last lines that a process wrote, without the states of its progress bars."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.rstrip().splitlines()]
    return "its last lines:\n" + "\n".join(lines[-20:])


def wait_until(happened: Callable[[], object], *, seconds: float, what: str) -> None:
    """Calls `happened` until it is true.

    Args:
        what: we wait for, said if it does not happen in time.
    """
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)
