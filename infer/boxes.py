"""The boxes for segmentation and keypoints: given by the caller, detected, or from a file.

A caller may leave out the classes of the boxes, or the boxes. An evaluation takes the boxes of the
ground truth, those that the same weights detect, or those of a COCO results file.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.batch import EvalBatch
from infer.batches import is_single, is_whole
from infer.detection import WHOLE_BUDGET, DetectionOptions, check_threshold, detect
from infer.results import Detections
from infer.trained_model import Encoded, TrainedModel
from utils.categories import Categories, check_class_names
from utils.cli import log
from utils.errors import UserError
from utils.files import fits, read_json, shown

Labels = Sequence[int | str] | int | str | None  # class ids or names, or one for all boxes

ADVICE = (
    "--boxes must be gt, detected or a COCO results file: a list of image_id, category_id, bbox "
    "and score"
)
FIELDS = {
    "image_id": (int, "a whole number"),
    "category_id": (int, "a whole number"),
    "bbox": (tuple[float, float, float, float], "4 finite numbers"),
    "score": (float, "a finite number"),
}


# ---- given by a caller -----------------------------------------------------------------------


def label_boxes(
    trained: TrainedModel,
    images: Sequence[Tensor],
    boxes: Sequence[np.ndarray],
    labels: Sequence[Labels] | None,
    scores: Sequence[np.ndarray | float] | None,
    encoded: Encoded | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray] | None]:
    """Checks the boxes that a caller gives and completes their classes and scores.

    Args:
        images: B uint8 (3, h, w) originals.
        boxes: B of (N, 4) xyxy original pixels.
        labels: B; None = ask the detection task, and take the first class if the weights do not
            know that task or know one class alone.
        scores: B of (N,), or one for all boxes; None = the probability of a class that was asked
            for, otherwise None.
        encoded: the images if they are encoded already.

    Returns:
        boxes (N, 4) float32, class ids (N,) and scores (N,) per image.

    Raises:
        ValueError: a box without an area in its image, or other numbers of scores than of boxes.
        UserError: labels that the weights do not know.
    """
    # Boxes and scores
    sizes = [tuple(image.shape[1:]) for image in images]
    boxes = [check_boxes(b, size) for b, size in zip(boxes, sizes, strict=True)]
    if scores is not None:
        scores = [check_scores(s, len(b)) for s, b in zip(scores, boxes, strict=True)]
    # Classes: those that the model says, those given, or the first one
    categories = trained.categories
    if labels is None and len(categories.names) > 1 and "detection" in trained.tasks:
        labels, probabilities = classify_boxes(trained, encoded or trained.encode(images), boxes)
        return boxes, labels, probabilities if scores is None else scores
    labels = [next(iter(categories.names))] * len(boxes) if labels is None else labels
    pairs = zip(labels, boxes, strict=True)
    return boxes, [class_ids(k, len(b), categories, trained.name) for k, b in pairs], scores


def check_box_values(boxes, labels: Labels, scores, threshold: float) -> None:
    """Refuses labels and scores without boxes, and an invalid threshold.

    Raises:
        ValueError: one of it.
    """
    if boxes is None and not (labels is None and scores is None):
        raise ValueError("labels and scores belong to boxes; give boxes, too")
    check_threshold(threshold)


def check_scores(scores: np.ndarray | float, num: int) -> np.ndarray:
    """(num,) float32 scores from one for each box, or from one for all.

    Raises:
        ValueError: another number of them, or values that are not finite numbers.
    """
    try:
        values = np.asarray(scores, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"scores must be numbers, got {shown(scores)}") from None
    if values.ndim == 0:
        values = np.full(num, values, np.float32)
    if values.shape != (num,):
        raise ValueError(f"scores must be one for each of the {num} boxes, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"scores must be finite, got {shown(values.tolist())}")
    return values


def check_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 4) float32 boxes; refuses boxes that contain no pixel of the image.

    Args:
        boxes: (N, 4) xyxy pixels.
        size: (H, W) of the image.

    Raises:
        ValueError: a box is not four finite numbers, has no area, or lies outside the image.
    """
    try:
        boxes = np.asarray(boxes, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"boxes must be numbers (N, 4), got {shown(boxes)}") from None
    if boxes.shape not in ((4,), (0,)) and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f"boxes must be xmin ymin xmax ymax (N, 4), got {boxes.shape}")
    boxes = boxes.reshape(-1, 4)
    inside = np.clip(boxes, 0, np.float32([size[1], size[0]] * 2))
    good = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    good &= (inside[:, 2:] > inside[:, :2]).all(1)
    if not good.all():
        raise ValueError(
            "boxes must be xmin ymin xmax ymax with an area inside the image "
            f"({size[1]} x {size[0]}), got {boxes[~good][0].tolist()}"
        )
    return boxes


