# ruff: noqa: F811  fixtures are arguments
"""The library of the native step: what compiles it, where it is kept, what is refused."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from config import DemoCFG
from infer.script import predictor_of
from models import build_model, load_model, save_model
from models.decode_step import native
from tests.conftest import ROOT
from tests.test_native_step import (
    cache_home,  # noqa: F401  a fixture
    compiler,
    forget,
    fresh,  # noqa: F401  a fixture
    on_lanes_of,
)
from tests.tiny_models import tiny
from utils.errors import UserError


@pytest.fixture
def quick_compiler(monkeypatch):
    """For tests of the cache: without optimisation a library takes a tenth of the time."""
    monkeypatch.setattr(native, "FLAGS", ("-O0", *native.FLAGS[1:]))
    on_lanes_of(monkeypatch, "DEFAULT")


@pytest.mark.parametrize(
    ("cxx", "message"),
    [
        ("no-such-compiler", "no-such-compiler: No such file"),
        ("false", "the C\\+\\+ compiler failed \\(status 1\\)"),
        (f"{sys.executable} -c 'exit(\"error: out of ideas\")'", "error: out of ideas"),
        (f"{sys.executable} -c 'pass'", "cannot write .*native step"),  # says yes, writes nothing
        ("g++ '", "cannot be used .No closing quotation"),
    ],
)
def test_a_compiler_that_fails_is_one_line_and_auto_goes_on(monkeypatch, tmp_path, cxx, message):
    monkeypatch.setenv("CXX", cxx)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = tiny()
    with pytest.raises(UserError, match=message) as error:
        model.prepare(mode="native")
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.so"))
    model.prepare(mode="auto")
    assert model.decode_mode == "plain"


@compiler
@pytest.mark.usefixtures("quick_compiler")
def test_several_threads_ask_for_it_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(native.obstacle) for _ in range(4)]
    assert [one.result() for one in asked] == 4 * [None]
    assert len(list((tmp_path / "pix2seq").iterdir())) == 1


@compiler
def test_a_cache_folder_that_cannot_be_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "decode_mode=plain" in native.obstacle()
    forget()

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which does not count
    assert "Could not determine home directory" in native.obstacle()


@compiler
@pytest.mark.usefixtures("quick_compiler")
def test_a_library_of_another_user_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.obstacle() is None
    assert (tmp_path / "pix2seq").stat().st_mode & 0o077 == 0
    forget()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (file,) = (tmp_path / "pix2seq").iterdir()
    os.chown(file, 54321, -1) if os.geteuid() == 0 else None
    assert "belongs to somebody else" in native.obstacle()


@pytest.mark.parametrize(("mode", "lines"), [("auto", 1), ("plain", 0)])
def test_scripts_say_why_they_decode_slowly(monkeypatch, tmp_path, capsys, mode, lines):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cfg = DemoCFG()
    cfg.decode_mode, cfg.device = mode, "cpu"
    predictor = predictor_of(ROOT / "weights" / "demo.safetensors", cfg)
    assert predictor.model.decode_mode == "plain"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert all(line.startswith("notice: ") and "decode_mode=plain" in line for line in said)


def test_no_compiler_is_one_line(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="install g\\+\\+.*decode_mode=plain"):
        native.library()


@compiler
def test_a_compiler_that_makes_no_library_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "compile_to", lambda path, _: path.write_bytes(b"no library"))
    with pytest.raises(UserError, match=f"cannot be used .*{tmp_path}.*decode_mode=plain"):
        native.library()


@compiler
@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "one bit", "another system"])
def test_a_damaged_library_is_never_loaded_but_made_anew(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = native.compiled_file()
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[:8000],
            "empty": b"",
            "garbage": b"<html>" * 3000,
            "one bit": bytes([*whole[:9000], whole[9000] ^ 1]) + whole[9001:],
            "another system": whole,
        }[damage]
    )
    if damage == "another system":  # whole by its digest, but it cannot be loaded
        file.unlink()
        other = tmp_path / "other.so"
        other.write_bytes(b"MZ" + whole)
        file = native._named_by_content(other, file.stem.split("_")[2], file.parent)
        other.rename(file)
    loaded = []
    load = native._load

    def note(path):
        loaded.append(path.read_bytes())
        return load(path)

    monkeypatch.setattr(native, "_load", note)
    assert native.obstacle() is None
    assert loaded[-1] == whole and (len(loaded) == 1 or damage == "another system")
    assert len(list((tmp_path / "pix2seq").iterdir())) == 1


@compiler
@pytest.mark.usefixtures("quick_compiler")
def test_several_processes_compile_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forked = multiprocessing.get_context("fork")
    started = [forked.Process(target=lambda: sys.exit(native.obstacle())) for _ in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]
    assert {path.suffix for path in (tmp_path / "pix2seq").iterdir()} == {".so"}


@compiler
@pytest.mark.parametrize("numbers", native.NUMBERS.values())
def test_the_source_has_no_warning_and_needs_no_vectors(tmp_path, numbers):
    command = [
        next(filter(shutil.which, native.COMPILERS)),
        *native.FLAGS,
        "-O1",  # enough for the warnings that follow values
        *numbers,
        "-Wall",
        "-Wextra",
        "-Werror",
        str(native.SOURCE),
        "-o",
    ]
    subprocess.run([*command, str(tmp_path / "step.so")], check=True)


def test_the_scripts_take_an_encoder_in_int8(tmp_path, tiny_weights):
    pytest.importorskip("torchao", reason="torchao is not installed")
    weights, known = tmp_path / "vit.safetensors", load_model(tiny_weights)
    config = replace(known.config, encoder="test_vit")
    save_model(build_model(config), weights, meta=known.meta)
    cfg = DemoCFG()
    cfg.device, cfg.decode_mode, cfg.infer_dtype = "cpu", "plain", "int8"
    assert not predictor_of(weights, cfg).model.fast_encoder
    cfg.encoder_int8 = True
    assert predictor_of(weights, cfg).model.fast_encoder
    cfg.infer_dtype = "float32"
    with pytest.raises(UserError, match="encoder_int8 is for infer_dtype=int8"):
        predictor_of(weights, cfg)
