"""Segmentation from data to masks: sources, transforms, decoding, evaluation, scripts."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from config import CFG
from dataset.coco_segmentation import CocoSegmentation
from dataset.geometry import Geometry
from dataset.loader import build_train_loader
from dataset.sample import Sample
from dataset.tasks import build_source, build_tokenizer, build_train_set
from dataset.transforms import FilterObjects, ScaleJitterCropFlip
from infer import evaluate, infer_single_image_segmentation, segmentation
from infer.boxes import read_boxes, true_boxes
from infer.predictor import Predictor
from infer.results import InstanceMasks, score_coco
from infer.segmentation import SegmentationOptions, combine_samples, pack_objects, segment
from infer.trained_model import TrainedModel
from models import save_model
from models.pix2seq import Pix2Seq
from tests.conftest import ROOT, TINY
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.vocabulary import Vocabulary
from train import train_coco_segmentation
from train.engine import train
from utils.cli import snapshot
from utils.errors import UserError
from utils.masks import (
    cut_polygons,
    fit_polygons,
    majority_mask,
    mask_to_rle,
    outline_iou,
    polygons_to_rle,
    rle_to_mask,
    rle_to_polygons,
    window_to_rle,
)

VOCAB = Vocabulary()
SMALL = [*TINY, "max_points=12", "seg_max_objects=4", "seg_samples=2"]
FAST = SegmentationOptions(num_samples=2)


def trained(tmp_path_factory, demo_set, tasks, *more) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    overrides = [*SMALL, f"coco_root={demo_set}", f"runs_dir={runs}", *more]
    return train(snapshot(CFG, overrides), tasks)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, demo_set) -> Path:
    """Barely trained for segmentation alone."""
    return trained(tmp_path_factory, demo_set, ["segmentation"], "max_steps=2") / "last.safetensors"


@pytest.fixture(scope="module")
def both_weights(tmp_path_factory, demo_set) -> Path:
    """Barely trained for detection and segmentation."""
    more = ["max_objects=3", "max_steps=25", "epochs=25", "eval_every=25", "lr=3e-3"]
    run = trained(tmp_path_factory, demo_set, ["detection", "segmentation"], *more)
    return run / "last.safetensors"


@pytest.fixture(scope="module")
def picture(demo_set) -> Path:
    return sorted((demo_set / "val2017").glob("*.jpg"))[0]


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def ellipse(size=(80, 120), center=(60, 40), axes=(40, 25), angle=30):
    canvas = np.zeros(size, np.uint8)
    return cv2.ellipse(canvas, center, axes, angle, 0, 360, 1, -1).astype(bool)


# ---- masks and polygons --------------------------------------------------------------------


def test_polygons_are_filled_as_pycocotools_fills_them():
    polygon = np.float32([[10, 10], [60, 12], [40, 70]])
    want = coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().tolist()], 80, 120)[0])
    np.testing.assert_array_equal(rle_to_mask(polygons_to_rle([polygon], (80, 120))), want)


@pytest.mark.parametrize("points", [0, 1, 2])
def test_what_has_no_area_gives_an_empty_mask(points):
    """Two points are four numbers, which pycocotools would take for a box."""
    part = np.float32([[10, 10], [30, 40]])[:points]
    assert not rle_to_mask(polygons_to_rle([part], (80, 120))).any()


@pytest.mark.parametrize("form", ["compressed", "list", "text"])
def test_run_lengths_become_polygons(form):
    mask = ellipse() | ellipse(center=(105, 70), axes=(12, 7), angle=0)
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    if form == "text":
        rle = mask_to_rle(mask)
    if form == "list":
        edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
        counts = np.diff(edges, prepend=0, append=mask.size).tolist()
        rle = {"size": [80, 120], "counts": counts}
    polygons = rle_to_polygons(rle)
    assert len(polygons) == 2
    assert iou(rle_to_mask(polygons_to_rle(polygons, mask.shape)), mask) > 0.98


def test_an_outline_of_run_lengths_runs_along_the_pixels_edges():
    mask = np.zeros((30, 40), bool)
    mask[5:20, 8:31] = True
    (polygon,) = rle_to_polygons(mask_to_rle(mask))
    assert sorted(map(tuple, polygon.tolist())) == [(8, 5), (8, 20), (31, 5), (31, 20)]


def blob(num, radius, center, seed):
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False)
    wave = radius * (1 + 0.2 * np.sin(5 * angle + rng.random() * 6))
    return np.float32(center + wave[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]))


@pytest.mark.parametrize("max_points", [32, 64, 128])
def test_parts_share_the_budget_by_length(max_points):
    parts = [blob(200, 60, (100, 100), 0), blob(200, 15, (200, 100), 1), blob(5, 9, (50, 20), 2)]
    fitted = fit_polygons(parts, max_points)
    numbers = [len(part) for part in fitted]
    assert sum(numbers) + 2 <= max_points and min(numbers) >= 3
    assert sum(numbers) + 2 >= max_points - 6, "the budget is used"
    assert numbers[0] > 1.5 * numbers[1]
    whole, cut = (polygons_to_rle(p, (220, 240)) for p in (parts, fitted))
    assert iou(rle_to_mask(whole), rle_to_mask(cut)) > 0.9
    assert fit_polygons(fitted, max_points) == fitted, "what fits is left alone"


def test_only_too_many_parts_lose_some_and_then_the_smallest():
    parts = [blob(30, radius, (20, 20), radius) for radius in (5, 40, 6, 30, 7)]
    fitted = fit_polygons(parts, 8)  # room for two parts
    assert [len(part) for part in fitted] == [4, 3]
    assert np.ptp(fitted[0][:, 0]) > np.ptp(fitted[1][:, 0]) > 30, "of 40 and 30, in their order"


def test_degenerate_outlines_are_simplified_without_an_exception():
    line = np.column_stack([np.arange(50), np.arange(50)]).astype(np.float32)
    dot = np.full((50, 2), 7, np.float32)
    for part in (line, dot):
        assert 3 <= len(fit_polygons([part], 8)[0]) <= 8
    assert len(fit_polygons([line, dot, dot], 12)) == 3


def test_cut_polygons_are_the_first_points_and_the_separator_is_one():
    parts = [blob(6, 9, (50, 20), 0), blob(6, 9, (20, 50), 1), blob(6, 9, (70, 70), 2)]
    for max_points in range(3, 24):
        cut = cut_polygons(parts, max_points)
        joined = [(n, i) for n, part in enumerate(parts) for i in range(-(n > 0), len(part))]
        shown = [[i for m, i in joined[:max_points] if m == n and i >= 0] for n in range(3)]
        wanted = [part[:k] for part, k in zip(parts, map(len, shown), strict=True) if k >= 3]
        assert len(cut) == len(wanted) and all(map(np.array_equal, cut, wanted))


# ---- dataset ---------------------------------------------------------------------------------


def write_coco(root: Path, annotations: list[dict], num_images=2) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    images = []
    for i in range(1, num_images + 1):
        cv2.imwrite(str(root / "train2017" / f"{i}.png"), np.full((80, 120, 3), 9 * i, np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "height": 80, "width": 120})
    rows = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": [5, 5, 90, 60], "iscrowd": 0, **row}
        for n, row in enumerate(annotations, 1)
    ]
    names = ["person", "dog"]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    content = {"images": images, "annotations": rows, "categories": categories}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


SQUARE = [10, 10, 60, 10, 60, 50, 10, 50]
CORNER = [70, 20, 90, 20, 90, 60]


def test_all_forms_of_annotation_are_read(tmp_path):
    root = write_coco(
        tmp_path,
        [
            {"segmentation": [SQUARE, CORNER]},
            {"segmentation": mask_to_rle(ellipse()), "category_id": 2},
            {"segmentation": mask_to_rle(ellipse()), "iscrowd": 1},
            {"segmentation": []},
            {"segmentation": [[1, 2, 3, 4]]},
            {},
            {"segmentation": [blob(400, 30, (50, 40), 0).ravel().tolist()], "image_id": 2},
        ],
    )
    source = CocoSegmentation(root, max_points=32)
    first, second = source[0], source[1]
    assert [len(parts) for parts in first.polygons] == [2, 1, 0, 0, 0], "the crowd is left out"
    assert first.polygons[0][0].ravel().tolist() == SQUARE and first.labels[1] == 2
    kept = FilterObjects()(first, None)
    assert [len(parts) for parts in kept.polygons] == [2, 1] and len(kept.boxes) == 2
    assert iou(rle_to_mask(polygons_to_rle(kept.polygons[1], (80, 120))), ellipse()) > 0.98
    assert 24 <= len(second.polygons[0][0]) <= 32
    assert len(source.coco.anns) == 7, "the ground truth is complete"
    assert np.shares_memory(*(source.polygons(0)[0][0] for _ in range(2))), (
        "simplified once, shared by workers"
    )


def test_long_outlines_may_be_cut_as_officially(tmp_path):
    long = blob(40, 30, (60, 40), 0)
    root = write_coco(tmp_path, [{"segmentation": [long.ravel().tolist()]}])
    for cut in (True, False):
        source = CocoSegmentation(root, max_points=16, cut_outlines=cut)
        tokenizer = SegmentationTokenizer(Vocabulary(), 16, random_start=False, cut_outlines=cut)
        ((kept,),) = source.polygons(0)
        assert np.array_equal(kept, long[:16]) == cut
        assert np.array_equal(
            tokenizer.encode([long], (80, 120)), tokenizer.encode([kept], (80, 120))
        )
    assert not CFG.seg_cut_outlines and not CFG.diagonal_crops


def test_all_categories_and_split_objects_are_learned(demo_set):
    source = CocoSegmentation(demo_set, "train")
    labels = {int(k) for i in range(len(source)) for k in source.objects(i)[1]}
    truth = [row for row in source.coco.anns.values() if not row["iscrowd"]]
    assert labels == {row["category_id"] for row in truth} and len(labels) > 5
    parts = [len(p) for i in range(len(source)) for p in source.polygons(i)]
    assert max(parts) > 1 and min(parts) >= 1
    assert len(parts) == len(truth)


def test_objects_as_samples_of_their_own(tmp_path):
    polygon = {"segmentation": [SQUARE]}
    other = {"segmentation": [CORNER], "category_id": 2}
    rows = [polygon, {"bbox": [200, 5, 9, 9]}, other, {}, polygon | {"image_id": 2}]
    root = write_coco(tmp_path, rows, 3)
    source = build_source("segmentation", "coco", root, "train", per_object=True)
    assert len(source) == 3 and [source[i].image_id for i in range(3)] == [1, 1, 2]
    for i in range(3):
        assert len(source[i].boxes) == len(source[i].labels) == len(source[i].polygons) == 1
    assert [source[i].labels.tolist() for i in range(3)] == [[1], [2], [1]]
    assert source[1].polygons[0][0].ravel().tolist() == CORNER
    kept = CocoSegmentation(tmp_path, keep_empty=False)
    assert kept.image_ids.tolist() == [1, 2]


@pytest.mark.parametrize(
    "bad",
    [[[1, 2, 3, 4, 5]], [["a"]], "text", {"counts": "xx"}, [[1, 2, float("nan"), 4, 5, 6]], 3],
)
def test_a_damaged_annotation_is_one_line(tmp_path, bad):
    root = write_coco(tmp_path, [{"segmentation": bad}])
    with pytest.raises(UserError, match="annotation 1 of image 1: segmentation must be") as error:
        CocoSegmentation(root)
    assert "\n" not in str(error.value)


def test_nothing_to_learn_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no annotated object with an outline"):
        CocoSegmentation(write_coco(tmp_path, [{}]), keep_empty=False)
    with pytest.raises(UserError, match="no annotated object with an outline"):
        build_source("segmentation", "coco", tmp_path, "train", per_object=True)


def random_sample(rng):
    image = np.zeros((90, 130, 3), np.uint8)
    polygons, boxes = [], []
    for _ in range(4):
        parts = [
            blob(20, rng.uniform(4, 15), rng.uniform(20, 70, 2), rng.integers(99))
            for _ in range(rng.integers(1, 3))
        ]
        points = np.concatenate(parts)
        polygons.append(parts)
        boxes.append([*points.min(0), *points.max(0)])
    return Sample(image, 1, (90, 130), boxes=np.float32(boxes), labels=np.arange(1, 5),
                  polygons=polygons)  # fmt: skip


@pytest.mark.parametrize("max_scale", [1.0, 2.0])
def test_prompt_box_image_and_polygons_move_together(max_scale):
    """Under random jitter, crop and flip the prompt stays the box around the outline."""
    rng, flips = np.random.default_rng(0), set()
    tok = SegmentationTokenizer(VOCAB, 128, max_objects=4)
    for _ in range(100):
        sample = random_sample(rng)
        for part in sample.polygons[0]:
            cv2.fillPoly(sample.image, [(part - 0.5).round().astype(int)], (255, 0, 0))
        moved = ScaleJitterCropFlip((120, 160), 0.3, max_scale)(sample, rng)
        moved = FilterObjects()(moved, rng)
        flips.add(moved.geometry.flip)
        sequence = tok.sequence(moved.boxes, moved.labels, moved.polygons, (120, 160), rng)
        for prompt, target in zip(sequence.input[:, :6], sequence.target[:, 5:], strict=True):
            if prompt[0] == VOCAB.pad:
                continue
            y0, x0, y1, x1 = (prompt[1:5] - 1000) / 999 * [120, 160, 120, 160]
            points = np.concatenate(tok.decode(target, (120, 160)))
            low, high = points.min(0), points.max(0)
            if max_scale == 1:
                np.testing.assert_allclose([*low, *high], [x0, y0, x1, y1], atol=0.35)
            else:  # what a window leaves of an object may not fill what it leaves of the box
                assert (low > [x0 - 0.35, y0 - 0.35]).all()
                assert (high < [x1 + 0.35, y1 + 0.35]).all()
            if prompt[5] == VOCAB.class0 + 1:
                drawn = np.zeros((120, 160), bool)
                h, w = moved.geometry.unpadded
                drawn[:h, :w] = moved.image[..., 0] > 127
                learned = rle_to_mask(polygons_to_rle(tok.decode(target, (120, 160)), (120, 160)))
                if drawn.sum() > 300:
                    assert iou(drawn, learned) > 0.75
    assert flips == {False, True}


def test_a_window_may_cost_an_outline_points_but_never_the_budget():
    rng, tok = np.random.default_rng(0), SegmentationTokenizer(VOCAB, 10, max_objects=4)
    for _ in range(100):
        moved = ScaleJitterCropFlip((60, 60), 1.0, 2.5)(random_sample(rng), rng)
        moved = FilterObjects()(moved, rng)
        sequence = tok.sequence(moved.boxes, moved.labels, moved.polygons, (60, 60), rng)
        assert sequence.input.shape == (4, 25)


def train_set(demo_set, crop, **augmentation):
    options = {"per_object": crop is not None, "keep_empty": False}
    source = build_source("segmentation", "coco", demo_set, "train", **options)
    tok = build_tokenizer("segmentation", VOCAB, max_points=12, max_objects=1 if crop else 4)
    size = (64, 96)
    return build_train_set("segmentation", source, tok, size, seed=0, crop=crop, **augmentation)


def test_a_batch_holds_the_objects_of_an_image_together(demo_set):
    loader = build_train_loader(train_set(demo_set, None), batch_size=3, num_workers=0)
    batch = next(iter(loader))
    assert batch.images.shape == (3, 3, 64, 96) and batch.input_tokens.shape == (3, 4, 29)
    assert batch.token_weights.shape == batch.target_tokens.shape == (3, 4, 29)
    assert (batch.token_weights[batch.input_tokens[..., 0] == 0] == 0).all()


@pytest.mark.parametrize("augmentation", [{}, {"augment": False}])
def test_a_crop_shows_the_box_and_its_surroundings(demo_set, augmentation):
    data = train_set(demo_set, 0.5, **augmentation)
    for index in range(8):
        sample, _ = data.sample(0, index)
        (x0, y0, x1, y1), (h, w) = sample.boxes[0], sample.geometry.unpadded
        assert len(sample.boxes) == 1 and (x1 - x0) > 0.3 * w and (y1 - y0) > 0.3 * h
        points = np.concatenate(sample.polygons[0])
        np.testing.assert_allclose([*points.min(0), *points.max(0)], sample.boxes[0], atol=1.5)
    assert len(data) > len(CocoSegmentation(demo_set, "train"))


# ---- decoding --------------------------------------------------------------------------------


def test_samples_are_averaged_not_piled_up():
    """8 samples that agree in part: the mask is where at least half of them are."""
    tok, geometry = SegmentationTokenizer(VOCAB, 16), Geometry.letterbox((100, 100), (100, 100))
    boxes = [(0, 0, 40 + 5 * i, 50) for i in range(8)]  # right edges 40, 45, … 75
    squares = [np.float32([[a, b], [c, b], [c, d], [a, d]]) for a, b, c, d in boxes]
    samples = [np.pad(t := tok.encode([p], (100, 100)), (0, 32 - len(t))) for p in squares]
    widths = {}
    for threshold in (0.125, 0.5, 1.0):
        mask = rle_to_mask(combine_samples(tok, np.stack(samples), geometry, threshold))
        widths[threshold] = mask[25].sum()
    assert widths[0.125] == pytest.approx(75, abs=1)
    assert widths[0.5] == pytest.approx(60, abs=1) and widths[1.0] == pytest.approx(40, abs=1)


@pytest.mark.parametrize("seed", range(40))
def test_a_window_is_filled_as_the_whole_picture_is(seed):
    """Outlines inside, at and across the border; run lengths of the window are those of all."""
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 60, 2).tolist())
    outlines = [
        [
            (rng.random((rng.integers(3, 9), 2)) * rng.uniform(1, 70) + rng.uniform(-9, 60)).astype(
                np.float32
            )
            for _ in range(rng.integers(0, 4))
        ]
        for _ in range(8)
    ]
    votes = sum(rle_to_mask(polygons_to_rle(parts, size)).astype(int) for parts in outlines)
    for share in (0.125, 0.5, 1.0):
        assert majority_mask(outlines, size, share) == mask_to_rle(votes >= share * 8)


@pytest.mark.parametrize("density", [0.0, 0.3, 0.9, 1.0])
def test_run_lengths_of_a_window_are_those_of_the_picture(density):
    rng = np.random.default_rng(0)
    for _ in range(50):
        h, w, top, left, below, right = rng.integers(0, 5, 6).tolist()
        window = rng.random((h + 1, w + 1)) < density
        whole = np.pad(window, ((top, below), (left, right)))
        assert window_to_rle(window, (top, left), whole.shape) == mask_to_rle(whole)


@pytest.mark.data
def test_masks_equal_the_official_ones(reference):
    data = np.load(reference / "decoding" / "instance_segmentation.npz")
    tok = SegmentationTokenizer(Vocabulary(num_bins=350, coord0=250, text0=600), 20)
    size = tuple(data["image_height_width"].tolist())
    orig = data["image_size_before_cropping"].repeat(8, 0)
    for row, tokens in enumerate(data["pred_seq"]):
        geometry = Geometry.letterbox(tuple(orig[row].tolist()), size)
        got = rle_to_mask(combine_samples(tok, tokens[None], geometry, 0.5))
        np.testing.assert_array_equal(got, data[f"mask_{row}"])
    for threshold in (0.5, 0.75):
        for n in range(6):
            geometry = Geometry.letterbox(tuple(orig[4 * n].tolist()), size)
            got = combine_samples(tok, data["pred_seq"][4 * n : 4 * n + 4], geometry, threshold)
            np.testing.assert_array_equal(rle_to_mask(got), data[f"ensemble_t{threshold}_{n}"])
    boxes, labels = data["gt_bbox"][..., [1, 0, 3, 2]], data["gt_label"]
    for boxes_of, labels_of, want in zip(boxes, labels, data["prompt_seq"], strict=True):
        np.testing.assert_array_equal(tok.prompts(boxes_of, labels_of, (1, 1)), want)


class Scripted:
    """Stands in for a model: says the given outlines, whatever it is asked."""

    device = torch.device("cpu")

    def __init__(self, model, crop, answer):
        settings = model.meta["tasks"]["segmentation"] | {"crop": crop}
        self.config, self.meta = model.config, model.meta | {"tasks": {"segmentation": settings}}
        self.answer, self.prompts, self.passes = answer, [], 0

    def encode(self, images):
        self.passes += 1
        return torch.zeros(len(images), 1, 4)

    def generate(self, memory, prompt, *, max_new_tokens, num_samples, **_):
        assert len(memory) == len(prompt)
        self.prompts.append(prompt)
        rows = prompt.flatten(0, 1).repeat_interleave(num_samples, 0).numpy()
        tokens = np.stack([self.answer(row) for row in rows])
        return torch.from_numpy(
            np.pad(tokens, ((0, 0), (0, max_new_tokens - tokens.shape[1])))
        ), None


def outline_of_prompt(prompt):
    y0, x0, y1, x1 = prompt[1:5]
    return np.array([y0, x0, y0, x1, y1, x1, y1, x0])


@pytest.mark.parametrize("crop", [None, 0.5])
@pytest.mark.parametrize("max_rows", [1, 5, 256])
def test_every_mask_belongs_to_its_box(weights, crop, max_rows):
    """A model that answers with the box of its prompt: boxes come back, in order, in place."""
    predictor, rng = Predictor(weights), np.random.default_rng(0)
    images = [torch.zeros(3, h, w, dtype=torch.uint8) for h, w in ((90, 60), (40, 120), (64, 64))]
    boxes, labels = [], []
    for image, num in zip(images, (3, 0, 5), strict=True):
        size = np.array(image.shape[:0:-1])
        low = rng.uniform(0, 0.5, (num, 2)) * size
        boxes.append(np.hstack([low, low + rng.uniform(0.2, 0.5, (num, 2)) * size]))
        labels.append(rng.choice(list(predictor.categories.names), num))
    model = Scripted(predictor.model, crop, outline_of_prompt)
    options = SegmentationOptions(num_samples=2, max_rows=max_rows)
    found = segment(TrainedModel(model), images, boxes, labels, options=options)
    assert model.passes == 1, "one encoder pass, of images or of all crops"
    for image, b, k, masks in zip(images, boxes, labels, found, strict=True):
        assert len(masks) == len(b) and (masks.scores == 1).all()
        np.testing.assert_array_equal(masks.labels, k)
        for (x0, y0, x1, y1), mask in zip(b, masks.masks, strict=True):
            want = np.zeros(image.shape[1:], bool)
            want[round(y0) : round(y1), round(x0) : round(x1)] = True
            assert iou(mask, want) > 0.85
    sizes = [tuple(p.shape) for p in model.prompts]
    assert all(a * b * 2 <= max(max_rows, 2) for a, b, _ in sizes)


def test_objects_are_packed_without_loss():
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(0, 30, rng.integers(0, 12)).tolist()
        limit = int(rng.integers(1, 40))
        groups = list(pack_objects(counts, limit))
        covered = sorted((i, n) for group in groups for i, a, b in group for n in range(a, b))
        assert covered == [(i, n) for i, count in enumerate(counts) for n in range(count)]
        assert all(len(group) * (group[0][2] - group[0][1]) <= limit for group in groups)
        assert all(b - a <= group[0][2] - group[0][1] for group in groups for _, a, b in group)


def test_greedy_masks_do_not_depend_on_batch_mates(weights, demo_set):
    predictor, source = Predictor(weights), CocoSegmentation(demo_set, "val")
    prompts = list(true_boxes(source, predictor.categories).values())[:4]
    images, options = [source[i].image for i in range(4)], SegmentationOptions(top_k=1)
    boxes, labels = [p.boxes for p in prompts], [p.labels for p in prompts]
    together = predictor.segment(images, boxes, labels, options)
    for image, one, masks in zip(images, prompts, together, strict=True):
        alone = predictor.segment(image, one.boxes, one.labels, options)
        assert alone.rles == masks.rles


def test_labels_are_names_ids_or_left_to_the_weights(weights, both_weights, picture):
    predictor, box = Predictor(weights), [[10, 10, 60, 60]]
    names = predictor.categories.names
    by_name = predictor.segment(picture, box, "person", FAST)
    assert by_name.names == ["person"] and by_name.masks.shape[0] == 1
    ids = predictor.categories.ids_of_names
    assert predictor.segment(picture, box, ids["person"], FAST).rles == by_name.rles
    assert predictor.segment(picture, box, None, FAST).names == [next(iter(names.values()))]
    classified = Predictor(both_weights).segment(picture, box * 3, None, FAST)
    assert len(classified) == 3 and set(classified.names) <= set(names.values())
    with pytest.raises(UserError, match="unknown class 'persn' .* similar: person"):
        predictor.segment(picture, box, "persn", FAST)
    with pytest.raises(UserError, match="no class id 899"):
        predictor.segment(picture, box, [899], FAST)
    with pytest.raises(UserError, match="one label for all boxes or one each: 2 for 1"):
        predictor.segment(picture, box, ["person", "person"], FAST)


def test_without_boxes_the_same_weights_detect_and_the_image_is_encoded_once(
    both_weights, weights, picture, monkeypatch
):
    predictor, passes = Predictor(both_weights), []
    encode = predictor.model.encode
    monkeypatch.setattr(predictor.model, "encode", lambda x: passes.append(len(x)) or encode(x))
    found = predictor.segment(picture, options=FAST, score_threshold=0.0)
    assert passes == [1] and 1 <= len(found) <= 3 and (found.scores < 1).all()
    nothing = predictor.segment([picture, picture], options=FAST, score_threshold=1.0)
    assert [len(one) for one in nothing] == [0, 0]
    with pytest.raises(UserError, match="not for detection"):
        Predictor(weights).segment(picture)


@pytest.mark.parametrize(
    "options", [{"num_samples": 0}, {"max_rows": 0}, {"threshold": 0.0}, {"threshold": 1.5}]
)
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SegmentationOptions(**options)


# ---- evaluation -------------------------------------------------------------------------------


def oracle(source, max_points, size=(640, 640)):
    """The ground truth through encode and decode."""
    tok = SegmentationTokenizer(VOCAB, max_points)
    found = {}
    for index, (image_id, prompt) in enumerate(true_boxes(source, source.categories).items()):
        row = source.coco.imgs[image_id]
        geometry = Geometry.letterbox((row["height"], row["width"]), size)
        rles = []
        for parts in source.polygons(index):
            tokens = tok.encode([geometry.points(part) for part in parts], geometry.size)
            rles.append(combine_samples(tok, tokens[None], geometry, 0.5))
        found[image_id] = InstanceMasks(**vars(prompt), rles=rles)
    return score_coco(source, found, source.categories, "segm")


@pytest.mark.data
@pytest.mark.parametrize(("max_points", "at_least"), [(128, 0.98), (64, 0.98), (32, 0.97)])
def test_ground_truth_through_tokens_scores_almost_perfectly(real_data, max_points, at_least):
    """0.987, 0.987 and 0.978; outlines cut at the limit would have 0.984, 0.946 and 0.876."""
    source = CocoSegmentation(real_data / "coco", "val", max_points=max_points)
    report = oracle(source, max_points)
    assert report.metrics["AP"] >= at_least and report.metrics["AP50"] > 0.99
    assert len(report.results) == sum(len(source.objects(i)[0]) for i in range(len(source)))


def test_ground_truth_of_the_demo_set_scores_almost_perfectly(demo_set):
    assert oracle(CocoSegmentation(demo_set, "val"), 128).metrics["AP"] > 0.93


@pytest.mark.parametrize("boxes", ["gt", "detected", "file"])
def test_evaluation_with_every_kind_of_boxes(both_weights, demo_set, tmp_path, boxes):
    path = tmp_path / "boxes.json"
    source = CocoSegmentation(demo_set, "val")
    truth = [row for row in source.coco.anns.values() if not row["iscrowd"]]
    rows = [{k: row[k] for k in ("image_id", "category_id", "bbox")} for row in truth]
    path.write_text(json.dumps([{**row, "score": 0.25} for row in rows[2:]]))
    report = segmentation.evaluate(
        Predictor(both_weights), source, FAST, boxes=path if boxes == "file" else boxes
    )
    assert set(report.metrics) >= {"AP", "AP50", "AR100"}
    expected = {"gt": len(rows), "file": len(rows) - 2, "detected": 3 * len(source)}[boxes]
    if boxes == "detected":  # classes without a name are dropped
        assert 0 < len(report.results) <= expected
    else:
        assert len(report.results) == expected
        assert {row["score"] for row in report.results} == {1.0 if boxes == "gt" else 0.25}
    for row in report.results:
        assert set(row) == {"image_id", "category_id", "segmentation", "score"}
        json.dumps(row)
    image_ids = {row["image_id"] for row in report.results}
    assert image_ids <= set(source.image_ids.tolist())


def test_boxes_of_a_file_are_checked(demo_set, tmp_path):
    source = CocoSegmentation(demo_set, "val")
    path, ids = tmp_path / "boxes.json", source.image_ids.tolist()
    for content in ("", "[1]", '{"a": 1}', '[{"image_id": 1}]'):
        path.write_text(content)
        with pytest.raises(UserError, match="gt, detected or a COCO results file"):
            read_boxes(path, ids, source.categories)
    with pytest.raises(UserError, match=r"cannot read .*none.json.*--boxes must be"):
        read_boxes(tmp_path / "none.json", ids, source.categories)
    row = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    path.write_text(json.dumps([row]))
    with pytest.raises(UserError, match="images that the data lacks, such as id 7"):
        read_boxes(path, ids, source.categories)
    rows = [row | {"image_id": ids[0]}, row | {"image_id": ids[0], "bbox": [1, 2, 0, 4]},
            row | {"image_id": ids[0], "category_id": 98765}]  # fmt: skip
    path.write_text(json.dumps(rows))
    found = read_boxes(path, ids, source.categories)[ids[0]]
    assert found.boxes.tolist() == [[1, 2, 4, 6]] and len(found) == len(found.scores) == 1
    path.write_text("[]")
    with pytest.raises(UserError, match="holds no boxes"):
        read_boxes(path, ids, source.categories)


# ---- scripts ----------------------------------------------------------------------------------


def test_training_learns(demo_set, tmp_path):
    more = ["augment=false", "max_steps=60", "epochs=60", "eval_every=60", "lr=3e-3",
            "train_limit=4", "seg_random_start=false"]  # fmt: skip
    overrides = [*SMALL, f"coco_root={demo_set}", f"runs_dir={tmp_path}", *more]
    run_dir = train_coco_segmentation.main(["--set", *overrides])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    history = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(history) == 60 and np.mean(history[-5:]) < 0.75 * np.mean(history[:3])
    assert any("val/segmentation/AP" in line for line in lines)
    assert Predictor(run_dir / "last.safetensors").tasks["segmentation"]["max_points"] == 12


def test_training_on_crops_is_recorded_in_the_weights(demo_set, tmp_path, picture):
    overrides = [*SMALL, f"coco_root={demo_set}", f"runs_dir={tmp_path}", "max_steps=1"]
    run_dir = train_coco_segmentation.main(["--set", *overrides, "seg_crop=true"])
    predictor = Predictor(run_dir / "last.safetensors")
    assert predictor.tokenizer("segmentation").crop == 0.5
    assert len(predictor.segment(picture, [[10, 10, 60, 60]], "person", FAST)) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_points=2", "max_points must be at least 3"),
        ("seg_crop_pad=-1", "seg_crop_pad must be at least 0"),
        ("seg_threshold=2", "seg_threshold must be above 0"),
        ("dataset=voc", "trains on coco"),
    ],
)
def test_settings_that_cannot_work_are_one_line(demo_set, tmp_path, override, message):
    overrides = [*SMALL, f"coco_root={demo_set}", f"runs_dir={tmp_path}", "seg_crop=true"]
    with pytest.raises(UserError, match=message):
        train_coco_segmentation.main(["--set", *overrides, "max_steps=1", override])


def infer(capsys, *argv):
    infer_single_image_segmentation.main([*map(str, argv), "--set", "seg_samples=2", "device=cpu"])
    return capsys.readouterr().out


def test_script_draws_and_writes_masks(weights, picture, tmp_path, capsys):
    out = infer(capsys, "--image", picture, "--weights", weights, "--out-dir", tmp_path,
                "--box", 10, 10, 50, 40, "--box", "5.5,6,20,30", "--label", "person",
                "--json", tmp_path / "masks.json")  # fmt: skip
    assert out.count("person") == 2
    image = cv2.imread(str(picture))
    assert cv2.imread(str(tmp_path / "instance_segmentation.png")).shape == image.shape
    (row,) = json.loads((tmp_path / "masks.json").read_text())
    assert row["objects"][0]["box"] == [10, 10, 60, 50] and row["objects"][1]["box"][0] == 5.5
    for item in row["objects"]:
        assert coco_mask.decode(item["segmentation"]).shape == image.shape[:2]
        assert item["score"] == 1 and item["label"] == "person"


def test_script_without_boxes_asks_the_detection_of_the_same_weights(
    both_weights, weights, picture, tmp_path, capsys
):
    argv = ["--image", picture, "--out-dir", tmp_path, "--json", "--score-threshold"]
    out = infer(capsys, *argv, 0, "--weights", both_weights)
    assert 1 <= len(json.loads(out)[0]["objects"]) <= 3
    out = infer(capsys, *argv, 1, "--weights", both_weights)
    assert json.loads(out)[0]["objects"] == []
    argv_of_text = ["--image", picture, "--out-dir", tmp_path, "--score-threshold", 1]
    assert "no object found" in infer(capsys, *argv_of_text, "--weights", both_weights)
    with pytest.raises(UserError, match="cannot detect objects, .* add --box x y w h"):
        infer(capsys, *argv, 1, "--weights", weights)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1", "2", "3"], "--box must be four numbers x y w h, got '1 2 3'"),
        (["a,b,c,d"], "four numbers"),
        (["1", "2", "0", "4"], "holds no pixel"),
        (["5000,2,10,10"], "holds no pixel of the image"),
    ],
)
def test_boxes_that_are_none_are_one_line(weights, picture, tmp_path, capsys, words, message):
    with pytest.raises(UserError, match=message):
        infer(capsys, "--image", picture, "--weights", weights, "--out-dir", tmp_path,
              "--box", *words, "--label", "person")  # fmt: skip


def test_labels_and_boxes_must_go_together(weights, picture, tmp_path, capsys):
    argv = ["--image", picture, "--weights", weights, "--out-dir", tmp_path]
    with pytest.raises(UserError, match="give --box x y w h too"):
        infer(capsys, *argv, "--label", "person")
    with pytest.raises(UserError, match="2 for 3"):
        infer(capsys, *argv, *["--box", "1,1,9,9"] * 3, *["--label", "person"] * 2)
    with pytest.raises(UserError, match="--box needs exactly one image"):
        infer(capsys, "--image", picture.parent, "--weights", weights, "--box", "1,1,9,9")


def test_detection_weights_are_refused(tiny_weights, picture):
    with pytest.raises(UserError, match="not for segmentation"):
        infer_single_image_segmentation.main(
            ["--image", str(picture), "--weights", str(tiny_weights), "--box", "1,1,9,9"]
        )


def test_evaluation_script(both_weights, demo_set, tmp_path, capsys):
    for boxes in ("gt", "detected"):
        evaluate.main(["--task", "segmentation", "--weights", str(both_weights), "--out-dir",
                       str(tmp_path / boxes), "--boxes", boxes, "--no-report", "--set",
                       f"coco_root={demo_set}", "seg_samples=1", "num_workers=0",
                       "device=cpu"])  # fmt: skip
        assert {p.name for p in (tmp_path / boxes).iterdir()} == {
            "results.json", "metrics.json", "per_class.csv",
        }  # fmt: skip
        assert "Average Precision" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "gt" / "results.json").read_text())) > 0


def test_weights_survive_saving_with_their_settings(weights, tmp_path):
    predictor = Predictor(weights)
    save_model(predictor.model, tmp_path / "again.safetensors")
    again = Predictor(tmp_path / "again.safetensors").tokenizer("segmentation")
    assert again.settings() == predictor.tokenizer("segmentation").settings()


@pytest.mark.parametrize("crops", [False, True])
def test_others_are_drawn_only_where_two_samples_disagree(weights, picture, monkeypatch, crops):
    predictor = Predictor(ROOT / "weights" / "demo.safetensors" if crops else weights)
    boxes = np.float32([[8, 9, 70, 60], [20, 5, 90, 80], [30, 30, 50, 60], [1, 1, 99, 90]])
    images, boxes, labels = [picture, picture], [boxes, boxes[:3] + 5], [[1] * 4, [1] * 3]

    def rles(**options):
        found = predictor.segment(images, boxes, labels, SegmentationOptions(**options))
        return [rle for one in found for rle in one.rles]

    ious, measure = [], segmentation.sample_iou
    monkeypatch.setattr(
        segmentation, "sample_iou", lambda *args: ious.append(measure(*args)) or ious[-1]
    )
    two, five = rles(num_samples=2, agree=0), rles(num_samples=5, agree=0)
    assert not ious
    mixed = rles(num_samples=5, agree=1.0)
    assert mixed == five and len(ious) == 7 and len(set(ious)) > 1
    between = sorted(ious)[3]
    drawn, generate = [], Pix2Seq.generate
    monkeypatch.setattr(
        Pix2Seq,
        "generate",
        lambda *args, **how: drawn.append(how["num_samples"]) or generate(*args, **how),
    )
    expected = [b if iou < between else a for a, b, iou in zip(two, five, ious, strict=True)]
    assert rles(num_samples=5, agree=between) == expected
    assert expected != five and expected != two
    assert sorted(set(drawn)) == [2, 3], "no other samples are drawn"


def test_outlines_share_what_their_masks_share():
    one, other = blob(40, 30, (50, 50), 0), blob(40, 20, (60, 50), 1)
    masks = [rle_to_mask(polygons_to_rle([part], (100, 120))) for part in (one, other)]
    assert outline_iou([one], [other], (100, 120)) == pytest.approx(iou(*masks))
    assert outline_iou([one], [one], (100, 120)) == 1
    assert outline_iou([one], [], (100, 120)) == outline_iou([], [], (100, 120)) == 0
