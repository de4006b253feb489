"""Inference: the Python API, the scripts, evaluation with a perfect oracle."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from config import CFG
from dataset.coco_detection import CocoDetection
from dataset.geometry import Geometry
from dataset.voc_detection import VocDetection
from infer import detection, evaluate, infer_single_image_object_detection
from infer.detection import WHOLE_BUDGET, DetectionOptions, detect
from infer.predictor import Predictor
from infer.results import Detections, score_coco
from infer.tasks import evaluate_task
from infer.trained_model import TrainedModel, shared_categories
from models import load_model, save_model
from tokenizer.detection import DetectionTokenizer
from tokenizer.vocabulary import Vocabulary
from utils.categories import Categories
from utils.cli import snapshot
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "infer" / "infer_single_image_object_detection.py"


class OracleModel:
    """Says the ground truth of the images it is asked about, as a perfect model would."""

    device = torch.device("cpu")

    def __init__(self, source, size, *, num_bins=1000, mode="letterbox", categories=None):
        vocab = Vocabulary.for_classes(max(source.categories.names), num_bins=num_bins)
        self.source, self.mode, self.next = source, mode, 0
        self.tokenizer = DetectionTokenizer(vocab, 100)
        self.config = SimpleNamespace(image_size=size, vocab_size=vocab.size, max_len=500)
        self.meta = {
            "vocabulary": vocab.to_json(),
            "categories": (categories or source.categories).to_json(),
            "tasks": {"detection": self.tokenizer.settings()},
            "resize_mode": mode,
        }

    def encode(self, images):
        return torch.zeros(len(images), 1, 1)

    def generate(self, memory, prompt, *, max_new_tokens, **_options):
        rows = []
        for index in range(self.next, self.next + len(memory)):
            sample = self.source[index]
            geometry = Geometry.letterbox(sample.orig_size, self.config.image_size, self.mode)
            tokens = self.tokenizer.encode(
                geometry.boxes(sample.boxes), sample.labels, self.config.image_size
            )
            rows.append(np.pad(tokens, (0, max_new_tokens - len(tokens))))
        self.next += len(memory)
        tokens = torch.from_numpy(np.stack(rows))
        zeros = torch.zeros(tokens.shape)
        return tokens, zeros, tokens, zeros  # class = the generated one, score 1


def oracle_metrics(source, num_bins=1000, mode="letterbox", size=(640, 640)):
    trained, found = TrainedModel(OracleModel(source, size, num_bins=num_bins, mode=mode)), {}
    for start in range(0, len(source), 16):
        samples = [source[i] for i in range(start, min(start + 16, len(source)))]
        images = [torch.from_numpy(s.image).permute(2, 0, 1) for s in samples]
        results = detect(trained, images)
        found |= dict(zip((s.image_id for s in samples), results, strict=True))
    return score_coco(source, found, source.categories, "bbox").metrics


@pytest.mark.data
@pytest.mark.parametrize(
    ("num_bins", "mode", "least"),
    [(1000, "letterbox", 0.985), (384, "letterbox", 0.95), (1000, "stretch", 0.985)],
)
def test_ground_truth_as_predictions_scores_almost_one(real_data, num_bins, mode, least):
    """Boxes through tokens and back; crowd annotations are ground truth, but nothing to find."""
    metrics = oracle_metrics(CocoDetection(real_data / "coco", "val"), num_bins, mode)
    assert least <= metrics["AP"] <= 1 and metrics["AP50"] > 0.99


def test_ground_truth_of_the_drawn_set_scores_one(demo_set):
    assert oracle_metrics(CocoDetection(demo_set, "val"), 1000, size=(256, 256))["AP"] > 0.985


def test_a_prediction_is_in_the_pixels_of_its_image(demo_set):
    """The same picture at another size gives the same boxes, scaled."""
    source = CocoDetection(demo_set, "val")
    sample = source[0]
    h, w = sample.orig_size
    boxes = []
    for factor in (1, 3):
        image = torch.from_numpy(sample.image).permute(2, 0, 1).float()[None]
        image = torch.nn.functional.interpolate(image, (h * factor, w * factor))[0].byte()
        trained = TrainedModel(OracleModel(source, (256, 256)))
        boxes.append(detect(trained, [image])[0].boxes)
    np.testing.assert_allclose(boxes[1], 3 * boxes[0], rtol=1e-4)


def test_kinds_of_images_agree_and_lists_give_lists(tiny_weights, demo_set):
    predictor, path = Predictor(tiny_weights), sorted((demo_set / "val2017").glob("*.jpg"))[0]
    image = Image.open(path)
    one = predictor.detect(path)
    for same in (str(path), image, np.asarray(image)):
        np.testing.assert_array_equal(predictor.detect(same).boxes, one.boxes)
    many = predictor.detect([path, image])
    assert isinstance(one, Detections) and len(many) == 2
    h, w = np.asarray(image).shape[:2]
    assert (one.boxes >= 0).all() and (one.boxes <= [w, h, w, h]).all()
    assert (np.diff(one.scores) <= 0).all() and len(one) <= 8
    assert len(predictor.detect(path, max_objects=2)) <= 2


def test_results_do_not_depend_on_batch_mates(tiny_weights, demo_set):
    predictor, greedy = Predictor(tiny_weights), DetectionOptions(top_k=1)
    paths = sorted((demo_set / "val2017").glob("*.jpg"))
    together = predictor.detect(paths, greedy)
    for path, found in zip(paths, together, strict=True):
        alone = predictor.detect(path, greedy)
        np.testing.assert_allclose(alone.boxes, found.boxes, atol=1e-3)
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-5)


def test_classes_without_a_name_are_dropped(demo_set):
    source = CocoDetection(demo_set, "val")
    only = Categories({1: "person"}, {1: 1})
    trained = TrainedModel(OracleModel(source, (256, 256), categories=only))
    image = torch.from_numpy(source[0].image).permute(2, 0, 1)
    found = detect(trained, [image])[0]
    assert set(found.names) <= {"person"} and len(found) == (source[0].labels == 1).sum()


def test_weights_of_another_task_are_refused(tiny_weights, tmp_path):
    model = load_model(tiny_weights)
    save_model(model, tmp_path / "w.safetensors", meta=model.meta | {"tasks": {"captioning": {}}})
    with pytest.raises(UserError, match="trained for captioning, not for detection"):
        Predictor(tmp_path / "w.safetensors").detect(np.zeros((9, 9, 3), np.uint8))


def test_asking_for_more_objects_than_trained_is_refused(tiny_weights):
    with pytest.raises(UserError, match="max_objects must be 1 to 8"):
        Predictor(tiny_weights).detect(np.zeros((9, 9, 3), np.uint8), max_objects=9)


def run_script(*arguments, cwd):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_the_command_line_is_understood_before_anything_heavy_is_imported():
    scripts = ["infer.evaluate", *(f"infer.{p.stem}" for p in SCRIPT.parent.glob("infer_*.py"))]
    assert len(scripts) == 7
    heavy = ["torch", "timm", "pandas", "matplotlib", "albumentations", "pycocotools"]
    code = f"import sys, {', '.join(scripts)}; print(sys.modules.keys() & {set(heavy)})"
    done = run_script("-c", code, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_a_model_with_an_official_encoder_imports_only_what_it_needs():
    heavy = {"timm", "torchvision", "pandas", "matplotlib", "albumentations", "torch._dynamo"}
    heavy |= {"pycocotools.coco", "huggingface_hub"}
    code = f"""if True:
        import sys
        import torch
        before = set(sys.modules)
        import numpy as np
        import infer.predictor, infer.results, utils.visualize
        from models import ModelConfig, build_model
        build_model(ModelConfig(encoder="official_resnet", image_size=(64, 64))).eval().prepare()
        print((sys.modules.keys() - before) & {heavy})"""
    done = run_script("-c", code, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_stdout_holds_just_the_results(tiny_weights, tmp_path):
    options = ["--image", ROOT / "images" / "demo.jpg", "--weights", tiny_weights]
    done = run_script(SCRIPT, *options, "--score-threshold", "0", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, columns, *rows = done.stdout.splitlines()
    assert "demo.jpg (520 x 400)" in head
    assert columns.split() == ["label", "score", "xmin", "ymin", "xmax", "ymax"]
    assert rows and all(len(row.split()) == 6 for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["object_detection.png"]
    assert Image.open(tmp_path / "object_detection.png").size == (520, 400)


def test_json_holds_the_same_objects(tiny_weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--image", str(ROOT / "images" / "demo.jpg"), "--weights", str(tiny_weights)]
    options += ["--score-threshold", "0", "--out-dir", "out"]
    infer_single_image_object_detection.main([*options, "--json"])
    printed = json.loads(capsys.readouterr().out)
    infer_single_image_object_detection.main([*options, "--json", "all.json"])
    assert json.loads(Path("all.json").read_text()) == printed
    assert printed[0]["size"] == [520, 400]
    assert set(printed[0]["objects"][0]) == {"label", "score", "box"}


def test_nothing_found_is_a_result(tiny_weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--image", str(ROOT / "images" / "demo.jpg"), "--weights", str(tiny_weights)]
    infer_single_image_object_detection.main([*options, "--score-threshold", "1.0"])
    assert "no object with a score of at least 1" in capsys.readouterr().out
    assert Path("object_detection.png").is_file()


def test_a_folder_gives_one_picture_each_and_reports_the_unreadable(
    tiny_weights, demo_set, tmp_path
):
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = sorted((demo_set / "val2017").glob("*.jpg"))[:2]
    shutil.copy(paths[0], folder / "a.jpg")
    Image.open(paths[1]).save(folder / "a.png")
    shutil.copy(paths[1], folder / "b.jpg")
    (folder / "broken.jpg").write_bytes(paths[0].read_bytes()[:500])
    options = ["--image", folder, "--weights", tiny_weights, "--out-dir", tmp_path / "out"]
    done = run_script(SCRIPT, *options, cwd=tmp_path)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "a.jpg_object_detection.png", "a.png_object_detection.png", "b_object_detection.png",
    }  # fmt: skip
    assert done.returncode == 2 and "broken.jpg" in done.stderr and "Traceback" not in done.stderr
    assert all(name in done.stdout for name in ("a.jpg", "a.png", "b.jpg"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "none.jpg"], "none.jpg"),
        (["--image", "text.jpg", "--weights", "TINY"], "text.jpg"),
        (["--image", "ok.png", "--weights", "none.safetensors"], "no weight file at none"),
        (["--image", "ok.png", "--weights", "text.jpg"], "is not a safetensors file"),
        (["--image", "ok.png", "--device", "cuda:77"], "does not exist"),
        (["--image", "ok.png", "--set", "colour=1"], "no setting 'colour'"),
        (["--image", "ok.png", "--config", "none.json"], "with --config"),
        (["--image", "ok.png", "--set", "demo_weights=none"], "no weights at"),
        (["--image", "ok.png", "--set", "top_k=-1"], "top_k must be at least 0, got -1"),
        (["--image", "ok.png", "--set", "infer_dtype=half"], "infer_dtype must be one of float32,"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(
    tmp_path, monkeypatch, tiny_weights, options, message
):
    options = [str(tiny_weights) if option == "TINY" else option for option in options]
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("hello")
    Image.new("RGB", (8, 8)).save("ok.png")
    with pytest.raises(UserError, match=message) as error:
        infer_single_image_object_detection.main(options)
    assert "\n" not in str(error.value)
    assert not Path("object_detection.png").exists()


def test_evaluation_writes_the_documented_files(tiny_weights, demo_set, tmp_path, capsys):
    options = ["--weights", str(tiny_weights), "--task", "detection", "--device", "cpu"]
    data = ["--set", f"coco_root={demo_set}", f"voc_root={demo_set}", "num_workers=0"]
    evaluate.main(
        ["--no-report", *options, "--dataset", "coco", "--out-dir", str(tmp_path / "coco"), *data]
    )
    assert "Average Precision" in capsys.readouterr().out
    rows = json.loads((tmp_path / "coco" / "results.json").read_text())
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score"}
    assert {"AP", "AP50", "AR100"} <= set(
        json.loads((tmp_path / "coco" / "metrics.json").read_text())
    )
    voc = ["--dataset", "voc", "--split", "2012:val", "--out-dir", str(tmp_path / "voc")]
    evaluate.main(["--no-report", *options, *voc, *data])
    assert "mAP50 (11-point)" in capsys.readouterr().out
    assert (tmp_path / "voc" / "per_class.csv").read_text().startswith("label,name,AP")


def test_results_file_scores_the_same_when_read_back(tiny_weights, demo_set):
    """The written boxes are the evaluated ones, each row its own (no shared dict)."""
    from utils.detection_metrics import evaluate_coco

    source = CocoDetection(demo_set, "val")
    report = detection.evaluate(Predictor(tiny_weights), source)
    again = evaluate_coco(source.coco, json.loads(json.dumps(report.results)), "bbox")
    assert again["AP"] == report.metrics["AP"]
    boxes = {(row["image_id"], *row["bbox"]) for row in report.results}
    assert len(boxes) > len({row["image_id"] for row in report.results})


def test_classes_are_matched_by_name(demo_set):
    coco, voc = CocoDetection(demo_set, "val"), VocDetection(demo_set, "2012:val")
    shared = shared_categories(coco.categories, voc.categories)
    assert shared.names == coco.categories.names
    for label, name in shared.names.items():
        assert voc.categories.names[shared.source_ids[label]] == name
    with pytest.raises(UserError, match="none in common"):
        shared_categories(Categories.from_names(["dragon"]), voc.categories)


def test_an_answer_ends_where_objects_run_out(tiny_weights, demo_set, monkeypatch):
    predictor, said, decode = Predictor(tiny_weights), [], DetectionTokenizer.decode
    monkeypatch.setattr(
        DetectionTokenizer, "decode", lambda *args: said.append(decode(*args)) or said[-1]
    )
    paths = sorted((demo_set / "val2017").glob("*.jpg"))
    predictor.detect(paths, WHOLE_BUDGET)
    full, kept = said.copy(), []
    score = float(np.median([scores for _, _, scores in full]))
    for batch_size in (1, 6):
        said.clear()
        options = DetectionOptions(stop_objects=1, stop_score=score)
        predictor.detect(paths, options, batch_size=batch_size)
        for (boxes, labels, scores), stopped in zip(full, said, strict=True):
            low = np.flatnonzero(scores < score)
            n = low[0] + 1 if len(low) else len(scores)
            kept.append(n)
            np.testing.assert_allclose(stopped[0][:n], boxes[:n], atol=1e-3)
            np.testing.assert_allclose(stopped[2][:n], scores[:n], atol=1e-5)
            assert stopped[1].tolist() == [*labels[:n], *[0] * (len(labels) - n)]
    assert len(set(kept)) > 1 and min(kept) < 8, "rows stop at different places"
    said.clear()
    predictor.detect(paths, options.showing(0.0))
    assert [len(np.flatnonzero(labels)) for _, labels, _ in said] == [8] * 6, "all may be shown"


def test_an_evaluation_stops_only_when_asked(tiny_weights, demo_set):
    predictor, source = Predictor(tiny_weights), CocoDetection(demo_set, "val")
    numbers = {}
    for name, asked in {"default": [], "asked": ["eval_stop_objects=1"]}.items():
        cfg = snapshot(CFG, ["num_workers=0", "stop_objects=1", "stop_score=1", *asked])
        numbers[name] = len(evaluate_task("detection", cfg, predictor, source).results)
    whole = len(detection.evaluate(predictor, source).results)
    assert numbers["default"] == whole > numbers["asked"] > 0
