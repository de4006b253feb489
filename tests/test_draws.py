"""What is drawn at random belongs to a picture: batches, order and processes do not matter."""

import threading

import numpy as np
import pytest
import torch

from dataset.tasks import build_source
from infer.captioning import CaptionOptions
from infer.detection import DetectionOptions
from infer.keypoint import KeypointOptions
from infer.predictor import Predictor
from infer.segmentation import SegmentationOptions
from infer.tasks import EVALUATIONS, evaluate_task
from models.decode_step import MODES
from models.generate import uniforms_of_images
from tests.tiny_models import assert_same_draws, memory, model, prompts  # noqa: F401  fixtures
from utils.cli import snapshot
from utils.devices import World
from utils.images import load_image

ORDERS = {  # how the pictures of a batch come again: numbers of them, in batches
    "reversed": [[5, 4, 3, 2, 1, 0]],
    "one by one": [[0], [1], [2], [3], [4], [5]],
    "split": [[0, 1], [2, 3, 4], [5]],
    "repeated": [[0, 0, 1, 5], [1, 0]],
}


@pytest.fixture(scope="module")
def pictures(demo_set):
    return [load_image(path) for path in sorted((demo_set / "val2017").glob("*.jpg"))]


def sampled(detector, predictor, images, boxes):
    """What each task says by sampling; a function of a list of pictures and their boxes."""
    labels = [np.full(len(of_image), 1) for of_image in boxes]
    return {
        "detection": detector.detect(images, DetectionOptions(top_p=0.95, stop_objects=0)),
        "segmentation": predictor.segment(
            images, boxes, labels, SegmentationOptions(num_samples=3, top_p=0.95)
        ),
        "keypoint": predictor.keypoints(images, boxes, options=KeypointOptions(top_p=0.95)),
        "captioning": predictor.caption(images, CaptionOptions(num_captions=3, top_k=0)),
    }


def assert_alike(one, other):
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(value, getattr(other, name), atol=1e-4, err_msg=name)
        else:
            assert value == getattr(other, name), name


@pytest.mark.parametrize("order", ORDERS)
def test_a_picture_says_the_same_in_every_batch(tiny_weights, multi_weights, pictures, order):
    predictors = Predictor(tiny_weights), Predictor(multi_weights)
    boxes = [np.float32([[8, 9, 70, 60], [20, 5, 90, 80 - n]]) for n in range(len(pictures))]
    expected = sampled(*predictors, pictures, boxes)
    assert all(len(found) > 1 for found in expected["detection"])
    for numbers in ORDERS[order]:
        found = sampled(*predictors, [pictures[n] for n in numbers], [boxes[n] for n in numbers])
        for task, results in found.items():
            for n, result in zip(numbers, results, strict=True):
                assert_alike(result, expected[task][n])


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_size_of_device_batches_does_not_matter(tiny_weights, pictures, batch_size):
    predictor, options = Predictor(tiny_weights), DetectionOptions(top_p=0.95)
    expected = predictor.detect(pictures, options)
    for one, other in zip(
        predictor.detect(pictures, options, batch_size=batch_size), expected, strict=True
    ):
        assert_alike(one, other)


def test_an_object_says_the_same_beside_any_others(multi_weights, pictures):
    predictor, image = Predictor(multi_weights), pictures[0]
    boxes = np.float32([[8, 9, 70, 60], [20, 5, 90, 80], [30, 30, 50, 60]])
    labels = np.full(3, 1)
    options = SegmentationOptions(num_samples=3, top_p=0.95, max_rows=4)
    whole = predictor.segment(image, boxes, labels, options)
    points = predictor.keypoints(image, boxes, options=KeypointOptions(top_p=0.95, max_crops=2))
    for keep in ([2, 0], [1]):
        part = predictor.segment(image, boxes[keep], labels[keep], options)
        assert part.rles == [whole.rles[i] for i in keep]
        part = predictor.keypoints(image, boxes[keep], options=KeypointOptions(top_p=0.95))
        np.testing.assert_allclose(part.points, points.points[keep], atol=1e-4)


