"""What a program writes: where it cannot, it says so in time; where nobody reads, nothing ends."""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infer.script import check_places
from models import load_model, save_model
from models.weights import write_tensors
from tests.conftest import ROOT, TINY
from tests.tiny_models import tiny
from tests.training import metrics
from train import train_coco_object_detection
from utils.errors import UserError
from utils.files import (
    atomic_path,
    check_place,
    is_stream,
    read_json,
    write_json_atomic,
    write_text_atomic,
)

TRAIN = ROOT / "train" / "train_coco_object_detection.py"
INFER = ROOT / "infer" / "infer_single_image_object_detection.py"
PHOTO = ROOT / "images" / "demo.jpg"
DEMO = ROOT / "weights" / "demo.safetensors"


def train_command(demo_set, tmp_path, *more) -> list:
    overrides = [*TINY, f"coco_root={demo_set}", f"runs_dir={tmp_path / 'runs'}", "eval_limit=2"]
    return [sys.executable, TRAIN, "--set", *overrides, *more]


def script(body: str, **variables) -> subprocess.CompletedProcess:
    """Runs a `main` with this body as scripts do."""
    code = f"import sys\nfrom utils.cli import log, run\ndef main():\n    {body}\nrun(main)"
    command = [sys.executable, "-c", code]
    environment = os.environ | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60)


# ---- nobody reads ------------------------------------------------------------------------------


