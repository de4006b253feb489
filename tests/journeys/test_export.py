"""Weights leave as ONNX and find the same objects without the project, as docs/export.md says."""

import json
import shutil

import numpy as np
import pytest

from tests.journeys.clone import Clone

pytestmark = pytest.mark.slow

WEIGHTS = "weights/demo.safetensors"
ALONE = (  # what the program may not need
    "import runpy, sys; "
    "sys.modules.update(dict.fromkeys(('torch', 'timm', 'cv2', 'onnx', 'infer', 'utils'))); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def clone(fresh_clone) -> Clone:
    return fresh_clone


def test_exported_weights_find_the_same_objects_elsewhere(clone, scratch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    done = clone.run(f"python infer/export_onnx.py {WEIGHTS} exported", seconds=600)
    assert "the same: logits within" in done.stderr and "wrote exported" in done.stdout
    assert {path.name for path in (clone.root / "exported").iterdir()} == {
        "encoder.onnx", "decoder.onnx", "model.json", "run.py",
    }  # fmt: skip
    again = clone.run(f"python infer/export_onnx.py {WEIGHTS} exported", seconds=60, status=2)
    assert "is not empty; name a new one" in again.stderr

    # Another folder, where nothing of the project can be found
    elsewhere = scratch / "elsewhere"
    shutil.move(clone.root / "exported", elsewhere)
    pictures = ["images/demo.jpg", "dataset/bccd/images/val/BloodImage_00035.jpg"]
    for picture in pictures:
        shutil.copy(clone.root / picture, elsewhere)
    names = " ".join(picture.rpartition("/")[2] for picture in pictures)
    options = f"run.py {names} --json found.json"
    clone.run(f'cd {elsewhere} && python -c "{ALONE}" {options}', seconds=120)
    found = json.loads((elsewhere / "found.json").read_text())

    # The script of the project, greedily
    script = f"python infer/infer_single_image_object_detection.py --weights {WEIGHTS}"
    options = f"--image {' '.join(pictures)} --score-threshold 0 --set top_k=1 --json"
    rows = json.loads(clone.run(f"{script} {options}", seconds=120).stdout)
    for row, wanted in zip(found, rows, strict=True):
        labels = [one["label"] for one in row["objects"]]
        assert labels == [one["label"] for one in wanted["objects"]] and labels
        boxes, theirs = ([one["box"] for one in each["objects"]] for each in (row, wanted))
        np.testing.assert_allclose(boxes, theirs, atol=0.1)
