"""Writes docs/settings.md from config.py and utils/setting_rules.py.

python docs/write_settings.py
"""

import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG, PRESETS, ROOT
from utils.setting_rules import describe

PAGE = ROOT / "docs" / "settings.md"
HEAD = """# Settings

`config.py` holds every setting as a line of the class `CFG`. Edit it there, or pass
`--set name=value` to any script. Lists are separated by commas: `--set classes=cat,dog`. `none`
means no value.

The later of these counts: `CFG`, the preset (`--preset NAME`), the run or the weights that one
starts from, `--config FILE`, `--set`. Every script checks all settings before it does anything
else. It names all that are wrong, and ends with exit status 2.

`python docs/write_settings.py` writes this page from the code.

## Presets

| preset | what it is for |
| --- | --- |
"""


def page() -> str:
    """The text of docs/settings.md."""
    lines = [HEAD.rstrip("\n")]
    for name, preset in PRESETS.items():
        text = "the settings below" if preset is CFG else (preset.__doc__ or "").splitlines()[0]
        lines.append(f"| `{name}` | {_cell(text.rstrip('.:'))} |")
    described = describe(CFG)
    for title, names in sections():
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        lines += ["| setting | default | range | what it is |", "| --- | --- | --- | --- |"]
        for name in names:
            default, allowed, sentence = described[name]
            row = (f"`{name}`", f"`{_text(default)}`", _cell(allowed), _cell(sentence))
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def sections() -> list[tuple[str, list[str]]]:
    """The headings of `CFG` with the names of the settings below each."""
    found: list[tuple[str, list[str]]] = []
    for line in map(str.strip, inspect.getsource(CFG).splitlines()):
        if heading := re.match(r"# ---- (.+?) -+$", line):
            found.append((heading[1], []))
        elif setting := re.match(r"(\w+): .* = ", line):
            found[-1][1].append(setting[1])
    return found


def _text(value: object) -> str:
    """A default as one writes it behind `--set name=`."""
    if isinstance(value, Path):
        return value.relative_to(ROOT).as_posix() if value.is_relative_to(ROOT) else str(value)
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "(empty)"
    if isinstance(value, str):
        return value or "(empty)"
    return str(value).lower() if isinstance(value, bool) or value is None else f"{value}"


def _cell(text: str) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page())
