"""Coordinates and points as tokens, and back.

A coordinate in [0, 1] becomes a bin (official `utils.py`: quantize, dequantize). Segmentation and
keypoints share the prompt of one object, and points as tokens.
"""

import numpy as np

from tokenizer.vocabulary import Vocabulary

PROMPT_LEN = 6


def quantize(coords: np.ndarray, num_bins: int, *, floor: bool = False) -> np.ndarray:
    """Nearest bin, ties to the even one, clamped to [0, num_bins - 1].

    Args:
        coords: any shape, 0 and 1 are the two edges of the image; NaN counts as 0.
        floor: take the bin below instead (`Vocabulary.floors`).

    Returns:
        int64 bins of the same shape.
    """
    # Clamp first: the result is the same, and huge values cannot overflow. `fmax` drops NaN.
    scaled = np.fmin(np.fmax(np.asarray(coords, dtype=np.float32), 0), 1) * np.float32(num_bins - 1)
    return (np.floor(scaled) if floor else np.rint(scaled)).astype(np.int64)


def dequantize(bins: np.ndarray, num_bins: int, *, floor: bool = False) -> np.ndarray:
    """Inverse of `quantize` up to half a bin: float32 coordinates, bin 0 is 0 and the last is 1.

    Args:
        floor: the bins were taken below: each is decoded half a bin higher, so the last one lies
            beyond 1.
    """
    shift = np.float32(0.5 if floor else 0)
    return (np.asarray(bins).astype(np.float32) + shift) / np.float32(num_bins - 1)


def instance_prompt(
    vocab: Vocabulary, task: str, boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """`task ymin xmin ymax xmax class` per object (official `build_instance_prompt_seq`).

    Args:
        boxes, labels: (N, 4) xyxy pixels of the model input; (N,) class ids (>= 1), or 0 for a
            padding object, whose prompt is all padding.
        size: (H, W) of the model input.

    Returns:
        (N, 6) token ids.
    """
    labels = np.asarray(labels, dtype=np.int64)
    corners = np.asarray(boxes, np.float32).reshape(-1, 2, 2)  # (N, 2, 2) of (x, y)
    tokens = np.empty((len(labels), PROMPT_LEN), np.int64)
    tokens[:, 0] = vocab.prompts[task]
    tokens[:, 1:5] = points_to_tokens(vocab, corners, size).reshape(-1, 4)
    tokens[:, 5] = vocab.class0 + labels
    tokens[labels == 0] = vocab.pad
    return tokens


def points_to_tokens(
    vocab: Vocabulary,
    points: np.ndarray,
    size: tuple[int, int],
    invisible: np.ndarray | None = None,
) -> np.ndarray:
    """Points as `y x` coordinate tokens; what lies outside the input is moved to its edge.

    Args:
        points: (..., 2) of (x, y), pixels of the model input.
        size: (H, W) of the model input.
        invisible: (...) bool; both tokens of such a point are the invisible one.

    Returns:
        (..., 2) token ids, y first.
    """
    yx = np.asarray(points, np.float32)[..., ::-1] / np.array(size, np.float32)
    tokens = vocab.coord0 + quantize(yx, vocab.num_bins)
    if invisible is not None:
        tokens[np.asarray(invisible, bool)] = vocab.invisible
    return tokens


def tokens_to_points(vocab: Vocabulary, tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Inverse of `points_to_tokens` for any tokens; half a point at the end is dropped.

    Args:
        tokens: (..., T) ids, `y x y x …`.
        size: (H, W) of the model input.

    Returns:
        (..., T // 2, 2) float32 (x, y) in pixels of the model input, NaN where the token is
        padding, separator or invisible. Not clipped: an id that is no coordinate gives a value
        far outside, as officially.
    """
    tokens = np.asarray(tokens, np.int64)
    pairs = tokens[..., : tokens.shape[-1] // 2 * 2].reshape(*tokens.shape[:-1], -1, 2)
    points = dequantize(pairs - vocab.coord0, vocab.num_bins) * np.array(size, np.float32)
    points[np.isin(pairs, (vocab.pad, vocab.separator, vocab.invisible))] = np.nan
    return points[..., ::-1]
