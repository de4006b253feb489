"""Keypoints from the annotation file to the picture: data, one frame, inference, scoring."""

import json
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from config import CFG
from dataset.coco_keypoint import CocoKeypoints
from dataset.geometry import Geometry, crop_to_box
from dataset.sample import Sample
from dataset.tasks import TASKS, build_source, build_train_set
from dataset.transforms import ScaleJitterCropFlip, train_transforms
from infer import evaluate, infer_single_image_keypoint, keypoint, trained_model
from infer.batches import as_tensor
from infer.boxes import true_boxes
from infer.keypoint import (
    SUPPRESSION,
    KeypointOptions,
    draw,
    find_keypoints,
    generate_resampled,
    official_truncation,
)
from infer.predictor import Predictor
from infer.results import Detections, score_coco
from infer.trained_model import TrainedModel
from models import save_model
from models.generate import SamplingOptions
from tests.conftest import TINY
from tokenizer.keypoint import KeypointTokenizer
from tokenizer.vocabulary import Vocabulary, tokens_to_points
from train import train_coco_keypoints
from train.build import build_model_of_run, build_source_of, build_tokenizers, build_vocabulary
from utils.categories import COCO_PERSON, check_sigmas
from utils.cli import snapshot
from utils.errors import UserError
from utils.visualize import draw_detections

NAMES = ["nose", "left_eye", "right_eye", "left_hand", "right_hand"]
BOXES = np.float32([[20, 10, 60, 70], [70, 30, 100, 60]])


def write_coco(root, rows, categories=None):
    """A COCO tree of two pictures, 120 x 90, for both splits."""
    categories = categories or [
        {"id": 7, "name": "robot", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
    ]
    images = [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 90} for i in (5, 3)]
    rows = [{"id": n, "image_id": 3, "category_id": 7, **row} for n, row in enumerate(rows)]
    content = {"images": images, "annotations": rows, "categories": categories}
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        for i in (3, 5):
            Image.new("RGB", (120, 90), (i, 0, 0)).save(root / f"{split}2017" / f"{i}.png")
        path = root / "annotations" / f"person_keypoints_{split}2017.json"
        path.write_text(json.dumps(content))
    return root


def person(*xyv, **more):
    flat = [float(value) for point in xyv for value in point]
    flat += [0.0] * (15 - len(flat))
    count = sum(value > 0 for value in flat[2::3])
    box = [20, 10, 40, 60]
    return {"bbox": box, "area": 2400, "keypoints": flat, "num_keypoints": count} | more


@pytest.fixture
def robots(tmp_path):
    rows = [
        person((30, 20, 2), (32, 22, 1), (9, 9, 0)),
        person(),  # nothing labelled
        person((30, 20, 2), iscrowd=1),
        person((80, 40, 2), image_id=5, bbox=[70, 30, 30, 30], area=900),
        person((85, 45, 2), bbox=[70, 30, 30, 30], area=900),
    ]
    return write_coco(tmp_path / "robots", rows)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, demo_set):
    """A random model of detection and keypoints on the demo set."""
    cfg = snapshot(CFG, [*TINY, f"coco_root={demo_set}", "seed=1"])
    torch.manual_seed(0)
    tasks, vocab = ["detection", "keypoint"], build_vocabulary(cfg)
    sources = {task: build_source_of(cfg, task, train=True) for task in tasks}
    tokenizers = build_tokenizers(cfg, tasks, vocab, sources)
    model, _ = build_model_of_run(cfg, vocab, tokenizers, sources["detection"].categories, "cpu")
    path = tmp_path_factory.mktemp("weights") / "both.safetensors"
    save_model(model, path)
    return path


# ---- data ----------------------------------------------------------------------------------


def test_points_their_names_and_lines_come_from_the_file(robots):
    source = CocoKeypoints(robots, "val")
    assert source.skeleton.names == tuple(NAMES) and source.skeleton.edges == ((0, 1), (0, 2))
    assert source.skeleton.flip_pairs == ((1, 2), (3, 4))
    sample = source[0]
    assert sample.image_id == 3 and sample.flip_pairs == source.skeleton.flip_pairs
    assert sample.keypoints.shape == (2, 5, 3) and sample.keypoints.dtype == np.float32
    assert sample.keypoints[0, :3].tolist() == [[30, 20, 2], [32, 22, 1], [0, 0, 0]]
    np.testing.assert_array_equal(sample.boxes, BOXES)


