"""A page names a test for every defect; those tests that belong to no other file are here."""

import ast
import json
import re

import numpy as np
import pytest
import torch

import infer.batches
from config import CFG, PRESETS
from dataset.loader import build_eval_loader
from dataset.tasks import TASKS
from infer.batches import as_tensor
from infer.detection import DetectionOptions
from infer.keypoint import KeypointOptions
from infer.predictor import Predictor
from infer.segmentation import CROPS, SegmentationOptions
from tests.conftest import ROOT
from train.build import build_source_of, build_streams, build_tokenizers, build_vocabulary
from train.engine import train
from utils.cli import snapshot
from utils.detection_metrics import evaluate_voc
from utils.images import load_image

PAGE = (ROOT / "tests" / "damaged" / "README.md").read_text()


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 60
    for file in {file for file, _ in named}:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {test for other, test in named if other == file} <= there, file


def test_every_rule_and_every_defect_has_a_row_with_a_test():
    rows = re.findall(r"^\| (\S+?),? .*?(`test_\w+\.py::test_\w+`).*\|$", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == [
        *(str(n) for n in range(1, 12)),
        *(f"D{n}" for n in range(1, 26)),
    ]


@pytest.fixture
def predictor(multi_weights):
    return Predictor(multi_weights)


@pytest.fixture
def picture(demo_set) -> np.ndarray:
    return load_image(sorted((demo_set / "val2017").iterdir())[0])


def test_a_score_is_the_probability_of_the_class_at_its_own_step():
    """Teacher-forced: the logits that follow the four coordinates of a box, and no others."""
    predictor = Predictor(ROOT / "weights" / "demo.safetensors", mode="plain")
    picture = load_image(ROOT / "images" / "demo.jpg")
    found = predictor.detect(picture, DetectionOptions(top_k=1))
    tokenizer, model = predictor.tokenizer("detection"), predictor.model
    encoded = predictor.encode([as_tensor(picture)])
    prompt = torch.from_numpy(tokenizer.prompt)[None]
    tokens, _ = model.generate(encoded.memory, prompt, max_new_tokens=tokenizer.max_new_tokens)
    with torch.no_grad():
        hidden = model.decoder(torch.cat([prompt, tokens[:, :-1]], 1), encoded.memory)
        probs = model.decoder.logits(hidden)[0].softmax(-1)  # (T, V)
    low, high = predictor.vocab.class_range
    best, classes = probs[4::5, low:high].max(-1)
    named = torch.tensor([int(k) in predictor.categories.names for k in classes])
    (geometry,), (h, w) = encoded.geometries, picture.shape[:2]
    boxes = geometry.inverse_boxes(tokenizer.decode(tokens[0].numpy(), geometry.size)[0])
    boxes = np.clip(boxes, 0, [w, h, w, h])
    named &= torch.from_numpy((boxes[:, 2:] > boxes[:, :2]).all(1))  # and with an area
    expected = best[named].sort(descending=True)
    assert len(found) == named.sum() > 0
    np.testing.assert_allclose(found.scores, expected.values.numpy(), rtol=1e-4)
    np.testing.assert_array_equal(found.labels, classes[named][expected.indices].numpy())


def test_the_weights_of_the_weighted_preset_sum_to_one():
    cfg = snapshot(PRESETS["multi_task_weighted"])
    weights = (getattr(cfg, f"{task}_weight", 0) for task in TASKS)  # not every task has one
    assert sum(weights) == pytest.approx(1, abs=1e-9)


def test_more_objects_than_fit_into_a_batch(predictor, picture):
    """Also over several images: every object is answered as if it were alone."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 90, (CROPS + 21, 2, 2)), axis=1) + [[0, 0], [6, 6]]
    boxes = [corners[:20].reshape(-1, 4), corners[20:].reshape(-1, 4)]
    images, labels = [picture, picture[:, ::-1].copy()], ["person", "person"]
    greedy = SegmentationOptions(top_k=1, max_rows=7)
    masks = predictor.segment(images, boxes, labels, greedy)
    few = KeypointOptions(top_k=1, max_crops=6)
    points = predictor.keypoints(images, boxes, labels, few)
    for i, image in enumerate(images):
        assert len(masks[i]) == len(points[i]) == len(boxes[i])
        for n in (0, 7, len(boxes[i]) - 1):
            box = boxes[i][n : n + 1]
            alone = predictor.segment(image, box, "person", greedy)
            assert alone.rles[0] == masks[i].rles[n]
            alone = predictor.keypoints(image, box, "person", few)
            np.testing.assert_allclose(alone.points[0], points[i].points[n], atol=1e-3)


def test_all_tasks_see_the_same_pixels(multi_settings):
    """One encoder for all: no task has a normalisation or a resize of its own."""
    cfg = snapshot(CFG, [*multi_settings, "augment=false"])
    tasks = ["detection", "segmentation", "captioning"]
    sources = {task: build_source_of(cfg, task, train=True) for task in tasks}
    tokenizers = build_tokenizers(cfg, tasks, build_vocabulary(cfg, tasks), sources)
    streams = build_streams(cfg, sources, tokenizers)
    pictures = {}
    for task, stream in streams.items():
        data = stream.loader.dataset
        items = [data[0, i] for i in range(4)]
        pictures[task] = {item.image_id: item.image for item in items}
    shared = set.intersection(*(set(of_task) for of_task in pictures.values()))
    assert len(shared) >= 3
    for number in shared:
        first = pictures["detection"][number]
        assert first.dtype == np.uint8, "normalisation is the model's"
        assert all(np.array_equal(first, pictures[task][number]) for task in tasks)


def test_voc_counts_images_without_a_detection():
    box = {"boxes": np.float32([[0, 0, 10, 10]]), "labels": np.array([1])}
    truth = {name: {**box, "difficult": np.array([False])} for name in "abcd"}
    found = {"b": {**box, "scores": np.ones(1)}}
    result = evaluate_voc(truth, found, {1: "cat"})
    assert result["mAP50"] == pytest.approx(1 / 4)
    assert result["per_class"].objects.sum() == 4


def test_whatever_the_model_says_becomes_a_result(predictor, picture, monkeypatch):
    """Random ids over the whole vocabulary, and a few that matter over and over."""
    rng, vocab = np.random.default_rng(0), predictor.vocab
    few = [vocab.pad, vocab.fake, vocab.separator, vocab.invisible, vocab.text0 + 1, vocab.coord0]

    def generate(memory, prompt, *, max_new_tokens, num_samples=1, score_range=None, **_):
        rows = prompt[..., 0].numel() * num_samples
        shape = (rows, max_new_tokens)
        ids = rng.integers(0, vocab.size, shape) if rng.random() < 0.5 else rng.choice(few, shape)
        out = [torch.from_numpy(ids), torch.from_numpy(np.log(rng.random(shape)))]
        if score_range is not None:
            out += [torch.from_numpy(rng.integers(*score_range, shape)), out[1]]
        return tuple(out)

    monkeypatch.setattr(predictor.model, "generate", generate)
    sources = [predictor.categories.source_ids[k] for k in predictor.categories.names]
    h, w = picture.shape[:2]
    monkeypatch.setattr(
        predictor.model.decoder,
        "logits",
        lambda hidden: torch.zeros(*hidden.shape[:-1], vocab.size),
    )
    boxes = np.float32([[3, 4, 60, 50], [0, 0, w, h]])
    for _ in range(30):
        found = predictor.detect(picture)
        assert (found.boxes >= 0).all() and (found.boxes <= [w, h, w, h]).all()
        masks = predictor.segment(picture, boxes, "person")
        assert masks.masks.shape == (2, h, w)
        points = predictor.keypoints(picture, boxes)
        assert np.isfinite(points.points).all() and (points.points[..., 0] <= w).all()
        text = predictor.caption(picture).texts[0]
        assert isinstance(text, str) and "<" not in text
        rows = [
            row for one in (found, masks, points) for row in one.to_coco(1, predictor.categories)
        ]
        json.dumps(rows)
        assert all(row["category_id"] in sources for row in rows)
        json.dumps(predictor.all_tasks(picture).to_json())


def test_validation_judges_every_task_on_all_its_images(multi_settings, tmp_path, monkeypatch):
    """A task with fewer images is neither left out nor cut short, in any validation."""
    judged = []

    def record(source, **options):
        judged.append([])
        for batch in build_eval_loader(source, **options):
            judged[-1] += batch.image_ids
            yield batch

    monkeypatch.setattr(infer.batches, "build_eval_loader", record)
    settings = [*multi_settings, f"runs_dir={tmp_path}", "epochs=2", "eval_split=train"]
    cfg, tasks = snapshot(CFG, settings), ["detection", "keypoint", "captioning"]
    train(cfg, tasks)
    sources = [build_source_of(cfg, task, train=False) for task in tasks]
    assert len({len(source) for source in sources}) > 1
    assert judged == [source.image_ids.tolist() for source in sources] * 2
