"""Checks the annotation files of COCO and the sets of a VOCdevkit."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dataset.annotation_errors import AnnotationErrors
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
from dataset.coco_captioning import read_captions
from dataset.coco_format import (
    ImageTable,
    Objects,
    coco_paths,
    describe,
    read_annotations,
    read_images,
    read_keypoints,
    read_numbers,
    read_objects,
    read_outline,
)
from dataset.voc_detection import VOC_CLASSES, VocDetection, parse_voc_sets
from utils.categories import Categories, Skeleton
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
            path = root.expanduser() / "annotations" / f"{kind}_{split}2017.json"
            if len(splits) * len(kinds) > 1 and root.is_dir() and not path.is_file():
                log(f"notice: no {path}")
                continue
            groups.setdefault(f"{split}2017", []).append(check_coco(root, split, kind))
    if not groups:
        raise UserError(f"no annotation file in {root.expanduser() / 'annotations'}")
    return groups


def check_coco(root: Path, split: str, kind: str) -> Checked:
    """One annotation file.

    Args:
        kind: "instances", "person_keypoints" or "captions".

    Raises:
        UserError: there is no such file, or it is of another kind altogether.
    """
    path, folder = coco_paths(root, split, kind=kind)
    errors = AnnotationErrors(path, report=True)
    content = read_annotations(path, kind, errors)
    images = read_images(content["images"], errors)
    stated = map(tuple, images.sizes.tolist())
    names = zip(images.ids.tolist(), images.file_names.tolist(), stated, strict=True)
    entries = [ImageEntry(f"image {i}", folder / name, size) for i, name, size in names]
    for entry in entries:
        if 0 in entry.size:
            errors.add("size_unstated", entry.name)
    checked = Checked(str(path), errors, entries, [])
    _note_ids(content["annotations"], errors)
    CHECKS[kind](checked, content, images)
    return checked


def _check_instances(checked: Checked, content: dict, images: ImageTable) -> None:
    errors, categories = checked.errors, _categories(content, checked.errors)
    # boxes
    objects = _objects(content["annotations"], images, categories, errors)
    place = np.searchsorted(images.ids, objects.image)  # (N,) number of the image
    _note_boxes(objects, images.sizes[place], errors)
    sizes = [tuple(size) for size in images.sizes.tolist()]
    # outlines, those of crowds too
    points = np.zeros(len(objects.rows), int)
    for i, (row, number) in enumerate(zip(objects.rows, place.tolist(), strict=True)):
        parts = read_outline(row, errors, size=sizes[number])
        if not parts:
            errors.add("no_outline", describe(row))
        points[i] = sum(len(part) for part in parts if not isinstance(part, dict))
    crowds = [row for row in content["annotations"] if row.get("iscrowd")]
    for row in crowds:
        read_outline(row, errors)
    for number in np.flatnonzero(np.bincount(place, minlength=len(sizes)) == 0):
        errors.add("empty", checked.images[number].name)
    # statistics
    names = {categories.source_ids[i]: name for i, name in categories.names.items()}
    lines, panels = label_statistics(objects.boxes, objects.category, place, len(sizes), names)
    checked.summary = [
        f"{len(sizes)} images, {len(content['annotations'])} annotations, {len(crowds)} of crowds",
        distribution("points per outline", points[points > 0]),
        *lines,
    ]
    checked.panels = [*panels, Panel("points per outline", points[points > 0])]
    of_image = _grouper(place)

    def draw(number: int, picture: np.ndarray) -> np.ndarray:
        rows = of_image(number)
        labels = [names[k] for k in objects.category[rows].tolist()]
        masks = [_mask(objects.rows[i], picture.shape[:2]) for i in rows]
        if masks:
            picture = draw_masks(picture, np.stack(masks), labels)
        return draw_detections(picture, objects.boxes[rows], labels)

    checked.draw, checked.drawable = draw, np.unique(place).tolist()


def _check_keypoints(checked: Checked, content: dict, images: ImageTable) -> None:
    errors, categories = checked.errors, _categories(content, checked.errors)
    # the skeletons of the file, and the annotations that fit them
    skeletons: dict[int, Skeleton] = {}
    for row in content["categories"]:
        try:
            if row.get("keypoints"):
                skeletons[row["id"]] = Skeleton.from_coco(row)
        except (ValueError, KeyError, AttributeError) as error:
            errors.add("categories", "categories", str(error))
    rows = []
    for category, skeleton in skeletons.items():
        mine = [row for row in content["annotations"] if row["category_id"] == category]
        _, good = read_keypoints(mine, len(skeleton), errors)
        rows += [row for row, is_good in zip(mine, good, strict=True) if is_good]
    category, good = read_numbers(content["annotations"], "category_id", errors)
    unknown = good & ~np.isin(category, list(categories.source_ids.values()))
    for i in np.flatnonzero(unknown):
        detail = f"it has the unknown category {category[i]}"
        errors.add("unknown_category", describe(content["annotations"][i]), detail)
    # objects with a labelled point
    crowds = sum(bool(row.get("iscrowd")) for row in rows)
    labelled = [row for row in rows if any(v > 0 for v in row["keypoints"][2::3])]
    objects = _objects(labelled, images, categories, errors)
    place = np.searchsorted(images.ids, objects.image)
    _note_boxes(objects, images.sizes[place], errors)
    points = [np.array(row["keypoints"], float).reshape(-1, 3) for row in objects.rows]
    for row, xyv, (height, width) in zip(objects.rows, points, images.sizes[place], strict=True):
        far = ((xyv[:, :2] < 0) | (xyv[:, :2] > [width or np.inf, height or np.inf])).any(1)
        for joint in np.flatnonzero(far & (xyv[:, 2] > 0)):
            errors.add("point_outside", describe(row), f"point {joint} at {xyv[joint].tolist()}")
    # statistics
    seen = Counter(
        skeletons[category].names[joint]
        for category, xyv in zip(objects.category.tolist(), points, strict=True)
        for joint in np.flatnonzero(xyv[:, 2] > 0)
    )
    per_object = np.array([(xyv[:, 2] > 0).sum() for xyv in points], int)
    per_image = np.bincount(place, minlength=len(images.ids))
    checked.summary = [
        f"{len(images.ids)} images, {len(rows)} annotations, {crowds} of crowds, "
        f"{len(points)} with a labelled point, on {np.count_nonzero(per_image)} images",
        distribution("labelled points per object", per_object),
    ]
    area = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1)
    checked.panels = [
        bars("objects on which a point is labelled", seen.most_common()),
        Panel("labelled points per object", per_object),
        Panel("objects with points per image", per_image),
        Panel("box size: square root of the area, pixels", np.sqrt(area), logarithmic=True),
    ]
    of_image = _grouper(place)

    def draw(number: int, picture: np.ndarray) -> np.ndarray:
        for i in of_image(number):
            edges = skeletons[int(objects.category[i])].edges
            picture = draw_keypoints(picture, points[i][None], edges, colors=[COLORS[i % 3]])
        return picture

    checked.draw, checked.drawable = draw, np.unique(place).tolist()


COLORS = ((255, 200, 0), (0, 190, 200), (240, 50, 230))


def _check_captions(checked: Checked, content: dict, images: ImageTable) -> None:
    captions = read_captions(content["annotations"], checked.errors)
    places = {image_id: number for number, image_id in enumerate(images.ids.tolist())}
    for image_id in sorted(captions.keys() - places.keys()):
        checked.errors.add("unlisted", f"captions of image {image_id}")
    captions = {places[i]: texts for i, texts in captions.items() if i in places}
    texts = [text for group in captions.values() for text in group]
    lengths = np.array([len(text.split()) for text in texts], int)
    per_image = np.array([len(captions.get(i, ())) for i in range(len(images.ids))], int)
    for number in np.flatnonzero(per_image == 0):
        checked.errors.add("empty", checked.images[number].name, "no caption")
    words = Counter(word.strip(".,!?\"'").lower() for text in texts for word in text.split())
    words.pop("", None)
    checked.summary = [
        f"{len(images.ids)} images, {len(texts)} captions, {len(words)} different words",
        distribution("captions per image", per_image),
        distribution("words per caption", lengths),
    ]
    checked.panels = [
        bars("most frequent words", words.most_common(NUM_WORDS)),
        Panel("words per caption", lengths),
        Panel("captions per image", per_image),
    ]
    checked.draw, checked.drawable = lambda number, picture: picture, sorted(captions)
    checked.title = lambda number: f"{checked.images[number].name}: {captions[number][0]}"


CHECKS: dict[str, Callable] = {
    "instances": _check_instances,
    "person_keypoints": _check_keypoints,
    "captions": _check_captions,
}


def _categories(content: dict, errors: AnnotationErrors) -> Categories:
    try:
        return Categories.from_coco(content["categories"])
    except ValueError as error:
        errors.add("categories", "categories", str(error))
        return Categories({}, {})


def _objects(
    rows: list[dict], images: ImageTable, categories: Categories, errors: AnnotationErrors
) -> Objects:
    return read_objects(
        [row for row in rows if not row.get("iscrowd")],
        errors,
        known=categories.source_ids.values(),
        image_ids=images.ids,
        sizes=images.sizes,
    )


def _note_ids(rows: list[dict], errors: AnnotationErrors) -> None:
    ids = [row["id"] for row in rows if isinstance(row.get("id"), int)]
    for row in rows:
        if not isinstance(row.get("id", 0), int):
            errors.add("id_strange", describe(row))
    for annotation_id, count in Counter(ids).items():
        if count > 1:
            errors.add("id_twice", f"annotation {annotation_id}", f"{count} times")


def _note_boxes(objects: Objects, sizes: np.ndarray, errors: AnnotationErrors) -> None:
    """Boxes that are usable, but odd; sizes: (N, 2) (H, W) of their images, 0 if not stated."""
    keys = np.column_stack([objects.image, objects.category, objects.boxes.round(2)])  # (N, 6)
    for i in np.flatnonzero(repeats(keys)):
        errors.add("same_box", describe(objects.rows[i]), f"bbox {objects.rows[i]['bbox']}")
    upper = np.where(sizes > 0, sizes, np.inf)[:, ::-1]
    far = (objects.boxes[:, :2] < -TOLERANCE) | (objects.boxes[:, 2:] > upper + TOLERANCE)
    for i in np.flatnonzero(far.any(1)):
        size = "x".join(map(str, sizes[i].tolist()))
        errors.add(
            "reaches_out",
            describe(objects.rows[i]),
            f"bbox {objects.rows[i]['bbox']} of a picture of {size} (HxW)",
        )


def _grouper(place: np.ndarray) -> Callable[[int], np.ndarray]:
    """Image number -> which objects are on it."""
    order = np.argsort(place, kind="stable")
    ordered = place[order]
    return lambda number: order[slice(*np.searchsorted(ordered, (number, number + 1)))]


def _mask(row: dict, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool; empty where the outline cannot be used."""
    parts = read_outline(row, AnnotationErrors("", report=True), size=size)
    if parts and isinstance(parts[0], dict):
        return rle_to_mask(parts[0])
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