def test_objects_are_those_with_a_labelled_point_one_a_sample_in_training(robots):
    """Neither crowds nor persons without a labelled point; they stay in the ground truth."""
    source = build_source("keypoint", "coco", robots, "train", per_object=True)
    samples = [source[i] for i in range(len(source))]
    assert [s.image_id for s in samples] == [3, 3, 5]
    assert [s.keypoints[0, 0].tolist() for s in samples] == [[30, 20, 2], [85, 45, 2], [80, 40, 2]]
    assert all(len(s.boxes) == len(s.labels) == len(s.keypoints) == 1 for s in samples)
    truth = CocoKeypoints(robots, "val").coco
    assert sorted(row["num_keypoints"] for row in truth.dataset["annotations"]) == [0, 1, 1, 1, 2]


def test_images_without_a_person_count_in_evaluation_alone(tmp_path):
    root = write_coco(tmp_path / "set", [person((30, 20, 2), image_id=5)])
    assert CocoKeypoints(root, "val").image_ids.tolist() == [3, 5]
    assert CocoKeypoints(root, "val", limit=1).image_ids.tolist() == [3]
    alone = build_source("keypoint", "coco", root, "train", per_object=True, limit=1)
    assert alone.image_ids.tolist() == [5]


def test_wrong_files_end_in_one_line(tmp_path):
    def load(name, rows, categories=None, **options):
        return CocoKeypoints(write_coco(tmp_path / name, rows, categories), **options)

    with pytest.raises(
        UserError, match="annotation 0 of image 3: keypoints must be (15 )?numbers, got"
    ):
        load("short", [person() | {"keypoints": [1, 2, 2]}])
    with pytest.raises(
        UserError, match="annotation 0 of image 3: keypoints must be (15 )?numbers, got"
    ):
        load("text", [person() | {"keypoints": "none"}])
    plain = [{"id": 7, "name": "robot"}]
    with pytest.raises(UserError, match="has no category with keypoints"):
        load("plain", [person((30, 20, 2))], plain)
    two = [
        {"id": 7, "name": "robot", "keypoints": NAMES},
        {"id": 8, "name": "cup", "keypoints": ["rim"]},
    ]
    with pytest.raises(UserError, match="robot, cup have different keypoints; choose"):
        load("two", [person((30, 20, 2))], two)
    assert load("chosen", [person((30, 20, 2))], two, classes=["robot", "car"]).categories.names
    with pytest.raises(UserError, match="unknown class 'car'"):
        load("unknown", [person((30, 20, 2))], two, classes=["car"])


def test_persons_of_the_demo_set_are_all_there(demo_set):
    content = json.loads((demo_set / "annotations/person_keypoints_train2017.json").read_text())
    labelled = [r for r in content["annotations"] if r["num_keypoints"] and not r["iscrowd"]]
    source = build_source("keypoint", "coco", demo_set, "train", per_object=True)
    assert len(source) == len(labelled) > 5 and source.skeleton == COCO_PERSON


# ---- one frame -----------------------------------------------------------------------------


