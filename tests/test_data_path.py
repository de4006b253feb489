"""The fast ways of the data path and of the training step give what the plain ways give."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.batch import collate, stack_tokens, trim
from dataset.geometry import Geometry
from dataset.loader import build_train_loader
from dataset.preprocess import pad_batch
from dataset.sample import Sample, read_annotated_image
from dataset.tasks import TASKS, build_source, build_tokenizer, build_train_set
from models import ModelConfig, build_model
from tokenizer.base import TokenSequence
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.vocabulary import Vocabulary
from train.loss import LossType, batch_loss
from utils.errors import UserError
from utils.images import JpegFile, load_image, open_image, reduction, upright_size

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


def sample_of(path: Path) -> Sample:
    image, size = read_annotated_image(path, (0, 0), "")
    boxes = np.float32([[20, 30, 120, 110], [0, 0, *size[::-1]]])
    return Sample(image, 1, size, boxes=boxes, labels=np.array([1, 2]))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_decoder_gives_the_pixels_of_pillow(tmp_path, mode):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture(SIZE)).convert(mode).save(path, quality=80)
    expected = np.asarray(Image.open(path).convert("RGB"))
    for image in (load_image(path), open_image(path).read()[0], sample_of(path).image):
        np.testing.assert_array_equal(image, expected)


HEADERS = [
    ("RGB", {}),
    ("RGB", {"progressive": True, "dpi": (72, 72), "comment": "a ball"}),
    ("RGB", {"icc_profile": b"p" * 70_000, "restart_marker_rows": 1}),
    ("L", {"optimize": True}),
    ("CMYK", {}),
    ("RGB", {"exif": Image.Exif()}),
    ("RGB", {"xmp": b"<x/>"}),
]


@pytest.mark.parametrize(("mode", "options"), HEADERS)
def test_a_header_says_the_size_or_is_left_to_pillow(tmp_path, mode, options):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture(SIZE)).convert(mode).save(path, **options)
    content = path.read_bytes()
    usual = mode != "CMYK" and not options.keys() & {"exif", "xmp"}
    assert upright_size(content) == (SIZE if usual else None)
    for end in range(min(content.index(b"\xff\xda") + 10, 700)):  # a cut one, too
        assert upright_size(content[:end]) is None
    Image.fromarray(picture(SIZE)).save(tmp_path / "a.png")
    assert upright_size((tmp_path / "a.png").read_bytes()) is None
    np.testing.assert_array_equal(open_image_pixels(path), load_image(path))


@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_between_frame_and_scan_turns_the_picture(tmp_path, orientation):
    turned = jpeg(tmp_path / "b.jpg", SIZE, orientation).read_bytes()
    start = turned.index(b"\xff\xe1")
    exif = turned[start : start + 2 + int.from_bytes(turned[start + 2 : start + 4], "big")]
    Image.fromarray(picture(SIZE)).save(tmp_path / "a.jpg", quality=98, subsampling=0)
    plain = (tmp_path / "a.jpg").read_bytes()
    scan = plain.index(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(plain[:scan] + exif + plain[scan:])
    file, image = open_image(tmp_path / "a.jpg"), load_image(tmp_path / "a.jpg")
    assert file.size == image.shape[:2] == (SIZE if orientation == 1 else SIZE[::-1])
    np.testing.assert_array_equal(file.pixels(), image)


@pytest.mark.parametrize("name", ["a\0.jpg", "a\ud800.jpg", "a" * 300 + ".jpg", "no.jpg"])
def test_a_name_that_no_file_has_is_a_missing_image(tmp_path, name):
    with pytest.raises(UserError, match="is missing; look for it"):
        read_annotated_image(tmp_path / name, (0, 0), "look for it")


def test_a_decoded_original_does_not_wait_for_its_batch(tmp_path):
    Image.fromarray(picture(SIZE)).save(tmp_path / "a.png")
    moved = Geometry.letterbox(SIZE, (32, 32)).apply(sample_of(tmp_path / "a.png"))
    assert isinstance(moved.source, np.ndarray) and moved.source.shape == (23, 32, 3)


def open_image_pixels(path: Path) -> np.ndarray:
    image = open_image(path)
    return image.pixels() if isinstance(image, JpegFile) else image


@pytest.mark.data
def test_headers_of_real_files(real_data):
    """What the quick look at a header says is what Pillow says."""
    paths = [path for path in real_data.rglob("*") if path.suffix in (".jpg", ".jpeg", ".mpo")]
    sizes = {path: upright_size(path.read_bytes()) for path in paths}
    for path, size in sizes.items():
        if size:
            with Image.open(path) as image:
                assert (image.height, image.width) == size and image.getexif().get(274, 1) == 1
    assert sum(map(bool, sizes.values())) > 0.8 * len(sizes)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_before_and_after_it_is_decoded(tmp_path, orientation):
    path = jpeg(tmp_path / "a.jpg", TURNED, orientation)
    file, image = open_image(path), load_image(path)
    assert file.size == image.shape[:2]
    small, blocks = file.read(tuple(side // 2 for side in file.size))
    assert blocks == 2
    means = image.reshape(file.size[0] // 2, 2, file.size[1] // 2, 2, 3).mean((1, 3))
    assert np.abs(small - means).max() <= 2
    stored = open_image(path, exif=False)
    assert stored.size == TURNED and stored.read()[0].shape[:2] == TURNED


def test_a_reduction_leaves_the_pixels_that_are_asked_for():
    assert [reduction((800, 600), (100, n), exact=False) for n in (75, 76, 301, 900)] == [
        8,
        4,
        1,
        1,
    ]
    assert reduction((799, 600), (100, 75), exact=False) == 4
    assert reduction((804, 604), (100, 75), exact=True) == 4


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("orientation", "size"), [(1, SIZE), (6, TURNED), (6, SIZE)])
@pytest.mark.parametrize("side", [20, 47, 74, 120])
def test_reduced_decoding_moves_nothing(tmp_path, antialias, orientation, size, side):
    """Same boxes; pixels of a smooth picture within 2 of 255 or a third of a pixel's shift."""
    path = jpeg(tmp_path / "a.jpg", size, orientation)
    late, early = sample_of(path), sample_of(path)
    assert early.image.shape[:2] == early.orig_size  # decoded now
    geometry = Geometry.jitter(late.orig_size, (64, 64), side / 64, (0.4, 0.7), flip=True)
    asked = []
    late.image = Spy(late.source, asked)
    moved, expected = (geometry.apply(sample, antialias=antialias) for sample in (late, early))
    assert not asked and moved.image_size == expected.image_size == moved.image.shape[:2]
    assert (asked[0] > 1) == (side < 100 and (orientation == 1 or size == TURNED))
    np.testing.assert_array_equal(moved.boxes, expected.boxes)
    assert moved.image.shape == expected.image.shape
    pixel = 240 / geometry.resized[1]  # what a neighbour differs by
    assert np.abs(moved.image.astype(int) - expected.image).max() <= max(2, pixel / 3)


