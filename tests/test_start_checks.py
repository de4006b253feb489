"""What is found in the first seconds: weights that are something else, encoders that do not fit,
pictures of one name, bfloat16 without units, cores that others use."""

import gzip
import io
import itertools
import json
import multiprocessing
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from config import CFG
from infer import evaluate, infer_single_image_object_detection
from infer.boxes import read_results
from infer.image_files import find_images, name_pictures
from models import ModelConfig, load_model
from models.encoder import check_encoder
from tests.conftest import TINY
from train.engine import train
from utils import devices
from utils.cli import snapshot
from utils.devices import CoreWatch, check_bfloat16
from utils.errors import UserError
from utils.files import find_weight_file, nearest_path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "weights" / "demo.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 29775811\n"


# ---- weights ---------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """As a run leaves it: weights, and a checkpoint, which is a zip file of torch."""
    run = tmp_path / "runs" / "detection" / "2026-01-31_12-00-00"
    run.mkdir(parents=True)
    for name in ("best", "last"):
        (run / f"{name}.safetensors").symlink_to(DEMO)
    torch.save({}, run / "last.ckpt")
    return run


def test_a_run_folder_stands_for_its_best_weights(run_dir):
    assert find_weight_file(run_dir) == run_dir / "best.safetensors"
    (run_dir / "best.safetensors").unlink()
    assert find_weight_file(str(run_dir)) == run_dir / "last.safetensors"
    (run_dir / "last.safetensors").unlink()
    with pytest.raises(UserError, match="no best.safetensors or last.safetensors in the folder"):
        find_weight_file(run_dir)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_weights_whose_header_has_the_length_of_a_pickle_are_weights(tmp_path, length):
    """A file of safetensors begins with that number: 640 are the bytes of a pickle."""
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(2)}, file, {"note": ""})
    without = int.from_bytes(file.read_bytes()[:8], "little")
    save_file({"w": torch.zeros(2)}, file, {"note": "x" * (length - without)})
    assert int.from_bytes(file.read_bytes()[:8], "little") == length
    assert find_weight_file(file) == file


