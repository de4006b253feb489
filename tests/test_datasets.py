import copy
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dataset.coco_detection import CocoDetection
from dataset.voc_detection import VOC_CLASSES, VocDetection, parse_voc_sets
from utils.errors import UserError

COCO = {
    "images": [
        {"id": 30, "file_name": "c.png", "height": 20, "width": 30},
        {"id": 10, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 20, "file_name": "b.png"},
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "cow"}],
    "annotations": [
        {"id": 0, "image_id": 10, "category_id": 7, "bbox": [1, 2, 10, 5]},
        {"id": 1, "image_id": 30, "category_id": 90, "bbox": [20, 10, 50, 50]},
        {"id": 2, "image_id": 10, "category_id": 3, "bbox": [4, 4, 0, 9]},
        {"id": 3, "image_id": 10, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 4, "image_id": 10, "category_id": 3, "bbox": [2.5, 3.5, 4, 6]},
        {"id": 5, "image_id": 99, "category_id": 3, "bbox": [2, 3, 4, 6]},
    ],
}


@pytest.fixture
def coco_root(tmp_path):
    return write_coco(tmp_path, COCO)


def write_coco(root, content):
    for name in ("annotations", "train2017"):
        (root / name).mkdir(exist_ok=True)
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    for name, value in (("a", 10), ("b", 20), ("c", 30)):
        Image.new("RGB", (30, 20), (value, 0, 0)).save(root / "train2017" / f"{name}.png")
    return root


def changed(**values):
    return {**copy.deepcopy(COCO), **values}


def test_coco_samples(coco_root):
    source = CocoDetection(coco_root)
    assert source.image_ids.tolist() == [10, 20, 30]
    first, second, third = (source[i] for i in range(3))
    assert [s.image[0, 0, 0] for s in (first, second, third)] == [10, 20, 30]
    # category ids stay what they are, the crowd box and the one without width are no targets
    assert first.labels.tolist() == [7, 3] and first.labels.dtype == np.int64
    assert first.boxes.tolist() == [[1, 2, 11, 7], [2.5, 3.5, 6.5, 9.5]]
    assert first.boxes.dtype == np.float32 and first.orig_size == (20, 30)
    assert second.boxes.shape == (0, 4) and second.labels.shape == (0,)
    assert third.boxes.tolist() == [[20, 10, 30, 20]]  # clipped to the image


def test_coco_choices(coco_root):
    assert CocoDetection(coco_root, keep_empty=False).image_ids.tolist() == [10, 30]
    assert CocoDetection(coco_root, limit=2).image_ids.tolist() == [10, 20]
    dogs = CocoDetection(coco_root, classes=["dog"])
    assert dogs.categories.names == {3: "dog"} and len(dogs) == 3
    assert dogs[0].labels.tolist() == [3] and len(dogs[2].labels) == 0
    assert {row["category_id"] for row in dogs.coco.anns.values()} == {3}


def test_coco_ground_truth_keeps_crowds_and_has_no_id_zero(coco_root, capfd):
    truth = CocoDetection(coco_root, limit=2).coco
    assert sorted(truth.getImgIds()) == [10, 20] and len(truth.anns) == 4
    assert 0 not in truth.anns and sum(row["iscrowd"] for row in truth.anns.values()) == 1
    assert all("area" in row for row in truth.anns.values())
    assert capfd.readouterr() == ("", "")


def test_category_ids_that_do_not_fit_are_renumbered(tmp_path):
    rows = [{**row, "category_id": row["category_id"] + 5000} for row in COCO["annotations"]]
    categories = [{**row, "id": row["id"] + 5000} for row in COCO["categories"]]
    source = CocoDetection(write_coco(tmp_path, changed(annotations=rows, categories=categories)))
    assert source.categories.names == {1: "dog", 2: "cat", 3: "cow"}
    assert source[0].labels.tolist() == [2, 1]
    assert source.categories.source_ids == {1: 5003, 2: 5007, 3: 5090}


