"""Outlines as tokens: inverse, official numbers, simplification, hostile sequences."""

import cv2
import numpy as np
import pytest
import torch

from tokenizer.segmentation import SegmentationTokenizer, turn
from tokenizer.vocabulary import Vocabulary, tokens_to_points
from utils.masks import polygon_area, polygons_to_rle, rle_to_mask

VOCAB = Vocabulary()
SIZE = (200, 400)
HALF_BIN = max(SIZE) / 999 / 2 + 1e-3
SQUARE = np.float32([[10, 20], [110, 20], [110, 190], [10, 190]])
TRIANGLE = np.float32([[300.3, 50.2], [390, 60.9], [333, 120]])
BOXES = np.float32([[10, 20, 110, 190], [10, 20, 390, 190], [0, 0, 1, 1]])
LABELS = np.array([1, 90, 17])
POLYGONS = [[SQUARE], [SQUARE, TRIANGLE], [np.float32([[0, 0], [1, 0], [1, 1]])]]


def tokenizer(max_points=16, **options):
    return SegmentationTokenizer(VOCAB, max_points, **options)


def rng(seed=0):
    return np.random.default_rng(seed)


def circle(num, radius=80.0, center=(200, 100)):
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False)
    return np.float32(center) + radius * np.column_stack([np.cos(angle), np.sin(angle)]).astype("f")


def mask(polygons, size=SIZE):
    return rle_to_mask(polygons_to_rle(polygons, size))


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("polygons", POLYGONS)
def test_decode_inverts_encode(polygons):
    decoded = tokenizer().decode(tokenizer().encode(polygons, SIZE), SIZE)
    assert len(decoded) == len(polygons)
    for got, want in zip(decoded, polygons, strict=True):
        np.testing.assert_allclose(got, want, atol=HALF_BIN)


def test_y_comes_before_x_and_the_prompt_names_box_and_class():
    assert tokenizer().encode([SQUARE], SIZE).tolist()[:4] == [1100, 1025, 1100, 1275]
    prompts = tokenizer().prompts(BOXES, [1, 90, 0], SIZE)
    assert prompts[0].tolist() == [11, 1100, 1025, 1949, 1275, 101]
    assert prompts[1, 5] == 190 and not prompts[2].any(), "a padding object is all padding"


def test_parts_are_joined_by_one_pair_of_separators():
    tokens = tokenizer().encode([SQUARE, TRIANGLE], SIZE)
    assert np.flatnonzero(tokens == VOCAB.separator).tolist() == [8, 9] and len(tokens) == 16


def test_points_outside_stay_coordinates():
    """A rotated crop pushes points over the edge: they must not become other tokens."""
    shapes = rng().normal(100, 400, (300, 6, 2)).astype(np.float32)
    for shape in shapes:
        tokens = tokenizer().encode([shape], SIZE)
        assert ((tokens >= 1000) & (tokens < 2000)).all()
        decoded = tokens_to_points(VOCAB, tokens, SIZE)
        np.testing.assert_allclose(decoded, shape.clip(0, SIZE[::-1]), atol=HALF_BIN)


@pytest.mark.parametrize(("max_points", "at_least"), [(128, 0.99), (64, 0.99), (32, 0.97)])
def test_a_long_outline_is_simplified_not_cut(max_points, at_least):
    tokens = tokenizer(max_points).encode([circle(400)], SIZE)
    assert len(tokens) <= 2 * max_points
    decoded = tokenizer(max_points).decode(tokens, SIZE)
    assert iou(mask(decoded), mask([circle(400)])) > at_least


def test_the_first_point_is_random_and_the_outline_stays():
    tok, wanted = tokenizer(), mask([SQUARE]) | mask([TRIANGLE])
    starts = set()
    for seed in range(60):
        target = tok.sequence(BOXES[1:2], LABELS[1:2], POLYGONS[1:2], SIZE, rng(seed)).target[0]
        decoded = tok.decode(target[5:], SIZE)
        assert iou(mask(decoded), wanted) > 0.97 and [len(p) for p in decoded] == [4, 3]
        starts.add(tuple(target[[5, 6]]) + tuple(target[[15, 16]]))
    assert len(starts) == 12, "every point of both parts, one by one"
    fixed = tokenizer(random_start=False)
    assert fixed.sequence(BOXES[:1], LABELS[:1], POLYGONS[:1], SIZE, rng(1)).target[0, 5] == 1100
    assert turn(SQUARE, 2).tolist() == [*SQUARE[2:].tolist(), *SQUARE[:2].tolist()]


