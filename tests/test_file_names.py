"""Names of files that another system has written find their file, or a line that shows it."""

import os
import unicodedata
from urllib.parse import quote

import pytest

from utils.files import name_of_path
from utils.images import FileNames, list_files

NAMES = ["é 1.png", "sub/日本語.jpg", "Photo.JPG", "a+b.jpg", "100%.png", "ñ/Ünder.tif", "1.jpg"]
SPELLINGS = {
    "as it is": str,
    "composed": lambda name: unicodedata.normalize("NFC", name),
    "decomposed": lambda name: unicodedata.normalize("NFD", name),
    "upper case": str.upper,
    "backslashes": lambda name: name.replace("/", "\\"),
    "of a web address": quote,
    "with a dot": lambda name: f"./{name}",
    "with a folder": lambda name: f"images/{name}",
    "with a drive": lambda name: "C:\\images\\" + name.replace("/", "\\"),
}


@pytest.mark.parametrize("written", SPELLINGS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_every_usual_spelling_finds_its_file(written, form):
    files = [unicodedata.normalize(form, name) for name in NAMES]
    assert FileNames(files).resolve([SPELLINGS[written](name) for name in NAMES]) == files


def test_a_name_that_could_mean_two_files_or_a_file_of_another_means_none():
    names = FileNames(["A.jpg", "a.jpg", "x/1.jpg", "y/1.jpg", "only.jpg"])
    assert names.resolve(["A.JPG", "1.jpg"]) == [None, None]
    assert names.resolve(["only.jpg", "Only.jpg"]) == ["only.jpg", None]
    assert names.resolve(["p/only.jpg", "q/only.jpg"]) == [None, None]
    assert "'A.jpg' in another spelling" in names.hint("A.JPG")
    assert "'x/1.jpg' in another folder" in names.hint("1.jpg")
    assert "'only.jpg' with another suffix" in names.hint("only.png")
    assert names.hint("nothing.png") == ""


def test_a_hint_shows_a_difference_that_cannot_be_seen():
    decomposed = unicodedata.normalize("NFD", "é.png")
    hint = FileNames([decomposed]).hint("é.png")
    assert "e\\u0301" in hint and "normal form" in hint


def test_no_name_finds_a_file_outside_the_folder():
    names = ["../secret.jpg", "/etc/secret.jpg", "..\\secret.jpg", "a/../../secret.jpg", "", "."]
    assert FileNames(["1.jpg"]).resolve(names) == [None] * len(names)


def test_the_list_of_a_folder_follows_links_and_never_runs_in_a_circle(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("images/1.jpg", "images/sub/2.jpg", "other/3.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "images" / "back").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "beside").symlink_to(tmp_path / "other")
    assert sorted(list_files(tmp_path / "images")) == ["1.jpg", "beside/3.jpg", "sub/2.jpg"]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_no_utf8_are_named(tmp_path):
    (tmp_path / os.fsdecode(b"\xe9.jpg")).touch()
    names = FileNames(list_files(tmp_path))
    assert names.resolve([os.fsdecode(b"\xe9.jpg")]) != [None]
    assert "are not UTF-8" in names.hint("é.jpg")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("cats.v1i.yolov8", "cats.v1i.yolov8"),
        ("cats.v1i.yolov8/data.yaml", "cats.v1i.yolov8"),
        ("cats.v1i.yolov8/pets.yaml", "pets"),
        ("cats.v1i.yolov8/train/_annotations.coco.json", "train"),
        ("annotations/instances_train2017.json", "instances_train2017"),
    ],
)
def test_folders_of_results_are_called_as_the_dataset(tmp_path, path, name):
    file = tmp_path / path
    (file.parent if file.suffix in (".yaml", ".json") else file).mkdir(parents=True)
    if file.suffix in (".yaml", ".json"):
        file.touch()
    assert name_of_path(file) == name
