"""Drawings: right place, right colours, inside the picture, and files that are whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.files import atomic_path, write_json_atomic, write_text_atomic
from utils.visualize import (
    CLASS_COLORS,
    PALETTE,
    class_colors,
    contact_sheet,
    draw_detections,
    draw_keypoints,
    draw_masks,
    ink_on,
    save_image,
)

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


@pytest.fixture
def gray():
    return np.full((240, 320, 3), 120, np.uint8)


def changed(image, drawn):
    return (image != drawn).any(axis=2)


def test_colours_are_distinct_and_depend_on_the_name_alone():
    together = class_colors(VOC)
    colors = np.array(list(together.values()), int)
    distances = np.abs(colors[:, None] - colors[None]).sum(2) + 999 * np.eye(len(VOC), dtype=int)
    assert distances.min() > 40  # of the sum of the three channels
    assert together == {name: class_colors([name])[name] for name in VOC}
    assert class_colors(["cat", "猫"]) == {"cat": (178, 215, 109), "猫": (0, 79, 79)}
    many = [f"class {i}" for i in range(600)]
    assert set(class_colors(many).values()) == set(CLASS_COLORS)


def test_the_ink_of_a_plate_can_be_read():
    def luminance(color):
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for color in CLASS_COLORS:
        light, dark = sorted((luminance(color), luminance(ink_on(color))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, color


@pytest.mark.parametrize("side", [60, 300, 4000])
def test_lines_have_two_pixels_and_more_in_large_pictures(side):
    image = np.zeros((side, side, 3), np.uint8)
    box = [0.3 * side, 0.3 * side, 0.8 * side, 0.9 * side]
    inked = changed(image, draw_detections(image, [box], [""]))
    row = np.flatnonzero(inked[round(0.85 * side), : side // 2])
    assert len(row) == max(2, round(0.0048 * side))


def test_a_box_is_drawn_on_its_own_edge_pixels(gray):
    box = np.float32([[50, 80, 150, 200]])
    drawn = draw_detections(gray, box, ["cat"])
    color = class_colors(["cat"])["cat"]
    own = (drawn == color).all(axis=2)
    assert own[80:200, 50].all() and own[80:200, 149].all()  # x2 = 150 is the end of pixel 149
    assert own[199, 50:150].all() and not own[199:, 151:].any() and not own[200:].any()
    assert (drawn[110:190, 60:140] == 120).all()
    assert (gray == 120).all() and drawn.dtype == np.uint8 and drawn.shape == gray.shape


def test_plates_stay_inside_and_free_of_each_other(gray):
    corner = [[0, 0, 60, 40], [260, 0, 320, 30], [0, 210, 40, 240], [280, 200, 320, 240]]
    plain = np.zeros_like(gray)
    for box in corner:
        drawn = draw_detections(plain, [box], ["a long class name"], [0.5])
        frame = np.zeros(gray.shape[:2], bool)
        frame[box[1] : box[3], box[0] : box[2]] = True
        ink = ((drawn > 0).any(axis=2) & ~frame).sum()
        assert ink > 500  # the plate is wider than the box and shifted into the picture
    same = [[100, 100, 200, 180]]
    once = changed(plain, draw_detections(plain, same, ["kite"])).sum()
    twice = changed(plain, draw_detections(plain, same * 2, ["kite", "kite"])).sum()
    assert twice > once + 200


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 500, 3), (900, 20, 3), (1500, 2000, 3)])
def test_any_box_in_any_picture(shape):
    image = np.zeros(shape, np.uint8)
    boxes = [[-50, -50, 9999, 9999], [5, 5, 5, 5], [9, 9, 2, 2], [1e9, 1e9, 2e9, 2e9],
             [np.nan, 0, 4, np.inf]]  # fmt: skip
    names = ["a", "b", "c", "Großes Ding", "e" * 80]
    assert draw_detections(image, boxes, names, np.ones(5)).shape == shape


def test_nothing_to_draw_leaves_the_picture(gray):
    drawn = draw_detections(gray, np.zeros((0, 4)), [], [])
    drawn = draw_masks(drawn, np.zeros((0, 240, 320), bool), [])
    np.testing.assert_array_equal(draw_keypoints(drawn, np.zeros((0, 17, 3)), [(0, 1)]), gray)


def test_different_lengths_are_refused(gray):
    with pytest.raises(ValueError, match="1 boxes, 2 names"):
        draw_detections(gray, [[0, 0, 9, 9]], ["a", "b"])


def test_drawings_grow_with_the_picture():
    def ink(side):
        image = np.zeros((side, side, 3), np.uint8)
        box = [[side * 0.2, side * 0.3, side * 0.8, side * 0.9]]
        return changed(image, draw_detections(image, box, ["person"], [0.9])).mean()

    assert ink(1600) == pytest.approx(ink(800), rel=0.2)


def test_masks_tint_their_own_pixels_and_differ_within_a_class(gray):
    masks = np.zeros((2, 240, 320), bool)
    masks[0, 20:100, 20:100] = True
    masks[1, 120:200, 120:300] = True
    drawn = draw_masks(gray, masks, ["cat", "cat"])
    diff = changed(gray, drawn)
    assert diff[masks.any(axis=0)].all() and not diff[105:115].any()
    assert (drawn[60, 60] != drawn[160, 200]).any()
    expected = 0.55 * 120 + 0.45 * np.array(class_colors(["cat"])["cat"])
    np.testing.assert_allclose(drawn[60, 60], expected, atol=1)


def test_keypoints_and_limbs(gray):
    pose = np.float32([[[50, 50, 2], [150, 50, 1], [150, 150, 0], [1e7, -1e7, 2]]])
    diff = changed(gray, draw_keypoints(gray, pose, [(0, 1), (1, 2)]))
    assert diff[50, 50] and diff[50, 100] and diff[50, 150]
    assert not diff[70:].any()  # the third point is not labelled, nor is the limb to it
    drawn = draw_keypoints(gray, pose)
    assert (drawn[50, 50] == PALETTE[0]).all() and (drawn[50, 150] == 255).all()


def test_contact_sheet_holds_every_picture():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    sizes = [(100, 50), (30, 90), (1000, 500)]
    images = [np.full((*s, 3), c, np.uint8) for s, c in zip(sizes, colors, strict=True)]
    sheet = contact_sheet(images, columns=2, max_side=120)
    assert sheet.shape == (2 * 126 + 6, 2 * 96 + 6, 3)
    areas = [(sheet == c).all(axis=2).sum() for c in colors]
    assert areas == [100 * 50, 30 * 90, 120 * 60]
    assert contact_sheet(images[:1], columns=9).shape == (112, 62, 3)
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])


def test_saved_images_are_whole_and_plain(gray, tmp_path):
    for name in ("new/a.png", "new/a.jpg", "new/a.webp"):
        save_image(tmp_path / name, gray)
        with Image.open(tmp_path / name) as image:
            assert np.abs(np.asarray(image).astype(int) - gray).max() <= 2
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.jpg", "a.png", "a.webp"]
    (tmp_path / "plain").touch()
    assert (tmp_path / "new/a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_keeps_the_old_file(tmp_path):
    write_text_atomic(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_json_is_standard(tmp_path):
    values = {"a": np.float32(0.5), "b": np.arange(3), "c": Path("x"), "d": [1, 2]}
    write_json_atomic(tmp_path / "a.json", values)
    expected = {"a": 0.5, "b": [0, 1, 2], "c": "x", "d": [1, 2]}
    assert json.loads((tmp_path / "a.json").read_text()) == expected
    holes = {"a": float("nan"), "b": [np.float64("inf"), {"c": np.array([np.nan, 1])}]}
    write_json_atomic(tmp_path / "a.json", holes)
    expected = {"a": None, "b": [None, {"c": [None, 1.0]}]}
    assert json.loads((tmp_path / "a.json").read_text()) == expected
    with pytest.raises(TypeError, match="cannot write set as JSON"):
        write_json_atomic(tmp_path / "a.json", {"a": {1}})


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file.a.txt: .*; choose another place"):
        write_text_atomic(tmp_path / "file" / "a.txt", "x")
