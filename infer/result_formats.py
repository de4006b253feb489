"""Exports results: pandas tables, YOLO labels, supervision objects, and cut-outs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import yaml

from infer.results import (
    Captions,
    ImageResult,
    InstanceMasks,
    Keypoints,
    ObjectResult,
    Origin,
    with_origin,
)
from utils.categories import Categories
from utils.errors import UserError
from utils.files import write_text_atomic
from utils.masks import rle_to_polygons
from utils.visualize import save_image

BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
VISIBLE, INVISIBLE = 2, 0  # of YOLO's keypoints


# ---- tables ------------------------------------------------------------------------------------


def to_dataframe(found: ObjectResult) -> pd.DataFrame:
    """See `ObjectResult.to_dataframe`: the columns are the same when there is no object."""
    columns = {"image": _image_column(found, len(found))}
    columns |= {
        "label": pd.Series(found.names, dtype=object),
        "class_id": np.asarray(found.labels, np.int64),
        "score": found.scores.astype(np.float64).round(4),
    }
    boxes = found.boxes.reshape(-1, 4).astype(np.float64).round(2)
    columns |= dict(zip(BOX_COLUMNS, boxes.T, strict=True))
    if isinstance(found, InstanceMasks):
        columns["pixels"] = np.array([mask.sum() for mask in found.masks], np.int64)
    if isinstance(found, Keypoints):
        columns |= _point_columns(found)
    return pd.DataFrame(columns)


def _point_columns(found: Keypoints) -> dict[str, np.ndarray]:
    """Three columns of (N,) per keypoint; empty (NaN) where it is invisible."""
    count = len(found.skeleton)
    points = found.points.reshape(-1, count, 3).astype(np.float64)
    values = np.dstack([points[..., :2].round(2), found.point_scores.reshape(-1, count).round(4)])
    values[points[..., 2] <= 0] = np.nan  # (N, K, 3)
    return {
        f"{name}_{kind}": values[:, k, i]
        for k, name in enumerate(found.skeleton.names)
        for i, kind in enumerate(("x", "y", "score"))
    }


def captions_to_dataframe(found: Captions) -> pd.DataFrame:
    """A row per sentence: image, caption, score."""
    return pd.DataFrame(
        {
            "image": _image_column(found, len(found)),
            "caption": pd.Series(found.texts, dtype=object),
            "score": found.scores.astype(np.float64).round(4),
        }
    )


def _image_column(found: ImageResult, count: int) -> pd.Series:
    """The path of the image, empty if it was no file."""
    path = found.origin and found.origin.path
    return pd.Series([path and str(path)] * count, dtype=object)


# ---- YOLO --------------------------------------------------------------------------------------


def class_numbers(categories: Categories) -> dict[int, int]:
    """Class id -> its number in YOLO's files, which count from 0 without gaps."""
    return {class_id: number for number, class_id in enumerate(categories.names)}


def to_yolo(found: ObjectResult, size: tuple[int, int] | None, scores: bool) -> str:
    """See `ObjectResult.to_yolo`.

    Raises:
        ValueError: the result does not know its classes or the size of its image.
    """
    if found.origin is None:
        raise ValueError("the result does not know its classes; `Predictor` gives results that do")
    numbers = class_numbers(found.origin.categories)
    height, width = size or found.origin.size
    scale = 1 / np.array([width, height], np.float64)
    lines = []
    for label, score, shape in zip(found.labels, found.scores, _shapes(found, scale), strict=True):
        values = [*shape, score] if scores else shape
        lines.append(" ".join([str(numbers[int(label)]), *(f"{value:.6g}" for value in values)]))
    return "".join(f"{line}\n" for line in lines)


