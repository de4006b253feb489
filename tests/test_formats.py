"""A dataset gives the same samples in every format that a folder may have."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from config import CFG
from dataset.coco_captioning import CocoCaptions
from dataset.coco_detection import CocoDetection
from dataset.coco_keypoint import CocoKeypoints
from dataset.coco_segmentation import CocoSegmentation
from dataset.find_dataset import data_of, find_dataset
from dataset.voc_detection import VocDetection
from tests.conftest import TINY
from utils.cli import snapshot
from utils.errors import UserError

SHORT = ("max_steps=2", "eval_limit=2", "decode_mode=plain")
VOC_PART = "VOCdevkit/VOC2012"


def copy(files, folder: Path) -> None:
    """Links to some files in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file.name).symlink_to(file)


def content_of(demo: Path, kind: str, part: str) -> dict:
    return json.loads((demo / "annotations" / f"{kind}_{part}2017.json").read_text())


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def pictures(demo: Path, part: str) -> list[Path]:
    return sorted((demo / f"{part}2017").iterdir())


# ---- dialects of COCO: (demo set, new folder) -> what to open ----------------------------------


def official(demo: Path, out: Path) -> Path:
    for part in ("train", "val"):
        copy(pictures(demo, part), out / f"{part}2017")
    copy((demo / "annotations").iterdir(), out / "annotations")
    return out


def official_annotations(demo: Path, out: Path) -> Path:
    return official(demo, out) / "annotations"


def roboflow(demo: Path, out: Path) -> Path:
    """Category 0 heads the others and has no object; other ids follow in the order of names."""
    for part, name in (("train", "train"), ("val", "valid")):
        copy(pictures(demo, part), out / name)
        content = content_of(demo, "instances", part)
        for row in content["categories"]:
            row["supercategory"] = "things"
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        write(out / name / "_annotations.coco.json", content)
    return out


def cvat(demo: Path, out: Path) -> Path:
    for part in ("train", "val"):
        copy(pictures(demo, part), out / "images" / part)
        write(out / f"annotations/instances_{part}.json", content_of(demo, "instances", part))
    return out


def fiftyone(demo: Path, out: Path) -> Path:
    for part, name in (("train", "train"), ("val", "validation")):
        copy(pictures(demo, part), out / name / "data")
        write(out / name / "labels.json", content_of(demo, "instances", part))
    return out


def label_studio(demo: Path, out: Path) -> Path:
    """Names with the folder, and separators of Windows; no sizes; another folder inside."""
    for part in ("train", "val"):
        copy(pictures(demo, part), out / "export" / part / "images")
        content = content_of(demo, "instances", part)
        for row in content["images"]:
            row["file_name"] = "images\\" + row["file_name"]
            del row["height"], row["width"]
        write(out / "export" / part / "result.json", content)
    return out


def absolute_names(demo: Path, out: Path) -> Path:
    """Names of the computer that they were written on."""
    for part in ("train", "val"):
        copy(pictures(demo, part), out / part)
        content = content_of(demo, "instances", part)
        for row in content["images"]:
            row["file_name"] = f"/home/somebody/{row['file_name']}"
        write(out / f"{part}.json", content)
    return out


COCO = (official, official_annotations, roboflow, cvat, fiftyone, label_studio, absolute_names)

# ---- dialects of Pascal VOC --------------------------------------------------------------------


def voc_files(demo: Path, part: str) -> list[Path]:
    stems = (demo / VOC_PART / f"ImageSets/Main/{part}.txt").read_text().split()
    return [demo / VOC_PART / "Annotations" / f"{stem}.xml" for stem in stems]


def devkit(demo: Path, out: Path) -> Path:
    shutil.copytree(demo / "VOCdevkit", out / "VOCdevkit")
    return out


def year(demo: Path, out: Path) -> Path:
    return devkit(demo, out) / VOC_PART


