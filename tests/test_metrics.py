"""COCO and VOC average precision against second, slow implementations and known answers."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from utils.detection_metrics import (
    KEYPOINT_KEYS,
    KEYS,
    detections_to_coco,
    evaluate_coco,
    evaluate_voc,
    pairwise_iou,
)

NAMES = {1: "cat", 2: "dog", 5: "bird", 9: "never seen"}
LABELS = [1, 2, 5]


def random_boxes(rng, n):
    corner = rng.uniform(0, 60, (n, 2))
    return np.hstack([corner, corner + rng.uniform(5, 40, (n, 2))]).astype(np.float32)


@pytest.fixture(scope="module")
def voc_case():
    """Ground truth (one image without objects) and detections: moved objects, doubles, noise."""
    rng = np.random.default_rng(0)
    truth, found = {}, {}
    for image in range(25):
        n = 0 if image == 3 else int(rng.integers(1, 9))
        boxes, labels = random_boxes(rng, n), rng.choice(LABELS, n)
        truth[image] = {"boxes": boxes, "labels": labels, "difficult": rng.random(n) < 0.2}
        keep = rng.integers(0, n, 2 * n) if n else np.zeros(0, int)
        moved = boxes[keep] + rng.normal(0, 3, (len(keep), 4)).astype(np.float32)
        found[image] = {
            "boxes": np.concatenate([moved, random_boxes(rng, 4)]),
            "labels": np.concatenate([labels[keep], rng.choice(LABELS, 4)]),
            "scores": rng.random(len(keep) + 4),
        }
    del found[7]  # an image without detections counts
    return truth, found


def slow_voc_ap(truth, found, label, threshold=0.5):
    """The development kit, one detection at a time in whole pixels, plain Python."""
    rows = sorted(
        (-score, i, k)
        for i, d in found.items()
        for k, (score, its_label) in enumerate(zip(d["scores"], d["labels"], strict=True))
        if its_label == label
    )
    total = sum(
        int(its_label == label and not difficult)
        for t in truth.values()
        for its_label, difficult in zip(t["labels"], t["difficult"], strict=True)
    )
    taken, true, false, curve = set(), 0, 0, []
    for _, i, k in rows:
        box, best, best_j = found[i]["boxes"][k].astype(float), -1.0, None
        for j, other in enumerate(truth[i]["boxes"].astype(float)):
            if truth[i]["labels"][j] != label:
                continue
            w = min(box[2], other[2]) - max(box[0], other[0])
            h = min(box[3], other[3]) - max(box[1], other[1])
            if w > 0 and h > 0:
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
                overlap = w * h / (sum(areas) - w * h)
                if overlap > best:
                    best, best_j = overlap, j
        if best < threshold:
            false += 1
        elif truth[i]["difficult"][best_j]:
            pass
        elif (i, best_j) in taken:
            false += 1
        else:
            taken.add((i, best_j))
            true += 1
        curve.append((true / total, true / max(true + false, 1)))
    steps = np.diff([0.0, *(recall for recall, _ in curve)])
    area = sum(steps[n] * max(p for _, p in curve[n:]) for n in range(len(curve)))
    eleven = [max([p for r, p in curve if r >= t / 10 - 1e-9], default=0.0) for t in range(11)]
    return area, sum(eleven) / 11


def test_voc_equals_a_slow_second_implementation(voc_case):
    result = evaluate_voc(*voc_case, NAMES)
    table = result["per_class"].set_index("label")
    expected = {label: slow_voc_ap(*voc_case, label) for label in LABELS}
    for label, (area, eleven) in expected.items():
        assert 0.1 < area < 0.9
        assert table.AP[label] == pytest.approx(area, abs=1e-12)
        assert table.AP_11point[label] == pytest.approx(eleven, abs=1e-12)
    assert result["mAP50"] == pytest.approx(np.mean([a for a, _ in expected.values()]))
    assert result["mAP50_11point"] == pytest.approx(np.mean([e for _, e in expected.values()]))
    assert np.isnan(table.AP[9]) and table.objects[9] == 0


def voc_toy(boxes, scores, labels=None, difficult=(False, False)):
    truth = {"boxes": np.float32([[0, 0, 10, 10], [20, 0, 30, 10]]), "labels": np.array([1, 1])}
    truth["difficult"] = np.array(difficult)
    labels = np.ones(len(boxes), int) if labels is None else np.array(labels)
    found = {"boxes": np.float32(boxes).reshape(-1, 4), "labels": labels, "scores": scores}
    return evaluate_voc({"a": truth, "b": {"boxes": [], "labels": []}}, {"a": found}, {1: "cat"})


def test_voc_known_answers():
    both = [[0, 0, 10, 10], [20, 0, 30, 10]]
    assert voc_toy(both, [0.9, 0.8])["mAP50"] == 1.0
    assert voc_toy([], [])["mAP50"] == 0.0
    assert voc_toy(both[:1], [0.9])["mAP50"] == 0.5
    # the second find of one object is a false positive before the other object is found
    doubled = voc_toy([both[0], *both], [0.9, 0.95, 0.8])
    assert doubled["mAP50"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert doubled["mAP50_11point"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    # a difficult object is neither missed nor does finding it, even twice, cost anything
    assert voc_toy(both[:1], [0.9], difficult=(False, True))["mAP50"] == 1.0
    both_and_double = voc_toy([both[1], both[1], both[0]], [0.9, 0.8, 0.1], difficult=(0, 1))
    assert both_and_double["mAP50"] == 1.0
    assert voc_toy(both, [0.9, 0.8], labels=[2, 2])["mAP50"] == 0.0


def test_voc_continuous_boxes_give_the_pixel_counting_overlap():
    rng = np.random.default_rng(1)
    a, b = (np.sort(rng.integers(1, 50, (40, 2, 2)), axis=1).reshape(-1, 4) for _ in range(2))
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.prod(np.maximum(high - low + 1, 0), axis=2)
    areas = [np.prod(x[:, 2:] - x[:, :2] + 1, axis=1) for x in (a, b)]
    expected = common / (areas[0][:, None] + areas[1] - common)
    shift = np.array([1, 1, 0, 0])
    np.testing.assert_allclose(pairwise_iou(a - shift, b - shift), expected, atol=1e-12)


def test_reversed_and_empty_boxes_overlap_nothing():
    boxes = [[5, 5, 5, 5], [9, 0, 1, 8], [9, 9, 1, 1]]
    assert not pairwise_iou(boxes, [[5, 5, 5, 5], [0, 0, 10, 10]]).any()


def test_voc_detections_of_unknown_images_are_refused():
    with pytest.raises(ValueError, match="of images with ground truth, got \\['b'\\]"):
        evaluate_voc({"a": {"boxes": [], "labels": []}}, {"b": {}}, {1: "cat"})


def coco_of(truth, **extra):
    coco = COCO()
    coco.dataset = {"images": [{"id": i, "height": 100, "width": 100} for i in truth]}
    coco.dataset["categories"] = [{"id": i, "name": name} for i, name in NAMES.items()]
    coco.dataset["annotations"] = []
    for i, t in truth.items():
        for box, label in zip(t["boxes"].tolist(), t["labels"].tolist(), strict=True):
            row = {"id": len(coco.dataset["annotations"]), "image_id": i, "category_id": label}
            row["bbox"] = [*box[:2], box[2] - box[0], box[3] - box[1]]
            coco.dataset["annotations"].append(row | extra)
    coco.createIndex()
    return coco


def results_of(found):
    rows = []
    for i, d in found.items():
        rows += detections_to_coco(i, d["boxes"], d["scores"], d["labels"])
    return rows


def test_coco_of_the_ground_truth_itself_is_one(voc_case, capsys):
    truth, _ = voc_case  # the first annotation has id 0, none has area or iscrowd
    perfect = {i: t | {"scores": np.full(len(t["labels"]), 0.5)} for i, t in truth.items()}
    coco = coco_of(truth)
    capsys.readouterr()
    metrics = evaluate_coco(coco, results_of(perfect))
    assert set(metrics) == {*KEYS, "per_class", "table"}
    assert metrics["AP"] == pytest.approx(1.0) and metrics["AR100"] == pytest.approx(1.0)
    assert metrics["AP"] != metrics["APl"] == -1  # nothing is larger than 96 pixels
    assert capsys.readouterr() == ("", "")
    assert metrics["table"].count("\n") == 11 and "Average Precision" in metrics["table"]


def test_coco_and_voc_are_close_on_the_same_easy_data(voc_case):
    truth, found = voc_case
    truth = {i: t | {"difficult": np.zeros(len(t["labels"]), bool)} for i, t in truth.items()}
    coco = evaluate_coco(coco_of(truth), results_of(found))
    voc = evaluate_voc(truth, found, NAMES)
    per_class = coco["per_class"].set_index("category_id")
    # COCO samples 101 recalls and may give a detection its second-best object
    np.testing.assert_allclose(
        per_class.AP50[LABELS], voc["per_class"].set_index("label").AP[LABELS], atol=0.04
    )
    assert coco["AP50"] == pytest.approx(per_class.AP50[LABELS].mean())
    assert np.isnan(per_class.AP[9]) and per_class.name[5] == "bird"


def test_coco_counts_images_without_results_and_ignores_the_others(voc_case):
    truth, found = voc_case
    coco, rows = coco_of(truth), results_of(found)
    full, half = (evaluate_coco(coco, r)["AP50"] for r in (rows, rows[: len(rows) // 2]))
    assert half < 0.8 * full
    some = evaluate_coco(coco, rows, image_ids=[0, 1, 2])
    only = {i: truth[i] for i in (0, 1, 2)}
    rows = [r for r in rows if r["image_id"] in only]
    assert some["AP"] == evaluate_coco(coco_of(only), rows)["AP"]
    assert some["per_class"].objects.sum() == sum(len(t["labels"]) for t in only.values())


def test_coco_without_results_is_zero(voc_case):
    metrics = evaluate_coco(coco_of(voc_case[0]), [])
    assert metrics["AP"] == metrics["AR100"] == 0.0


def test_coco_leaves_its_arguments_alone(voc_case):
    truth, found = voc_case
    coco, rows = coco_of(truth, segmentation=[[0, 0, 9, 0, 9, 9]], area=40.5), results_of(found)
    for row in rows:
        row["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    before = json.dumps([coco.dataset, rows])
    evaluate_coco(coco, rows)
    assert json.dumps([coco.dataset, rows]) == before


def test_coco_segmentation_measures_masks_by_their_own_area():
    polygon = [[10.0, 10.0, 60.0, 10.0, 10.0, 60.0]]  # 1250 pixels: medium
    truth = {1: {"boxes": np.float32([[10, 10, 60, 60]]), "labels": np.array([5])}}
    coco = coco_of(truth, area=1250, segmentation=polygon)
    rle = coco.annToRLE(coco.anns[0])
    found = {"image_id": 1, "category_id": 5, "score": 0.7, "segmentation": rle}
    assert evaluate_coco(coco, [found], "segm")["APm"] == pytest.approx(1.0)
    away = coco.annToRLE({"image_id": 1, "segmentation": [[v + 35 for v in polygon[0]]]})
    wrong = found | {"score": 0.9, "segmentation": away, "bbox": [0, 0, 150, 150]}  # not large
    metrics = evaluate_coco(coco, [wrong, found], "segm")
    assert (metrics["AP"], metrics["APm"]) == pytest.approx((0.5, 0.5))
    assert coco.anns[0]["segmentation"] is polygon


def test_coco_keypoints_with_a_skeleton_of_its_own():
    points = [10, 10, 2, 50, 40, 2, 20, 60, 1]
    truth = {1: {"boxes": np.float32([[10, 10, 50, 60]]), "labels": np.array([1])}}
    coco = coco_of(truth, area=2000, keypoints=points, num_keypoints=3)
    row = {"image_id": 1, "category_id": 1, "score": 0.7, "keypoints": points}
    metrics = evaluate_coco(coco, [row], "keypoints", sigmas=[0.05] * 3)
    assert set(metrics) == {*KEYPOINT_KEYS, "per_class", "table"}
    assert (metrics["AP"], metrics["AR"]) == pytest.approx((1.0, 1.0))


def test_coco_refuses_what_it_cannot_count(voc_case):
    coco = coco_of(voc_case[0])
    with pytest.raises(ValueError, match="iou_type must be one of"):
        evaluate_coco(coco, [], "boxes")
    with pytest.raises(ValueError, match="image ids must be some of the ground truth's, got \\[99"):
        evaluate_coco(coco, [{"image_id": 99}])


def test_detections_to_coco_rows():
    rows = detections_to_coco(
        np.int64(7), np.float32([[1, 2, 4, 8.25]]), np.float32([1.23456789e-7]), np.array([90])
    )
    expected = {"image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 6.25], "score": 1.23457e-7}
    assert rows == [expected] and json.loads(json.dumps(rows)) == rows
    assert detections_to_coco(7, np.zeros((0, 4)), [], []) == []


def read_boxes(folder, ids_of_names):
    """`class [score] left top right bottom` in whole pixels, per image."""
    images = {}
    for path in sorted(folder.glob("*.txt")):
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
        labels = [ids_of_names.setdefault(row[0], len(ids_of_names)) for row in rows]
        images[path.stem] = {
            "boxes": np.float32([row[-4:] for row in rows]).reshape(-1, 4) - [1, 1, 0, 0],
            "labels": np.array(labels, int),
            "scores": np.array([float(row[1]) for row in rows]),
            "difficult": np.zeros(len(rows), bool),
        }
    return images


@pytest.mark.data
def test_voc_on_a_real_detector(real_data):
    ids_of_names = {}
    folder = real_data / "voc_home_objects" / "map_txt"
    truth = read_boxes(folder / "ground-truth", ids_of_names)
    names = {label: name for name, label in ids_of_names.items()}
    found = read_boxes(folder / "predicted", ids_of_names)
    result = evaluate_voc(truth, found, names)
    for row in result["per_class"].itertuples():
        slow = slow_voc_ap(truth, found, row.label)
        assert (row.AP, row.AP_11point) == pytest.approx(slow, abs=1e-12)
    assert len(truth) == 60 and len(names) == 30 and 0.05 < result["mAP50"] < 0.95


@pytest.mark.data
def test_coco_ground_truth_as_results_on_real_annotations(real_data):
    coco = COCO(real_data / "coco" / "annotations" / "instances_val2017.json")
    rows = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1}
        for a in coco.dataset["annotations"]
        if not a["iscrowd"]
    ]
    metrics = evaluate_coco(coco, rows)
    assert metrics["AP"] == pytest.approx(1.0, abs=1e-3)
    assert metrics["per_class"].objects.sum() == len(rows)
    assert len(metrics["per_class"]) == 80
