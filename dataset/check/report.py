"""The findings of a dataset check, as text and as pictures.

Text: errors, statistics of labels, and the state of the images, which must be there, readable, and
of the size that the annotation states. Pictures: diagrams, and a sheet of annotated samples.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from tqdm import tqdm

from dataset.annotation_errors import KINDS, AnnotationErrors, Level
from dataset.sample import read_annotated_image
from utils.errors import UserError
from utils.files import atomic_path
from utils.images import image_size, load_image
from utils.visualize import contact_sheet, draw_caption, figure_fonts, save_image

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
    if not os.path.isfile(entry.path):  # Path.is_file raises where a name is too long
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


BLUE, INK = "#3b6ea8", "#333333"
FEW_BARS = 12  # fewer are not made thicker
NUM_SAMPLES, COLUMNS, SIDE = 12, 4, 420  # of the sheet; pixels of the longer side of a picture
STYLE = {
    "font.size": 9,
    "text.parse_math": False,  # $ in a class name
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def save_figures(checked: Checked, folder: Path) -> None:
    """Writes the diagrams and the sheet of one annotation file, if it has labels."""
    if not checked.panels:
        return
    stem = Path(checked.name).stem
    name = stem.replace(" ", "_")
    save_statistics(folder / f"{name}_statistics.png", stem, checked.panels)
    save_samples(folder / f"{name}_samples.png", checked)


def save_statistics(path: Path, title: str, panels: list[Panel]) -> None:
    """Draws the panels side by side; long lists of bars get a column of their own."""
    texts = [title, *(name for panel in panels for name in panel.names)]
    with matplotlib.rc_context(STYLE), figure_fonts(texts):
        lists = [panel for panel in panels if panel.names]
        rest = [panel for panel in panels if not panel.names]
        rows = max(len(rest), 1)
        longest = max((len(panel.names) for panel in lists), default=0)
        figure = Figure(
            figsize=(5.2 * (len(lists) + bool(rest)), max(2.4 * rows, 0.19 * longest + 1))
        )
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1)
        figure.suptitle(title, fontsize=12, fontweight="bold")
        grid = figure.add_gridspec(rows, len(lists) + bool(rest))
        for column, panel in enumerate(lists):
            _bars(figure.add_subplot(grid[:, column]), panel)
        for row, panel in enumerate(rest):
            _histogram(figure.add_subplot(grid[row, -1]), panel)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110, facecolor="white")


def _bars(axes, panel: Panel) -> None:
    places = np.arange(len(panel.values))
    axes.barh(places, panel.values, color=BLUE, height=0.72)
    axes.set_yticks(places, panel.names)
    axes.set_ylim(max(len(places), FEW_BARS) - 0.4, -0.6)  # the first on top
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    room = max(panel.values.max(initial=0), 1)
    axes.set_xlim(0, 1.16 * room)
    for place, value in zip(places, panel.values.tolist(), strict=True):
        axes.text(value + 0.01 * room, place, f"{value:,}", va="center", fontsize=7.5)


def _histogram(axes, panel: Panel) -> None:
    values = panel.values[np.isfinite(panel.values)]
    axes.set_title(panel.title, loc="left", fontsize=10)
    if not len(values):
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
        return
    low, high = values.min(), values.max()
    if panel.logarithmic:
        low = max(low, 1e-3)
        edges = np.geomspace(low, max(high, 1.01 * low), 41)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        high = max(np.percentile(values, 99.5), low + 1)  # a few far ones must not hide the rest
        step = max(round((high - low) / 40), 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        edges = np.arange(low, high + 2 * step, step) - 0.5 * (step == 1)
    axes.hist(np.clip(values, edges[0], edges[-1]), edges, color=BLUE, edgecolor="white", lw=0.4)
    axes.axvline(np.median(values), color="#c8553d", lw=1.2)
    axes.set_xlabel(f"median {np.median(values):.3g}", fontsize=8, color="#c8553d")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(axis="y", color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)


def save_samples(path: Path, checked: Checked) -> None:
    """Draws annotated images, chosen at random.

    Images that cannot be read are left out: the check has named them.
    """
    numbers = np.random.default_rng(0).permutation(checked.drawable).tolist()
    pictures = []
    for number in numbers:
        if len(pictures) == NUM_SAMPLES:
            break
        entry = checked.images[number]
        try:
            image, _ = read_annotated_image(entry.path, entry.size, "")
        except UserError:
            continue
        title = checked.title(number) if checked.title else entry.name
        pictures.append(draw_caption(checked.draw(number, image), title))
    if pictures:
        save_image(path, contact_sheet(pictures, COLUMNS, max_side=SIDE))
