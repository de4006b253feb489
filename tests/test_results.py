"""Results: selecting, texts, pictures, and the same objects in the forms of other tools."""

import argparse
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from dataset.annotation_errors import AnnotationErrors
from dataset.find_dataset import find_dataset
from infer.image_files import Output
from infer.result_formats import Exports, cut_out, join_parts, to_supervision
from infer.results import AllTasks, Captions, Detections, InstanceMasks, Keypoints, Origin
from infer.script import add_box_arguments, check_places, infer_parser, read_box_arguments
from tests.conftest import ROOT
from utils.categories import COCO_PERSON, Categories
from utils.errors import UserError
from utils.images import load_image
from utils.masks import mask_to_rle, polygons_to_rle, rle_to_mask
from utils.visualize import save_image

CATEGORIES = Categories({1: "cat", 3: "dog", 7: "traffic light"}, {1: 1, 3: 3, 7: 7})
SIZE = (60, 80)  # H, W
BOXES = np.float32([[5, 10, 45, 50], [20.2, 5.5, 69.3, 39.5], [0.5, 0, 80, 60]])
LABELS, NAMES = np.array([7, 1, 7]), ["traffic light", "cat", "traffic light"]
SCORES = np.float32([0.9, 0.6, 0.2])


def picture():
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


def masks():
    drawn = np.zeros((3, *SIZE), bool)
    for mask, (x0, y0, x1, y1) in zip(drawn, BOXES.astype(int), strict=True):
        mask[y0 + 2 : y1 - 3, x0 + 1 : x1 - 4] = True
    drawn[0, 20:25] = False  # two parts
    return drawn


def results(path=None):
    """Of each kind, about the same three objects."""
    origin = Origin(SIZE, path, CATEGORIES)
    points = np.random.default_rng(1).uniform(0, 60, (3, 17, 3)).astype(np.float32)
    points[..., 2] = 2
    points[1, 4, 2] = 0
    common = (BOXES, LABELS, SCORES, NAMES)
    probabilities = np.full((3, 17), 0.5, np.float32)
    return (
        Detections(*common, origin=origin),
        InstanceMasks(*common, [mask_to_rle(mask) for mask in masks()], origin=origin),
        Keypoints(*common, points, probabilities, COCO_PERSON, origin=origin),
    )


@pytest.fixture(params=range(3), ids=["Detections", "InstanceMasks", "Keypoints"])
def found(request):
    return results()[request.param]


# ---- a sequence of objects ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "index, rows",
    [
        (0, [0]),
        (np.int64(-1), [2]),
        (slice(None, 2), [0, 1]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([False, True, True]), [1, 2]),
        ([False, False, False], []),
        (SCORES > 0.5, [0, 1]),
    ],
)
def test_selecting_takes_the_same_rows_of_everything(found, index, rows):
    part = found[index]
    assert type(part) is type(found) and part.origin is found.origin
    assert part.to_json() == [found.to_json()[i] for i in rows]
    assert part.to_coco(5) == [found.to_coco(5)[i] for i in rows]
    assert len(part) == len(rows) and part.names == [NAMES[i] for i in rows]


def test_selecting_refuses_what_is_no_object(found):
    for strange in (3, -4, [0, 3], [True], "cat", None, [[0]], 0.5):
        with pytest.raises(IndexError):
            found[strange]


def test_objects_one_by_one_are_the_whole(found):
    rows = [one.to_json()[0] for one in found]
    assert rows == found.to_json() and all(len(one) == 1 for one in found)
    assert found.only(["cat"]).names == found.only("cat").names == ["cat"]
    assert found.only(None) is found and len(found.only(["bus"])) == 0
    assert found.above(0.6).scores.tolist() == pytest.approx([0.9, 0.6])


def test_a_result_is_a_short_line():
    one, two, three = results()
    assert repr(one) == "Detections: 3 objects: 2 traffic light, 1 cat (best 0.90)"
    assert repr(two[:1]) == "InstanceMasks: 1 object: 1 traffic light (best 0.90)"
    assert repr(three[[]]) == "Keypoints: 0 objects"
    many = [chr(97 + i) for i in range(9)]
    row = Detections(np.zeros((9, 4)), np.arange(9), np.ones(9), many)
    assert repr(row).endswith("1 a, 1 b, 1 c, 1 d, 1 e, 4 of 4 other classes (best 1.00)")
    words = Captions(["A cat", "A dog"], np.float32([0.5, 0.25]))
    assert repr(words) == "Captions: 2 sentences: 'A cat' (0.50)" and words[0] == "A cat"
    assert repr(AllTasks(words, one, None, None)).splitlines() == [repr(words), repr(one)]


# ---- pictures ----------------------------------------------------------------------------------


