"""What a training and dataset/check_dataset.py say about a dataset before anybody waits for it."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from config import CFG
from dataset.advice import (
    compare_classes,
    object_budget,
    outline_budget,
    rare_classes,
    small_objects,
)
from dataset.coco_segmentation import CocoSegmentation
from dataset.tasks import build_source
from tests.conftest import TINY
from train.build import build_source_of, look_at_data
from utils.categories import Categories
from utils.cli import snapshot
from utils.errors import UserError


@pytest.fixture
def root(demo_set, tmp_path):
    return shutil.copytree(demo_set, tmp_path / "set")


def rewrite(root, split, change, kind="instances") -> None:
    path = root / "annotations" / f"{kind}_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def look(root, *settings, task="detection", **options) -> None:
    """Of images in which the drawn objects are large enough."""
    paths = [f"coco_root={root}", f"voc_root={root}"]
    cfg = snapshot(CFG, [*TINY, "img_size=128", *paths, *settings])
    sources = [{task: build_source_of(cfg, task, train=train)} for train in (True, False)]
    look_at_data(cfg, *sources)


def notices(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("notice:")]


def test_a_good_set_is_worth_no_word(root, capsys):
    look(root, "max_objects=100")
    assert notices(capsys) == []


@pytest.mark.parametrize("dataset, split", [("coco", "train"), ("voc", "2012:train")])
def test_the_line_about_a_budget_counts_as_one_would(root, dataset, split):
    source = build_source("detection", dataset, root, split)
    counts = [len(source[i].labels) for i in range(len(source))]
    for most in range(max(counts) + 2):
        lines = object_budget(source, most, "max_objects")
        over = [count for count in counts if count > most]
        if not over:
            assert lines == []
            continue
        left = sum(over) - most * len(over)
        assert f"{len(over)} of {len(counts)} images" in lines[0]
        assert f": {left} of {sum(counts)} objects" in lines[0]
        assert f"max_objects={max(counts)} " in lines[0]


def test_outlines_that_are_simplified_are_counted(root):
    source = CocoSegmentation(root, max_points=1000)
    objects = [one for i in range(len(source)) for one in source.polygons(i)]
    lengths = [sum(map(len, one)) + len(one) - 1 for one in objects]
    most = int(np.median(lengths))
    assert f"{sum(n > most for n in lengths)} of" in outline_budget(source, most)[0]
    assert outline_budget(source, max(lengths)) == []


def test_a_small_budget_is_told_when_a_training_starts(root, capsys):
    look(root, "max_objects=1")
    (line,) = notices(capsys)
    assert "max_objects=1" in line


def test_classes_that_nobody_predicts_are_named_with_the_near_ones(root, capsys):
    def rename(content):
        content["categories"][0]["name"] = content["categories"][0]["name"].upper()

    rewrite(root, "val", rename)
    look(root, "max_objects=100")
    (line,) = notices(capsys)
    names = json.loads((root / "annotations/instances_val2017.json").read_text())["categories"]
    assert repr(names[0]["name"]) in line and repr(names[0]["name"].lower()) in line


def test_sets_without_a_class_in_common_are_refused(root):
    def rename(content):
        for row in content["categories"]:
            row["name"] = row["name"].upper()

    rewrite(root, "val", rename)
    with pytest.raises(UserError, match="no class in common"):
        look(root)
    ours, theirs = Categories.from_names(["cat", "dog"]), Categories.from_names(["dog", "cat"])
    assert compare_classes(ours, theirs) == ""


def test_nothing_to_learn_is_refused_and_nothing_to_judge_by_is_told(root, capsys):
    rewrite(root, "val", lambda content: content["annotations"].clear())
    look(root, "max_objects=100")
    assert any("no object to evaluate on" in line for line in notices(capsys))
    rewrite(root, "train", lambda content: content["annotations"].clear())
    with pytest.raises(UserError, match="no object to learn"):
        look(root)


@pytest.mark.parametrize("task, kind", [("detection", "instances"), ("segmentation", "instances")])
def test_ground_truth_that_cannot_be_scored_is_refused_at_the_start(root, task, kind):
    rewrite(root, "val", lambda c: c["annotations"][0].update(area="large"), kind)
    with pytest.raises(UserError, match="area must be a number"):
        look(root, task=task)


def test_masks_of_images_without_a_size_are_refused_at_the_start(root):
    rewrite(root, "val", lambda c: [row.pop("height") for row in c["images"]])
    look(root)
    with pytest.raises(UserError, match="states no height and width"):
        look(root, task="segmentation")


def test_pictures_in_both_parts_are_named(root, capsys):
    train, val = (sorted((root / f"{part}2017").iterdir()) for part in ("train", "val"))
    name = "both.jpg"
    for path in (train[0], val[0]):
        shutil.copy(train[0], path.with_name(name))
    for split, path in (("train", train[0]), ("val", val[0])):
        rewrite(
            root,
            split,
            lambda c, path=path: [
                row.update(file_name=name, height=None)
                for row in c["images"]
                if row["file_name"] == path.name
            ],
        )
    look(root, "max_objects=100")
    (line,) = notices(capsys)
    assert "1 of" in line and name in line


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("dataset", ["coco", "voc"])
def test_a_picture_of_another_size_is_told_before_the_run(root, dataset, split):
    settings = [f"dataset={dataset}", "voc_sets=2012:train", "voc_eval_sets=2012:val"]
    cfg = snapshot(CFG, [*TINY, f"coco_root={root}", f"voc_root={root}", *settings])
    source = build_source_of(cfg, "detection", train=split == "train")
    path = source.image_path(len(source) - 1)
    Image.new("RGB", (31, 32)).save(path)
    with pytest.raises(UserError, match=f"{path.name} is 32x31"):
        look(root, *settings)
    look(root, *settings, "bad_samples=skip")


def test_a_class_of_the_truth_that_nobody_learns_is_named_if_another_is_near(root, capsys):
    path = next((root / "VOCdevkit/VOC2012/Annotations").glob("*500001.xml"))
    path.write_text(re.sub("<name>(.*?)</name>", r"<name>\1s</name>", path.read_text()))
    look(root, "dataset=voc", "voc_sets=2012:train", "voc_eval_sets=2012:val", "max_objects=99")
    (line,) = notices(capsys)
    assert "classes of the validation set have no object" in line and "similar: " in line


@pytest.mark.parametrize("divisor, message", [(200, "end below 2 pixels"), (0.01, "no object to")])
def test_voc_boxes_that_no_picture_has_are_refused(root, divisor, message):
    def moved(found):
        return f"<{found[1]}>{float(found[2]) / divisor}<"

    for path in (root / "VOCdevkit/VOC2012/Annotations").iterdir():
        path.write_text(re.sub(r"<([xy]m\w\w)>(\d+)<", moved, path.read_text()))
    with pytest.raises(UserError, match=message):
        look(root, "dataset=voc", "voc_sets=2012:train", "voc_eval_sets=2012:val")


class Boxes:
    """A source of one image, 1000 pixels wide, with square boxes of these sides."""

    def __init__(self, sides, names=("cat", "dog")):
        self.sides, self.categories = np.array(sides, float), Categories.from_names(list(names))

    def __len__(self):
        return 1

    def objects(self, index):
        corner = np.zeros((len(self.sides), 2))
        return np.column_stack([corner, corner + self.sides[:, None]]), None

    def stated_size(self, index):
        return 600, 1000

    def objects_per_class(self):
        return {1: len(self.sides), 2: 0}


def test_small_objects_are_named_with_the_size_that_shows_them():
    sides = [20] * 30 + [200] * 70
    (line,) = small_objects(Boxes(sides), 320)
    assert "30% of the boxes are smaller than 8x8 pixels at img_size=320" in line
    size = int(re.search(r"; img_size=(\d+) ", line)[1])
    assert size % 32 == 0 and size >= 400 > size - 32  # 20 pixels become 8 at 400
    assert small_objects(Boxes(sides), size) == []
    assert small_objects(Boxes([200] * 95 + [2] * 5), 320) == []  # few may be small
    assert "cut the pictures into parts" in small_objects(Boxes([3] * 10), 320)[0]
    assert small_objects(Boxes([]), 320) == []


def test_rare_classes_are_named_but_not_absent_ones():
    (line,) = rare_classes(Boxes([9] * 3))
    assert "1 of 2 classes have fewer than 10 objects to learn from: 'cat' (3)" in line
    assert rare_classes(Boxes([9] * 10)) == []
