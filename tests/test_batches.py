"""Batches of images in the Python API and the scripts, and evaluations of several tasks."""

import numpy as np
import pytest

from dataset.tasks import TASKS
from infer import evaluate
from infer.batches import decode_images
from infer.script import Answer, answer_images, infer_parser
from infer.tasks import EVALUATIONS
from utils.errors import UserError
from utils.visualize import save_image


def sizes(tensors, boxes, label, nothing):
    assert nothing is None
    return [(tuple(t.shape), box, name) for t, box, name in zip(tensors, boxes, label, strict=True)]


def test_images_come_alone_or_in_lists_with_what_belongs_to_them():
    images = [np.zeros((4 + n, 5, 3), np.uint8) for n in range(5)]
    boxes = [f"box {n}" for n in range(5)]
    expected = [((3, 4 + n, 5), f"box {n}", "dog") for n in range(5)]
    for batch_size in (1, 2, 5, 16):
        size = {"batch_size": batch_size}
        assert decode_images(images, sizes, boxes, "dog", None, **size) == expected
        assert decode_images(images[2], sizes, boxes[2], "dog", None, **size) == expected[2]
    assert decode_images([], sizes, [], "dog", None, batch_size=4) == []


def test_every_task_has_an_entry_in_both_registries():
    assert list(EVALUATIONS) == list(TASKS)


def test_what_was_found_before_an_unreadable_image_is_kept(tmp_path, capsys):
    for n in range(3):
        save_image(tmp_path / f"{n}.png", np.full((6, 8, 3), n, np.uint8))
    (tmp_path / "3.png").write_bytes(b"no picture")
    args = infer_parser("").parse_args(
        ["--image", str(tmp_path), "--out-dir", str(tmp_path / "out")]
    )
    seen = []

    def answer(items):
        seen.append(len(items))
        return [Answer(path.name, {}, {"view": image}) for path, image in items]

    with pytest.raises(UserError, match="1 of 4 images could not be read"):
        answer_images(args, answer, batch_size=2)
    assert seen == [2, 1]
    assert capsys.readouterr().out == "0.png\n\n1.png\n\n2.png\n"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{n}_view.png" for n in range(3)}


def test_a_batch_that_fails_is_not_tried_twice(tmp_path):
    save_image(tmp_path / "a.png", np.zeros((6, 8, 3), np.uint8))
    args, calls = infer_parser("").parse_args(["--image", str(tmp_path / "a.png")]), []

    def fail(items):
        calls.append(len(items))
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        answer_images(args, fail)
    assert calls == [1]


def test_several_tasks_are_evaluated_with_one_command(
    multi_weights, multi_settings, tmp_path, capsys
):
    """Each as if it were alone, in a folder of its own, in one table."""
    argv = ["--weights", str(multi_weights), "--set", *multi_settings, "eval_limit=3"]
    evaluate.main([*argv, "--task", "all", "--out-dir", str(tmp_path / "all")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[task, "3"] for task in TASKS]
    evaluate.main([*argv, "--task", "captioning", "--out-dir", str(tmp_path / "one")])
    for name in ("results.json", "metrics.json", "per_class.csv"):
        together = (tmp_path / "all" / "captioning" / name).read_text()
        assert together == (tmp_path / "one" / name).read_text()
    capsys.readouterr()
    evaluate.main([*argv, "--task", "keypoint,detection", "--out-dir", str(tmp_path / "two")])
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"detection", "keypoint"}
    out = capsys.readouterr().out
    assert "AP50" in out and "captioning" not in out


def test_all_means_what_the_weights_know_and_the_dataset_has(
    tiny_weights, multi_weights, demo_set, tmp_path, capsys
):
    data = ["--set", f"coco_root={demo_set}", f"voc_root={demo_set}", "num_workers=0"]
    argv = ["--task", "all", "--out-dir", str(tmp_path), *data]
    evaluate.main([*argv, "--weights", str(tiny_weights)])
    assert "Average Precision" in capsys.readouterr().out
    evaluate.main([*argv, "--weights", str(multi_weights), "--dataset=voc", "--split=2012:val"])
    assert "mAP50" in capsys.readouterr().out
    with pytest.raises(UserError, match="was trained for detection, not for captioning"):
        argv[1] = "detection,captioning"
        evaluate.main([*argv, "--weights", str(tiny_weights)])
