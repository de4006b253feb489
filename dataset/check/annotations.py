"""Checks the annotation files of COCO and the sets of a VOCdevkit."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dataset.check.report import (
    TOLERANCE,
    Checked,
    ImageEntry,
    Panel,
    bars,
    distribution,
    label_statistics,
    repeats,
)
from dataset.coco_format import (
    CocoFile,
    Parts,
    all_texts,
    annotation_path,
    open_split,
    read_outline,
)
from dataset.coco_keypoint import points_of
from dataset.coco_rows import NO_ID
from dataset.coco_segmentation import open_outlines
from dataset.voc_detection import VOC_CLASSES, VocDetection, parse_voc_sets
from utils.categories import Skeleton
from utils.cli import log
from utils.errors import UserError
from utils.files import shown
from utils.masks import polygons_to_rle, rle_to_mask
from utils.visualize import draw_detections, draw_keypoints, draw_masks

NUM_WORDS = 30  # most frequent ones that are drawn


def check_coco_files(
    root: Path, splits: Sequence[str], kinds: Sequence[str]
) -> dict[str, list[Checked]]:
    """Image folder -> the findings of its annotation files.

    Of several files those that are missing are reported and left out.

    Args:
        splits: "train", "val" or both.
        kinds: see `check_coco`.
    """
    groups: dict[str, list[Checked]] = {}
    for split in splits:
        for kind in kinds:
            path = annotation_path(root, split, kind)
            if len(splits) * len(kinds) > 1 and root.is_dir() and not path.is_file():
                log(f"notice: no {path}")
                continue
            groups.setdefault(f"{split}2017", []).append(check_coco(root, split, kind))
    if not groups:
        raise UserError(f"no annotation file in {root.expanduser() / 'annotations'}")
    return groups


def check_parts(
    data: Parts, splits: Sequence[str], kinds: Sequence[str]
) -> dict[str, list[Checked]]:
    """Name of a part -> the findings of each kind of annotation that it has.

    Args:
        data: see `dataset.find_dataset.Dataset`.

    Raises:
        UserError: no part has any.
    """
    groups: dict[str, list[Checked]] = {}
    problems = []
    for split in splits:
        for kind in kinds:
            try:
                groups.setdefault(split, []).append(check_coco(data, split, kind))
            except UserError as error:
                problems.append(error)
    if not any(groups.values()):
        raise problems[0]
    for problem in problems:
        log(f"notice: {problem}")
    return {split: group for split, group in groups.items() if group}


def check_coco(root: Path | Parts, split: str, kind: str) -> Checked:
    """One annotation file, or one part of a dataset in another format.

    Args:
        kind: "instances", "person_keypoints" or "captions".

    Raises:
        UserError: there is no such file, or it is of another kind altogether.
    """
    file = open_split(root, split, kind)
    entries = [
        ImageEntry(file.image_words(i), file.image_folder / file.image_name(i), file.image_size(i))
        for i in range(len(file.image_ids))
    ]
    for entry in entries:
        if 0 in entry.size:
            file.errors.add("size_unstated", entry.name)
    name = str(file.path) if isinstance(root, Path) else f"{split} {kind}"
    checked = Checked(name, file.errors, entries, [])
    _note_ids(file)
    CHECKS[kind](checked, file)
    return checked


def _check_instances(checked: Checked, file: CocoFile) -> None:
    rows = np.flatnonzero(file.arrays["usable"] & (file.class_ids > 0))
    _note_boxes(file, rows)
    # outlines, those of crowds too
    outlines, place = open_outlines(file), file.image_of_rows()
    crowds = np.flatnonzero(file.arrays["iscrowd"])
    for row in crowds.tolist():
        read_outline(file.outline_text(row), file.describe(row, place[row]), file.errors)
    points = outlines.num_points()[rows]
    per_image = np.bincount(place[rows], minlength=len(file.image_ids))
    for number in np.flatnonzero(per_image == 0):
        file.errors.add("empty", checked.images[number].name)
    # statistics
    names, labels, boxes = file.categories.names, file.class_ids[rows], file.boxes(rows)
    lines, panels = label_statistics(boxes, labels, place[rows], len(per_image), names)
    checked.summary = [
        f"{len(per_image)} images, {len(place)} annotations, {len(crowds)} of crowds",
        distribution("points per outline", points[points > 0]),
        *lines,
    ]
    checked.panels = [*panels, Panel("points per outline", points[points > 0])]

    def draw(number: int, picture: np.ndarray) -> np.ndarray:
        mine = rows[place[rows] == number]
        words = [names[k] for k in file.class_ids[mine].tolist()]
        masks = [_mask(outlines.parts(row), picture.shape[:2]) for row in mine.tolist()]
        if masks:
            picture = draw_masks(picture, np.stack(masks), words)
        return draw_detections(picture, file.boxes(mine), words)

    checked.draw, checked.drawable = draw, np.flatnonzero(per_image).tolist()


def _check_keypoints(checked: Checked, file: CocoFile) -> None:
    # the skeletons of the file
    skeletons: dict[int, Skeleton] = {}  # by class id
    rows_of_file = {row["id"]: row for row in file.category_rows}
    for class_id, source_id in file.categories.source_ids.items():
        try:
            if rows_of_file[source_id].get("keypoints"):
                skeletons[class_id] = Skeleton.from_coco(rows_of_file[source_id])
        except ValueError as error:
            file.errors.add("categories", "categories", str(error))
    posed = np.isin(file.class_ids, list(skeletons))
    # objects with a labelled point
    place, labelled = file.image_of_rows(), file.arrays["num_labelled"]
    rows = np.flatnonzero(file.arrays["usable"] & posed & (labelled > 0))
    _note_boxes(file, rows)
    points = {row: points_of(file, row) for row in rows.tolist()}
    for row, xyv in points.items():
        height, width = file.image_size(place[row])
        far = ((xyv[:, :2] < 0) | (xyv[:, :2] > [width or np.inf, height or np.inf])).any(1)
        for joint in np.flatnonzero(far & (xyv[:, 2] > 0)):
            where = file.describe(row, place[row])
            file.errors.add("point_outside", where, f"point {joint} at {xyv[joint].tolist()}")
    # statistics
    seen = Counter(
        skeletons[int(file.class_ids[row])].names[joint]
        for row, xyv in points.items()
        for joint in np.flatnonzero(xyv[:, 2] > 0)
    )
    per_image = np.bincount(place[rows], minlength=len(file.image_ids))
    crowds = np.count_nonzero(posed & file.arrays["iscrowd"])
    checked.summary = [
        f"{len(per_image)} images, {np.count_nonzero(posed)} annotations, {crowds} of crowds, "
        f"{len(rows)} with a labelled point, on {np.count_nonzero(per_image)} images",
        distribution("labelled points per object", labelled[rows]),
    ]
    boxes = file.boxes(rows)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    checked.panels = [
        bars("objects on which a point is labelled", seen.most_common()),
        Panel("labelled points per object", labelled[rows]),
        Panel("objects with points per image", per_image),
        Panel("box size: square root of the area, pixels", np.sqrt(area), logarithmic=True),
    ]

    def draw(number: int, picture: np.ndarray) -> np.ndarray:
        for row in rows[place[rows] == number].tolist():
            edges = skeletons[int(file.class_ids[row])].edges
            picture = draw_keypoints(picture, points[row][None], edges, colors=[COLORS[row % 3]])
        return picture

    checked.draw, checked.drawable = draw, np.flatnonzero(per_image).tolist()


COLORS = ((255, 200, 0), (0, 190, 200), (240, 50, 230))


def _check_captions(checked: Checked, file: CocoFile) -> None:
    texts = all_texts(file.arrays, "caption")
    per_image = np.diff(file.arrays["first"])
    for number in np.flatnonzero(per_image == 0):
        file.errors.add("empty", checked.images[number].name, "no caption")
    words = Counter(word.strip(".,!?\"'").lower() for text in texts for word in text.split())
    words.pop("", None)
    lengths = np.array([len(text.split()) for text in texts], int)
    checked.summary = [
        f"{len(per_image)} images, {len(texts)} captions, {len(words)} different words",
        distribution("captions per image", per_image),
        distribution("words per caption", lengths),
    ]
    checked.panels = [
        bars("most frequent words", words.most_common(NUM_WORDS)),
        Panel("words per caption", lengths),
        Panel("captions per image", per_image),
    ]
    checked.draw = lambda number, picture: picture
    checked.drawable = np.flatnonzero(per_image).tolist()
    checked.title = lambda n: f"{checked.images[n].name}: {texts[file.arrays['first'][n]]}"


CHECKS: dict[str, Callable] = {
    "instances": _check_instances,
    "person_keypoints": _check_keypoints,
    "captions": _check_captions,
}


def _note_ids(file: CocoFile) -> None:
    ids, counts = np.unique(file.arrays["id"], return_counts=True)
    for annotation_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
        if annotation_id == NO_ID:
            file.errors.add("id_strange", f"{count} annotations", "no id that is a whole number")
        elif count > 1:
            file.errors.add("id_twice", f"annotation {annotation_id}", f"{count} times")


def _note_boxes(file: CocoFile, rows: np.ndarray) -> None:
    """Boxes that are usable, but odd: of the annotations `rows`, (n,)."""
    place, boxes = file.image_of_rows()[rows], file.boxes(rows)
    sizes = file.arrays["image_size"][place]  # (n, 2) (H, W), 0 if not stated

    def add(kind: str, i: int, more: str = "") -> None:
        where, bbox = file.describe(rows[i], place[i]), file.arrays["bbox"][rows[i]].tolist()
        file.errors.add(kind, where, f"bbox {bbox}{more}")

    keys = np.column_stack([place, file.class_ids[rows], boxes.round(2)])  # (n, 6)
    for i in np.flatnonzero(repeats(keys)):
        add("same_box", i)
    upper = np.where(sizes > 0, sizes, np.inf)[:, ::-1]
    far = (boxes[:, :2] < -TOLERANCE) | (boxes[:, 2:] > upper + TOLERANCE)
    for i in np.flatnonzero(far.any(1)):
        add("reaches_out", i, f" of a picture of {'x'.join(map(str, sizes[i].tolist()))} (HxW)")


def _mask(parts: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool; empty where there is no outline."""
    return rle_to_mask(polygons_to_rle(parts, size))


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
