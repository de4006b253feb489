"""Names and captions are drawn in a font that has their letters, or one line says that none has."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from dataset.check.report import bars, save_statistics
from tests.conftest import ROOT
from utils import visualize as fonts
from utils.visualize import draw_caption, draw_detections

PICTURE = np.zeros((60, 80, 3), np.uint8)
BACKEND = "module://matplotlib_inline.backend_inline"  # which is not installed here


@pytest.fixture(autouse=True)
def nothing_remembered():
    for remembered in (fonts._find_font, fonts._say_once, fonts.system_fonts, fonts.letters_of):
        remembered.cache_clear()


def build_font(path, letters):
    """A font in which every letter is a bar of its own height."""
    names = [".notdef", *(f"g{i}" for i in range(len(letters)))]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"g{i}" for i, c in enumerate(letters)})
    glyphs = {}
    for height, name in enumerate(names, 1):
        pen = TTGlyphPen(None)
        top = 900 * height // len(names)
        pen.moveTo((0, 0))
        for point in ((0, top), (300, top), (300, 0)):
            pen.lineTo(point)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (500, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def offer(monkeypatch, *paths):
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: list(map(str, paths)))


def pictures(text):
    box = np.float32([[5, 30, 70, 58]])
    return draw_caption(PICTURE, text), draw_detections(PICTURE, box, [text])


def test_a_font_of_the_system_is_used_where_it_has_the_letters(monkeypatch, tmp_path, capsys):
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    some = build_font(tmp_path / "Some.ttf", "猫 1")
    every = build_font(tmp_path / "Whole.ttf", "猫犬鳥 12")
    offer(monkeypatch, tmp_path / "damaged.ttf", some, every)
    assert fonts.find_font("犬 2") == every and fonts.find_font("cat é") == fonts.DEJAVU
    for one, other in zip(pictures("猫"), pictures("犬"), strict=True):
        assert not np.array_equal(one, other)
    assert capsys.readouterr().err == ""


def test_captions_without_spaces_take_as_many_lines_as_they_need(monkeypatch, tmp_path):
    offer(monkeypatch, build_font(tmp_path / "Some.ttf", "猫犬"))
    heights = [len(draw_caption(PICTURE, "猫犬" * n)) for n in (1, 10, 20)]
    assert heights[0] < heights[1] < heights[2]


def test_letters_that_no_font_has_are_told_in_one_line(monkeypatch, tmp_path, capsys):
    offer(monkeypatch, build_font(tmp_path / "Some.ttf", "猫"))
    for text in ("猫犬", "犬", "鳥 and others"):
        pictures(text)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "no font of this system has all letters" in lines[0]


@pytest.mark.parametrize("letters", ["猫犬", ""])
def test_diagrams_use_the_font_and_no_library_warns(monkeypatch, tmp_path, letters):
    offer(monkeypatch, *[build_font(tmp_path / "Some.ttf", letters)] * bool(letters))
    drawn = []
    for names in (("猫", "猫"), ("犬", "犬")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            panel = bars("objects per class", [(name, 3) for name in names])
            save_statistics(tmp_path / "a.png", "animals", [panel])
        drawn.append((tmp_path / "a.png").read_bytes())
    assert (drawn[0] != drawn[1]) == bool(letters)


@pytest.mark.parametrize(
    "code",
    [
        "from infer.predictor import Predictor; from utils.visualize import draw_caption;"
        "import numpy as np; draw_caption(np.zeros((9, 9, 3), np.uint8), 'a 猫')",
        "from utils.cli import run; run(lambda: __import__('dataset.check.report'))",
    ],
)
def test_the_backend_of_a_notebook_does_not_matter(code):
    environment = os.environ | {"MPLBACKEND": BACKEND}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