def blob(center, size=(150, 200), sigma=4.0):
    """A soft white dot, (H, W, 3) uint8."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    bright = np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / 2 / sigma**2)
    return np.repeat((250 * bright)[..., None], 3, 2).round().astype(np.uint8)


def centroid(image):
    bright = image[..., 0].astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(x * bright).sum(), (y * bright).sum()]) / bright.sum()


def test_prompt_box_image_and_points_stay_in_one_frame():
    """Random crops, scales and mirrors: what is painted on the box and the points is seen there.

    The marks are painted one at a time, moved by the same draws, and looked for in the picture.
    """
    augmentation = TASKS["keypoint"].augmentation | {"min_scale": 0.5}
    transforms = train_transforms(ScaleJitterCropFlip((128, 160), **augmentation))
    tokenizer = KeypointTokenizer(Vocabulary(), NAMES)
    make_sequence = partial(TASKS["keypoint"].make_sequence, tokenizer)
    rng, flips = np.random.default_rng(0), 0
    for seed in range(25):
        low, high = rng.uniform([40, 40], [70, 60]), rng.uniform([110, 90], [150, 110])
        points = rng.uniform(low, high, (5, 2))

        def moved(center, low=low, high=high, points=points, seed=seed):
            sample = Sample(
                blob(center),
                image_id=1,
                orig_size=(150, 200),
                boxes=np.float32([[*low, *high]]),
                labels=np.array([1]),
                keypoints=np.float32(np.column_stack([points, np.full(5, 2)]))[None],
                flip_pairs=((1, 2), (3, 4)),
            )
            draws = np.random.default_rng(seed)
            for transform in transforms:
                sample = transform(sample, draws)
            return sample

        sample = moved(low)
        target = make_sequence(sample, rng).target
        corners = tokens_to_points(tokenizer.vocab, target[:4], (128, 160))
        seen = np.array([centroid(moved(corner).image) for corner in (low, high)])
        np.testing.assert_allclose(corners, [seen.min(0), seen.max(0)], atol=0.7)
        said, found = tokenizer.decode(target[5:], sample.boxes[0], (128, 160))
        places = np.array([centroid(moved(point).image) for point in points])
        flips += sample.geometry.flip
        order = [0, 2, 1, 4, 3] if sample.geometry.flip else range(5)
        assert found.all()
        np.testing.assert_allclose(said, places[order], atol=0.7)
    assert 5 < flips < 20


def test_training_shows_twice_the_box_and_so_does_inference(robots):
    source = build_source("keypoint", "coco", robots, "train", per_object=True)
    tokenizer = KeypointTokenizer(Vocabulary(), NAMES, labels=[7])
    for augment in (True, False):
        train_set = build_train_set(
            *("keypoint", source, tokenizer, (64, 64)), seed=0, augment=augment, crop=0.5
        )
        sample, _ = train_set.sample(0, 0)
        assert sample.geometry.crop == crop_to_box(BOXES[0], (90, 120), 0.5)
        y, x, h, w = sample.geometry.crop
        assert (x, y, x + w, y + h) == (0, 0, 82, 90)  # 40 x 60 doubled, cut to the picture
        assert train_set[0, 0].tokens.target.shape == (tokenizer.max_len,)


def test_the_preset_crops_without_being_told(robots):
    source = build_source("keypoint", "coco", robots, "train", per_object=True)
    tokenizer = KeypointTokenizer(Vocabulary(), NAMES, labels=[7])
    sample, _ = build_train_set("keypoint", source, tokenizer, (64, 64), seed=0).sample(0, 0)
    assert sample.geometry.crop == crop_to_box(BOXES[0], (90, 120), 0.5)


def test_a_window_without_the_person_teaches_nothing(robots):
    source = build_source("keypoint", "coco", robots, "train", per_object=True)
    tokenizer = KeypointTokenizer(Vocabulary(), NAMES, labels=[7])
    train_set = build_train_set(
        *("keypoint", source, tokenizer, (16, 16)), seed=0, min_scale=9, max_scale=9
    )
    weights = [train_set[epoch, 0].tokens.weight.sum() for epoch in range(30)]
    assert 0 in weights and max(weights) > 0


# ---- inference -----------------------------------------------------------------------------


class Oracle:
    """A model that says the given points of one object after the other."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, size, objects, categories):
        self.tokenizer, self.objects = tokenizer, iter(objects)  # (box, keypoints, (H, W)) each
        vocab = tokenizer.vocab
        self.config = SimpleNamespace(image_size=size, vocab_size=vocab.size, max_len=500)
        self.meta = {
            "vocabulary": vocab.to_json(),
            "categories": categories.to_json(),
            "tasks": {"keypoint": tokenizer.settings()},
            "resize_mode": "letterbox",
        }

    def encode(self, images):
        assert images.shape[2:] == self.config.image_size
        return torch.zeros(len(images), 1, 1)

    def generate(self, memory, prompt, **_options):
        rows, size = [], self.config.image_size
        for row in prompt.numpy():
            box, points, image_size = next(self.objects)
            crop = crop_to_box(box, image_size, self.tokenizer.crop)
            geometry = Geometry.letterbox(image_size, size, crop=crop)
            corners = tokens_to_points(self.tokenizer.vocab, row[1:5], size).reshape(-1)
            bin_size = max(size) / (self.tokenizer.vocab.num_bins - 1)
            assert np.abs(corners - geometry.boxes(box)).max() < 0.51 * bin_size
            moved = np.column_stack([geometry.points(points[:, :2]), points[:, 2]])
            rows.append(self.tokenizer.encode(moved, size))
        tokens = torch.from_numpy(np.stack(rows))
        return tokens, torch.zeros(tokens.shape)


