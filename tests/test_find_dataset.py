"""What a folder is: refused where it may be several things, split where it has no parts."""

import json
import re
import shutil

import numpy as np
import pytest

from dataset.coco_detection import CocoDetection
from dataset.find_dataset import find_dataset, pick_validation
from tests.test_formats import content_of, copy, flat, official, pictures, roboflow, write
from tests.test_label_files import no_yaml, yolo  # noqa: F401, a fixture
from utils.errors import UserError

NAMES = [f"folder/{number:04d}.jpg" for number in range(2000)]


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        find_dataset(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the split ---------------------------------------------------------------------------------


def test_the_split_has_the_share_and_depends_on_the_seed():
    chosen = pick_validation(NAMES, 0, 0.2)
    assert 0.17 < chosen.mean() < 0.23
    other = pick_validation(NAMES, 1, 0.2)
    assert 0.02 < (chosen & other).mean() < 0.06  # as of two draws that know nothing of each other
    assert (pick_validation(NAMES, 0, 0.4) >= chosen).all()


def test_an_image_stays_on_its_side_when_others_come_or_go():
    chosen = pick_validation(NAMES, 0, 0.2)
    order = np.random.default_rng(0).permutation(len(NAMES))[:700]
    some = pick_validation([NAMES[i] for i in order], 0, 0.2)
    np.testing.assert_array_equal(some, chosen[order])


def test_copies_of_a_picture_are_on_one_side():
    copies = [name.replace(".jpg", f"_jpg.rf.{c * 32}.jpg") for c in "a4z" for name in NAMES]
    sides = pick_validation(copies, 3, 0.3).reshape(3, -1)
    assert (sides == sides[0]).all() and 0 < sides.sum() < sides.size
    # what looks like it but is no copy has a side of its own
    named = pick_validation([f"a.rf.{number}" for number in range(200)], 3, 0.3)
    assert 0 < named.sum() < 200


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_a_small_set_has_images_on_both_sides(count, share):
    chosen = pick_validation(NAMES[:count], 0, share)
    assert 1 <= chosen.sum() < count


def test_both_sides_together_are_all_and_no_image_is_on_two(demo_set, tmp_path):
    root = flat(demo_set, tmp_path / "set")
    everything = set()
    for seed in (0, 1):
        dataset = find_dataset(root, seed=seed, val_share=0.3)
        assert dataset.names == ("train", "val", "all")
        sides = [CocoDetection(dataset, part) for part in ("train", "val")]
        names = [{side.image_path(i).name for i in range(len(side))} for side in sides]
        assert not names[0] & names[1]
        assert names[0] | names[1] == {path.name for path in root.glob("*.jpg")}
        everything.add(frozenset(names[1]))
    assert len(everything) == 2
    assert "val_share=0.3 of its images, seed=1" in dataset.describe("instances", ["val"])


def test_the_split_is_the_same_in_every_format(demo_set, tmp_path):
    voc = find_dataset(flat(demo_set, tmp_path / "voc"))
    coco = tmp_path / "coco"
    content = content_of(demo_set, "instances", "train")
    other = content_of(demo_set, "instances", "val")
    for key in ("images", "annotations"):
        content[key] += other[key]
    for part in ("train", "val"):
        copy(pictures(demo_set, part), coco / "images")
    write(coco / "annotations" / "instances_default.json", content)
    sides = []
    for dataset in (voc, find_dataset(coco)):
        source = CocoDetection(dataset, "val")
        sides.append({source.image_path(i).name for i in range(len(source))})
    assert sides[0] == sides[1]


def test_one_picture_cannot_be_split(demo_set, tmp_path):
    picture = pictures(demo_set, "train")[0]
    copy([picture], tmp_path)
    content = content_of(demo_set, "instances", "train")
    content["images"] = [row for row in content["images"] if row["file_name"] == picture.name]
    number = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == number]
    write(tmp_path / "a.json", content)
    dataset = find_dataset(tmp_path)
    with pytest.raises(
        UserError, match=rf"a\.json has only copies of one picture, .*{picture.name}"
    ):
        CocoDetection(dataset, "train")
    assert len(CocoDetection(dataset, "all")) == 1
    with pytest.raises(UserError, match="has no part 'test'; it has train, val, all"):
        CocoDetection(dataset, "test")


# ---- what a folder is --------------------------------------------------------------------------


def test_two_formats_are_refused_and_each_choice_works(demo_set):
    line = refusal(demo_set)
    choices = {f"{demo_set}/annotations": "COCO", f"{demo_set}/VOCdevkit": "Pascal VOC"}
    for choice, title in choices.items():
        assert f"{title} (--set data={choice})" in line
        assert find_dataset(choice).title == title


