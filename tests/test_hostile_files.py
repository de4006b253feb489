"""Damaged and hostile files end in one line; `python -m tests.damaged` writes what each said."""

import json
import re

import pytest

from infer import infer_single_image_object_detection
from tests.damaged import readers
from tests.damaged.__main__ import PAGE
from tests.damaged.cases import CASES
from tests.damaged.place import Place
from tests.damaged.run import produce
from train import train_coco_object_detection
from utils import cli


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.about}: {case.what}")
def test_every_input_produces_its_line(case, tmp_path):
    line = produce(case, tmp_path)
    assert line.startswith("notice: " if case.notice else "error: ")
    assert re.search(case.says, line), line


def test_sound_files_say_nothing(tmp_path, capsys):
    """The cases fail for what is wrong with them, not for what they start from."""
    place = Place(tmp_path)
    place.write_weights()
    for task in ("detection", "segmentation", "keypoint", "captioning"):
        readers.coco(task)(place)
    for read in (readers.voc, readers.ground_truth, readers.weights):
        read(place)
    assert capsys.readouterr() == ("", "")


def test_the_page_names_every_case():
    page = PAGE.read_text()
    missing = [c.what for c in CASES if f"| {c.about} | {c.what} |" not in page]
    assert not missing, "run: python -m tests.damaged"
    assert f"{len(CASES)} inputs." in page and len(CASES) >= 30
    assert "Traceback" not in page


@pytest.mark.parametrize("script", ["train", "infer"])
def test_scripts_leave_with_status_2_and_one_line(tmp_path, capsys, script):
    place = Place(tmp_path)
    if script == "train":
        place.change("instances", lambda c: c["annotations"][1].update(bbox=[1, 2, "x", 4]))
        arguments = ["--set", f"coco_root={tmp_path}", "pretrained=false"]
        main = train_coco_object_detection.main
    else:
        place.write_weights(texts={"config": json.dumps({"dim": 10**12})})
        arguments = ["--image", str(tmp_path / "train2017" / "1.jpg"), "--weights"]
        arguments += [str(tmp_path / "w.safetensors"), "--out-dir", str(tmp_path)]
        main = infer_single_image_object_detection.main
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: main(arguments))
    said = capsys.readouterr()
    assert left.value.code == 2 and said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
