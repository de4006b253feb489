"""The check of a dataset finds what training would refuse, and says so by its exit status."""

import json
import shutil

import pytest

from dataset import check_dataset
from dataset.annotation_errors import KINDS, OUTLINE_KINDS
from dataset.check import use
from dataset.check.report import columns
from dataset.coco_detection import CocoDetection
from dataset.demo.write import CATEGORY_IDS as DEMO
from dataset.find_dataset import data_of
from dataset.tasks import build_source, find_task
from dataset.voc_detection import VOC_CLASSES
from models import ModelConfig, build_model, save_model
from tests.test_formats import flat, roboflow
from tokenizer.detection import DetectionTokenizer
from tokenizer.vocabulary import Vocabulary
from train import engine, train_coco_object_detection
from utils.categories import Categories
from utils.cli import settings_dict
from utils.errors import UserError
from utils.images import load_image

ARGUMENTS = ["--set", "num_workers=2", "voc_sets=2012:train", "voc_eval_sets=2012:val"]


@pytest.fixture
def root(demo_set, tmp_path):
    return shutil.copytree(demo_set, tmp_path / "set")


def check(root, *options, out=None):
    """Exit status of the script."""
    places = [f"coco_root={root}", f"voc_root={root}"]
    try:
        check_dataset.main([*options, "--out-dir", str(out or root / "out"), *ARGUMENTS, *places])
    except SystemExit as leaving:
        return leaving.code
    return 0


@pytest.mark.parametrize("dataset", ["coco", "voc"])
def test_a_clean_dataset_passes_and_is_drawn(root, capsys, dataset):
    before = sorted(root.rglob("*"))
    assert check(root, "--dataset", dataset, "--decode", out=root.parent / "out") == 0
    assert "nothing that training would refuse" in capsys.readouterr().out
    assert sorted(root.rglob("*")) == before
    pictures = sorted((root.parent / "out").iterdir())
    assert len(pictures) >= (11 if dataset == "coco" else 4)  # of persons val may have none
    assert all(load_image(path).std() > 5 for path in pictures)


def spoil_instances(content):
    rows, images = content["annotations"], content["images"]
    rows[0]["bbox"][2] = 0
    rows[1]["bbox"][0] = float("nan")
    rows[2]["bbox"] = rows[2]["bbox"][:3]
    rows[3]["category_id"] = 777
    rows[4]["segmentation"] = [[1, 2, 3, 4]]
    rows[5]["segmentation"] = [[1, 2, 3, 4, 5, 6, 7]]
    rows[6]["bbox"][:2] = [4000, 4000]
    rows[7]["id"] = rows[8]["id"]
    rows[9]["bbox"][2] += 500
    rows[12]["id"] = [1]
    [row for row in rows if not row["iscrowd"]][13]["segmentation"] = [[0, 0, 900_000, 0] * 20]
    rows[10]["image_id"] = 424242
    del rows[11]["image_id"]
    images[-1]["file_name"] = "../../secret.png"
    images[-2]["id"] = images[-3]["id"]
    images[-4]["width"] = -5


def spoil_keypoints(content):
    rows = [row for row in content["annotations"] if row["num_keypoints"]]
    rows[0]["keypoints"] = rows[0]["keypoints"][:-1]
    rows[1]["keypoints"][:3] = [5000, 5000, 2]
    rows[2]["category_id"] = 777


def spoil_captions(content):
    for row, text in zip(content["annotations"], (7, "   "), strict=False):
        row["caption"] = text


def test_every_kind_of_fault_is_found_and_counted(root, capsys):
    files = sorted((root / "train2017").iterdir())
    files[-1].unlink()
    files[-2].write_bytes(files[-2].read_bytes()[:300])
    for kind, spoil in (
        ("instances", spoil_instances),
        ("person_keypoints", spoil_keypoints),
        ("captions", spoil_captions),
    ):
        path = root / "annotations" / f"{kind}_train2017.json"
        content = json.loads(path.read_text())
        spoil(content)
        path.write_text(json.dumps(content))
    assert check(root, "--dataset", "coco", "--split", "train", "--decode") == 1
    text = capsys.readouterr().out
    found = {kind for kind, what in KINDS.items() if f" {what.text}\n" in text}
    only_voc = {"xml", "xml_missing", "listed_twice", "class_of_none"}
    other = {"categories", "image_size", "same_box", "size_unstated", "empty"}
    other |= {"same_name", "name_unused", "normalised", "only_crowds", "corners", "small_outline"}
    other |= {"unlabelled", "label_file", "shape", "confidence"}  # of other formats
    other |= {"label_alone", "picture_twice"}
    assert set(KINDS) - only_voc - other <= found
    of_keypoints = text[text.index("person_keypoints_train2017.json\n") :]
    assert "it has the unknown category 777" in of_keypoints
    assert "an outline of 36000000 pixels in a picture of" in text
    for line in ("annotation", "image", files[-1].name, files[-2].name, "errors"):
        assert line in text
    with pytest.raises(UserError):
        CocoDetection(root)