class Spy(JpegFile):
    """Notes the reductions."""

    def __init__(self, file: JpegFile, asked: list):
        super().__init__(*(getattr(file, field.name) for field in fields(file)))
        object.__setattr__(self, "asked", asked)

    def read(self, at_least=None):
        pixels, blocks = super().read(at_least)
        self.asked.append(blocks)
        return pixels, blocks


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("side", [30, 64, 149, 300])
def test_a_picture_is_made_where_it_is_wanted(tmp_path, side, flip):
    """In the midst of a larger array, whose rest it leaves alone."""
    sample = sample_of(jpeg(tmp_path / "a.jpg"))
    geometry = Geometry.jitter(SIZE, (100, 140), side / 100, (0.4, 0.7), flip=flip)
    moved = geometry.apply(sample)
    (h, w), rest = moved.image_size, np.full((320, 420, 3), 7, np.uint8)
    for part in (moved, moved.changed(boxes=moved.boxes[:1])):
        assert not isinstance(part.source, np.ndarray), "no pixels are made"
        part.write_image(rest[9 : 9 + h, 5 : 5 + w])
    np.testing.assert_array_equal(rest[9 : 9 + h, 5 : 5 + w], moved.image)
    rest[9 : 9 + h, 5 : 5 + w] = 7
    assert (rest == 7).all() and isinstance(moved.source, np.ndarray)
    mirror = Geometry.jitter(SIZE, (100, 140), side / 100, (0.4, 0.7), flip=not flip)
    other = mirror.apply(sample).image
    np.testing.assert_array_equal(other, moved.image[:, ::-1])


def test_where_a_part_is_shown_all_pixels_are_decoded(tmp_path):
    sample = sample_of(jpeg(tmp_path / "a.jpg"))
    geometry = Geometry.jitter(SIZE, (16, 16), 1, crop=(11, 7, 99, 101))
    whole = geometry.apply(replace(sample, image=sample_of(tmp_path / "a.jpg").image))
    np.testing.assert_array_equal(geometry.apply(sample).image, whole.image)


