"""The page in the browser: what it answers, and the page itself in a real Chromium."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import CFG
from infer import page
from infer.page import ANY_CLASS, EMPTY, Answers, Session, _plain, view
from infer.page_layout import is_own
from infer.predictor import Predictor
from tests.browser import ROOT, Browser, serve_page, wait_for, what_is_missing
from utils.errors import UserError

DEMO = ROOT / "weights" / "demo.safetensors"
PICTURE = ROOT / "images" / "demo.jpg"
CAT = (60.0, 230.0, 180.0, 365.0)


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers([DEMO], CFG, "cpu")


@pytest.fixture(scope="module")
def name(answers) -> str:
    return next(iter(answers.files))


@pytest.fixture
def session() -> Session:
    one = Session()
    one.open(PICTURE)
    return one


def written(session: Session, threshold: float) -> dict:
    return json.loads(view(session, threshold).files[1].read_text())


def test_the_threshold_hides_objects_without_asking_again(answers, name, session, monkeypatch):
    answers.answer(session, name, "objects")
    monkeypatch.setattr(answers, "answer", None)
    expected = Predictor(DEMO).detect(PICTURE)
    for threshold in (0.0, 0.5, 0.95, 1.01):
        rows = written(session, threshold)["objects"]
        assert [row["label"] for row in rows] == expected.above(threshold).names
        np.testing.assert_allclose(
            [row["box"] for row in rows],
            expected.above(threshold).boxes.tolist(),
            atol=0.1,
        )
    assert np.array_equal(view(session, 1.01).picture, session.image)  # nothing is drawn
    hidden = len(expected) - len(expected.above(0.95))
    assert hidden and f"{hidden} more below the threshold" in view(session, 0.95).text
    assert "more below" not in view(session, 0).text
    assert not np.array_equal(view(session, 0.5).picture, session.image)


def test_a_drawn_box_is_asked_for_in_pixels_of_the_picture(answers, name, session):
    session.click(CAT[2], CAT[1])  # any two opposite corners
    assert session.corner and not session.boxes
    with pytest.raises(UserError, match="half drawn"):
        answers.answer(session, name, "masks")
    session.click(CAT[0], CAT[3])
    assert session.boxes == [CAT]
    answers.answer(session, name, "masks", "cat")
    (row,) = written(session, 0)["masks"]
    assert (row["label"], row["box"]) == ("cat", list(CAT))
    assert "were not used" not in view(session, 0).text
    answers.answer(session, name, "caption")
    assert "boxes were not used: caption is about the whole picture" in view(session, 0).text
    session.forget_boxes()
    assert np.array_equal(session.marked(), session.image)


def test_boxes_outside_or_without_area_are_no_boxes(session):
    height, width = session.image.shape[:2]
    for x, y in ((-5, -5), (width + 9, height + 9), (3, 3), (3, 50)):
        session.click(x, y)
    assert session.boxes == [(0, 0, width, height)]


def test_an_answer_belongs_to_the_picture_that_was_asked_about(
    answers, name, session, tmp_path, monkeypatch
):
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 48)).save(other)
    real = page._ask

    def slow(*args):  # the visitor drops another picture meanwhile
        found = real(*args)
        session.open(other)
        return found

    monkeypatch.setattr(page, "_ask", slow)
    with pytest.raises(UserError, match="another picture was opened"):
        answers.answer(session, name, "objects")
    assert view(session, 0).text == EMPTY and session.name == "other.png"


@pytest.mark.parametrize(
    ("host", "asked", "origin", "own"),
    [
        ("127.0.0.1", "127.0.0.1:7860", None, True),
        ("127.0.0.1", "localhost:7860", "http://localhost:7860", True),
        ("::1", "[::1]:7860", "http://[::1]:7860", True),
        ("127.0.0.1", "evil.example:7860", None, False),  # a name that leads to this machine
        ("127.0.0.1", "127.0.0.1:7860", "http://evil.example", False),
        ("127.0.0.1", "127.0.0.1:7860", "http://127.0.0.1:8000", False),
        ("127.0.0.1", "127.0.0.1:7860", "null", False),
        ("0.0.0.0", "gpu.example:7860", "https://proxy.example", True),  # open to all
    ],
)
def test_other_pages_may_not_use_a_page_of_this_machine(host, asked, origin, own):
    headers = {"host": asked} | ({} if origin is None else {"origin": origin})
    assert is_own(headers, host) == own


@pytest.mark.parametrize("asked", ["gpu.example", "127.0.0.1:7860"])  # a proxy passes on either
@pytest.mark.parametrize(("origin", "own"), [("https://gpu.example", True), ("http://e.ex", False)])
def test_a_proxy_that_is_named_may_lead_to_the_page(asked, origin, own):
    headers = {"host": asked, "origin": origin}
    assert is_own(headers, "127.0.0.1", "https://gpu.example") == own
    assert not is_own(headers, "127.0.0.1")


def test_another_picture_forgets_what_was_found(answers, name, session):
    session.click(1, 1)
    answers_before = session.found
    session.open(None)
    assert (session.corner, session.found, view(session, 0.3).picture) == (None, {}, None)
    assert view(session, 0.3).text == EMPTY
    assert answers_before == {}
    with pytest.raises(UserError, match="drop one first"):
        answers.answer(session, name, "objects")


def test_a_file_that_is_no_picture_is_one_line_without_its_folder(session, tmp_path):
    (tmp_path / "broken.png").write_bytes(PICTURE.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"^cannot read image broken\.png") as error:
        session.open(tmp_path / "broken.png")
    assert str(tmp_path) not in str(error.value)
    assert session.image is None  # not the earlier one


def test_weights_offer_the_tasks_that_they_know(answers, name, tiny_weights, session):
    assert answers.tasks(name) == ["everything", "objects", "masks", "keypoints", "caption"]
    tiny = Answers([tiny_weights], CFG, "cpu")
    (other,) = tiny.files
    assert tiny.tasks(other) == ["objects"]
    assert "drawn scenes" in answers.notice(name) and not tiny.notice(other)
    with pytest.raises(UserError, match="does not know masks"):
        tiny.answer(session, other, "masks", ANY_CLASS)


def test_names_are_no_markup():
    assert _plain("<b>a</b> |x| [y](z) `c`\n$d$") == (r"\<b\>a\</b\> \|x\| \[y\]\(z\) \`c\` \$d\$")


# ---- in a browser --------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())


@pytest.mark.browser
@needs_browser
def test_upload_draw_and_read_the_answer(tmp_path):
    """And no request leaves this machine."""
    (tmp_path / "downloads").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)).save(
        tmp_path / "large.png"
    )
    (tmp_path / "broken.png").write_bytes(PICTURE.read_bytes()[:3000])
    with serve_page("--max-upload", "1", cwd=tmp_path) as address:
        browser = Browser(address, tmp_path / "downloads")
        try:
            use_the_page(browser, tmp_path)
        finally:
            browser.driver.save_screenshot(str(tmp_path / "page.png"))
            browser.close()
    assert "Traceback" not in (tmp_path / "page.log").read_text()


def use_the_page(browser: Browser, folder: Path) -> None:
    # Errors are messages.
    browser.find("#ask").click()
    assert "drop one first" in browser.message()
    browser.close_message()
    browser.upload(folder / "large.png")
    assert "maximum" in browser.message()
    browser.close_message()

    # The example, without a picture of one's own.
    assert browser.text() == EMPTY and not browser.shows("#hint")
    browser.open_example()
    browser.choose("caption")
    assert " s for caption" in browser.ask()
    browser.clear_picture()

    # Objects; the threshold hides the less certain ones.
    browser.open_picture(PICTURE)
    browser.choose("objects")
    text = browser.ask()
    assert "cat" in text and " s for objects" in text
    count = len(text.splitlines())
    assert len(browser.set_threshold(0.99).splitlines()) < count
    saved = json.loads(browser.download("#json").read_text())
    assert saved["score_threshold"] == 0.99 and saved["image"] == PICTURE.name

    # A box is drawn with two clicks; its mask is that of the cat.
    browser.set_threshold(0)
    browser.choose("masks")
    wait_for(lambda: browser.shows("#hint"))
    width, height = Image.open(PICTURE).size
    browser.click_at(CAT[0] / width, CAT[1] / height)
    browser.click_at(CAT[2] / width, CAT[3] / height)
    assert "1 object" in browser.ask()
    (row,) = json.loads(browser.download("#json").read_text())["masks"]
    assert row["label"] == "cat"
    np.testing.assert_allclose(row["box"], CAT, atol=4)  # a pixel of the screen
    picture = browser.download("#png")
    assert Image.open(picture).size == (width, height)

    # A file that is no picture, in the place of the other one.
    browser.clear_picture()
    browser.upload(folder / "broken.png")
    assert "cannot read" in browser.message()
    assert {browser.address.rstrip("/")} == browser.addresses()