def oracle_metrics(source, num_bins=1000, size=(384, 384)):
    tokenizer = KeypointTokenizer(Vocabulary(num_bins=num_bins), source.skeleton.names)
    prompts, found = true_boxes(source, source.categories), {}
    for index, image_id in enumerate(source.image_ids.tolist()):
        sample = source[index]
        rows = zip(*source.objects(index)[:1], source.keypoints(index), strict=True)
        objects = [(*row, sample.orig_size) for row in rows]
        found[image_id] = find_keypoints(
            TrainedModel(Oracle(tokenizer, size, objects, source.categories)),
            [as_tensor(sample.image)],
            [prompts[image_id].boxes],
            [prompts[image_id].labels],
            options=KeypointOptions(suppress_invisible=False),  # this one cannot be asked again
        )[0]
    return score_coco(source, found, source.categories, "keypoints").metrics


@pytest.mark.data
@pytest.mark.parametrize(("num_bins", "least"), [(1000, 0.99), (250, 0.99)])
def test_ground_truth_as_predictions_scores_almost_one(real_data, num_bins, least):
    """Points through tokens and back; crowds and unlabelled persons are in the ground truth."""
    metrics = oracle_metrics(CocoKeypoints(real_data / "coco", "val"), num_bins)
    assert least <= metrics["AP"] <= 1 and metrics["AR"] >= least


def test_results_do_not_depend_on_how_crops_are_batched(weights, demo_set):
    predictor = Predictor(weights)
    images = sorted((demo_set / "train2017").glob("*.jpg"))[:3]
    boxes = [[[5, 6, 50, 80], [20, 20, 60, 61]], np.zeros((0, 4)), [[30, 0, 90, 90]]]

    def run(images, boxes, **options):
        return predictor.keypoints(images, boxes, options=KeypointOptions(top_k=1, **options))

    together = run(images, boxes)
    assert [len(found) for found in together] == [2, 0, 1]
    for image, of_image, found in zip(images, boxes, together, strict=True):
        alone = run(image, of_image, max_crops=1)
        np.testing.assert_allclose(alone.points, found.points, atol=1e-3)
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-5)
        assert alone.names == found.names == ["person"] * len(found)


def test_crops_are_twice_the_box_of_their_own_image(weights, monkeypatch):
    """Boxes stay xyxy from one stage to the next; a port read them as xywh the second time."""
    regions = []

    def record(box, size, pad):
        regions.append(crop_to_box(box, size, pad))
        return regions[-1]

    monkeypatch.setattr(trained_model, "crop_to_box", record)
    images = [np.zeros((300, 400, 3), np.uint8), np.zeros((500, 600, 3), np.uint8)]
    boxes = [np.float32([[100, 100, 200, 180]]), np.float32([[300, 200, 350, 300]])]
    predictor = Predictor(weights)
    predictor.keypoints(images, boxes)
    assert regions == [
        crop_to_box(b[0], i.shape[:2], 0.5) for b, i in zip(boxes, images, strict=True)
    ]
    centres_sides = [(y + h / 2, x + w / 2, h, w) for y, x, h, w in regions]
    np.testing.assert_allclose(centres_sides, [(140, 150, 160, 200), (250, 325, 200, 100)], atol=5)
    found = [Detections(b, np.array([1]), np.ones(1), ["person"]) for b in boxes]
    monkeypatch.setattr("infer.detection.detect", lambda *_: found)
    predictor.keypoints(images)
    assert regions[2:] == regions[:2]


