import dataclasses

import numpy as np
import pytest
import torch

from dataset.batch import letterbox_batch, pad_batch
from dataset.geometry import Geometry, clip_polygon, crop_to_box
from dataset.sample import Sample


def random_geometry(rng: np.random.Generator) -> Geometry:
    orig = tuple(int(side) for side in rng.integers(40, 900, 2))
    size = tuple(int(side) for side in rng.integers(32, 640, 2))
    y0, x0 = (int(rng.integers(0, side // 2)) for side in orig)
    crop = (y0, x0, int(rng.integers(8, orig[0] - y0)), int(rng.integers(8, orig[1] - x0)))
    crop = crop if rng.random() < 0.5 else None
    if rng.random() < 0.3:
        return Geometry.letterbox(orig, size, rng.choice(["letterbox", "stretch"]), crop)
    scale, flip = rng.uniform(0.3, 2), rng.random() < 0.5
    return Geometry.jitter(orig, size, scale, tuple(rng.random(2)), flip=flip, crop=crop)


def corner_xyxy(yxyx: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Official normalised yxyx -> xyxy pixels."""
    h, w = size
    return yxyx[..., [1, 0, 3, 2]] * np.float32([w, h, w, h])


def swap_xy(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Official rows of normalised y x y x ... -> (..., M, 2) x y pixels."""
    points = points.reshape(*points.shape[:-1], -1, 2)[..., ::-1]
    return points * np.float32(size[::-1])


@pytest.mark.parametrize("dtype, limit", [(np.float64, 1e-9), (np.float32, 1e-3)])
def test_inverse_is_exact(dtype, limit):
    rng = np.random.default_rng(0)
    for _ in range(300):
        geometry = random_geometry(rng)
        h, w = geometry.orig_size
        points = (rng.random((20, 2)) * [w, h]).astype(dtype)
        back = geometry.inverse_points(geometry.points(points))
        assert back.dtype == dtype
        np.testing.assert_allclose(back, points, atol=limit, rtol=0)
        corners = np.sort(rng.random((20, 2, 2)) * [w, h], axis=1).reshape(20, 4).astype(dtype)
        moved = geometry.boxes(corners)
        assert (moved[:, 2:] >= moved[:, :2]).all()
        np.testing.assert_allclose(geometry.inverse_boxes(moved), corners, atol=limit, rtol=0)


def test_empty_boxes_stay_empty():
    geometry = Geometry.letterbox((480, 640), (64, 64))
    empty = np.zeros((0, 4), np.float32)
    assert geometry.boxes(empty).shape == geometry.inverse_boxes(empty).shape == (0, 4)


def test_the_window_corners_are_the_picture_corners():
    rng = np.random.default_rng(1)
    for _ in range(100):
        geometry = random_geometry(rng)
        h, w = geometry.unpadded
        assert 1 <= h <= geometry.size[0] and 1 <= w <= geometry.size[1]
        x0, y0, x1, y1 = geometry.inverse_boxes(np.array([0.0, 0, w, h]))
        top, left, height, width = geometry.crop
        assert left - 1e-9 <= x0 < x1 <= left + width + 1e-9
        assert top - 1e-9 <= y0 < y1 <= top + height + 1e-9


def test_sides_are_rounded_in_letterbox_and_truncated_in_jitter():
    assert Geometry.letterbox((333, 500), (96, 96)).unpadded == (64, 96)  # 63.9
    assert Geometry.letterbox((40, 60), (96, 96)).unpadded == (64, 96)  # small ones are enlarged
    assert Geometry.jitter((333, 500), (96, 96), 1.0).resized == (63, 96)


def test_stretch_fills_the_input():
    geometry = Geometry.letterbox((100, 300), (64, 96), "stretch")
    assert geometry.unpadded == (64, 96)
    np.testing.assert_allclose(geometry.points(np.array([300.0, 100.0])), [96, 64])
    with pytest.raises(ValueError, match="mode must be"):
        Geometry.letterbox((100, 300), (64, 96), "squash")


def test_elongated_images_keep_a_pixel():
    for geometry in (
        Geometry.letterbox((1, 3000), (64, 64)),
        Geometry.jitter((3000, 1), (64, 64), 0.3),
    ):
        assert min(geometry.unpadded) == 1
        image = torch.zeros(3, *geometry.orig_size, dtype=torch.uint8)
        assert geometry.resize_tensor(image).shape[1:] == geometry.unpadded


def test_two_offsets_are_independent():
    geometry = Geometry.jitter((100, 100), (64, 64), 2.0, (1.0, 0.0))
    assert geometry.offset == (64, 0) and geometry.unpadded == (64, 64)


def drawn_sample(rng: np.random.Generator) -> Sample:
    """A dark image with one white block, and the annotation of that block in every form."""
    image = np.zeros((200, 300, 3), np.uint8)
    x, y = int(rng.integers(0, 240)), int(rng.integers(0, 140))
    image[y : y + 40, x : x + 50] = 255
    box = np.float32([[x, y, x + 50, y + 40]])
    outline = box[0][[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)
    keypoints = np.concatenate([outline, np.full((4, 1), 2, np.float32)], 1)[None]
    return Sample(
        image,
        7,
        (200, 300),
        boxes=box,
        labels=np.array([1]),
        keypoints=keypoints,
        flip_pairs=((0, 1), (2, 3)),
        polygons=[[outline]],
        captions=["a block"],
    )


def test_everything_moves_with_the_pixels():
    rng = np.random.default_rng(2)
    seen = 0
    for _ in range(200):
        sample = drawn_sample(rng)
        scale, flip = rng.uniform(0.4, 2), rng.random() < 0.5
        geometry = Geometry.jitter((200, 300), (160, 128), scale, tuple(rng.random(2)), flip=flip)
        moved = sample.moved(geometry)
        (h, w), box = geometry.unpadded, moved.boxes[0]
        assert moved.image.shape == (h, w, 3) and moved.geometry is geometry
        bright = np.argwhere(moved.image[..., 0] > 127)
        if min(box[2] - box[0], box[3] - box[1]) < 3:
            continue
        seen += 1
        pixels = [*bright.min(0)[::-1], *(bright.max(0)[::-1] + 1)]
        np.testing.assert_allclose(box, pixels, atol=1.01)
        outline = moved.polygons[0][0]
        np.testing.assert_allclose([*outline.min(0), *outline.max(0)], box, atol=1e-3)
        left = geometry.boxes(sample.boxes)[0, 0]
        for (x, y, v), right in zip(moved.keypoints[0], (0, 1, 1, 0), strict=True):
            if v == 0:
                assert (x, y) == (0, 0)
                continue
            # the left corners are still the left ones: the mirror swapped their names
            assert 0 < x < w and 0 < y < h
            assert abs(x - (box[2] if right else left)) < 1e-2
        assert moved.captions == ["a block"] and (moved.labels == [1]).all()
    assert seen > 100


def test_flip_without_pairs_is_refused():
    sample = dataclasses.replace(drawn_sample(np.random.default_rng(0)), flip_pairs=None)
    with pytest.raises(ValueError, match="flip_pairs"):
        sample.moved(Geometry.jitter((200, 300), (64, 64), 1.0, flip=True))


def test_no_field_is_dropped_in_silence():
    @dataclasses.dataclass
    class DepthSample(Sample):
        depth: np.ndarray | None = None

    sample = DepthSample(np.zeros((8, 8, 3), np.uint8), 1, (8, 8))
    with pytest.raises(TypeError, match="depth"):
        sample.moved(Geometry.letterbox((8, 8), (4, 4)))


def test_a_sample_is_moved_once_and_by_a_geometry_of_its_image():
    sample = drawn_sample(np.random.default_rng(0))
    geometry = Geometry.letterbox((200, 300), (64, 64))
    with pytest.raises(ValueError, match="moved already"):
        sample.moved(geometry).moved(geometry)
    with pytest.raises(ValueError, match=r"\(100, 300\)"):
        sample.moved(Geometry.letterbox((100, 300), (64, 64)))


def test_move_image_and_resize_tensor_agree():
    rng = np.random.default_rng(3)
    image = np.kron(rng.integers(0, 255, (25, 30, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    sample = Sample(image, 1, image.shape[:2])
    for flip in (False, True):
        geometry = Geometry.jitter(image.shape[:2], (64, 80), 1.7, (0.2, 0.7), flip=flip)
        array = sample.moved(geometry, antialias=True).image / 255
        tensor = geometry.resize_tensor(torch.from_numpy(image).permute(2, 0, 1))
        assert np.abs(tensor.permute(1, 2, 0).numpy() - array).max() < 5e-3


def polygon_area(polygon: np.ndarray) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def test_clipped_polygons_have_the_area_inside():
    rng = np.random.default_rng(4)
    grid = np.stack(np.meshgrid(np.arange(0.05, 10, 0.1), np.arange(0.05, 8, 0.1)), -1)
    for _ in range(100):
        triangle = rng.uniform(-6, 14, (3, 2))
        edge = np.roll(triangle, -1, 0) - triangle
        offset = grid[:, :, None] - triangle
        side = edge[:, 0] * offset[..., 1] - edge[:, 1] * offset[..., 0]
        inside = (side >= 0).all(-1) | (side <= 0).all(-1)
        clipped = clip_polygon(triangle, (8, 10))
        area = polygon_area(clipped) if len(clipped) else 0.0
        assert abs(area - inside.sum() * 0.01) < 0.35
        assert (clipped >= 0).all() and (clipped <= [10, 8]).all()


def test_padding_is_written_around_the_picture():
    images = torch.full((2, 3, 4, 6), 255, dtype=torch.uint8)
    out = pad_batch(images, torch.tensor([[4, 3], [2, 6]]))
    assert out.dtype == torch.float32
    assert (out[0, :, :, :3] == 1).all() and (out[0, :, :, 3:] == 0.3).all()
    assert (out[1, :, :2] == 1).all() and (out[1, :, 2:] == 0.3).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_padding_a_batch_leaves_its_images_as_they_are(dtype, layout):
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).to(dtype, memory_format=layout)
    before = images.clone()
    pad_batch(images, torch.tensor([[4, 3], [2, 6]]))
    assert torch.equal(images, before)


@pytest.mark.data
def test_official_letterbox_sizes(reference):
    table = np.load(reference / "images" / "resize_sizes.npz")
    for key in table.files:
        if key == "in_hw":
            continue
        size = tuple(int(side) for side in key.rsplit("_", 1)[1].split("x"))
        got = [Geometry.letterbox(tuple(map(int, hw)), size).unpadded for hw in table["in_hw"]]
        np.testing.assert_array_equal(got, table[key])


@pytest.mark.data
def test_official_evaluation_images_and_boxes(reference):
    z = np.load(reference / "images" / "detection_eval.npz")
    images = [z[f"im{i}/image_uint8"] for i in range(3)]
    geometries = [Geometry.letterbox(image.shape[:2], (96, 96)) for image in images]
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    batch = letterbox_batch(tensors, geometries)
    for i, (image, geometry) in enumerate(zip(images, geometries, strict=True)):
        out = z[f"im{i}/out_image"].transpose(2, 0, 1)
        np.testing.assert_allclose(batch[i].numpy(), out, atol=1e-5, rtol=0)
        assert geometry.unpadded == tuple(z[f"im{i}/out_unpadded_image_size"])
        boxes = geometry.boxes(corner_xyxy(z[f"im{i}/bbox_in"], image.shape[:2]))
        wanted = corner_xyxy(z[f"im{i}/out_bbox"][: len(boxes)], (96, 96))
        np.testing.assert_allclose(boxes, wanted, atol=1e-3)
        back = geometry.inverse_boxes(wanted)[:, [1, 0, 3, 2]]
        np.testing.assert_allclose(back, z[f"im{i}/bbox_mapped_back_abs"][: len(back)], atol=1e-3)
        # training without augmentation sees the same picture, up to uint8 rounding
        h, w = geometry.unpadded
        array = geometry.move_image(image, antialias=True)
        assert np.abs(array.transpose(2, 0, 1) / 255 - out[:, :h, :w]).max() < 5e-3


@pytest.mark.data
def test_official_evaluation_outlines_in_an_input_that_is_not_square(reference):
    z = np.load(reference / "images" / "segmentation_eval.npz")
    size, target = z["image_uint8"].shape[:2], z["max3/out_image"].shape[:2]
    geometry = Geometry.letterbox(size, target)
    image = torch.from_numpy(z["image_uint8"]).permute(2, 0, 1)
    got = letterbox_batch([image], [geometry])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, z["max3/out_image"], atol=1e-5, rtol=0)
    assert geometry.unpadded == tuple(z["max3/out_unpadded_image_size"])
    for most in ("max3", "max7"):
        there = np.flatnonzero(z[f"{most}/out_label"])
        rows = [int(np.flatnonzero(z["area_in"] == a)[0]) for a in z[f"{most}/out_area"][there]]
        boxes = geometry.boxes(corner_xyxy(z["bbox_in"][rows], size))
        wanted = corner_xyxy(z[f"{most}/out_bbox"][there], target)
        np.testing.assert_allclose(boxes, wanted, atol=1e-3)
        for row, official in zip(rows, z[f"{most}/out_polygon"][there], strict=True):
            drawn = official > -1  # -1 is padding, -2 the gap between parts
            points = geometry.points(swap_xy(z["polygon_in"][row], size).astype(np.float32))
            wanted = swap_xy(official, target)
            shown = drawn.reshape(-1, 2).all(1)
            np.testing.assert_allclose(points[shown], wanted[shown], atol=1e-3)


@pytest.mark.data
def test_official_points_of_a_crop_return_to_their_image(reference):
    z = np.load(reference / "images" / "adjust_for_crop_offset.npz")
    for row, (y, x) in enumerate(z["crop_offset"].tolist()):
        points, wanted = (z[k][row].reshape(-1, 2)[:, ::-1] for k in ("points", "out"))
        seen = (z["points"][row].reshape(-1, 2) != -3).all(1)
        geometry = Geometry.letterbox((900, 900), (300, 300), crop=(y, x, 300, 300))
        np.testing.assert_allclose(geometry.inverse_points(points[seen]), wanted[seen], atol=1e-3)


@pytest.mark.data
def test_official_training_geometry(reference):
    z = np.load(reference / "images" / "train_geometry.npz")
    for i in range(3):
        get = {key.split("/")[1]: z[key] for key in z.files if key.startswith(f"im{i}/")}
        size, draw = get["image_uint8"].shape[:2], float(get["crop_draw"])
        flip = get["flip_draw"] > 0.5
        pairs = tuple((k, k + 1) for k in range(1, 17, 2))
        xy = swap_xy(get["keypoints_in"], size)
        sample = Sample(
            get["image_uint8"],
            i,
            size,
            boxes=corner_xyxy(get["bbox_in"], size),
            labels=get["label_in"],
            keypoints=np.concatenate([xy, np.full((*xy.shape[:2], 1), 2)], -1).astype(np.float32),
            flip_pairs=pairs,
            polygons=[[polygon] for polygon in swap_xy(get["polygon_in"], size)],
        )
        geometry = Geometry.jitter(
            size, (96, 96), get["scale_jitter_draw"], (draw, draw), flip=flip
        )
        assert geometry.resized == get["scale_jitter_image"].shape[:2]
        assert geometry.offset == tuple(get["crop_offset"])
        assert geometry.unpadded == tuple(get["pad_unpadded_image_size"])
        moved = sample.moved(geometry)
        wanted = corner_xyxy(get["flip_bbox"], geometry.unpadded)
        np.testing.assert_allclose(moved.boxes, wanted, atol=1e-3)
        points = swap_xy(get["flip_keypoints"], geometry.unpadded)
        unseen = get["flip_keypoints"].reshape(points.shape)[..., 0] < -1
        np.testing.assert_array_equal(moved.keypoints[..., 2] == 0, unseen)
        np.testing.assert_allclose(moved.keypoints[~unseen][:, :2], points[~unseen], atol=1e-3)
        # the official code moves points to the border one by one: equal where none is outside
        for parts, polygon in zip(moved.polygons, get["flip_polygon"], strict=True):
            if ((polygon > 0) & (polygon < 1)).all():
                official = swap_xy(polygon, geometry.unpadded)
                np.testing.assert_allclose(parts[0], official, atol=1e-3)
        h, w = geometry.unpadded
        official = get["pad_image"][:h, :w]
        assert np.abs(moved.image / 255 - official).max() < 6e-3  # uint8 rounding


@pytest.mark.data
def test_official_crop_to_box(reference):
    z = np.load(reference / "images" / "keypoint_crop.npz")
    size = z["image_uint8"].shape[:2]
    order = np.argsort(-z["scores_in"], kind="stable")
    for pad_scale in (0.5, 0.0):
        for j, row in enumerate(order):
            box, key = corner_xyxy(z["bbox_in"][row], size), f"pad{pad_scale}/inst{j}"
            crop = crop_to_box(box, size, pad_scale)
            assert crop[:2] == tuple(z[f"{key}/crop_offset"])
            assert crop[2:] == tuple(z[f"{key}/crop_shape"][:2])
            wanted = z[f"{key}/bbox"][0]
            boxes = Geometry.letterbox(size, crop[2:], crop=crop).boxes(box)
            np.testing.assert_allclose(boxes, corner_xyxy(wanted, crop[2:]), atol=1e-3)
            if f"{key}/eval_out_image" in z.files:
                geometry = Geometry.letterbox(size, (64, 64), crop=crop)
                image = torch.from_numpy(z["image_uint8"]).permute(2, 0, 1)
                got = letterbox_batch([image], [geometry])[0].permute(1, 2, 0).numpy()
                np.testing.assert_allclose(got, z[f"{key}/eval_out_image"], atol=1e-5)
                box = corner_xyxy(z[f"{key}/eval_out_bbox"][0], (64, 64))
                np.testing.assert_allclose(
                    geometry.boxes(corner_xyxy(z["bbox_in"][row], size)), box, atol=1e-3
                )
