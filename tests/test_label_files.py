"""Files of labelling tools in their variants, and damaged: YOLO, LabelMe, CVAT, Datumaro."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.coco_captioning import CocoCaptions
from dataset.coco_detection import CocoDetection
from dataset.coco_keypoint import CocoKeypoints
from dataset.find_dataset import find_dataset
from utils.errors import UserError
from utils.masks import mask_to_rle

HEIGHT, WIDTH = 40, 80  # of all pictures
GOOD = "0 0.5 0.5 0.25 0.5"  # a box
GOOD_BOX = [30, 10, 50, 30]
NAMES = ["cat", "dog"]


def save(path: Path, content: object = None) -> Path:
    """Writes a picture, text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        Image.new("RGB", (WIDTH, HEIGHT), "gray").save(path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def rows(folder: Path, part: str | None = None, *, skip: bool = False) -> list[tuple]:
    """(picture, class, box) of all objects, sorted."""
    data = find_dataset(folder)
    found = []
    for name in [part] if part else [n for n in data.names if n in ("all", "test")] or data.names:
        source = CocoDetection(data, name, skip_bad=skip)
        for i in range(len(source)):
            boxes, labels = source.objects(i)
            names = [source.categories.names[int(label)] for label in labels]
            picture = source.image_path(i).name
            found += [(picture, n, b.round(3).tolist()) for n, b in zip(names, boxes, strict=True)]
    return sorted(found)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        rows(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- YOLO --------------------------------------------------------------------------------------

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def yolo(tmp_path) -> Path:
    """Two pictures for training and one for validation, below a folder that misleads."""
    folder = tmp_path / "images" / "set"
    for name in ("train/a", "train/b", "val/c"):
        save(folder / f"images/{name}.png")
        save(folder / f"labels/{name}.txt", f"{GOOD}\n1 0.25 0.25 0.5 0.5\n")
    save(folder / "data.yaml", YAML)
    return folder


TRUTH = [
    row
    for name in ("a.png", "b.png", "c.png")
    for row in ((name, "cat", GOOD_BOX), (name, "dog", [0, 0, 40, 20]))
]


def test_yolo_boxes_are_pixels_of_their_picture(yolo):
    assert rows(yolo) == TRUTH
    assert {row[0] for row in rows(yolo, "val")} == {"c.png"}


def roboflow(folder: Path) -> None:
    """Its paths are meant from a folder beside the file."""
    for part in ("train", "valid"):
        source = "val" if part == "valid" else part
        (folder / part).mkdir()
        (folder / "images" / source).rename(folder / part / "images")
        (folder / "labels" / source).rename(folder / part / "labels")
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\n"
    save(folder / "data.yaml", text + "names: [cat, dog]\n")  # and there is no test part


def lists(folder: Path) -> None:
    save(folder / "train.txt", "./images/train/a.png\n\n./images/train/b.png\n")
    save(folder / "val.txt", "data/images/val/c.png\r\n")  # as CVAT writes them
    save(folder / "data.yaml", "path: .\ntrain: train.txt\nval: [val.txt]\nnames: {0: cat, 1: dog}")


def folders(folder: Path) -> None:
    (folder / "images/more").mkdir()
    (folder / "labels/more").mkdir()
    (folder / "images/train/b.png").rename(folder / "images/more/b.png")
    (folder / "labels/train/b.txt").rename(folder / "labels/more/b.txt")
    save(folder / "data.yaml", YAML.replace("images/train", "[images/train, images/more]"))


def other_machine(folder: Path) -> None:
    text = "path: C:\\Users\\me\\set\ntrain: D:\\set\\images\\train\nval: /home/me/set/images/val\n"
    save(folder / "data.yaml", text + "names: {'0': cat, '1': dog}\n")


def other_name(folder: Path) -> None:
    save(folder / "pets.yaml", YAML)
    save(folder / "hyp.yaml", "lr0: 0.01\n")
    (folder / "data.yaml").unlink()


def beside(folder: Path) -> None:
    for label in folder.rglob("labels/*/*.txt"):
        label.rename(folder / "images" / label.relative_to(folder / "labels"))


def no_yaml(folder: Path) -> None:
    (folder / "data.yaml").unlink()
    save(folder / "classes.txt", "cat\ndog\n\n")


def parts_first(folder: Path) -> None:
    """train/images and train/labels, without a YAML file."""
    roboflow(folder)
    no_yaml(folder)


def darknet(folder: Path) -> None:
    for part in ("train", "val"):
        place = folder / f"obj_{part}_data"
        place.mkdir()
        for kind in ("images", "labels"):
            for file in sorted((folder / kind / part).iterdir()):
                file.rename(place / file.name)
        names = sorted(file.name for file in place.glob("*.png"))
        save(folder / f"{part}.txt", "".join(f"data/{place.name}/{name}\n" for name in names))
    (folder / "data.yaml").unlink()
    save(folder / "obj.names", "cat\ndog\n")
    lines = "classes = 2\ntrain = data/train.txt\nval = data/val.txt\nnames = data/obj.names\n"
    save(folder / "obj.data", lines + "backup = backup/\n")


def no_data(folder: Path) -> None:
    darknet(folder)
    (folder / "obj.data").unlink()


def spaces(folder: Path) -> None:
    """As people and systems write: tabs, carriage returns, a mark of byte order, ids as 0.0."""
    for label in folder.rglob("labels/*/*.txt"):
        lines = "\t".join([" 0.0", *GOOD.split()[1:]]) + "\r\n1 2.5e-1 .25 0.5 5E-1  \r\n\r\n"
        label.write_bytes(b"\xef\xbb\xbf" + lines.encode())


LAYOUTS = (roboflow, lists, folders, other_machine, other_name, beside, no_yaml, parts_first)


@pytest.mark.parametrize("change", [*LAYOUTS, darknet, no_data, spaces], ids=lambda f: f.__name__)
def test_every_layout_of_yolo_gives_the_same_objects(yolo, change):
    change(yolo)
    assert rows(yolo) == TRUTH
    assert {row[0] for row in rows(yolo, "val")} == {"c.png"}


def test_a_yolo_dataset_may_lie_elsewhere_than_its_yaml_file(yolo, tmp_path):
    file = save(tmp_path / "settings" / "pets.yaml", f"path: {yolo}\n{YAML}")
    save(tmp_path / "settings" / "others.yaml", f"path: {yolo}\n{YAML}")
    assert rows(file) == TRUTH
    assert "several YAML files" in refusal(file.parent) and "pets.yaml" in refusal(file.parent)


def test_a_flat_folder_of_pictures_and_label_files(yolo, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in [*yolo.rglob("*.png"), *yolo.rglob("*.txt")]:
        file.rename(flat / file.name)
    assert "nothing names the classes" in refusal(flat)
    save(flat / "classes.txt", "cat\ndog\n")
    assert rows(flat, "all") == TRUTH


def test_a_picture_without_a_label_file_has_no_objects(yolo):
    (yolo / "labels/train/b.txt").unlink()
    save(yolo / "labels/train/a.txt", "")
    assert rows(yolo) == TRUTH[4:]
    assert len(CocoDetection(find_dataset(yolo), "train")) == 2


def test_a_validation_part_that_is_nowhere_can_be_left_to_a_share_of_the_training(yolo):
    for gone in ("images/nowhere", "empty"):
        (yolo / "empty").mkdir(exist_ok=True)
        save(yolo / "data.yaml", YAML.replace("images/val", gone))
        line = refusal(yolo)
        assert gone in line and "or delete the line 'val:': then val_share (a fifth)" in line
    save(yolo / "data.yaml", YAML.replace("val: images/val\n", ""))
    assert sorted(rows(yolo, "train") + rows(yolo, "val")) == TRUTH[:4]
    save(yolo / "data.yaml", YAML.replace("images/train", "images/nowhere"))
    assert "delete the line" not in refusal(yolo)


def test_a_part_without_any_label_file_is_refused(yolo):
    for label in (yolo / "labels/train").iterdir():
        label.unlink()
    assert "none of its 2 pictures has a label file" in refusal(yolo)
    assert "labels/train/a.txt" in refusal(yolo)


DAMAGES = {  # a line -> what the message says
    "0 0.5 0.5 0.25": "5 numbers of a box",
    "0 0.5 0.5 0.25 0.5 0.9 0.8 0.1": "5 numbers of a box",
    "0": "5 numbers of a box",
    "0 0.5 0.5 0.25 x": "'x'",
    "0 0.5 0.5 0.25 nan": "finite",
    "0 0.5 0.5 0.25 1_0": "'1_0'",
    "0 0.5 0.5 0.25 inf": "finite",
    "0 0.5 0.5 0.25 -0.5": "0 to 1, got -0.5",
    "0 32 20 20 20": "0 to 1, got 32 (pixels?)",
    "0 0.5 1.2 0.25 0.5": "0 to 1, got 1.2",
    "2 0.5 0.5 0.25 0.5": "class is 2, there are 0 to 1",
    "-1 0.5 0.5 0.25 0.5": "class is -1",
    "0.5 0.5 0.5 0.25 0.5": "class is 0.5",
    "cat 0.5 0.5 0.25 0.5": "'cat'",
    "0 0.1 0.1 0.2 0.2 0.3 1.5": "0 to 1, got 1.5",
    "0,0.5,0.5,0.25,0.5": "consist of numbers",
}


@pytest.mark.parametrize("line", DAMAGES)
def test_a_damaged_line_is_named_and_can_be_left_out(yolo, line):
    save(yolo / "labels/train/a.txt", f"{GOOD}\n{line}\n1 0.25 0.25 0.5 0.5\n")
    message = refusal(yolo)
    assert "labels/train/a.txt, line 2: " in message and DAMAGES[line] in message
    assert "bad_samples=skip" in message
    assert rows(yolo, "train", skip=True) == TRUTH[:4]


@pytest.mark.parametrize("line", ["0 0.5 0.5 0 0.5", "0 0.1 0.1 0.2 0.2 0.3 0.3"])
def test_what_has_no_area_is_left_out_and_reported(yolo, line):
    save(yolo / "labels/train/a.txt", f"{GOOD}\n{line}\n1 0.25 0.25 0.5 0.5\n")
    source = CocoDetection(find_dataset(yolo), "train")
    assert "labels/train/a.txt, line 2" in source.annotation_errors.notice()
    assert rows(yolo) == TRUTH


def test_a_confidence_is_not_used(yolo):
    save(yolo / "labels/train/a.txt", f"{GOOD} 0.93\n1 0.25 0.25 0.5 0.5\n")
    assert rows(yolo) == TRUTH
    errors = CocoDetection(find_dataset(yolo), "train").annotation_errors
    assert errors.counts["confidence"] == 1


def test_a_label_file_that_is_no_text_is_named(yolo):
    (yolo / "labels/train/a.txt").write_bytes(b"\xff\x80\x81 0.5")
    assert "labels/train/a.txt" in refusal(yolo)
    assert rows(yolo, "train", skip=True) == TRUTH[2:4]


def test_a_picture_that_cannot_be_read_is_named(yolo):
    (yolo / "images/train/a.png").write_bytes(b"no picture")
    assert "a.png" in refusal(yolo)
    assert rows(yolo, "train", skip=True) == TRUTH[2:4]


def test_a_list_that_names_no_picture_is_refused_by_line(yolo):
    lists(yolo)
    save(yolo / "train.txt", "images/train/a.png\nimages/train/x.png\n")
    assert "train.txt, line 2" in refusal(yolo)
    assert rows(yolo, "train", skip=True) == TRUTH[:2]


YAML_DAMAGES = {
    "train: images/train\nval: images/val\n": "names",
    "train: images/train\nnames: 7\n": "names",
    "train: images/train\nnames: [cat]\nnc: 2\n": "nc is 2",
    "train: images/nowhere\nnames: [cat, dog]\n": "'images/nowhere'",
    "train: {a: b}\nnames: [cat, dog]\n": "train must be",
    "train: images/train\nnames: [cat, dog\n": "as YAML",
    "train: images/train\nnames: &a [*a, *a]\n": "aliases",
    "- images/train\n": "lines such as",
    "train: images/train\nnames: [cat, dog]\nkpt_shape: [17]\n": "kpt_shape",
    "train: images/train\nnames: [cat, dog]\nkpt_shape: [3, 2]\nflip_idx: [0, 1]\n": "flip_idx",
    "train: images/train\nnames: [cat, dog]\nkpt_shape: [3, 2]\nflip_idx: [1, 2, 0]\n": "flip_idx",
    "train: images/train\nnames: [cat, dog]\nkpt_shape: [3, 2]\nkpt_names: [a]\n": "kpt_names",
}


@pytest.mark.parametrize("text", YAML_DAMAGES)
def test_a_damaged_yaml_file_is_refused(yolo, text):
    save(yolo / "data.yaml", text)
    message = refusal(yolo)
    assert "data.yaml" in message and YAML_DAMAGES[text] in message


def test_shares_are_those_of_the_upright_picture(yolo):
    """Ultralytics, too, turns pictures as their EXIF orientation says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "b.png"):
        (yolo / "images/train" / name).unlink()
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    picture.save(yolo / "images/train/a.jpg", exif=exif)
    sample = CocoDetection(find_dataset(yolo), "train").read(0)
    assert sample.orig_size == sample.image.shape[:2] == (WIDTH, HEIGHT)
    np.testing.assert_allclose(sample.boxes[0], [15, 20, 25, 60])


POINTS = "0 0.5 0.5 0.25 0.5 0.5 0.25 2 0 0 0 0.25 0.5 1"


@pytest.mark.parametrize("size", [2, 3])
def test_poses_have_points_names_and_pairs(yolo, size):
    lines = {3: POINTS, 2: "0 0.5 0.5 0.25 0.5 0.5 0.25 0 0 0.25 0.5"}
    save(yolo / "labels/train/a.txt", f"{lines[size]}\n{GOOD}\n")
    save(yolo / "labels/train/b.txt", "")
    text = f"kpt_shape: [3, {size}]\nflip_idx: [2, 1, 0]\n"
    save(yolo / "data.yaml", YAML + text)
    source = CocoKeypoints(find_dataset(yolo), "train")
    seen = 1 if size == 3 else 2
    expected = [[[40, 10, 2], [0, 0, 0], [20, 20, seen]]]
    np.testing.assert_allclose(source.read(0).keypoints, expected)
    assert source.skeleton.names == ("point_1", "point_2", "point_3")
    assert source.skeleton.flip_pairs == ((0, 2),)
    assert rows(yolo, "train") == [("a.png", "cat", GOOD_BOX)] * 2
    names = "kpt_names: {0: [left_a, nose, right_a], 1: [left_a, nose, right_a]}\n"
    save(yolo / "data.yaml", YAML + f"kpt_shape: [3, {size}]\n" + names)
    source = CocoKeypoints(find_dataset(yolo), "train")
    assert source.skeleton.names == ("left_a", "nose", "right_a")
    assert source.skeleton.flip_pairs == ((0, 2),)


@pytest.mark.parametrize(
    "line", [POINTS + " 1", POINTS[:-1] + "3", POINTS.replace("0.25 2", "9 2")]
)
def test_a_damaged_pose_is_named(yolo, line):
    save(yolo / "data.yaml", YAML + "kpt_shape: [3, 3]\n")
    save(yolo / "labels/train/a.txt", f"{POINTS}\n{line}\n")
    assert "labels/train/a.txt, line 2" in refusal(yolo)


def test_a_part_that_is_not_there_is_not_another_folder(yolo):
    """Lines of an export whose folders were moved must not come to mean all pictures."""
    rest = "names: [cat, dog]\n"
    save(yolo / "data.yaml", f"train: images/train\nval: images/val\ntest: ../test/images\n{rest}")
    assert set(find_dataset(yolo).names) == {"train", "val"}
    save(yolo / "data.yaml", f"train: ../train/images\nval: ../valid/images\n{rest}")
    assert "../train/images" in refusal(yolo) and "is not in" in refusal(yolo)
    save(yolo / "train.txt", "/home/me/set/train/a.png\n")
    save(yolo / "a.png")
    save(yolo / "data.yaml", f"train: train.txt\nval: images/val\n{rest}")
    assert "train.txt" in refusal(yolo)
    # words of folders far above mean nothing
    save(yolo / "train.txt", "/home/me/test/pets/images/train/a.png\n")
    save(yolo / "data.yaml", f"train: train.txt\nval: C:/dev/pets/images/val\n{rest}")
    assert {row[0] for row in rows(yolo)} == {"a.png", "c.png"}


@pytest.mark.parametrize(
    ("picture", "label"),
    [("IMG_1.JPG", "img_1.txt"), ("e\u0301 a.png", "\u00e9 a.txt"), ("x.jfif", "x.txt")],
)
def test_a_label_file_may_be_spelt_as_another_system_does(yolo, picture, label):
    save(yolo / "images/train/a.png").rename(yolo / "images/train" / picture)
    (yolo / "labels/train/a.txt").rename(yolo / "labels/train" / label)
    found = [row for row in rows(yolo, "train") if row[0] == picture]
    assert [row[1:] for row in found] == [("cat", GOOD_BOX), ("dog", [0, 0, 40, 20])]


def test_a_label_file_of_one_picture_is_not_given_to_another(yolo):
    if save(yolo / "images/train/A.png").samefile(yolo / "images/train/a.png"):
        pytest.skip("this file system ignores case")
    assert {row[0] for row in rows(yolo, "train")} == {"a.png", "b.png"}


def test_label_files_without_a_picture_are_counted(yolo):
    """As after an incomplete copy; lists of classes and notes are none."""
    save(yolo / "labels/train/gone.txt", GOOD)
    save(yolo / "labels/train/classes.txt", "cat\ndog\n")
    save(yolo / "labels/train/empty.txt", "")
    save(yolo / "images/train/notes.txt", "five words that are none\n")
    errors = CocoDetection(find_dataset(yolo), "train").annotation_errors
    assert errors.counts["label_alone"] == 1 and "gone.txt" in errors.notice()
    assert "label_alone" not in CocoDetection(find_dataset(yolo), "val").annotation_errors.counts


def test_a_picture_that_was_resized_is_looked_at_again(yolo, monkeypatch, tmp_path):
    """What was read is kept for the next time; boxes are shares of the picture as it is."""
    monkeypatch.setattr("utils.array_cache.MANY", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert rows(yolo)[0] == ("a.png", "cat", GOOD_BOX)
    for picture in yolo.rglob("*.png"):
        Image.new("RGB", (WIDTH // 2, HEIGHT // 2)).save(picture)
    assert any((tmp_path / "cache").rglob("*.*")), "it was kept"
    assert rows(yolo)[0] == ("a.png", "cat", [side / 2 for side in GOOD_BOX])


# ---- LabelMe -----------------------------------------------------------------------------------


def labelme_shape(kind: str, points: list, label: str = "cat", **fields) -> dict:
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, **fields}


def labelme(folder: Path, shapes: list, name: str = "a") -> Path:
    save(folder / f"{name}.png")
    sides = {"imageHeight": HEIGHT, "imageWidth": WIDTH, "imageData": None}
    save(folder / f"{name}.json", {"shapes": shapes, "imagePath": f"{name}.png", **sides})
    return folder


BOX = labelme_shape("rectangle", [[50, 30], [30, 10]])  # from the far corner
MASK = io.BytesIO()
Image.new("1", (20, 20), 1).save(MASK, "PNG")
MASK_TEXT = base64.b64encode(MASK.getvalue()).decode()


@pytest.mark.parametrize(
    "shapes",
    [
        [BOX],
        [labelme_shape("polygon", [[30, 10], [50, 10], [50, 30], [30, 30]])],
        [labelme_shape("circle", [[40, 20], [40, 30]])],
        [labelme_shape("mask", [[30, 10], [49, 29]], mask=MASK_TEXT)],
        [labelme_shape("polygon", [[30, 10], [35, 10], [35, 30]], group_id=3),
         labelme_shape("polygon", [[45, 10], [50, 10], [50, 30]], group_id=3)],
        [labelme_shape("polygon", [[30, 10], [35, 10], [35, 12]], group_id=3),
         labelme_shape("mask", [[30, 10], [49, 29]], mask=MASK_TEXT, group_id=3)],
    ],
)  # fmt: skip
def test_labelme_shapes_of_one_object(tmp_path, shapes):
    labelme(tmp_path, shapes)
    labelme(tmp_path, [labelme_shape("rectangle", [[0, 0], [9, 9]], "dog")], "b")
    assert rows(tmp_path, "all") == [("a.png", "cat", GOOD_BOX), ("b.png", "dog", [0, 0, 9, 9])]


def test_labelme_groups_of_several_objects_stay_apart(tmp_path):
    labelme(
        tmp_path, [BOX | {"group_id": 1}, labelme_shape("rectangle", [[0, 0], [9, 9]], group_id=1)]
    )
    assert len(rows(tmp_path, "all")) == 2


def test_labelme_classes_are_sorted_or_those_of_the_list(tmp_path):
    labelme(tmp_path, [BOX | {"label": "zebra"}, BOX])
    names = CocoDetection(find_dataset(tmp_path), "all").categories.names
    assert list(names.values()) == ["cat", "zebra"]
    save(tmp_path / "labels.txt", "__ignore__\n_background_\nzebra\ncat\nant\n")
    names = CocoDetection(find_dataset(tmp_path), "all").categories.names
    assert list(names.values()) == ["zebra", "cat", "ant"]
    save(tmp_path / "labels.txt", "zebra\n")
    assert "a.json, shape 2: 'cat' is not in labels.txt" in refusal(tmp_path)


def test_labelme_marks_that_are_no_objects_are_counted(tmp_path):
    labelme(
        tmp_path, [BOX, labelme_shape("point", [[1, 1]]), labelme_shape("line", [[1, 1], [2, 2]])]
    )
    errors = CocoDetection(find_dataset(tmp_path), "all").annotation_errors
    assert errors.counts["shape"] == 2 and "a.json, shape 2: point" in errors.notice()


@pytest.mark.parametrize(
    "shape",
    [
        "cat",
        {"points": [[0, 0]]},
        labelme_shape("rectangle", [[1, 2]]),
        labelme_shape("polygon", [[1, 2], [3, 4]]),
        labelme_shape("polygon", [[1, 2], [3, "x"], [5, 6]]),
        labelme_shape("polygon", [[1, 2], [3], [5, 6]]),
        labelme_shape("mask", [[30, 10], [49, 29]], mask="AAAA"),
        labelme_shape("mask", [[70, 30], [89, 49]], mask=MASK_TEXT),
        labelme_shape("mask", [[30, 10], [49, 29]]),
    ],
)
def test_a_damaged_labelme_shape_is_named_and_can_be_left_out(tmp_path, shape):
    labelme(tmp_path, [BOX, shape])
    labelme(tmp_path, [BOX], "b")
    assert "a.json, shape 2: " in refusal(tmp_path)
    expected = [(f"{name}.png", "cat", GOOD_BOX) for name in "ab"]
    assert rows(tmp_path, "all", skip=True) == expected


def test_labelme_parts_are_those_of_the_folders(tmp_path):
    """Wherever they are, and whatever other JSON files lie about."""
    for number, part in enumerate(("train", "val", "test")):
        labelme(tmp_path / "images" / part, [BOX], f"{number}")
    save(tmp_path / "dataset-metadata.json", {"title": "of another tool"})
    data = find_dataset(tmp_path)
    assert set(data.names) == {"train", "val", "test"}
    assert rows(tmp_path, "train") == [("0.png", "cat", GOOD_BOX)]
    labelme(tmp_path, [BOX], "stray")
    assert "0.json is in the part train, stray.json in none (train, val, test)" in refusal(tmp_path)
    for folder in ("test_bench/s1", "dev", "prod"):  # these are no parts
        labelme(tmp_path / "words" / folder, [BOX], folder[:2])
    assert len(rows(tmp_path / "words", "all")) == 3


def test_labelme_pictures_beside_come_before_those_of_other_folders(tmp_path):
    """A pair was renamed; its file still states the old name, which another folder has."""
    labelme(tmp_path / "c", [BOX | {"label": "dog"}], "old")
    labelme(tmp_path / "b", [BOX], "old")
    for suffix in ("png", "json"):
        (tmp_path / f"b/old.{suffix}").rename(tmp_path / f"b/new.{suffix}")
    assert rows(tmp_path, "all") == [("new.png", "cat", GOOD_BOX), ("old.png", "dog", GOOD_BOX)]
    (tmp_path / "b/new.png").unlink()
    assert "b/new.json is of c/old.png, too" in refusal(tmp_path)


def test_labelme_shapes_to_ignore_are_left_out(tmp_path):
    labelme(tmp_path, [BOX, BOX | {"label": "__ignore__"}])
    for text in (None, "__ignore__\ncat\n"):
        if text:
            save(tmp_path / "labels.txt", text)
        source = CocoDetection(find_dataset(tmp_path), "all")
        assert list(source.categories.names.values()) == ["cat"]
        assert source.annotation_errors.counts["shape"] == 1
        assert rows(tmp_path, "all") == [("a.png", "cat", GOOD_BOX)]


def test_labelme_files_in_parts_and_paths_of_windows(tmp_path):
    for part, name in (("train", "a"), ("val", "b")):
        labelme(tmp_path / part, [BOX], name)
    text = (tmp_path / "train/a.json").read_text().replace('"a.png"', '"..\\\\train\\\\a.png"')
    save(tmp_path / "train/a.json", text)
    assert rows(tmp_path) == [(f"{name}.png", "cat", GOOD_BOX) for name in "ab"]
    (tmp_path / "val/b.json").write_text("{")
    assert "b.json" in refusal(tmp_path)


# ---- CVAT --------------------------------------------------------------------------------------

SVG = (
    '<line data-type="edge" data-node-from="1" data-node-to="2"/>'
    '<circle data-type="element node" data-node-id="1" data-label-name="head"/>'
    '<circle data-type="element node" data-node-id="2" data-label-name="left_paw"/>'
    '<circle data-type="element node" data-node-id="3" data-label-name="right_paw"/>'
).replace("<", "&lt;").replace(">", "&gt;")  # fmt: skip
LABELS = (
    f"<label><name>cat</name><type>skeleton</type><svg>{SVG}</svg></label>"
    "<label><name>right_paw</name><parent>cat</parent></label>"
    "<label><name>left_paw</name><parent>cat</parent></label>"
    "<label><name>head</name><parent>cat</parent></label><label><name>dog</name></label>"
)


def cvat(folder: Path, shapes: str, more: str = "", attributes: str = "") -> Path:
    save(folder / "images/a.png")
    image = f'<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}" {attributes}>'
    save(
        folder / "annotations.xml",
        f"<annotations><version>1.1</version><meta><task><labels>{LABELS}</labels></task></meta>"
        f"{image}{shapes}</image>{more}</annotations>",
    )
    return folder


@pytest.mark.parametrize(
    "shapes",
    [
        '<box label="cat" xtl="30" ytl="10" xbr="50" ybr="30"/>',
        '<box label="cat" xtl="30" ytl="10" xbr="50" ybr="30" rotation="90"/>',
        '<polygon label="cat" points="30,10;50,10;50.0,30;30,30"/>',
        '<ellipse label="cat" cx="40" cy="20" rx="10" ry="10"/>',
        f'<mask label="cat" rle="0, {20 * 20}" left="30" top="10" width="20" height="20"/>',
        '<mask label="cat" rle="3,1,16,1,9,1,9" left="30" top="10" width="20" height="2"/>'
        '<polygon label="cat" points="0,0;1,1;2,0" group_id="0"/>',
        '<polygon label="cat" points="30,10;35,10;35,30" group_id="2"/>'
        '<polygon label="cat" points="45,10;50,10;50,30" group_id="2"/>',
    ],
)
def test_cvat_shapes(tmp_path, shapes):
    found = rows(cvat(tmp_path, shapes), "all")
    if 'rle="3' in shapes:  # runs go along rows: pixels 3 and 20 and 30 of the window
        assert found == [("a.png", "cat", [0, 0, 2, 1]), ("a.png", "cat", [30, 10, 41, 12])]
    else:
        assert found == [("a.png", "cat", GOOD_BOX)]


def test_cvat_skeletons_have_names_edges_and_visibility(tmp_path):
    points = {"head": "40,10", "left_paw": "30,30", "right_paw": "50,30"}
    marks = {"left_paw": 'occluded="1"', "right_paw": 'outside="1"'}
    inside = "".join(f'<points label="{name}" points="{xy}" {marks.get(name, "")}/>'
                     for name, xy in reversed(points.items()))  # fmt: skip
    cvat(tmp_path, f'<skeleton label="cat">{inside}</skeleton>')
    source = CocoKeypoints(find_dataset(tmp_path), "all")
    assert source.skeleton.names == ("head", "left_paw", "right_paw")
    assert source.skeleton.edges == ((0, 1),) and source.skeleton.flip_pairs == ((1, 2),)
    np.testing.assert_allclose(source.read(0).keypoints, [[[40, 10, 2], [30, 30, 1], [0, 0, 0]]])
    assert list(CocoDetection(find_dataset(tmp_path), "all").categories.names.values()) == NAMES


def test_cvat_subsets_are_parts(tmp_path):
    box = '<box label="cat" xtl="30" ytl="10" xbr="50" ybr="30"/>'
    for name in ("Validation/a.png", "Train/a.png"):
        save(tmp_path / "images" / name)
    image = f'<image id="1" name="a.png" width="{WIDTH}" height="{HEIGHT}" subset="Validation">'
    cvat(tmp_path, box, f"{image}{box * 2}</image>", 'subset="Train"')
    assert len(rows(tmp_path, "train")) == 1 and len(rows(tmp_path, "val")) == 2
    source = CocoDetection(find_dataset(tmp_path), "val")
    assert source.image_path(0) == tmp_path / "images/Validation/a.png"
    text = (tmp_path / "annotations.xml").read_text()
    save(tmp_path / "annotations.xml", text.replace('"Train"', '"mine"'))
    assert "'mine'" in refusal(tmp_path)


@pytest.mark.parametrize(
    "shape",
    [
        '<box label="cat" xtl="30" ytl="10" xbr="50"/>',
        '<box label="cat" xtl="30" ytl="x" xbr="50" ybr="30"/>',
        '<box label="cow" xtl="30" ytl="10" xbr="50" ybr="30"/>',
        '<polygon label="cat" points="30,10;50,10"/>',
        '<polygon label="cat" points="30,10;50;50,30"/>',
        '<mask label="cat" rle="0, 4" left="30" top="10" width="20" height="20"/>',
        '<mask label="cat" rle="0, 400" left="70" top="10" width="20" height="20"/>',
        '<skeleton label="cat"><points label="tail" points="1,1"/></skeleton>',
    ],
)
def test_a_damaged_cvat_shape_is_named_and_can_be_left_out(tmp_path, shape):
    good = '<box label="cat" xtl="30" ytl="10" xbr="50" ybr="30"/>'
    cvat(tmp_path, good + shape + '<polyline label="cat" points="1,1;2,2"/>')
    assert "image 'a.png', <" in refusal(tmp_path)
    assert rows(tmp_path, "all", skip=True) == [("a.png", "cat", GOOD_BOX)]


def test_cvat_files_that_are_none(tmp_path):
    cvat(tmp_path, "")
    text = (tmp_path / "annotations.xml").read_text()
    save(tmp_path / "annotations.xml", '<!DOCTYPE a [<!ENTITY b "c">]>' + text)
    assert "entities" in refusal(tmp_path)
    save(tmp_path / "annotations.xml", "<annotations><version>1.1</version></annotations>")
    assert "lists no image" in refusal(tmp_path)
    save(tmp_path / "annotations.xml", "<annotations><track></track></annotations>")
    assert "CVAT for images 1.1" in refusal(tmp_path)


# ---- Datumaro ----------------------------------------------------------------------------------


def datumaro(folder: Path, annotations: list, names=("cat", "dog"), **categories) -> Path:
    save(folder / "images/default/a.png")
    labels = [{"name": name, "parent": ""} if isinstance(name, str) else name for name in names]
    item = {"id": "a", "annotations": annotations, "image": {"path": "a.png"}}
    content = {"categories": {"label": {"labels": labels}, **categories}, "items": [item]}
    save(folder / "annotations/default.json", content)
    return folder


DATUMARO_BOX = {"type": "bbox", "label_id": 0, "bbox": [30, 10, 20, 20], "group": 0}


@pytest.mark.parametrize(
    "shape",
    [
        DATUMARO_BOX,
        {"type": "polygon", "label_id": 0, "points": [30, 10, 50, 10, 50, 30, 30, 30]},
        {"type": "rotated_bbox", "label_id": 0, "points": [40, 20, 20, 20, 90]},
        {"type": "ellipse", "label_id": 0, "points": [30, 10, 50, 30]},
        # as CVAT has it: turned around its centre
        DATUMARO_BOX | {"attributes": {"rotation": 0.0}},
        DATUMARO_BOX | {"attributes": {"rotation": 270.0}},
    ],
)
def test_datumaro_shapes(tmp_path, shape):
    assert rows(datumaro(tmp_path, [shape]), "all") == [("a.png", "cat", GOOD_BOX)]


def test_a_turned_box_of_cvat_in_datumaro_is_turned(tmp_path):
    shape = DATUMARO_BOX | {"bbox": [35, 5, 10, 30], "attributes": {"rotation": 90.0}}
    assert rows(datumaro(tmp_path, [shape]), "all") == [("a.png", "cat", [25, 15, 55, 25])]


def test_a_mask_and_a_polygon_of_a_picture_whose_size_is_not_stated(tmp_path):
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[10:30, 30:40] = True
    rle = mask_to_rle(square)
    mask = {"type": "mask", "label_id": 0, "group": 1, "rle": rle}
    polygon = {"type": "polygon", "label_id": 0, "points": [40, 10, 50, 10, 50, 30, 40, 30]}
    folder = datumaro(tmp_path, [mask, polygon | {"group": 1}])
    assert rows(folder, "all") == [("a.png", "cat", GOOD_BOX)]
    other = mask | {"rle": mask_to_rle(square[:20])}
    assert "several sizes" in refusal(datumaro(tmp_path, [mask, other]))


def test_skeletons_as_cvat_writes_them_for_datumaro(tmp_path):
    """The points are labels below that of the skeleton."""
    names = ["cat", {"name": "head", "parent": "cat"}, {"name": "tail", "parent": "cat"}, "dog"]
    points = {"items": [{"label_id": 0, "labels": ["head", "tail"], "joints": [[1, 2]]}]}
    elements = [
        {"type": "points", "label_id": 2, "points": [30, 30], "visibility": [1]},
        {"type": "points", "label_id": 1, "points": [40, 10], "visibility": [2]},
    ]
    skeleton = {"type": "skeleton", "label_id": 0, "elements": elements, "group": 4}
    box = DATUMARO_BOX | {"group": 4}
    caption = {"type": "caption", "caption": "a cat"}
    datumaro(tmp_path, [skeleton, box, caption], names, points=points)
    source = CocoKeypoints(find_dataset(tmp_path), "all")
    np.testing.assert_allclose(source.read(0).keypoints, [[[40, 10, 2], [30, 30, 1]]])
    assert source.skeleton.names == ("head", "tail") and source.skeleton.edges == ((0, 1),)
    assert rows(tmp_path, "all") == [("a.png", "cat", GOOD_BOX)]
    assert list(CocoDetection(find_dataset(tmp_path), "all").categories.names.values()) == NAMES
    assert CocoCaptions(find_dataset(tmp_path), "all").read(0).captions == ["a cat"]


@pytest.mark.parametrize(
    "shape",
    [
        7,
        {"type": "bbox", "label_id": 0, "bbox": [1, 2, 3]},
        {"type": "bbox", "label_id": 9, "bbox": [1, 2, 3, 4]},
        {"type": "bbox", "label_id": None, "bbox": [1, 2, 3, 4]},
        {"type": "polygon", "label_id": 0, "points": [1, 2, 3, 4]},
        {"type": "mask", "label_id": 0, "rle": {"counts": [3], "size": [2, 2]}},
        {"type": "mask", "label_id": 0},
        {"type": "skeleton", "label_id": 0, "elements": [{"label_id": 1, "points": [1, 1]}]},
    ],
)
def test_a_damaged_datumaro_annotation_is_named_and_can_be_left_out(tmp_path, shape):
    datumaro(tmp_path, [DATUMARO_BOX, shape])
    assert "item 'a', annotation 2: " in refusal(tmp_path)
    assert rows(tmp_path, "all", skip=True) == [("a.png", "cat", GOOD_BOX)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", [{"id": 1, "data": {"image": "a"}, "annotations": []}], "Label Studio"),
        ("b.tfrecord", "x", "TFRecord"),
        ("_annotations.csv", "filename,width\n", "CSV"),
        ("via.json", {"_via_settings": {}}, "VIA"),
    ],
)
def test_other_formats_are_named(tmp_path, name, content, says):
    save(tmp_path / "a.png")
    save(tmp_path / name, content)
    message = refusal(tmp_path)
    assert says in message and "export it as COCO or YOLO" in message
