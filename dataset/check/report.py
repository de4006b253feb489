"""The findings of a dataset check: errors, statistics of labels, and the state of the images.

Image files must be there, readable, and of the size that the annotation states.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.annotation_errors import KINDS, AnnotationErrors, Level
from utils.errors import UserError
from utils.images import image_size, load_image

ERRORS = (Level.FATAL, Level.REFUSED)
SMALL, MEDIUM = 32**2, 96**2  # areas, pixels: COCO's sizes
TOLERANCE = 1.0  # pixels that a box may reach out of its picture unremarked
MAX_BARS = 40  # of classes in a diagram


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
    errors: AnnotationErrors
    images: list[ImageEntry]
    summary: list[str]  # lines
    panels: list[Panel] = field(default_factory=list)
    drawable: list[int] = field(default_factory=list)  # numbers of images with annotation
    draw: Callable[[int, np.ndarray], np.ndarray] | None = None  # (number, picture) -> picture
    title: Callable[[int], str] | None = None  # what stands below it; default: the image's name

    @property
    def num_errors(self) -> int:
        """Number of errors that training refuses."""
        return sum(n for kind, n in self.errors.counts.items() if KINDS[kind].level in ERRORS)

    def text(self) -> str:
        """The findings, the worst first."""
        lines = [self.name, *(f"  {line}" for line in self.summary)]
        for level in Level:
            kinds = [kind for kind in KINDS if self.errors.counts[kind]]
            kinds = [kind for kind in kinds if KINDS[kind].level is level]
            lines += [f"  {level.value}:"] if kinds else []
            for kind in kinds:
                count, examples = self.errors.counts[kind], self.errors.examples[kind]
                lines.append(f"    {count:>7} {KINDS[kind].text}")
                lines += [f"            {example}" for example in examples]
                lines += ["            …"] if count > len(examples) else []
        if not self.errors.counts:
            lines.append("  no error found")
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


def check_images(name: str, group: Sequence[Checked], *, decode: bool, threads: int) -> Checked:
    """Looks at the image files of several annotation files, each once.

    Args:
        name: of the images, for the report.
        decode: read all pixels; otherwise only the headers, which takes a tenth of the time but
            does not show that a file is cut off.
    """
    errors = AnnotationErrors(name, report=True)
    entries = list({entry.path: entry for checked in group for entry in checked.images}.values())
    look: Callable = partial(_look, decode=decode)
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        found = tqdm(pool.map(look, entries), "images", len(entries), unit="image", disable=None)
        for entry, (kind, detail) in zip(entries, found, strict=True):
            if kind:
                errors.add(kind, entry.name, detail)
    depth = "all pixels read" if decode else "headers read; --decode reads the pixels too"
    return Checked(f"images of {name}", errors, [], [f"{len(entries)} images, {depth}"])


def _look(entry: ImageEntry, decode: bool) -> tuple[str, str]:
    """The kind of error of one image and its details; empty if there is none."""
    if not entry.path.is_file():
        return "image_missing", f"no file {entry.path}"
    try:
        size = image_size(entry.path)
        if decode:
            load_image(entry.path)
    except UserError as error:
        return "image_unreadable", str(error)
    if 0 not in entry.size and entry.size not in (size, image_size(entry.path, exif=False)):
        stated, found = ("x".join(map(str, s)) for s in (entry.size, size))
        return "image_size", f"{entry.path} is {found} (HxW), its annotation says {stated}"
    return "", ""


def label_statistics(
    boxes: np.ndarray, labels: np.ndarray, image: np.ndarray, num_images: int, names: Mapping
) -> tuple[list[str], list[Panel]]:
    """Objects per class, per image and by size.

    Args:
        boxes: (N, 4) xyxy pixels.
        labels: (N,) keys of `names`.
        image: (N,) number of the image of each.
        names: label -> class name.
    """
    per_class = {name: int((labels == label).sum()) for label, name in names.items()}
    ordered = sorted(per_class.items(), key=lambda row: -row[1])
    per_image = np.bincount(image, minlength=num_images)
    sides = boxes[:, 2:] - boxes[:, :2]
    area = sides.prod(1)
    small, medium = (area < SMALL).sum(), ((area >= SMALL) & (area < MEDIUM)).sum()
    share = 100 / max(len(area), 1)
    absent = sum(not count for _, count in ordered)
    lines = [
        f"{len(labels)} objects; {len(names)} classes"
        + (f", {absent} of them absent" * (absent > 0)),
        distribution("objects per image", per_image),
        f"boxes: {small * share:.0f} % small (below 32x32), {medium * share:.0f} % medium, "
        f"{(len(area) - small - medium) * share:.0f} % large (96x96 and more)",
        *columns([f"{count:>7} {name}" for name, count in ordered if count]),
    ]
    panels = [
        bars("objects per class", ordered),
        Panel("objects per image", per_image),
        Panel("box size: square root of the area, pixels", np.sqrt(area), logarithmic=True),
        Panel("box shape: width / height", sides[:, 0] / sides[:, 1], logarithmic=True),
    ]
    return lines, panels


def repeats(rows: np.ndarray) -> np.ndarray:
    """(N, K) -> (N,) bool, which rows have stood before."""
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)] != np.arange(len(rows))


def bars(title: str, rows: Sequence[tuple[str, float]]) -> Panel:
    """Bars of the largest, and one for all others."""
    shown, others = list(rows[:MAX_BARS]), rows[MAX_BARS:]
    if others:
        shown.append((f"{len(others)} others", sum(value for _, value in others)))
    return Panel(title, np.array([value for _, value in shown]), tuple(name for name, _ in shown))
