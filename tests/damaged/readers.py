"""What reads a crafted input: the same code that the scripts run."""

from types import SimpleNamespace

import numpy as np

from config import CFG
from dataset.tasks import build_source
from dataset.transforms import PixelTransform, load_pixel_transforms
from download import convert_official_weights, convert_port_weights
from infer.boxes import read_boxes
from infer.predictor import Predictor
from tests.damaged.place import Place
from tokenizer.text import TextTokenizer
from train.checkpoint import load_checkpoint
from train.run_folder import read_settings
from utils.categories import Categories
from utils.cli import snapshot
from utils.images import load_image


def coco(task: str):
    def read(place: Place) -> None:
        source = build_source(task, "coco", place.root, "train")
        for index in range(len(source)):
            source.read(index)

    return read


def voc(place: Place) -> None:
    source = build_source("detection", "voc", place.root, "2012:train")
    for index in range(len(source)):
        source.read(index)


def ground_truth(place: Place) -> None:
    """As the evaluation of masks needs it."""
    truth = build_source("segmentation", "coco", place.root, "train").coco
    for row in truth.dataset["annotations"]:
        truth.annToMask(row)


def image(place: Place) -> None:
    load_image(next(place.root.glob("picture*")))


def weights(place: Place) -> None:
    Predictor(place.root / "w.safetensors").detect(np.zeros((8, 8, 3), np.uint8))


def settings(place: Place) -> None:
    snapshot(CFG, saved=read_settings(place.root))


def checkpoint(place: Place) -> None:
    """As `--resume` reads it; what a sound file holds would go into a run."""
    state = SimpleNamespace(
        model=None, check_origin=lambda values: None, load_state_dict=lambda values: values["model"]
    )
    load_checkpoint(place.root, state)


def vocabulary(place: Place) -> None:
    TextTokenizer.load(next(place.root.glob("vocab*")))


def boxes(place: Place) -> None:
    read_boxes(place.root / "boxes.json", [1, 2], Categories.from_names(["cat"]))


def transform(place: Place) -> None:
    for one in load_pixel_transforms(str(next(place.root.glob("transform*")))):
        PixelTransform(one)


def port(place: Place) -> None:
    sizes = ["--num-classes", "20", "--num-bins", "160", "--image-size", "160"]
    out = str(place.root / "out.safetensors")
    options = ["--port", "moein", "--encoder", "test_vit", *sizes]
    convert_port_weights.main([str(place.root / "w.pth"), out, *options])


def official(place: Place) -> None:
    configs = [*place.root.glob("config.json")]
    how = ["--config", str(configs[0])] if configs else ["--variant", "vit-b"]
    how += [] if configs else ["--image-size", "640"]
    out = str(place.root / "out.safetensors")
    convert_official_weights.main([str(place.root / "ckpt-1"), out, *how])
