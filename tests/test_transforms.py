import subprocess
import sys
from pathlib import Path

import albumentations
import numpy as np
import pytest

from dataset.sample import Sample
from dataset.transforms import (
    FilterObjects,
    Letterbox,
    PixelTransform,
    ScaleJitterCropFlip,
    color_jitter,
    evaluation,
    train_transforms,
)
from utils.errors import UserError


def make_sample(height: int = 120, width: int = 160) -> Sample:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    boxes = np.float32([[10, 20, 60, 90], [100, 5, 155, 40], [0, 0, 20, 20]])
    return Sample(image, 3, (height, width), boxes=boxes, labels=np.array([1, 2, 3]))


def run(transforms, sample, seed=0):
    rng = np.random.default_rng(seed)
    for transform in transforms:
        sample = transform(sample, rng)
    return sample


def equal(a: Sample, b: Sample) -> bool:
    return (
        a.geometry == b.geometry
        and np.array_equal(a.image, b.image)
        and np.array_equal(a.boxes, b.boxes)
    )


def test_the_same_rng_gives_the_same_sample_and_another_does_not():
    transforms = train_transforms(ScaleJitterCropFlip((96, 96)), color_strength=1.0)
    sample = make_sample()
    first = run(transforms, sample, 1)
    run(transforms, sample, 5)  # what was drawn before does not matter
    assert equal(first, run(transforms, sample, 1))
    assert not equal(first, run(transforms, sample, 2))


def test_draws_cover_their_ranges_and_the_offsets_are_independent():
    jitter, rng = ScaleJitterCropFlip((64, 64), 0.3, 2.0), np.random.default_rng(0)
    sample = make_sample(64, 64)
    drawn = [jitter(sample, rng).geometry for _ in range(1500)]
    sides = np.array([geometry.resized[0] for geometry in drawn]) / 64
    assert 0.28 <= sides.min() < 0.33 and 1.95 < sides.max() <= 2.0
    assert abs(sides.mean() - 1.14) < 0.03  # (0.3 + 2) / 2 and truncation
    assert abs(np.mean([geometry.flip for geometry in drawn]) - 0.5) < 0.05
    spare = [(g.offset, g.resized[0] - 64) for g in drawn if g.resized[0] > 80]
    shares = np.array([np.divide(offset, extra) for offset, extra in spare])
    assert abs(np.corrcoef(shares.T)[0, 1]) < 0.1
    assert shares.min() < 0.02 and shares.max() > 0.95


def test_diagonal_windows_take_one_draw_for_both_offsets_and_are_a_choice():
    sample = make_sample(64, 64)
    options = [{"diagonal": True}, {"diagonal": False}, {}]
    offsets = []
    for option in options:
        rng, transform = np.random.default_rng(0), ScaleJitterCropFlip((64, 64), **option)
        offsets.append([transform(sample, rng).geometry.offset for _ in range(100)])
    assert all(y == x for y, x in offsets[0]) and len(set(offsets[0])) > 20
    assert any(y != x for y, x in offsets[1]) and offsets[1] == offsets[2]
    assert [y for y, _ in offsets[0]] == [y for y, _ in offsets[1]]


def test_filter_keeps_every_field_aligned():
    sample = make_sample()
    sample.boxes[1, 2] = sample.boxes[1, 0]  # no width left
    sample.keypoints = np.arange(9, dtype=np.float32).reshape(3, 1, 3)
    sample.polygons = [[np.full((3, 2), i, np.float32)] for i in range(3)]
    kept = FilterObjects()(sample, np.random.default_rng(0))
    assert kept.labels.tolist() == [1, 3] and len(kept.boxes) == 2
    assert kept.keypoints[:, 0, 0].tolist() == [0, 6]
    assert [parts[0][0, 0] for parts in kept.polygons] == [0, 2]


def test_training_boxes_always_have_an_area_inside_the_picture():
    transforms = train_transforms(ScaleJitterCropFlip((64, 80)))
    for seed in range(100):
        sample = run(transforms, make_sample(), seed)
        h, w = sample.geometry.unpadded
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert (sample.boxes >= 0).all() and (sample.boxes <= [w, h, w, h]).all()
        assert sample.boxes.dtype == np.float32 and sample.image.dtype == np.uint8


def test_evaluation_preset_is_the_whole_picture():
    sample = run(evaluation((64, 64)), make_sample())
    assert sample.geometry.unpadded == (48, 64)
    assert run([Letterbox((64, 64), "stretch")], make_sample()).image.shape == (64, 64, 3)


def test_pixel_transforms_leave_coordinates_alone():
    sample = make_sample()
    jitter = color_jitter(1.0)
    results = [run([jitter], sample, seed) for seed in range(60)]
    changed = [not np.array_equal(out.image, sample.image) for out in results]
    assert 0.6 < np.mean(changed) < 0.95  # it is applied to four of five
    out = results[0]
    assert out.image.shape == sample.image.shape and out.image.dtype == np.uint8
    assert out.boxes is sample.boxes and out.geometry is None
    assert not train_transforms(ScaleJitterCropFlip((64, 64)), color_strength=0.0)[2:]


def test_nested_user_transforms_are_deterministic_per_sample():
    alb = albumentations
    nested = alb.Compose(
        [
            alb.OneOf([alb.GaussNoise(p=1), alb.GaussianBlur(p=1), alb.ToGray(p=1)], p=1),
            alb.SomeOf([alb.RandomBrightnessContrast(p=1), alb.NoOp()], n=1),
        ]
    )
    transforms = train_transforms(ScaleJitterCropFlip((64, 64)), pixel_transforms=[nested])
    samples = [run(transforms, make_sample(), seed) for seed in (0, 1, 2, 0, 1, 2)]
    assert all(equal(samples[i], samples[i + 3]) for i in range(3))
    assert not np.array_equal(samples[0].image, samples[1].image)


@pytest.mark.parametrize(
    "name", ["HorizontalFlip", "RandomCrop", "Affine", "Resize", "GridDistortion", "Lambda"]
)
def test_spatial_transforms_are_refused(name):
    sizes = {"RandomCrop": (8, 8), "Resize": (8, 8)}
    transform = getattr(albumentations, name)(*sizes.get(name, ()))
    with pytest.raises(UserError, match=f"{name} may move pixels"):
        PixelTransform(albumentations.Compose([albumentations.OneOf([transform])]))


def test_a_transform_that_changes_the_type_is_refused():
    with pytest.raises(UserError, match="must keep a uint8 image"):
        run([PixelTransform(albumentations.Normalize())], make_sample())


def test_albumentations_is_not_imported_without_need():
    code = (
        "import sys; from dataset.transforms import ScaleJitterCropFlip, train_transforms;"
        "train_transforms(ScaleJitterCropFlip((64, 64)));"
        "sys.exit('albumentations' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