def side_by_side(demo: Path, out: Path) -> Path:
    """Roboflow: train and valid, each with pictures and XML files."""
    for part, name in (("train", "train"), ("val", "valid")):
        copy([*pictures(demo, part), *voc_files(demo, part)], out / name)
    return out


def label_img(demo: Path, out: Path) -> Path:
    for part in ("train", "val"):
        copy(pictures(demo, part), out / part / "images")
        copy(voc_files(demo, part), out / part / "Annotations")
    return out


def fiftyone_voc(demo: Path, out: Path) -> Path:
    for part, name in (("train", "train"), ("val", "validation")):
        copy(pictures(demo, part), out / name / "data")
        copy(voc_files(demo, part), out / name / "labels")
    return out


def nested(demo: Path, out: Path) -> Path:
    """Folders of parts below those of the two kinds of file."""
    for part in ("train", "val"):
        copy(pictures(demo, part), out / "images" / part)
        copy(voc_files(demo, part), out / "annotations" / part)
    return out


VOC = (devkit, year, side_by_side, label_img, fiftyone_voc, nested)


def flat(demo: Path, out: Path) -> Path:
    """All pictures and XML files in one folder."""
    for part in ("train", "val"):
        copy([*pictures(demo, part), *voc_files(demo, part)], out)
    return out


def file_stem(source, index: int) -> str:
    return source.image_path(index).stem


def assert_equal(source, other) -> None:
    """Boxes, classes by name, outlines, keypoints and captions of all images, by file name."""
    places = {file_stem(other, i): i for i in range(len(other))}
    assert len(places) == len(other) == len(source)
    for index in range(len(source)):
        one, two = source[index], other[places[file_stem(source, index)]]
        names = [
            [each.categories.names[label] for label in sample.labels.tolist()]
            for each, sample in ((source, one), (other, two))
        ]
        assert names[0] == names[1]
        assert one.orig_size == two.orig_size
        assert one.captions == two.captions
        np.testing.assert_array_equal(one.boxes, two.boxes)
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_equal(one.polygons, two.polygons)
        np.testing.assert_equal(one.keypoints, two.keypoints)


def truth(source) -> list:
    """The ground truth of pycocotools, without ids that the annotation chose."""
    coco = source.coco
    images = {row["id"]: Path(row["file_name"]).stem for row in coco.dataset["images"]}
    names = {row["id"]: row["name"] for row in coco.dataset["categories"]}
    rows = [
        (
            images[row["image_id"]],
            names[row["category_id"]],
            row["bbox"],
            row["area"],
            row["iscrowd"],
            str(row.get("segmentation")),
        )
        for row in coco.dataset["annotations"]
    ]
    return sorted(rows)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("dialect", COCO, ids=lambda dialect: dialect.__name__)
def test_every_dialect_of_coco_gives_the_same_objects(dialect, part, demo_set, tmp_path):
    dataset = find_dataset(dialect(demo_set, tmp_path / "my set"))
    assert dataset.title == "COCO" and set(dataset.names) == {"train", "val"}
    for source_class in (CocoDetection, CocoSegmentation):
        plain, other = source_class(demo_set, part), source_class(dataset, part)
        assert_equal(plain, other)
        assert truth(plain) == truth(other)
        assert list(plain.categories.names.values()) == list(other.categories.names.values())


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("dialect", VOC, ids=lambda dialect: dialect.__name__)
def test_every_dialect_of_voc_gives_the_objects_of_a_devkit(dialect, part, demo_set, tmp_path):
    dataset = find_dataset(dialect(demo_set, tmp_path / "set"))
    assert dataset.title == "Pascal VOC" and set(dataset.names) == {"train", "val"}
    plain, other = VocDetection(demo_set, f"2012:{part}"), CocoDetection(dataset, part)
    assert_equal(plain, other)
    # difficult objects are crowds of the ground truth, and no targets
    difficult = sum(row["difficult"].sum() for row in plain.ground_truth().values())
    assert sum(row["iscrowd"] for row in other.coco.dataset["annotations"]) == difficult
    assert plain.objects_per_class() == other.objects_per_class()