def test_suppressed_invisible_points_all_get_a_place(weights):
    predictor, image = Predictor(weights), np.zeros((60, 80, 3), np.uint8)
    with torch.no_grad():  # a model that wants to say nothing but invisible
        predictor.model.decoder.output_bias[predictor.vocab.invisible] = 50.0
    box = np.float32([[10, 20, 50, 40]])
    shown = predictor.keypoints(image, box, options=KeypointOptions())
    assert (shown.points[..., 2] == 2).all() and 0 < shown.scores[0] < 0.1
    passed = predictor.keypoints(image, box, options=KeypointOptions(suppress_invisible=False))
    assert (passed.points[..., 2] == 0).all() and passed.scores[0] > 0.99
    np.testing.assert_allclose(passed.points[0, :, :2], [[30, 30]] * 17, atol=1e-4)


@pytest.mark.data
@pytest.mark.parametrize("case", ["default", "colab", "top_k1", "nocrop_weight0"])
def test_resampling_keeps_what_the_official_one_keeps(reference, case):
    data = np.load(reference / "decoding" / "keypoint_detection.npz")
    settings = json.loads((reference / "decoding" / "config.json").read_text())
    settings = settings["keypoint_cases"][case]
    logits = torch.from_numpy(data["logits"])
    logits[..., Vocabulary().invisible] -= SUPPRESSION
    kept = official_truncation(logits, settings["top_k"], settings["top_p"]) > -1e9
    np.testing.assert_array_equal(kept.numpy(), data[f"{case}/resample_kept_mask"])


def test_resampling_replaces_invisible_tokens_and_no_others(weights):
    predictor = Predictor(weights)
    model, invisible = predictor.model, predictor.vocab.invisible
    with torch.no_grad():  # a model that often says invisible
        model.decoder.output_bias[invisible] = 4.0
    size, box = model.config.image_size, np.float32([[3, 4, 30, 40]])
    prompt = predictor.tokenizer("keypoint").prompts(box, np.array([1]), size)
    prompt = torch.from_numpy(prompt).repeat(3, 1)
    with torch.no_grad():
        memory = model.encode(torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0)))
    uniforms = torch.rand(3, 2 * 34, generator=torch.Generator().manual_seed(1))
    said, _ = model.generate(
        memory, prompt, max_new_tokens=34, top_k=0, top_p=0.9, uniforms=uniforms[:, :34]
    )
    options = SamplingOptions(top_k=0, top_p=0.9)
    tokens, log_probs = generate_resampled(model, memory, prompt, invisible, uniforms, options)
    passed = said == invisible
    assert passed.any() and not passed.all() and not (tokens == invisible).any()
    assert torch.equal(tokens[~passed], said[~passed])
    with torch.no_grad():  # the context keeps what was said
        hidden = model.decoder(torch.cat([prompt, said], 1)[:, :-1], memory)
        logits = model.decoder.logits(hidden)[:, 5:]
    logits[..., invisible] = -torch.inf
    wanted = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    torch.testing.assert_close(log_probs, wanted)


def test_official_resampling_is_a_choice(weights):
    predictor, image = Predictor(weights), np.zeros((60, 80, 3), np.uint8)
    assert not KeypointOptions().official_resampling and not CFG.keypoint_official_resampling
    box = np.float32([[10, 20, 50, 40]])
    options = KeypointOptions(official_resampling=True, seed=3)
    first, again = (predictor.keypoints(image, box, options=options) for _ in range(2))
    np.testing.assert_array_equal(first.points, again.points)
    for wrong in ({"top_k": 2}, {"suppress_invisible": False}):
        with pytest.raises(ValueError, match="official_resampling needs"):
            KeypointOptions(official_resampling=True, **wrong)