def test_a_header_shows_another_size_but_not_a_cut(root, capsys):
    files = sorted((root / "val2017").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-200])
    assert check(root, "--dataset", "coco", "--split", "val", "--task", "captioning") == 0
    path = root / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text())
    content["images"][1]["height"] += 1
    path.write_text(json.dumps(content))
    assert check(root, "--dataset", "coco", "--split", "val", "--task", "captioning") == 1
    assert "1 images of another size than their annotation says" in capsys.readouterr().out


def test_voc_faults(root, capsys):
    folder = root / "VOCdevkit" / "VOC2012"
    names = (folder / "ImageSets" / "Main" / "train.txt").read_text().split()
    (folder / "Annotations" / f"{names[0]}.xml").write_text("<annotation")
    (folder / "Annotations" / f"{names[1]}.xml").unlink()
    next((folder / "JPEGImages").glob(f"{names[2]}.*")).unlink()
    assert check(root, "--dataset", "voc", "--split", "2012:train") == 1
    text = capsys.readouterr().out
    for kind in ("xml", "xml_missing", "image_missing"):
        assert f"1 {KINDS[kind].text}" in text
    assert "3 errors" in text


def test_voc_lists_and_classes(root, capsys):
    folder = root / "VOCdevkit" / "VOC2012"
    split = folder / "ImageSets" / "Main" / "train.txt"
    names = split.read_text().split()
    split.write_text("\n".join([names[0], *names]))
    renamed = dict(zip(sorted(DEMO), VOC_CLASSES, strict=False)) | {"person": "preson"}
    for path in (folder / "Annotations").glob("*.xml"):
        text = path.read_text()
        for old, new in renamed.items():
            text = text.replace(f"<name>{old}</name>", f"<name>{new}</name>")
        path.write_text(text)
    assert check(root, "--dataset", "voc", "--split", "2012:train") == 0
    text = capsys.readouterr().out
    assert f"1 {KINDS['listed_twice'].text}" in text and "class 'preson'" in text
    for path in (folder / "JPEGImages").iterdir():
        path.unlink()
    assert check(root, "--dataset", "voc", "--split", "2012:train") == 1
    assert f"{len(set(names)) + 1} {KINDS['image_missing'].text}" in capsys.readouterr().out


def test_choices_that_are_none_end_in_one_line(root):
    for options, message in (
        (["--dataset", "imagenet"], "--dataset must be coco or voc"),
        (["--dataset", "voc", "--task", "captioning"], "voc has no annotations of captioning"),
        (["--dataset", "coco", "--task", "poses"], "--task must name some of"),
        (["--dataset", "coco", "--split", "test", "--task", "detection"], "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            check(root, *options)


@pytest.mark.parametrize("bad", [None, [], [[1, 2, 3, 4]], "no outline"])
def test_outlines_matter_for_segmentation_alone(root, capsys, bad):
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        row["segmentation"] = bad
    path.write_text(json.dumps(content))
    options = ["--dataset", "coco", "--split", "train"]
    assert check(root, *options, "--task", "detection") == 0
    said = capsys.readouterr().out
    assert not any(KINDS[kind].text in said for kind in OUTLINE_KINDS)
    check(root, *options, "--task", "segmentation")
    said = capsys.readouterr().out
    assert any(KINDS[kind].text in said for kind in OUTLINE_KINDS)


def test_a_year_that_is_not_there_is_told_with_the_option_of_this_script(root):
    with pytest.raises(UserError, match=r"there is 2012; .*check_dataset.py: --split"):
        check(root, "--dataset", "voc", "--split", "2007:train")


def test_a_split_without_some_files_is_checked_as_far_as_it_goes(root, capsys):
    (root / "annotations" / "captions_train2017.json").unlink()
    assert check(root, "--dataset", "coco") == 0
    assert "notice: no" in capsys.readouterr().err


def test_cells_are_read_down_the_columns():
    assert columns(["a", "b", "c"], width=8) == ["a   c", "b"]
    assert columns([]) == []


@pytest.mark.data
@pytest.mark.parametrize(
    ("dataset", "folder", "split"),
    [("coco", "coco_partial", "val"), ("voc", "voc_bccd", "2007:val")],
)
def test_real_data_passes(real_data, tmp_path, dataset, folder, split, capsys):
    options = ["--dataset", dataset, "--split", split]
    assert check(real_data / folder, *options, out=tmp_path) == 0
    assert ("1 boxes without an area" in capsys.readouterr().out) == (folder == "voc_bccd")


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.append(dict(rows[0])),
        lambda rows: rows.append({"id": rows[0]["id"], "name": "other"}),
        lambda rows: rows[0].update(name="two\nlines"),
        lambda rows: rows[0].update(name="$\\frac$"),
    ],
)
def test_categories_that_are_odd_are_drawn_or_named(root, change, capsys):
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    change(content["categories"])
    path.write_text(json.dumps(content))
    wrong = len({row["id"] for row in content["categories"]}) < len(content["categories"])
    arguments = ["--dataset", "coco", "--task", "detection", "--out-dir", str(root / "out")]
    try:
        check_dataset.main([*arguments, "--set", f"coco_root={root}"])
        assert not wrong
    except SystemExit as left:
        assert wrong and left.code == 1 and "an id occurs twice" in capsys.readouterr().out


