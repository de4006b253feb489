"""From a fresh clone to the page in the browser: two visitors, all tasks, boxes, downloads."""

import json

import pytest
from PIL import Image

from tests.browser import Browser, serve_page, what_is_missing
from tests.journeys.clone import Clone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing()),
]
PERSON = (365, 200, 435, 335)  # xyxy pixels of images/demo.jpg


def test_two_visitors_use_the_page(fresh_clone: Clone, scratch):
    picture = fresh_clone.root / "images" / "demo.jpg"
    width, height = Image.open(picture).size
    for name in ("one", "two"):
        (scratch / name).mkdir()
    with serve_page(cwd=scratch, root=fresh_clone.root) as address:
        one, two = (Browser(address, scratch / name) for name in ("one", "two"))
        try:
            # Everything: a caption, objects, masks and poses in one picture.
            one.open_picture(picture)
            text = one.ask()
            assert " s for everything" in text
            saved = json.loads(one.download("#json").read_text())
            assert text.splitlines()[0] == saved["captions"][0]["caption"]
            assert {"captions", "objects", "masks", "keypoints"} < set(saved)
            assert Image.open(one.download("#png")).size == (width, height)

            # Keypoints of a person in a drawn box.
            one.choose("keypoints")
            one.click_at(PERSON[0] / width, PERSON[1] / height)
            one.click_at(PERSON[2] / width, PERSON[3] / height)
            assert "1 object" in one.ask()
            (row,) = json.loads(one.download("#json").read_text())["keypoints"]
            assert row["label"] == "person"
            points = [point for point in row["keypoints"].values() if point]
            inside = [PERSON[0] - 20 < p["x"] < PERSON[2] + 20 for p in points]
            assert len(points) > 5 and sum(inside) > 0.8 * len(points)

            # The other visitor sees nothing of it.
            assert "answer appears here" in two.text()
            assert not two.driver.find_elements("css selector", "#picture img")
            two.open_picture(picture)
            two.choose("caption")
            assert "park" in two.ask()
            assert "1 object" in one.text()
            assert one.addresses() | two.addresses() == {address.rstrip("/")}
        finally:
            one.close()
            two.close()
