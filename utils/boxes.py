"""Box arithmetic for numpy arrays; for tensors use `torchvision.ops`."""

import numpy as np
import torch
from torchvision.ops import box_iou


def pairwise_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of (N, 4) and (M, 4) xyxy boxes -> (N, M) float64.

    Computed in double precision, so that a threshold decides the same way everywhere; empty and
    reversed boxes overlap nothing.
    """
    first, second = (
        torch.from_numpy(np.asarray(x, np.float64).reshape(-1, 4)) for x in (boxes, others)
    )
    return np.nan_to_num(box_iou(first, second).numpy(), nan=0.0)