def test_fewer_objects_are_the_first_of_more(tiny_weights, pictures):
    predictor, options = Predictor(tiny_weights), DetectionOptions(top_p=0.95)
    few, many = (predictor.detect(pictures[0], options, max_objects=n) for n in (2, 8))
    boxes = many.boxes.tolist()
    assert len(few) and all(box in boxes for box in few.boxes.tolist())


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "compiled"])  # = static
def test_every_decode_mode_looks_up_the_same_numbers(model, memory, mode):  # noqa: F811
    memory = torch.cat([memory, memory[:1]])
    prompt = prompts(3, 2, 4)
    prompt[2] = prompt[0]
    options = {"max_new_tokens": 12, "top_k": 0, "temperature": 3.0, "num_samples": 2, "eos_id": 7}
    ids = ["a", "b", "a"]
    uniforms = uniforms_of_images(prompt, ids, num_samples=2, num_steps=12)
    model.decode_mode = mode
    try:
        found = model.generate(memory, prompt, uniforms=uniforms, **options)
        turned = uniforms_of_images(prompt.flip(0), ids[::-1], num_samples=2, num_steps=12)
        other = model.generate(memory.flip(0), prompt.flip(0), uniforms=turned, **options)
    finally:
        model.decode_mode = "plain"
    back = [values.unflatten(0, (3, 4)).flip(0).flatten(0, 1) for values in other]
    assert_same_draws(back, found)
    first, second, third = zip(*(values.unflatten(0, (3, 4)) for values in found), strict=True)
    assert_same_draws(third, first)
    assert not (second[0] == first[0]).all(1).any()


def test_numbers_differ_by_image_prompt_sample_step_and_seed():
    prompt = torch.tensor([[[10, 5], [10, 6]], [[10, 5], [10, 6]]])
    numbers = uniforms_of_images(prompt, [3, "3"], num_samples=4, num_steps=50)
    assert numbers.shape == (2 * 2 * 4, 50) and numbers.dtype == torch.float32
    assert len(numbers.unique()) > 0.99 * numbers.numel()
    assert numbers.min() >= 0 and numbers.max() < 1
    again = uniforms_of_images(prompt, [3, "3"], num_samples=4, num_steps=50)
    other = uniforms_of_images(prompt, [3, "3"], seed=1, num_samples=4, num_steps=50)
    assert torch.equal(numbers, again) and not torch.equal(numbers, other)
    more = uniforms_of_images(prompt, [3, "3"], num_samples=6, num_steps=50)
    assert torch.equal(more.unflatten(0, (4, 6))[:, :4], numbers.unflatten(0, (4, 4)))


class Beside(World):
    """One of several processes, which are threads of this one."""

    def gather(self, value):
        SHARED[self.rank] = value
        BARRIER.wait()
        values = [SHARED[rank] for rank in range(self.size)]
        BARRIER.wait()
        return values

    def collect(self, value):
        return self.gather(value) if self.is_main else self.gather(value)[:0]

    def broadcast(self, value):
        return self.gather(value)[0]


SHARED: dict = {}
BARRIER = threading.Barrier(2)


@pytest.mark.parametrize("task", EVALUATIONS)
def test_evaluations_draw_alike_on_any_number_of_processes(
    tiny_weights, multi_weights, multi_settings, demo_set, task
):
    from config import CFG

    weights = tiny_weights if task == "detection" else multi_weights
    reports = []
    for batch_size, size in ((4, 1), (2, 1), (2, 2)):
        settings = [*multi_settings, f"eval_batch_size={batch_size}", "caption_top_k=0"]
        settings += ["top_p=0.95", "seg_samples=2"]
        cfg = snapshot(CFG, settings)
        found = {}

        def run(rank, cfg=cfg, size=size, found=found):
            source = build_source(task, "coco", demo_set, "train")
            world = World() if size == 1 else Beside(rank, size)
            found[rank] = evaluate_task(task, cfg, Predictor(weights), source, world=world)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(found) == size
        reports.append(found[0])  # the first process has the rows
    for report in reports[1:]:
        assert len(report.results) == len(reports[0].results) > 0
        for row, first in zip(report.results, reports[0].results, strict=True):
            for name, value in first.items():
                is_number = isinstance(value, (int, float, list))
                assert row[name] == (pytest.approx(value, abs=1e-2) if is_number else value)


@pytest.mark.parametrize(
    "box", [[50, 40, 20, 60], [20, 60, 50, 40], [200, 9, 220, 20], [9, 9, 9, 20]]
)
def test_given_boxes_must_have_an_area_in_the_picture(multi_weights, pictures, box):
    predictor = Predictor(multi_weights)
    for ask in (predictor.segment, predictor.keypoints):
        with pytest.raises(ValueError, match="with an area inside the image"):
            ask(pictures[0], np.float32([[8, 9, 70, 60], box]))


def test_what_is_detected_has_an_area(tiny_weights, pictures):
    """Boxes of very random tokens: half of them are the wrong way round."""
    options = DetectionOptions(top_p=1.0, temperature=20.0)
    found = Predictor(tiny_weights).detect(pictures, options)
    boxes = np.concatenate([one.boxes for one in found])
    assert 0 < len(boxes) < 8 * len(pictures)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
