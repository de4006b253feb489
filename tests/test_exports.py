"""Equal results for the same annotations in every dialect that tools export."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dataset.coco_detection import CocoDetection
from dataset.coco_keypoint import CocoKeypoints
from dataset.coco_segmentation import CocoSegmentation
from dataset.find_dataset import find_dataset
from dataset.formats.document import mask_box
from tests.exports.make import HERE, Picture, draw, fill
from utils.errors import UserError
from utils.masks import mask_to_rle, polygons_to_rle, rle_to_polygons

EXACT = 0.01  # pixels; formats that round, to so many digits that nobody sees it
PLACES = json.loads((HERE / "pictures.json").read_text())


@dataclass(frozen=True)
class Export:
    """What an export keeps of the drawn annotations.

    Attributes:
        rounding: pixels; how far a box may be off.
        outline: the least overlap (IoU) of outlines, 0 = the format has none.
        per_part: each polygon is an object.
        filled: outlines are masks, the polygons filled.
        parts: of the dataset.
    """

    rounding: float = EXACT
    outline: float = 0.0
    per_part: bool = False
    filled: bool = False
    parts: tuple[str, ...] = ("train", "val")


ALL = ("all",)
BOXES = Export()
EXPORTS = {
    "datumaro_coco_instances": Export(outline=0.99),
    "datumaro_cvat": Export(outline=0.98, parts=ALL),
    "datumaro_datumaro": Export(outline=0.99),
    "datumaro_voc_detection": Export(rounding=1),
    "datumaro_yolo": BOXES,
    "datumaro_yolo_ultralytics": BOXES,
    "fiftyone_coco": BOXES,
    "fiftyone_voc": Export(rounding=2),
    "fiftyone_yolov4": Export(parts=ALL),
    "fiftyone_yolov5": BOXES,
    "label-studio_coco_boxes": Export(parts=ALL),
    "label-studio_coco_polygons": Export(outline=0.98, per_part=True, parts=ALL, rounding=0.6),
    "label-studio_voc_boxes": Export(rounding=2, parts=ALL),
    "label-studio_yolo_boxes": Export(parts=ALL),
    "label-studio_yolo_obb_boxes": Export(parts=ALL),
    "label-studio_yolo_polygons": Export(outline=0.98, per_part=True, parts=ALL, rounding=0.6),
    "labelme_masks": Export(outline=0.98, filled=True, parts=ALL),
    "labelme_polygons": Export(outline=0.99, rounding=0.7, parts=ALL),
    "labelme_rectangles": Export(parts=ALL),
    "supervision_coco_boxes": BOXES,
    "supervision_labelme_boxes": BOXES,
    "supervision_voc": Export(rounding=1),
    "supervision_yolo_boxes": BOXES,
    "ultralytics_yolo_boxes": BOXES,
    "ultralytics_yolo_segments": Export(outline=0.9, rounding=0.7),
}
POSES = {
    "datumaro_coco_person_keypoints": ("train", "val"),
    "datumaro_cvat": ALL,
    "datumaro_datumaro": ("train", "val"),
    "ultralytics_yolo_poses": ("train", "val"),
}
REFUSED = {
    "label-studio_json_boxes": "Label Studio's own JSON",
    "label-studio_json_polygons": "Label Studio's own JSON",
    "supervision_createml": "CreateML",
}
CROWDS = "supervision_coco_masks"  # an object of several parts is a crowd there
BY_MASKS = ("supervision_labelme_masks", "supervision_yolo_masks")  # parts of filled outlines


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> dict[str, Picture]:
    """File name -> picture."""
    pictures, _ = draw(tmp_path_factory.mktemp("drawn") / "set")
    return {picture.path.name: picture for picture in pictures}


@pytest.fixture
def lay(tmp_path, drawn):
    """Copies an export and lays the pictures where the tool had put them."""

    def copy(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(HERE / name, folder)
        for place, picture in PLACES[name].items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(drawn[picture].path, folder / place)
        return folder

    return copy


def expected_objects(picture: Picture, export: Export) -> list[dict]:
    """The objects of a picture as an export has them: name, box xyxy, parts."""
    found = []
    for row in picture.objects:
        parts = [np.array(part).reshape(-1, 2) for part in row["segmentation"]]
        x, y, w, h = row["bbox"]
        whole = {"name": row["name"], "box": (x, y, x + w, y + h), "parts": parts}
        if export.filled:
            mask = fill(row["segmentation"], picture.size)
            found.append(whole | {"box": mask_box(mask), "parts": outline_of(mask)})
        elif export.per_part:
            boxes = [(*part.min(0), *part.max(0)) for part in parts]
            found += [whole | {"box": b, "parts": [p]} for b, p in zip(boxes, parts, strict=True)]
        else:
            found.append(whole)
    return found


def outline_of(mask: np.ndarray) -> list[np.ndarray]:
    return rle_to_polygons(mask_to_rle(mask))


def distance(a, b) -> float:
    return float(np.abs(np.subtract(a, b)).max())


def match(expected: list[dict], boxes: np.ndarray, names: list[str]) -> list[int]:
    """The number of the read object that each expected one is: of its class, the nearest."""
    left, numbers = list(range(len(boxes))), []
    for row in expected:
        same = [i for i in left if names[i] == row["name"]]
        assert same, f"no {row['name']} is left"
        numbers.append(min(same, key=lambda i: distance(boxes[i], row["box"])))
        left.remove(numbers[-1])
    assert not left, "more objects than there are"
    return numbers


def read(source, index: int):
    """The sample and the names of its classes."""
    sample = source.read(index)
    return sample, [source.categories.names[int(label)] for label in sample.labels]


def test_every_export_is_tested():
    folders = {path.name for path in HERE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == {*EXPORTS, *POSES, *REFUSED, *BY_MASKS, CROWDS} == set(PLACES)


@pytest.mark.parametrize("name", EXPORTS)
def test_boxes_classes_and_outlines_are_those_that_were_drawn(name, lay, drawn):
    export, data = EXPORTS[name], find_dataset(lay(name))
    seen = []
    for part in export.parts:
        source = (CocoSegmentation if export.outline else CocoDetection)(data, part)
        for index in range(len(source)):
            sample, names = read(source, index)
            picture = drawn[source.image_path(index).name]
            seen.append(picture.path.name)
            assert part in ("all", picture.part)
            assert sample.orig_size == picture.size
            expected = expected_objects(picture, export)
            for row, number in zip(expected, match(expected, sample.boxes, names), strict=True):
                assert distance(sample.boxes[number], row["box"]) <= export.rounding
                if export.outline:
                    assert overlap(sample.polygons[number], row["parts"]) >= export.outline
    assert sorted(seen) == sorted(drawn)


def overlap(a, b) -> float:
    """The IoU of two outlines, at four times the size so that edges count less."""
    rles = [
        polygons_to_rle([4 * np.asarray(part) for part in parts], (512, 512)) for parts in (a, b)
    ]
    return float(coco_mask.iou(rles[:1], rles[1:], [0])[0, 0])


@pytest.mark.parametrize("name", POSES)
def test_keypoints_are_those_that_were_drawn(name, lay, drawn):
    data, hidden = find_dataset(lay(name)), name != "datumaro_cvat"
    count = 0
    for part in POSES[name]:
        source = CocoKeypoints(data, part)
        assert len(source.skeleton.flip_pairs) == 8
        for index in range(len(source)):
            sample, names = read(source, index)
            objects = drawn[source.image_path(index).name].objects
            posed = [
                np.array(row["keypoints"]).reshape(-1, 3) for row in objects if row["keypoints"]
            ]
            posed = [points for points in posed if points[:, 2].any()]
            assert len(posed) == len(sample.keypoints) and set(names) <= {"person"}
            count += len(posed)
            for points in posed:
                points = points if hidden else np.where(points == [[-1, -1, 1]], 2, points)
                assert min(distance(points, each) for each in sample.keypoints) <= EXACT
    assert count == 5


@pytest.mark.parametrize("name", BY_MASKS)
def test_every_pixel_of_a_filled_outline_is_in_some_object(name, lay, drawn):
    """These tools make polygons of filled masks, one object for each piece."""
    data = find_dataset(lay(name))
    for part in ("train", "val"):
        source = CocoSegmentation(data, part)
        for index in range(len(source)):
            sample, names = read(source, index)
            picture = drawn[source.image_path(index).name]
            for wanted in {row["name"] for row in picture.objects}:
                parts = [p for row in picture.objects if row["name"] == wanted
                         for p in row["segmentation"]]  # fmt: skip
                found = [p for polygons, n in zip(sample.polygons, names, strict=True)
                         if n == wanted for p in polygons]  # fmt: skip
                assert overlap(found, [np.array(p).reshape(-1, 2) for p in parts]) > 0.7


def test_objects_that_a_tool_marks_as_crowds_keep_their_boxes(lay, drawn):
    data = find_dataset(lay(CROWDS))
    for part in ("train", "val"):
        source = CocoDetection(data, part)
        for index in range(len(source)):
            file, picture = source.file, drawn[source.image_path(index).name]
            rows = file.rows(index)
            names = [file.categories.names[int(i)] for i in file.class_ids[rows]]
            expected = expected_objects(picture, BOXES)
            for row, number in zip(expected, match(expected, file.boxes(rows), names), strict=True):
                assert distance(file.boxes(rows)[number], row["box"]) <= 2


@pytest.mark.parametrize("name", REFUSED)
def test_a_format_that_is_not_read_names_another(name, lay):
    with pytest.raises(UserError, match=REFUSED[name]) as error:
        find_dataset(lay(name))
    assert "export it as COCO or YOLO" in str(error.value) and "\n" not in str(error.value)