def test_points_the_model_passed_on_are_at_the_boxes_centre_and_not_drawn(weights):
    """Ports sent (0, 0) through the inverse map and drew it at the corner of the crop."""
    predictor = Predictor(weights)
    with torch.no_grad():
        predictor.model.decoder.output_bias[predictor.vocab.invisible] = 50.0
    image, box = np.full((120, 160, 3), 90, np.uint8), np.float32([[60, 40, 100, 90]])
    options = KeypointOptions(suppress_invisible=False)
    found = predictor.keypoints(image, box, options=options)
    plain = draw_detections(image, box, ["person"], found.scores, colors=[(230, 25, 75)])
    np.testing.assert_array_equal(draw(image, found), plain)
    assert set(found.to_json()[0]["keypoints"].values()) == {None}
    (row,) = found.to_coco(3, predictor.categories)
    np.testing.assert_allclose(np.reshape(row["keypoints"], (17, 3)), [[80, 65, 0]] * 17)
    assert row["image_id"] == 3 and row["category_id"] == 1


def test_scores_mix_points_and_boxes(weights):
    predictor, image = Predictor(weights), np.zeros((60, 80, 3), np.uint8)
    boxes, scores = np.float32([[10, 20, 50, 40], [0, 0, 30, 30]]), np.float32([0.9, 0.3])

    def run(weight=None, **more):
        options = KeypointOptions(top_k=1, points_score_weight=weight)
        return predictor.keypoints(image, boxes, options=options, **more)

    points = run().point_scores.mean(1)
    np.testing.assert_allclose(run().scores, points, rtol=1e-5)
    np.testing.assert_allclose(run(scores=scores).scores, 0.1 * points + 0.9 * scores, rtol=1e-5)
    np.testing.assert_allclose(run(0.5, scores=scores).scores, (points + scores) / 2, rtol=1e-5)
    np.testing.assert_allclose(run(0.0, scores=scores).scores, scores, rtol=1e-5)
    assert (run(labels=[1, 3]).scores > 0).tolist() == [True, False]  # keypoints of persons only
    with pytest.raises(ValueError, match="points_score_weight must be in"):
        KeypointOptions(points_score_weight=2.0)


def test_strange_boxes_give_a_result(weights):
    boxes = [[0, 0, 0, 0], [70, 50, 90, 70], [-20, -20, 5, 5], [200, 200, 300, 300], [9, 9, 3, 3]]
    """Such as those of a results file; what a person gives is checked before."""
    image = torch.zeros((3, 60, 80), dtype=torch.uint8)
    (found,) = find_keypoints(Predictor(weights), [image], [np.float32(boxes)])
    assert len(found) == 5 and np.isfinite(found.points).all()
    assert (found.points[..., :2] >= 0).all() and (found.points[..., :2] <= [80, 60]).all()


# ---- evaluation and scripts ----------------------------------------------------------------


def test_evaluation_with_boxes_of_each_kind(weights, demo_set, tmp_path):
    predictor, source = Predictor(weights), CocoKeypoints(demo_set, "train")
    labelled = sum(len(source.objects(i)[0]) for i in range(len(source)))
    truth = keypoint.evaluate(predictor, source)
    assert len(truth.results) == labelled and 0 <= truth.metrics["AP"] <= 1
    assert list(truth.metrics)[:3] == ["AP", "AP50", "AP75"] and len(truth.metrics) == 10
    rows = [
        {"image_id": int(i), "category_id": 1, "bbox": [1, 2, 30, 40], "score": n / 50}
        for i in source.image_ids[:2]
        for n in range(25)
    ]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(rows))
    assert len(keypoint.evaluate(predictor, source, boxes=path).results) == 20 * 2
    detected = keypoint.evaluate(predictor, source, boxes="detected")
    assert len(detected.results) <= 8 * len(source)
    assert {row["image_id"] for row in detected.results} <= set(source.image_ids.tolist())


def test_sigmas_are_needed_where_coco_has_none(robots):
    skeleton = CocoKeypoints(robots, "val").skeleton
    with pytest.raises(UserError, match="the data has 5 keypoints and 0 OKS sigmas"):
        check_sigmas((), skeleton)
    assert check_sigmas((), COCO_PERSON) is None
    assert check_sigmas((0.1,), skeleton) == [0.1] * 5
    with pytest.raises(UserError, match="the data has 17 keypoints and 2 OKS sigmas"):
        check_sigmas((0.1, 0.2), COCO_PERSON)
    cfg = snapshot(CFG, [f"coco_root={robots}"])
    with pytest.raises(UserError, match="keypoint_sigmas"):
        build_source_of(cfg, "keypoint", train=True)


