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

Every setting is a line of the class `CFG` in `config.py`. Edit that file, or pass
`--set name=value` to any script. Separate list items with commas: `--set classes=cat,dog`. `none`
means no value.

A setting can come from several places. The last one in this list wins:

1. the class `CFG`
2. the preset (`--preset NAME`)
3. the run or the weight file that is loaded
4. `--config FILE`
5. `--set`

Every script first checks all settings. If some are wrong, it names each of them and ends with exit
status 2.

`python docs/write_settings.py` generates this page from the code.

## Presets

| preset | use |
| --- | --- |
"""


def page() -> str:
    """The text of docs/settings.md."""
    lines = [HEAD.rstrip("\n")]
    for name, preset in PRESETS.items():
        text = "the defaults below" if preset is CFG else (preset.__doc__ or "").splitlines()[0]
        lines.append(f"| `{name}` | {_cell(text.rstrip('.:'))} |")
    described = describe(CFG)
    for title, names in sections():
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        lines += ["| setting | default | range | meaning |", "| --- | --- | --- | --- |"]
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
