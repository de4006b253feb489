"""What the caller has switched in torch changes neither a model nor its results."""

import contextlib
import json

import numpy as np
import pytest
import torch

from dataset.loader import build_eval_loader
from infer.predictor import Predictor
from tests.conftest import ROOT
from utils.images import load_image

WEIGHTS = ROOT / "weights" / "demo.safetensors"
IMAGE = ROOT / "images" / "demo.jpg"


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


HOSTS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "another device": default_device,  # in place of a GPU
    "inference mode": torch.inference_mode,
    "deterministic algorithms": deterministic,
    "no gradients": torch.no_grad,
}


def answers(predictor):
    image = load_image(IMAGE)
    found = predictor.all_tasks(image)
    boxes = np.float32([[75, 246, 166, 354], [356, 9, 392, 72]])
    masks = predictor.segment([image, image], [boxes, boxes[:1]])
    return json.dumps([found.to_json(), *(one.to_json() for one in masks)])


@pytest.fixture(scope="module")
def expected():
    return {mode: answers(Predictor(WEIGHTS, mode=mode)) for mode in ("plain", "auto", "static")}


@pytest.mark.parametrize("mode", ["plain", "auto", "static"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_predictor_answers_the_same_in_every_host(expected, host, mode):
    before = Predictor(WEIGHTS, mode=mode)
    with HOSTS[host]():
        assert answers(before) == expected[mode]
        assert answers(Predictor(WEIGHTS, mode=mode)) == expected[mode]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_loads_the_same_in_every_host(host, num_workers, demo_set):
    from dataset.coco_detection import CocoDetection

    source = CocoDetection(demo_set, limit=3)
    with HOSTS[host]():
        batches = list(build_eval_loader(source, batch_size=2, num_workers=num_workers))
    images = [image for batch in batches for image in batch.images]
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image.numpy(), source[i].image.transpose(2, 0, 1))


@pytest.mark.parametrize("host", ["float64", "bfloat16"])
def test_draws_of_a_generator_have_the_type_of_the_scores(host):
    model = Predictor(WEIGHTS, mode="plain").model
    memory, prompt = torch.zeros(1, 4, model.config.dim), torch.full((1, 1), 10)

    def draw():
        generator = torch.Generator().manual_seed(0)
        return model.generate(memory, prompt, max_new_tokens=9, top_k=0, generator=generator)[0]

    expected = draw()
    with HOSTS[host]():
        assert torch.equal(draw(), expected)
