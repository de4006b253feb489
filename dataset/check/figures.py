"""The findings of a dataset check as pictures: diagrams, and a sheet of annotated samples."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dataset.check.report import Checked, Panel
from dataset.sample import read_annotated_image
from utils.errors import UserError
from utils.files import atomic_path
from utils.visualize import contact_sheet, draw_caption, save_image

BLUE, INK = "#3b6ea8", "#333333"
FEW_BARS = 12  # fewer are not made thicker
NUM_SAMPLES, COLUMNS, SIDE = 12, 4, 420  # of the sheet; pixels of the longer side of a picture
STYLE = {
    "font.size": 9,
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
    with matplotlib.rc_context(STYLE):
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