def test_difficult_objects_are_crowds_of_the_truth_and_no_targets(demo_set, tmp_path):
    root = flat(demo_set, tmp_path / "set")
    before = CocoDetection(find_dataset(root), "all")
    for xml in sorted(root.glob("*.xml")):
        text = xml.read_text()
        xml.unlink()
        xml.write_text(text.replace("<difficult>0", "<difficult>1", 1))
    after = CocoDetection(find_dataset(root), "all")
    truths = [list(source.coco.anns.values()) for source in (before, after)]
    crowds = [sum(row["iscrowd"] for row in rows) for rows in truths]
    changed = before.objects_per_image().sum() - after.objects_per_image().sum()
    assert len(truths[0]) == len(truths[1])
    assert crowds[1] - crowds[0] == changed > 10


def test_all_tasks_of_one_file(demo_set, tmp_path):
    """Boxes, outlines, keypoints and captions in one COCO file, which is split."""
    content = content_of(demo_set, "instances", "train")
    posed = content_of(demo_set, "person_keypoints", "train")
    points = {row["id"]: row for row in posed["annotations"]}
    content["annotations"] = [points.get(row["id"], row) for row in content["annotations"]]
    content["categories"][0] = posed["categories"][0]
    for row in content["annotations"]:
        row.setdefault("keypoints", [])
    content["annotations"] += content_of(demo_set, "captions", "train")["annotations"]
    copy(pictures(demo_set, "train"), tmp_path / "set")
    write(tmp_path / "set" / "all.json", content)
    dataset = find_dataset(tmp_path / "set")
    for source_class in (CocoDetection, CocoSegmentation, CocoKeypoints, CocoCaptions):
        plain, found = source_class(demo_set, "train"), source_class(dataset, "all")
        assert_equal(plain, found)
        sides = [source_class(dataset, part).image_ids.tolist() for part in ("train", "val")]
        assert sorted(sides[0] + sides[1]) == plain.image_ids.tolist()


def test_coco_files_by_path(demo_set, tmp_path):
    settings = [f"{part}_json={demo_set}/annotations/instances_{part}2017.json"
                for part in ("train", "val")]  # fmt: skip
    settings += [f"test_json={demo_set}/annotations/instances_val2017.json"]
    dataset = data_of(snapshot(CFG, [*settings, f"train_images={demo_set}/train2017"]))
    assert dataset.names == ("train", "val", "test")
    assert_equal(CocoDetection(demo_set, "train"), CocoDetection(dataset, "train"))
    assert truth(CocoDetection(demo_set, "val")) == truth(CocoDetection(dataset, "test"))
    with pytest.raises(UserError, match=r"instances_val2017\.json.* hold no captions"):
        CocoCaptions(dataset, "val")
    with pytest.raises(UserError, match=r"folder of pictures .*/nowhere does not exist"):
        data_of(snapshot(CFG, [*settings, f"train_images={tmp_path}/nowhere"]))
    assert data_of(snapshot(CFG)) is None


def test_a_list_of_all_images_is_split(demo_set, tmp_path):
    """trainval alone is split; with test, too, test stays what it is."""
    root = devkit(demo_set, tmp_path)
    lists = root / VOC_PART / "ImageSets" / "Main"
    (lists / "train.txt").unlink()
    (lists / "val.txt").rename(lists / "test.txt")
    dataset = find_dataset(root)
    assert dataset.names == ("train", "val", "test")
    sides = [CocoDetection(dataset, part) for part in dataset.names]
    assert len(sides[0]) + len(sides[1]) == 20 and len(sides[2]) == 6
    assert "no validation part" in dataset.describe("instances", ("train", "val"))


