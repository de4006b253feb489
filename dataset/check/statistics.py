"""Numbers of labels: lines and diagrams."""

from collections.abc import Mapping, Sequence

import numpy as np

from dataset.check.checked import Panel, columns, distribution

SMALL, MEDIUM = 32**2, 96**2  # areas, pixels: COCO's sizes
TOLERANCE = 1.0  # pixels that a box may reach out of its picture unremarked
MAX_BARS = 40  # of classes in a diagram


def label_statistics(
    boxes: np.ndarray, labels: np.ndarray, image: np.ndarray, num_images: int, names: Mapping
) -> tuple[list[str], list[Panel]]:
    """Objects per class, per image and by size.

    Args:
        boxes: (N, 4) xyxy pixels.
        labels: (N,) keys of `names`.
        image: (N,) number of the image of each.
        names: label -> class name.
    """
    per_class = {name: int((labels == label).sum()) for label, name in names.items()}
    ordered = sorted(per_class.items(), key=lambda row: -row[1])
    per_image = np.bincount(image, minlength=num_images)
    sides = boxes[:, 2:] - boxes[:, :2]
    area = sides.prod(1)
    small, medium = (area < SMALL).sum(), ((area >= SMALL) & (area < MEDIUM)).sum()
    share = 100 / max(len(area), 1)
    absent = sum(not count for _, count in ordered)
    lines = [
        f"{len(labels)} objects; {len(names)} classes"
        + (f", {absent} of them absent" * (absent > 0)),
        distribution("objects per image", per_image),
        f"boxes: {small * share:.0f} % small (below 32x32), {medium * share:.0f} % medium, "
        f"{(len(area) - small - medium) * share:.0f} % large (96x96 and more)",
        *columns([f"{count:>7} {name}" for name, count in ordered if count]),
    ]
    panels = [
        bars("objects per class", ordered),
        Panel("objects per image", per_image),
        Panel("box size: square root of the area, pixels", np.sqrt(area), logarithmic=True),
        Panel("box shape: width / height", sides[:, 0] / sides[:, 1], logarithmic=True),
    ]
    return lines, panels


def repeats(rows: np.ndarray) -> np.ndarray:
    """(N, K) -> (N,) bool, which rows have stood before."""
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)] != np.arange(len(rows))


def bars(title: str, rows: Sequence[tuple[str, float]]) -> Panel:
    """Bars of the largest, and one for all others."""
    shown, others = list(rows[:MAX_BARS]), rows[MAX_BARS:]
    if others:
        shown.append((f"{len(others)} others", sum(value for _, value in others)))
    return Panel(title, np.array([value for _, value in shown]), tuple(name for name, _ in shown))
