"""A small dataset cut out of a large one holds whole images and loads like any other."""

import json

import pytest

from dataset.coco_detection import CocoDetection
from dataset.coco_keypoint import CocoKeypoints
from download.make_coco_subset import main
from utils.errors import UserError


@pytest.fixture
def subset(demo_set, tmp_path):
    def make(*options):
        out = tmp_path / "subset"
        main(["--coco-root", str(demo_set), "--out", str(out), *options])
        return out

    return make


def test_the_first_images_with_all_their_objects(demo_set, subset):
    whole = CocoDetection(demo_set, "train", limit=3)
    part = CocoDetection(subset("--count", "3"), "train")
    assert part.image_ids.tolist() == whole.image_ids.tolist()
    for a, b in zip(map(part.read, range(3)), map(whole.read, range(3)), strict=True):
        assert (a.image == b.image).all() and (a.boxes == b.boxes).all()


def test_only_the_largest_objects_of_images_with_a_pose(demo_set, subset):
    out = subset("--with-keypoints", "--max-objects", "2", "--count", "4")
    part, whole = CocoDetection(out, "train"), CocoDetection(demo_set, "train")
    posed = CocoKeypoints(out, "train", keep_empty=True)
    rows = json.loads((demo_set / "annotations/person_keypoints_train2017.json").read_text())
    labelled = {r["image_id"] for r in rows["annotations"] if r["num_keypoints"]}
    assert set(part.image_ids.tolist()) <= labelled and len(posed) == len(part)
    for i, image_id in enumerate(part.image_ids):
        boxes = whole.objects(int((whole.image_ids == image_id).argmax()))[0]
        areas = sorted((boxes[:, 2:] - boxes[:, :2]).prod(1), reverse=True)[:2]
        kept = part.objects(i)[0]
        assert sorted((kept[:, 2:] - kept[:, :2]).prod(1), reverse=True) == pytest.approx(areas)


def test_an_existing_folder_is_not_touched(demo_set, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        main(["--coco-root", str(demo_set), "--out", str(tmp_path)])
