"""What a report says about boxes, masks and poses: its sections, from the results of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infer.report.curves import (
    best_threshold,
    by_shape,
    by_size,
    calibration_error,
    calibration_table,
    class_curves,
    class_table,
    pooled_curve,
)
from infer.report.errors import (
    KINDS,
    confusion_matrix,
    error_costs,
    find_errors,
    frequent_confusions,
    shorten_matrix,
)
from infer.report.figures import (
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_errors,
    draw_histograms,
    draw_joints,
    draw_ranges,
    to_png,
)
from infer.report.matching import HIT, Judged, Matches, errors_per_image, match_by_class
from infer.report.page import Card, Chart, Section
from infer.report.pictures import draw_pair, encode, readable, worst_images
from infer.report.poses import PAIR_OKS, joint_table, measure_joints
from utils.categories import Skeleton

MOST_NAMED = 10  # classes with a colour of their own in the curves
MOST_DRAWN = 40  # classes with a curve
MOST_IN_MATRIX = 20  # classes with a row in the confusion matrix
MOST_PAIRS = 10  # of confused classes
MOST_PICTURES = 8
OVERLAP = {"bbox": "IoU of the boxes", "segm": "IoU of the masks", "keypoints": "OKS of the poses"}


@dataclass(frozen=True)
class Findings:
    """What all sections need."""

    source: object
    judged: Judged
    matches: Matches
    threshold: float  # of the score, the one with the highest F1 of all classes together

    @classmethod
    def of(cls, source, judged: Judged) -> Findings:
        matches = match_by_class(judged)
        return cls(source, judged, matches, best_threshold(pooled_curve(matches)))

    @property
    def overlap(self) -> str:
        return "OKS" if self.judged.kind == "keypoints" else "IoU"

    @property
    def one_score(self) -> bool:
        """Whether all results have the same score, as in boxes of the ground truth."""
        scores = self.matches.found["score"]
        return len(scores) > 1 and scores.nunique() == 1


def object_sections(source, judged: Judged, skeleton: Skeleton | None = None) -> list[Section]:
    """The sections of a report about boxes, masks or poses.

    Args:
        source: of the images, which are read again for the worst pictures.
        skeleton: of poses.
    """
    found = Findings.of(source, judged)
    sections = [curve_section(found)]
    if skeleton is None:
        sections += [confusion_section(found), error_section(found)]
    else:
        sections.append(joint_section(found, skeleton))
    sections += [calibration_section(found), range_section(found), overlap_section(found)]
    return [*sections, picture_section(found, skeleton)]


def curve_section(found: Findings) -> Section:
    """Precision, recall and F1 of each class, and the best thresholds."""
    curves, pooled = class_curves(found.matches, found.judged), pooled_curve(found.matches)
    named = {found.judged.names[number]: curve for number, curve in curves.items()}
    few = dict(list(named.items())[:MOST_DRAWN])
    text = [
        f"Counted, not interpolated: a result is right if its {found.overlap} with an object of "
        f"its class is at least {HIT:g}, and every object is found once. F1 is the harmonic mean "
        "of precision and recall.",
        _say_threshold(found, pooled),
    ]
    if len(named) > MOST_NAMED:
        text.append(
            f"Of {len(named)} classes with objects, the {MOST_NAMED} with the most objects have "
            f"colours and the next {len(few) - MOST_NAMED} are grey lines; the table has all."
        )
    chart = Chart(
        "precision_recall",
        to_png(draw_curves(few, pooled, MOST_NAMED, found.threshold)),
        "Precision over recall, and F1 over the score threshold, for each class",
    )
    table = class_table(curves, found.matches, found.judged)
    caption = "Each class, with the score threshold that gives it the highest F1"
    return Section("Precision, recall and F1", text, [chart], [(caption, table)])


def _say_threshold(found: Findings, pooled) -> str:
    if pooled.best is None:
        return (
            "No result is right, so no threshold is better than another; "
            f"what follows uses {found.threshold:g}."
        )
    at = pooled.best
    if found.one_score:
        return (
            f"All results have the same score, {found.threshold:g}, so each curve is one point. "
            f"All classes together: precision {pooled.precision[at]:.3f}, recall "
            f"{pooled.recall[at]:.3f}, F1 {pooled.f1[at]:.3f}."
        )
    return (
        f"All classes together have their highest F1, {pooled.f1[at]:.3f}, at a score threshold of "
        f"{found.threshold:.3f} (precision {pooled.precision[at]:.3f}, recall "
        f"{pooled.recall[at]:.3f}). What follows uses this threshold where it needs one. It was "
        "chosen on these same pictures, so F1 on others will be a little lower."
    )


def confusion_section(found: Findings) -> Section:
    """The confusion matrix and the pairs that are confused most often."""
    matrix = confusion_matrix(found.judged, found.threshold)
    short = shorten_matrix(matrix, MOST_IN_MATRIX)
    text = [
        f"Results that score at least {found.threshold:.3f}, matched with objects by their overlap "
        "(IoU at least 0.5) without regard to class. Row: what the object is. Column: what the "
        "model calls it. Last column: objects that nothing overlaps. Last row: results where no "
        "object is. Numbers are counts, colours are shares of the row."
    ]
    if len(short) < len(matrix):
        text.append(
            f"Only the {MOST_IN_MATRIX} most frequent of {len(matrix) - 1} classes have a row; the "
            "others are one row."
        )
    chart = Chart("confusion", to_png(draw_confusion(short)), "Confusion matrix", narrow=True)
    pairs = frequent_confusions(matrix, MOST_PAIRS)
    tables = [("Classes that are confused most often", pairs)] if len(pairs) else []
    return Section("Confusion of classes", text, [chart], tables)


def error_section(found: Findings) -> Section:
    """The kinds of errors and their cost."""
    errors = find_errors(found.judged, found.matches)
    costs = error_costs(found.judged, found.matches, errors, found.threshold)
    text = [
        "Each wrong result and each object that is not found has one kind, as TIDE defines them. "
        "The cost is what AP50 would gain if all errors of the kind were corrected. Each kind is "
        "corrected alone, so costs do not add up to 1 - AP50.",
        f"At the threshold: results that score at least {found.threshold:.3f}, and all objects "
        "that none of these finds.",
    ]
    chart = Chart("errors", to_png(draw_errors(costs)), "Cost and number of each kind of error")
    table = costs.assign(meaning=[KINDS[kind] for kind in costs["kind"]])
    return Section("Kinds of errors", text, [chart], [("", table)])


def calibration_section(found: Findings) -> Section:
    """Whether scores are probabilities."""
    counted = found.matches.counted()
    scores = counted["score"].to_numpy()
    if found.one_score or not len(scores) or scores.min() < 0 or scores.max() > 1:
        reason = "All results have the same score" if found.one_score else "There are no results"
        if len(scores) and not found.one_score:
            reason = "Scores are not probabilities"
        return Section("Calibration of scores", [f"{reason}: there is nothing to calibrate."])
    right = (counted["object"] > 0).to_numpy()
    table = calibration_table(scores, right)
    error = calibration_error(table)
    above = scores >= found.threshold
    high = calibration_error(calibration_table(scores[above], right[above]))
    text = [
        "A score is calibrated if of all results with a score of 0.7 seven in ten are right. Bars "
        "below the diagonal: the model is too confident. The expected calibration error (ECE) is "
        "the mean distance from the diagonal, weighted by the number of results.",
        f"ECE of all {len(scores)} results {error:.3f}; of the {int(above.sum())} that score at "
        f"least {found.threshold:.3f}: {high:.3f}.",
    ]
    figure = draw_calibration(table, error, scores, right)
    chart = Chart("calibration", to_png(figure), "Share of right results over the score")
    return Section("Calibration of scores", text, [chart])


def range_section(found: Findings) -> Section:
    """AP by size and by shape."""
    sizes = by_size(found.judged)
    shapes = None if found.judged.kind == "keypoints" else by_shape(found.judged)
    text = [
        "AP, AP50 and AR by pycocotools, with its ranges of areas replaced by these. Objects "
        "outside of a range do not count in it. Few objects (n) make a range uncertain."
    ]
    tables = [("By size", sizes)] + ([] if shapes is None else [("By shape", shapes)])
    tables = [(name, table) for name, table in tables if len(table)]
    charts = []
    if len(sizes):
        figure = draw_ranges(sizes, shapes)
        charts = [Chart("size_and_shape", to_png(figure), "AP by size and shape of the objects")]
    return Section("Size and shape of the objects", text, charts, tables)


def overlap_section(found: Findings) -> Section:
    """How well objects are covered by the best result of their class."""
    values = found.matches.wanted()["overlap"].to_numpy()
    if not len(values):
        return Section("Overlap of objects and results", ["There are no objects."])
    shares = ", ".join(f"{(values >= t).mean():.0%} at least {t:g}" for t in (0.5, 0.75, 0.9))
    name = OVERLAP[found.judged.kind]
    text = [
        f"The highest {name} of each object with a result of its class, whatever its score. "
        f"Mean {values.mean():.3f}; of {len(values)} objects {shares}."
    ]
    one = ("Best overlap of each object", name, {"objects": values}, np.linspace(0, 1, 26))
    chart = Chart("overlap", to_png(draw_histograms([one])), name)
    return Section("Overlap of objects and results", text, [chart])


def joint_section(found: Findings, skeleton: Skeleton) -> Section:
    """How near the single joints are."""
    joints = measure_joints(found.judged)
    table = joint_table(joints, skeleton.names)
    table.attrs["names"] = skeleton.names
    text = [
        f"{joints.paired} of {joints.persons} persons have a pose (OKS at least {PAIR_OKS:g}); "
        "these are their labelled joints. Distances are in longer sides of the person's box. "
        "PCK@0.1 is the share of joints that are at most 0.1 away. OKS is the mean similarity that "
        "the joint contributes. Called visible: how often the model gave the joint a place.",
    ]
    if not len(table):
        return Section("Joints", [*text, "No pose belongs to a person."])
    chart = Chart("joints", to_png(draw_joints(table, joints)), "PCK and OKS of each joint")
    return Section("Joints", text, [chart], [("", table)])


def picture_section(found: Findings, skeleton: Skeleton | None) -> Section:
    """The pictures with the most errors."""
    counts = errors_per_image(found.matches, found.judged, found.threshold)
    worst = worst_images(counts)
    cards: list[Card] = []
    for image_id, image, name in readable(found.source, worst, MOST_PICTURES):
        args = (image, image_id, found.judged, found.matches, found.threshold, skeleton)
        row = counts.loc[image_id]
        title = f"{name}: {row.wrong} wrong, {row.missed} missed, {row.found} found"
        cards.append(Card(title, encode(draw_pair(*args), "JPEG")))
    text = [
        "The pictures with the most wrong results and missed objects together. Left: ground truth; "
        f"right: results that score at least {found.threshold:.3f}. Blue: object and result belong "
        "together; orange: missed (left) or wrong (right).",
        _say_pictures(worst, cards, len(counts)),
    ]
    return Section("Worst pictures", text, cards=cards)


def _say_pictures(worst: Sequence, cards: list[Card], total: int) -> str:
    say = f"{len(worst)} of {total} pictures have an error."
    if len(cards) < min(len(worst), MOST_PICTURES):
        say += " Files of some of them cannot be read any more; these are not shown."
    return say
