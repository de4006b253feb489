"""Captions as tokens: official numbers, truncation, weights, hostile sequences, grammar."""

import json

import numpy as np
import pytest
import torch

from tests.test_text_tokenizer import CAPTIONS
from tokenizer.captioning import CaptionTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary

TEXT = TextTokenizer.train(CAPTIONS, 120)
VOCAB = Vocabulary(num_text=TEXT.size)
END = VOCAB.text0 + 1


def tokenizer(max_tokens=24, **options):
    return CaptionTokenizer(VOCAB, TEXT, max_tokens, **options)


def test_decode_inverts_encode():
    tokens = tokenizer().encode(CAPTIONS[2])
    assert tokens[-1] == END and (tokens[:-1] > VOCAB.text0 + 2).all()
    assert tokenizer().decode(tokens) == CAPTIONS[2]


def test_a_long_caption_is_cut_and_keeps_its_end():
    """Earlier code padded by a negative length and raised."""
    long = " ".join(CAPTIONS)
    tokens = tokenizer().encode(long)
    assert len(tokens) == 24 and tokens[-1] == END and (tokens == END).sum() == 1
    text = tokenizer().decode(tokens)
    assert text and long.startswith(text)
    sequence = tokenizer().sequence([long], np.random.default_rng(0))
    assert sequence.target.shape == (5, 24) and (sequence.target[:, -1] == END).all()


def test_the_supervised_positions_are_these():
    """Words 1, `</s>` a tenth, padding 1 as officially, or 0: then the end is learned once."""
    length = len(tokenizer().encode(CAPTIONS[0]))
    official = tokenizer(num_captions=1).sequence(CAPTIONS[:1], np.random.default_rng(0))
    want = np.ones(24, np.float32)
    want[length - 1] = 0.1
    np.testing.assert_array_equal(official.weight, want[None])
    once = tokenizer(num_captions=1, pad_weight=0, end_weight=1)
    weights = once.sequence(CAPTIONS[:1], np.random.default_rng(0)).weight
    np.testing.assert_array_equal(weights[0], np.arange(24) < length)


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_every_image_gives_the_same_number_of_captions(count):
    captions = [f"A red ball {word}" for word in ("a", "to", "of", "on", "is", "it", "and")][:count]
    tok = tokenizer(num_captions=5, drop=0.0)
    seen = set()
    for seed in range(60):
        sequence = tok.sequence(captions, np.random.default_rng(seed))
        said = [tok.decode(row) for row in sequence.target]
        assert sequence.input.shape == sequence.weight.shape == (5, 24)
        assert len(set(said)) == min(count, 5), "none twice before all were there"
        seen.add(tuple(said))
        assert set(said) <= set(captions)
    assert {text for said in seen for text in said} == set(captions)
    assert count == 1 or len(seen) > 5, "a random choice in random order"


@pytest.mark.parametrize("drop", [0.2, 0.5])
def test_all_input_tokens_can_be_hidden_and_no_target(drop):
    tok = tokenizer(drop=drop)
    shown, rows = np.zeros(24), 0
    for seed in range(200):
        sequence = tok.sequence(CAPTIONS[:4], np.random.default_rng(seed))
        clean = np.column_stack([np.full(5, VOCAB.prompts["captioning"]), sequence.target[:, :-1]])
        hidden = sequence.input == VOCAB.fake
        np.testing.assert_array_equal(sequence.input, np.where(hidden, VOCAB.fake, clean))
        assert VOCAB.fake not in sequence.target
        shown += (~hidden).sum(0)
        rows += 5
    np.testing.assert_allclose(shown / rows, 1 - drop, atol=0.07)  # prompt and padding alike


def test_the_same_draws_give_the_same_sequence():
    sequences = [tokenizer().sequence(CAPTIONS[:4], np.random.default_rng(3)) for _ in range(2)]
    assert all(
        np.array_equal(getattr(sequences[0], name), getattr(sequences[1], name))
        for name in ("input", "target", "weight")
    )


def test_grammar_allows_what_encode_writes():
    tok = tokenizer()
    tokens = torch.from_numpy(tok.encode(CAPTIONS[1]))
    assert all(tok.allowed(tokens[None, :t])[token] for t, token in enumerate(tokens))
    first, later = tok.allowed(tokens[None, :0]), tok.allowed(tokens[None, :3])
    assert not first[END] and later[END]
    assert not later[: VOCAB.text0 + 1].any() and later[VOCAB.text0 + 1 :].all()


def test_hostile_sequences_decode():
    rng, tok = np.random.default_rng(0), tokenizer()
    for i in range(10_000):
        high = (VOCAB.size, VOCAB.size + 500, 2**40)[i % 3]
        low = (0, VOCAB.text0, -5)[i % 3]
        text = tok.decode(rng.integers(low, high, rng.integers(0, 40)))
        assert isinstance(text, str) and "\n" not in text
        assert not any(piece in text for piece in ("<pad>", "</s>", "<unk>"))


def test_settings_build_it_again():
    tok = tokenizer(30, drop=0.1)
    again = CaptionTokenizer(VOCAB, **json.loads(json.dumps(tok.settings())))
    assert again.max_new_tokens == again.max_len == 30 and again.eos_id == END
    assert again.decode(tok.encode(CAPTIONS[3])) == CAPTIONS[3]


def test_it_refuses_what_cannot_fit():
    with pytest.raises(ValueError, match=f"must have {TEXT.size} text ids"):
        CaptionTokenizer(Vocabulary(num_text=7), TEXT)
    for wrong in ({"max_tokens": 1}, {"num_captions": 0}, {"drop": 1.0}):
        with pytest.raises(ValueError, match="max_tokens must be at least 2"):
            tokenizer(**wrong)
    with pytest.raises(ValueError, match="at least one caption"):
        tokenizer().sequence([], np.random.default_rng(0))


class ManyPieces:
    """Stands in for a text tokenizer of the size that the reference numbers have."""

    size = 32000


@pytest.mark.data
@pytest.mark.parametrize("case", ["no_drop", "default", "eos"])
def test_sequences_equal_the_official_ones(reference, case):
    data = np.load(reference / "tokenization" / "captioning.npz")
    config = json.loads((reference / "tokenization" / "config.json").read_text())
    settings = config["captioning_cases"][case]
    tok = CaptionTokenizer(
        Vocabulary(num_text=ManyPieces.size),
        ManyPieces(),
        settings["max_seq_len"],
        drop=settings["input_seq_drop_rate"],
        end_weight=settings["eos_token_weight"],
    )
    captions = data["captions"]  # (3, 5, 24)
    draws = np.ones(captions.shape, np.float32)
    if case == "default":
        draws = data["task_default/draw_drop_uniform"]
    for i, rows in enumerate(captions):
        answers = [row[row != 0] for row in rows]
        sequence = tok.sequence_from_draws(answers, draws[i])
        np.testing.assert_array_equal(sequence.input, data[f"task_{case}/input_seq"][i])
        np.testing.assert_array_equal(sequence.target, data[f"task_{case}/target_seq"][i])
        np.testing.assert_array_equal(sequence.weight, data[f"task_{case}/token_weights"][i])
