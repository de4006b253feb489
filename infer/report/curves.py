"""Precision, recall and F1 from raw counts, calibration of scores, and AP by size and by shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from infer.report.matching import Judged, Matches
from utils.detection_metrics import run_evaluation

BINS = 10  # of the reliability diagram
NO_THRESHOLD = 0.5  # where no result is right, so that none is better than another
SIZES = (0, 16, 32, 64, 96, 192, np.inf)  # pixels: square roots of areas
SHAPES = (0, 1 / 2, 4 / 5, 5 / 4, 2, np.inf)  # width / height
SHAPE_NAMES = ("tall (< 1:2)", "1:2 to 4:5", "4:5 to 5:4", "5:4 to 2:1", "wide (> 2:1)")


@dataclass(frozen=True)
class Curve:
    """Precision and recall of the results that score at least a threshold.

    One entry for each different score, the highest first. Nothing is interpolated.
    """

    threshold: np.ndarray  # (n,)
    precision: np.ndarray  # (n,)
    recall: np.ndarray  # (n,)
    f1: np.ndarray  # (n,)

    def __len__(self) -> int:
        return len(self.threshold)

    @property
    def best(self) -> int | None:
        """Number of the entry with the highest F1; None where nothing is right."""
        return int(self.f1.argmax()) if len(self) and self.f1.max() > 0 else None


def count_curve(scores: np.ndarray, right: np.ndarray, num_objects: int) -> Curve:
    """The curve of some results.

    Args:
        scores: (n,)
        right: (n,) bool, whether a result finds an object.
        num_objects: that should be found.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    hits, results = hits[last], last + 1
    return Curve(
        scores[last],
        hits / results,
        hits / num_objects if num_objects else np.full(len(last), np.nan),
        2 * hits / (results + num_objects),
    )


def pooled_curve(matches: Matches) -> Curve:
    """The curve of all classes together."""
    found = matches.counted()
    right = (found["object"] > 0).to_numpy()
    return count_curve(found["score"].to_numpy(), right, len(matches.wanted()))


def class_curves(matches: Matches, judged: Judged) -> dict[int, Curve]:
    """Category id -> curve, of the classes with objects, the most frequent first."""
    of_class = dict(list(matches.counted().groupby("category_id")))
    totals = matches.wanted().groupby("category_id").size()
    none = matches.found.iloc[:0]
    curves = {}
    for number in judged.names:
        if number in totals.index:
            mine = of_class.get(number, none)
            right = (mine["object"] > 0).to_numpy()
            curves[number] = count_curve(mine["score"].to_numpy(), right, int(totals[number]))
    return curves


def best_threshold(curve: Curve) -> float:
    """The score threshold with the highest F1."""
    return NO_THRESHOLD if curve.best is None else float(curve.threshold[curve.best])


def class_table(curves: dict[int, Curve], matches: Matches, judged: Judged) -> pd.DataFrame:
    """A row per class with objects: AP50, and the point of its curve with the highest F1."""
    totals = matches.wanted().groupby("category_id").size()
    results = matches.found.groupby("category_id").size()
    rows = []
    for number, curve in curves.items():
        at = curve.best
        point = [np.nan] * 4
        if at is not None:
            columns = (curve.f1, curve.threshold, curve.precision, curve.recall)
            point = [float(values[at]) for values in columns]
        rows.append(
            (
                judged.names[number],
                int(totals[number]),
                int(results.get(number, 0)),
                matches.ap50.get(number, np.nan),
                *point,
            )
        )
    columns = ["class", "objects", "results", "AP50"]
    columns += ["best F1", "at score", "precision", "recall"]
    return pd.DataFrame(rows, columns=columns)


# ---- calibration -----------------------------------------------------------------------------


def calibration_table(scores: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """A row per range of scores: low, high, results, mean score, share of results that are right.

    Args:
        scores: (n,) in [0, 1].
        right: (n,) bool.
    """
    edges = np.linspace(0, 1, BINS + 1)
    part = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    counts = np.bincount(part, minlength=BINS)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.bincount(part, scores, minlength=BINS) / counts
        share = np.bincount(part, right, minlength=BINS) / counts
    columns = {"low": edges[:-1], "high": edges[1:], "results": counts}
    return pd.DataFrame(columns | {"score": score, "right": share})


def calibration_error(table: pd.DataFrame) -> float:
    """ECE: the mean distance between score and share, weighted by results; NaN without any."""
    gap = (table["score"] - table["right"]).abs().fillna(0)
    total = table["results"].sum()
    return float((gap * table["results"]).sum() / total) if total else float("nan")


# ---- by size and shape -----------------------------------------------------------------------


def by_size(judged: Judged) -> pd.DataFrame:
    """AP, AP50 and AR of objects by the square root of their area."""
    names = [f"{low:g} to {high:g} px" for low, high in zip(SIZES, SIZES[1:], strict=False)]
    names[0], names[-1] = f"< {SIZES[1]:g} px", f"> {SIZES[-2]:g} px"
    return _by_range(judged, [edge**2 for edge in SIZES], names, lambda row: row["area"])


def by_shape(judged: Judged) -> pd.DataFrame:
    """AP, AP50 and AR of objects by width / height of their boxes."""
    return _by_range(judged, SHAPES, SHAPE_NAMES, _aspect)


def _aspect(row: dict) -> float:
    return row["bbox"][2] / max(row["bbox"][3], 1e-9)


def _by_range(judged: Judged, edges, names, measure: Callable[[dict], float]) -> pd.DataFrame:
    """A row per range that has objects: range, objects, AP, AP50, AR.

    pycocotools knows ranges of areas. It gets what is measured in the place of the areas.
    """
    evaluation = judged.open()
    truth, results = evaluation.cocoGt.anns.values(), evaluation.cocoDt.anns.values()
    for row in (*truth, *results):
        row["area"] = measure(row)
    params = evaluation.params
    params.maxDets = params.maxDets[-1:]
    # both ends of a range belong to it: those of neighbours are a hair apart
    params.areaRng = [
        (low, min(np.nextafter(high, low), 1e30))
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    params.areaRngLbl = list(names)
    run_evaluation(evaluation)
    precision = evaluation.eval["precision"][..., -1]  # (thresholds, recalls, classes, ranges)
    recall = evaluation.eval["recall"][..., -1]  # (thresholds, classes, ranges)
    values = [row["area"] for row in truth if not row["ignore"]]
    rows = []
    for i, ((low, high), name) in enumerate(zip(params.areaRng, names, strict=True)):
        count = sum(low <= value <= high for value in values)
        if count:
            numbers = (precision[..., i], precision[0, ..., i], recall[..., i])
            rows.append((name, count, *map(_mean, numbers)))
    return pd.DataFrame(rows, columns=["range", "objects", "AP", "AP50", "AR"])


def _mean(values: np.ndarray) -> float:
    """pycocotools marks what has no object with -1."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")