def test_drawing_takes_the_file_that_was_looked_at(tmp_path):
    save_image(tmp_path / "a.png", picture())
    for found, bare in zip(results(tmp_path / "a.png"), results(), strict=True):
        drawn = found.plot()
        assert drawn.shape == (*SIZE, 3) and (drawn != picture()).any()
        np.testing.assert_array_equal(drawn, bare.plot(picture()))
        found.save(tmp_path / "b.png")
        np.testing.assert_array_equal(load_image(tmp_path / "b.png"), drawn)
        with pytest.raises(ValueError, match="a.png is the image itself"):
            found.save(tmp_path / "a.png")
        with pytest.raises(ValueError, match="does not come from a file"):
            bare.plot()
        with pytest.raises(ValueError, match="the image is 40 x 30, the result is about one of 80"):
            bare.plot(picture()[::2, ::2])
        np.testing.assert_array_equal(found[[]].plot(), picture())
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), picture())


def test_the_picture_of_all_tasks_has_all_of_them():
    objects, outlines, points = results()
    words = Captions(["A cat"], np.float32([0.5]))
    whole = AllTasks(words, objects, outlines, points)
    drawn = whole.plot(picture())
    below = len(drawn) - SIZE[0]
    assert below > 0 and (drawn[SIZE[0] :] == 255).mean() > 0.5
    np.testing.assert_array_equal(drawn[: SIZE[0]], points.draw_points(outlines.plot(picture())))
    assert whole.only("cat").masks.names == ["cat"] and whole.only("cat").captions is words


# ---- tables ------------------------------------------------------------------------------------


def test_a_table_has_a_row_for_each_object_and_always_the_same_columns(found, tmp_path):
    table = found.to_dataframe()
    assert table.label.tolist() == NAMES and table.class_id.tolist() == LABELS.tolist()
    boxes = table[["xmin", "ymin", "xmax", "ymax"]]
    np.testing.assert_allclose(boxes, BOXES, atol=0.005)
    assert list(found[[]].to_dataframe().columns) == list(table.columns)
    if isinstance(found, InstanceMasks):
        assert table.pixels.tolist() == masks().sum(axis=(1, 2)).tolist()
    if isinstance(found, Keypoints):
        np.testing.assert_allclose(table.nose_x, found.points[:, 0, 0], atol=0.005)
        assert table.right_ear_y.isna().tolist() == [False, True, False]
    again = pd.read_csv(_csv(table, tmp_path))
    np.testing.assert_allclose(again.score, SCORES, atol=5e-5)


def _csv(table, folder):
    table.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


def test_sentences_are_rows_too():
    table = Captions(["a, b", "c"], np.float32([0.5, 0.25])).to_dataframe()
    assert table.caption.tolist() == ["a, b", "c"] and table.score.tolist() == [0.5, 0.25]


# ---- COCO, YOLO, supervision -------------------------------------------------------------------


def test_coco_rows_have_the_ids_of_the_weights(found):
    other = Categories(CATEGORIES.names, {1: 10, 3: 30, 7: 70})
    assert [row["category_id"] for row in found.to_coco(4)] == [7, 1, 7]
    assert [row["category_id"] for row in found.to_coco(4, other)] == [70, 10, 70]
    assert {row["image_id"] for row in found.to_coco(4)} == {4}


def test_labels_of_yolo_are_read_back_as_the_same_objects(found, tmp_path):
    """By the reader of datasets: numbers of classes, centres, order of points and all."""
    exports = Exports(None, tmp_path, None, CATEGORIES)
    save_image(tmp_path / "images" / "a.png", picture())
    exports.add(tmp_path / "a.png", "a", picture(), found)
    exports.close()
    (part,) = find_dataset(tmp_path).parts
    errors = AnnotationErrors(tmp_path, skip=True)
    document = part.read(errors)
    assert not errors.counts
    names = {row["id"]: row["name"] for row in document["categories"]}
    rows = document["annotations"]
    assert [names[row["category_id"]] for row in rows] == NAMES
    if isinstance(found, InstanceMasks):
        for row, mask in zip(rows, masks(), strict=True):
            parts = [np.reshape(one, (-1, 2)) for one in row["segmentation"]]
            again = rle_to_mask(polygons_to_rle(parts, SIZE))
            assert (again & mask).sum() / (again | mask).sum() > 0.97
        return
    boxes = np.array([row["bbox"] for row in rows])
    np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], BOXES[:, 2:], atol=0.01)
    if isinstance(found, Keypoints):
        points = np.array([row["keypoints"] for row in rows]).reshape(3, 17, 3)
        shown = found.points[..., 2] > 0
        np.testing.assert_allclose(points[shown], found.points[shown], atol=0.01)
        assert (points[~shown] == 0).all()


def test_joined_parts_have_the_area_of_all():
    squares = [np.float32([[0, 0], [10, 0], [10, 10], [0, 10]]) + shift for shift in (0, 30, 47)]
    x, y = join_parts(squares).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(300)


