"""From a YOLO export to a detector, its report and a drawn picture; an encoder without network.

As docs/own_data.md and docs/own_encoder.md say it.
"""

import json
import re

import pytest

from tests.journeys.clone import SMALL_MODEL, Clone

pytestmark = pytest.mark.slow

TRAIN = "python train/train_coco_object_detection.py"


@pytest.fixture(scope="module")
def clone(fresh_clone) -> Clone:
    return fresh_clone


@pytest.fixture(scope="module")
def export(clone) -> str:
    """The photographs of blood cells as a labelling tool exports them for YOLO, without parts."""
    source, out = clone.root / "dataset" / "bccd", clone.root / "cells"
    for name in ("images", "labels"):
        (out / name).mkdir(parents=True)
    for part in ("train", "val"):
        content = json.loads((source / f"annotations/instances_{part}.json").read_text())
        names = [row["name"] for row in content["categories"]]
        for image in content["images"]:
            path = source / "images" / part / image["file_name"]
            (out / "images" / path.name).symlink_to(path)
            lines = [
                _line(row, image)
                for row in content["annotations"]
                if row["image_id"] == image["id"]
            ]
            (out / "labels" / f"{path.stem}.txt").write_text("".join(lines))
    (out / "data.yaml").write_text(f"train: images\nnames: {json.dumps(names)}\n")
    return "cells"


def _line(row: dict, image: dict) -> str:
    x, y, width, height = row["bbox"]
    center = (x + width / 2) / image["width"], (y + height / 2) / image["height"]
    numbers = *center, width / image["width"], height / image["height"]
    return " ".join(map(str, (row["category_id"] - 1, *numbers))) + "\n"


def test_a_yolo_export_becomes_a_detector_and_a_picture(clone, export):
    looked = clone.run(f"python dataset/check_dataset.py {export}", seconds=90)
    assert "no error found" in looked.stdout
    assert list((clone.root / "dataset_check").rglob("*.png"))

    settings = f"data={export} init_weights=weights/demo.safetensors"
    trained = clone.run(f"{TRAIN} --preset finetune --set {settings} max_minutes=1", seconds=240)
    assert re.search(r"data: cells is a YOLO set \(data.yaml\): train \d+, val \d+", trained.stderr)
    (run,) = clone.root.glob("runs/detection/*/")
    metrics = json.loads((run / "best" / "metrics.json").read_text())
    assert metrics["AP50"] > 0.02, "after a minute"

    clone.run(f"python infer/evaluate.py --weights {run} --out-dir judged", seconds=120)
    page = (clone.root / "judged" / "report.html").read_text()
    assert "Confusion of classes" in page and "http://" not in page and "https://" not in page

    image = sorted((clone.root / export / "images").iterdir())[0].relative_to(clone.root)
    script = "python infer/infer_single_image_object_detection.py"
    seen = clone.run(f"{script} --weights {run} --image {image} --out-dir seen --json", seconds=60)
    (row,) = json.loads(seen.stdout)
    assert {found["label"] for found in row["objects"]} <= {"RBC", "WBC", "Platelets"}
    assert (clone.root / "seen" / "object_detection.png").is_file()


def test_an_encoder_comes_from_a_file_without_network(clone):
    code = "import timm, torch; torch.save(timm.create_model('test_vit').state_dict(), 'vit.pth')"
    clone.run(f'python -c "{code}"', seconds=60)
    small = " ".join(
        f"{k}={v}" for k, v in SMALL_MODEL.items() if k not in ("pretrained", "encoder")
    )
    command = f"{TRAIN} --set data=dataset/bccd {small} max_steps=2 batch_size=4 eval_limit=2"
    refused = clone.run(f"{command} encoder=resnet18", seconds=60, status=2)
    (line,) = [text for text in refused.stderr.splitlines() if text.startswith("error")]
    assert "encoder_weights=FILE" in line and "download/download_encoder.sh resnet18" in line
    done = clone.run(f"{command} encoder=test_vit encoder_weights=vit.pth", seconds=120)
    assert "encoder from vit.pth (sha256 " in done.stderr