def test_input_and_target_are_shifted_by_one():
    tok = tokenizer(max_objects=3)
    sequence = tok.sequence(BOXES, LABELS, POLYGONS, SIZE, rng())
    assert sequence.input.shape == sequence.target.shape == sequence.weight.shape == (3, 37)
    np.testing.assert_array_equal(sequence.input[:, 1:], sequence.target[:, :-1])
    assert set(sequence.input[:, 0]) == {11} and tok.max_len == 37
    assert set(sequence.input[:, 5]) == {101, 117, 190}


def test_the_supervised_positions_are_these():
    """From the class on, whose successor is the first y, to the end; official tails count wholly"""
    polygons, nothing = POLYGONS[:1], {"max_objects": 2}
    weights = tokenizer(**nothing).sequence_from_draws(BOXES[:1], LABELS[:1], polygons, SIZE).weight
    assert weights[0].tolist() == [0] * 5 + [1] * 32 and not weights[1].any()
    tok = tokenizer(first_end_only=True, pad_weight=0.5, **nothing)
    weights = tok.sequence_from_draws(BOXES[:1], LABELS[:1], polygons, SIZE).weight
    assert weights[0].tolist() == [0] * 5 + [1] * 8 + [0.5] + [0] * 23
    tok = tokenizer(weigh_absent=True, **nothing)
    assert tok.sequence_from_draws(BOXES[:1], LABELS[:1], polygons, SIZE).weight[1].all()
    full = tokenizer(7, first_end_only=True, **nothing)  # no room for an end
    weights = full.sequence_from_draws(BOXES[:1], LABELS[:1], [[circle(7)]], SIZE).weight
    assert weights[0].tolist() == [0] * 5 + [1] * 14


def test_of_many_objects_a_random_choice_is_kept():
    boxes, labels = np.tile(BOXES[:1], (40, 1)), np.arange(1, 41)
    tok, seen = tokenizer(max_objects=4), set()
    for seed in range(100):
        sequence = tok.sequence(boxes, labels, [[SQUARE]] * 40, SIZE, rng(seed))
        assert len(set(sequence.input[:, 5])) == 4
        seen |= set(sequence.input[:, 5])
    assert seen == set(range(101, 141))


def test_an_image_without_objects_costs_nothing():
    sequence = tokenizer().sequence(np.zeros((0, 4)), np.zeros(0, int), [], SIZE, rng())
    assert sequence.input.shape == (10, 37)
    assert not sequence.input.any() and not sequence.weight.any()


def test_a_weight_file_records_what_decoding_needs():
    tok = tokenizer(20, crop=0.5, max_objects=2, random_start=False)
    again = SegmentationTokenizer(VOCAB, **tok.settings())
    assert (again.max_points, again.crop) == (20, 0.5)
    tokens = tok.encode(POLYGONS[1], SIZE)
    np.testing.assert_array_equal(again.decode(tokens, SIZE)[1], tok.decode(tokens, SIZE)[1])


@pytest.mark.parametrize(
    "options", [{"max_points": 2}, {"max_objects": 0}, {"crop": -0.1}], ids=lambda o: next(iter(o))
)
def test_what_cannot_work_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        tokenizer(**options)


def test_one_separator_two_parts():
    """One single separator token where a pair should be still parts the polygons."""
    square, triangle = (tokenizer().encode([p], SIZE).tolist() for p in (SQUARE, TRIANGLE))
    for between in ([40, 40], [40, 1500], [1500, 40], [40, 40, 40, 40]):
        decoded = tokenizer().decode([*square, *between, *triangle], SIZE)
        assert [len(part) for part in decoded] == [4, 3], between


def test_a_malformed_tail_costs_only_itself():
    square = tokenizer().encode([SQUARE], SIZE).tolist()
    for tail in ([1500], [40], [40, 40, 1300], [0, 1500, 1500, 1600], [1500, 0], [41, 41], [40, 0]):
        (part,) = tokenizer().decode(square + tail, SIZE)
        np.testing.assert_allclose(part, SQUARE, atol=HALF_BIN)


def test_any_sequence_decodes():
    """10,000 hostile sequences: noise over the vocabulary, and walks over what matters."""
    draw, tok = rng(), tokenizer()
    few = np.array([0, 11, 30, 40, 41, 101, 999, 1000, 1500, 1999, 2000, -1])
    for trial in range(10_000):
        length = draw.integers(0, 50)
        tokens = (
            draw.integers(-50, VOCAB.size + 50, length) if trial % 2 else draw.choice(few, length)
        )
        polygons = tok.decode(tokens, SIZE)
        for part in polygons:
            assert part.dtype == np.float32 and part.shape[1] == 2 and len(part) >= 3
            assert (part >= 0).all() and (part <= SIZE[::-1]).all()
        if trial % 10 == 0:
            assert mask(polygons).shape == SIZE


