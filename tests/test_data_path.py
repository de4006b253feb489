"""The fast ways of the data path and of the training step give what the plain ways give."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.batch import TrainItem, collate, pad_batch, trim
from dataset.geometry import Geometry
from dataset.loader import build_train_loader
from dataset.sample import Sample, read_annotated_image
from dataset.tasks import TASKS, build_source, build_tokenizer, build_train_set
from models import ModelConfig, build_model
from tokenizer.base import TokenSequence
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.vocabulary import Vocabulary
from train.loss import LossType, batch_loss
from utils.errors import UserError
from utils.images import load_image, read_image, reduction

SIZE = (149, 203)  # no multiple of 2
TURNED = (160, 208)  # of 8: a turned picture is reduced where blocks leave no rest


def picture(size: tuple[int, int]) -> np.ndarray:
    """Smooth, without symmetry: shows where a pixel came from."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    return np.stack([240 * x, 240 * y, 120 * (x + y)], 2).astype(np.uint8)


def jpeg(path: Path, size=SIZE, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(size)).save(path, quality=98, subsampling=0, exif=exif)
    return path


def sample_of(path: Path, at_least: tuple[int, int] | None = None) -> Sample:
    image, size = read_annotated_image(path, (0, 0), "", at_least)
    boxes = np.float32([[20, 30, 120, 110], [0, 0, *size[::-1]]])
    return Sample(image, 1, size, boxes=boxes, labels=np.array([1, 2]))


FILES = [
    ("RGB", {"quality": 80}),
    ("RGB", {"progressive": True, "dpi": (72, 72), "comment": "a ball"}),
    ("RGB", {"icc_profile": b"p" * 70_000, "restart_marker_rows": 1}),
    ("L", {"optimize": True}),
    ("CMYK", {}),
    ("RGB", {"exif": Image.Exif()}),
    ("RGB", {"xmp": b"<x/>"}),
]


