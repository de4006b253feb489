"""Sub-word pieces: exact round trip, determinism, special pieces, SentencePiece files."""

import json
import os
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from dataset import build_captioning_vocab
from tokenizer.text import END, SPECIAL, TextTokenizer
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CAPTIONS = [
    "A red ball to the left of a dog.",
    "A red ball and a dog on the beach.",
    "Two red balls, a dog and a cat on the beach!",
    "There is a cat on a red ball; it isn't happy.",
] * 3


@pytest.fixture(scope="module")
def text():
    return TextTokenizer.train(CAPTIONS, 200)


def test_the_first_pieces_are_special(text):
    content = text.to_json()["tokenizers"]
    pieces = {i: piece for piece, i in content["model"]["vocab"].items()}
    assert [pieces[i] for i in range(3)] == ["<pad>", "</s>", "<unk>"] == list(SPECIAL)
    assert sorted(pieces) == list(range(text.size))


@pytest.mark.parametrize("caption", CAPTIONS[:4])
def test_decode_inverts_encode(text, caption):
    pieces = text.encode(caption)
    assert text.decode(pieces) == caption and min(pieces) >= len(SPECIAL)
    assert len(pieces) <= len(caption.split()) + 4, "frequent words are one piece"


WORDS = [
    *("a", "red", "ball.", "(ball)", "it's", "<pad>", "x</s>y", "ΣΑΣ", "♞", "▁", "▁red"),
    *("Ａ", "ﬁ", "¨", "e\u0301", "\u0301", "", "\t", "b\nc", "\u00a0", "\u3000", "\x1c"),
]


@pytest.mark.parametrize("lower_case", [False, True])
def test_words_encoded_one_by_one_are_the_text_encoded_whole(lower_case):
    text = TextTokenizer.train(CAPTIONS + WORDS, 200, lower_case=lower_case)
    assert text._words is not None, "each word is encoded once"
    rng, copy = np.random.default_rng(0), pickle.loads(pickle.dumps(text))
    for _ in range(500):
        words = " ".join(rng.choice(WORDS, rng.integers(0, 12)))
        assert text.encode(words) == text._encode(words) == copy.encode(words)


def test_a_tokenizer_of_another_kind_encodes_whole_texts(text):
    content = text.to_json()
    content["tokenizers"]["pre_tokenizer"] = None  # pieces may hold spaces
    other = TextTokenizer.from_json(content)
    assert other._words is None and other.decode(other.encode(CAPTIONS[0]))


def test_white_space_and_compatible_characters_are_normalised(text):
    assert text.decode(text.encode(" A  red\n\tball \u00a0. ")) == "A red ball ."
    assert text.decode(text.encode("Ａ red ball")) == "A red ball"


def test_case_is_kept_unless_told_otherwise():
    lower = TextTokenizer.train(CAPTIONS, 200, lower_case=True)
    assert lower.decode(lower.encode(CAPTIONS[0])) == CAPTIONS[0].lower()
    again = TextTokenizer.from_json(json.loads(json.dumps(lower.to_json())))
    assert again.encode("A RED Ball") == lower.encode("a red ball")


def test_decode_stops_at_the_end_and_leaves_out_what_is_no_text(text):
    ball = text.encode("red ball")
    assert text.decode([*ball, END, *ball]) == "red ball"
    assert text.decode([0, *ball, 2, -7, text.size, 2**40]) == "red ball"
    assert text.decode([]) == text.decode([END]) == ""


def test_unknown_characters_become_unk_and_are_left_out(text):
    pieces = text.encode("a red ♞ ball")
    assert 2 in pieces and text.decode(pieces) in ("a red ball", "a red  ball")


def test_a_small_vocabulary_spells(text):
    small = TextTokenizer.train(CAPTIONS, 45)
    assert small.size <= 45 < text.size
    assert small.decode(small.encode(CAPTIONS[3])) == CAPTIONS[3]


def test_more_characters_than_pieces_are_refused():
    with pytest.raises(UserError, match="use --vocab-size"):
        TextTokenizer.train(CAPTIONS, 8)
    with pytest.raises(UserError, match="there is no text"):
        TextTokenizer.train([], 100)