def test_scores_end_the_lines_of_yolo_and_a_size_may_be_given():
    found, *_ = results()
    lines = found.to_yolo(scores=True).splitlines()
    assert lines[0] == "2 0.3125 0.5 0.5 0.666667 0.9" and lines[1].startswith("0 ")
    assert found.to_yolo((120, 160)).splitlines()[0] == "2 0.15625 0.25 0.25 0.333333"
    with pytest.raises(ValueError, match="does not know its classes"):
        Detections(BOXES, LABELS, SCORES, NAMES).to_yolo(SIZE)


def test_supervision_gets_the_same_objects(found):
    sv = pytest.importorskip("supervision")
    theirs = found.to_supervision()
    assert theirs.class_id.tolist() == LABELS.tolist() and len(theirs) == 3
    assert theirs.data["class_name"].tolist() == NAMES
    if isinstance(found, Keypoints):
        np.testing.assert_array_equal(theirs.xy, found.points[..., :2])
        assert (~theirs.visible).sum() == 1
    else:
        np.testing.assert_array_equal(theirs.xyxy, BOXES)
        assert isinstance(theirs[theirs.confidence > 0.5], sv.Detections)
    if isinstance(found, InstanceMasks):
        np.testing.assert_array_equal(theirs.mask, masks())
    assert len(found[[]].to_supervision()) == 0


def test_a_missing_supervision_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="needs the package supervision .*install it: pip install"):
        to_supervision(results()[0])


def test_pandas_and_supervision_are_loaded_when_they_are_used():
    code = (
        "import sys; import infer.predictor; "
        "print(sorted({'pandas', 'supervision', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- the scripts -------------------------------------------------------------------------------


def test_cut_outs_hold_what_the_boxes_touch():
    image = picture()
    names, pixels = zip(*cut_out(image, results()[0]), strict=True)
    assert list(names) == NAMES
    np.testing.assert_array_equal(pixels[0], image[10:50, 5:45])
    np.testing.assert_array_equal(pixels[1], image[5:40, 20:70])
    np.testing.assert_array_equal(pixels[2], image)


def command_line(*words):
    args = infer_parser("")
    add_box_arguments(args)
    return args.parse_args(["--image", "a.jpg", *words])


def test_exports_of_a_script(tmp_path):
    words = [f"--csv={tmp_path}/all.csv", f"--crops={tmp_path}/crops", f"--yolo={tmp_path}/yolo"]
    args = command_line(*words, f"--out-dir={tmp_path}")
    check_places(args)
    predictor = argparse.Namespace(categories=CATEGORIES)
    paths = [tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg"]
    with Output(args, paths, predictor) as output:
        output.add(paths[0], picture(), "", {}, found=results()[0])
        output.add(paths[1], picture(), "", {}, found=results()[0][[]])
    table = pd.read_csv(tmp_path / "all.csv")
    assert table.image.tolist() == [str(paths[0])] * 3
    written = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    labels = [name for name in written if name.startswith("yolo/labels")]
    assert labels == ["yolo/labels/1.txt", "yolo/labels/2.txt"]
    assert (tmp_path / labels[1]).read_text() == ""
    assert sum(name.startswith("crops/traffic light/") for name in written) == 2
    # labels belong to one picture
    for other in ("b/1.jpg", "a/1.png"):
        with pytest.raises(UserError, match="have one name for --yolo"):
            Output(args, [paths[0], tmp_path / other], predictor)
    # what is there is not replaced
    for again in (f"--crops={tmp_path}/crops", f"--yolo={tmp_path}/yolo"):
        with pytest.raises(UserError, match="is not empty; name a new folder"):
            check_places(command_line(again))
    check_places(command_line(words[0]))
    (tmp_path / "mine.csv").write_text("name,price\n")
    with pytest.raises(UserError, match="mine.csv exists and is not a results file"):
        check_places(command_line(f"--csv={tmp_path}/mine.csv"))


def test_a_box_in_both_forms():
    xywh, _ = read_box_arguments(command_line("--box", "10", "20", "30", "25"), SIZE)
    xyxy, _ = read_box_arguments(command_line("--xyxy", "--box", "10,20,40,45"), SIZE)
    np.testing.assert_array_equal(xywh, xyxy)
    for words, said in (
        (["--xyxy", "--box", "40", "20", "10", "45"], "it is xmin ymin xmax ymax in pixels"),
        (["--xyxy", "--box", "1"], "must be four numbers xmin ymin xmax ymax"),
        (["--xyxy"], "--xyxy says how a --box is written"),
        (["--box", "1", "2", "3"], "must be four numbers x y w h"),
    ):
        with pytest.raises(UserError, match=said):
            read_box_arguments(command_line(*words), SIZE)
