"""Writes the first part of README.md: the table of what each case produced."""

import tempfile
from pathlib import Path

from tests.damaged.cases import CASES
from tests.damaged.run import produce

PAGE = Path(__file__).with_name("README.md")
REST = "## What must not go wrong"  # from there on the page is written by hand
HEAD = """\
# Damaged and hostile files

Inputs crafted by `tests/damaged/`, each given to the code that the scripts run, and the line that
came of it. An `error` ends the script with exit status 2; a `notice` says what is left out. None
gives a traceback, none is accepted in silence, no code out of a file runs.
`tests/test_hostile_files.py` checks all of them; this part of the page is written by

    python -m tests.damaged
"""


def main() -> None:
    page = PAGE.read_text()
    lines = [HEAD, f"{len(CASES)} inputs.\n"]
    lines += ["| file | what is wrong | what it produced |", "| --- | --- | --- |"]
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            line = produce(case, Path(folder)).replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {case.about} | {case.what} | {line} |")
    PAGE.write_text("\n".join([*lines, "", page[page.index(REST) :]]))


if __name__ == "__main__":
    main()