def test_errors_name_the_files_of_the_user(demo_set, tmp_path):
    root = flat(demo_set, tmp_path / "set")
    xmls = sorted(root.glob("*.xml"))
    text = xmls[0].read_text()
    for path in xmls[:3]:
        path.unlink()
    xmls[0].write_text(text.replace("<xmin>", "<xmin>x"))
    xmls[1].write_text("<annotation><object><name>a</name><bndbox><xmin>9</xmin><ymin>9</ymin>"
                       "<xmax>9</xmax><ymax>20</ymax></bndbox></object></annotation>")  # fmt: skip
    dataset = find_dataset(root)
    with pytest.raises(UserError, match=rf"{xmls[0].name}.*xmin.*bad_samples=skip"):
        CocoDetection(dataset, "all")
    source = CocoDetection(dataset, "all", skip_bad=True)
    notice = source.annotation_errors.notice()
    assert xmls[1].name in notice and xmls[2].with_suffix(".jpg").name in notice
    assert len(source) == 18
    xmls[1].with_suffix(".jpg").unlink()
    with pytest.raises(UserError, match=rf"{xmls[1].name}: no picture of its name"):
        CocoDetection(dataset, "all")


def test_what_is_read_is_kept_until_a_file_changes(demo_set, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("utils.array_cache.MANY", 1)
    root = flat(demo_set, tmp_path / "set")
    dataset = find_dataset(root)
    before = CocoDetection(dataset, "all")
    assert_equal(before, CocoDetection(dataset, "all"))
    folders = [path for path in (tmp_path / "cache/pix2seq/datasets").iterdir() if path.is_dir()]
    assert len(folders) == 1
    xml = next(p for p in sorted(root.glob("*.xml")) if "<difficult>0" in p.read_text())
    text = xml.read_text()
    xml.unlink()
    xml.write_text(text.replace("<difficult>0", "<difficult>1", 1))  # of the same size
    after = CocoDetection(find_dataset(root), "all")
    assert after.objects_per_image().sum() == before.objects_per_image().sum() - 1


def test_a_tiny_training_and_evaluation_on_a_folder(demo_set, tmp_path, capsys):
    from infer import evaluate
    from train.engine import train

    root = flat(demo_set, tmp_path / "set")
    cfg = snapshot(CFG, [*TINY, f"data={root}", f"runs_dir={tmp_path}/runs", *SHORT])
    counts = [len(CocoDetection(data_of(cfg), part)) for part in ("train", "val")]
    run = train(cfg, ["detection"])
    assert sum(counts) == 20
    words = f"{root} is a Pascal VOC set: train {counts[0]}, val {counts[1]} images, "
    assert words in capsys.readouterr().err
    assert json.loads((run / "settings.json").read_text())["data"] == str(root)
    # weights of the run are evaluated on the same images, or on those of another set
    evaluate.main(
        ["--no-report", "--weights", str(run), "--out-dir", str(tmp_path / "out"), "--task", "all"]
    )
    assert f"a Pascal VOC set: val {counts[1]} images, " in capsys.readouterr().err
    other = roboflow(demo_set, tmp_path / "other")
    (other / "valid").rename(other / "test")
    arguments = ["--weights", str(run), "--out-dir", str(tmp_path / "out"), "--split", "test"]
    evaluate.main(["--no-report", *arguments, "--set", f"data={other}"])
    assert "other is a COCO set (" in capsys.readouterr().err
    with pytest.raises(UserError, match="has no part 'test'"):
        evaluate.main(arguments)


def test_a_caption_vocabulary_of_the_training_part(demo_set, tmp_path, capsys):
    from dataset import build_captioning_vocab

    content = content_of(demo_set, "captions", "train")
    copy(pictures(demo_set, "train"), tmp_path / "set")
    write(tmp_path / "set" / "captions.json", content)
    settings = ["--set", f"data={tmp_path}/set", "--out", str(tmp_path / "vocab.json")]
    build_captioning_vocab.main(settings)
    dataset = find_dataset(tmp_path / "set")
    source = CocoCaptions(dataset, "train")
    number = sum(len(source.captions(i)) for i in range(len(source)))
    assert f"pieces from {number} captions" in capsys.readouterr().out
    assert number < len(content["annotations"])
