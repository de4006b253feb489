"""Pictures of a training: what the tokens of a batch say, and annotation beside prediction."""

import numpy as np
import pytest

from config import CFG
from dataset.batch import collate, padding_of
from dataset.tasks import build_source
from tests.training import state_of
from tokenizer.detection import DetectionTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.vocabulary import Vocabulary
from train import pictures
from train.build import build_run
from train.settings import check_settings
from utils.categories import Categories
from utils.cli import snapshot
from utils.devices import ALONE
from utils.errors import UserError
from utils.visualize import contact_sheet, draw_caption, draw_detections

ALL = ["detection", "segmentation", "keypoint", "captioning"]


@pytest.fixture
def run(multi_settings):
    cfg = snapshot(CFG, [*multi_settings, "epochs=100", "max_steps=10"])
    return build_run(cfg, ALL, ALONE, check_settings(cfg, ALL, ALONE))


def test_a_batch_is_drawn_from_its_tokens_as_from_its_annotation(run, monkeypatch):
    """Two ways to one picture: image and boxes of the samples, and the batch with its tokens."""
    monkeypatch.setattr(pictures, "LEAST_SIDE", 0)
    train_set = run.state.streams["detection"].loader.dataset.dataset
    keys = [(0, number) for number in range(4)]
    tokenizer, model = run.tokenizers["detection"], run.state.model
    drawn = pictures.draw_batch(
        collate([train_set[key] for key in keys]), model, tokenizer, run.categories
    )
    expected = []
    for key in keys:
        sample, _ = train_set.sample(*key)
        (h, w), size = sample.geometry.unpadded, sample.geometry.size
        image = np.full((*size, 3), round(0.3 * 255), np.uint8)
        image[:h, :w] = sample.image
        rounded = tokenizer.encode(sample.boxes, sample.labels, size)
        boxes = tokenizer.decode(rounded, size)[0]
        names = [run.categories.names[k] for k in sample.labels.tolist()]
        text = f"{sample.image_id}: objects {len(boxes)}, noise {8 - len(boxes)}"
        expected.append(draw_caption(draw_detections(image, boxes, names), text))
    assert np.array_equal(drawn, contact_sheet(expected, 4))


def test_a_mirror_that_leaves_the_boxes_behind_shows(run):
    batch = run.state.streams["detection"].next()
    options = run.state.model, run.tokenizers["detection"], run.categories
    before = pictures.draw_batch(batch, *options)
    assert np.array_equal(before, pictures.draw_batch(batch, *options))
    low, high = run.tokenizers["detection"].vocab.coord_range
    x = batch.target_tokens[:, [1, 3]]  # of the first object: y x y x class
    batch.target_tokens[:, [3, 1]] = low + high - 1 - x
    assert not np.array_equal(before, pictures.draw_batch(batch, *options))


@pytest.mark.parametrize("task", ALL)
def test_a_batch_of_every_task_has_a_picture_that_shows_its_answers(run, task):
    batch = run.state.streams[task].next()
    options = run.state.model, run.tokenizers[task], run.categories
    drawn = pictures.draw_batch(batch, *options)
    assert drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[2] == 3
    blank = batch.to("cpu")
    blank.target_tokens = blank.target_tokens.roll(1, 0)  # the answers of another image
    assert not np.array_equal(drawn, pictures.draw_batch(blank, *options))


def test_padding_is_drawn_as_the_model_sees_it(run):
    batch = run.state.streams["captioning"].next()
    outside = padding_of(batch.images, batch.unpadded)
    options = run.state.model, run.tokenizers["captioning"], run.categories
    before = pictures.draw_batch(batch, *options)
    batch.images.masked_fill_(outside, 255)  # anything may stand there
    assert np.array_equal(before, pictures.draw_batch(batch, *options))


def test_the_prompt_of_an_object_is_read_back():
    vocab, size = Vocabulary(num_bins=1000), (480, 640)
    tokenizer = SegmentationTokenizer(vocab)
    boxes = np.float32([[10, 20, 300, 400], [0, 0, 640, 480], [5, 5, 6, 6]])
    prompts = tokenizer.prompts(boxes, np.array([3, 80, 0]), size)
    read = [pictures.read_prompt(tokenizer, prompt, size) for prompt in prompts]
    assert [label for _, label in read] == [3, 80, 0]
    np.testing.assert_allclose([box for box, _ in read[:2]], boxes[:2], atol=0.5)


def test_a_task_of_ones_own_has_a_picture_too(multi_settings):
    class Other(DetectionTokenizer):
        task = "naming"

    state = state_of(multi_settings, ["detection"])
    tokenizer = DetectionTokenizer(Vocabulary(num_bins=1000), 8)
    tokenizer.__class__ = Other
    drawn = pictures.draw_batch(
        state.streams["detection"].next(), state.model, tokenizer, Categories({}, {})
    )
    assert drawn.shape[2] == 3


# ---- annotation beside prediction ----------------------------------------------------------------


class Source:
    """Eight images, of which the third has no object and the last cannot be read."""

    def __init__(self, source):
        self.source, self.image_ids = source, source.image_ids

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 7:
            raise UserError("damaged")
        return self.source[index]

    def __getattr__(self, name):
        return getattr(self.source, name)

    def objects(self, index):
        boxes, labels = self.source.objects(index)
        return (boxes[:0], labels[:0]) if index == 2 else (boxes, labels)


def test_the_images_are_always_the_same_and_those_that_show_something(demo_set):
    source = Source(build_source("detection", "coco", demo_set, "train"))
    assert pictures.choose_images(source, 8) == [0, 1, 3, 4, 5, 6]
    assert pictures.choose_images(source, 2) == [0], "7 is the other end"
    assert pictures.choose_images(source, 3) == pictures.choose_images(source, 3)


@pytest.mark.parametrize("task", ALL)
def test_annotation_stands_beside_the_prediction_of_the_same_image(demo_set, task):
    source = build_source(task, "coco", demo_set, "train")
    seen = []

    def predict(chosen):
        seen.extend(chosen.image_ids.tolist())
        assert [chosen[i].image_id for i in range(len(chosen))] == seen
        # a model that is always right
        return [pictures.draw_annotation(chosen[i], chosen) for i in range(len(chosen))]

    sheet = pictures.draw_pairs(source, 2, predict)
    assert len(seen) == 2
    width = (sheet.shape[1] - 6) // 4  # of a cell with its gap
    cells = [sheet[:, 6 + i * width : (i + 1) * width] for i in range(4)]
    for left, right in (cells[:2], cells[2:]):
        rows = (left != right).any(axis=(1, 2)).sum()
        assert 0 < rows < 30, "the titles differ, nothing else"
    plain = pictures.draw_pairs(source, 2, lambda chosen: [one.image for one in chosen])
    assert not np.array_equal(sheet, plain), "the annotation is drawn"