def test_a_training_goes_on_when_nobody_reads_its_log(demo_set, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = train_command(demo_set, tmp_path, "epochs=3", "bad_samples=skip")
    done = subprocess.run(command, stdout=writer, stderr=writer, cwd=tmp_path, timeout=240)
    os.close(writer)
    (run_dir,) = (tmp_path / "runs" / "detection").iterdir()
    assert done.returncode == 0 and metrics(run_dir)[-1]["step"] == 9
    assert (run_dir / "best.safetensors").is_file()


@pytest.mark.parametrize("target", ["/dev/full", "closed"])
def test_a_log_that_cannot_be_written_ends_nothing(target):
    code = "from utils.cli import log, run\nrun(lambda: [log('x' * 999) for _ in range(99)])"
    redirect = "2>&-" if target == "closed" else f"2>{target}"
    shell = f'{sys.executable} -c "{code}" {redirect}'
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout == b""


def test_results_without_a_reader_are_not_status_0(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    code = "from utils.cli import run\nrun(lambda: print('x' * 99999))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writer)
    assert done.returncode == 141 and done.stderr == b""


@pytest.mark.parametrize("size", [1, 99999])
def test_results_that_cannot_be_written_are_one_line(size):
    code = f"from utils.cli import run\nrun(lambda: print('x' * {size}))"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "error: cannot write the results to standard output: No space left on device"
    ]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
@pytest.mark.parametrize("name", ["café", "猫", "half \\ud83d", "file \\udcff"])
def test_a_name_that_the_console_cannot_show_ends_nothing(encoding, name):
    body = f"print('{name}'); log('{name}')"
    done = script(body, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stdout.strip() and done.stderr.strip()
    assert b"Traceback" not in done.stderr


def test_a_name_that_is_no_utf_8_can_be_written(tmp_path):
    for rows in ([{"image": "a\udcff.jpg"}], {"猫": float("nan"), "\ud83d": 1}):
        write_json_atomic(tmp_path / "a.json", rows)
        again = read_json(tmp_path / "a.json", "")
        assert again == ({"猫": None, "\ud83d": 1} if isinstance(rows, dict) else rows)


# ---- told to end -------------------------------------------------------------------------------


def test_sigterm_keeps_the_results_that_are_there(tmp_path):
    """As Ctrl-C does; a scheduler has no other way."""
    photos, found = tmp_path / "photos", tmp_path / "found.json"
    photos.mkdir()
    for number in range(400):
        (photos / f"{number:03}.jpg").symlink_to(PHOTO)
    places = ["--json", found, "--csv", tmp_path / "found.csv", "--out-dir", tmp_path / "out"]
    command = [sys.executable, INFER, "--weights", DEMO, "--image", photos, *places]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    drew = (line for line in process.stderr if line.startswith("drew"))
    list(itertools.islice(drew, 20))
    process.terminate()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    rows = json.loads(found.read_text())
    assert 0 < len(rows) < 400 and printed.count("(520 x 400)") == len(rows)
    assert (tmp_path / "found.csv").read_text().startswith("image,label")


def test_a_process_that_was_forked_ends_at_once_and_quietly():
    body = (
        "import os, signal, time; pid = os.fork(); pid or (time.sleep(60), os._exit(1)); "
        "time.sleep(1); os.kill(pid, signal.SIGTERM); "
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    done = script(body)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"-15\n", b"")


# ---- it cannot be written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kilobytes", [2000, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5, 40))]
)
def test_a_file_that_does_not_fit_is_one_line(demo_set, tmp_path, kilobytes):
    """Settings and curves, TensorBoard's files, weights, the checkpoint: whichever is the first."""
    command = train_command(demo_set, tmp_path, "epochs=60", "save_steps=1", "eval_every=60")
    limit = 1024 * kilobytes
    done = subprocess.run(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    *before, last = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith("error: cannot write ") and "File too large" in last
    assert not any(line.startswith("error") for line in before)


def test_a_stream_gets_what_is_written_and_stays_what_it_is(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            write_json_atomic(path, [1], indent=None)
            assert os.read(reader, 99) == b"[1]\n"
            with pytest.raises(UserError, match="it is not a regular file"), atomic_path(path):
                pass
        finally:
            os.close(reader)
    assert pipe.is_fifo() and link.is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_which_names_are_streams(tmp_path):
    for name in ("/dev/null", "/dev/full", "/dev/stdout", "/proc/self/fd/1"):
        assert is_stream(name)
    (tmp_path / "a").touch()
    for path in (tmp_path, tmp_path / "a", tmp_path / "none", Path("a.json")):
        assert not is_stream(path)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff image", b'{"images": []}', b" text"])
def test_json_replaces_no_file_of_another_kind(tmp_path, content):
    path = tmp_path / "a"
    args = argparse.Namespace(json=str(path), out_dir=None)
    path.write_bytes(content)
    with pytest.raises(UserError, match="exists and is not a results file; name another file"):
        check_places(args)
    assert path.read_bytes() == content
    for earlier in ([], [{"image": "a.jpg"}]):
        write_json_atomic(path, earlier)
        check_places(args)


@pytest.mark.parametrize("library", ["safetensors", "torch", "text"])
def test_what_one_writes_others_may_read_as_the_umask_says(tmp_path, library):
    path = tmp_path / "file.safetensors"
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            if library == "safetensors":
                save_model(tiny(), path)
                write_tensors(tmp_path / "other", {"a": torch.zeros(1)}, {})
            elif library == "torch":
                with atomic_path(path) as temporary:
                    torch.save({}, temporary)
            else:
                write_text_atomic(path, "text")
        finally:
            os.umask(before)
        assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o666 & ~mask}
    if library == "safetensors":
        load_model(path)


# ---- places are tried first --------------------------------------------------------------------


def test_a_place_is_tried_without_a_trace(tmp_path):
    check_place(tmp_path / "a" / "b" / "c")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "a" / "b", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="^cannot write .*choose another place$"):
            check_place(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_that_could_not_be_written_does_not_start(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(UserError) as error:
        train_coco_object_detection.main(train_command("/nowhere", tmp_path)[2:])
    text = str(error.value)
    assert text.startswith(f"cannot write {tmp_path}/runs") and "\n" not in text, "not of the data"


@pytest.mark.parametrize(
    "option",
    [
        "--out-dir file/a",
        *(pytest.param(f"--json {n}", marks=pytest.mark.slow) for n in ("file/a.json", "folder")),
    ],
)
def test_inference_tries_its_places_before_the_weights(tmp_path, option):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    command = [sys.executable, INFER, "--image", PHOTO, "--weights", "none.safetensors"]
    done = subprocess.run([*command, *option.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot write ")
    assert done.stderr.count("\n") == 1 and Path(tmp_path / "file").stat().st_size == 0
