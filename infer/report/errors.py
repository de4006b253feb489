"""Which classes are confused, and which kinds of errors cost how much AP.

The kinds are those of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020). A kind is corrected in the results, and pycocotools computes AP again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from infer.report.matching import (
    HIT,
    Judged,
    Matches,
    ap50_of,
    match_tables,
    set_single,
)
from utils.detection_metrics import run_evaluation

BACKGROUND_IOU = 0.1  # an overlap up to this is none
BACKGROUND = "background"
OTHERS = "other classes"
KINDS = {
    "localisation": "right class, but the overlap is between 0.1 and 0.5",
    "class": "the overlap is at least 0.5, but the class is wrong",
    "both": "wrong class and an overlap between 0.1 and 0.5",
    "duplicate": "a further result of an object that a better result finds",
    "background": "no object there: the overlap is at most 0.1",
    "missed": "an object that no result finds, and none of the errors above explains",
}


# ---- confusion -------------------------------------------------------------------------------


def confusion_matrix(judged: Judged, threshold: float) -> pd.DataFrame:
    """Counts of true classes (rows) and predicted ones (columns), matched without regard to class.

    The last row holds results where no object is, the last column objects without a result.

    Args:
        threshold: results that score lower do not count.
    """
    found, objects = match_any_class(judged, threshold)
    names = [*judged.names.values(), BACKGROUND]
    place = {number: i for i, number in enumerate(judged.names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    found = found[~found["ignored"]]
    predicted = found["category_id"].map(place).to_numpy(int)
    true = np.full(len(found), len(names) - 1)
    hit = (found["object"] > 0).to_numpy()
    matched = objects["category_id"].reindex(found["object"][hit]).map(place)
    true[hit] = matched.to_numpy(int)
    np.add.at(counts, (true, predicted), 1)
    missed = objects[~objects["ignored"] & objects["score"].isna()]
    np.add.at(counts, (missed["category_id"].map(place).to_numpy(int), -1), 1)
    return pd.DataFrame(counts, names, names)


def match_any_class(judged: Judged, threshold: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of `Matches`, of results above a threshold and objects of whatever class."""
    rows = [row for row in judged.rows if row["score"] >= threshold]
    evaluation = judged.open(rows)
    set_single(evaluation, _most(rows), by_class=False)
    run_evaluation(evaluation)
    return match_tables(evaluation)


def _most(rows: list[dict]) -> int:
    """Results of the image that has the most."""
    images = pd.Series([row["image_id"] for row in rows], dtype=object)
    return int(images.value_counts().max()) if rows else 1


def shorten_matrix(matrix: pd.DataFrame, most: int) -> pd.DataFrame:
    """The matrix of the `most` first classes; the others become one class."""
    if len(matrix) - 1 <= most:
        return matrix
    names = list(matrix.columns[:most])
    group = np.array([*range(most), *[most] * (len(matrix) - 1 - most), most + 1])
    counts = np.zeros((most + 2, most + 2), np.int64)
    np.add.at(counts, (group[:, None], group[None, :]), matrix.to_numpy())
    names = [*names, OTHERS, BACKGROUND]
    return pd.DataFrame(counts, names, names)


def frequent_confusions(matrix: pd.DataFrame, most: int) -> pd.DataFrame:
    """The pairs of classes that are confused most often: true, predicted, objects, share."""
    counts = matrix.to_numpy()[:-1, :-1].copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    true, predicted = np.unravel_index(order, counts.shape)
    keep = counts[true, predicted] > 0
    true, predicted = true[keep], predicted[keep]
    number, total = counts[true, predicted], matrix.to_numpy()[true].sum(1)
    names = matrix.columns.to_numpy()
    columns = {"object is": names[true], "called": names[predicted], "objects": number}
    return pd.DataFrame(columns | {"share of the class": number / total})


# ---- kinds of errors -------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """What is wrong with each result, and which objects are missed."""

    # row number of a result -> kind, object (id of the one that it should have found, 0 = none)
    results: pd.DataFrame
    missed: frozenset[int]  # ids of objects


def find_errors(judged: Judged, matches: Matches) -> Errors:
    """Gives every wrong result its kind; the first kind that fits counts, in TIDE's order."""
    overlaps = _overlaps(judged)
    used = set(matches.found["object"]) - {0}
    class_of = matches.objects["category_id"].to_dict()
    wanted = set(matches.wanted().index)
    wrong = matches.counted().query("object == 0")
    kinds, targets = [], []
    pairs = zip(wrong.index, wrong["image_id"], wrong["category_id"], strict=True)
    for row, image_id, category in pairs:
        ids, iou = overlaps[image_id][0], overlaps[image_id][1].get(row)
        keep = [i for i, number in enumerate(ids) if number in wanted]
        kind, target = "background", 0
        if keep and iou is not None:
            mine = np.array([ids[i] for i in keep])
            same = np.array([class_of[i] == category for i in mine])
            free = np.array([i not in used for i in mine])
            kind, at = error_kind(iou[keep], same, ~free)
            target = int(mine[at]) if kind in ("localisation", "class") else 0
        kinds.append(kind)
        targets.append(target)
    table = pd.DataFrame({"kind": kinds, "object": targets}, index=wrong.index)
    explained = set(table["object"]) - {0}
    return Errors(table, frozenset(wanted - used - explained))


