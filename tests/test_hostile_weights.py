"""Weight files and pictures that claim what they should not are refused in one line."""

import json
import struct

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from models import load_model
from utils.errors import UserError
from utils.images import load_image


@pytest.fixture
def crafted(tiny_weights, tmp_path):
    """A copy of a good weight file with its texts, or its tensors, changed."""

    def make(change_config=None, change_tensors=None, **texts):
        with safe_open(tiny_weights, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads(metadata["config"])
        if change_config:
            change_config(config)
        if change_tensors:
            change_tensors(tensors)
        path = tmp_path / "crafted.safetensors"
        save_file(tensors, path, metadata=metadata | {"config": json.dumps(config)} | texts)
        return path

    return make


def set_value(name, value):
    return lambda values: values.update({name: value})


def make_nan(tensors):
    tensors["decoder.positions"][0] = torch.nan


CHANGES = {
    "a huge width": {"change_config": set_value("dim", 2**20)},
    "a huge vocabulary": {"change_config": set_value("vocab_size", 10**12)},
    "many layers": {"change_config": set_value("num_layers", 10**6)},
    "a huge picture": {"change_config": set_value("image_size", [10**6, 10**6])},
    "a negative width": {"change_config": set_value("dim", -64)},
    "a width in words": {"change_config": set_value("dim", "wide")},
    "an unknown key": {"change_config": set_value("colour", 1)},
    "a missing tensor": {"change_tensors": lambda t: t.pop("decoder.positions")},
    "one tensor more": {"change_tensors": set_value("more", torch.ones(1))},
    "another shape": {"change_tensors": set_value("decoder.positions", torch.ones(3, 3))},
    "no numbers": {"change_tensors": make_nan},
    "a config that is no JSON": {"config": "{"},
    "a config that is a list": {"config": "[]"},
    "a record that is no JSON": {"meta": "nothing"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_crafted_weight_file_is_refused_in_one_line(crafted, name):
    path = crafted(**CHANGES[name])
    with pytest.raises(UserError) as error:
        load_model(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_the_copy_itself_loads(crafted):
    load_model(crafted())


@pytest.mark.parametrize("size", [(70_000, 2), (60_000, 60_000)])
def test_a_picture_that_claims_to_be_huge_is_refused_unread(tmp_path, size):
    path = tmp_path / "bomb.bmp"
    Image.new("RGB", (4, 4)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", *size)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read image .*bomb.bmp") as error:
        load_image(path)
    assert "\n" not in str(error.value)
