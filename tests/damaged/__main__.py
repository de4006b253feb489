"""Writes the first part of README.md: the table of what each case produced."""

import tempfile
from pathlib import Path

from tests.damaged.cases import CASES
from tests.damaged.run import produce

PAGE = Path(__file__).with_name("README.md")
REST = "## What must not go wrong"  # from there on the page is written by hand
HEAD = """\
# Damaged and hostile files

Each row is a damaged or hostile input. `tests/damaged/` creates it and gives it to the code that
the scripts use. The last column is the line that the user sees. An `error` ends the script with
exit status 2. A `notice` names what is left out. No input leads to a traceback, none is accepted
silently, and no code from a file is executed. `tests/test_hostile_files.py` checks every row.

This command writes this part of the page:

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