def refused(path: Path, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        find_weight_file(path)
    assert "\n" not in str(error.value)


def test_what_is_no_weight_file_is_named(run_dir, tmp_path):
    refused(run_dir / "last.ckpt", "its weights are .*last.safetensors beside it")
    refused(run_dir.parent, f"did you mean {re.escape(str(run_dir))}")
    saved = io.BytesIO()
    torch.save({}, saved)
    for name, content, word in (
        ("port.pth", b"\x80\x02}q\x00.", "download/convert_port_weights.py"),
        ("port.pt", saved.getvalue(), "download/convert_port_weights.py"),
        ("a.ckpt", saved.getvalue(), "download/convert_port_weights.py"),
        ("w.zip", b"PK\x03\x04" + bytes(26) + b"best.safetensors", "unpack it"),
        ("w.safetensors.gz", gzip.compress(DEMO.read_bytes()[:999]), "unpack it"),
        ("w.safetensors", LFS.encode(), "git lfs pull"),
        ("w.safetensors", b"<!DOCTYPE html>", "web page"),
        ("w.safetensors", b"", "is empty"),
        ("ckpt-93324.index", b"\0\0", "download/convert_official_weights.py"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, word)


def test_weights_that_were_cut_off_are_no_reason_to_convert_them(tmp_path):
    whole, path = DEMO.read_bytes(), tmp_path / "cut.safetensors"
    for size in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="is incomplete .*; download or copy it again"):
            load_model(path)


@pytest.mark.parametrize(
    "wrong", ["best.safetensor", "Best.safetensors", "best", "bset.safetensors"]
)
def test_a_misspelt_path_names_the_near_one(run_dir, wrong):
    refused(run_dir / wrong, f"did you mean {re.escape(str(run_dir / 'best.safetensors'))}")
    for i, _ in enumerate(run_dir.parts[-3:], 1):  # a folder on the way
        parts = list(run_dir.parts)
        parts[-i] = parts[-i][:-1] + "_"
        assert nearest_path(Path(*parts)) == run_dir
    assert nearest_path(run_dir / "something else") is None


@pytest.mark.parametrize("content", ["folder", "last.ckpt", "lfs", "misspelt"])
def test_the_same_holds_for_weights_to_start_from(run_dir, tmp_path, content, capsys):
    """Before a dataset is opened or a folder is made."""
    lfs = tmp_path / "lfs.safetensors"
    lfs.write_text(LFS)
    path, message = {
        "folder": (run_dir, "does not exist"),  # the dataset: these weights are taken
        "last.ckpt": (run_dir / "last.ckpt", "beside it"),
        "lfs": (lfs, "git lfs pull"),
        "misspelt": (run_dir / "bets.safetensors", "did you mean"),
    }[content]
    runs, root = tmp_path / "new", tmp_path / "no data"
    overrides = [f"init_weights={path}", f"runs_dir={runs}", f"coco_root={root}"]
    with pytest.raises(UserError, match=message):
        train(snapshot(CFG, [*TINY, *overrides]), ["detection"])
    assert not runs.exists()
    assert ("best.safetensors" in capsys.readouterr().err) == (content == "folder")


def test_a_run_folder_is_taken_and_named(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = str(ROOT / "images" / "demo.jpg")
    infer_single_image_object_detection.main(["--image", image, "--weights", str(run_dir)])
    assert f"weights: {run_dir / 'best.safetensors'}" in capsys.readouterr().err


# ---- pictures --------------------------------------------------------------------------------

NAMES = ("x.jpg", "x.png", "X.jpg", "a/x.jpg", "b/x.jpg", "a/b_x.jpg", "a_b/x.jpg", "a/b/x.jpg")
NAMES += (
    "x-2.jpg",
    "x.jpg.png",
    "a_x.jpg",
    "e\u0301.jpg",
    "\u00e9.jpg",
    "b/a/x.jpg",
    "x.jpg-2.jpg",
)


def test_names_of_pictures_never_collide():
    """Of any images, in any order, also where a file system ignores case or the normal form."""
    from unicodedata import normalize

    rng = np.random.default_rng(0)
    for _ in range(300):
        some = rng.permutation(NAMES)[: rng.integers(1, len(NAMES) + 1)]
        begins = name_pictures([Path(name) for name in some])
        names = [normalize("NFC", f"{b}{kind}.png".casefold())
                 for b, kind in itertools.product(begins.values(), ("mask", "points"))]  # fmt: skip
        assert len(begins) == len(some) and len(set(names)) == len(names)
        assert not any("/" in begin for begin in begins.values())


def test_images_come_from_all_patterns_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.jpg", "a/y.png", "b/x.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(name)
    found = find_images(["b", "a/x.jpg", str(tmp_path / "a/x.jpg"), "a/../a/*"])
    assert [p.as_posix() for p in found] == ["b/x.jpg", "a/x.jpg", "a/../a/y.png"]


def test_no_result_is_lost_and_no_input_overwritten(tmp_path, monkeypatch, tiny_weights):
    """Two options, a glob that the shell has expanded, and a picture that an earlier call drew."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.jpg", "b/x.jpg", "y.jpg", "y_object_detection.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(name)
    earlier = Path("y_object_detection.png").read_bytes()
    options = ["--weights", str(tiny_weights), "--device", "cpu", "--json", "all.json"]
    arguments = ["--image", "a/x.jpg", "b/x.jpg", "--image", "y.jpg", "y_object_detection.png"]
    infer_single_image_object_detection.main([*arguments, *options])
    drawn = {path.name for path in tmp_path.glob("*_object_detection*.png")}
    assert drawn == {
        "a_x.jpg_object_detection.png", "b_x.jpg_object_detection.png",
        "y_object_detection.png", "y_object_detection-2.png",
        "y_object_detection_object_detection.png",
    }  # fmt: skip
    assert Path("y_object_detection.png").read_bytes() == earlier


# ---- encoders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "size", "options", "message"),
    [
        ("test_vit", 64, {}, ""),
        ("test_vit", 64, {"encoder_stride": 16}, ""),
        ("test_vit", 100, {}, "img_size=96 or 112"),
        ("vit_small_patch14_dinov2", 100, {}, "img_size=98 or 112"),
        ("vit_small_patch16_dinov3", 8, {}, "img_size=16"),
        ("eva02_tiny_patch14_224", 224, {}, ""),
        ("resnet18", 100, {}, ""),
        ("resnet18", 100, {"encoder_stride": 7}, "strides .*2, 4, 8, 16, 32.*, not 7"),
        ("vgg11", 64, {"drop_path": 0.1}, "use drop_path=0"),
        ("vgg11", 64, {"drop_path": 0.0}, ""),
        ("maxvit_tiny_rw_224", 100, {}, "another size or encoder"),
        ("levit_128", 100, {}, "another size or encoder"),
        ("resnet18.no_such_tag", 64, {}, "no_such_tag"),
        ("resnet81", 64, {}, "similar names: resnet18"),
    ],
)
def test_an_encoder_that_does_not_fit_is_one_line(encoder, size, options, message):
    config = ModelConfig(encoder=encoder, image_size=(size, size), **options)
    if not message:
        check_encoder(config)
        return
    with pytest.raises(UserError, match=message) as error:
        check_encoder(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override", ["img_size=100", "encoder_stride=5", "encoder=resnet81", "max_len=12"]
)
def test_what_the_model_refuses_comes_before_the_data(tmp_path, override):
    overrides = [*TINY, f"runs_dir={tmp_path / 'runs'}", "coco_root=/nowhere", override]
    with pytest.raises(UserError) as error:
        train(snapshot(CFG, overrides), ["detection"])
    assert "/nowhere" not in str(error.value) and not (tmp_path / "runs").exists()


# ---- the machine -----------------------------------------------------------------------------


def machine(monkeypatch, folder: Path, *, cpuinfo: str = "", stat: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "cpuinfo").write_text(cpuinfo)
    if stat is not None:
        (folder / "stat").write_text(stat)
    monkeypatch.setattr(devices, "PROC", folder)


@pytest.mark.parametrize(
    ("cpuinfo", "known"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("Features\t: fp asimd\n", False),
        ("", True),  # nothing is known: nothing is refused
    ],
)
def test_bfloat16_without_units_is_refused_unless_forced(tmp_path, monkeypatch, cpuinfo, known):
    machine(monkeypatch, tmp_path / "proc", cpuinfo=cpuinfo)
    check_bfloat16("amp=bf16", "amp=off", emulate=True)
    if known:
        check_bfloat16("amp=bf16", "amp=off", emulate=False)
        return
    with pytest.raises(UserError, match="amp=bf16: .* use amp=off.*emulate_bfloat16=true"):
        check_bfloat16("amp=bf16", "amp=off", emulate=False)

    # through training and inference: before a dataset, and after the weights are found
    overrides = [*TINY, f"runs_dir={tmp_path / 'runs'}", "coco_root=/nowhere", "amp=bf16"]
    with pytest.raises(UserError, match="use amp=off"):
        train(snapshot(CFG, overrides), ["detection"])
    with pytest.raises(UserError, match="/nowhere"):
        train(snapshot(CFG, [*overrides, "emulate_bfloat16=true"]), ["detection"])
    options = ["--image", str(ROOT / "images" / "demo.jpg"), "--device", "cpu"]
    with pytest.raises(UserError, match="use infer_dtype=float32"):
        infer_single_image_object_detection.main([*options, "--set", "infer_dtype=bfloat16"])


def stat(seconds: float, cores: int = 2) -> str:
    rows = [f"cpu{i} {int(seconds * 100)} 0 0 99 0 0 0 0 0 0" for i in range(cores)]
    return "\n".join(["cpu  1 2 3", *rows, "intr 5"])


@pytest.mark.parametrize(
    ("others", "threads", "variable", "told"),
    [
        (1.0, 2, None, True),
        (0.1, 2, None, False),  # the background of any machine
        (1.0, 1, None, False),  # a single thread waits for nobody
        (1.0, 2, "OMP_NUM_THREADS", False),  # chosen already
        (1.0, 2, "OMP_WAIT_POLICY", False),
    ],
)
def test_cores_that_others_use_are_told(tmp_path, monkeypatch, others, threads, variable, told):
    for name in devices.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "_cores", lambda: {0, 1})
    times = iter([100.0, 110.0, 110.0])
    monkeypatch.setattr(devices.time, "monotonic", lambda: next(times))
    machine(monkeypatch, tmp_path, stat=stat(50))
    watch = CoreWatch()
    machine(monkeypatch, tmp_path, stat=stat(50 + 10 * others / 2))
    if variable:
        monkeypatch.setenv(variable, "1")
    text = watch.notice(threads)
    assert bool(text) == told and "\n" not in text
    assert not told or ("OMP_NUM_THREADS=1" in text and f"{others:.1f} of 2 cores" in text)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs /proc/stat")
def test_a_program_that_computes_is_seen_and_this_process_is_not():
    watch = CoreWatch()
    spin(0.5)
    alone = watch.others()
    process = multiprocessing.get_context("fork").Process(target=spin, args=(2.0,))
    process.start()
    watch = CoreWatch()
    time.sleep(1.0)
    others = watch.others()
    process.join()
    assert others > 0.5  # the machine may be busy besides, so `alone` has no upper limit here
    assert alone <= len(watch.cores)


# ---- evaluation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "all", "--boxes", "none.json"], "none.json"),
        (["--task", "all", "--boxes", "detect"], "detect"),
        (["--task", "detection", "--boxes", "detected"], "not of detection"),
        (["--task", "captioning", "--max-objects", "3"], "not for captioning"),
        (["--task", "captioning,detection", "--boxes", "b.json"], "not of detection, captioning"),
        (["--task", "all", "--max-objects", "9999"], "max_objects must be 1 to"),
        (["--task", "all", "--max-objects", "0"], "--max-objects must be at least 1"),
        (["--task", "all", "--dataset", "imagenet"], "--dataset must be coco or voc"),
        (["--task", "detection", "--dataset", "coco", "--device", "gpu"], "--device must be auto"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_before_data_is_opened(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate.main(["--weights", str(DEMO), *arguments, "--set", "coco_root=/nowhere"])
    assert "\n" not in str(error.value) and "/nowhere" not in str(error.value)


def test_boxes_of_a_file_are_read_as_they_are_meant(tmp_path):
    path, row = tmp_path / "boxes.json", {"bbox": [1, 2, 3, 4], "score": 0.5}
    path.write_text(json.dumps([row | {"image_id": 101.0, "category_id": 1.0}]))
    (read,) = read_results(path)
    assert repr((read["image_id"], read["category_id"])) == "(101, 1)"
    for rows, word in (
        ([], "holds no boxes"),
        ([row | {"image_id": 1.5, "category_id": 1}], "image_id must be a whole number, got 1.5"),
    ):
        path.write_text(json.dumps(rows))
        with pytest.raises(UserError, match=word):
            read_results(path)
