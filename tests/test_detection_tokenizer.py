"""Boxes and labels as tokens: inverse, official numbers, noise objects, hostile sequences."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from dataset.geometry import Geometry
from infer.detection import to_original
from tokenizer.detection import (
    CORRUPTIONS,
    ClassDraws,
    DetectionTokenizer,
    jittered_boxes,
    noise_boxes,
    random_boxes,
    shifted_boxes,
)
from tokenizer.vocabulary import Vocabulary
from utils.categories import Categories

VOCAB = Vocabulary()
SIZE = (200, 400)
BOXES = np.float32([[10, 20, 110, 190], [0, 0, 400, 200], [300.3, 50.2, 301.1, 60.9]])
LABELS = np.array([1, 90, 17])


def tokenizer(max_objects=6, **options):
    return DetectionTokenizer(VOCAB, max_objects, **options)


def test_decode_inverts_encode():
    tokens = tokenizer().encode(BOXES, LABELS, SIZE)
    boxes, labels, scores = tokenizer().decode(tokens, SIZE)
    np.testing.assert_allclose(boxes, BOXES, atol=max(SIZE) / 999 / 2 + 1e-3)
    np.testing.assert_array_equal(labels, LABELS)
    assert (scores == 1).all()


def test_y_comes_before_x():
    assert tokenizer().encode(BOXES[:1], LABELS[:1], SIZE).tolist() == [1100, 1025, 1949, 1275, 101]


def test_sequence_shows_no_true_class_and_asks_for_it():
    sequence = tokenizer().sequence(BOXES, LABELS, SIZE, np.random.default_rng(0))
    assert sequence.input[0] == 10 and len(sequence.input) == 30
    np.testing.assert_array_equal(sequence.input[1:][:4], sequence.target[:4])
    classes = sequence.target[4::5]
    assert sorted(classes[:3]) == [101, 117, 190] and (classes[3:] == VOCAB.fake).all()
    shown = sequence.input[5::5]
    assert ((shown == VOCAB.fake) | ((shown >= 100) & (shown < 1000))).all()


def test_the_supervised_positions_are_these():
    """Real objects wholly, of noise objects the class alone, of padding a tenth."""
    sequence = tokenizer().sequence(BOXES, LABELS, SIZE, np.random.default_rng(0))
    assert sequence.weight.tolist() == [1] * 15 + [0, 0, 0, 0, 1] * 3
    padded = tokenizer(noise=False).sequence(BOXES, LABELS, SIZE, np.random.default_rng(0))
    np.testing.assert_allclose(padded.weight, [1] * 15 + [0.1] * 15)
    assert (padded.target[15:] == VOCAB.pad).all()


def test_a_crowded_image_keeps_a_random_choice():
    boxes = np.random.default_rng(0).random((50, 4), np.float32) * 50
    boxes[:, 2:] += boxes[:, :2]
    seen = set()
    for seed in range(200):
        sequence = tokenizer().sequence(boxes, np.arange(1, 51), SIZE, np.random.default_rng(seed))
        seen |= set(sequence.target[4::5])
    assert seen == set(range(101, 151))


def test_order_is_random_and_follows_the_rng():
    targets = [
        tuple(tokenizer().sequence(BOXES, LABELS, SIZE, np.random.default_rng(s)).target[4:15:5])
        for s in (0, 0, *range(1, 30))
    ]
    assert targets[0] == targets[1] and len(set(targets)) == 6


def test_an_image_without_objects_is_all_noise():
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    sequence = tokenizer().sequence(*nothing, SIZE, np.random.default_rng(0))
    assert (sequence.target[4::5] == VOCAB.fake).all()


def test_noise_stays_inside_the_picture():
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    rng = np.random.default_rng(0)
    sequence = tokenizer(100).sequence(*nothing, SIZE, rng, extent=(100, 100))
    boxes, _, _ = tokenizer().decode(sequence.target, SIZE)
    assert 90 < boxes[:, [1, 3]].max() <= 100.2 and 90 < boxes[:, [0, 2]].max() <= 100.4


def test_noise_follows_the_official_distribution():
    """The figures that the official code was measured at (10,000 draws of noise)."""
    rng = np.random.default_rng(0)
    real = np.float32([[0.1, 0.2, 0.4, 0.9], [0.5, 0.5, 0.8, 0.6], [0.3, 0.1, 0.6, 0.5]])
    jittered = jittered_boxes(real, 10_000, rng)
    base = real[np.abs(jittered[:, None] - real).sum(2).argmin(1)]
    moved = (jittered - base) / np.tile(base[:, 2:] - base[:, :2], 2)
    assert moved.std() == pytest.approx(0.044, abs=5e-4) and np.abs(moved).max() <= 0.1 + 1e-6
    clipped = torch.from_numpy(jittered.clip(0, 1))
    best = box_iou(clipped.float(), torch.from_numpy(real)).amax(1).mean()
    assert best == pytest.approx(0.87, abs=5e-3)
    boxes = random_boxes(10_000, rng)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.mean() == pytest.approx(0.361, abs=5e-3) and sides.max() <= 1
    clipped = boxes.clip(0, 1)
    assert (clipped[:, 2:] - clipped[:, :2]).mean() == pytest.approx(0.31, abs=5e-3)
    shifted = shifted_boxes(real, 10_000, rng)
    assert ((shifted[:, :2] + shifted[:, 2:]) / 2).mean() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(shifted[:, 2] - shifted[:, 0], 0.3, atol=1e-6)


def test_the_share_of_duplicates_is_uniform():
    real = np.float32([[0.4, 0.4, 0.45, 0.45]])  # so small that only duplicates overlap it well
    rng, shares = np.random.default_rng(0), []
    for _ in range(10_000 // 10):
        boxes = torch.from_numpy(noise_boxes(real, 99, rng))
        shares.append((box_iou(boxes, torch.from_numpy(real)) > 0.6).float().mean().item())
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.std(shares) == pytest.approx(1 / 12**0.5, abs=0.02)


def test_class_corruption_has_the_official_shares():
    labels = np.full(200_000, 17)
    for mode, (fake, same) in {
        "rand_cls": (0, 0.0011),
        "real_n_fake_cls": (0.5, 0.5),
        "rand_n_fake_cls": (0.5, 0.00055),
        "real_n_rand_n_fake_cls": (0.25, 0.5),
    }.items():
        tok = tokenizer(corruption=mode)
        answer = tok.encode(np.zeros((len(labels), 4)), labels, SIZE)
        draws = ClassDraws.sample(len(labels), 900, np.random.default_rng(0))
        shown = tok.corrupt(answer, draws)[4::5]
        assert (shown == VOCAB.fake).mean() == pytest.approx(fake, abs=5e-3)
        assert (shown == 117).mean() == pytest.approx(same, abs=3e-3)
        assert shown.min() in (VOCAB.fake, 100) and shown.max() <= 999


def test_unknown_corruption_is_refused():
    with pytest.raises(ValueError, match="corruption must be one of"):
        tokenizer(corruption="all")


def test_any_sequence_decodes():
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        tokens = rng.integers(-50, VOCAB.size + 50, rng.integers(0, 40))
        boxes, labels, scores = tokenizer().decode(tokens, SIZE)
        assert len(boxes) == len(labels) == len(scores) == len(tokens) // 5
        assert np.isfinite(boxes).all() and (boxes >= 0).all()
        assert (
            (boxes <= [400, 200, 400, 200]).all() and (labels >= 0).all() and (labels < 900).all()
        )


def test_grammar_allows_what_encode_writes():
    tok = tokenizer()
    target = torch.from_numpy(tok.sequence(BOXES, LABELS, SIZE, np.random.default_rng(0)).target)
    assert all(tok.allowed(target[None, :t])[token] for t, token in enumerate(target))
    assert tok.allowed(target[None, :0]).sum() == 1000
    assert tok.allowed(target[None, :4]).sum() == 901


def official_case(reference, name):
    data = np.load(reference / "tokenization" / "object_detection.npz")
    return data, {
        k: data[f"{name}/{k}"] for k in ("response_seq", "response_seq_cm", "token_weights")
    }


def official_draws(data, name, row):
    keys = ("rand_cls_minus_base", "u_rand_n_fake", "u_real_n_fake", "u_real_n_rand_n_fake")
    if f"{name}/draw_{keys[0]}" not in data.files:
        return ClassDraws(*np.zeros((4, data["label"].shape[1]), int))
    return ClassDraws(*(data[f"{name}/draw_{key}"][row, :, 0] for key in keys))


@pytest.mark.data
@pytest.mark.parametrize("mode", CORRUPTIONS)
def test_responses_equal_the_official_ones(reference, mode):
    data, want = official_case(reference, mode)
    tok = tokenizer(9, corruption=mode)
    for row, (boxes, labels) in enumerate(zip(data["bbox"], data["label"], strict=True)):
        answer = tok.encode(boxes[:, [1, 0, 3, 2]], labels, (1, 1))
        np.testing.assert_array_equal(answer, want["response_seq"][row])
        shown = tok.corrupt(answer, official_draws(data, mode, row))
        np.testing.assert_array_equal(shown, want["response_seq_cm"][row])
        np.testing.assert_array_equal(tok.weights(labels), want["token_weights"][row])


@pytest.mark.data
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("task_default_none", {"corruption": "none"}),
        ("task_default_rand_n_fake_cls", {}),
        ("task_gt_only", {"corruption": "none", "noise_weight": 0.0}),
    ],
)
def test_training_sequences_equal_the_official_ones(reference, case, options):
    data = np.load(reference / "tokenization" / "object_detection.npz")
    tok = tokenizer(9, **options)
    for row, (boxes, labels) in enumerate(zip(data["bbox"], data["label"], strict=True)):
        draws = official_draws(data, case, row)
        got = tok.sequence_from_draws(boxes[:, [1, 0, 3, 2]], labels, (1, 1), draws)
        np.testing.assert_array_equal(got.input, data[f"{case}/input_seq"][row])
        np.testing.assert_array_equal(got.target, data[f"{case}/target_seq"][row])
        np.testing.assert_allclose(got.weight, data[f"{case}/token_weights"][row])


@pytest.mark.data
def test_a_longer_official_sequence_is_the_same_and_padding(reference):
    data = np.load(reference / "tokenization" / "object_detection.npz")
    tok = tokenizer(9, corruption="none", pad_weight=0.25)
    for row, (boxes, labels) in enumerate(zip(data["bbox"], data["label"], strict=True)):
        answer = tok.encode(boxes[:, [1, 0, 3, 2]], labels, (1, 1))
        got = tok.shift(
            tok.prompt, answer, answer, tok.weights(labels), max_len=56, pad_weight=0.25
        )
        official = {n: data[f"task_longer_max_len/{n}"][row] for n in ("input_seq", "target_seq")}
        np.testing.assert_array_equal(got.input, official["input_seq"])
        np.testing.assert_array_equal(got.target, official["target_seq"])
        np.testing.assert_allclose(got.weight, data["task_longer_max_len/token_weights"][row])


@pytest.mark.data
def test_prompts_equal_the_official_ones(reference):
    data = np.load(reference / "tokenization" / "task_prompt.npz")
    for name, task in (
        ("prompt_from_shape", "captioning"),
        ("prompt_from_response", "segmentation"),
    ):
        assert set(data[name].flatten().tolist()) == {Vocabulary().prompts[task]}


@pytest.mark.data
def test_decoding_equals_the_official_one(reference):
    data = np.load(reference / "decoding" / "object_detection.npz")
    vocab = Vocabulary(num_bins=350, coord0=250, text0=600)
    tok = DetectionTokenizer(vocab, 6)
    log_probs = torch.from_numpy(data["logits"]).log_softmax(-1)
    best = log_probs[:, :, slice(*vocab.class_range)].max(-1)
    for row, tokens in enumerate(data["pred_seq"]):
        class_tokens = best.indices[row].numpy() + vocab.class0
        boxes, labels, scores = tok.decode(tokens, (1, 1), class_tokens, best.values[row].numpy())
        np.testing.assert_allclose(boxes[:, [1, 0, 3, 2]], data["pred_bbox"][row], atol=1e-6)
        np.testing.assert_array_equal(labels, data["pred_class"][row])
        real = labels > 0
        np.testing.assert_allclose(scores[real], data["pred_score"][row][real], rtol=1e-5)


@pytest.mark.data
def test_boxes_in_original_pixels_are_the_official_ones_but_for_the_clip(reference):
    """Officially a box may reach into the padding; ours ends with the picture."""
    data = np.load(reference / "decoding" / "object_detection.npz")
    size = tuple(data["image_height_width"].tolist())
    names = Categories.from_names([f"class {k}" for k in range(1, 150)])
    differ = 0
    for row, orig in enumerate(data["orig_image_size"].tolist()):
        geometry = Geometry.letterbox(tuple(orig), size)
        assert geometry.unpadded == tuple(data["unpadded_image_size"][row])
        official = data["task_pred_bboxes_rescaled"][row][:, [1, 0, 3, 2]]
        boxes = data["task_pred_bboxes"][row][:, [1, 0, 3, 2]] * np.float32([*size[::-1]] * 2)
        np.testing.assert_allclose(geometry.inverse_boxes(boxes), official, atol=1e-4)
        labels, scores = data["task_pred_classes"][row], data["task_scores"][row]
        found = to_original((boxes, labels, scores), geometry, names)
        clipped = np.clip(official, 0, np.float32([*orig[::-1]] * 2))
        has_area = (clipped[:, 2:] > clipped[:, :2]).all(1)  # the others are left out
        known = np.flatnonzero(np.isin(labels, list(names.names)) & has_area)
        order = known[np.argsort(-scores[known], kind="stable")]
        clipped = clipped[order]
        np.testing.assert_allclose(found.boxes, clipped, atol=1e-4)
        differ += (clipped != official[order]).any(1).sum()
    assert differ > 0, "else the data would not show the clip"


@pytest.mark.parametrize("most", [1, 2, 3])
def test_objects_run_out_after_so_many_low_ones_in_a_row(most):
    rng = np.random.default_rng(most)
    scores = rng.choice([0.01, 0.9], (60, 7))
    log_probs = np.log(rng.random((60, 35)))  # those of coordinates do not count
    log_probs[:, 4::5] = np.log(scores)
    for t in range(36):
        found = tokenizer().ran_out(torch.from_numpy(log_probs[:, :t]), most, 0.05)
        low = [t % 5 == 0 and t >= 5 * most and max(row[: t // 5][-most:]) < 0.05 for row in scores]
        assert found.tolist() == low
    assert not tokenizer().ran_out(torch.from_numpy(log_probs), most, 0.0).any()