def classify_boxes(
    trained: TrainedModel, encoded: Encoded, boxes: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predicts the class of each box with the detection task.

    Every box is the first object of an answer of its own.

    Args:
        boxes: B of (N, 4) xyxy original pixels.

    Returns:
        B of (N,) int64 class ids that have a name, and B of (N,) float32 their probabilities.
    """
    model, vocab = trained.model, trained.vocab
    tokenizer = trained.tokenizer("detection")
    # Only classes that have a name may be answered.
    named = torch.zeros(vocab.size, dtype=torch.bool, device=model.device)
    ids = list(trained.categories.names)
    named[[vocab.class0 + class_id - vocab.first_label for class_id in ids]] = True
    labels, probabilities = [], []
    for i, (geometry, of_image) in enumerate(zip(encoded.geometries, boxes, strict=True)):
        if len(of_image) == 0:
            labels.append(np.zeros(0, np.int64))
            probabilities.append(np.zeros(0, np.float32))
            continue
        # The prompt is that of detection and the four coordinates of the box.
        any_class = np.full(len(of_image), vocab.first_label + 1)
        objects = tokenizer.encode(geometry.boxes(of_image), any_class, geometry.size)
        coords = objects.reshape(-1, 5)[:, :4]
        prompt = np.column_stack([np.tile(tokenizer.prompt, (len(coords), 1)), coords])  # (N, 5)
        tokens, log_probs = model.generate(
            encoded.memory[i : i + 1],
            torch.from_numpy(prompt)[None].to(model.device),
            max_new_tokens=1,
            allowed=lambda _: named,
        )
        labels.append(tokens[:, 0].cpu().numpy() - vocab.class0 + vocab.first_label)
        probabilities.append(log_probs[:, 0].exp().cpu().numpy())
    return labels, probabilities


def class_ids(labels: Labels, num: int, categories: Categories, source: str) -> np.ndarray:
    """(num,) class ids from ids or names, or from one for all.

    Args:
        source: what knows these categories, for the message.

    Raises:
        ValueError: a label that is neither a name nor a whole number.
        UserError: a name or an id it does not know, or not as many labels as boxes.
    """
    if labels is None:
        raise ValueError("labels must be class ids or names for every image, got None for one")
    if is_single(labels):
        labels = [labels] * num
    labels = [k.item() if hasattr(k, "item") else k for k in labels]  # of numpy and torch
    strange = [k for k in labels if not (isinstance(k, str) or is_whole(k))]
    if strange:
        raise ValueError(f"labels must be class ids or names, got {shown(strange[0])}")
    if len(labels) != num:
        raise UserError(f"give one label for all boxes or one each: {len(labels)} for {num}")
    check_class_names([k for k in labels if isinstance(k, str)], categories.names.values(), source)
    ids = [categories.ids_of_names[k] if isinstance(k, str) else int(k) for k in labels]
    unknown = [i for i in ids if i not in categories.names]
    if unknown:
        raise UserError(f"{source} knows no class id {unknown[0]}; try a name")
    return np.array(ids, np.int64)


# ---- of an evaluation ------------------------------------------------------------------------


def check_box_source(trained: TrainedModel, boxes: str | Path) -> None:
    """Checks a box source as far as possible without a dataset; see `BoxSource`.

    Raises:
        UserError: there are none.
    """
    if str(boxes) == "detected":
        trained.require("detection")
    elif str(boxes) != "gt" and not Path(boxes).expanduser().is_file():
        raise UserError(f"cannot read {boxes} (no such file); {ADVICE}")


class BoxSource:
    """The boxes for which an evaluation predicts masks or keypoints.

    Args:
        source: of the task's dataset, with the ground truth.
        categories: the classes that count.
        boxes: "gt" = those of the ground truth at score 1; "detected" = what the same weights
            detect; or a COCO results file of boxes.
        options: of the detection.
        most: at most so many of an image, those that score best; of the ground truth all.

    Raises:
        UserError: a file that cannot be used.
    """

    def __init__(
        self,
        trained: TrainedModel,
        source,
        categories: Categories,
        boxes: str | Path,
        options: DetectionOptions = WHOLE_BUDGET,
        *,
        most: int | None = None,
    ):
        self.trained, self.categories, self.options, self.most = trained, categories, options, most
        self.is_truth, self.is_detected = str(boxes) == "gt", str(boxes) == "detected"
        self._known: dict[int, Detections] = {}
        if self.is_truth:
            self._known = true_boxes(source, categories)
        elif self.is_detected:
            trained.require("detection")
        else:
            known = read_boxes(Path(boxes), source.image_ids.tolist(), categories)
            self._known = {image_id: rows.best(most) for image_id, rows in known.items()}

    def find(self, batch: EvalBatch, encoded: Encoded | None = None) -> list[Detections]:
        """The boxes of the images of a batch.

        Args:
            encoded: the images if they are encoded already.
        """
        if not self.is_detected:
            return [self._known[image_id] for image_id in batch.image_ids]
        found = detect(
            self.trained,
            batch.images,
            self.options,
            encoded=encoded,
            image_ids=batch.image_ids,
            categories=self.categories,
        )
        return [one.best(self.most) for one in found]


def true_boxes(source, categories: Categories) -> dict[int, Detections]:
    """Image id -> the objects of the ground truth, at score 1.

    Args:
        source: of segmentation or keypoints.
        categories: the classes that count, with the ids of the annotation file.
    """
    ids = source.categories.source_ids
    truth = {}
    for index, image_id in enumerate(source.image_ids.tolist()):
        boxes, labels = source.objects(index)
        category_ids = [ids[int(label)] for label in labels]
        truth[image_id] = _named_objects(
            boxes, category_ids, np.ones(len(boxes), np.float32), categories
        )
    return truth


def read_boxes(path: Path, image_ids: list[int], categories: Categories) -> dict[int, Detections]:
    """Reads a COCO results file of boxes: image id -> objects.

    Classes that `categories` does not have and boxes without an area are left out.

    Raises:
        UserError: no such file, not of this format, or about other images.
    """
    rows = read_results(path)
    image = np.array([row["image_id"] for row in rows], np.int64)
    category_ids = np.array([row["category_id"] for row in rows], np.int64)
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(len(rows), 4)
    scores = np.array([row["score"] for row in rows], np.float32)
    # What cannot be used is refused or left out.
    others = sorted(set(image.tolist()) - set(image_ids))
    if others:
        raise UserError(f"{path} has boxes of images that the data lacks, such as id {others[0]}")
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    flat = ~(boxes[:, 2:] > boxes[:, :2]).all(1)
    if flat.any():
        log(f"notice: {path}: left out: boxes without an area, {flat.sum()}")
    # The objects of each image, also of images without any.
    rows_of = {i: np.flatnonzero(~flat & (image == i)) for i in image_ids}
    return {
        i: _named_objects(boxes[rows], category_ids[rows].tolist(), scores[rows], categories)
        for i, rows in rows_of.items()
    }


def read_results(path: Path) -> list[dict]:
    """Reads the rows of a results file; every row has the `FIELDS`.

    Raises:
        UserError: no such file, or not of this format.
    """
    rows = read_json(path, ADVICE)
    if not isinstance(rows, list):
        raise UserError(f"cannot read the boxes in {path}: it holds no list; {ADVICE}")
    if not rows:
        raise UserError(f"{path} holds no boxes, so there is nothing to judge; {ADVICE}")
    for number, row in enumerate(rows):
        for name, (kind, wanted) in FIELDS.items():
            value = row.get(name) if isinstance(row, dict) else None
            if kind is int and isinstance(value, float) and value.is_integer():
                value = row[name] = int(value)  # as pandas and numpy write whole numbers
            if not fits(value, kind) or (kind is int and abs(value) >= 2**63):
                raise UserError(
                    f"cannot read the boxes in {path}: row {number}: {name} must be {wanted}, got "
                    f"{shown(value)}; {ADVICE}"
                )
    return rows


def _named_objects(
    boxes: np.ndarray, category_ids: Sequence[int], scores: np.ndarray, categories: Categories
) -> Detections:
    """Objects with the ids of an annotation file as `Detections`, without unknown classes."""
    class_of = {number: class_id for class_id, number in categories.source_ids.items()}
    labels = np.array([class_of.get(number, 0) for number in category_ids], np.int64)
    known = np.flatnonzero(labels > 0)
    names = [categories.names[int(label)] for label in labels[known]]
    return Detections(boxes[known], labels[known], scores[known], names)
