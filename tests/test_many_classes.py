"""More classes than the 899 of the official layout, such as LVIS's 1,203: from data to results.

The layout follows from the class ids. Coordinates and text move up; all else stays as it is.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config import CFG
from dataset.coco_detection import CocoDetection
from infer import evaluate
from infer.predictor import Predictor
from models import load_model
from tests.conftest import TINY
from tests.test_infer import oracle_metrics
from tests.test_start import class_row, coordinates, make, table
from tokenizer.detection import DetectionTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.vocabulary import TASK_NAMES, Vocabulary
from train.engine import train
from train.init_weights import start_from
from utils.categories import Categories
from utils.cli import snapshot

NUM_LVIS = 1203
SIZE = (96, 128)  # of the pictures
IDS = {"lvis": range(1, NUM_LVIS + 1), "sparse": range(17, 17 + 7 * NUM_LVIS, 7)}


def write_set(root: Path, ids: range) -> Path:
    """A COCO set of noise with 1,203 categories, named "thing 1" and so on, and "person" as last.

    Five boxes to a picture, of categories all over the list, the last ones among them.
    """
    rng, (height, width) = np.random.default_rng(0), SIZE
    names = [f"thing {i}" for i in range(1, NUM_LVIS)] + ["person"]
    (root / "annotations").mkdir(parents=True)
    for split, num_images in (("train", 6), ("val", 4)):
        images, annotations = [], []
        (root / f"{split}2017").mkdir()
        for image_id in range(1, num_images + 1):
            name = f"{image_id:012}.png"
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"{split}2017" / name)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for number in (1, 899, 900, NUM_LVIS, int(rng.integers(901, NUM_LVIS))):
                x, y = rng.integers(0, 60, 2).tolist()
                w, h = rng.integers(8, 36, 2).tolist()
                box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                box |= {"id": len(annotations) + 1, "image_id": image_id}
                annotations.append(box | {"category_id": ids[number - 1]})
        categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module", params=IDS)
def many(request, tmp_path_factory) -> tuple[Path, range]:
    """A set, and the ids of its categories."""
    ids = IDS[request.param]
    return write_set(tmp_path_factory.mktemp(request.param) / "set", ids), ids


@pytest.fixture(scope="module")
def lvis_like(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("many") / "set", IDS["lvis"])


# ---- the layout ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_text", [0, 32_000])
def test_up_to_899_classes_the_layout_is_the_official_one(num_text):
    for last in (0, 1, 80, 91, 899):
        layout = Vocabulary.for_classes(last, num_bins=500, num_text=num_text)
        assert layout == Vocabulary(num_bins=500, num_text=num_text)


@pytest.mark.parametrize("last", [900, 1203, 1899, 1900, 13_204, 32_000])
@pytest.mark.parametrize("num_bins", [160, 2000])
def test_beyond_every_class_has_a_token_of_its_own(last, num_bins):
    v = Vocabulary.for_classes(last, num_bins=num_bins, num_text=50)
    assert last in v.labels and v.class0 + last < v.coord0, "ids stay, as 100 + class id"
    uses = np.zeros(v.size, int)
    uses[[v.pad, v.fake, v.separator, v.invisible, *v.prompts.values()]] += 1
    for first, end in (v.class_range, v.coord_range, (v.text0, v.size)):
        uses[first:end] += 1
    np.testing.assert_array_equal(v.unused, uses == 0)
    assert uses.max() == 1, "no two meanings share an id"
    assert v.class0 + v.noise_label == v.fake
    assert Vocabulary.from_json(json.loads(json.dumps(v.to_json()))) == v


# ---- data and tokens -------------------------------------------------------------------------


def test_tokens_in_and_out_are_inverse(many):
    root, ids = many
    source = CocoDetection(root, "train")
    categories = source.categories
    assert list(categories.source_ids.values()) == list(ids)
    vocab = Vocabulary.for_classes(max(categories.names), num_bins=1000)
    labels = np.array(list(categories.names))
    corners = np.sort(np.random.default_rng(1).random((len(labels), 2, 2), np.float32), axis=1)
    boxes = 256 * corners.reshape(-1, 4)
    tokenizer = DetectionTokenizer(vocab, len(labels))
    tokens = tokenizer.encode(boxes, labels, (256, 256))
    found, found_labels, _ = tokenizer.decode(tokens, (256, 256))
    np.testing.assert_array_equal(found_labels, labels)
    assert np.abs(found - boxes).max() <= 256 * 0.5 / 999 + 1e-3
    for place in range(4, len(tokens), 5 * 100):  # the grammar allows what is true, and no more
        mask = tokenizer.allowed(torch.from_numpy(tokens[None, :place]))
        assert mask[tokens[place]] and not mask[slice(*vocab.coord_range)].any()
        mask = tokenizer.allowed(torch.from_numpy(tokens[None, : place - 1]))
        assert mask[tokens[place - 1]] and not mask[slice(*vocab.class_range)].any()


def test_training_sequences_hold_the_classes_of_the_samples(many):
    root, _ = many
    source = CocoDetection(root, "train")
    vocab = Vocabulary.for_classes(max(source.categories.names), num_bins=1000)
    sample, rng = source[0], np.random.default_rng(0)
    assert sample.labels.max() == NUM_LVIS
    sequence = DetectionTokenizer(vocab, 8).sequence(sample.boxes, sample.labels, SIZE, rng)
    shown = sequence.target[sequence.weight > 0]
    assert set(vocab.class0 + sample.labels) <= set(shown)
    outline = [np.float32([[2, 2], [60, 2], [60, 50]])]
    prompt = SegmentationTokenizer(vocab, 8).sequence(
        sample.boxes[:1], [NUM_LVIS], [outline], SIZE, rng
    )
    assert prompt.input[0, 5] == vocab.class0 + NUM_LVIS


def test_ground_truth_as_predictions_scores_one(many):
    root, _ = many
    assert oracle_metrics(CocoDetection(root, "val"), size=(512, 512))["AP"] > 0.985


# ---- training and after ----------------------------------------------------------------------


def overrides_of(root: Path, runs: Path, *more: str) -> list[str]:
    short = ["max_steps=2", "eval_limit=2", "batch_size=2", "num_bins=160"]
    return [*TINY, f"coco_root={root}", f"runs_dir={runs}", *short, *more]


def test_it_trains_saves_detects_and_evaluates(many, tmp_path):
    root, ids = many
    run = train(snapshot(CFG, overrides_of(root, tmp_path)), ["detection"])
    model = load_model(run / "last.safetensors")
    vocab = Vocabulary.from_json(model.meta["vocabulary"])
    assert vocab == Vocabulary.for_classes(NUM_LVIS, num_bins=160) != Vocabulary(num_bins=160)
    predictor = Predictor(run / "last.safetensors")
    found = predictor.detect(sorted((root / "val2017").iterdir())[0])
    assert len(found) and set(found.labels) <= set(range(1, NUM_LVIS + 1))
    out = tmp_path / "out"
    evaluate.main(
        [
            *("--weights", str(run / "last.safetensors"), "--out", str(out)),
            *("--set", f"coco_root={root}", "device=cpu", "num_workers=0"),
        ]
    )
    rows = [json.loads(path.read_text()) for path in out.rglob("*.json")]
    written = [row for rows_of_file in rows for row in rows_of_file if isinstance(row, dict)]
    assert written and {row["category_id"] for row in written if "bbox" in row} <= set(ids)


def test_chosen_classes_keep_their_numbers(lvis_like, tmp_path):
    chosen = overrides_of(lvis_like, tmp_path, "classes=person,thing 1")
    run = train(snapshot(CFG, chosen), ["detection"])
    meta = load_model(run / "last.safetensors").meta
    assert Categories.from_json(meta["categories"]).names == {1: "thing 1", NUM_LVIS: "person"}


def test_fine_tuning_from_few_classes_takes_rows_by_name(
    lvis_like, demo_set, tiny_weights, tmp_path
):
    start = (f"init_weights={tiny_weights}", "lr=0", "num_bins=1000")
    run = train(snapshot(CFG, overrides_of(lvis_like, tmp_path, *start)), ["detection"])
    given, model = load_model(tiny_weights), load_model(run / "last.safetensors")
    assert len(table(model)) > len(table(given))
    assert torch.equal(class_row(model, "person"), class_row(given, "person"))
    assert torch.equal(coordinates(model), coordinates(given))


@pytest.mark.parametrize("to_many", [True, False])
def test_rows_move_by_meaning_between_the_layouts(caption_vocab, to_many):
    names = {i: f"thing {i}" for i in range(1, NUM_LVIS + 1)}
    few = {1: "thing 1200", 2: "thing 7", 3: "thing 901"}
    options = (f"caption_vocab={caption_vocab}", "max_caption_tokens=12")
    given, model = (
        make(*options, names=of, tasks=TASK_NAMES, seed=seed)
        for seed, of in enumerate((few, names) if to_many else (names, few))
    )
    old, new = (Vocabulary.from_json(one.meta["vocabulary"]) for one in (given, model))
    assert (new.size > old.size) == to_many
    before = table(model).clone()
    start_from(model, given)
    for name in few.values():
        assert torch.equal(class_row(model, name), class_row(given, name))
    assert torch.equal(coordinates(model), coordinates(given))
    assert torch.equal(table(model)[new.text0 :], table(given)[old.text0 :])
    for one in (*new.prompts.values(), new.pad, new.fake, new.separator, new.invisible):
        assert torch.equal(table(model)[one], table(given)[one])
    nothing = table(given)[torch.from_numpy(old.unused)]
    for row in table(model)[torch.from_numpy(new.unused)][::50]:
        assert (row == nothing).all(1).any(), "an id without a meaning takes the row of another"
    if to_many:  # classes that the file has no token for start anew
        fresh = slice(old.class_range[1] + 2, new.class0 + 1199)
        assert torch.equal(table(model)[fresh], before[fresh])