def test_a_damaged_jpeg_is_named_when_it_is_decoded(tmp_path):
    path = jpeg(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:2000])
    sample = sample_of(path)
    moved = Geometry.letterbox(SIZE, (32, 32)).apply(sample)
    with pytest.raises(UserError, match=r"cannot read image .*a\.jpg: .*truncated.*; replace"):
        _ = moved.image
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.jpg: it is no image, or one of a kind that"):
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
    sequence = tokenizer.train_sequence(
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


def given(_sample: Sample, tokens: TokenSequence) -> TokenSequence:
    """Stands in for the encoding of a task."""
    return tokens


def rows(weighted: int, length: int = 60, num: int = 3) -> list[tuple[Sample, TokenSequence]]:
    """Samples and their tokens; about half of the first `weighted` targets count."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(num):
        weights = rng.random((2, length)).astype(np.float32) * (rng.random((2, length)) < 0.5)
        weights[:, weighted - 1], weights[:, weighted:] = 1, 0
        tokens = rng.integers(0, 3000, (2, 2, length))
        image = rng.integers(0, 256, (32, 28, 3)).astype(np.uint8)
        sample = Sample(image, 1, (32, 28), geometry=Geometry.letterbox((32, 28), (32, 32)))
        out.append((sample, TokenSequence(*tokens, weights)))
    return out


def test_lengths_are_few_and_never_too_short():
    for weighted in range(1, 61):
        batch = collate(rows(weighted, num=1), given, num_lengths=8)
        assert batch.full_length == 60 and batch.input_tokens.shape[-1] in range(8, 61)
        assert weighted <= batch.input_tokens.shape[-1] < weighted + 8
    batches = [collate(rows(n, num=1), given, num_lengths=8) for n in range(1, 61)]
    lengths = {batch.input_tokens.shape[-1] for batch in batches}
    assert lengths == {8, 16, 24, 32, 40, 48, 56, 60}


@pytest.mark.parametrize("loss", ["xent@0.1", "focal@2", "logistic@0.1"])
def test_neither_lengths_nor_where_positions_are_found_change_a_loss(loss):
    torch.manual_seed(0)
    model, kind = build_model(MODEL), LossType.parse(loss)
    exact, rounded = (collate(rows(17), given, num_lengths=n) for n in (0, 8))
    assert exact.input_tokens.shape[-1] == 17 and rounded.input_tokens.shape[-1] == 24
    full = stack_tokens([tokens for _, tokens in rows(17)])
    full = {name: torch.from_numpy(array) for name, array in full.items()}
    whole = replace(exact, **full, positions=None)
    masked = replace(rounded, positions=None)
    with torch.no_grad():
        expected, *others = (
            batch_loss(model, batch, kind) for batch in (whole, exact, rounded, masked)
        )
    for other in others:
        torch.testing.assert_close(other, expected)


def test_positions_are_those_of_the_mask():
    batch = collate(rows(17), given)
    mask = batch.token_weights > 0
    assert torch.equal(batch.positions, mask.flatten().nonzero()[:, 0])
    torch.manual_seed(0)
    model, images = build_model(MODEL), torch.rand(3, 3, 32, 32)
    by_index, by_mask = (
        model(images, batch.input_tokens, where) for where in (batch.positions, mask)
    )
    assert torch.equal(by_index, by_mask)


def test_nothing_is_cut_where_every_target_counts():
    batch = {name: np.ones((2, 9)) for name in ("input_tokens", "target_tokens", "token_weights")}
    assert trim(batch, 8) is batch


def test_a_compiled_step_is_one_graph_for_all_lengths():
    """Traced as for a compiler, without one; new lengths make one graph more at most."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain, compiled = build_model(MODEL), build_model(MODEL)
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(backend="eager", fullgraph=True)
    for weighted in (9, 17, 41):
        batch = collate(rows(weighted), given, num_lengths=8)
        expected, loss = (batch_loss(model, batch) for model in (plain, compiled))
        torch.testing.assert_close(loss, expected)
        expected.backward(), loss.backward()
    grads = [[p.grad for p in model.parameters()] for model in (plain, compiled)]
    torch.testing.assert_close(*grads)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    torch._dynamo.reset()


def test_the_benchmark_of_the_step_makes_batches_as_the_loader_does():
    from benchmarks.train_step import SIZES, build_batches, build_tokenizers

    for tokenizer in build_tokenizers(SIZES["small"]).values():
        cut, whole = build_batches(tokenizer, 32, 2, 0)
        length = cut.input_tokens.shape[-1]
        assert torch.equal(cut.target_tokens, whole.target_tokens[..., :length])
        assert not whole.token_weights[..., length:].any() and len(cut.positions)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_benchmark_of_the_data_path_runs(task, demo_set, tmp_path, capsys):
    from benchmarks import data

    out = tmp_path / "out.json"
    arguments = ["--coco-root", str(demo_set), "--images", "3", "--repeat", "1", "--tasks", task]
    data.main([*arguments, "--img-size", "64", "--json", str(out)])
    assert task in capsys.readouterr().out and "share_of_bound" in out.read_text()