def test_stored_or_upright_is_decided_by_the_stated_size(coco_root):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture = Image.new("RGB", (30, 20))
    picture.paste((255, 255, 255), (0, 0, 15, 20))
    picture.save(coco_root / "train2017" / "a.png", exif=exif)
    picture.save(coco_root / "train2017" / "b.png", exif=exif)
    source = CocoDetection(coco_root)
    assert source[0].orig_size == (20, 30)  # as stored: the annotation says 20 x 30
    assert source[1].orig_size == (30, 20)  # it says nothing: upright


@pytest.mark.parametrize(
    "break_it, message",
    [
        (
            lambda root: None,
            "COCO folder .*nowhere does not exist.*coco_root=FOLDER.*--set data=FOLDER",
        ),
        (
            lambda root: (root / "annotations" / "instances_train2017.json").unlink(),
            "annotation file .*instances_train2017.json does not exist.*coco_root.*data=FOLDER",
        ),
        (
            lambda root: (root / "train2017").rename(root / "pictures"),
            "image folder .*train2017 does not exist.*coco_root.*--set data=FOLDER",
        ),
        (
            lambda root: (root / "annotations" / "instances_train2017.json").write_text("<html>"),
            "instances_train2017.json is a web page",
        ),
        (
            lambda root: write_coco(root, [1, 2]),
            "has no list 'images'; need a COCO instances file.*coco_root",
        ),
        (
            lambda root: write_coco(
                root, changed(annotations=[{"id": 1, "image_id": 10, "caption": "a dog"}])
            ),
            "an entry of 'annotations' has no 'bbox'; need a COCO instances file",
        ),
        (
            lambda root: write_coco(
                root,
                changed(annotations=[{"id": 8, "image_id": 10, "category_id": 5, "bbox": [1] * 4}]),
            ),
            "annotation 8 of image 10: it has the unknown category 5",
        ),
        (
            lambda root: write_coco(root, changed(images=COCO["images"] * 2)),
            "image id 30 twice",
        ),
        (
            lambda root: write_coco(
                root,
                changed(annotations=[{"id": 8, "image_id": 10, "category_id": 3, "bbox": [1]}]),
            ),
            r"annotation 8 of image 10: bbox must be 4 numbers, got \[1\]",
        ),
    ],
)
def test_coco_errors_are_one_line(coco_root, break_it, message):
    break_it(coco_root)
    root = coco_root / "nowhere" if "nowhere" in message else coco_root
    with pytest.raises(UserError, match=message) as caught:
        CocoDetection(root)
    assert "\n" not in str(caught.value)


def test_coco_errors_of_single_images(coco_root):
    source = CocoDetection(coco_root)
    (coco_root / "train2017" / "a.png").unlink()
    with pytest.raises(UserError, match="a.png is missing; image id 10"):
        source[0]
    (coco_root / "train2017" / "b.png").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="b.png"):
        source[1]
    Image.new("RGB", (5, 5)).save(coco_root / "train2017" / "c.png")
    with pytest.raises(UserError, match=r"c.png is 5x5 \(HxW\), but its annotation says 20x30"):
        source[2]


def test_coco_unknown_choices(coco_root):
    with pytest.raises(UserError, match="unknown class 'dgo' .* similar: dog"):
        CocoDetection(coco_root, classes=["dgo"])
    with pytest.raises(UserError, match="no COCO folder given"):
        CocoDetection(None)


def voc_object(name, box, difficult=0, extra=""):
    corners = "".join(
        f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object><name>{name}</name>{extra}<difficult>{difficult}</difficult>"
        f"<bndbox>{corners}</bndbox></object>"
    )


