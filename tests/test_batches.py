"""Batches of images in the Python API and the scripts, and evaluations of several tasks."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from dataset.tasks import TASKS
from infer import evaluate, image_files, infer_single_image_object_detection
from infer.batches import batches_of
from infer.image_files import Output, find_images, read_batches
from infer.predictor import Predictor
from infer.script import infer_parser
from infer.tasks import EVALUATIONS
from tokenizer import vocabulary
from tokenizer.tasks import TOKENIZERS
from utils import visualize
from utils.errors import UserError
from utils.visualize import save_image


def test_images_come_alone_or_in_lists_with_what_belongs_to_them():
    images = [np.zeros((4 + n, 5, 3), np.uint8) for n in range(5)]
    boxes = [f"box {n}" for n in range(5)]
    expected = [((3, 4 + n, 5), f"box {n}", "dog") for n in range(5)]

    def read(images, boxes, batch_size):
        rows = []
        batches = batches_of(images, boxes=boxes, labels="dog", scores=None, batch_size=batch_size)
        for tensors, (of_images, labels, nothing) in batches:
            assert len(tensors) <= batch_size and nothing is None
            rows += zip([tuple(t.shape) for t in tensors], of_images, labels, strict=True)
        return rows

    for batch_size in (1, 2, 5, 16):
        assert read(images, boxes, batch_size) == expected
        assert read(images[2], boxes[2], batch_size) == expected[2:3]
    assert read([], [], 4) == []


def test_every_task_has_an_entry_in_all_registries():
    assert list(EVALUATIONS) == list(TASKS) == list(TOKENIZERS) == list(vocabulary.TASK_NAMES)


def test_what_was_found_before_an_unreadable_image_is_kept(tmp_path, capsys):
    for n in range(3):
        save_image(tmp_path / f"{n}.png", np.full((6, 8, 3), n, np.uint8))
    (tmp_path / "3.png").write_bytes(b"no picture")
    args = infer_parser("").parse_args(
        ["--image", str(tmp_path), "--out-dir", str(tmp_path / "out")]
    )
    seen, paths = [], find_images(args.image)
    with (
        pytest.raises(UserError, match="1 of 4 images could not be read"),
        Output(args, paths) as output,
    ):
        for batch in read_batches(paths, 2):
            seen.append(len(batch))
            for path, image in batch:
                output.add(path, image, path.name, {}, {"view": image})
    assert seen == [2, 1]
    assert capsys.readouterr().out == "0.png\n\n1.png\n\n2.png\n"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{n}_view.png" for n in range(3)}


def test_a_batch_that_fails_is_not_tried_twice(tiny_weights, tmp_path, monkeypatch, capsys):
    """What was found before it is printed all the same."""
    for n in range(18):
        save_image(tmp_path / f"{n:02}.png", np.zeros((6, 8, 3), np.uint8))
    calls, detect = [], Predictor.detect

    def fail(self, images, options, **more):
        calls.append(len(images))
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return detect(self, images, options, **more)

    monkeypatch.setattr(Predictor, "detect", fail)
    argv = ["--image", str(tmp_path), "--weights", str(tiny_weights), "--device", "cpu"]
    with pytest.raises(RuntimeError, match="no memory"):
        infer_single_image_object_detection.main([*argv, "--out-dir", str(tmp_path / "out")])
    assert calls == [16, 2]
    assert "15.png" in (out := capsys.readouterr().out) and "16.png" not in out


def test_several_tasks_are_evaluated_with_one_command(
    multi_weights, multi_settings, tmp_path, capsys
):
    """Each as if it were alone, in a folder of its own, in one table."""
    argv = ["--weights", str(multi_weights), "--set", *multi_settings, "eval_limit=3"]
    evaluate.main(["--no-report", *argv, "--task", "all", "--out-dir", str(tmp_path / "all")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[task, "3"] for task in TASKS]
    evaluate.main(
        ["--no-report", *argv, "--task", "captioning", "--out-dir", str(tmp_path / "one")]
    )
    for name in ("results.json", "metrics.json", "per_class.csv"):
        together = (tmp_path / "all" / "captioning" / name).read_text()
        assert together == (tmp_path / "one" / name).read_text()
    capsys.readouterr()
    evaluate.main(
        ["--no-report", *argv, "--task", "keypoint,detection", "--out-dir", str(tmp_path / "two")]
    )
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"detection", "keypoint"}
    out = capsys.readouterr().out
    assert "AP50" in out and "captioning" not in out


def test_all_means_what_the_weights_know_and_the_dataset_has(
    tiny_weights, multi_weights, demo_set, tmp_path, capsys
):
    data = ["--set", f"coco_root={demo_set}", f"voc_root={demo_set}", "num_workers=0"]
    argv = ["--task", "all", "--out-dir", str(tmp_path), *data]
    evaluate.main(["--no-report", *argv, "--weights", str(tiny_weights)])
    assert "Average Precision" in capsys.readouterr().out
    evaluate.main(
        ["--no-report", *argv, "--weights", str(multi_weights), "--dataset=voc", "--split=2012:val"]
    )
    assert "mAP50" in capsys.readouterr().out
    with pytest.raises(UserError, match="was trained for detection, not for captioning"):
        argv[1] = "detection,captioning"
        evaluate.main([*argv, "--weights", str(tiny_weights)])


def test_images_are_read_ahead_in_their_order_and_not_all_at_once(monkeypatch):
    read, paths = [], [Path(f"{n}.jpg") for n in range(40)]

    def load(path):
        read.append(path)
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(image_files, "load_image", load)
    batches = read_batches(paths, 4)
    seen = [path for path, _ in next(batches)]
    assert len(read) <= 4 + 4 + 1, "a batch, and one more ahead"
    seen += [path for batch in batches for path, _ in batch]
    assert seen == read == paths


def test_a_picture_that_cannot_be_written_ends_the_script_and_results_are_printed(
    monkeypatch, tmp_path, capsys
):
    def refuse(path, picture):
        raise UserError(f"cannot write {path}")

    monkeypatch.setattr(visualize, "save_image", refuse)
    args = argparse.Namespace(out_dir=tmp_path, json=None)
    image = np.zeros((8, 8, 3), np.uint8)
    with (
        pytest.raises(UserError, match="cannot write"),
        Output(args, [Path("a.jpg")]) as output,
    ):
        output.add(Path("a.jpg"), image, "found nothing", {}, {"object_detection": image})
    assert "found nothing" in capsys.readouterr().out
