"""What cannot be used is refused, left out with a notice, or skipped and counted."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config import CFG
from dataset.advice import compare_skeletons
from dataset.annotation_errors import KINDS, AnnotationErrors, Level
from dataset.batch import pad_batch
from dataset.coco_detection import CocoDetection
from dataset.coco_keypoint import CocoKeypoints
from dataset.coco_segmentation import CocoSegmentation
from dataset.loader import build_eval_loader
from dataset.sample import ReplaceUnreadable
from dataset.voc_detection import VocDetection
from tests.conftest import TINY
from train.build import build_source_of, build_streams, build_tokenizers, build_vocabulary
from train.engine import train
from train.guards import report_skipped
from utils.categories import COCO_PERSON, Skeleton
from utils.cli import snapshot
from utils.devices import World
from utils.errors import UserError
from utils.images import load_image
from utils.masks import check_rle, mask_to_rle


@pytest.fixture
def root(demo_set, tmp_path):
    """A copy of the drawn set that may be damaged."""
    return shutil.copytree(demo_set, tmp_path / "set")


def damage(root, kind, change):
    """Changes the annotation file of a kind; returns its first image id."""
    path = root / "annotations" / f"{kind}_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return content["images"][0]["id"]


def num_objects(source) -> int:
    return sum(len(source.objects(i)[1]) for i in range(len(source)))


def first_box(value):
    def change(content):
        content["annotations"][0]["bbox"] = value

    return change


@pytest.mark.parametrize(
    "bad", [[1, 2, float("nan"), 4], [1, 2, 3], "box", [1, 2, float("inf"), 4]]
)
def test_skipping_leaves_out_one_annotation_and_refusing_names_it(root, bad):
    whole = CocoDetection(root)
    damage(root, "instances", first_box(bad))
    with pytest.raises(UserError, match=r"annotation \d+ of image \d+: bbox must be .*bad_samples"):
        CocoDetection(root)
    rest = CocoDetection(root, skip_bad=True)
    assert (
        sum(rest.annotation_errors.counts.values()) == 1
        and "annotation" in rest.annotation_errors.notice()
    )
    assert len(rest) == len(whole) and num_objects(rest) == num_objects(whole) - 1


def test_boxes_that_no_one_can_see_are_left_out_with_one_line(root, capsys):
    whole = CocoDetection(root)

    def change(content):
        rows = content["annotations"]
        rows[0]["bbox"][2], rows[1]["bbox"][3] = 0, -4
        rows[2]["bbox"][:2] = [5000, 5000]
        rows[3]["image_id"] = 987654

    damage(root, "instances", change)
    cfg = snapshot(CFG, [*TINY, f"coco_root={root}"])
    left = build_source_of(cfg, "detection", train=True)
    assert left.annotation_errors.counts == {"no_area": 2, "outside": 1, "unlisted": 1}
    assert num_objects(left) == num_objects(whole) - 4
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for part in (
        "boxes without an area, 2 (",
        "boxes outside their image, 1 (",
        "does not list, 1 (",
    ):
        assert part in line


def test_outlines_and_points_are_left_out_or_skipped(root):
    def outlines(content):
        for row, bad in zip(content["annotations"], ([[1, 2, 3, 4]], [[1, 2, 3]], 7), strict=False):
            row["segmentation"] = bad

    damage(root, "instances", outlines)
    with pytest.raises(UserError, match="segmentation must be"):
        CocoSegmentation(root)
    rest = CocoSegmentation(root, skip_bad=True)
    assert rest.annotation_errors.counts == {"few_points": 1, "outline": 2, "no_outline": 3}

    def points(content):
        labelled = [row for row in content["annotations"] if row["num_keypoints"]]
        labelled[0]["keypoints"] = labelled[0]["keypoints"][:-1]
        labelled[1]["keypoints"][0] = float("nan")

    whole = CocoKeypoints(root)
    damage(root, "person_keypoints", points)
    with pytest.raises(UserError, match="keypoints must be"):
        CocoKeypoints(root)
    rest = CocoKeypoints(root, skip_bad=True)
    assert rest.annotation_errors.counts == {"not_numbers": 1, "not_finite": 1}
    assert num_objects(rest) == num_objects(whole) - 2


def test_masks_are_not_judged_where_the_truth_has_none(root):
    damage(root, "instances", lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]))
    path = root / "annotations" / "instances_train2017.json"
    first = json.loads(path.read_text())["annotations"][0]
    truth = CocoSegmentation(root).coco
    row = next(row for row in truth.dataset["annotations"] if row["bbox"] == first["bbox"])
    assert row["iscrowd"] == 1 and truth.annToMask(row).sum() > 0


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 4], "counts": [0, 500]},
        {"size": [4, 4], "counts": [-3, 19]},
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": [4, 4], "counts": "\x00\xff"},
        {"size": [4, 4], "counts": mask_to_rle(np.ones((40, 40), bool))["counts"]},
        {"size": [4.5, 4], "counts": [18]},
        {"counts": [16]},
    ],
)
def test_run_lengths_are_checked_before_they_are_decoded(rle):
    with pytest.raises(ValueError, match="run lengths|size"):
        check_rle(rle)


def test_run_lengths_of_masks_pass_the_check():
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = tuple(rng.integers(1, 60, 2).tolist())
        check_rle(mask_to_rle(rng.random(size) < rng.random()), size)


def broken_images(root, count=2):
    files = sorted((root / "train2017").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:200])
    return [path.name for path in files[:count]]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_alike_in_every_worker(root, workers):
    names = broken_images(root)
    cfg = snapshot(CFG, [*TINY, f"coco_root={root}", f"num_workers={workers}"])

    def stream(*more):
        chosen = snapshot(CFG, [*TINY, f"coco_root={root}", f"num_workers={workers}", *more])
        sources = {"detection": build_source_of(chosen, "detection", train=True)}
        tasks = build_tokenizers(chosen, ["detection"], build_vocabulary(chosen), sources)
        return build_streams(chosen, sources, tasks)["detection"]

    with pytest.raises(UserError, match="|".join(names)):
        refusing = stream()
        for _ in range(len(refusing) + 1):
            refusing.next()
    first, again = stream("bad_samples=skip"), stream("bad_samples=skip")
    batches = [first.next()]
    saved = first.state_dict()
    batches += [first.next() for _ in range(len(first) - 1)]
    assert {len(batch) for batch in batches} == {cfg.batch_size}
    assert first.skipped and all(any(n in line for n in names) for line in first.skipped)
    assert saved["images"] == cfg.batch_size
    again.load_state_dict(saved)  # resumes at the same place, with the same
    for a, b in zip(batches[1:], (again.next() for _ in batches[1:]), strict=True):
        assert a.image_ids == b.image_ids and a.skipped == b.skipped
        assert (a.target_tokens == b.target_tokens).all()
        assert torch.equal(*(pad_batch(each.images, each.unpadded) for each in (a, b)))
    assert again.skipped == first.skipped, "what was skipped before counts too"


class Two(World):
    """The first or second of two processes, of which the other skipped one sample."""

    def gather(self, value):
        other = ["b.jpg is broken"]
        return [value, other] if self.is_main else [other, value]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_speaks_for_all(capsys, rank):
    streams = {"detection": SimpleNamespace(skipped=["a.jpg is broken"])}
    report_skipped(streams, 3, Two(rank, 2))
    said = capsys.readouterr().err
    assert ("epoch 3: 2 detection samples of 2 images" in said) == (rank == 0)
    assert streams["detection"].skipped == [] and (rank == 0 or not said)


def test_training_says_at_the_end_of_an_epoch_what_it_skipped(root, tmp_path, capsys):
    names = broken_images(root)
    more = [f"coco_root={root}", f"runs_dir={tmp_path}", "batch_size=7", "epochs=2", "eval_every=9"]
    train(snapshot(CFG, [*TINY, *more, "bad_samples=skip", "eval_limit=2"]), ["detection"])
    said = capsys.readouterr().err
    for epoch in (1, 2):
        line = rf"epoch {epoch}: \d detection samples of 1 images could not be used, others"
        assert re.search(line, said)
    assert all(name in said for name in names)
    with pytest.raises(UserError, match="bad_samples must be refuse or skip"):
        train(snapshot(CFG, [*TINY, "bad_samples=maybe"]), ["detection"])


def test_too_many_unreadable_images_in_a_row_stop():
    class Broken:
        def __len__(self):
            return 3

        def read(self, index, at_least=None):
            raise UserError(f"image {index} is damaged")

    with pytest.raises(UserError, match="20 images in a row cannot be used, the last one: image"):
        ReplaceUnreadable(Broken())[1]


def test_evaluation_never_skips(root):
    path = sorted((root / "val2017").iterdir())[1]
    path.write_bytes(b"no image")
    cfg = snapshot(CFG, [*TINY, f"coco_root={root}", "bad_samples=skip"])
    loader = build_eval_loader(
        build_source_of(cfg, "detection", train=False), batch_size=2, num_workers=0
    )
    with pytest.raises(UserError, match=path.name):
        list(loader)


def test_voc_objects_without_area_are_counted_and_bad_files_skipped(root):
    folder = root / "VOCdevkit" / "VOC2012"
    names = (folder / "ImageSets" / "Main" / "train.txt").read_text().split()
    xmls = [folder / "Annotations" / f"{name}.xml" for name in names]
    text = xmls[0].read_text()
    start, end = text.index("<xmax>"), text.index("</xmax>")
    xmls[0].write_text(f"{text[:start]}<xmax>-5{text[end:]}")
    assert VocDetection(root).annotation_errors.counts == {"no_area": 1}
    xmls[1].write_text("<annotation>")
    xmls[2].unlink()
    next((folder / "JPEGImages").glob(f"{names[3]}.*")).unlink()
    with pytest.raises(UserError, match=names[1]):
        VocDetection(root)
    rest = VocDetection(root, skip_bad=True)
    assert rest.annotation_errors.counts == {
        "no_area": 1,
        "xml": 1,
        "xml_missing": 1,
        "image_missing": 1,
    }
    assert len(rest) == len(names) - 3 and names[1] not in rest.image_ids


def test_only_kinds_that_are_refused_raise():
    for kind, what in KINDS.items():
        tolerant, strict = AnnotationErrors("file", skip=True), AnnotationErrors("file")
        if what.level is Level.FATAL:
            with pytest.raises(UserError, match="file: here; correct"):
                tolerant.add(kind, "here")
        else:
            tolerant.add(kind, "here")
        if what.level in (Level.FATAL, Level.REFUSED):
            with pytest.raises(UserError, match="file: here"):
                strict.add(kind, "here")
        else:
            strict.add(kind, "here")
            assert bool(strict.notice()) == (what.level is Level.LEFT_OUT)
        everything = AnnotationErrors("file", report=True)
        everything.add(kind, "here")
        assert everything.counts == {kind: 1}


def of_all(**fields):
    """Changes these fields of every annotation: name -> function of the annotation."""

    def change(content):
        for row in content["annotations"]:
            row |= {name: value(row) for name, value in fields.items()}

    return change


def corners(row):
    x, y, w, h = row["bbox"]
    return [x, y, x + w, y + h]


@pytest.mark.parametrize(
    "source, kind, change, message",
    [
        (CocoDetection, "instances", of_all(bbox=corners), "x1, y1, x2, y2"),
        (
            CocoSegmentation,
            "instances",
            of_all(segmentation=lambda row: [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]),
            "points lie between 0 and 1",
        ),
        (
            CocoKeypoints,
            "person_keypoints",
            of_all(
                keypoints=lambda row: [
                    v if i % 3 == 2 else v / 200 for i, v in enumerate(row["keypoints"])
                ]
            ),
            "keypoints lie between 0 and 1",
        ),
    ],
)
def test_coordinates_of_another_kind_are_refused(root, source, kind, change, message):
    source(root)
    damage(root, kind, change)
    with pytest.raises(UserError, match=message):
        source(root)


@pytest.mark.parametrize("area", [0, -5, 1e300, None])
def test_areas_that_scoring_would_pass_over_are_those_of_the_boxes(root, area):
    damage(root, "instances", of_all(area=lambda row: area))
    for row in CocoDetection(root).coco.dataset["annotations"]:
        assert row["area"] == pytest.approx(row["bbox"][2] * row["bbox"][3])


def test_run_lengths_may_be_written_with_a_point():
    whole = {"size": [4, 4], "counts": [3, 5, 8]}
    floats = {"size": [4.0, 4.0], "counts": [3.0, 5.0, 8.0]}
    assert check_rle(floats) == check_rle(whole) == whole


@pytest.mark.parametrize(
    "part", [[[10, 10], [50, 10], [50, 50]], [10, 10, 50, 10, 50, None], 10, [[10, 10], [50]]]
)
def test_a_polygon_of_another_form_is_told_which_one_is_needed(root, part):
    damage(root, "instances", lambda c: c["annotations"][0].update(segmentation=[part]))
    with pytest.raises(UserError, match=r"list of numbers x, y, x, y, …, got"):
        CocoSegmentation(root)


def test_names_of_categories_are_compared_as_people_read_them(root):
    damage(root, "instances", lambda c: c["categories"][0].update(name=" cafe\u0301\n"))
    assert "caf\u00e9" in CocoDetection(root).categories.names.values()
    damage(root, "instances", lambda c: c["categories"][0].update(name=" "))
    with pytest.raises(UserError, match="name is empty"):
        CocoDetection(root)


@pytest.mark.parametrize("change", [list.reverse, lambda names: names.pop()])
def test_keypoints_to_train_on_and_to_judge_by_are_the_same(change):
    names = list(COCO_PERSON.names)
    change(names)
    ours, theirs = (
        SimpleNamespace(skeleton=Skeleton(tuple(n))) for n in (COCO_PERSON.names, names)
    )
    compare_skeletons(ours, ours)
    with pytest.raises(UserError, match="same order"):
        compare_skeletons(ours, theirs)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"skeleton": [[0, 1]]}, r"numbers 1 to 17, got \[0, 1\]"),
        ({"skeleton": [["nose", "left_eye"]]}, "numbers 1 to 17"),
        ({"skeleton": [1, 2]}, "numbers 1 to 17"),
        ({"keypoints": "nose,left_eye"}, "must be a list of names"),
    ],
)
def test_a_skeleton_of_another_form_is_told_which_one_is_needed(root, wrong, message):
    damage(root, "person_keypoints", lambda c: [row.update(wrong) for row in c["categories"]])
    with pytest.raises(UserError, match=message):
        CocoKeypoints(root)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"PK\x03\x04 zip", "unpack"),
        (b"", "is empty"),
    ],
)
def test_files_that_stand_in_the_place_of_others_are_named(root, content, message):
    for path in (root / "annotations" / "instances_train2017.json", root / "a.jpg"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_image(path) if path.suffix == ".jpg" else CocoDetection(root)
