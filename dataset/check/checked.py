"""What the check of one annotation file, or of the sets of a VOCdevkit, has found."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataset.faults import KINDS, Faults, Level

ERRORS = (Level.FATAL, Level.REFUSED)


@dataclass(frozen=True)
class ImageEntry:
    """An image as the annotation has it."""

    name: str  # e.g. "image 5"
    path: Path
    size: tuple[int, int]  # (H, W), (0, 0) if not stated


@dataclass(frozen=True)
class Panel:
    """One diagram: bars with names, or a histogram."""

    title: str
    values: np.ndarray  # heights of the bars, or what is counted
    names: tuple[str, ...] = ()  # of the bars; empty = a histogram
    logarithmic: bool = False  # the axis of the values of a histogram


@dataclass
class Checked:
    """One annotation file, or the sets of a VOCdevkit."""

    name: str
    faults: Faults
    images: list[ImageEntry]
    summary: list[str]  # lines
    panels: list[Panel] = field(default_factory=list)
    drawable: list[int] = field(default_factory=list)  # numbers of images with annotation
    draw: Callable[[int, np.ndarray], np.ndarray] | None = None  # (number, picture) -> picture
    title: Callable[[int], str] | None = None  # what stands below it; default: the image's name

    @property
    def num_errors(self) -> int:
        """Faults that training refuses."""
        return sum(n for kind, n in self.faults.counts.items() if KINDS[kind].level in ERRORS)

    def text(self) -> str:
        """The findings, the worst first."""
        lines = [self.name, *(f"  {line}" for line in self.summary)]
        for level in Level:
            kinds = [kind for kind in KINDS if self.faults.counts[kind]]
            kinds = [kind for kind in kinds if KINDS[kind].level is level]
            lines += [f"  {level.value}:"] if kinds else []
            for kind in kinds:
                count, examples = self.faults.counts[kind], self.faults.examples[kind]
                lines.append(f"    {count:>7} {KINDS[kind].text}")
                lines += [f"            {example}" for example in examples]
                lines += ["            …"] if count > len(examples) else []
        if not self.faults.counts:
            lines.append("  no fault found")
        return "\n".join(lines)


def distribution(what: str, values: np.ndarray) -> str:
    """A line on numbers of something: mean, median, 99th percentile, largest."""
    if not len(values):
        return f"{what}: none"
    middle, high = np.percentile(values, (50, 99))
    return (
        f"{what}: {np.mean(values):.1f} on average, {middle:.0f} median, {high:.0f} at the 99th "
        f"percentile, {np.max(values):.0f} at most"
    )


def columns(cells: list[str], width: int = 96) -> list[str]:
    """Cells side by side, read down each column, in as many columns as fit."""
    if not cells:
        return []
    cell = max(map(len, cells)) + 3
    rows = -(-len(cells) // max(width // cell, 1))
    return ["".join(f"{c:<{cell}}" for c in cells[row::rows]).rstrip() for row in range(rows)]
