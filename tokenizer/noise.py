"""Noise objects: the sequence augmentation of Pix2Seq (paper section 2.2; `data_utils.py`)."""

import math

import numpy as np


def _truncated_normal(rng: np.random.Generator, std: float, shape: tuple[int, ...]) -> np.ndarray:
    """Normal draws; those beyond two standard deviations (4.6 %) are left out."""
    size = math.prod(shape)
    kept = np.zeros(0, np.float32)
    while len(kept) < size:  # enough are drawn for once to do, mostly
        draws = rng.standard_normal(size + size // 10 + 8, np.float32)
        kept = np.concatenate([kept, draws[np.abs(draws) <= 2]])
    return std * kept[:size].reshape(shape)


def _boxes_at(centers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    half = sizes / 2
    return np.concatenate([centers - half, centers + half], axis=1)  # (N, 4)


def random_boxes(num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, 4) boxes in [0, 1]: uniform centres, sides |truncated normal 0.5|, independent."""
    centers = rng.random((num, 2), np.float32)
    return _boxes_at(centers, np.abs(_truncated_normal(rng, 0.5, (num, 2))))


def shifted_boxes(boxes: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, 4) boxes with the sizes of real ones at uniform centres."""
    chosen = _draw_rows(boxes, num, rng)
    return _boxes_at(rng.random((num, 2), np.float32), chosen[:, 2:] - chosen[:, :2])


def jittered_boxes(boxes: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, 4) near-duplicates: each edge moves by a truncated normal 0.05 of the box's side."""
    chosen = _draw_rows(boxes, num, rng)
    sides = chosen[:, 2:] - chosen[:, :2]
    moves = _truncated_normal(rng, 0.05, (num, 2, 2))  # corner, axis
    return chosen + (moves * sides[:, None]).reshape(-1, 4)


def _draw_rows(boxes: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """`num` rows without replacement from as many copies of `boxes` as that takes."""
    copies = -(-num // len(boxes))
    return boxes[rng.permutation(copies * len(boxes))[:num] % len(boxes)]


def noise_boxes(boxes: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes that hold no object, to be appended to the real ones.

    A uniform number of them are jittered duplicates of real boxes; of the rest about half are
    real boxes at another place and half are random. Without a real box all are random.

    Args:
        boxes: (N, 4) float32 real boxes in [0, 1] of the picture content (not of the padded
            input), in any coordinate order whose second half minus first half is the size.
        num: how many are wanted.

    Returns:
        (num, 4) float32 in [0, 1], in random order.
    """
    if len(boxes) == 0:
        noise = random_boxes(num, rng)
    else:
        num_duplicates = int(rng.integers(0, num + 1))
        num_bad = num - num_duplicates
        # officially as many of both kinds are made, and a random half of all of them is kept
        num_shifted = int(rng.hypergeometric(num_bad, num_bad, num_bad))
        noise = np.concatenate(
            [
                jittered_boxes(boxes, num_duplicates, rng),
                shifted_boxes(boxes, num_bad, rng)[:num_shifted],
                random_boxes(num_bad - num_shifted, rng),
            ]
        )[rng.permutation(num)]
    return np.minimum(np.maximum(noise, 0), 1)  # `np.clip` takes as long as all the rest
