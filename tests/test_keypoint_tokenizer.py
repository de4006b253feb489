"""The keypoint tokenizer: inverse, weights, masking, and the numbers of the official code."""

import json

import numpy as np
import pytest
import torch

from dataset.geometry import Geometry
from infer.keypoint import to_original
from tokenizer.keypoint import KeypointTokenizer, weighted_scores
from tokenizer.vocabulary import Vocabulary
from utils.categories import COCO_PERSON, Skeleton

VOCAB = Vocabulary()
SIZE = (200, 400)  # (H, W)
BOX = np.float32([40, 20, 240, 180])
NAMES = ("nose", "left_eye", "right_eye")
POINTS = np.float32([[100, 50, 2], [0, 0, 0], [400, 200, 1]])


def tokenizer(**options) -> KeypointTokenizer:
    return KeypointTokenizer(VOCAB, NAMES, [(0, 1), (0, 2)], **options)


def test_decode_inverts_encode_up_to_half_a_bin():
    rng = np.random.default_rng(0)
    tok = KeypointTokenizer(VOCAB)
    for _ in range(200):
        size = tuple(rng.integers(1, 1000, 2).tolist())
        points = np.column_stack([rng.random((17, 2)) * size[::-1], rng.integers(0, 3, 17)])
        decoded, found = tok.decode(tok.encode(points, size), BOX, size)
        labelled = points[:, 2] > 0
        np.testing.assert_array_equal(found, labelled)
        error = np.abs(decoded - points[:, :2])[labelled]
        assert (error <= np.array(size[::-1]) / 999 / 2 + 1e-3).all()
        assert (decoded[~labelled] == [140, 100]).all()  # the centre of the box


def test_points_are_written_y_first_and_unlabelled_ones_invisible():
    tokens = tokenizer().encode(POINTS, SIZE)
    assert tokens.tolist() == [1250, 1250, 41, 41, 1999, 1999]
    assert tokenizer().prompts(BOX[None], [1], SIZE)[0].tolist() == [
        *(12, 1100, 1100, 1899, 1599, 101)
    ]


def test_supervised_positions_are_these():
    """From the first coordinate on; points that are not labelled at a tenth."""
    sequence = tokenizer().sequence(BOX, 1, POINTS, SIZE, np.random.default_rng(0))
    np.testing.assert_allclose(sequence.weight, [*[0] * 5, 1, 1, 0.1, 0.1, 1, 1])
    assert sequence.target[5:].tolist() == [1250, 1250, 41, 41, 1999, 1999]
    assert len(sequence.input) == len(sequence.target) == tokenizer().max_len == 11


def test_an_object_that_is_not_there_has_no_loss():
    sequence = tokenizer().sequence(BOX, 0, POINTS, SIZE, np.random.default_rng(0))
    assert not sequence.weight.any() and not sequence.target.any()


def test_hidden_inputs_are_invisible_and_change_no_target():
    tok, hidden = tokenizer(), np.array([True, False, False, False, True])
    shown = tok.sequence_from_draws(BOX, 1, POINTS, SIZE, ~hidden & hidden)
    masked = tok.sequence_from_draws(BOX, 1, POINTS, SIZE, hidden)
    assert shown.input.tolist() == [12, 1100, 1100, 1899, 1599, 101, 1250, 1250, 41, 41, 1999]
    assert masked.input.tolist() == [12, 1100, 1100, 1899, 1599, 101, 41, 1250, 41, 41, 41]
    np.testing.assert_array_equal(masked.target, shown.target)
    np.testing.assert_array_equal(masked.weight, shown.weight)


def test_the_share_of_hidden_inputs_is_uniform_and_can_be_none():
    tok, rng = KeypointTokenizer(VOCAB), np.random.default_rng(0)
    points = np.column_stack([np.full((17, 2), 50), np.full(17, 2)])
    shares = [
        (tok.sequence(BOX, 1, points, SIZE, rng).input[6:] == VOCAB.invisible).mean()
        for _ in range(2000)
    ]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.std(shares) == pytest.approx((1 / 12 + 1 / 6 / 33) ** 0.5, abs=0.01)
    off = KeypointTokenizer(VOCAB, mask_inputs=False).sequence(BOX, 1, points, SIZE, rng)
    assert (off.input[6:] != VOCAB.invisible).all()


@pytest.mark.parametrize("num_bins", [2, 384, 500, 501, 502, 1000, 2000])
def test_coordinates_never_meet_another_token(num_bins):
    """Ports with fixed ids took coordinate 500 for "invisible" and x = width for class 0."""
    vocab = Vocabulary(num_bins=num_bins)
    tok, side = KeypointTokenizer(vocab, NAMES), 384
    low, high = vocab.coord_range
    for value in (-1e9, -1, 0, 191.7, side / 2, side - 1e-3, side, side + 1, 1e9):
        tokens = tok.encode(np.float32([[value, value, 2]] * 3), (side, side))
        assert ((tokens >= low) & (tokens < high)).all()
    others = {vocab.pad, vocab.fake, vocab.separator, vocab.invisible, *vocab.prompts.values()}
    assert not others & set(range(low, high)) and vocab.class_range[1] <= low
    middle = tok.encode(np.float32([[side, side, 2]] * 3), (2 * side, 2 * side)) - low
    assert np.abs(middle - (num_bins - 1) / 2).max() <= 0.5  # bins, not pixels


