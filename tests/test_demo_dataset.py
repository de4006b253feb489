"""The synthetic demo set: reproducible, in COCO and VOC layout, and true."""

import contextlib
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from dataset.demo.captions import MAX_WORDS, stated_counts
from dataset.demo.drawing import SS, find_region
from dataset.demo.people import KEYPOINTS
from dataset.demo.write import CATEGORY_IDS, DemoSet, draw_image, image_id, write_demo_set
from utils.errors import UserError

SCRIPT = Path(__file__).resolve().parents[1] / "download" / "make_demo_dataset.py"
SMALL = DemoSet(train=76, val=12, size=(128, 176), seed=3)
KINDS = ("instances", "person_keypoints", "captions")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "set"
    assert write_demo_set(SMALL, out, workers=1, progress=False)
    return out


def load(root: Path, kind: str, split: str = "train") -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(root / "annotations" / f"{kind}_{split}2017.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_same_arguments_give_same_bytes_with_any_number_of_workers(tmp_path):
    demo = DemoSet(train=9, val=3, size=(96, 128), seed=1)
    for name, workers in (("one", 1), ("two", 2)):
        write_demo_set(demo, tmp_path / name, workers=workers, progress=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    other = draw_image(DemoSet(train=9, val=3, size=(96, 128), seed=2), "train", 0)[0].image
    first = draw_image(demo, "train", 0)[0].image
    assert first.shape != other.shape or (first != other).any()


@pytest.mark.parametrize("split", ["train", "val"])
def test_files_have_the_coco_2017_layout(root, split):
    images = sorted(p.name for p in (root / f"{split}2017").iterdir())
    assert len(images) == getattr(SMALL, split)
    assert all(re.fullmatch(r"\d{12}\.jpg", name) for name in images)
    for kind in KINDS:
        content = json.loads((root / "annotations" / f"{kind}_{split}2017.json").read_text())
        keys = {"info", "licenses", "images", "annotations"}
        assert set(content) == keys | ({"categories"} if kind != "captions" else set())
        assert [image["file_name"] for image in content["images"]] == images
        for image in content["images"]:
            picture = cv2.imread(str(root / f"{split}2017" / image["file_name"]))
            assert picture.shape == (image["height"], image["width"], 3)
        ids = [entry["id"] for entry in content["annotations"]]
        assert len(set(ids)) == len(ids)


def test_splits_are_disjoint(root):
    ids = [set(load(root, "instances", split).imgs) for split in ("train", "val")]
    assert not ids[0] & ids[1]
    listed = [
        (root / f"VOCdevkit/VOC2012/ImageSets/Main/{name}.txt").read_text().split()
        for name in ("train", "val", "trainval")
    ]
    assert listed[0] + listed[1] == listed[2]
    assert [{int(stem) for stem in stems} for stems in listed[:2]] == ids


def test_masks_decode_and_boxes_are_tight(root):
    coco = load(root, "instances")
    for entry in coco.anns.values():
        mask = coco.annToMask(entry)
        assert mask.sum() == entry["area"] > 0
        ys, xs = np.nonzero(mask)
        tight = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        np.testing.assert_allclose(entry["bbox"], tight, atol=1)


def test_a_region_covers_what_is_visible_and_no_hole_in_it():
    yy, xx = np.mgrid[: 60 * SS, : 90 * SS] / SS
    radius = np.hypot(xx - 40, yy - 30)
    ring = (radius < 25) & (radius > 10) & ((xx < 55) | (xx > 60))  # with a bar in front of it
    region = find_region(ring)
    wanted = cv2.resize(ring.astype(np.float32), (90, 60), interpolation=cv2.INTER_AREA) >= 0.5
    both, any_of_them = (region.mask & wanted).sum(), (region.mask | wanted).sum()
    assert both / any_of_them > 0.96
    assert region.area == pytest.approx(wanted.sum(), rel=0.04)
    assert len(region.segmentation) == 3
    crowd = find_region(ring, crowd=True)
    assert (crowd.mask == wanted).all() and crowd.segmentation["size"] == [60, 90]


def test_masks_of_one_image_hardly_overlap(root):
    coco = load(root, "instances")
    for number, image in coco.imgs.items():
        total = np.zeros((image["height"], image["width"]), int)
        for entry in coco.imgToAnns[number]:
            total += coco.annToMask(entry)
        assert (total > 1).sum() <= 60  # small holes are filled


def test_split_masks_empty_images_and_crowds_occur(root):
    coco = load(root, "instances")
    plain = [entry for entry in coco.anns.values() if not entry["iscrowd"]]
    assert any(len(entry["segmentation"]) > 1 for entry in plain)
    assert not coco.imgToAnns[image_id("train", 37)]
    crowds = [entry for entry in coco.anns.values() if entry["iscrowd"]]
    assert [entry["image_id"] for entry in crowds] == [image_id("train", 73)]
    counts, (h, w) = crowds[0]["segmentation"]["counts"], crowds[0]["segmentation"]["size"]
    assert sum(counts) == h * w and isinstance(counts, list)
    area = coco_mask.area(coco_mask.frPyObjects(crowds[0]["segmentation"], h, w))
    assert area == crowds[0]["area"]


def test_categories_agree_and_are_not_contiguous(root):
    coco, people = load(root, "instances"), load(root, "person_keypoints")
    assert {cat["name"]: cat["id"] for cat in coco.dataset["categories"]} == CATEGORY_IDS
    ids = sorted(CATEGORY_IDS.values())
    assert ids[0] == CATEGORY_IDS["person"] == 1 and np.diff(ids).max() > 1
    assert {entry["category_id"] for entry in coco.anns.values()} == set(ids)
    (person,) = people.dataset["categories"]
    assert person["keypoints"] == KEYPOINTS and len(person["skeleton"]) == 19
    persons = {k for k, entry in coco.anns.items() if entry["category_id"] == 1}
    assert persons == set(people.anns)


def test_keypoints_lie_in_the_image_and_the_visible_ones_on_the_person(root):
    coco, seen = load(root, "person_keypoints"), set()
    for entry in coco.anns.values():
        points = np.array(entry["keypoints"]).reshape(17, 3)
        assert entry["num_keypoints"] == (points[:, 2] > 0).sum()
        assert not points[points[:, 2] == 0].any()
        seen |= set(points[:, 2].tolist())
        image = coco.imgs[entry["image_id"]]
        labelled = points[points[:, 2] > 0]
        assert (labelled[:, :2] < (image["width"], image["height"])).all()
        mask = cv2.dilate(coco.annToMask(entry), np.ones((3, 3), np.uint8))
        visible = points[points[:, 2] == 2]
        assert mask[visible[:, 1], visible[:, 0]].all()
    assert seen == {0, 1, 2}


def test_left_is_the_persons_own_left():
    views = set()
    for index in range(30):
        for thing in draw_image(SMALL, "val", index)[0].placed:
            if thing.keypoints is None:
                continue
            points = dict(zip(KEYPOINTS, thing.keypoints.tolist(), strict=True))
            left, right = points["left_shoulder"], points["right_shoulder"]
            if thing.facing in ("front", "back") and left[2] and right[2]:
                assert (left[0] > right[0]) == (thing.facing == "front")
                views.add(thing.facing)
            near, far = ("right", "left") if thing.facing == "right" else ("left", "right")
            nose, ear = points["nose"], points[f"{near}_ear"]
            if thing.facing in ("left", "right") and nose[2] and ear[2]:
                assert (nose[0] > ear[0]) == (thing.facing == "right")
                assert points[f"{far}_ear"][2] == 0
                views.add(thing.facing)
    assert views == {"front", "back", "left", "right"}


def test_voc_boxes_equal_the_coco_ones(root):
    voc = root / "VOCdevkit" / "VOC2012"
    for split in ("train", "val"):
        coco = load(root, "instances", split)
        for number, image in coco.imgs.items():
            tree = ET.parse(voc / "Annotations" / f"{number:012d}.xml")
            size = [int(tree.findtext(f"size/{key}")) for key in ("width", "height", "depth")]
            assert size == [image["width"], image["height"], 3]
            found = []
            for node in tree.iter("object"):
                x0, y0, x1, y1 = (
                    int(node.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")
                )
                box = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
                found.append((node.findtext("name"), box, int(node.findtext("difficult"))))
            assert found == [
                (coco.cats[entry["category_id"]]["name"], entry["bbox"], entry["iscrowd"])
                for entry in coco.imgToAnns[number]
            ]
            picture = voc / "JPEGImages" / image["file_name"]
            assert picture.read_bytes() == (root / f"{split}2017" / picture.name).read_bytes()


def test_counts_and_colours_in_captions_are_true():
    for index in range(60):
        scene, captions = draw_image(SMALL, "train", index)
        assert len(captions) == 5 and all(len(c.split()) <= MAX_WORDS for c in captions)
        single = [thing for thing in scene.placed if not thing.is_crowd]
        for caption in captions:
            total: dict[str, int] = {}
            for number, colour, category in stated_counts(caption, CATEGORY_IDS):
                total[category] = total.get(category, 0) + number
                assert not colour or number <= sum(
                    (thing.category, thing.colour) == (category, colour) for thing in single
                )
            for category, number in total.items():
                assert number == sum(t.category == category for t in single), caption
        if single:
            assert sum(bool(stated_counts(caption, CATEGORY_IDS)) for caption in captions) >= 2
            assert len(set(captions)) >= 4


def test_sides_in_captions_are_true(root):
    coco, captions = load(root, "instances"), load(root, "captions")
    checked = 0
    for entry in captions.anns.values():
        halves = re.split(r" to the (left|right) of ", entry["caption"].lower())
        if len(halves) != 3:
            continue
        first, second = (stated_counts(halves[i], CATEGORY_IDS)[0][2] for i in (0, 2))
        boxes = {
            name: [
                a["bbox"]
                for a in coco.imgToAnns[entry["image_id"]]
                if a["category_id"] == CATEGORY_IDS[name]
            ]
            for name in (first, second)
        }
        if first != second:
            (x1, _, w1, _), (x2, _, w2, _) = boxes[first][0], boxes[second][0]
            assert (x1 + w1 / 2 < x2 + w2 / 2) == (halves[1] == "left")
            checked += 1
    assert checked > 3


def test_every_picture_has_five_captions(root):
    captions = load(root, "captions")
    assert all(len(captions.imgToAnns[number]) == 5 for number in captions.imgs)
    empty = captions.imgToAnns[image_id("train", 37)]
    assert not any(stated_counts(entry["caption"], CATEGORY_IDS) for entry in empty)


def test_a_finished_set_is_left_alone_and_a_damaged_one_is_repaired(root):
    before = contents(root)
    assert not write_demo_set(SMALL, root, workers=1, progress=False)
    victim = root / "val2017" / f"{image_id('val', 3):012d}.jpg"
    victim.unlink()
    assert write_demo_set(SMALL, root, workers=1, progress=False)
    assert contents(root) == before


def test_files_of_others_are_never_touched(root, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not a demo set"):
        write_demo_set(SMALL, tmp_path, workers=1, progress=False)
    assert contents(tmp_path) == {"mine.txt": b"mine"}
    with pytest.raises(UserError, match="other arguments"):
        write_demo_set(DemoSet(5, 5, (96, 96), 0), root, workers=1, progress=False)


def test_script_draws_a_sample_and_reports_errors_in_one_line(tmp_path):
    run = [sys.executable, str(SCRIPT)]
    picture = tmp_path / "sample.jpg"
    sample = [*run, "--sample", str(picture), "--size", "120", "150", "--seed", "5"]
    done = subprocess.run(sample, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stderr
    assert cv2.imread(str(picture)).shape == (120, 150, 3)
    done = subprocess.run([*run, "--size", "9", "5"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "--size must be" in done.stderr
