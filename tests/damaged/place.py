"""A small sound dataset in both layouts and small sound weights, for a case to damage."""

import json
import pickle
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from models import ModelConfig, build_model
from models.weights import FORMAT
from tokenizer.detection import DetectionTokenizer
from tokenizer.segmentation import SegmentationTokenizer
from tokenizer.vocabulary import Vocabulary

SIZE = (40, 60)  # (H, W) of the images
SKELETON = {"keypoints": ["head", "tail"], "skeleton": [[1, 2]]}
CONFIG = {
    "encoder": "test_vit",
    "image_size": [32, 32],
    "dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "mlp_dim": 16,
    "max_len": 64,
    "vocab_size": 3000,
}


class Place:
    """A folder of one case."""

    def __init__(self, root: Path):
        self.root = root
        for kind in ("instances", "person_keypoints", "captions"):
            self.write_json(f"annotations/{kind}_train2017.json", self.annotations(kind))
        self.voc = root / "VOCdevkit" / "VOC2012"
        pictures = (root / "train2017", self.voc / "JPEGImages")
        rng = np.random.default_rng(0)
        for number in (1, 2):
            image = Image.fromarray(rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8))
            for folder in pictures:
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{number}.jpg", quality=95)
            self.write_xml(number)
        self.write("VOCdevkit/VOC2012/ImageSets/Main/train.txt", "1\n2\n")

    def annotations(self, kind: str) -> dict:
        height, width = SIZE
        images = [
            {"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in (1, 2)
        ]
        box = {"category_id": 1, "bbox": [5, 5, 20, 15]}
        rows = {
            "instances": box | {"segmentation": [[5, 5, 25, 5, 25, 20]]},
            "person_keypoints": box | {"keypoints": [6, 6, 2, 20, 15, 1], "num_keypoints": 2},
            "captions": {"caption": "a cat on a mat"},
        }
        return {
            "images": images,
            "categories": [{"id": 1, "name": "cat", **SKELETON}],
            "annotations": [{"id": i, "image_id": i, "iscrowd": 0, **rows[kind]} for i in (1, 2)],
        }

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def write_json(self, name: str, content: object) -> Path:
        return self.write(name, json.dumps(content))

    def change(self, kind: str, change: Callable[[dict], object]) -> None:
        """Alters the content of a COCO annotation file."""
        content = self.annotations(kind)
        change(content)
        self.write_json(f"annotations/{kind}_train2017.json", content)

    def write_xml(
        self, number: int = 1, *, box=(6, 6, 25, 20), size=SIZE, name: str = "cat", head: str = ""
    ) -> None:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        bndbox = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
        self.write(
            f"VOCdevkit/VOC2012/Annotations/{number}.xml",
            f"{head}<annotation><size><height>{size[0]}</height><width>{size[1]}</width></size>"
            f"<object><name>{name}</name><bndbox>{bndbox}</bndbox></object></annotation>",
        )

    def write_weights(
        self,
        *,
        config: dict | None = None,
        meta: dict | None = None,
        texts: dict | None = None,
        tensors: dict | None = None,
        made_with: dict | None = None,
    ) -> None:
        """`w.safetensors`: sound but for what is given; None as a value leaves something out.

        Args:
            made_with: fields of the config that the tensors are those of.
        """
        parts = {"config": CONFIG | (config or {}), "meta": sound_meta() | (meta or {})}
        parts = {name: {k: v for k, v in p.items() if v is not None} for name, p in parts.items()}
        texts = {"format": FORMAT, **{k: json.dumps(v) for k, v in parts.items()}, **(texts or {})}
        tensors = {**sound_tensors(**(made_with or {})), **(tensors or {})}
        save_file(
            {name: value for name, value in tensors.items() if value is not None},
            self.root / "w.safetensors",
            metadata={name: text for name, text in texts.items() if text is not None},
        )


@cache
def sound_tensors(**config) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(build_model(ModelConfig.from_json(CONFIG | config)).state_dict())


def sound_meta() -> dict:
    vocab = Vocabulary()
    tokenizers = (DetectionTokenizer(vocab, 4), SegmentationTokenizer(vocab, 8))
    return {
        "vocabulary": vocab.to_json(),
        "categories": [{"id": 1, "name": "cat", "source_id": 1}],
        "resize_mode": "letterbox",
        "tasks": {tokenizer.task: tokenizer.settings() for tokenizer in tokenizers},
    }


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing of it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


class Payload:
    """Unpickling it makes a file: whoever reads the case must not."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def pickled(place: Place) -> bytes:
    return pickle.dumps({"w": Payload(place.root / "ran")})
