"""The worst pictures: ground truth beside prediction, from the files of the dataset."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import toBbox

from infer.report.matching import Judged, Matches
from utils.categories import Skeleton
from utils.errors import UserError
from utils.visualize import contact_sheet, draw_detections, draw_keypoints, draw_masks

SIDE = 520  # pixels of the longer side of a picture
ENLARGE = 3.0  # times at most, so that names can be read in small pictures
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)  # colours that everybody tells apart


def readable(source, image_ids: Iterable, most: int) -> Iterator[tuple[object, np.ndarray, str]]:
    """Reads the first `most` of these images that can still be read.

    Yields:
        image id, (H, W, 3) uint8 RGB, name of the file.
    """
    index_of = {image_id: i for i, image_id in enumerate(_plain(source.image_ids))}
    count = 0
    for image_id in image_ids:
        if count == most:
            return
        try:
            sample = source.read(index_of[image_id])
        except (UserError, OSError):  # it was there when it was evaluated
            continue
        count += 1
        image = sample.image
        if image.shape[:2] != tuple(sample.orig_size):
            size = sample.orig_size[::-1]
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        yield image_id, image, source.image_path(index_of[image_id]).name


def _plain(image_ids) -> list:
    return image_ids.tolist() if hasattr(image_ids, "tolist") else list(image_ids)


def worst_images(counts: pd.DataFrame) -> list:
    """Image ids by falling number of wrong results and missed objects; only those with errors."""
    total = counts["wrong"] + counts["missed"]
    order = np.lexsort((np.arange(len(total)), -counts["missed"], -total))
    return [counts.index[i] for i in order if total.iloc[i] > 0]


def draw_pair(
    image: np.ndarray,
    image_id: object,
    judged: Judged,
    matches: Matches,
    threshold: float,
    skeleton: Skeleton | None = None,
) -> np.ndarray:
    """Ground truth on the left, results from a score threshold on at the right.

    Objects that no result finds and results that find no object are orange, the others blue.
    """
    scale = min(ENLARGE, SIDE / max(image.shape[:2]))
    objects = matches.objects[matches.objects["image_id"] == image_id]
    objects = objects[~objects["ignored"]]
    found = matches.counted()
    found = found[(found["image_id"] == image_id) & (found["score"] >= threshold)]
    truth = judged.open([]).cocoGt
    left = [truth.anns[number] for number in objects.index]
    right = [judged.rows[number] for number in found.index]
    scores = found["score"].tolist()
    if judged.kind == "keypoints":
        right = [row | {"bbox": box_of_points(row["keypoints"])} for row in right]
    if judged.kind == "segm":
        right = [row | {"bbox": toBbox(row["segmentation"]).tolist()} for row in right]
    hit = (objects["score"] >= threshold).tolist()
    pairs = (left, hit, None), (right, (found["object"] > 0).tolist(), scores)
    pictures = []
    for rows, good, numbers in pairs:
        names = [judged.names[row["category_id"]] for row in rows]
        colors = [RIGHT if one else WRONG for one in good]
        picture = image
        if judged.kind == "segm" and rows:
            masks = [_mask(row, truth, image.shape[:2]) for row in rows]
            picture = draw_masks(image, np.array(masks), names, colors=colors)
        picture = _scaled(picture, scale)
        if judged.kind == "keypoints" and skeleton is not None:
            points = [np.reshape(row["keypoints"], (-1, 3)) * [scale, scale, 1] for row in rows]
            points = np.reshape(points, (-1, len(skeleton), 3))
            picture = draw_keypoints(picture, points, skeleton.edges, colors=colors or [RIGHT])
        boxes = np.reshape([row["bbox"] for row in rows], (-1, 4)) * scale
        boxes[:, 2:] += boxes[:, :2]
        pictures.append(draw_detections(picture, boxes, names, numbers, colors=colors))
    return contact_sheet(pictures, 2, max_side=SIDE)


def _mask(row: dict, truth: COCO, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool; empty where an annotation is about a picture of another size."""
    mask = truth.annToMask(row).astype(bool)
    return mask if mask.shape == size else np.zeros(size, bool)


def box_of_points(points: list[float]) -> list[float]:
    """xywh around the points that are visible, or around all."""
    points = np.reshape(points, (-1, 3))
    shown = points[points[:, 2] > 0] if (points[:, 2] > 0).any() else points
    low, high = shown[:, :2].min(0), shown[:, :2].max(0)
    return [*low.tolist(), *(high - low).tolist()]


def _scaled(image: np.ndarray, scale: float) -> np.ndarray:
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def small_picture(image: np.ndarray, side: int = 360) -> np.ndarray:
    """The picture with a longer side of at most `side` pixels."""
    return _scaled(image, min(1.0, side / max(image.shape[:2])))


def encode(image: np.ndarray, kind: str) -> bytes:
    """(H, W, 3) uint8 RGB as the content of a "PNG" or "JPEG" file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind, quality=88)
    return content.getvalue()