@pytest.mark.parametrize("place", [".", "both", "../x/both"])
@pytest.mark.parametrize("other", ["data.yaml", "classes.txt"])
def test_what_is_advised_about_two_formats_works_from_every_folder(
    yolo,  # noqa: F811
    tmp_path,
    monkeypatch,
    place,
    other,
):
    root = tmp_path / "x" / "both"
    shutil.copytree(yolo, root)
    if other == "classes.txt":
        no_yaml(root)
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 80}]
    rows = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 0}]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
    write(root / "annotations" / "instances_train.json", content)
    monkeypatch.chdir(root if place == "." else root.parent)
    line = refusal(place)
    choices = dict(re.findall(r"(COCO|YOLO) \(--set data=([^)]*)\)", line))
    assert all(find_dataset(path).title == title for title, path in choices.items())
    if other == "data.yaml":
        assert set(choices) == {"COCO", "YOLO"}
    else:
        assert set(choices) == {"COCO"} and "YOLO (move the files of COCO elsewhere)" in line
        shutil.rmtree(root / "annotations")
        assert find_dataset(place).title == "YOLO"


def test_two_files_of_one_part_are_refused(demo_set, tmp_path):
    root = official(demo_set, tmp_path / "set")
    shutil.copy(root / "annotations/instances_train2017.json", root / "train_mine.json")
    line = refusal(root)
    assert "train_mine.json" in line and "annotations/instances_train2017.json" in line
    assert "--set train_json=FILE" in line
    (root / "train_mine.json").rename(root / "mine.json")
    assert "mine.json" in refusal(root) and "names no part" in refusal(root)


def test_what_is_nothing_says_what_was_looked_for(tmp_path):
    (tmp_path / "a.docx").touch()
    (tmp_path / "b.jpg").touch()
    line = refusal(tmp_path)
    assert "COCO" in line and "Pascal VOC" in line and "1 .docx" in line and "1 .jpg" in line
    assert "there is no" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no file" in refusal(tmp_path / "empty")


def test_a_folder_in_a_folder_and_one_file(demo_set, tmp_path):
    root = roboflow(demo_set, tmp_path / "download" / "my-set-3")
    for path in (root, tmp_path / "download"):
        dataset = find_dataset(path)
        assert len(CocoDetection(dataset, "val")) == 6
        assert f"data: {path} is a COCO set (" in dataset.describe("instances", ["train", "val"])
    alone = find_dataset(root / "valid" / "_annotations.coco.json")
    assert len(CocoDetection(alone, "all")) == 6
    one = min(flat(demo_set, tmp_path / "flat").glob("*.xml"))
    assert f"one file of a Pascal VOC set; name its folder {one.parent}" in refusal(one)
    (tmp_path / "export.zip").write_bytes(b"PK\x03\x04" + bytes(40))
    assert "unpack it" in refusal(tmp_path / "export.zip")


def test_pictures_that_are_nowhere_are_named(demo_set, tmp_path):
    write(tmp_path / "train.json", content_of(demo_set, "instances", "train"))
    line = refusal(tmp_path)
    assert "train.json: no picture such as" in line
    assert "train_images=FOLDER" in line


@pytest.mark.parametrize("top", ["/data", "D:\\\\data"])
def test_names_of_another_computer_keep_the_folders_that_are_here(demo_set, tmp_path, top):
    content = content_of(demo_set, "instances", "val")
    for number, image in enumerate(content["images"]):
        camera = f"cam{number % 2}"
        place = tmp_path / "images" / camera / f"{number // 2:04}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(demo_set / "val2017" / image["file_name"], place)
        image["file_name"] = f"{top}/set/{camera}/{place.name}"
    write(tmp_path / "all.json", content)
    given, found = CocoDetection(demo_set, "val"), CocoDetection(find_dataset(tmp_path), "all")
    assert len(found) == len(given)
    for i in range(len(found)):
        assert found.image_path(i).parent.name == f"cam{i % 2}"
        assert np.array_equal(found.objects(i)[0], given.objects(i)[0])
    for picture in (tmp_path / "images" / "cam0").iterdir():
        shutil.copy(picture, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "cam0")
    shutil.rmtree(tmp_path / "images" / "cam1")
    with pytest.raises(UserError, match="would both be .*0000.jpg"):
        CocoDetection(find_dataset(tmp_path), "all")


def test_files_beside_a_yaml_file_do_not_matter(yolo):  # noqa: F811
    (yolo / "labels.csv").write_text("image,label\n")
    assert len(CocoDetection(find_dataset(yolo / "data.yaml"), "train")) == 2


@pytest.mark.parametrize("text", ["[]", "{}", '{"images": 3}', '{"images": [], "annotations": 1}'])
def test_other_json_files_are_passed_over(text, demo_set, tmp_path):
    root = roboflow(demo_set, tmp_path / "set")
    (root / "other.json").write_text(text)
    (root / "train" / "results.json").write_text(text)
    assert set(find_dataset(root).names) == {"train", "val"}


def test_a_category_with_objects_is_no_heading(demo_set, tmp_path):
    root = roboflow(demo_set, tmp_path / "set")
    assert "things" not in CocoDetection(find_dataset(root), "train").categories.names.values()
    path = root / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    path.unlink()
    write(path, content)
    assert "things" in CocoDetection(find_dataset(root), "train").categories.names.values()


def test_a_relative_folder_is_described_as_an_absolute_one(demo_set, tmp_path, monkeypatch):
    """With the files in it by their names in the folder."""
    roboflow(demo_set, tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    whole = find_dataset(tmp_path / "set").describe("instances", ("train", "val"))
    text = find_dataset("set").describe("instances", ("train", "val"))
    assert text == whole.replace(f"{tmp_path}/", "") and "(train/_annotations.coco.json, " in text
