"""Weight files that are damaged, or ask for more than they hold."""

from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import save

from infer.predictor import Predictor
from tests.damaged import readers
from tests.damaged.case import Case, cut, file
from tests.damaged.place import Place, pickled, sound_meta, sound_tensors


def _config(**values) -> Callable[[Place], None]:
    return lambda place: place.write_weights(config=values)


def _meta(**values) -> Callable[[Place], None]:
    return lambda place: place.write_weights(meta=values)


def _task(name: str, **settings) -> Callable[[Place], None]:
    tasks = sound_meta()["tasks"]
    return _meta(tasks={**tasks, name: {**tasks.get(name, {}), **settings}})


def _tensor(change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Place], None]:
    name = "decoder.token_embedding"
    return lambda place: place.write_weights(tensors={name: change(sound_tensors()[name].clone())})


def _weights_then(change: Callable[[Place], object]) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.write_weights()
        change(place)

    return make


def _nan_inside(tensor: torch.Tensor) -> torch.Tensor:
    tensor[7, 3] = float("nan")
    return tensor


def _large_images(place: Place) -> None:
    vit = {"encoder": "official_vit", "encoder_dim": 16, "encoder_heads": 2, "encoder_layers": 1}
    place.write_weights(config=vit | {"image_size": [900_000, 900_000]}, made_with=vit)


def _caption(place: Place) -> None:
    Predictor(place.root / "w.safetensors").caption(np.zeros((8, 8, 3), np.uint8))


WEIGHTS = [
    Case(
        "weight file",
        "a web page",
        file("w.safetensors", "<html>"),
        readers.weights,
        "is a web page",
    ),
    Case(
        "weight file",
        "a pointer of Git LFS",
        file("w.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        readers.weights,
        "run: git lfs pull",
    ),
    Case(
        "weight file",
        "empty",
        file("w.safetensors", ""),
        readers.weights,
        "is empty",
    ),
    Case(
        "weight file",
        "cut off",
        _weights_then(cut("w.safetensors", 0.5)),
        readers.weights,
        "is incomplete",
    ),
    Case(
        "weight file",
        "a pickle that runs code",
        file("w.safetensors", pickled),
        readers.weights,
        "is a file of torch",
    ),
    Case(
        "weight file",
        "of another project",
        file("w.safetensors", save({"a": torch.zeros(2)})),
        readers.weights,
        "was not written by this project",
    ),
    Case(
        "weight file",
        "no config",
        lambda p: p.write_weights(texts={"config": None}),
        readers.weights,
        "has no 'config'",
    ),
    Case(
        "weight file",
        "config is no JSON",
        lambda p: p.write_weights(texts={"config": "{"}),
        readers.weights,
        "'config' .* is not valid JSON",
    ),
    Case(
        "weight file",
        "config is a list",
        lambda p: p.write_weights(texts={"config": "[1]"}),
        readers.weights,
        "it must be an object",
    ),
    Case(
        "weight file",
        "config with an unknown field",
        _config(command="rm"),
        readers.weights,
        "unknown field 'command'",
    ),
    Case(
        "weight file", "dim is text", _config(dim="16"), readers.weights, "dim must be of type int"
    ),
    Case(
        "weight file",
        "num_layers -1",
        _config(num_layers=-1),
        readers.weights,
        "num_layers must be at least 1",
    ),
    Case(
        "weight file",
        "num_heads 0",
        _config(num_heads=0),
        readers.weights,
        "num_heads must be at least 1",
    ),
    Case(
        "weight file",
        "dim 1e9: asks for a huge model",
        _config(dim=10**9),
        readers.weights,
        "dim must be at most",
    ),
    Case(
        "weight file",
        "a million layers",
        _config(num_layers=10**6),
        readers.weights,
        "num_layers must be at most",
    ),
    Case(
        "weight file",
        "a million tokens: 64 MB that are not in it",
        _config(vocab_size=10**6),
        readers.weights,
        "do not fit its config: decoder.output_bias is",
    ),
    Case(
        "weight file",
        "images of 900,000 x 900,000: positions that no tensor shows",
        _large_images,
        readers.weights,
        "asks for [0-9]+ GiB of position embeddings",
    ),
    Case(
        "weight file",
        "encoder from the network",
        _config(encoder="hf-hub:someone/model"),
        readers.weights,
        "no encoder 'hf-hub:someone/model'",
    ),
    Case(
        "weight file",
        "a tensor is missing",
        _tensor(lambda t: None),
        readers.weights,
        "the file lacks decoder.token_embedding",
    ),
    Case(
        "weight file",
        "a tensor of another shape",
        _tensor(lambda t: t[:-1].clone()),
        readers.weights,
        r"token_embedding is \(2999, 16\) in the file, \(3000, 16\)",
    ),
    Case(
        "weight file",
        "a tensor of integers",
        _tensor(lambda t: t.long()),
        readers.weights,
        "token_embedding is of type I64",
    ),
    Case(
        "weight file",
        "a tensor with NaN",
        _tensor(_nan_inside),
        readers.weights,
        "token_embedding in .* holds NaN",
    ),
    Case(
        "weight file",
        "meta is a list",
        lambda p: p.write_weights(texts={"meta": "[]"}),
        readers.weights,
        "'meta' .* must be an object",
    ),
    Case(
        "weight file", "meta without tasks", _meta(tasks=None), readers.weights, "it has no 'tasks'"
    ),
    Case(
        "weight file",
        "meta with an unknown task",
        _task("driving"),
        readers.weights,
        "unknown field 'driving'",
    ),
    Case(
        "weight file",
        "a budget of 1e9 objects",
        _task("detection", max_objects=10**9),
        readers.weights,
        "it needs .* positions of 64",
    ),
    Case(
        "weight file",
        "settings of a task are nonsense",
        _task("segmentation", max_points="many"),
        readers.weights,
        "max_points must be of type int",
    ),
    Case(
        "weight file",
        "class id 1,000,000",
        _meta(categories=[{"id": 10**6, "name": "cat", "source_id": 1}]),
        readers.weights,
        "class id 1000000 has no token",
    ),
    Case(
        "weight file",
        "vocabulary larger than the model",
        _meta(vocabulary=sound_meta()["vocabulary"] | {"num_text": 10**6}),
        readers.weights,
        "but the model has 3000",
    ),
    Case(
        "weight file",
        "captions with a broken vocabulary",
        _task("captioning", text=5),
        lambda p: readers.Predictor(p.root / "w.safetensors").caption(
            np.zeros((8, 8, 3), np.uint8)
        ),
        "describes no captioning",
    ),
]