def error_kind(iou: np.ndarray, same: np.ndarray, used: np.ndarray) -> tuple[str, int]:
    """The kind of a wrong result and the number of the object that it belongs to.

    Args:
        iou: (G,) with the objects of the image.
        same: (G,) bool, objects of the class of the result.
        used: (G,) bool, objects that another result finds.
    """
    own, other, taken = iou * same, iou * ~same, iou * (same & used)
    if BACKGROUND_IOU <= own.max() <= HIT:
        return "localisation", int(own.argmax())
    if other.max() >= HIT:
        return "class", int(other.argmax())
    if taken.max() >= HIT:
        return "duplicate", int(taken.argmax())
    if iou.max() <= BACKGROUND_IOU:
        return "background", 0
    return "both", int(iou.argmax())


def _overlaps(judged: Judged) -> dict:
    """Image id -> ids of its objects, and row number of a result -> (G,) IoU with them."""
    evaluation = judged.open()
    set_single(evaluation, _most(judged.rows), by_class=False)
    run_evaluation(evaluation)
    truth, overlaps = evaluation.cocoGt, {}
    for one, image_id in zip(evaluation.evalImgs, evaluation.params.imgIds, strict=True):
        of_class: dict[int, list[int]] = {number: [] for number in evaluation.params.catIds}
        for row in truth.imgToAnns.get(image_id, []):
            of_class[row["category_id"]].append(row["id"])
        ids = [number for numbers in of_class.values() for number in numbers]
        rows = [number - 1 for number in one["dtIds"]] if one and ids else []
        iou = np.reshape(evaluation.ious[image_id, -1], (len(rows), len(ids)))  # best first
        overlaps[image_id] = ids, dict(zip(rows, iou, strict=True))
    return overlaps


def error_costs(judged: Judged, matches: Matches, errors: Errors, threshold: float) -> pd.DataFrame:
    """A row per kind: how often, how often at a score threshold, and the AP50 that it costs.

    The cost is AP50 with all errors of the kind corrected, minus AP50. At a threshold, those
    objects are missed that no result above it finds.
    """
    base, scores = _mean(matches.ap50), matches.found["score"]
    rows = []
    for kind in KINDS:
        mine = errors.results[errors.results["kind"] == kind]
        count, above = len(mine), int((scores[mine.index] >= threshold).sum())
        if kind == "missed":
            count = len(errors.missed)
            above = int((~(matches.wanted()["score"] >= threshold)).sum())
        fixed = base
        if count:
            fixed = mean_ap50(judged, *corrected(judged, matches, errors, kind))
        rows.append((kind, count, above, fixed - base))
    columns = ["kind", "errors", "at the threshold", "cost in AP50"]
    return pd.DataFrame(rows, columns=columns)


def corrected(
    judged: Judged, matches: Matches, errors: Errors, kind: str
) -> tuple[list[dict], frozenset[int]]:
    """The results without the errors of a kind, and the objects that no longer count.

    An error of localisation or class becomes right: it gets the outline or the class of its object.
    If several results belong to one object, the best stays and the others go. All others go.
    """
    if kind == "missed":
        return judged.rows, errors.missed
    mine = errors.results[errors.results["kind"] == kind]
    used = set(matches.found["object"])
    scores = matches.found["score"]
    winner: dict[int, int] = {}  # object -> row number
    for row, target in mine["object"].items():
        if target and target not in used:
            best = winner.get(target)
            if best is None or scores[row] > scores[best]:
                winner[target] = row
    truth = judged.open([]).cocoGt
    target_of = {row: truth.anns[target] for target, row in winner.items()}
    wrong, rows = set(mine.index), []
    for number, row in enumerate(judged.rows):
        if number in target_of:
            rows.append(row | _right(row, target_of[number], kind, truth))
        elif number not in wrong:
            rows.append(row)
    return rows, frozenset()


def _right(row: dict, target: dict, kind: str, truth) -> dict:
    """What a result has to say to find an object."""
    if kind == "class":
        return {"category_id": target["category_id"]}
    if "segmentation" in row:
        return {"segmentation": truth.annToRLE(target)}
    return {"bbox": list(target["bbox"])}


def mean_ap50(
    judged: Judged, rows: list[dict] | None = None, without: frozenset[int] = frozenset()
) -> float:
    """AP50 by pycocotools.

    As in TIDE, a class that has lost all of its objects counts 0 while it has results.
    """
    evaluation = judged.open(rows, without)
    set_single(evaluation, evaluation.params.maxDets[-1])
    run_evaluation(evaluation)
    values = ap50_of(evaluation)
    if without:
        before = judged.open([]).cocoGt
        for number in values:
            had, has = (bool(x.getAnnIds(catIds=[number])) for x in (before, evaluation.cocoGt))
            if had and not has and evaluation.cocoDt.getAnnIds(catIds=[number]):
                values[number] = 0.0
    return _mean(values)


def _mean(ap50: dict[int, float]) -> float:
    """Over the classes with objects."""
    values = np.array(list(ap50.values()))
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
