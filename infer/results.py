"""Results of the tasks, in pixels of the original image, and the report of an evaluation."""

from __future__ import annotations

import importlib
import numbers
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from utils import visualize
from utils.categories import Categories, Skeleton
from utils.detection_metrics import detections_to_coco, evaluate_coco
from utils.files import atomic_path, write_json_atomic
from utils.images import as_image
from utils.masks import rle_to_mask

if TYPE_CHECKING:  # slow to import; what needs them loads them
    import pandas as pd
    import supervision

LEADING = ("AP", "AP50", "AP75", "mAP50", "mAP50_11point", "CIDEr", "BLEU-4", "ROUGE-L")
MOST_NAMES = 5  # in the text of a result
Objects = TypeVar("Objects", bound="ObjectResult")


@dataclass(frozen=True)
class Origin:
    """The source image of a result (path and size); its pixels are not stored."""

    size: tuple[int, int]  # (H, W)
    path: Path | None  # None = it came as pixels
    categories: Categories  # the classes that the weights know


@dataclass(frozen=True, repr=False, kw_only=True)
class ImageResult:
    """Base of results that can be drawn into their image."""

    origin: Origin | None = field(default=None, compare=False)  # of `Predictor`, otherwise None

    def plot(self, image: object = None) -> np.ndarray:
        """Draws the result into a copy of the image.

        Args:
            image: as `Predictor` takes it; None = the file that the result was found in.

        Returns:
            (H, W, 3) uint8 RGB; OpenCV wants BGR, which is `[..., ::-1]` of it.

        Raises:
            ValueError: the image is not known, or it is not of the size of the one looked at.
        """
        origin = self.origin
        if image is None:
            if origin is None or origin.path is None:
                raise ValueError("the result does not come from a file; give the image to draw in")
            image = origin.path
        pixels = as_image(image)
        if origin is not None and pixels.shape[:2] != origin.size:
            here, there = (f"{w} x {h}" for h, w in (pixels.shape[:2], origin.size))
            raise ValueError(f"the image is {here}, the result is about one of {there} pixels")
        return self._drawn(pixels)

    def save(self, path: str | Path, image: object = None) -> None:
        """Writes the picture of `plot`; the suffix of the path says the kind of file.

        Raises:
            ValueError: the path is that of the image itself, or as for `plot`.
        """
        source = image if isinstance(image, (str, Path)) else self.origin and self.origin.path
        if source and all(map(os.path.exists, (path, source))) and os.path.samefile(path, source):
            raise ValueError(f"{path} is the image itself; choose another path for the drawing")
        visualize.save_image(path, self.plot(image))

    def _drawn(self, image: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class ObjectResult(ImageResult):
    """Objects of one image: a sequence with the indexing of an array."""

    boxes: np.ndarray  # (N, 4) float32 xyxy, original pixels
    labels: np.ndarray  # (N,) int64 class ids
    scores: np.ndarray  # (N,) float32 in [0, 1]
    names: list[str]  # (N,) class names
    SHARED: ClassVar = ("origin", "skeleton")  # fields that are not about one object each

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self: Objects) -> Iterator[Objects]:
        """Each object as a result of one object."""
        return (self.select(np.array([i])) for i in range(len(self)))

    def __getitem__(self: Objects, index) -> Objects:
        """Some of the objects, as a result: `[0]`, `[:3]`, `[[2, 0]]`, `[found.scores > 0.5]`."""
        if not isinstance(index, (slice, numbers.Integral)):
            index = np.asarray(index)
            index = index.astype(int) if index.size == 0 else index
        rows = np.atleast_1d(np.arange(len(self))[index])
        if rows.ndim != 1:
            raise IndexError(f"objects are numbered by one index, got {rows.ndim}")
        return self.select(rows)

    def __repr__(self) -> str:
        """Such as "Detections: 3 objects: 2 cat, 1 dog (best 0.97)"."""
        head = f"{type(self).__name__}: {len(self)} object{'s' * (len(self) != 1)}"
        if not len(self):
            return head
        counts = sorted(Counter(self.names).items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{count} {name}" for name, count in counts[:MOST_NAMES]]
        if more := counts[MOST_NAMES:]:
            parts.append(f"{sum(count for _, count in more)} of {len(more)} other classes")
        return f"{head}: {', '.join(parts)} (best {self.scores.max():.2f})"

    def select(self: Objects, rows: np.ndarray) -> Objects:
        """The objects with these numbers, in this order."""
        of_objects = [one.name for one in fields(self) if one.name not in self.SHARED]
        return replace(self, **{name: _rows(getattr(self, name), rows) for name in of_objects})

    def above(self: Objects, threshold: float) -> Objects:
        """The objects that score at least `threshold`."""
        return self.select(np.flatnonzero(self.scores >= threshold))

    def only(self: Objects, names: Sequence[str] | None) -> Objects:
        """The objects of the classes with these names; None = all."""
        if names is None:
            return self
        wanted = {names} if isinstance(names, str) else set(names)
        return self.select(np.flatnonzero([name in wanted for name in self.names]))

    def best(self: Objects, most: int | None = None) -> Objects:
        """The `most` objects with the best scores, or all of them, best first."""
        return self.select(np.argsort(-self.scores, kind="stable")[:most])

    def to_json(self) -> list[dict]:
        """Plain rows: label, score, box as [xmin, ymin, xmax, ymax]."""
        return [
            {
                "label": name,
                "score": round(float(score), 4),
                "box": [round(float(x), 2) for x in box],
            }
            for name, score, box in zip(self.names, self.scores, self.boxes, strict=True)
        ]

    def to_dataframe(self) -> pd.DataFrame:
        """A row per object: image, label, class_id, score, xmin, ymin, xmax, ymax, and more.

        Masks add their number of pixels, keypoints `<name>_x`, `<name>_y` and `<name>_score`,
        which are empty where the model calls a point invisible.
        """
        return _formats().to_dataframe(self)

    def to_yolo(self, size: tuple[int, int] | None = None, *, scores: bool = False) -> str:
        """A line of YOLO's labels per object, numbers relative to the image.

        `class x y w h` of boxes (centre and size), `class x y x y ...` of masks (their parts are
        joined), `class x y w h x y v ...` of keypoints. Classes count from 0 in the order of
        `Predictor.categories`.

        Args:
            size: (H, W) of the image; None = that of the origin.
            scores: add the score at the end of each line, as predictions have it.
        """
        return _formats().to_yolo(self, size, scores)

    def to_supervision(self) -> supervision.Detections:
        """`supervision.Detections`, of keypoints `supervision.KeyPoints`.

        Raises:
            UserError: supervision is not installed.
        """
        return _formats().to_supervision(self)

    def _source_ids(self, categories: Categories | None) -> list[int]:
        """Class ids as the annotation file has them."""
        if categories is None:
            if self.origin is None:
                raise ValueError("the result does not know its classes; give categories, too")
            categories = self.origin.categories
        return [categories.source_ids[int(label)] for label in self.labels]

    def _coco_rows(self, image_id: int | str, categories: Categories | None, **more) -> list[dict]:
        """Rows of a COCO results file: what objects of all kinds have, and columns of their own."""
        return [
            {"image_id": image_id, "category_id": category_id}
            | {name: column[i] for name, column in more.items()}
            | {"score": float(f"{self.scores[i]:.6g}")}
            for i, category_id in enumerate(self._source_ids(categories))
        ]


@dataclass(frozen=True, repr=False)
class Detections(ObjectResult):
    """Objects of one image; detected objects are sorted, best first."""

    def to_coco(self, image_id: int, categories: Categories | None = None) -> list[dict]:
        """Rows of a COCO results file (`bbox` is xywh), with the annotation file's ids.

        Args:
            categories: with these ids; None = those of the weights.
        """
        ids = self._source_ids(categories)
        return detections_to_coco(image_id, self.boxes, self.scores, ids)

    def _drawn(self, image: np.ndarray) -> np.ndarray:
        return visualize.draw_detections(image, self.boxes, self.names, self.scores)


@dataclass(frozen=True, repr=False)
class InstanceMasks(ObjectResult):
    """Masks of given objects of one image, in the order of their boxes.

    Boxes are the given ones, and scores those of the boxes.
    """

    rles: list[dict]  # (N,) COCO run lengths {size, counts} of the original image

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, original pixels."""
        if not self.rles:
            return np.zeros((0, *(self.origin.size if self.origin else (0, 0))), bool)
        return np.stack([rle_to_mask(rle) for rle in self.rles])

    def to_coco(self, image_id: int, categories: Categories | None = None) -> list[dict]:
        """Rows of a COCO results file, see `Detections.to_coco`."""
        return self._coco_rows(image_id, categories, segmentation=self.rles)

    def to_json(self) -> list[dict]:
        """Plain rows: label, score, box as [xmin, ymin, xmax, ymax], mask as COCO run lengths."""
        rows = zip(super().to_json(), self.rles, strict=True)
        return [row | {"segmentation": rle} for row, rle in rows]

    def _drawn(self, image: np.ndarray) -> np.ndarray:
        tinted = visualize.draw_masks(image, self.masks, self.names) if len(self) else image
        return visualize.draw_detections(tinted, self.boxes, self.names, self.scores)


@dataclass(frozen=True, repr=False)
class Keypoints(ObjectResult):
    """Keypoints of given objects of one image, in the order of their boxes."""

    # (N, K, 3) float32: x, y in original pixels, visibility 2. A point that the model calls
    # invisible has visibility 0 and the centre of the box: scoring needs a position for all.
    points: np.ndarray
    point_scores: np.ndarray  # (N, K) float32, mean probability of the point's tokens
    skeleton: Skeleton

    def to_coco(self, image_id: int, categories: Categories | None = None) -> list[dict]:
        """Rows of a COCO results file, see `Detections.to_coco`."""
        points = np.asarray(self.points, np.float64).round(2)
        rows = [one.ravel().tolist() for one in points]
        return self._coco_rows(image_id, categories, keypoints=rows)

    def to_json(self) -> list[dict]:
        """Plain rows: label, score, box as [xmin, ymin, xmax, ymax], keypoints by their names.

        A keypoint is {x, y, score}, or None where the model said that it is not visible.
        """
        rows = super().to_json()
        for row, points, probabilities in zip(rows, self.points, self.point_scores, strict=True):
            joints = zip(self.skeleton.names, points.tolist(), probabilities.tolist(), strict=True)
            row["keypoints"] = {
                joint: {"x": round(x, 2), "y": round(y, 2), "score": round(probability, 4)}
                if visibility > 0
                else None
                for joint, (x, y, visibility), probability in joints
            }
        return rows

    def draw_points(self, image: np.ndarray) -> np.ndarray:
        """A copy of the image with the points and their lines, without boxes.

        Objects differ in colour. Points that the model calls invisible are left out.
        """
        return visualize.draw_keypoints(image, self.points, self.skeleton.edges)

    def _drawn(self, image: np.ndarray) -> np.ndarray:
        colors = [visualize.PALETTE[i % len(visualize.PALETTE)] for i in range(len(self))]
        posed = self.draw_points(image)  # names are above the points
        return visualize.draw_detections(posed, self.boxes, self.names, self.scores, colors=colors)


def _rows(column: np.ndarray | list, rows: np.ndarray) -> np.ndarray | list:
    """Some rows of an array or of a list."""
    return [column[i] for i in rows] if isinstance(column, list) else column[rows]


def _formats():
    """What writes results for other tools: loaded when it is needed."""
    return importlib.import_module("infer.result_formats")


@dataclass(frozen=True, repr=False)
class Captions(ImageResult):
    """Sentences about one image, best first."""

    texts: list[str]
    scores: np.ndarray  # (n,) float32 in [0, 1], the geometric mean of the tokens' probabilities

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.texts[index]

    def __repr__(self) -> str:
        best = f": {self.texts[0]!r} ({self.scores[0]:.2f})" if self.texts else ""
        return f"Captions: {len(self)} sentence{'s' * (len(self) != 1)}{best}"

    def to_coco(self, image_id: int) -> list[dict]:
        """The row of a COCO caption results file, which holds one sentence per image."""
        return [{"image_id": image_id, "caption": self.texts[0]}]

    def to_json(self) -> list[dict]:
        """Plain rows: caption, score."""
        return [
            {"caption": text, "score": round(float(score), 4)}
            for text, score in zip(self.texts, self.scores, strict=True)
        ]

    def to_dataframe(self) -> pd.DataFrame:
        """A row per sentence: image, caption, score."""
        return _formats().captions_to_dataframe(self)

    def _drawn(self, image: np.ndarray) -> np.ndarray:
        """The best sentence is below the picture, which becomes higher."""
        return visualize.draw_caption(image, self.texts[0]) if self.texts else image.copy()


def with_origin(result: ImageResult, origin: Origin) -> ImageResult:
    """Adds the source image to a result and its parts."""
    values = {one.name: getattr(result, one.name) for one in fields(result)}
    parts = {name: v for name, v in values.items() if isinstance(v, ImageResult)}
    parts = {name: with_origin(part, origin) for name, part in parts.items()}
    return replace(result, origin=origin, **parts)


def columns(found: Sequence[Detections]) -> tuple[list, list, list]:
    """Boxes, labels and scores of B images, each as a list: arguments of `segment`."""
    return tuple([getattr(one, name) for one in found] for name in ("boxes", "labels", "scores"))


@dataclass(frozen=True, repr=False)
class AllTasks(ImageResult):
    """Results of all tasks for one image; None for a task that the weights do not know."""

    captions: Captions | None
    objects: Detections | None
    masks: InstanceMasks | None  # of all objects, in their order
    keypoints: Keypoints | None  # of the objects that are persons, in their order

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.known()))

    def known(self) -> list[Captions | ObjectResult]:
        """The results that are present, of the tasks that the weights know."""
        found = (self.captions, self.objects, self.masks, self.keypoints)
        return [one for one in found if one is not None]

    def only(self, names: Sequence[str] | None) -> AllTasks:
        """The objects of the classes with these names (None = all), and the captions."""
        kinds = ("objects", "masks", "keypoints")
        found = {name: getattr(self, name) for name in kinds}
        return replace(self, **{name: one and one.only(names) for name, one in found.items()})

    def to_json(self) -> dict:
        """Rows per kind of result; those of objects hold the masks where there are some."""
        objects = self.objects if self.masks is None else self.masks
        found = {"captions": self.captions, "objects": objects, "keypoints": self.keypoints}
        return {kind: rows.to_json() for kind, rows in found.items() if rows is not None}

    def _drawn(self, image: np.ndarray) -> np.ndarray:
        """Masks, or boxes without them, then the points, and the best caption below."""
        objects = self.objects if self.masks is None else self.masks
        image = image.copy() if objects is None else objects.plot(image)
        if self.keypoints is not None:
            image = self.keypoints.draw_points(image)
        return image if self.captions is None else self.captions.plot(image)


@dataclass(frozen=True)
class Report:
    """The result of an evaluation."""

    metrics: dict[str, float]  # the first one is the one to compare models by
    per_class: pd.DataFrame
    table: str  # for people
    results: list[dict]  # rows of the COCO results format
    image_ids: Sequence[int | str] = ()  # the images that count
    own: tuple[str, ...] = ()  # names of the metrics that functions of the user's give

    def save(self, folder: str | Path, weights: dict | None = None) -> None:
        """Writes results.json, metrics.json (with `weights` at its end) and per_class.csv."""
        folder, more = Path(folder), {} if weights is None else {"weights": weights}
        write_json_atomic(folder / "results.json", self.results, indent=None)
        write_json_atomic(folder / "metrics.json", self.metrics | more)
        with atomic_path(folder / "per_class.csv") as path:
            self.per_class.to_csv(path, index=False, errors="backslashreplace")


def compact_table(reports: dict[str, Report], num_images: dict[str, int]) -> str:
    """One line per task: number of images and main figures.

    Args:
        reports: task -> report.
        num_images: task -> images it was scored on.
    """
    lines = [f"{'task':<14}{'images':>6}  metrics"]
    for task, report in reports.items():
        names = [name for name in report.metrics if name in LEADING] or list(report.metrics)
        leading = {name: report.metrics[name] for name in dict.fromkeys([*names, *report.own])}
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in leading.items())
        lines.append(f"{task:<14}{num_images[task]:>6}  {numbers}")
    return "\n".join(lines)


def score_coco(
    source,
    found: dict[int | str, Detections | InstanceMasks | Keypoints],
    categories: Categories,
    kind: str,
    sigmas: Sequence[float] | None = None,
) -> Report:
    """The COCO metrics for boxes, masks or keypoints.

    Args:
        source: with the ground truth as `.coco`.
        found: image id -> result, also of the images without objects.
        categories: with the ids of the annotation file.
        kind: "bbox", "segm" or "keypoints".
        sigmas: of the object keypoint similarity, one per point; None = COCO's own.
    """
    rows = [row for image_id, one in found.items() for row in one.to_coco(image_id, categories)]
    metrics = evaluate_coco(source.coco, rows, kind, image_ids=list(found), sigmas=sigmas)
    per_class, table = metrics.pop("per_class"), metrics.pop("table")
    return Report(metrics, per_class, table, rows)
