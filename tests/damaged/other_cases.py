"""Settings, vocabularies, results, transforms and files to convert."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.damaged import readers
from tests.damaged.case import Case, cut, file
from tests.damaged.place import Place, pickled
from tests.tf_writer import write_checkpoint

NAN = float("nan")


def _result(**values) -> Callable[[Place], None]:
    row = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    return lambda place: place.write_json("boxes.json", [row, row | values])


def _transform(name: str, **values) -> Callable[[Place], None]:
    content = {"__version__": "2.0.8", "transform": {"__class_fullname__": name, **values}}
    return lambda place: place.write_json("transform.json", content)


def _checkpoint(change: Callable[[Place], object]) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        write_checkpoint(place.root / "ckpt-1", {"a": np.zeros(9, np.float32)})
        change(place)

    return make


def _port(tensors: object) -> Callable[[Place], None]:
    return lambda place: torch.save(tensors, place.root / "w.pth")


def _run(values: object, name: str = "last.ckpt") -> Callable[[Place], None]:
    return lambda place: torch.save(values, place.root / name)


def _packed(path: Path, content: bytes) -> None:
    """A file as torch.save writes it, with another pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")


def _flipped(place: Place) -> None:
    _run({"model": torch.zeros(99)})(place)
    path = place.root / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[content.index(bytes(99)) + 50] ^= 1
    path.write_bytes(content)


OTHERS = [
    Case(
        "checkpoint of a run",
        "a pickle that runs code",
        file("last.ckpt", pickled),
        readers.checkpoint,
        r"all its checkpoints \(1\) are damaged",
    ),
    Case(
        "checkpoint of a run",
        "a pickle that runs code, packed as torch does",
        lambda p: _packed(p.root / "last.ckpt", pickled(p)),
        readers.checkpoint,
        r"all its checkpoints \(1\) are damaged",
    ),
    Case(
        "checkpoint of a run",
        "cut off",
        lambda p: (_run({"model": torch.zeros(99)})(p), cut("last.ckpt", 0.5)(p)),
        readers.checkpoint,
        r"all its checkpoints \(1\) are damaged",
    ),
    Case(
        "checkpoint of a run",
        "one bit of a weight flipped",
        _flipped,
        readers.checkpoint,
        r"all its checkpoints \(1\) are damaged",
    ),
    Case(
        "checkpoint of a run",
        "a list",
        _run([1, 2]),
        readers.checkpoint,
        r"all its checkpoints \(1\) are damaged",
    ),
    Case(
        "checkpoint of a run",
        "without the model",
        _run({"step": 3}),
        readers.checkpoint,
        "cannot continue from .*last.ckpt: 'model'",
    ),
    Case(
        "settings.json of a run",
        "cut off",
        file("settings.json", '{"epochs": 3,'),
        readers.settings,
        "settings.json as JSON",
    ),
    Case(
        "settings.json of a run",
        "a list",
        file("settings.json", "[]"),
        readers.settings,
        "holds no settings",
    ),
    Case(
        "settings.json of a run",
        "epochs is text",
        file("settings.json", '{"epochs": "ten"}'),
        readers.settings,
        "epochs must be of type int, got 'ten'",
    ),
    Case(
        "caption vocabulary",
        "no JSON",
        file("vocab.json", "pieces"),
        readers.vocabulary,
        "holds no caption vocabulary",
    ),
    Case(
        "caption vocabulary",
        "of another kind",
        file("vocab.json", '{"a": 1}'),
        readers.vocabulary,
        "holds no caption vocabulary",
    ),
    Case(
        "caption vocabulary",
        "no text",
        file("vocab.json", b"\xff\x00"),
        readers.vocabulary,
        "holds no caption vocabulary",
    ),
    Case(
        "boxes to evaluate on",
        "an object",
        file("boxes.json", '{"a": 1}'),
        readers.boxes,
        "it holds no list",
    ),
    Case(
        "boxes to evaluate on",
        "bbox with NaN",
        _result(bbox=[1, NAN, 3, 4]),
        readers.boxes,
        "row 1: bbox must be 4 finite numbers",
    ),
    Case(
        "boxes to evaluate on",
        "score is text",
        _result(score="0.5"),
        readers.boxes,
        "row 1: score must be a finite number",
    ),
    Case(
        "boxes to evaluate on",
        "image id is a list",
        _result(image_id=[1]),
        readers.boxes,
        "row 1: image_id must be a whole number",
    ),
    Case(
        "boxes to evaluate on",
        "bbox of width 0",
        _result(bbox=[1, 2, 0, 4]),
        readers.boxes,
        "boxes without an area, 1",
        notice=True,
    ),
    Case(
        "pixel transform",
        "Lambda, which runs code",
        _transform("Lambda", __name__="image"),
        readers.transform,
        "is not a saved albumentations pipeline",
    ),
    Case(
        "pixel transform",
        "class os.system",
        _transform("os.system", command="touch ran"),
        readers.transform,
        "is not a saved albumentations pipeline",
    ),
    Case(
        "pixel transform",
        "YAML that builds an object",
        file("transform.yaml", "transform: !!python/object/apply:os.system [touch ran]"),
        readers.transform,
        "is not a saved albumentations pipeline",
    ),
    Case(
        "pixel transform",
        "moves pixels",
        _transform("HorizontalFlip", p=1.0),
        readers.transform,
        "HorizontalFlip may move pixels",
    ),
    Case(
        "pixel transform",
        "senseless arguments",
        _transform("GaussianBlur", sigma_limit="wide", p=1.0),
        readers.transform,
        "is not a saved albumentations pipeline",
    ),
    Case(
        "port's .pth",
        "a pickle that runs code",
        file("w.pth", pickled),
        readers.port,
        "contains more than tensors|is not a valid file of torch.save",
    ),
    Case(
        "port's .pth",
        "cut off",
        lambda p: (_port({"a": torch.zeros(99)})(p), cut("w.pth", 0.5)(p)),
        readers.port,
        "contains more than tensors|is not a valid file of torch.save",
    ),
    Case(
        "port's .pth",
        "holds numbers",
        _port({"a": 1}),
        readers.port,
        "must hold a state dict of tensors",
    ),
    Case(
        "port's .pth",
        "tensors of another model",
        _port({"a": torch.zeros(2)}),
        readers.port,
        "these are not a port's weights",
    ),
    Case(
        "TensorFlow checkpoint",
        "index cut off",
        _checkpoint(cut("ckpt-1.index", 0.6)),
        readers.official,
        "ckpt-1.index is damaged",
    ),
    Case(
        "TensorFlow checkpoint",
        "index of zeros",
        _checkpoint(file("ckpt-1.index", bytes(200))),
        readers.official,
        "ckpt-1.index is damaged",
    ),
    Case(
        "TensorFlow checkpoint",
        "of another model",
        _checkpoint(lambda p: None),
        readers.official,
        "variables of this model are not in the checkpoint",
    ),
    Case(
        "TensorFlow checkpoint",
        "config asks for dim_att 0",
        _checkpoint(
            file(
                "config.json",
                json.dumps(
                    {
                        "model": {
                            "image_size": 640,
                            "resnet_variant": "c1",
                            "dim_att": 0,
                            "dim_mlp": 1,
                        }
                    }
                ),
            )
        ),
        readers.official,
        "the official settings",
    ),
]