def _shapes(found: ObjectResult, scale: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of each object: a polygon, or a box with its keypoints if it has any."""
    if isinstance(found, InstanceMasks):
        for rle, box in zip(found.rles, found.boxes, strict=True):
            parts = rle_to_polygons(rle) or [box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)]
            yield np.clip(join_parts(parts) * scale, 0, 1).ravel()
        return
    corners = np.clip(found.boxes.reshape(-1, 2, 2) * scale, 0, 1)  # (N, 2, 2)
    boxes = np.concatenate([corners.mean(1), corners[:, 1] - corners[:, 0]], axis=1)  # (N, 4)
    for i, box in enumerate(boxes):
        if not isinstance(found, Keypoints):
            yield box
            continue
        seen = found.points[i, :, 2:] > 0  # (K, 1)
        places = np.where(seen, np.clip(found.points[i, :, :2] * scale, 0, 1), 0)
        points = np.hstack([places, np.where(seen, VISIBLE, INVISIBLE)])
        yield np.concatenate([box, points.ravel()])


def join_parts(parts: list[np.ndarray]) -> np.ndarray:
    """Parts of one object -> one outline (M, 2) of the same area.

    YOLO has one polygon per object. A bridge without width leads to each further part and back,
    where it is the shortest.
    """
    parts = sorted(parts, key=len, reverse=True)
    outline = np.asarray(parts[0], np.float64)
    for part in map(np.float64, parts[1:]):
        distances = np.linalg.norm(outline[:, None] - part[None], axis=2)  # (M, m)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        turn = np.concatenate([part[there:], part[: there + 1]])  # it ends where it begins
        outline = np.concatenate([outline[: here + 1], turn, outline[here:]])
    return outline


# ---- supervision -------------------------------------------------------------------------------


def to_supervision(found: ObjectResult):
    """See `ObjectResult.to_supervision`."""
    sv = _supervision()
    data = {"class_name": np.array(found.names, dtype=str)}
    labels, scores = found.labels.astype(int), found.scores.astype(np.float32)
    if isinstance(found, Keypoints):
        points = found.points.reshape(-1, len(found.skeleton), 3)
        return sv.KeyPoints(
            xy=points[..., :2].astype(np.float32),
            class_id=labels,
            keypoint_confidence=found.point_scores.reshape(points.shape[:2]).astype(np.float32),
            detection_confidence=scores,
            visible=points[..., 2] > 0,
            data=data,
        )
    return sv.Detections(
        xyxy=found.boxes.reshape(-1, 4).astype(np.float32),
        mask=found.masks if isinstance(found, InstanceMasks) else None,
        confidence=scores,
        class_id=labels,
        data=data,
    )


def _supervision() -> ModuleType:
    """The package, which is an optional extra."""
    try:
        import supervision
    except ImportError as error:
        raise UserError(
            f"to_supervision needs the package supervision ({error}); "
            "install it: pip install 'supervision>=0.31'"
        ) from error
    return supervision


# ---- cut-outs ----------------------------------------------------------------------------------


def cut_out(image: np.ndarray, found: ObjectResult) -> Iterator[tuple[str, np.ndarray]]:
    """The part of the image in the box of each object.

    Args:
        image: (H, W, 3) uint8 RGB.

    Yields:
        class name, (h, w, 3) uint8 RGB: every pixel that the box touches, at least one.
    """
    far = np.array(image.shape[1::-1])
    for name, box in zip(found.names, found.boxes, strict=True):
        start = np.clip(np.floor(box[:2]), 0, far - 1).astype(int)
        end = np.clip(np.ceil(box[2:]), start + 1, far).astype(int)
        yield name, image[start[1] : end[1], start[0] : end[0]]


# ---- files of the scripts ----------------------------------------------------------------------


class Exports:
    """Writes the results of many images: one table, labels of YOLO, cut-outs.

    Args:
        csv: file of the table; None = none.
        yolo: folder for `labels/NAME.txt` and `data.yaml`; with the pictures in its folder `images`
            it is a dataset.
        crops: folder for `CLASS/NAME_1.png` and so on.
        categories: of the weights.
    """

    def __init__(
        self,
        csv: str | Path | None,
        yolo: Path | None,
        crops: Path | None,
        categories: Categories,
    ):
        self.csv, self.yolo, self.crops = csv, yolo, crops
        self.categories = categories
        self.tables: list[pd.DataFrame] = []

    def add(self, path: Path, name: str, image: np.ndarray, found: ObjectResult | Captions) -> None:
        """Adds the result of an image.

        Args:
            name: of its files; no two images have the same.
            image: (H, W, 3) uint8 RGB.
        """
        found = with_origin(found, Origin(image.shape[:2], path, self.categories))
        self.tables.append(found.to_dataframe())
        if self.yolo is not None:
            if len(self.tables) == 1:
                write_text_atomic(self.yolo / "data.yaml", self._yolo_settings(found))
            write_text_atomic(self.yolo / "labels" / f"{name}.txt", found.to_yolo())
        if self.crops is not None:
            for number, (label, pixels) in enumerate(cut_out(image, found), 1):
                folder = re.sub(r"[^\w .()-]|^\.+", "_", label)
                save_image(self.crops / folder / f"{name}_{number}.png", pixels)

    def close(self) -> None:
        """Writes the table of all images."""
        if self.csv is None:
            return
        filled = [table for table in self.tables if len(table)] or self.tables[:1]
        write_text_atomic(self.csv, pd.concat(filled).to_csv(index=False))

    def _yolo_settings(self, found: ObjectResult) -> str:
        """Text of `data.yaml`; relative folders are beside that file."""
        settings = {"train": "images"}
        settings["names"] = dict(enumerate(self.categories.names.values()))
        if isinstance(found, Keypoints):
            order = list(range(len(found.skeleton)))
            for left, right in found.skeleton.flip_pairs:
                order[left], order[right] = right, left
            settings |= {"kpt_shape": [len(order), 3], "flip_idx": order}
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        return f"# put the pictures into the folder images beside this file\n{text}"