@pytest.mark.parametrize(("mode", "options"), FILES)
def test_the_fast_decoder_gives_the_pixels_of_pillow(tmp_path, mode, options):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture(SIZE)).convert(mode).save(path, **options)
    expected = np.asarray(Image.open(path).convert("RGB"))
    for image in (load_image(path), read_image(path)[0], sample_of(path).image):
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_between_frame_and_scan_turns_the_picture(tmp_path, orientation):
    turned = jpeg(tmp_path / "b.jpg", SIZE, orientation).read_bytes()
    start = turned.index(b"\xff\xe1")
    exif = turned[start : start + 2 + int.from_bytes(turned[start + 2 : start + 4], "big")]
    Image.fromarray(picture(SIZE)).save(tmp_path / "a.jpg", quality=98, subsampling=0)
    plain = (tmp_path / "a.jpg").read_bytes()
    scan = plain.index(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(plain[:scan] + exif + plain[scan:])
    image, size = read_image(tmp_path / "a.jpg")
    assert size == image.shape[:2] == (SIZE if orientation == 1 else SIZE[::-1])
    np.testing.assert_array_equal(image, load_image(tmp_path / "b.jpg"))


@pytest.mark.parametrize("name", ["a\0.jpg", "a\ud800.jpg", "a" * 300 + ".jpg", "no.jpg"])
def test_a_name_that_no_file_has_is_a_missing_image(tmp_path, name):
    with pytest.raises(UserError, match="is missing; look for it"):
        read_annotated_image(tmp_path / name, (0, 0), "look for it")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_whole_and_reduced(tmp_path, orientation):
    path = jpeg(tmp_path / "a.jpg", TURNED, orientation)
    image, size = read_image(path)
    assert size == image.shape[:2]
    small, same_size = read_image(path, at_least=tuple(side // 2 - 1 for side in size))
    assert same_size == size and small.shape == (size[0] // 2, size[1] // 2, 3)
    means = image.reshape(size[0] // 2, 2, size[1] // 2, 2, 3).mean((1, 3))
    assert np.abs(small - means).max() <= 2
    stored, stored_size = read_image(path, exif=False)
    assert stored_size == TURNED and stored.shape[:2] == TURNED


def test_a_reduction_leaves_the_pixels_that_are_needed():
    needed = [(99, n) for n in (74, 75, 299, 300, 900)]
    assert [reduction((800, 600), size, exact=False) for size in needed] == [8, 4, 2, 1, 1]
    assert reduction((792, 600), (99, 74), exact=False) == 4  # not just as many
    assert reduction((804, 604), (99, 74), exact=False) == 8
    assert reduction((804, 604), (99, 74), exact=True) == 4


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("orientation", "size"), [(1, SIZE), (6, TURNED), (6, SIZE)])
@pytest.mark.parametrize("side", [18, 35, 70, 120])
def test_reduced_decoding_moves_nothing(tmp_path, antialias, orientation, size, side):
    """Same boxes; pixels of a smooth picture within 2 of 255 or a third of a pixel's shift."""
    path = jpeg(tmp_path / "a.jpg", size, orientation)
    early = sample_of(path)
    geometry = Geometry.jitter(early.orig_size, (64, 64), side / 64, (0.4, 0.7), flip=True)
    reduced = sample_of(path, geometry.resized)
    can_be_reduced = orientation == 1 or size == TURNED
    assert (reduced.image.size < early.image.size) == (side < 100 and can_be_reduced)
    moved, expected = (s.moved(geometry, antialias=antialias) for s in (reduced, early))
    np.testing.assert_array_equal(moved.boxes, expected.boxes)
    assert moved.image.shape == expected.image.shape == (*geometry.unpadded, 3)
    pixel = 240 / geometry.resized[1]  # what a neighbour differs by
    assert np.abs(moved.image.astype(int) - expected.image).max() <= max(2, pixel / 3)


@pytest.mark.parametrize("side", [30, 64, 149, 300])
def test_a_mirror_shows_the_same_pixels(tmp_path, side):
    sample = sample_of(jpeg(tmp_path / "a.jpg"))
    plain, mirrored = (
        sample.moved(Geometry.jitter(SIZE, (100, 140), side / 100, (0.4, 0.7), flip=flip)).image
        for flip in (False, True)
    )
    np.testing.assert_array_equal(plain, mirrored[:, ::-1])


def test_a_part_needs_all_pixels(tmp_path):
    sample = sample_of(jpeg(tmp_path / "a.jpg"), (16, 16))
    assert sample.image.shape[:2] != SIZE
    with pytest.raises(ValueError, match="image must be .* for this Geometry"):
        sample.moved(Geometry.jitter(SIZE, (16, 16), 1, crop=(11, 7, 99, 101)))


def test_a_photograph_is_decoded_as_large_as_the_augmentation_can_show_it(demo_set, tmp_path):
    """At one size for all draws; whole, where a crop may show a part of it."""
    root = shutil.copytree(demo_set, tmp_path / "set")
    source = build_source("detection", "coco", root, "train")
    path, size = source.image_path(0), source[0].orig_size
    large = Image.open(path).resize((16 * size[1], 16 * size[0]))
    content = json.loads(source.annotation_file.read_text())
    row = next(row for row in content["images"] if row["id"] == source.image_ids[0])
    row["height"], row["width"] = large.height, large.width
    source.annotation_file.write_text(json.dumps(content))
    large.save(path)
    source = build_source("detection", "coco", root, "train")
    tokenizer = build_tokenizer("detection", Vocabulary())
    for options, scale in (({}, 2), ({"max_scale": 1.0}, 1), ({"augment": False}, 1)):
        data = build_train_set("detection", source, tokenizer, (64, 96), seed=0, **options)
        assert data.at_least == (64 * scale, 96 * scale)
        image = source.read(0, data.at_least).image
        assert large.size > image.shape[1::-1] > (96 * scale, 64 * scale)
        assert data[0, 0].image.shape[1] <= 96
    data = build_train_set("detection", source, tokenizer, (64, 96), seed=0, crop=0.5)
    assert data.at_least is None
    assert source.read(0).image.shape == (large.height, large.width, 3)


def test_a_damaged_jpeg_is_named(tmp_path):
    path = jpeg(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cannot read image .*a\.jpg: .*truncated.*; replace"):
        sample_of(path)
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.jpg: it is not an image, or its format is unknown"):
        sample_of(path)


def detection_set(demo_set, img_size: int = 32):
    source = build_source("detection", "coco", demo_set, "train")
    tokenizer = build_tokenizer("detection", Vocabulary(), max_objects=8)
    return build_train_set("detection", source, tokenizer, (img_size, img_size), seed=3)


def test_reduced_pictures_are_the_same_from_every_worker(demo_set):
    loaders = [
        build_train_loader(detection_set(demo_set), batch_size=4, num_workers=n) for n in (0, 2)
    ]
    for alone, helped in zip(*loaders, strict=True):
        assert helped.images.is_shared() and not alone.images.is_shared()
        pictures = [pad_batch(batch.images, batch.unpadded) for batch in (alone, helped)]
        assert torch.equal(*pictures) and pictures[0].std() > 0.1
        for field in fields(alone):
            a, b = getattr(alone, field.name), getattr(helped, field.name)
            if field.name != "images":
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_picture_that_fails_in_a_batch_is_one_line(demo_set, tmp_path, num_workers):
    shutil.copytree(demo_set, tmp_path / "set")
    for path in (tmp_path / "set" / "train2017").iterdir():
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    loader = build_train_loader(
        detection_set(tmp_path / "set"), batch_size=4, num_workers=num_workers
    )
    with pytest.raises(UserError, match=r"cannot read image .*\.jpg: .*; replace or remove it"):
        next(iter(loader))


# ---- sequences -------------------------------------------------------------------------------


def test_outlines_encoded_together_are_those_encoded_one_by_one():
    vocab, rng = Vocabulary(), np.random.default_rng(0)
    tokenizer = SegmentationTokenizer(vocab, 12, max_objects=5, first_end_only=True)
    polygons = [
        [rng.random((n, 2)).astype("f") * 90 for n in parts] for parts in ((3, 5), (), (12,), (30,))
    ]
    sequence = tokenizer.sequence_from_draws(
        np.zeros((4, 4)), np.array([1, 2, 3, 4]), polygons, (90, 90)
    )
    for row, weights, parts in zip(sequence.target, sequence.weight, polygons, strict=False):
        tokens = tokenizer.encode(parts, (90, 90))
        np.testing.assert_array_equal(row[5 : 5 + len(tokens)], tokens)
        assert not row[5 + len(tokens) :].any() and not weights[:5].any()
        assert weights[5:].sum() == min(len(tokens) + 1, 24)
    assert not sequence.target[4].any() and not sequence.weight[4].any()


MODEL = ModelConfig(
    encoder="test_vit", image_size=(32, 32), dim=32, num_heads=4, num_layers=2, mlp_dim=64,
    max_len=60, drop_path=0.0, drop_units=0.0,
)  # fmt: skip


def items(weighted: int, length: int = 60, num: int = 3) -> list[TrainItem]:
    """Images with tokens; about half of the first `weighted` targets count."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(num):
        weights = rng.random((2, length)).astype(np.float32) * (rng.random((2, length)) < 0.5)
        weights[:, weighted - 1], weights[:, weighted:] = 1, 0
        tokens = TokenSequence(*rng.integers(0, 3000, (2, 2, length)), weights)
        image = rng.integers(0, 256, (32, 28, 3)).astype(np.uint8)
        out.append(TrainItem(image, (32, 32), tokens, image_id=1))
    return out


def test_lengths_are_few_and_never_too_short():
    for weighted in range(1, 61):
        batch = collate(items(weighted, num=1), num_lengths=8)
        assert batch.full_length == 60 and batch.input_tokens.shape[-1] in range(8, 61)
        assert weighted <= batch.input_tokens.shape[-1] < weighted + 8
    batches = [collate(items(n, num=1), num_lengths=8) for n in range(1, 61)]
    lengths = {batch.input_tokens.shape[-1] for batch in batches}
    assert lengths == {8, 16, 24, 32, 40, 48, 56, 60}


@pytest.mark.parametrize("loss", ["xent@0.1", "focal@2", "logistic@0.1"])
def test_neither_lengths_nor_where_supervised_tokens_are_found_change_a_loss(loss):
    torch.manual_seed(0)
    model, kind = build_model(MODEL), LossType.parse(loss)
    exact, rounded = (collate(items(17), num_lengths=n) for n in (0, 8))
    assert exact.input_tokens.shape[-1] == 17 and rounded.input_tokens.shape[-1] == 24
    sequences = [item.tokens for item in items(17)]
    fields_of = {"input_tokens": "input", "target_tokens": "target", "token_weights": "weight"}
    full = {n: np.stack([getattr(one, f) for one in sequences]) for n, f in fields_of.items()}
    full = {name: torch.from_numpy(array) for name, array in full.items()}
    whole = replace(exact, **full, supervised=None)
    masked = replace(rounded, supervised=None)
    with torch.no_grad():
        expected, *others = (
            batch_loss(model, batch, kind) for batch in (whole, exact, rounded, masked)
        )
    for other in others:
        torch.testing.assert_close(other, expected)


def test_supervised_tokens_are_those_of_the_mask():
    batch = collate(items(17))
    mask = batch.token_weights > 0
    assert torch.equal(batch.supervised, mask.flatten().nonzero()[:, 0])
    torch.manual_seed(0)
    model, images = build_model(MODEL), torch.rand(3, 3, 32, 32)
    some, all_logits = (
        model(images, batch.input_tokens, supervised) for supervised in (batch.supervised, None)
    )
    torch.testing.assert_close(some, all_logits[mask.flatten(0, -2)])


def test_nothing_is_cut_where_every_target_counts():
    batch = {name: np.ones((2, 9)) for name in ("input_tokens", "target_tokens", "token_weights")}
    assert trim(batch, 8) is batch


def test_a_compiled_step_is_one_graph_for_all_lengths():
    """Traced as for a compiler, without one; new lengths make one graph more at most."""
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters["stats"]  # of this process, which `reset` leaves
    before = counts["unique_graphs"]
    torch.manual_seed(0)
    plain, compiled = build_model(MODEL), build_model(MODEL)
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(backend="eager", fullgraph=True)
    for weighted in (9, 17, 41):
        batch = collate(items(weighted), num_lengths=8)
        expected, loss = (batch_loss(model, batch) for model in (plain, compiled))
        torch.testing.assert_close(loss, expected)
        expected.backward(), loss.backward()
    grads = [[p.grad for p in model.parameters()] for model in (plain, compiled)]
    torch.testing.assert_close(*grads)
    assert 1 <= counts["unique_graphs"] - before <= 2
    torch._dynamo.reset()


def test_the_benchmark_of_the_step_makes_batches_as_the_loader_does():
    from benchmarks.train_step import SIZES, build_batches, build_tokenizers

    for tokenizer in build_tokenizers(SIZES["small"]).values():
        cut, whole = build_batches(tokenizer, 32, 2, 0)
        length = cut.input_tokens.shape[-1]
        assert torch.equal(cut.target_tokens, whole.target_tokens[..., :length])
        assert not whole.token_weights[..., length:].any() and len(cut.supervised)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_benchmark_of_the_data_path_runs(task, demo_set, tmp_path, capsys):
    from benchmarks import data

    out = tmp_path / "out.json"
    arguments = ["--coco-root", str(demo_set), "--images", "3", "--repeat", "1", "--tasks", task]
    data.main([*arguments, "--img-size", "64", "--json", str(out)])
    assert task in capsys.readouterr().out and "share_of_bound" in out.read_text()
