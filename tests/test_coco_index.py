"""COCO files as arrays: both readers agree, the cache never changes what is read."""

import copy
import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from dataset.advice import missing_objects, same_pictures
from dataset.coco_detection import CocoDetection
from dataset.coco_format import is_flat, open_coco
from dataset.coco_index import build_index
from dataset.coco_keypoint import CocoKeypoints
from dataset.coco_segmentation import CocoSegmentation
from dataset.tasks import TASKS
from utils import array_cache
from utils.errors import UserError

KINDS = ("instances", "person_keypoints", "captions")
COCO_TASKS = [name for name, task in TASKS.items() if hasattr(task.sources.get("coco"), "kind")]


@pytest.fixture
def root(demo_set, tmp_path):
    return shutil.copytree(demo_set, tmp_path / "set")


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Every file goes to a cache of its own."""
    monkeypatch.setattr(array_cache, "SMALLEST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pix2seq" / "datasets"


def annotations(root, kind="instances", split="train") -> Path:
    return root / "annotations" / f"{kind}_{split}2017.json"


def rewrite(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def without_outlines(arrays: dict) -> dict:
    """Outlines lie in the file or beside it, so that their places differ."""
    return {k: v for k, v in arrays.items() if not k.startswith("outline")}


def floats(value):
    """As pandas writes whole numbers."""
    if isinstance(value, dict):
        return {k: v if k in ("segmentation", "size") else floats(v) for k, v in value.items()}
    if isinstance(value, list):
        return [floats(v) for v in value]
    return float(value) if type(value) is int else value


OTHER_FORMS = {
    "whole numbers as 24.0": floats,
    "fields that are null": lambda c: c["annotations"][0].update(iscrowd=None),
    "numbers that are true or false": lambda c: c["annotations"][0].update(iscrowd=False),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_tolerant_reader_reads_what_the_strict_one_reads(root, kind, form):
    path = annotations(root, kind)
    strict = build_index(path, kind)
    content = json.loads(path.read_text())
    changed = OTHER_FORMS[form](content) or content
    path.write_text(json.dumps(changed))
    tolerant = build_index(path, kind)
    strict, tolerant = map(without_outlines, (strict, tolerant))
    assert strict.keys() == tolerant.keys()
    for name in strict.keys() - {"meta"}:
        np.testing.assert_array_equal(strict[name], tolerant[name], err_msg=name)
    errors = [json.loads(arrays["meta"].tobytes())["errors"] for arrays in (strict, tolerant)]
    assert errors[0] == errors[1]


def test_outlines_are_the_same_from_both_readers_and_one_by_one(root, monkeypatch):
    strict = CocoSegmentation(root)
    rewrite(annotations(root), lambda c: c["images"][0].update(height=None))
    rewrite(annotations(root), lambda c: c["annotations"][0].update(area=None))
    tolerant = CocoSegmentation(root)
    monkeypatch.setattr("dataset.coco_segmentation._read_group", lambda texts, sizes: None)
    singly = CocoSegmentation(root)
    for index in range(len(strict)):
        for other in (tolerant, singly):
            for ours, theirs in zip(strict.polygons(index), other.polygons(index), strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


VALUES = [None, "", "12", "a cat", 24.0, 24.5, -1, 0, 1e30, True, [], [1], {}, "cat \ud83d", 10**30]
FIELDS = [
    ("instances", "images", ("id", "file_name", "height", "width")),
    ("instances", "annotations", ("id", "image_id", "category_id", "bbox", "area", "iscrowd")),
    ("instances", "annotations", ("segmentation",)),
    ("instances", "categories", ("id", "name", "supercategory")),
    ("person_keypoints", "annotations", ("keypoints", "num_keypoints")),
    ("person_keypoints", "categories", ("keypoints", "skeleton")),
    ("captions", "annotations", ("caption", "image_id", "id")),
]


@pytest.mark.parametrize(
    "kind, table, field", [(k, t, field) for k, t, fields in FIELDS for field in fields]
)
def test_any_value_in_any_field_is_read_or_refused_in_one_line(root, kind, table, field):
    path = annotations(root, kind)
    content = json.loads(path.read_text())
    content["annotations"] = [r for r in content["annotations"] if not r.get("iscrowd")][:40]
    tasks = [name for name in COCO_TASKS if TASKS[name].sources["coco"].kind == kind]
    for value in VALUES:
        changed = copy.deepcopy(content)
        changed[table][0][field] = value
        path.write_text(json.dumps(changed))
        for task in tasks:
            try:
                source = TASKS[task].sources["coco"](root)
                getattr(source, "coco", None)
                str(source.categories.names).encode()  # may be written anywhere
            except UserError as error:
                assert "\n" not in str(error) and str(error).isprintable(), (value, error)


def test_an_outline_on_a_line_is_none_and_others_are():
    draws = np.random.default_rng(0)
    for _ in range(200):
        start, step = draws.uniform(0, 600, (2, 2))
        along = draws.uniform(0, 1, int(draws.integers(3, 9)))
        line = np.float32(start + along[:, None] * (step - start))
        assert is_flat(line) and is_flat(line[:1].repeat(4, 0))
        across = np.float32([step[1] - start[1], start[0] - step[0]])
        moved = line.copy()
        moved[1] += across / max(np.hypot(*across), 1e-6) * 0.5
        assert not is_flat(moved)


# ---- the set as a whole ------------------------------------------------------------------------


def test_crowds_alone_are_named(root):
    def all_crowds(content):
        for row in content["annotations"]:
            row["iscrowd"] = 1

    rewrite(annotations(root), all_crowds)
    source = CocoDetection(root)
    assert "iscrowd" in source.annotation_errors.notice() and "iscrowd" in missing_objects(source)
    with pytest.raises(UserError, match="iscrowd=1"):
        CocoSegmentation(root, keep_empty=False)


def test_normalised_boxes_are_refused_whatever_their_number(root):
    def normalise(content):
        sizes = {row["id"]: (row["width"], row["height"]) for row in content["images"]}
        for row in content["annotations"]:
            w, h = sizes[row["image_id"]]
            x, y, bw, bh = row["bbox"]
            row["bbox"] = [x / w, y / h, bw / w, bh / h]

    rewrite(annotations(root), normalise)
    with pytest.raises(UserError, match="in pixels"):
        CocoDetection(root, skip_bad=True)


def test_of_two_categories_of_one_name_the_annotated_one_stays(root):
    whole = CocoDetection(root)
    name = next(iter(whole.categories.names.values()))
    rewrite(annotations(root), lambda c: c["categories"].insert(0, {"id": 0, "name": name}))
    with_empty = CocoDetection(root)
    assert sorted(with_empty.categories.names.values()) == sorted(whole.categories.names.values())
    assert "of another" in with_empty.annotation_errors.notice()
    rewrite(annotations(root), lambda c: c["annotations"][-1].update(category_id=0))
    with pytest.raises(UserError, match="all are called"):
        CocoDetection(root, skip_bad=True)


def test_the_same_picture_is_found_in_another_size_and_format(root, tmp_path):
    from PIL import Image

    files = sorted((root / "train2017").iterdir())
    copies = [tmp_path / "same.jpg", tmp_path / "larger.png"]
    shutil.copy(files[0], copies[0])
    picture = Image.open(files[1])
    picture.resize((2 * picture.width, 2 * picture.height)).save(copies[1])
    assert same_pictures(files, copies, decode=False) == [(files[0], copies[0])]
    pairs = same_pictures(files, copies, decode=True)
    assert set(pairs) == {(files[0], copies[0]), (files[1], copies[1])}


# ---- the cache ---------------------------------------------------------------------------------


def read_all(root) -> list:
    """Everything but pixels that the sources of COCO say."""
    found = []
    for task in COCO_TASKS:
        source = TASKS[task].sources["coco"](root)
        for index in range(len(source)):
            rows = source.captions(index) if task == "captioning" else source.objects(index)
            more = {} if task == "captioning" else source.more_fields(index)
            found.append(repr((source.image_path(index), rows, more)))
    return found


def never():
    raise AssertionError("it is in the cache")


def test_pictures_may_be_named_by_their_address(root):
    """As LVIS does; its training pictures lie in two folders."""
    whole = CocoDetection(root)

    def change(content):
        for image in content["images"]:
            image["coco_url"] = f"http://images.example/train2017/{image.pop('file_name')}"

    rewrite(annotations(root), change)
    for path in (root / "train2017", root):
        file = open_coco(annotations(root), path, "instances")
        found = [file.image_folder / file.image_name(i) for i in range(len(file.image_ids))]
        assert found == [whole.image_path(i) for i in range(len(whole))]


def test_what_is_mapped_is_what_was_read(root, cached, monkeypatch):
    with monkeypatch.context() as plain:
        plain.setattr(array_cache, "SMALLEST", 1 << 40)
        expected = read_all(root)
    assert not cached.exists()
    assert read_all(root) == expected
    assert len([folder for folder in cached.iterdir() if folder.is_dir()]) == 4
    monkeypatch.setattr("dataset.coco_format.build_index", lambda *_: never())
    monkeypatch.setattr("dataset.coco_segmentation._build", lambda *_: never())
    assert read_all(root) == expected


def test_a_changed_file_is_read_anew(root, cached):
    before = CocoDetection(root).objects(0)[0]
    rewrite(annotations(root), lambda c: [r["bbox"].__setitem__(0, 1.5) for r in c["annotations"]])
    after = CocoDetection(root).objects(0)[0]
    assert (after[:, 0] == 1.5).all() and not (before[:, 0] == 1.5).all()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, scribble, Path.unlink, lambda p: p.write_bytes(b"")])
def test_a_damaged_cache_is_made_anew(root, cached, damage):
    expected = read_all(root)
    files = sorted(path for path in cached.rglob("*") if path.suffix in (".npy", ".json"))
    for path in files:
        damage(path)
        assert read_all(root) == expected, path.name


def test_a_cache_that_cannot_be_written_costs_a_line(root, cached, capsys):
    cached.parent.mkdir(parents=True)
    cached.write_text("a file in place of the folder")
    assert len(CocoDetection(root)) > 0
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "XDG_CACHE_HOME" in line


def _open_counting(root, barrier, built) -> None:
    import dataset.coco_format as coco_format

    def count(*arguments):
        built.put(1)
        return build_index(*arguments)

    coco_format.build_index = count
    barrier.wait()
    CocoDetection(root)


def test_of_many_processes_one_reads_the_file(root, cached):
    context = multiprocessing.get_context("fork")
    barrier, built = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_open_counting, args=(root, barrier, built)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert built.qsize() == 1


@pytest.mark.parametrize("of", [CocoDetection, CocoSegmentation, CocoKeypoints])
def test_a_source_travels_as_a_path(root, cached, monkeypatch, of):
    monkeypatch.setattr(array_cache, "CHUNK", 0)
    source = of(root)
    source.coco  # noqa: B018  the ground truth is no part of what workers need
    packed = pickle.dumps(source.file)
    assert len(packed) < 20_000 + source.file.class_ids.nbytes
    again = pickle.loads(pickle.dumps(source))
    for index in range(len(source)):
        ours, theirs = source[index], again[index]
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.image, theirs.image)


def test_mapped_arrays_cannot_be_changed(root, cached):
    file = open_coco(annotations(root), root / "train2017", "instances")
    with pytest.raises(ValueError, match="read-only"):
        file.arrays["bbox"][0] = 0
