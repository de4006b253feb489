"""The figures of a report, drawn by matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from infer.report.curves import Curve
from infer.report.poses import Joints, pck_curve
from utils.visualize import figure_fonts

# Okabe and Ito: seven colours that people with any colour vision tell apart
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, AMBER, INK, GREY = "#56B4E9", "#E69F00", "#222222", "#9A9A9A"
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
STYLES = ("-", "--")  # with six colours twelve lines
DPI = 150
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # names of classes are no formulas
    "xtick.color": "#444444",
    "xtick.labelsize": 8,
    "ytick.color": "#444444",
    "ytick.labelsize": 8,
}


@contextmanager
def report_style(texts: Iterable[str]) -> Iterator[None]:
    """Within it figures have the style of the report and letters for these texts."""
    with matplotlib.rc_context(STYLE), figure_fonts(texts):
        yield


def to_png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file, the same bytes every time."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()


def new_figure(width: float = 9.6, height: float = 3.6) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def draw_curves(
    curves: dict[str, Curve], pooled: Curve, named: int, threshold: float
) -> tuple[Figure, int]:
    """Precision over recall, and F1 over the score threshold.

    Args:
        curves: class name -> curve, the most frequent first.
        pooled: of all classes together.
        named: so many classes have a colour, the others are thin grey lines.
        threshold: the one with the best F1 of all classes together.
    """
    figure = new_figure(9.6, 4.0)
    left, right = figure.subplots(1, 2)
    for i, (name, curve) in reversed(list(enumerate(curves.items()))):
        if not len(curve):
            continue
        look = {"color": CYCLE[i % 6], "linestyle": STYLES[i // 6 % 2], "label": name, "zorder": 4}
        if i >= named:
            look = {"color": "#C4C4C4", "linewidth": 0.7, "zorder": 3}
        _plot(left, right, curve, look)
    if len(curves) > 1 and len(pooled):
        look = {"color": INK, "linewidth": 2.4, "label": "all classes together", "zorder": 5}
        _plot(left, right, pooled, look)
    if pooled.best is not None:
        right.axvline(threshold, color=GREY, linestyle=":", zorder=2)
        place = {"textcoords": "offset points", "fontsize": 8, "color": "#555555", "zorder": 6}
        near_end = threshold > 0.8
        place |= {"xytext": (-4 if near_end else 4, 6), "ha": "right" if near_end else "left"}
        right.annotate(f"best {threshold:.3f}", (threshold, 0), **place)
    left.set(title="Precision and recall", xlabel="recall", ylabel="precision")
    right.set(title="F1 at a score threshold", xlabel="score threshold", ylabel="F1")
    for axes in (left, right):
        axes.set(xlim=(0, 1.02), ylim=(0, 1.03))
    handles, labels = left.get_legend_handles_labels()
    if handles:
        handles, labels = handles[::-1], [_short(label) for label in labels[::-1]]
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def _plot(left: Axes, right: Axes, curve: Curve, look: dict) -> None:
    """Draws a curve, which begins at recall 0, with few enough points; a single point as a dot."""
    if len(curve) == 1:
        marker = "s" if look.get("linestyle") == STYLES[1] else "o"
        look = look | {"marker": marker, "linestyle": "none"}
        left.plot(curve.recall, curve.precision, **look)
        right.plot(curve.threshold, curve.f1, **look)
        return
    keep = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), 2000)).astype(int))
    recall, precision = curve.recall[keep], curve.precision[keep]
    left.plot(np.append(0, recall), np.append(precision[0], precision), **look)
    right.plot(curve.threshold[keep], curve.f1[keep], **look)


def _short(text: str, most: int = 24) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def draw_confusion(matrix: pd.DataFrame) -> Figure:
    """Shares of each row, with the counts in it where there is room."""
    counts = matrix.to_numpy()
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    size = len(matrix)
    side = min(9.0, 2.6 + 0.42 * size)
    figure = new_figure(side + 1.2, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_short(name, 18) for name in matrix.columns]
    axes.set_xticks(range(size), names, rotation=45 if size > 4 else 0)
    if size > 4:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), names)
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion matrix")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    font = 8 if size <= 14 else 5.5
    for i, j in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[i, j] > 0.55 else INK
        text = f"{counts[i, j]}"
        axes.text(j, i, text, ha="center", va="center", fontsize=font, color=color)
    axes.axhline(size - 1.5, color=GREY, linewidth=0.8)
    axes.axvline(size - 1.5, color=GREY, linewidth=0.8)
    bar = figure.colorbar(image, shrink=0.6, pad=0.02, aspect=30, label="share of the row")
    bar.outline.set_visible(False)
    return figure


def draw_errors(costs: pd.DataFrame) -> Figure:
    """Cost of each kind in AP50, and how many errors there are above the threshold."""
    figure = new_figure(9.6, 2.9)
    left, right = figure.subplots(1, 2, sharey=True)
    kinds, places = costs["kind"], np.arange(len(costs))
    for axes, column, color, form in (
        (left, "cost in AP50", BLUE, "{:.3f}"),
        (right, "at the threshold", ORANGE, "{:.0f}"),
    ):
        bars = axes.barh(places, costs[column].clip(lower=0), color=color, height=0.62)
        axes.bar_label(bars, [form.format(v) for v in costs[column]], padding=3, fontsize=8)
        axes.margins(x=0.14)
        axes.grid(axis="y", visible=False)
    left.set_yticks(places, kinds)
    left.invert_yaxis()
    left.set(title="What each kind of error costs", xlabel="AP50 gained if it were corrected")
    right.set(title="Errors at the score threshold", xlabel="results, or missed objects")
    right.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def draw_calibration(
    table: pd.DataFrame, error: float, scores: np.ndarray, right: np.ndarray
) -> Figure:
    """The share of right results over the score, and how many results have which score."""
    figure = new_figure(9.6, 3.5)
    shares, numbers = figure.subplots(1, 2)
    width = table["high"] - table["low"]
    full = table[table["results"] > 0]
    shares.bar(full["low"], full["right"], width[full.index], align="edge", color=SKY,
               edgecolor="white", label="share that is right")  # fmt: skip
    shares.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfect calibration")
    shares.plot(full["score"], full["right"], "o", color=BLUE, markersize=4, label="at mean score")
    shares.set(title=f"Reliability (ECE {error:.3f})", xlabel="score", ylabel="share right")
    shares.set(xlim=(0, 1), ylim=(0, 1.03))
    shares.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="none")
    edges = np.linspace(0, 1, 21)
    look = {"bins": edges, "stacked": True, "edgecolor": "white", "linewidth": 0.4}
    numbers.hist([scores[right], scores[~right]], color=[BLUE, ORANGE],
                 label=["right", "wrong"], **look)  # fmt: skip
    if len(scores) and len(scores) > 50 * max(1, np.median(np.histogram(scores, edges)[0])):
        numbers.set_yscale("log")
        numbers.set_ylabel("results (logarithmic)")
        numbers.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        numbers.set_ylabel("results")
    numbers.set(title="How many results have which score", xlabel="score", xlim=(0, 1))
    numbers.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="none")
    return figure


def draw_ranges(sizes: pd.DataFrame, shapes: pd.DataFrame | None) -> Figure:
    """AP50, AP and AR by size and by shape, with the numbers of objects."""
    tables = [("By size: square root of the area", sizes)]
    if shapes is not None:
        tables.append(("By shape: width : height of the box", shapes))
    figure = new_figure(9.6, 3.5)
    all_axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (title, table) in zip(all_axes, tables, strict=True):
        places = np.arange(len(table))
        for i, (name, color) in enumerate((("AP50", SKY), ("AP", BLUE), ("AR", AMBER))):
            axes.bar(places + 0.27 * (i - 1), table[name].fillna(0), 0.25, color=color, label=name)
        labels = [f"{row.range}\nn = {row.objects}" for row in table.itertuples()]
        axes.set_xticks(places, labels, fontsize=7)
        axes.set(title=title, ylim=(0, 1.03))
        axes.grid(axis="x", visible=False)
    all_axes[0].set_ylabel("mean over the classes")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def draw_joints(table: pd.DataFrame, joints: Joints) -> Figure:
    """PCK and OKS of each joint, and the share of joints that are as near as a distance."""
    figure = new_figure(9.6, max(3.2, 0.9 + 0.24 * len(table)))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    places = np.arange(len(table))
    pck = [name for name in table.columns if name.startswith("PCK")]
    for name, marker, color in zip(pck, "sDo", (SKY, BLUE, INK), strict=True):
        left.plot(table[name], places, marker, color=color, label=name, markersize=5)
    left.plot(table["OKS"], places, "^", color=ORANGE, label="OKS", markersize=6)
    left.set_yticks(places, [_short(name, 18) for name in table["joint"]])
    left.invert_yaxis()
    left.set(title="Each joint", xlim=(-0.01, 1.02), xlabel="share of joints, or mean OKS")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, columnspacing=1)
    x, y = pck_curve(joints.distance)
    right.plot(x, y, color=BLUE, linewidth=2.2, label="all joints")
    ranked = table.sort_values("PCK@0.1", kind="stable")["joint"].tolist()
    numbers = {name: i for i, name in enumerate(dict.fromkeys(table.attrs["names"]))}
    if len(ranked) > 2:
        for name, color, word in ((ranked[-1], GREEN, "best"), (ranked[0], ORANGE, "worst")):
            x, y = pck_curve(joints.distance[joints.joint == numbers[name]])
            right.plot(x, y, color=color, linestyle="--", label=f"{word}: {_short(name, 18)}")
    right.set(title="Joints that lie within a distance", xlim=(0, 0.5), ylim=(0, 1.03))
    right.set(xlabel="distance / longer side of the box", ylabel="share of joints")
    right.legend(loc="lower right")
    return figure


def draw_histograms(values: list[tuple]) -> Figure:
    """Histograms beside each other, all as shares.

    Args:
        values: (title, label of x, name -> numbers, edges of the bins) of each.
    """
    figure = new_figure(9.6, 3.2)
    all_axes = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (title, label, groups, edges) in zip(all_axes, values, strict=True):
        for (name, numbers), color in zip(groups.items(), (BLUE, ORANGE), strict=False):
            weights = np.full(len(numbers), 1 / max(len(numbers), 1))
            axes.hist(numbers, edges, weights=weights, color=color, alpha=0.65, label=name)
            axes.axvline(np.mean(numbers), color=color, linestyle="--", linewidth=1.3)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(title=title, xlabel=label)
        if len(groups) > 1:
            axes.legend()
    all_axes[0].set_ylabel("share")
    return figure
