"""Every text file of the project is read alike, whatever system wrote it."""

import json

import pytest

from config import CFG
from download.port_model import read_class_names
from tokenizer.text import TextTokenizer
from utils.cli import snapshot
from utils.errors import UserError
from utils.files import decode_text, read_json, split_lines, write_json_atomic

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
TEXT = "é 人 \N{GRINNING FACE}\r\nsecond\rthird\n"


@pytest.fixture(params=ENCODINGS)
def encoded(request):
    """Writes a text as some system does."""
    mark = "" if request.param in ("utf-8", "utf-8-sig", "utf-16", "utf-32") else "\ufeff"

    def write(path, text):
        path.write_bytes((mark + text).encode(request.param))
        return path

    return write


def test_text_is_read_in_every_unicode_encoding(encoded, tmp_path):
    content = encoded(tmp_path / "a.txt", TEXT).read_bytes()
    assert decode_text(content) == TEXT
    assert split_lines(decode_text(content)) == ["é 人 \N{GRINNING FACE}", "second", "third", ""]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_needs_no_mark(encoding):
    assert decode_text("人\r\nab\n".encode(encoding)) == "人\r\nab\n"


def test_other_control_characters_end_no_line():
    assert split_lines("a\x0bb\x0cc\x85d\u2028e\r\n") == ["a\x0bb\x0cc\x85d\u2028e", ""]


def test_json_settings_classes_and_vocabularies_are_read_alike(encoded, tmp_path, caption_vocab):
    rows = encoded(tmp_path / "a.json", json.dumps({"name": "é人"}, ensure_ascii=False))
    assert read_json(rows, "") == {"name": "é人"}
    assert snapshot(CFG, file=encoded(tmp_path / "b.json", '{"img_size": 96}')).img_size == 96
    names = encoded(tmp_path / "c.txt", "é人\r\n\r\ncat\r\n")
    assert read_class_names(names, 2) == {0: "é人", 1: "cat"}
    vocab = encoded(tmp_path / "d.json", caption_vocab.read_text(encoding="utf-8"))
    assert TextTokenizer.load(vocab).size == TextTokenizer.load(caption_vocab).size


@pytest.mark.parametrize(
    "content", [b"\xe9\xe8", b"\xff\xfe\x00", bytes(range(256)), "é".encode("gbk")]
)
def test_what_is_no_text_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*x.json .*save it as UTF-8\); try again"):
        read_json(path, "try again")


def test_names_that_are_no_text_survive_a_json_file(tmp_path):
    name = b"\xe9.jpg".decode("utf-8", "surrogateescape")
    write_json_atomic(tmp_path / "a.json", {"image": name})
    assert read_json(tmp_path / "a.json", "") == {"image": name}
