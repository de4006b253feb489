"""Checks the sets of a VOCdevkit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset.check.report import TOLERANCE, Checked, ImageEntry, label_statistics, repeats
from dataset.voc_detection import VOC_CLASSES, VocDetection, parse_voc_sets
from utils.files import shown
from utils.visualize import draw_detections


def check_voc_sets(
    root: Path, sets: str, classes: Sequence[str] | None
) -> dict[str, list[Checked]]:
    """Name of a set -> its findings; arguments as those of `VocDetection`."""
    return {
        f"VOC{year} {split}": [check_voc(root, year, split, classes)]
        for year, split in parse_voc_sets(sets)
    }


def check_voc(root: Path, year: str, split: str, classes: Sequence[str] | None = None) -> Checked:
    """The images of VOC<year>/ImageSets/Main/<split>.txt and their annotations.

    Raises:
        UserError: there is no such set, or nothing in it can be used.
    """
    source = VocDetection(root, f"{year}:{split}", classes=classes, skip_bad=True)
    numbers = range(len(source))
    entries = [
        ImageEntry(f"image {source.image_ids[i]}", source.image_path(i), source.stated_size(i))
        for i in numbers
    ]
    # objects that are usable, but odd
    found = [source.objects(i) for i in numbers]
    for entry, (boxes, labels, _) in zip(entries, found, strict=True):
        if 0 in entry.size:
            source.annotation_errors.add("size_unstated", entry.name)
        if not len(labels):
            source.annotation_errors.add("empty", entry.name)
        upper = np.where(entry.size, entry.size, np.inf)[::-1]
        far = (boxes[:, :2] < -TOLERANCE).any(1) | (boxes[:, 2:] > upper + TOLERANCE).any(1)
        for i in np.flatnonzero(far):
            size = "x".join(map(str, entry.size))
            detail = f"box {boxes[i].tolist()} of a picture of {size} (HxW)"
            source.annotation_errors.add("reaches_out", entry.name, detail)
        for i in np.flatnonzero(repeats(np.column_stack([labels, boxes]))):
            source.annotation_errors.add("same_box", entry.name, f"box {boxes[i].tolist()}")
    _note_classes(source)
    title = f"VOC{year} {split}"
    if not found:
        return Checked(title, source.annotation_errors, [], ["0 images"])
    # statistics
    boxes, labels, difficult = (np.concatenate(column) for column in zip(*found, strict=True))
    image = np.repeat(np.arange(len(found)), [len(row[1]) for row in found])
    lines, panels = label_statistics(boxes, labels, image, len(found), source.categories.names)
    lines = [f"{len(found)} images, {difficult.sum()} difficult objects", *lines]
    checked = Checked(title, source.annotation_errors, entries, lines, panels)

    def draw(number: int, picture: np.ndarray) -> np.ndarray:
        boxes, labels, _ = found[number]
        return draw_detections(
            picture, boxes, [source.categories.names[k] for k in labels.tolist()]
        )

    checked.draw, checked.drawable = draw, np.unique(image).tolist()
    return checked


def _note_classes(source: VocDetection) -> None:
    """Where most classes are those of Pascal VOC, the others may be misspelt."""
    names = set(source.categories.names.values())
    others = names - set(VOC_CLASSES)
    if others and len(names) > 2 * len(others):
        for name in sorted(others):
            source.annotation_errors.add("class_of_none", f"class {shown(name)}")
