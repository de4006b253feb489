"""Numbers of the single joints of poses: how far they lie from their place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from infer.report.matching import Judged, match_tables, set_single
from utils.detection_metrics import run_evaluation

PAIR_OKS = 0.1  # from which on a pose is taken for that of a person
SHARES = (0.05, 0.1, 0.2)  # of the longer side of the box: distances that are near enough


@dataclass(frozen=True)
class Joints:
    """Labelled joints of the persons that a pose was found for."""

    joint: np.ndarray  # (n,) number of the joint
    distance: np.ndarray  # (n,) in longer sides of the true box
    similarity: np.ndarray  # (n,) the joint's part of the OKS, in [0, 1]
    shown: np.ndarray  # (n,) bool, whether the model called it visible
    persons: int
    paired: int


def measure_joints(judged: Judged) -> Joints:
    """Compares the joints of poses and persons that belong together, as pycocotools pairs them."""
    evaluation = judged.open()
    set_single(evaluation, evaluation.params.maxDets[-1])
    evaluation.params.iouThrs = np.array([PAIR_OKS])
    run_evaluation(evaluation)
    found, objects = match_tables(evaluation)
    pairs = found[(found["object"] > 0) & ~found["ignored"]]
    persons = objects[~objects["ignored"]]
    variances = (2 * np.asarray(evaluation.params.kpt_oks_sigmas)) ** 2  # (K,)
    truth = evaluation.cocoGt.anns
    parts = []
    for row, number in pairs["object"].items():
        true = np.reshape(truth[number]["keypoints"], (-1, 3)).astype(float)
        points = np.reshape(judged.rows[row]["keypoints"], (-1, 3))
        squares = ((points[:, :2] - true[:, :2]) ** 2).sum(1)  # (K,)
        side = max(truth[number]["bbox"][2:])
        scale = 2 * variances * (truth[number]["area"] + np.spacing(1))
        keep = np.flatnonzero(true[:, 2] > 0)
        values = np.sqrt(squares) / side, np.exp(-squares / scale), points[:, 2] > 0
        parts.append(np.column_stack([np.arange(len(true)), *values])[keep])
    joint, distance, similarity, shown = np.concatenate([np.zeros((0, 4)), *parts]).T
    return Joints(
        joint.astype(int), distance, similarity, shown.astype(bool), len(persons), len(pairs)
    )


def joint_table(joints: Joints, names: tuple[str, ...]) -> pd.DataFrame:
    """A row per joint: labelled, mean and median distance, shares that are near, OKS, visible."""
    rows = []
    for number, name in enumerate(names):
        mine = joints.joint == number
        if not mine.any():
            continue
        distance = joints.distance[mine]
        shares = [float((distance <= share).mean()) for share in SHARES]
        middle = float(distance.mean()), float(np.median(distance))
        rest = float(joints.similarity[mine].mean()), float(joints.shown[mine].mean())
        rows.append((name, int(mine.sum()), *middle, *shares, *rest))
    columns = ["joint", "labelled", "mean distance", "median", *(f"PCK@{s:g}" for s in SHARES)]
    return pd.DataFrame(rows, columns=[*columns, "OKS", "called visible"])


def pck_curve(distance: np.ndarray, most: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Distances (101,) from 0 to `most`, and the share of joints (101,) that are so near."""
    places = np.linspace(0, most, 101)
    ordered = np.sort(distance)
    return places, np.searchsorted(ordered, places, side="right") / max(len(ordered), 1)