def test_five_points_train_and_are_scored(robots, tmp_path):
    settings = [*TINY, f"coco_root={robots}", f"runs_dir={tmp_path}", "keypoint_sigmas=0.1"]
    settings += ["batch_size=2", "max_steps=2", "eval_split=train"]
    run = train_coco_keypoints.main(["--set", *settings])
    metrics = json.loads((run / "best" / "metrics.json").read_text())
    assert 0 <= metrics["AP"] <= 1
    tokenizer = Predictor(run / "last.safetensors").tokenizer("keypoint")
    assert tokenizer.skeleton.names == tuple(NAMES) and tokenizer.labels == (7,)
    with pytest.raises(UserError, match="knows the 5 keypoints nose, left_eye, right_eye, …"):
        source = CocoKeypoints(robots, "val")
        source.skeleton = COCO_PERSON
        keypoint.evaluate(Predictor(run / "last.safetensors"), source)


def test_evaluate_script_writes_the_report(weights, demo_set, tmp_path, capsys):
    settings = [f"coco_root={demo_set}", "num_workers=0", "device=cpu"]
    args = ["--task", "keypoint", "--split", "train", "--weights", str(weights)]
    evaluate.main(["--no-report", *args, "--out-dir", str(tmp_path), "--set", *settings])
    assert "maxDets= 20" in capsys.readouterr().out
    row = json.loads((tmp_path / "results.json").read_text())[0]
    assert set(row) == {"image_id", "category_id", "keypoints", "score"}
    assert len(row["keypoints"]) == 51 and "AP" in json.loads(
        (tmp_path / "metrics.json").read_text()
    )


@pytest.mark.parametrize(
    "box",
    [["--box", "10", "20", "40", "60"], ["--box", "10,20,40,60"], ["--box", "10", "20,40 60"]],
)
def test_script_draws_and_prints(weights, demo_set, tmp_path, capsys, box):
    image = str(sorted((demo_set / "train2017").glob("*.jpg"))[0])
    args = ["--image", image, "--weights", str(weights), "--out-dir", str(tmp_path)]
    infer_single_image_keypoint.main([*args, *box, "--json", "--device", "cpu"])
    (row,) = json.loads(capsys.readouterr().out)
    (found,) = row["objects"]
    assert found["box"] == [10, 20, 50, 80] and list(found["keypoints"]) == list(COCO_PERSON.names)
    assert row["size"] == list(Image.open(tmp_path / "keypoint_detection.png").size)


def test_script_without_boxes_asks_the_detection_of_the_weights(
    weights, demo_set, tmp_path, capsys
):
    image = str(sorted((demo_set / "train2017").glob("*.jpg"))[0])
    args = ["--image", image, "--weights", str(weights), "--out-dir", str(tmp_path)]
    infer_single_image_keypoint.main([*args, "--score-threshold", "0.99", "--device", "cpu"])
    assert "no object found" in capsys.readouterr().out  # a normal result
    assert (tmp_path / "keypoint_detection.png").is_file()
    two = [*args, "--box", "1,2,30,40", "--box", "5", "5", "20", "20", "--device", "cpu"]
    infer_single_image_keypoint.main(two)
    out = capsys.readouterr().out
    assert len(re.findall(r"^person \d: score", out, re.M)) == 2
    assert len(re.findall(r"^  left_ankle ", out, re.M)) == 2


def test_script_says_in_one_line_what_is_missing(weights, tiny_weights, demo_set, tmp_path):
    image = sorted((demo_set / "train2017").glob("*.jpg"))[0]
    base = ["--image", str(image), "--out-dir", str(tmp_path), "--device", "cpu", "--weights"]
    cases = [
        ([*base, str(tiny_weights)], "was trained for detection, not for keypoint"),
        ([*base, str(weights), "--box", "1,2,3"], "--box must be four numbers"),
        (["--image", str(image.parent), *base[2:], str(weights), "--box", "1,2,3,4"], "one image"),
        ([*base, str(weights), "--set", "keypoint_top_p=0.1", "keypoint_score_weight=3"], "weight"),
    ]
    for args, message in cases:
        with pytest.raises(UserError, match=message):
            infer_single_image_keypoint.main(args)
