"""The layout of the shared vocabulary and the categories that fit it."""

import itertools

import numpy as np
import pytest

from tokenizer.vocabulary import Vocabulary, dequantize, quantize
from utils.categories import Categories


def test_official_numbers():
    v = Vocabulary()
    official = {"detection": 10, "segmentation": 11, "keypoint": 12, "captioning": 13}
    assert v.prompts.items() >= official.items()  # further tasks come after them
    assert (v.pad, v.fake, v.separator, v.invisible) == (0, 30, 40, 41)
    assert (v.class_range, v.coord_range, v.size) == ((100, 1000), (1000, 2000), 3000)
    assert Vocabulary(num_text=32000).size == 35000
    assert v.class0 + v.noise_label == v.fake


@pytest.mark.parametrize("num_bins", [2, 384, 1000, 2000])
def test_no_two_meanings_share_an_id(num_bins):
    v = Vocabulary(num_bins=num_bins, num_text=50)
    singles = [v.pad, v.fake, v.separator, v.invisible, *v.prompts.values()]
    ranges = [range(*v.class_range), range(*v.coord_range), range(v.text0, v.size)]
    ids = list(itertools.chain(singles, *ranges))
    assert len(ids) == len(set(ids)) and max(ids) < v.size


@pytest.mark.parametrize("options", [{"num_bins": 2001}, {"num_bins": 1}, {"separator": 10}])
def test_a_layout_that_overlaps_is_refused(options):
    with pytest.raises(ValueError, match="num_bins|overlap|differ"):
        Vocabulary(**options)


def test_vocabulary_survives_json():
    v = Vocabulary(num_bins=500, num_text=7)
    assert Vocabulary.from_json(v.to_json()) == v


def test_quantize_rounds_ties_to_even_and_clamps():
    assert quantize(np.float32([0.125, 0.375, 0.625, -3, 7, np.nan]), 5).tolist() == [
        0,
        2,
        2,
        0,
        4,
        0,
    ]


@pytest.mark.parametrize("num_bins", [5, 384, 1000, 2000])
def test_quantize_is_inverse_of_dequantize_and_within_half_a_bin(num_bins):
    bins = np.arange(num_bins)
    np.testing.assert_array_equal(quantize(dequantize(bins, num_bins), num_bins), bins)
    coords = np.random.default_rng(0).random(1000, np.float32)
    error = np.abs(dequantize(quantize(coords, num_bins), num_bins) - coords)
    assert error.max() <= 0.5 / (num_bins - 1) + 1e-6


@pytest.mark.data
@pytest.mark.parametrize("num_bins", [5, 1000, 2000])
def test_quantize_equals_the_official_one(reference, num_bins):
    data = np.load(reference / "tokenization" / "utils.npz")
    coords, tokens = data[f"coords_{num_bins}"], data[f"tokens_{num_bins}"]
    np.testing.assert_array_equal(quantize(coords, num_bins), data[f"quantize_{num_bins}"])
    np.testing.assert_array_equal(dequantize(tokens, num_bins), data[f"dequantize_{num_bins}"])


def test_coco_ids_with_gaps_stay_and_others_are_renumbered():
    kept = Categories.from_coco([{"id": 90, "name": "b"}, {"id": 1, "name": "a"}])
    assert kept.names == {1: "a", 90: "b"} and kept.source_ids == {1: 1, 90: 90}
    moved = Categories.from_coco([{"id": 0, "name": "a"}, {"id": 123456, "name": "b"}])
    assert moved.names == {1: "a", 2: "b"} and moved.source_ids == {1: 0, 2: 123456}
    assert Categories.from_json(moved.to_json()) == moved


def test_more_categories_than_class_tokens_are_refused():
    with pytest.raises(ValueError, match="at most 32000"):
        Categories.from_names([str(i) for i in range(32_001)])