def write_voc(root, images, year="2012", split="train", suffix=".png"):
    """images: name -> list of object elements; every image is 20 high and 30 wide."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images) + "\n")
    for name, objects in images.items():
        Image.new("RGB", (30, 20)).save(folder / "JPEGImages" / f"{name}{suffix}")
        size = "<size><width>30</width><height>20</height><depth>3</depth></size>"
        text = f"<annotation>{size}{''.join(objects)}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    return root


IMAGES = {
    "one": [
        voc_object("dog", (1, 1, 10, 20)),
        voc_object("cat", (5.5, 2.25, 40, 12), difficult=1),
        voc_object("cat", (4, 4, 4, 4)),
    ],
    "two": [],
    "three": [
        voc_object(
            "person",
            (3, 4, 9, 9),
            extra="<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>",
        )
    ],
}


def test_voc_samples(tmp_path):
    source = VocDetection(write_voc(tmp_path, IMAGES))
    assert source.image_ids == ["one", "two", "three"]
    assert source.categories.names == dict(enumerate(VOC_CLASSES, 1))
    sample = source[0]
    # 1-based inclusive pixels: a box from 1 to 10 covers the first ten
    assert sample.boxes.tolist() == [[0, 0, 10, 20]] and sample.labels.tolist() == [12]
    assert sample.boxes.dtype == np.float32 and sample.labels.dtype == np.int64
    assert source[1].boxes.shape == (0, 4)
    assert source[2].boxes.tolist() == [[2, 3, 9, 9]]  # the part is no object
    truth = source.ground_truth()
    assert truth["one"]["difficult"].tolist() == [False, True]
    assert truth["one"]["labels"].tolist() == [12, 8] and truth["two"]["boxes"].shape == (0, 4)
    assert truth["one"]["boxes"][1].tolist() == [4.5, 1.25, 30, 12]  # decimals, clipped


def test_voc_root_may_be_at_above_or_below_devkit(tmp_path):
    write_voc(tmp_path, IMAGES)
    devkit = tmp_path / "VOCdevkit"
    for root in (tmp_path, devkit, devkit / "VOC2012"):
        assert len(VocDetection(root)) == 3


def test_voc_classes_of_ones_own(tmp_path):
    write_voc(tmp_path, {"a": [voc_object("zebra", (1, 1, 9, 9))]}, split="train")
    write_voc(tmp_path, {"b": [voc_object("ant", (1, 1, 9, 9))]}, split="val")
    train, val = (VocDetection(tmp_path, f"2012:{split}") for split in ("train", "val"))
    # both splits know both classes: the list comes from all annotations of the folder
    assert train.categories == val.categories
    assert train.categories.names == {1: "ant", 2: "zebra"}
    chosen = VocDetection(tmp_path, classes=["zebra"])
    assert chosen.categories.names == {1: "zebra"} and chosen[0].labels.tolist() == [1]
    with pytest.raises(UserError, match="unknown class 'zebr' .* similar: zebra"):
        VocDetection(tmp_path, classes=["zebr"])


def test_voc_sets_are_joined_without_doubles(tmp_path):
    write_voc(tmp_path, IMAGES)
    write_voc(tmp_path, {"one": [], "four": []}, year="2007", suffix=".JPG")
    both = VocDetection(tmp_path, "2012:train,2007:train,2012:train")
    assert both.image_ids == ["one", "two", "three", "VOC2007/one", "four"]
    assert len(VocDetection(tmp_path, "2012:train", limit=2)) == 2


def test_voc_split_lines_may_have_a_column_and_a_suffix(tmp_path):
    write_voc(tmp_path, {"one": [], "img 2": []})
    listing = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "dog_train.txt"
    listing.write_text("one.png  1\n\nimg 2 -1\n")
    names = VocDetection(tmp_path, "2012:dog_train", classes=["dog"]).image_ids
    assert names == ["one", "img 2"]


def test_parse_voc_sets():
    assert parse_voc_sets("2007:trainval, 2012:trainval") == [
        ("2007", "trainval"),
        ("2012", "trainval"),
    ]
    for text in ("2007", "2007:", "", "2007:train,"):
        with pytest.raises(UserError, match="sets of VOC are year:split"):
            parse_voc_sets(text)


@pytest.mark.parametrize(
    "break_it, sets, message",
    [
        (None, "2012:train", "VOC folder .*nowhere does not exist.*--set voc_root=FOLDER"),
        (None, "2007:train", "no VOC2007 in .*; there is 2012"),
        (None, "2012:tset", "split list .*tset.txt does not exist; there is train"),
        ("JPEGImages/two.png", "2012:train", "image 'two' of split 'train' is missing"),
        ("Annotations/two.xml", "2012:train", "annotation .*two.xml does not exist"),
    ],
)
def test_voc_errors_are_one_line(tmp_path, break_it, sets, message):
    write_voc(tmp_path, IMAGES)
    if break_it:
        (tmp_path / "VOCdevkit" / "VOC2012" / break_it).unlink()
    root = tmp_path / "nowhere" if "nowhere" in message else tmp_path
    with pytest.raises(UserError, match=message) as caught:
        VocDetection(root, sets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("<annotation>", "not a valid VOC annotation"),
        ("<annotation><object><name>dog</name></object></annotation>", "'dog' has no xmin"),
        (f"<annotation>{voc_object('', (1, 1, 2, 2))}</annotation>", "has no name"),
        (f"<annotation>{voc_object('dog', ('x', 1, 2, 2))}</annotation>", "xmin of .* a number"),
    ],
)
def test_broken_voc_annotations(tmp_path, text, reason):
    write_voc(tmp_path, IMAGES)
    (tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "two.xml").write_text(text)
    with pytest.raises(UserError, match=f"two.xml .*{reason}"):
        VocDetection(tmp_path)


@pytest.mark.data
@pytest.mark.parametrize(
    "split, images, objects, empty", [("train", 101, 989, 1), ("val", 111, 824, 2)]
)
def test_real_coco(real_data, tmp_path, split, images, objects, empty):
    source = CocoDetection(real_data / "coco", split)
    counts = [len(source.objects(i)[1]) for i in range(len(source))]
    assert (len(source), sum(counts), counts.count(0)) == (images, objects, empty)
    assert len(source.categories.names) == 80 and max(source.categories.names) == 90
    for i in range(0, images, 10):
        sample = source[i]
        rows = source.coco.imgToAnns[sample.image_id]
        wanted = [row for row in rows if not row["iscrowd"]]
        assert sample.labels.tolist() == [row["category_id"] for row in wanted]
        for box, row in zip(sample.boxes, wanted, strict=True):
            x, y, w, h = row["bbox"]
            np.testing.assert_allclose(box, [x, y, x + w, y + h], atol=1e-2)
    if split == "val":
        with pytest.raises(UserError, match="no 'bbox'|no list 'categories'"):
            file = real_data / "coco" / "annotations" / "captions_val2017.json"
            for folder in ("annotations", "val2017"):
                (tmp_path / folder).mkdir()
            shutil.copy(file, tmp_path / "annotations" / "instances_val2017.json")
            CocoDetection(tmp_path, "val")


@pytest.mark.data
@pytest.mark.parametrize(
    "folder, year, images, objects, classes",
    [
        ("voc_bccd", "2007", 292, 3941, ["Platelets", "RBC", "WBC"]),  # two have no area
        ("voc_raccoon", "2012", 140, 152, ["raccoon"]),
        ("voc_kangaroo", "2012", 110, 184, ["kangaroo"]),
        ("voc_home_objects", "2012", 60, 479, None),
    ],
)
def test_real_voc(real_data, folder, year, images, objects, classes):
    parts = [VocDetection(real_data / folder, f"{year}:{split}") for split in ("train", "val")]
    truth = {**parts[0].ground_truth(), **parts[1].ground_truth()}
    assert sum(map(len, parts)) == len(truth) == images
    assert sum(len(row["labels"]) for row in truth.values()) == objects
    assert parts[0].categories == parts[1].categories
    names = list(parts[0].categories.names.values())
    assert names == classes if classes else len(names) == 30 and "pottedplant" in names
    for source in parts:
        sample = source[len(source) // 2]
        h, w = sample.orig_size
        assert (sample.boxes >= 0).all() and (sample.boxes <= [w, h, w, h]).all()
        np.testing.assert_array_equal(sample.boxes, truth[sample.image_id]["boxes"])
