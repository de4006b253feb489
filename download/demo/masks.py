"""The visible part of a thing as COCO stores it: polygons or run lengths, area and box."""

from dataclasses import dataclass

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from download.demo.render import SS

MIN_PART = 12  # smallest polygon worth an annotation, image pixels
MIN_HOLE = 25  # smaller holes are filled, image pixels
MAX_CUTS = 6
FINE = 2 * SS  # outlines run between oversampled pixels: on a grid twice as fine
TOLERANCE = 2.1  # of a simplified outline, on that grid


@dataclass
class Region:
    """Segmentation as COCO writes it, and what it decodes to.

    Attributes:
        area: pixels of the mask.
        box: x, y, width, height of the mask.
        mask: (H, W) uint8.
    """

    segmentation: list[list[float]] | dict
    area: float
    box: list[float]
    mask: np.ndarray


def _outlines(mask: np.ndarray, cuts: int, smallest: float) -> list[np.ndarray]:
    """Outer contours of a mask; a piece with a hole is cut in two through the hole."""
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    found = []
    for k, contour in enumerate(contours):
        if tree[0, k, 3] >= 0 or cv2.contourArea(contour) < smallest * FINE**2:
            continue
        hole, holes = tree[0, k, 2], []
        while hole >= 0:
            holes.append(contours[hole])
            hole = tree[0, hole, 0]
        largest = max(holes, key=cv2.contourArea, default=None)
        if largest is None or cv2.contourArea(largest) < MIN_HOLE * FINE**2 or cuts == 0:
            found.append(contour[:, 0])
            continue
        piece = np.zeros_like(mask)
        cv2.drawContours(piece, [contour], -1, 1, cv2.FILLED)
        piece &= mask
        column = int(np.round(largest[:, 0, 0].mean()))
        left, right = piece.copy(), piece
        left[:, column + 2 :] = 0  # the halves overlap a little: no gap between their polygons
        right[:, : column - 1] = 0
        found += _outlines(left, cuts - 1, smallest) + _outlines(right, cuts - 1, smallest)
    return found


def find_region(visible: np.ndarray, *, crowd: bool = False) -> Region:
    """The annotation of a visible part.

    Args:
        visible: (H * SS, W * SS) bool.
        crowd: store uncompressed run lengths instead of polygons, as COCO does for groups.
    """
    h, w = visible.shape[0] // SS, visible.shape[1] // SS
    if crowd:
        share = cv2.resize(visible.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
        mask = np.asfortranarray(share >= 0.5)
        pixels = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(pixels, prepend=False))
        counts = np.diff(edges, prepend=0, append=pixels.size).tolist()
        segmentation = {"counts": counts, "size": [h, w]}
        rle = coco_mask.encode(mask.astype(np.uint8))
    else:
        x, y, bw, bh = cv2.boundingRect(visible.astype(np.uint8))
        fine = visible[y : y + bh, x : x + bw].astype(np.uint8).repeat(2, 0).repeat(2, 1)
        # one pixel more to the left and the top: the outline through the centres of the border
        # pixels then is the line between the pixels inside and those outside
        fine = cv2.dilate(np.pad(fine, ((1, 0), (1, 0))), np.ones((2, 2), np.uint8), anchor=(0, 0))
        segmentation = []
        for outline in _outlines(fine, MAX_CUTS, MIN_PART) or _outlines(fine, 0, 0.5):
            points = cv2.approxPolyDP(outline, TOLERANCE, True)[:, 0]
            if len(points) >= 3:
                points = points / FINE + (x / SS, y / SS)
                segmentation.append(np.round(points, 2).ravel().tolist())
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, h, w))
    area, box = float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
    return Region(segmentation, area, box, coco_mask.decode(rle))
