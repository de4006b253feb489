"""Polygons cut to a picture."""

import numpy as np


def clip_polygon(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The part of a polygon that lies in the picture (Sutherland and Hodgman, 1974).

    Where the part falls into several pieces, they stay joined by edges along the border, which
    enclose no area. The official code moves outside points to the border one by one instead, which
    adds area at the corners of the picture.

    Args:
        polygon: (M, 2) pixels (x, y).
        size: (H, W) of the picture.

    Returns:
        (M', 2) of the same type; (0, 2) where nothing is left.
    """
    points = np.asarray(polygon)
    for axis, limit in ((0, size[1]), (1, size[0])):
        points = _keep(points, points[:, axis])
        points = _keep(points, limit - points[:, axis])
    if len(points) < 3:
        return np.zeros((0, 2), np.asarray(polygon).dtype)
    # intersections are computed, so they may miss the border by a rounding error
    return np.clip(points, 0, np.asarray(size[::-1], points.dtype))


def _keep(points: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Cuts at distance 0 (positive inside); (M, 2), (M,) -> (M', 2)."""
    if len(points) == 0 or (distance >= 0).all():
        return points
    if (distance <= 0).all():
        return points[:0]
    following, distance_next = np.roll(points, -1, 0), np.roll(distance, -1)
    crosses = (distance >= 0) != (distance_next >= 0)
    step = distance / np.where(crosses, distance - distance_next, 1)
    crossing = points + (following - points) * step[:, None]
    both = np.stack([points, crossing.astype(points.dtype)], 1)  # (M, 2, 2), in walking order
    return both[np.stack([distance >= 0, crosses], 1)]
