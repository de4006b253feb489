"""What the download scripts fetch, in small, on a server of this machine."""

import contextlib
import functools
import hashlib
import http.server
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.tf_writer import write_checkpoint

VOC_ARCHIVES = {  # on the server -> year, split of the drawn set, names of that split there
    "voc2007/VOCtrainval_06-Nov-2007.tar": ("2007", "train", "trainval"),
    "voc2007/VOCtest_06-Nov-2007.tar": ("2007", "val", "test"),
    "voc2012/VOCtrainval_11-May-2012.tar": ("2012", "train", "trainval"),
}
COCO_ARCHIVES = {  # on the server -> the folder in it
    "zips/train2017.zip": "train2017",
    "zips/val2017.zip": "val2017",
    "annotations/annotations_trainval2017.zip": "annotations",
}
OFFICIAL_VALUES = 115_169_976  # in the published checkpoint of detection at 640 px


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, *_) -> None: ...


@contextlib.contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """The address at which a folder is served."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def write_coco_archives(drawn_set: Path, out: Path) -> None:
    """The three archives of COCO 2017, with the drawn set in them."""
    for name, folder in COCO_ARCHIVES.items():
        archive = out / name
        archive.parent.mkdir(parents=True, exist_ok=True)
        shutil.make_archive(str(archive.with_suffix("")), "zip", drawn_set, folder)


def write_voc_archives(drawn_set: Path, out: Path) -> None:
    """The three archives of Pascal VOC: the drawn set calls itself VOC2012, with train and val."""
    source = drawn_set / "VOCdevkit" / "VOC2012"
    for name, (year, split, called) in VOC_ARCHIVES.items():
        archive, inside = out / name, f"VOCdevkit/VOC{year}"
        archive.parent.mkdir(parents=True, exist_ok=True)
        images = (source / "ImageSets" / "Main" / f"{split}.txt").read_text()
        with tarfile.open(archive, "w") as file:
            for image in images.split():
                picture, objects = f"JPEGImages/{image}.jpg", f"Annotations/{image}.xml"
                file.add(source / picture, f"{inside}/{picture}")
                file.add(source / objects, f"{inside}/{objects}")
            entry = tarfile.TarInfo(f"{inside}/ImageSets/Main/{called}.txt")
            entry.size = len(images)
            file.addfile(entry, io.BytesIO(images.encode()))


def write_sums(out: Path, algorithm: str) -> Path:
    """A file of checksums of all archives below `out`, as the download scripts take it."""
    lines = [
        f"{hashlib.new(algorithm, path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(out.rglob("*"))
        if path.suffix in (".zip", ".tar")
    ]
    sums = out / f"{algorithm}.txt"
    sums.write_text("".join(lines))
    return sums


def write_official_checkpoint(out: Path) -> None:
    """The checkpoint `coco_vit_b_640` in its full size with random weights."""
    rng = np.random.default_rng(0)
    variables = {
        f"model/{name}/.ATTRIBUTES/VARIABLE_VALUE": 0.02 * rng.standard_normal(shape, np.float32)
        for name, shape in official_shapes().items()
    }
    write_checkpoint(out / "coco_det_finetune" / "vit_b_640x640" / "ckpt-7", variables)


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the variables of the official ViT-B for detection at 640 px."""
    shapes = {
        "decoder/ar_decoder.Soutp_bias": (3000,),
        "decoder/ar_decoder.Sseq_pos_embedding": (512, 512),
        "decoder/ar_decoder.Stoken_embedding": (3000, 512),
        "encoder/stem_conv/bias": (768,),
        "encoder/stem_conv/kernel": (16, 16, 3, 768),
        "proj/bias": (512,),
        "proj/kernel": (768, 512),
    }
    for name, width in {
        "decoder/output_ln": 512,
        "encoder/output_ln": 768,
        "encoder/stem_ln": 768,
        "proj_ln": 512,
    }.items():
        shapes |= _norm_shapes(name, width)
    shapes |= _mlp_shapes("proj_mlp", 512, 2048)
    for i in range(6):
        layer = f"decoder/decoder/dec_layers/{i}"
        shapes |= _norm_shapes(f"{layer}/self_ln", 512) | _norm_shapes(f"{layer}/cross_ln", 512)
        shapes |= _attention_shapes(f"{layer}/self_mha", 512, 16)
        shapes |= _attention_shapes(f"{layer}/cross_mha", 512, 16)
        shapes |= _mlp_shapes(f"{layer}/mlp", 512, 2048)
    for i in range(12):
        layer = f"encoder/transformer_encoder/enc_layers/{i}"
        shapes |= _norm_shapes(f"{layer}/mha_ln", 768)
        shapes |= _attention_shapes(f"{layer}/mha", 768, 12)
        shapes |= _mlp_shapes(f"{layer}/mlp", 768, 3072)
    return shapes


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/beta": (width,), f"{name}/gamma": (width,)}


def _attention_shapes(name: str, width: int, heads: int) -> dict[str, tuple[int, ...]]:
    inner = (heads, width // heads)
    shapes = {
        f"{name}/_output_dense/bias": (width,),
        f"{name}/_output_dense/kernel": (*inner, width),
    }
    for part in ("query", "key", "value"):
        shapes |= {
            f"{name}/_{part}_dense/bias": inner,
            f"{name}/_{part}_dense/kernel": (width, *inner),
        }
    return shapes


def _mlp_shapes(name: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    dense = f"{name}/mlp_layers/0"
    return _norm_shapes(f"{name}/layernorms/0", width) | {
        f"{dense}/dense1/bias": (hidden,),
        f"{dense}/dense1/kernel": (width, hidden),
        f"{dense}/dense2/bias": (width,),
        f"{dense}/dense2/kernel": (hidden, width),
    }
