"""One driver for the Python API and all evaluations: batches, draws, what comes with images."""

import numpy as np
import pytest
import torch

from dataset.build import TASKS
from infer.batches import decode_batches, decode_images
from infer.script import Answer, answer_images, infer_parser
from infer.tasks import EVALUATIONS
from utils.errors import UserError
from utils.visualize import save_image

CPU = torch.device("cpu")


def draw(batch, generator):
    return torch.rand(2, generator=generator).tolist()


def test_draws_of_a_batch_depend_on_its_number_alone():
    whole = {n: found for n, _, found in decode_batches(enumerate("abc"), draw, seed=3, device=CPU)}
    for numbers in ([0, 2], [1], [2]):
        batches = [(n, "abc"[n]) for n in numbers]
        part = {n: f for n, _, f in decode_batches(batches, draw, seed=3, device=CPU)}
        assert part == {n: whole[n] for n in numbers}
    assert len({tuple(found) for found in whole.values()}) == 3


def sizes(tensors, boxes, label, nothing, generator):
    assert nothing is None
    return [(tuple(t.shape), box, name) for t, box, name in zip(tensors, boxes, label, strict=True)]


def test_images_come_alone_or_in_lists_with_what_belongs_to_them():
    images = [np.zeros((4 + n, 5, 3), np.uint8) for n in range(5)]
    boxes = [f"box {n}" for n in range(5)]
    expected = [((3, 4 + n, 5), f"box {n}", "dog") for n in range(5)]
    for batch_size in (1, 2, 5, 16):
        how = {"seed": 0, "device": CPU, "batch_size": batch_size}
        assert decode_images(images, sizes, boxes, "dog", None, **how) == expected
        assert decode_images(images[2], sizes, boxes[2], "dog", None, **how) == expected[2]
    assert decode_images([], sizes, [], "dog", None, **how) == []


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