def captions_file(tmp_path):
    rows = [{"id": i, "image_id": i // 4, "caption": text} for i, text in enumerate(CAPTIONS)]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    return path


def test_the_script_writes_the_same_file_in_every_process(tmp_path, capsys):
    path = captions_file(tmp_path)
    outs = [tmp_path / "a.json", tmp_path / "b.json"]
    arguments = ["--captions", str(path), "--vocab-size", "90", "--out"]
    build_captioning_vocab.main([*arguments, str(outs[0])])
    assert "pieces from 12 captions" in capsys.readouterr().out
    command = [sys.executable, ROOT / "dataset" / "build_captioning_vocab.py", *arguments, outs[1]]
    env = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "7"}
    subprocess.run(command, check=True, cwd=tmp_path, env=env, capture_output=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert TextTokenizer.load(outs[0]).size <= 90


def test_files_that_are_none_are_one_line(tmp_path):
    with pytest.raises(UserError, match="build_captioning_vocab.py"):
        TextTokenizer.load(tmp_path / "none.json")
    for content in (b"", b"[1, 2]", b"\xff\xfe", b'{"model": 3}'):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UserError, match="holds no caption vocabulary") as error:
            TextTokenizer.load(tmp_path / "bad.json")
        assert "\n" not in str(error.value)
    values = TextTokenizer.train(CAPTIONS, 90).to_json()["tokenizers"]
    vocab = values["model"]["vocab"]
    vocab["<pad>"], vocab["</s>"] = 1, 0
    (tmp_path / "other.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="must start with the pieces <pad>, </s>, <unk>"):
        TextTokenizer.load(tmp_path / "other.json")


def test_a_weight_file_gives_the_pieces_it_was_trained_with(
    multi_weights, tiny_weights, caption_vocab
):
    again = TextTokenizer.load(multi_weights)
    assert again.to_json() == TextTokenizer.load(caption_vocab).to_json()
    for path in (tiny_weights, multi_weights.parent / "settings.safetensors"):
        if path != tiny_weights:
            path.write_bytes(b"none")
        with pytest.raises(UserError, match="is not a weight file with captions; make a"):
            TextTokenizer.load(path)


@pytest.fixture(scope="module")
def spm_file(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text.txt").write_text("\n".join(CAPTIONS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "spm"), vocab_size=38,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return folder / "spm.model"


def test_a_sentencepiece_model_does_as_well(spm_file):
    import sentencepiece

    text = TextTokenizer.load(spm_file)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spm_file))
    again = TextTokenizer.from_json(json.loads(json.dumps(text.to_json())))
    assert text.size == again.size == processor.get_piece_size()
    for caption in CAPTIONS[:4]:
        pieces = text.encode(caption)
        assert pieces == again.encode(caption) == processor.encode(caption)
        assert text.decode([*pieces, END, 5, 6]) == caption
    assert text.decode([0, 2, -1, 2**40]) == ""


def test_a_broken_sentencepiece_model_is_one_line(tmp_path):
    pytest.importorskip("sentencepiece")
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        TextTokenizer.load(tmp_path / "bad.model")


def test_without_sentencepiece_its_files_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "some.model").write_bytes(b"anything")
    with pytest.raises(UserError, match="pip install sentencepiece"):
        TextTokenizer.load(tmp_path / "some.model")


@pytest.mark.data
def test_real_captions_survive(real_data):
    path = real_data / "coco_annotations_only" / "annotations" / "captions_val2017.json"
    captions = [row["caption"] for row in json.loads(path.read_text())["annotations"]]
    text = TextTokenizer.train(captions, 3000)
    assert text.size == 3000
    lengths = []
    for caption in captions:
        pieces = text.encode(caption)
        lengths.append(len(pieces))
        assert text.decode(pieces) == " ".join(unicodedata.normalize("NFKC", caption).split())
    assert max(lengths) < 128 and sum(lengths) / len(lengths) < 15
