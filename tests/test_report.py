"""The report of an evaluation: its numbers against brute force, its page without a network."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from config import CFG
from dataset.tasks import build_source
from infer import detection, evaluate
from infer.report import curves, objects
from infer.report.errors import (
    KINDS,
    confusion_matrix,
    corrected,
    error_costs,
    find_errors,
    mean_ap50,
    shorten_matrix,
)
from infer.report.matching import Judged, best_overlaps, errors_per_image, judged_of, match_by_class
from infer.report.poses import joint_table, measure_joints
from infer.report.write import FIGURES, write_report
from infer.results import Detections, Report
from tests.test_metrics import coco_of
from utils.detection_metrics import coco_truth, evaluate_coco, pairwise_iou, voc_truth

NAMES = {1: "cat", 2: "dog", 5: "bird"}
THRESHOLDS = (0.0, 0.2, 0.5, 0.8)


def case(seed=0, images=14):
    """Ground truth with crowds; results that are moved, doubled, of another class, or noise."""
    rng = np.random.default_rng(seed)
    truth, rows = {}, []
    for image in range(1, images + 1):
        n = 0 if image == 3 else int(rng.integers(1, 7))
        corner = rng.uniform(0, 80, (n, 2))
        boxes = np.hstack([corner, corner + rng.uniform(5, 60, (n, 2))])
        truth[image] = {"boxes": boxes, "labels": rng.choice(list(NAMES), n)}
        for k in rng.integers(0, n, 2 * n) if n else []:
            label = truth[image]["labels"][k] if rng.random() < 0.8 else rng.choice(list(NAMES))
            box = boxes[k] + rng.normal(0, 5, 4)
            box[2:] = np.maximum(box[2:], box[:2] + 2)
            rows.append((image, int(label), box, round(float(rng.random()), 2)))
        noise = rng.uniform(0, 80, (2, 2))
        for corner in noise:
            rows.append((image, 2, np.hstack([corner, corner + 20]), round(float(rng.random()), 2)))
    coco = coco_of(truth)
    coco.dataset["categories"] = [{"id": i, "name": name} for i, name in NAMES.items()]
    coco.createIndex()
    for number, annotation in enumerate(coco.dataset["annotations"], 1):
        annotation |= {"id": number, "iscrowd": int(number % 9 == 0)}
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    coco.createIndex()
    results = [
        {"image_id": i, "category_id": k, "bbox": [*b[:2], *(b[2:] - b[:2])], "score": s}
        for i, k, b, s in rows
    ]
    return Judged("bbox", coco, results, list(truth), NAMES)


@pytest.fixture(scope="module")
def judged():
    return case()


@pytest.fixture(scope="module")
def matches(judged):
    return match_by_class(judged)


def corners(row):
    x, y, w, h = row["bbox"]
    return [x, y, x + w, y + h]


def brute(judged, threshold, same_class=True):
    """Pairs (result, object), wrong results and missed objects, one result after the other."""
    pairs, wrong, missed = [], [], []
    for image in judged.image_ids:
        results = [r for r in judged.rows if r["image_id"] == image and r["score"] >= threshold]
        truth = judged.truth.imgToAnns[image]
        free = [o for o in truth if not o["iscrowd"]]
        for result in sorted(results, key=lambda r: -r["score"]):
            fit = [o for o in free if not same_class or o["category_id"] == result["category_id"]]
            iou = [pairwise_iou([corners(result)], [corners(o)])[0, 0] for o in fit]
            if iou and max(iou) >= 0.5:
                best = fit[int(np.argmax(iou))]
                free = [o for o in free if o is not best]
                pairs.append((result, best))
            elif not on_crowd(result, truth, same_class):
                wrong.append(result)
        missed += free
    return pairs, wrong, missed


def on_crowd(result, truth, same_class):
    """Whether half of the result lies on a crowd."""
    x1, y1, x2, y2 = corners(result)
    for o in (o for o in truth if o["iscrowd"]):
        a1, b1, a2, b2 = corners(o)
        common = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
        right = not same_class or o["category_id"] == result["category_id"]
        if right and common >= 0.5 * (x2 - x1) * (y2 - y1):
            return True
    return False


def test_curves_are_counts_at_every_threshold(judged, matches):
    pooled, of_class = curves.pooled_curve(matches), curves.class_curves(matches, judged)
    for threshold in THRESHOLDS:
        pairs, wrong, missed = brute(judged, threshold)
        for number, curve in [(None, pooled), *of_class.items()]:
            tp, fp, fn = (
                sum(number in (None, row["category_id"]) for row in rows)
                for rows in ([o for _, o in pairs], wrong, missed)
            )
            at = np.flatnonzero(curve.threshold >= threshold)[-1]
            assert curve.precision[at] == pytest.approx(tp / (tp + fp))
            assert curve.recall[at] == pytest.approx(tp / (tp + fn))
            assert curve.f1[at] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        counts = errors_per_image(matches, judged, threshold)
        assert counts.sum().tolist() == [len(pairs), len(wrong), len(missed)]
        assert counts.loc[3, "missed"] == 0
    best = curves.best_threshold(pooled)
    sizes = [2 * len(brute(judged, t)[0]) / (
        2 * len(brute(judged, t)[0]) + len(brute(judged, t)[1]) + len(brute(judged, t)[2])
    ) for t in (best - 0.01, best, best + 0.01)]  # fmt: skip
    assert sizes[1] >= max(sizes)


def test_equal_scores_are_one_point_and_no_result_is_none():
    curve = curves.count_curve(np.array([0.5, 0.9, 0.5]), np.array([False, True, True]), 4)
    assert curve.threshold.tolist() == [0.9, 0.5]
    assert curve.precision.tolist() == [1, 2 / 3] and curve.recall.tolist() == [0.25, 0.5]
    empty = curves.count_curve(np.zeros(0), np.zeros(0, bool), 4)
    assert len(empty) == 0 and empty.best is None
    assert curves.best_threshold(empty) == curves.NO_THRESHOLD


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_confusion_matrix_counts_pairs_of_any_class(judged, threshold):
    matrix = confusion_matrix(judged, threshold)
    pairs, wrong, missed = brute(judged, threshold, same_class=False)
    expected = pd.DataFrame(0, matrix.index, matrix.columns)
    for result, one in pairs:
        expected.loc[NAMES[one["category_id"]], NAMES[result["category_id"]]] += 1
    for result in wrong:
        expected.loc["background", NAMES[result["category_id"]]] += 1
    for one in missed:
        expected.loc[NAMES[one["category_id"]], "background"] += 1
    pd.testing.assert_frame_equal(matrix, expected)
    short = shorten_matrix(matrix, 1)
    assert list(short.columns) == ["cat", "other classes", "background"]
    assert short.to_numpy().sum() == matrix.to_numpy().sum()
    assert short.iloc[1, 1] == matrix.iloc[1:3, 1:3].to_numpy().sum()


def test_ap50_is_that_of_the_metrics(judged, matches):
    metrics = evaluate_coco(judged.truth, judged.rows, image_ids=judged.image_ids)
    assert mean_ap50(judged) == pytest.approx(metrics["AP50"])
    per_class = metrics["per_class"].set_index("category_id")["AP50"]
    assert {k: pytest.approx(v) for k, v in matches.ap50.items()} == per_class.to_dict()


# ---- kinds of errors ---------------------------------------------------------------------------


def scene():
    """One error of each kind, beside results that are right."""
    truth = [  # x, y, w, h
        (1, [0, 0, 100, 100]), (1, [200, 0, 100, 100]), (2, [400, 0, 100, 100]),
        (1, [600, 0, 100, 100]), (2, [0, 300, 100, 100]), (2, [800, 0, 100, 100]),
    ]  # fmt: skip
    found = [
        (1, [0, 0, 100, 100], 0.9, None),
        (1, [0, 0, 100, 90], 0.8, "duplicate"),
        (1, [60, 0, 100, 100], 0.85, "localisation"),  # of an object that another result finds
        (1, [260, 0, 100, 100], 0.7, "localisation"),  # IoU 0.25
        (1, [270, 0, 100, 100], 0.95, "localisation"),
        (1, [400, 0, 100, 100], 0.6, "class"),
        (2, [660, 0, 100, 100], 0.5, "both"),
        (2, [300, 600, 50, 50], 0.99, "background"),
        (2, [0, 300, 100, 100], 0.4, None),
    ]
    coco = coco_of({1: {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}})
    coco.dataset["annotations"] = [
        {"id": i, "image_id": 1, "category_id": k, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for i, (k, b) in enumerate(truth, 1)
    ]
    coco.dataset["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    coco.createIndex()
    rows = [{"image_id": 1, "category_id": k, "bbox": b, "score": s} for k, b, s, _ in found]
    judged = Judged("bbox", coco, rows, [1], {1: "cat", 2: "dog"})
    return judged, {i: kind for i, (*_, kind) in enumerate(found) if kind}


def test_each_error_has_its_kind():
    judged, expected = scene()
    errors = find_errors(judged, match_by_class(judged))
    assert errors.results["kind"].to_dict() == expected
    assert errors.missed == {4, 6}, "those with a bad box or class are not missed"


def test_a_corrected_kind_is_gone_and_costs_what_ap_gains():
    judged, _ = scene()
    matches = match_by_class(judged)
    errors = find_errors(judged, matches)
    costs = error_costs(judged, matches, errors, 0.65).set_index("kind")
    assert costs["errors"].tolist() == [3, 1, 1, 1, 1, 2]
    assert costs["at the threshold"].tolist() == [3, 0, 0, 1, 1, 5]
    for kind in KINDS:
        rows, without = corrected(judged, matches, errors, kind)
        changed = Judged("bbox", judged.truth, rows, [1], judged.names)
        left = find_errors(changed, match_by_class(changed)).results["kind"]
        assert kind not in set(left)
        gain = mean_ap50(judged, rows, without) - mean_ap50(judged)
        assert costs.loc[kind, "cost in AP50"] == pytest.approx(gain)
        assert (gain > 0.01) == (kind != "duplicate"), "nothing right comes after that one"
    # of two results of one object the better one is corrected, the other one goes
    rows, _ = corrected(judged, matches, errors, "localisation")
    assert len(rows) == 7 and [r["score"] for r in rows if r["bbox"][0] == 200] == [0.95]
    assert [r["score"] for r in rows if r["bbox"] == [0, 0, 100, 100]] == [0.9]


def test_all_missed_objects_of_a_class_leave_its_results_wrong():
    judged, _ = scene()
    only = frozenset({3, 5, 6})  # all dogs
    assert mean_ap50(judged, judged.rows, only) == pytest.approx(match_by_class(judged).ap50[1] / 2)
    cats = [row for row in judged.rows if row["category_id"] == 1]
    assert mean_ap50(judged, cats, only) == pytest.approx(match_by_class(judged).ap50[1])


# ---- calibration, ranges, joints ---------------------------------------------------------------


def test_calibration_is_that_of_a_coin_that_keeps_its_word():
    rng = np.random.default_rng(0)
    scores = rng.random(20000)
    fair = curves.calibration_table(scores, rng.random(20000) < scores)
    assert curves.calibration_error(fair) < 0.02
    sure = curves.calibration_table(np.array([0.92, 1.0, 0.31, 0.05]), np.array([1, 0, 1, 0]) > 0)
    assert sure["results"].tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0, 2]
    # bins of 0.05, of 0.31, and of 0.92 with 1.0
    assert curves.calibration_error(sure) == pytest.approx((0.05 + 0.69 + 2 * 0.46) / 4)
    assert np.isnan(curves.calibration_error(curves.calibration_table(np.zeros(0), np.zeros(0))))


def test_sizes_of_coco_give_its_numbers(judged, monkeypatch):
    monkeypatch.setattr(curves, "SIZES", (0, 32, 96, np.inf))
    table = curves.by_size(judged)
    metrics = evaluate_coco(judged.truth, judged.rows, image_ids=judged.image_ids)
    expected = [metrics[name] for name in ("APs", "APm", "APl") if metrics[name] >= 0]
    assert len(expected) > 1 and table["AP"].tolist() == pytest.approx(expected)
    objects = [o for o in judged.truth.dataset["annotations"] if not o["iscrowd"]]
    assert table["objects"].sum() == len(objects)


def test_shapes_turn_round_when_pictures_do(judged):
    def turned(row):
        x, y, w, h = row["bbox"]
        return row | {"bbox": [y, x, h, w]}

    other = case()
    other.truth.dataset["annotations"] = [turned(o) for o in other.truth.dataset["annotations"]]
    other.truth.createIndex()
    rows = [turned(row) for row in judged.rows]
    mirrored = Judged("bbox", other.truth, rows, judged.image_ids, NAMES)
    first, second = curves.by_shape(judged), curves.by_shape(mirrored)
    assert len(first) == len(curves.SHAPE_NAMES) and first["AP"].std() > 0.01
    pd.testing.assert_frame_equal(first.iloc[::-1, 1:].reset_index(drop=True), second.iloc[:, 1:])


def test_joints_add_up_to_the_oks_of_pycocotools():
    rng = np.random.default_rng(0)
    truth = {i: {"boxes": np.float32([[0, 0, 90, 60]]), "labels": np.array([1])} for i in (1, 2, 3)}
    coco, rows = coco_of(truth), []
    for annotation in coco.dataset["annotations"]:
        points = np.column_stack([rng.uniform(0, 60, (3, 2)), [2, 1, 0]])
        annotation |= {"area": 3000, "num_keypoints": 2, "keypoints": points.ravel().tolist()}
        moved = points + np.column_stack([rng.normal(0, 4, (3, 2)), [0, -1, 2]])
        if annotation["image_id"] == 3:
            moved[:, :2] += 300
        rows.append({"image_id": annotation["image_id"], "category_id": 1, "score": 0.5})
        rows[-1]["keypoints"] = moved.ravel().tolist()
    judged = Judged("keypoints", coco, rows, [1, 2, 3], {1: "person"}, [0.07, 0.1, 0.05])
    joints = measure_joints(judged)
    assert (joints.persons, joints.paired, len(joints.joint)) == (3, 2, 4)
    evaluation = judged.open()
    match_by_class(judged)
    evaluation.evaluate()
    expected = [value for value in best_overlaps(evaluation).values() if value > 0.1]
    assert joints.similarity.reshape(2, 2).mean(1) == pytest.approx(expected)
    table = joint_table(joints, ("nose", "tail", "never labelled"))
    assert table["joint"].tolist() == ["nose", "tail"] and table["labelled"].tolist() == [2, 2]
    assert table["called visible"].tolist() == [1, 0]
    points = np.reshape([o["keypoints"] for o in coco.dataset["annotations"]], (3, 3, 3))
    found = np.reshape([row["keypoints"] for row in rows], (3, 3, 3))
    distance = np.hypot(*(points - found)[:2, 0, :2].T) / 90
    assert table["mean distance"][0] == pytest.approx(distance.mean())
    assert table["PCK@0.05"][0] == pytest.approx((distance <= 0.05).mean())


# ---- both benchmarks ---------------------------------------------------------------------------


def test_truth_of_one_layout_is_that_of_the_other(judged):
    truth = voc_truth(judged.truth, judged.image_ids)
    coco = coco_truth(truth, NAMES)
    assert voc_truth(coco, judged.image_ids).keys() == truth.keys()
    for image_id, one in voc_truth(coco, judged.image_ids).items():
        for name, values in one.items():
            np.testing.assert_allclose(values, truth[image_id][name])
    metrics = [
        evaluate_coco(c, judged.rows, image_ids=judged.image_ids) for c in (coco, judged.truth)
    ]
    assert metrics[0]["AP"] == metrics[1]["AP"] > 0.05


def test_each_layout_has_the_metrics_of_both(demo_set, monkeypatch):
    """The drawn set is there in both layouts, with the same pictures."""
    sources = [build_source("detection", "coco", demo_set, "val")]
    sources.append(build_source("detection", "voc", demo_set, "2012:val"))
    objects_of = {}
    for i, image_id in enumerate(sources[0].image_ids.tolist()):
        boxes, labels = sources[0].objects(i)
        moved = boxes + np.random.default_rng(image_id).normal(0, 2, boxes.shape)
        names = [sources[0].categories.names[label] for label in labels.tolist()]
        objects_of[image_id] = moved.astype(np.float32), names

    def detect(trained, images, options, *, image_ids, categories):
        found = []
        for boxes, names in (objects_of[int(image_id)] for image_id in image_ids):
            labels = np.array([categories.ids_of_names[name] for name in names], np.int64)
            scores = np.linspace(1, 0.1, len(names), dtype=np.float32)
            found.append(Detections(boxes, labels, scores, names))
        return found

    monkeypatch.setattr(detection, "detect", detect)
    monkeypatch.setattr(detection, "detection_tokenizer", lambda *_: None)
    coco, voc = (
        detection.evaluate(SimpleNamespace(categories=source.categories), source).metrics
        for source in sources
    )
    assert next(iter(coco)) == "AP" and next(iter(voc)) == "mAP50"
    assert 0.2 < coco["AP"] < 1
    assert voc["coco/AP"] == pytest.approx(coco["AP"], abs=0.02)
    assert voc["coco/AP50"] == pytest.approx(coco["AP50"], abs=0.02)
    assert coco["voc/AP50"] == pytest.approx(voc["mAP50"], abs=0.02)


# ---- the page ----------------------------------------------------------------------------------


def detections_like(source, seed=0, names=None):
    """Results near the objects of a source, as its rows would be."""
    rng = np.random.default_rng(seed)
    return [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": (np.array(row["bbox"]) + rng.normal(0, 3, 4)).clip(1).tolist(),
            "score": float(rng.random()),
        }
        for row in source.coco.dataset["annotations"]
    ]


def report_of(source, rows):
    ids = [i.item() if hasattr(i, "item") else i for i in source.image_ids]
    return Report({"AP": 0.5, "AP50": 0.7, "APl": -1.0}, pd.DataFrame(), "", rows, ids)


def check_page(path):
    """It has text and figures, and asks nobody for anything."""
    text = path.read_text()
    without = re.sub(r'src="data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+"', "", text)
    assert not re.search(r"src=|url\(|@import|<link|<script|https?:", without)
    charts = sorted(p.name for p in (path.parent / "report").glob("*.png"))
    assert charts and text.count("data:image/png") == len(charts)
    return text


def test_a_page_of_boxes(demo_set, tmp_path):
    source = build_source("detection", "coco", demo_set, "val")
    report = report_of(source, detections_like(source))
    facts = ["W & <b>", "val"]
    first = write_report("detection", CFG, source, report, tmp_path / "a", facts)
    text = check_page(first)
    assert "W &amp; &lt;b&gt;" in text and "6 pictures" in text
    assert "of 6 pictures have an error" in text and "<td>–</td>" in text
    figures = tmp_path / "a" / "report"
    written = sorted(figures.iterdir())
    (figures / "worst_pictures_99.jpg").touch()
    (figures / "joints.png").touch()
    mine = [tmp_path / "a" / "mine.txt", figures / "thesis.tex", figures / "IMG_1.jpg"]
    for file in mine:
        file.touch()
    again = write_report("detection", CFG, source, report, tmp_path / "a", facts)
    assert again.read_text() == text, "the same results give the same page"
    assert sorted(set(figures.iterdir()) - set(mine)) == written, "those of before are gone"
    assert all(file.exists() for file in mine)


def test_a_page_without_results_and_with_pictures_that_are_gone(demo_set, tmp_path):
    root = shutil.copytree(demo_set, tmp_path / "set")
    source = build_source("detection", "coco", root, "val")
    for image in list((root / "val2017").iterdir())[:-1]:
        image.write_bytes(b"gone")
    (tmp_path / "out").mkdir()
    text = check_page(
        write_report("detection", CFG, source, report_of(source, []), tmp_path / "out", [])
    )
    assert "No result is right" in text and "There are no results" in text
    assert "cannot be read any more" in text
    assert text.count("data:image/jpeg") <= 1


def test_many_classes_are_cut_to_the_most_frequent_and_the_page_says_so(judged):
    names = {i: f"class {i} $x^2$" for i in range(1, 1204)}
    truth = {
        1: {
            "boxes": np.tile([[0, 0, 9, 9]], (60, 1)),
            "labels": np.arange(1, 61),
            "difficult": [0] * 60,
        }
    }
    rows = [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 9, 9], "score": 0.7}]
    many = Judged("bbox", coco_truth(truth, names), rows, [1], names)
    found = objects.Findings.of(None, many)
    curve, confusion = objects.curve_section(found), objects.confusion_section(found)
    assert any("Of 60 classes with objects, the 10" in line for line in curve.text)
    assert len(curve.tables[0][1]) == 60
    assert any("most frequent of 1203 classes" in line for line in confusion.text)


def test_classes_come_by_their_number_of_objects(demo_set):
    source = build_source("detection", "voc", demo_set, "2012:val")
    judged = judged_of(source, report_of(source, []), "bbox")
    counts = [len(judged.truth.getAnnIds(catIds=[number])) for number in judged.names]
    assert counts == sorted(counts, reverse=True) and counts[0] > 0


def test_every_task_has_a_page(multi_weights, multi_settings, tmp_path, capsys):
    settings = ["--set", *multi_settings, "eval_limit=2", "seg_samples=1", "num_workers=0"]
    out = tmp_path / "out"
    arguments = ["--task", "all", "--weights", str(multi_weights), "--out-dir", str(out)]
    evaluate.main([*arguments, *settings])
    for task in ("detection", "segmentation", "keypoint", "captioning"):
        text = check_page(out / task / "report.html")
        assert "All numbers" in text and "2 pictures" in text
        names = [p.name for p in (out / task / "report").iterdir()]
        assert all(map(FIGURES.fullmatch, names)), "the next report replaces them"
    assert capsys.readouterr().err.count("report.html") == 4
    shutil.rmtree(out)
    arguments[1] = "captioning"
    evaluate.main([*arguments, "--no-report", *settings])
    assert sorted(p.name for p in out.iterdir()) == [
        "metrics.json",
        "per_class.csv",
        "results.json",
    ]
