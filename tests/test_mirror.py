"""Mirrored pictures: which keypoints change places, and when no picture is mirrored."""

import json
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from config import CFG
from dataset.sample import Sample
from dataset.tasks import build_train_set
from dataset.transforms import ScaleJitterCropFlip
from tests.conftest import TINY
from train.build import build_source_of, build_streams, build_tokenizers, build_vocabulary
from utils.categories import COCO_PERSON, Skeleton
from utils.cli import snapshot
from utils.errors import UserError

PARTS = ["eye", "ear", "hind paw", "index1", "wing tip"]
SPELLINGS = {
    "left_eye": lambda side, part: f"{side}_{part}".replace(" ", "_"),
    "eye_left": lambda side, part: f"{part}_{side}".replace(" ", "_"),
    "Left-Eye": lambda side, part: f"{side}-{part}".title().replace(" ", "-"),
    "LEFT EYE": lambda side, part: f"{side} {part}".upper(),
    "leftEye": lambda side, part: side + part.title().replace(" ", ""),
    "lefteye": lambda side, part: side + part.replace(" ", ""),
    "L_eye": lambda side, part: f"{side[0].upper()}_{part}".replace(" ", "_"),
    "eye_l": lambda side, part: f"{part}_{side[0]}".replace(" ", "_"),
    "l_eye": lambda side, part: f"{side[0]}_{part}".replace(" ", "_"),
    "eye.L": lambda side, part: f"{part}.{side[0].upper()}",
    "LEye": lambda side, part: side[0].upper() + part.title().replace(" ", ""),
    "eyeL": lambda side, part: part.replace(" ", "") + side[0].upper(),
    "leye": lambda side, part: side[0] + part.replace(" ", ""),
    "eye (L)": lambda side, part: f"{part} ({side[0].upper()})",
    "LT eye": lambda side, part: f"{side[0].upper()}T {part}",
    "front left eye": lambda side, part: f"front {side} {part}",
    "左": lambda side, part: {"left": "左", "right": "右"}[side] + part,
    "眼-左": lambda side, part: f"{part}-{ {'left': '左', 'right': '右'}[side] }",
    "왼쪽": lambda side, part: {"left": "왼쪽", "right": "오른쪽"}[side] + " " + part,
    "izquierdo": lambda side, part: f"{part}_{ {'left': 'izquierdo', 'right': 'derecho'}[side] }",
    "gauche": lambda side, part: f"{part} { {'left': 'gauche', 'right': 'droite'}[side] }",
    "full width": lambda side, part: "".join(chr(ord(c) + 0xFEE0) for c in side[0]) + "_" + part,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_left_and_right_are_understood_in_usual_spellings(spelling, form):
    write = SPELLINGS[spelling]
    names = ["nose", "level", "rail"]
    for part in PARTS:
        names += [write("right", part), write("left", part)]
    names = [unicodedata.normalize(form, name) for name in names]
    pairs = Skeleton(tuple(names)).flip_pairs
    assert sorted(pairs) == [(i + 1, i) for i in range(3, len(names), 2)]


def test_names_without_sides_give_no_pairs():
    for names in (["nose", "tail", "1", "2"], ["lip", "ear"], ["L1", "L2"], ["top", "bottom"]):
        assert Skeleton(tuple(names)).flip_pairs == ()
    corners = Skeleton(("tl", "tr", "bottom left", "bottom right"))
    assert corners.flip_pairs == ((0, 1), (2, 3))
    assert len(COCO_PERSON.flip_pairs) == 8


def test_pairs_may_be_named():
    skeleton = Skeleton(("p0", "p1", "p2", "p3"))
    assert skeleton.named_pairs(["p2:p0", " p1 : p3 "]) == ((2, 0), (1, 3))
    assert skeleton.named_pairs(["p1:p1"]) == ((1, 1),)
    for bad in (["p0"], ["p0:p9"], ["p0:p1:p2"], [":"], [""]):
        with pytest.raises(UserError, match=r"keypoint_flip_pairs must be LEFT:RIGHT.* of p0, p1"):
            skeleton.named_pairs(bad)
    with pytest.raises(UserError, match="'p1' in two pairs"):
        skeleton.named_pairs(["p0:p1", "p1:p2"])


def pose():
    keypoints = np.float32([[[10, 10, 2], [20, 12, 2], [15, 20, 2]]])
    image = np.zeros((40, 30, 3), np.uint8)
    return Sample(
        image, 1, (40, 30), boxes=np.float32([[5, 5, 25, 30]]), labels=np.int64([1]),
        keypoints=keypoints,
    )  # fmt: skip


@pytest.mark.parametrize("of_sample", [None, (), ((0, 1),)])
@pytest.mark.parametrize("of_jitter", [None, ((0, 1),), ((2, 2),)])
def test_keypoints_are_mirrored_only_with_pairs_and_those_change_places(of_sample, of_jitter):
    jitter = ScaleJitterCropFlip((40, 30), 1, 1, flip_prob=1, flip_pairs=of_jitter)
    sample = pose()
    sample.flip_pairs = of_sample
    moved = jitter(sample, np.random.default_rng(0))
    pairs = of_sample if of_jitter is None else of_jitter
    assert moved.geometry.flip == bool(pairs)
    expected = sample.keypoints.copy()
    if pairs:
        expected[..., 0] = 30 - expected[..., 0]
        for left, right in pairs:
            expected[:, [left, right]] = expected[:, [right, left]]
    np.testing.assert_allclose(moved.keypoints, expected)


@pytest.fixture
def nameless(demo_set, tmp_path):
    """Settings of a set whose keypoints are called p0, p1, ..."""
    for name in ("train2017", "val2017"):
        (tmp_path / name).symlink_to(demo_set / name)
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        name = f"person_keypoints_{split}2017.json"
        content = json.loads((demo_set / "annotations" / name).read_text())
        for category in content["categories"]:
            names = category.get("keypoints") or []
            category["keypoints"] = [f"p{i}" for i in range(len(names))]
        (tmp_path / "annotations" / name).write_text(json.dumps(content))
    return [*TINY, f"coco_root={tmp_path}", "keypoint_sigmas=0.07", "flip_prob=1"]


@pytest.mark.parametrize(
    "more, notices, mirrored",
    [
        ([], 1, False),
        (["flip_prob=0"], 0, False),
        (["augment=false"], 0, False),
        (["keypoint_flip_pairs=p1:p2,p3:p4"], 0, True),
    ],
)
def test_training_says_when_it_does_not_mirror(nameless, capsys, more, notices, mirrored):
    cfg = snapshot(CFG, [*nameless, *more])
    sources = {"keypoint": build_source_of(cfg, "keypoint", train=True)}
    vocab = build_vocabulary(cfg)
    streams = build_streams(cfg, sources, build_tokenizers(cfg, ["keypoint"], vocab, sources))
    assert capsys.readouterr().err.count("are not mirrored") == notices
    train_set = streams["keypoint"].loader.dataset.dataset
    samples = [train_set.sample(0, i)[0] for i in range(4)]
    assert all(sample.geometry.flip is mirrored for sample in samples)


def test_pairs_that_are_none_are_refused_when_the_data_is_read(nameless):
    cfg = snapshot(CFG, [*nameless, "keypoint_flip_pairs=p1:nose"])
    with pytest.raises(UserError, match="keypoint_flip_pairs must be LEFT:RIGHT"):
        build_source_of(cfg, "keypoint", train=True)


# ---- resize_mode -----------------------------------------------------------------------------


class OneImage:
    """A source of one wide image."""

    def read(self, index, at_least=None):
        image = np.zeros((100, 400, 3), np.uint8)
        return Sample(
            image, 1, (100, 400), boxes=np.float32([[40, 10, 200, 50]]), labels=np.int64([1])
        )

    def __len__(self):
        return 1


@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
@pytest.mark.parametrize("augment", [True, False])
def test_training_stretches_where_inference_does(mode, augment):
    size = (96, 128)
    tokenizer = SimpleNamespace()
    shapes = set()
    for seed in range(8):
        train_set = build_train_set(
            "detection", OneImage(), tokenizer, size, seed=seed, augment=augment,
            resize_mode=mode, min_scale=0.5, max_scale=2.0,
        )  # fmt: skip
        sample = OneImage().read(0)
        for transform in train_set.transforms:
            sample = transform(sample, np.random.default_rng(seed))
        h, w = sample.geometry.resized
        shapes.add((h, w))
        wanted = 96 / 128 if mode == "stretch" else 100 / 400
        assert h / w == pytest.approx(wanted, rel=0.04)
        box = sample.geometry.boxes(np.float32([[40, 10, 200, 50]]))[0]
        assert (box[3] - box[1]) / (box[2] - box[0]) == pytest.approx(wanted, rel=0.04)
    assert (len(shapes) > 1) is augment


def test_stretched_jitter_at_scale_one_is_the_picture_of_inference():
    jitter = ScaleJitterCropFlip((96, 128), 1, 1, flip_prob=0, mode="stretch")
    sample = OneImage().read(0)
    geometry = jitter(sample, np.random.default_rng(0)).geometry
    assert geometry == type(geometry).letterbox((100, 400), (96, 128), "stretch")