def test_every_prefix_decodes_to_the_points_it_holds():
    """A sequence need not end anywhere: ports threw the whole person away."""
    tok = tokenizer()
    tokens = tok.encode(np.float32([[10, 20, 2], [30, 40, 2], [50, 60, 2]]), SIZE)
    for length in range(10):
        points, found = tok.decode(np.append(tokens, [0, 0, 0, 0])[:length], BOX, SIZE)
        assert found.sum() == min(length // 2, 3) and points.shape == (3, 2)
        want = np.float32([[10, 20], [30, 40], [50, 60]])[: found.sum()]
        np.testing.assert_allclose(points[found], want, atol=0.3)


def test_any_sequence_decodes():
    rng, tok = np.random.default_rng(0), KeypointTokenizer(VOCAB)
    geometry = Geometry.letterbox((120, 90), (64, 64), crop=(10, 20, 50, 60))
    box = np.float32([30, 20, 60, 50])
    for number in range(10_000):
        tokens = rng.integers(-50, VOCAB.size + 50, rng.integers(0, 50))
        points, found = tok.decode(tokens, box, (64, 64))
        assert points.shape == (17, 2) and found.shape == (17,) and np.isfinite(points).all()
        assert (points[found] >= 0).all() and (points[found] <= 64).all()
        if number % 5:
            continue
        moved = to_original(tok, tokens, box, geometry)
        assert (moved[:, :2] >= 0).all() and (moved[:, :2] <= [90, 120]).all()
        assert set(moved[:, 2]) <= {0, 2}


def test_grammar_allows_what_encode_writes():
    tok = tokenizer()
    target = torch.from_numpy(tok.encode(POINTS, SIZE))
    assert all(tok.allowed(target[None, :t])[token] for t, token in enumerate(target))
    assert tok.allowed(target[None, :3]).sum() == VOCAB.num_bins + 1


def test_settings_are_json_and_build_a_tokenizer_that_decodes():
    tok = tokenizer(labels=(3, 5), crop=0.25)
    again = KeypointTokenizer(VOCAB, **json.loads(json.dumps(tok.settings())))
    assert again.skeleton == tok.skeleton == Skeleton(NAMES, ((0, 1), (0, 2)))
    assert (again.labels, again.crop, again.max_len) == ((3, 5), 0.25, tok.max_len)


def test_another_number_of_points_is_refused():
    with pytest.raises(ValueError, match=r"keypoints must be of shape \(3, 3\), got \(17, 3\)"):
        tokenizer().encode(np.zeros((17, 3)), SIZE)


def test_sides_come_from_the_names():
    pairs = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]
    assert list(COCO_PERSON.flip_pairs) == pairs
    assert Skeleton(("tail", "Right_Ear", "Left_Ear", "left_horn")).flip_pairs == ((2, 1),)
    assert Skeleton(("a", "b")).flip_pairs == ()


def test_the_default_is_what_coco_files_say():
    category = {"keypoints": list(COCO_PERSON.names), "skeleton": [[16, 14], [14, 12]]}
    assert Skeleton.from_coco(category).edges == COCO_PERSON.edges[:2]
    for wrong in ({"keypoints": []}, {"keypoints": 3}, {"keypoints": ["a"], "skeleton": [[1, 2]]}):
        with pytest.raises(ValueError):
            Skeleton.from_coco(wrong)


def official_rows(reference, case):
    data = np.load(reference / "tokenization" / "keypoint_detection.npz")
    config = json.loads((reference / "tokenization" / "config.json").read_text())
    values = config["keypoint_detection_cases"][case]
    tok = KeypointTokenizer(
        VOCAB,
        pad_weight=values["eos_token_weight"],
        invisible_weight=values["invisible_token_weight"],
    )
    for index in np.ndindex(data["label"].shape):
        yx = data["keypoints"][index].reshape(17, 2)
        points = np.column_stack([yx[:, ::-1], np.where(yx[:, 0] == -3, 0, 2)])
        yield tok, data, index, (data["bbox"][index][[1, 0, 3, 2]], data["label"][index], points)


@pytest.mark.data
@pytest.mark.parametrize("case", ["default", "weights"])
def test_training_sequences_equal_the_official_ones(reference, case):
    for tok, data, index, row in official_rows(reference, case):
        hidden = data[f"task_{case}/draw_mask_uniform"][index] < data[f"task_{case}/draw_ratio"]
        got = tok.sequence_from_draws(*row, (1, 1), hidden)
        np.testing.assert_array_equal(got.input, data[f"task_{case}/input_seq"][index])
        np.testing.assert_array_equal(got.target, data[f"task_{case}/target_seq"][index])
        np.testing.assert_allclose(got.weight, data[f"task_{case}/token_weights"][index])
        prompt = tok.prompts(row[0][None], row[1:2], (1, 1))[0]
        np.testing.assert_array_equal(prompt, data["prompt_seq"][index])
        if row[1]:
            answer = tok.encode(row[2], (1, 1))
            np.testing.assert_array_equal(answer, data["response_seq"][index])