def test_grammar_allows_what_encode_writes():
    tok = tokenizer(max_objects=3)
    sequence = tok.sequence(BOXES, LABELS, POLYGONS, SIZE, rng())
    answer = torch.from_numpy(sequence.target[:, 5:])  # (3, 32)
    for t in range(answer.shape[1]):
        allowed = tok.allowed(answer[:, :t])
        assert allowed.gather(1, answer[:, t : t + 1]).all(), t


def test_what_the_grammar_allows_decodes_whole():
    """Random walks: every part has an area's worth of points, every pair is complete."""
    tok, generator = tokenizer(40), torch.Generator().manual_seed(0)
    favour = torch.ones(VOCAB.size)
    favour[[VOCAB.separator, VOCAB.pad]] = 300.0
    tokens = torch.zeros(200, 0, dtype=torch.long)
    for _ in range(80):
        allowed = tok.allowed(tokens)
        assert allowed.shape == (200, VOCAB.size) and allowed.any(1).all()
        tokens = torch.cat([tokens, torch.multinomial(allowed * favour, 1, generator=generator)], 1)
    for row in tokens.numpy():
        end = np.flatnonzero(row == VOCAB.pad)
        assert not len(end) or (end[0] % 2 == 0 and not row[end[0] :].any())
        pairs = row[: end[0] if len(end) else None].reshape(-1, 2)
        parts = np.split(pairs, np.flatnonzero((pairs == VOCAB.separator).any(1)))
        lengths = [len(p) - (i > 0) for i, p in enumerate(parts)]
        assert min(lengths if len(end) else lengths[:-1], default=3) >= 3
        decoded = tok.decode(row, SIZE)
        assert [len(p) for p in decoded] == [n for n in lengths if n >= 3]


def split_official(flat):
    """A flat `y x` row with -2 between parts and -1 after them -> parts of (x, y)."""
    pairs = flat.reshape(-1, 2)
    pairs = pairs[~(pairs == -1).any(1)]
    cuts = (pairs == -2).all(1)
    parts = np.split(pairs, np.flatnonzero(cuts))
    return [part[(part != -2).any(1)][:, ::-1] for part in parts]


@pytest.mark.data
@pytest.mark.parametrize(("case", "pad_weight", "length"), [
    ("task_default", 1.0, 53), ("task_eos_0p2_longer", 0.2, 59),
])  # fmt: skip
def test_training_sequences_equal_the_official_ones(reference, case, pad_weight, length):
    class Longer(SegmentationTokenizer):
        max_len = length

    data = np.load(reference / "tokenization" / "instance_segmentation.npz")
    tok = Longer(VOCAB, 24, max_objects=4, pad_weight=pad_weight, weigh_absent=True)
    for row, (boxes, labels) in enumerate(zip(data["bbox"], data["label"], strict=True)):
        boxes, polygons = boxes[:, [1, 0, 3, 2]], [split_official(p) for p in data["polygon"][row]]
        np.testing.assert_array_equal(tok.prompts(boxes, labels, (1, 1)), data["prompt_seq"][row])
        for parts, label, want in zip(polygons, labels, data["response_seq"][row], strict=True):
            answer = tok.encode(parts, (1, 1)) if label else np.zeros(0)
            np.testing.assert_array_equal(answer, want[: len(answer)])
            assert not want[len(answer) :].any()
        got = tok.sequence_from_draws(boxes, labels, polygons, (1, 1))
        np.testing.assert_array_equal(got.input, data[f"{case}/input_seq"][row])
        np.testing.assert_array_equal(got.target, data[f"{case}/target_seq"][row])
        np.testing.assert_allclose(got.weight, data[f"{case}/token_weights"][row])
    assert SegmentationTokenizer(VOCAB, 24).max_len == 53


@pytest.mark.data
def test_points_equal_the_official_ones(reference):
    data = np.load(reference / "decoding" / "instance_seq_to_points.npz")
    vocab = Vocabulary(num_bins=350, coord0=250, text0=600)
    points = tokens_to_points(vocab, data["seq"], (1, 1))[..., ::-1].reshape(len(data["seq"]), -1)
    reserved = {0: -1.0, 40: -2.0, 41: -3.0}
    want = data["points"]
    special = np.isin(data["seq"], list(reserved))
    np.testing.assert_array_equal(np.isnan(points), special)
    np.testing.assert_allclose(points[~special], want[~special], atol=1e-6)
    for token, value in reserved.items():
        assert (want[data["seq"] == token] == value).all()


def test_cv2_and_we_agree_on_areas():
    assert polygon_area(SQUARE) == 17000 == cv2.contourArea(SQUARE)