@pytest.mark.parametrize("name, found", [(" {}\n", True), ("x" * 300 + ".jpg", False)])
def test_odd_names_of_images_are_found_or_counted(root, capsys, name, found):
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name.format(content["images"][0]["file_name"])
    path.write_text(json.dumps(content))
    status = check(root, "--dataset", "coco", "--task", "detection")
    assert status == (0 if found else 1)
    assert ("1 missing images" in capsys.readouterr().out) != found


@pytest.mark.parametrize("dialect", [flat, roboflow], ids=lambda dialect: dialect.__name__)
def test_a_folder_in_another_format_is_checked_and_drawn(demo_set, tmp_path, capsys, dialect):
    folder = dialect(demo_set, tmp_path / "my.set")
    out = tmp_path / "out"
    check_dataset.main([str(folder), "--out-dir", str(out), "--set", "num_workers=0"])
    text = capsys.readouterr()
    assert f"data: {folder} is a " in text.err
    assert "train instances\n" in text.out and "val instances\n" in text.out
    assert "person_keypoints" not in text.out
    names = {path.name for path in out.iterdir()}
    parts = ("train", "val")
    assert names >= {f"{part}_instances_samples.png" for part in parts}
    assert all(load_image(path).std() > 5 for path in out.iterdir())
    with pytest.raises(UserError, match="no annotations of captioning"):
        check_dataset.main([str(folder), "--task", "captioning", "--out-dir", str(out)])


def test_what_is_wrong_in_a_folder_is_an_error(demo_set, tmp_path, capsys):
    folder = roboflow(demo_set, tmp_path / "set")
    path = folder / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 777
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as leaving:
        check_dataset.main([str(folder), "--out-dir", str(tmp_path / "out")])
    assert leaving.value.code == 1
    assert "unknown category 777" in capsys.readouterr().out


@pytest.fixture
def untrained(tmp_path):
    """A weight file of a detection model with images of 64 x 64."""
    vocab = Vocabulary.for_classes(9, num_bins=100)
    shape = {"dim": 32, "num_heads": 4, "num_layers": 1, "mlp_dim": 32, "max_len": 40}
    model = build_model(
        ModelConfig(encoder="test_vit", image_size=(64, 64), vocab_size=vocab.size, **shape)
    )
    meta = {
        "vocabulary": vocab.to_json(),
        "categories": Categories.from_names(list("abcdefghi")).to_json(),
        "resize_mode": "letterbox",
        "tasks": {"detection": DetectionTokenizer(vocab, 8).settings()},
    }
    save_model(model, tmp_path / "untrained.safetensors", meta=meta)
    return tmp_path / "untrained.safetensors"


@pytest.mark.parametrize("preset", [[], ["--preset", "finetune"]], ids=len)
def test_advice_is_about_the_settings_that_training_would_have(
    demo_set, tmp_path, monkeypatch, capsys, untrained, preset
):
    """Of the weights, and of the fine-tuning; both say the same about the objects."""
    folder = roboflow(demo_set, tmp_path / "set")
    path = folder / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        row["bbox"] = [1, 2, 5, 5]
    path.unlink()
    path.write_text(json.dumps(content))
    options = [*preset, "--set", f"data={folder}", f"init_weights={untrained}", "batch_size=4"]
    seen = []
    monkeypatch.setattr(engine, "_run", lambda cfg, *_: seen.append(cfg))
    train_coco_object_detection.main(options)
    monkeypatch.setattr(
        use,
        "check_use",
        lambda cfg, *args, call=use.check_use, **more: seen.append(cfg) or call(cfg, *args, **more),
    )
    check_dataset.main([*options, "--task", "detection", "--out-dir", str(tmp_path / "out")])
    assert settings_dict(seen[0]) == settings_dict(seen[1])
    assert seen[1].img_size == 64 and (seen[1].max_objects != 100) == bool(preset)
    printed = capsys.readouterr().out
    source = build_source("detection", "coco", data_of(seen[0]), "train")
    lines = find_task("detection").advise(seen[0], source)
    assert any("pixels at img_size=64" in line for line in lines)
    assert all(f"detection: {line}" in printed for line in lines)


def test_weights_to_start_from_are_looked_for_first(root):
    for settings, message in (
        (
            ["init_weights=none/x.safetensors"],
            "no weight file at .*; name another .*init_weights=F",
        ),
        (["init_weights=none/coco_vit_b_640.safetensors"], "download_official_weights.sh coco_v"),
        (["finetune=true"], "^preset finetune needs --set init_weights=FILE"),
    ):
        with pytest.raises(UserError, match=message):
            check_dataset.main([str(root), "--set", *settings])