DECODING_VOCAB = Vocabulary(num_bins=350, coord0=250, text0=600, num_text=50)


@pytest.mark.data
@pytest.mark.parametrize("case", ["default", "colab", "top_k1", "suppress_off", "nocrop_weight0"])
def test_decoding_equals_the_official_one(reference, case):
    """Points, in the input and in the original, for the tokens that the official code ended with.

    Two differences are meant: padding is a point not said, which officially keeps its -1, and
    points are clipped to the image.
    """
    data = np.load(reference / "decoding" / "keypoint_detection.npz")
    tok, size = KeypointTokenizer(DECODING_VOCAB), tuple(data["image_height_width"].tolist())
    for row, tokens in enumerate(data[f"{case}/infer_pred_seq"]):
        box = data["gt_bbox"][row, 0, [1, 0, 3, 2]] * 64
        points, _ = tok.decode(tokens, box, size)
        said = tokens != DECODING_VOCAB.pad
        np.testing.assert_allclose(
            points[:, ::-1].ravel()[said], 64 * data[f"{case}/pred_points"][row][said], atol=1e-3
        )
        height, width = data["orig_image_size"][row].tolist()
        y, x = data["crop_offset"][row].tolist() if case != "nocrop_weight0" else (0, 0)
        geometry = Geometry.letterbox((height + y, width + x), size, crop=(y, x, height, width))
        assert geometry.unpadded == tuple(data["unpadded_image_size"][row].tolist())
        want = data[f"{case}/pred_points_rescaled"][row]
        moved = geometry.inverse_points(points)[:, ::-1].ravel()
        np.testing.assert_allclose(moved[said], want[said], atol=1e-3)
        clipped = to_original(tok, tokens, geometry.inverse_boxes(box), geometry)
        want = np.clip(want.reshape(17, 2)[:, ::-1], 0, [width + x, height + y])
        both = said.reshape(17, 2).all(1)
        np.testing.assert_allclose(clipped[both, :2], want[both], atol=1e-2)
        prompt = tok.prompts(box[None], data["gt_label"][row], size)
        np.testing.assert_array_equal(prompt, data[f"{case}/prompt_seq"][row])


@pytest.mark.data
@pytest.mark.parametrize("case", ["default", "colab", "top_k1", "suppress_off", "nocrop_weight0"])
def test_scores_equal_the_official_ones(reference, case):
    data = np.load(reference / "decoding" / "keypoint_detection.npz")
    settings = json.loads((reference / "decoding" / "config.json").read_text())
    settings = settings["keypoint_cases"][case]
    logits = torch.from_numpy(data["logits"]).double()
    if settings["eval_suppress_invisible_token"]:
        logits[..., DECODING_VOCAB.invisible] = -torch.inf
    tokens = data[f"{case}/infer_pred_seq"]
    log_probs = logits.log_softmax(-1).gather(2, torch.from_numpy(tokens)[..., None])[..., 0]
    got = weighted_scores(
        tokens, log_probs.numpy(), data["gt_scores"][:, 0], settings["points_score_weight"], 0
    )
    person = data["gt_label"][:, 0] == 1
    np.testing.assert_allclose(got[person], data[f"{case}/scores"][person], rtol=1e-5)
    assert (data[f"{case}/scores"][~person] == 0).all()


@pytest.mark.data
def test_weighted_scores_equal_the_official_ones(reference):
    data = np.load(reference / "decoding" / "compute_weighted_scores.npz")
    tokens = data["pred_seq"]
    log_probs = torch.from_numpy(data["logits"]).log_softmax(-1)
    log_probs = log_probs.gather(2, torch.from_numpy(tokens)[..., None])[..., 0].numpy()
    boxes = data["bbox_scores"]
    for weight in (0.0, 0.1, 0.5, 1.0):
        got = weighted_scores(tokens, log_probs, boxes, weight, 0)
        np.testing.assert_allclose(got, data[f"scores_w{weight}"], rtol=1e-5)
    one = weighted_scores(tokens[:5], log_probs[:5], boxes, 0.3, 0)
    np.testing.assert_allclose(one, data["scores_one_sample_w0.3"], rtol=1e-5)


def test_an_answer_of_nothing_but_padding_scores_as_its_box():
    got = weighted_scores(np.zeros((2, 6), int), np.zeros((2, 6)), [0.5, 1.0], 0.4, 0)
    np.testing.assert_allclose(got, [0.3, 0.6])
    assert len(weighted_scores(np.zeros((0, 6), int), np.zeros((0, 6)), [], 0.4, 0)) == 0
