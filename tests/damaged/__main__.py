"""Prints docs/damaged_files.md."""

import tempfile
from pathlib import Path

from tests.damaged.cases import CASES
from tests.damaged.run import produce

HEAD = """\
# Damaged and hostile files

Inputs crafted by `tests/damaged/`, each given to the code that the scripts run, and the line that
came of it. An `error` ends the script with exit status 2; a `notice` says what is left out. None
gives a traceback, none is accepted in silence, no code out of a file runs.
`tests/test_hostile_files.py` checks all of them; this page is the output of

    python -m tests.damaged > docs/damaged_files.md
"""


def main() -> None:
    print(HEAD)
    print(
        f"{len(CASES)} inputs.\n\n| file | what is wrong | what it produced |\n| --- | --- | --- |"
    )
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            line = produce(case, Path(folder)).replace("|", "\\|").replace("<", "&lt;")
        print(f"| {case.about} | {case.what} | {line} |")


if __name__ == "__main__":
    main()
