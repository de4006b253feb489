"""One page of HTML with everything in it: it asks no server for anything."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from utils.files import atomic_path, whole_text, write_text_atomic

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f6f8; color: #1d2127;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 8px; }
h3 { font-size: 14px; margin: 18px 0 6px; }
p { margin: 0 0 10px; max-width: 78ch; }
.facts { color: #5a626d; margin-bottom: 18px; }
nav { margin: 0 0 20px; display: flex; flex-wrap: wrap; gap: 6px 16px; font-size: 14px; }
a { color: #0063a0; text-decoration: none; } a:hover { text-decoration: underline; }
section { background: #fff; border: 1px solid #e3e6ea; border-radius: 8px;
  padding: 20px 24px 22px; margin-bottom: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 10px;
  margin-bottom: 18px; }
.tile { background: #fff; border: 1px solid #e3e6ea; border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: #5a626d; font-size: 13px; }
img { max-width: 100%; height: auto; display: block; margin: 6px 0 10px; }
img.figure { width: 100%; }
.tables { display: flex; flex-wrap: wrap; gap: 0 56px; }
.scroll { overflow: auto; max-height: 600px; margin: 6px 0 10px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid #eceef1;
  white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; color: #4a525d; font-weight: 600;
  box-shadow: inset 0 -1px #c9ced5; }
th:first-child, td:first-child, th.text, td.text { text-align: left; }
.cards { display: grid; grid-template-columns: 1fr; gap: 16px; }
.cards.two { grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); }
.card { border: 1px solid #e3e6ea; border-radius: 6px; padding: 10px 12px; }
.card b { font-size: 14px; } .card p { margin: 4px 0; font-size: 14px; }
.card.side { display: grid; grid-template-columns: 190px 1fr; gap: 14px; }
.card p + p { color: #5a626d; } footer { color: #5a626d; font-size: 13px; }
@media print { body { background: #fff; } section { break-inside: avoid; }
  .scroll { max-height: none; } }
"""


@dataclass(frozen=True)
class Card:
    """A picture with a heading and lines below it."""

    title: str
    image: bytes  # the content of a JPEG file
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """A figure; `name` is that of its file without the suffix."""

    name: str
    png: bytes
    describes: str  # for those who cannot see it
    narrow: bool = False


@dataclass
class Section:
    """A part of the page: what it shows, then figures, tables and pictures."""

    title: str
    text: Sequence[str] = ()  # paragraphs
    charts: list[Chart] = field(default_factory=list)
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    side_by_side: bool = False  # cards: picture left, lines right


def write_page(
    path: Path,
    title: str,
    facts: Sequence[str],
    tiles: dict[str, float],
    sections: Sequence[Section],
) -> None:
    """Writes the page.

    Args:
        facts: what was evaluated, a few words each.
        tiles: the numbers that come first.
    """
    numbers = "".join(
        f'<div class="tile"><b>{_number(value)}</b><span>{_text(name)}</span></div>'
        for name, value in tiles.items()
    )
    links = "".join(
        f'<a href="#part{i}">{_text(section.title)}</a>' for i, section in enumerate(sections)
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{_text(title)}</h1>",
        f'<div class="facts">{" · ".join(map(_text, facts))}</div>',
        f'<div class="tiles">{numbers}</div>',
        f"<nav>{links}</nav>",
        *(_section(i, section) for i, section in enumerate(sections)),
        "<footer>What each figure means is in docs/evaluation.md. The figures lie as PNG in the "
        "folder report beside this page.</footer></main></body></html>",
    ]
    write_text_atomic(path, whole_text("\n".join(parts)))


def write_charts(folder: Path, sections: Sequence[Section]) -> None:
    """Writes the figures and pictures of a page as files of their own."""
    for section in sections:
        files = {f"{chart.name}.png": chart.png for chart in section.charts}
        stem = section.title.lower().replace(" ", "_")
        files |= {f"{stem}_{i}.jpg": card.image for i, card in enumerate(section.cards, 1)}
        for name, content in files.items():
            with atomic_path(folder / name) as path:
                path.write_bytes(content)


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="part{number}"><h2>{_text(section.title)}</h2>']
    parts += [f"<p>{_text(paragraph)}</p>" for paragraph in section.text]
    for chart in section.charts:
        look = f'style="width: {_width(chart.png)}px"' if chart.narrow else 'class="figure"'
        image = _inline(chart.png, "png")
        parts.append(f'<img {look} alt="{_text(chart.describes)}" src="{image}">')
    tables = [
        f"<div>{f'<h3>{_text(title)}</h3>' * bool(title)}{_table(table)}</div>"
        for title, table in section.tables
    ]
    if tables:
        parts.append(f'<div class="tables">{"".join(tables)}</div>')
    if section.cards:
        cards = "".join(_card(card, section.side_by_side) for card in section.cards)
        columns = " two" if section.side_by_side else ""
        parts.append(f'<div class="cards{columns}">{cards}</div>')
    return "\n".join([*parts, "</section>"])


def _width(png: bytes) -> int:
    """Pixels of the page: letters are as large as those of figures that fill its width."""
    return int.from_bytes(png[16:20], "big") * 2 // 3


def _card(card: Card, side_by_side: bool) -> str:
    image = f'<img alt="" src="{_inline(card.image, "jpeg")}">'
    lines = "".join(f"<p>{_text(line)}</p>" for line in card.lines)
    if side_by_side:
        text = f"<div><b>{_text(card.title)}</b>{lines}</div>"
        return f'<div class="card side"><div>{image}</div>{text}</div>'
    return f'<div class="card"><b>{_text(card.title)}</b>{image}{lines}</div>'


def _table(table: pd.DataFrame) -> str:
    """Numbers at the right, texts at the left, missing values as a dash."""
    is_text = [not pd.api.types.is_numeric_dtype(table[name]) for name in table.columns]
    marks = [' class="text"' if one else "" for one in is_text]
    pairs = zip(table.columns, marks, strict=True)
    head = "".join(f"<th{mark}>{_text(str(name))}</th>" for name, mark in pairs)
    body = []
    for row in table.itertuples(index=False):
        cells = zip(row, marks, strict=True)
        body.append("".join(f"<td{mark}>{_number(value)}</td>" for value, mark in cells))
    rows = "".join(f"<tr>{cells}</tr>" for cells in body)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _number(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return "–" if not np.isfinite(value) else f"{value:.3f}"
    return _text(str(value))


def _text(text: str) -> str:
    return escape(" ".join(str(text).split()))


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
