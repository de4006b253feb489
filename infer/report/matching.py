"""Which result belongs to which object: the tables that pycocotools' matches become.

All numbers of a report about boxes, masks and poses are made of these tables or of further runs of
pycocotools.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from infer.results import Report
from utils.detection_metrics import coco_truth, open_evaluation, run_evaluation

HIT = 0.5  # IoU, or OKS of poses, from which on a result finds an object
EVERYWHERE = (0.0, 1e10)  # range of areas without a limit


@dataclass(frozen=True)
class Judged:
    """Results of one task and the ground truth that they are compared with."""

    kind: str  # "bbox", "segm" or "keypoints"
    truth: COCO
    rows: list[dict]  # of the COCO results format
    image_ids: list[int | str]  # the images that count
    names: dict[int, str]  # category id -> name, the most frequent class first
    sigmas: Sequence[float] | None = None  # of the object keypoint similarity

    def open(self, rows: list[dict] | None = None, without: frozenset[int] = frozenset()):
        """An evaluation by pycocotools that has not run yet.

        Args:
            rows: other results; None = these.
            without: ids of objects of the evaluation's ground truth to leave out.
        """
        rows = self.rows if rows is None else rows
        evaluation = open_evaluation(
            self.truth, rows, self.kind, self.image_ids, sigmas=self.sigmas
        )
        if without:
            truth = evaluation.cocoGt
            kept = [row for row in truth.dataset["annotations"] if row["id"] not in without]
            truth.dataset["annotations"] = kept
            with contextlib.redirect_stdout(io.StringIO()):
                truth.createIndex()
        return evaluation


def judged_of(source, report: Report, kind: str, sigmas: Sequence[float] | None = None) -> Judged:
    """The results of a report beside the ground truth of its source, in COCO's or VOC's layout."""
    ids = source.categories.source_ids
    names = {ids[label]: name for label, name in source.categories.names.items()}
    truth = source.coco if hasattr(source, "coco") else coco_truth(source.ground_truth(), names)
    image_ids = list(report.image_ids) or list(truth.imgs)
    images = set(image_ids)
    counts = pd.Series(
        [row["category_id"] for row in truth.dataset["annotations"] if row["image_id"] in images],
        dtype=np.int64,
    ).value_counts()
    order = sorted(names, key=lambda number: (-int(counts.get(number, 0)), number))
    names = {number: names[number] for number in order}
    return Judged(kind, truth, report.results, image_ids, names, sigmas)


@dataclass(frozen=True)
class Matches:
    """Results and objects after matching at `HIT`, class by class."""

    # image_id, category_id, score, object (id of the object that it finds, 0 = none), ignored (it
    # lies on a crowd); the index is its number in `Judged.rows`
    found: pd.DataFrame
    # image_id, category_id, ignored, score (of the result that finds it, NaN = none) and overlap
    # (highest IoU or OKS with a result of its class); the index is its id
    objects: pd.DataFrame
    ap50: dict[int, float] = field(default_factory=dict)  # category id -> AP50, NaN = no objects

    def counted(self) -> pd.DataFrame:
        """The results that are right or wrong."""
        return self.found[~self.found["ignored"]]

    def wanted(self) -> pd.DataFrame:
        """The objects that should be found."""
        return self.objects[~self.objects["ignored"]]


def match_by_class(judged: Judged) -> Matches:
    """Matches results and objects of the same class; of an image the best 100 per class count."""
    evaluation = judged.open()
    set_single(evaluation, evaluation.params.maxDets[-1])
    run_evaluation(evaluation)
    found, objects = match_tables(evaluation)
    overlaps = pd.Series(best_overlaps(evaluation), dtype=float)
    objects["overlap"] = overlaps.reindex(objects.index)
    return Matches(found, objects, ap50_of(evaluation))


def set_single(evaluation: COCOeval, most: int, by_class: bool = True) -> None:
    """One threshold of the overlap and objects of any size."""
    params = evaluation.params
    params.iouThrs, params.maxDets = np.array([HIT]), [most]
    params.areaRng, params.areaRngLbl = [EVERYWHERE], ["all"]
    params.useCats = int(by_class)


def match_tables(evaluation: COCOeval) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of `Matches` from an evaluation that has run."""
    truth, results = evaluation.cocoGt.anns, evaluation.cocoDt.anns
    found, objects = [], []
    for one in evaluation.evalImgs:
        if one is None:
            continue
        for number, match, ignored in zip(
            one["dtIds"], one["dtMatches"][0], one["dtIgnore"][0], strict=True
        ):
            row = results[number]
            found.append(
                (number - 1, row["image_id"], row["category_id"], row["score"], int(match), ignored)
            )
        for number, match, ignored in zip(
            one["gtIds"], one["gtMatches"][0], one["gtIgnore"], strict=True
        ):
            row = truth[number]
            score = results[int(match)]["score"] if match > 0 else np.nan
            objects.append((number, row["image_id"], row["category_id"], bool(ignored), score))
    columns = ["row", "image_id", "category_id", "score", "object", "ignored"]
    table = pd.DataFrame(found, columns=columns).set_index("row")
    table = table.astype({"score": float, "object": int, "ignored": bool})
    columns = ["id", "image_id", "category_id", "ignored", "score"]
    others = pd.DataFrame(objects, columns=columns).set_index("id")
    return table, others.astype({"ignored": bool, "score": float})


def best_overlaps(evaluation: COCOeval) -> dict[int, float]:
    """Id of an object -> its highest IoU or OKS with a result of its class."""
    best = {}
    for place, overlaps in evaluation.ious.items():
        objects = evaluation._gts[place]  # in the order of the columns
        values = np.max(overlaps, axis=0) if len(overlaps) else np.zeros(len(objects))
        best |= {row["id"]: float(value) for row, value in zip(objects, values, strict=True)}
    return best


def ap50_of(evaluation: COCOeval) -> dict[int, float]:
    """Category id -> AP at the first threshold, all areas; NaN without objects."""
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # (recalls, categories)
    means = np.where((precision > -1).all(0), precision.mean(0), np.nan)
    return dict(zip(evaluation.params.catIds, means.tolist(), strict=True))


def errors_per_image(matches: Matches, judged: Judged, threshold: float) -> pd.DataFrame:
    """Counts at a score threshold: image id -> found, wrong (false positives), missed."""
    found, objects = matches.counted(), matches.wanted()
    found = found[found["score"] >= threshold]
    hit = objects["score"] >= threshold
    counts = {
        "found": objects[hit].groupby("image_id").size(),
        "wrong": found[found["object"] == 0].groupby("image_id").size(),
        "missed": objects[~hit].groupby("image_id").size(),
    }
    table = pd.DataFrame(counts).reindex(judged.image_ids).fillna(0)
    return table.astype(int)
