"""The download scripts against a server on this machine: resume, check, extract, once."""

import functools
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = (
    *("bash", "sh", "cat", "awk", "mkdir", "mv", "rm", "touch", "dirname", "python3"),
    *("curl", "wget", "tar", "unzip"),
)
PYTHON = os.path.realpath(sys.executable)
pytestmark = pytest.mark.skipif(
    not shutil.which("bash") or not (shutil.which("curl") or shutil.which("wget")),
    reason="needs bash and curl or wget",
)


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files` with Range support; `server.cut` bytes of a path, then hangs up."""

    def do_GET(self):
        server = self.server
        begin = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0])
        server.log.append((self.path, begin))
        if self.path not in server.files:
            return self.send_error(404)
        body = server.files[self.path]
        begin = begin if server.resumes else 0
        if begin and begin >= len(body):
            return self.send_error(416)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        end = server.cut.pop(self.path, len(body))
        self.wfile.write(body[begin:end])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.log, server.cut, server.resumes = {}, [], {}, True
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def tar_of(**members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return data.getvalue()


def zip_of(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/"), text)
    return data.getvalue()


@pytest.fixture
def voc(server, tmp_path):
    """A tiny VOC on the server, with its checksums; returns a function that runs the script."""
    for path, body in {
        "/voc2007/VOCtrainval_06-Nov-2007.tar": tar_of(VOCdevkit__VOC2007__a="train " * 4000),
        "/voc2007/VOCtest_06-Nov-2007.tar": tar_of(VOCdevkit__VOC2007__b="test"),
        "/voc2012/VOCtrainval_11-May-2012.tar": tar_of(VOCdevkit__VOC2012__a="train 2012"),
    }.items():
        server.files[path] = body
    return script(server, tmp_path, "voc", "VOC_BASE_URL", "VOC_MD5_FILE", "md5")


@pytest.fixture
def coco(server, tmp_path):
    for path, body in {
        "/zips/train2017.zip": zip_of(train2017__1="picture"),
        "/zips/val2017.zip": zip_of(val2017__2="picture"),
        "/annotations/annotations_trainval2017.zip": zip_of(annotations__captions="{}"),
    }.items():
        server.files[path] = body
    return script(server, tmp_path, "coco", "COCO_BASE_URL", "COCO_SHA256_FILE", "sha256")


def script(server, tmp_path, name, base_name, sums_name, algorithm):
    sums = tmp_path / f"{name}.txt"
    lines = [
        f"{hashlib.new(algorithm, body).hexdigest()}  {path.rsplit('/', 1)[1]}"
        for path, body in server.files.items()
    ]
    sums.write_text("\n".join(lines) + "\n")
    target = tmp_path / f"a {name} folder"

    def run(*args, path=os.environ["PATH"], **extra):
        base = f"http://127.0.0.1:{server.server_address[1]}/"
        env = {"PATH": path, base_name: base, sums_name: str(sums), "no_proxy": "*"} | extra
        command = ["bash", str(ROOT / "download" / f"download_{name}.sh"), *args, str(target)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    run.target, run.sums = target, sums
    return run


def assert_one_error(done, *parts):
    assert done.returncode == 2
    *progress, last = done.stderr.strip().splitlines()
    assert last.startswith("download_") and all(part in last for part in parts), done.stderr
    assert all(line.startswith(("fetching", "checking", "testing")) for line in progress)


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_voc_is_fetched_checked_and_extracted_once(voc, server):
    done = voc()
    assert done.returncode == 0, done.stderr
    assert f"--set voc_root={voc.target}" in done.stdout
    kit = voc.target / "VOCdevkit"
    assert tree(kit) == ["VOC2007/a", "VOC2007/b", "VOC2012/a"]
    assert not list(voc.target.glob("*.part"))
    stamps = {p: p.stat().st_mtime_ns for p in kit.rglob("*")}
    again = voc()
    assert again.returncode == 0 and again.stderr.count("already extracted") == 3
    assert len(server.log) == 3 and stamps == {p: p.stat().st_mtime_ns for p in kit.rglob("*")}


def test_coco_parts_can_be_chosen(coco, server):
    done = coco("--only", "val,annotations")
    assert done.returncode == 0, done.stderr
    assert {path for path, _ in server.log} == set(server.files) - {"/zips/train2017.zip"}
    assert (coco.target / "val2017/2").is_file() and (coco.target / "annotations").is_dir()
    done = coco("--remove-archives")
    assert done.returncode == 0 and len(server.log) == 3
    assert (coco.target / "train2017/1").is_file()
    assert not (coco.target / "train2017.zip").exists() and (coco.target / "val2017.zip").exists()
    assert coco().returncode == 0 and len(server.log) == 3  # extracted, so nothing is missed


@pytest.mark.parametrize("tool", ["curl", "wget"])
def test_an_interrupted_download_resumes(voc, server, tmp_path, tool):
    if not shutil.which(tool):
        pytest.skip(f"no {tool} here")
    path = "/voc2007/VOCtrainval_06-Nov-2007.tar"
    tools = [t for t in TOOLS if t not in {"curl", "wget"} - {tool}]
    if tool == "curl":
        server.cut[path] = 10000
        assert_one_error(
            voc("--only=2007-trainval", path=bin_of(tmp_path, tools)), "run this again"
        )
    else:  # wget itself tries again
        voc.target.mkdir()
        part = voc.target / "VOCtrainval_06-Nov-2007.tar.part"
        part.write_bytes(server.files[path][:10000])
    assert tree(voc.target) == ["VOCtrainval_06-Nov-2007.tar.part"]
    done = voc("--only=2007-trainval", path=bin_of(tmp_path, tools))
    assert done.returncode == 0, done.stderr
    assert server.log[-1] == (path, 10000)
    assert (voc.target / "VOCdevkit/VOC2007/a").read_text() == "train " * 4000


def bin_of(tmp_path, tools):
    """A PATH that holds just these programs."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for tool in filter(shutil.which, tools):
        (folder / tool).unlink(missing_ok=True)
        (folder / tool).symlink_to(PYTHON if tool == "python3" else shutil.which(tool))
    return str(folder)


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_a_server_that_cannot_resume_and_a_complete_part(voc, server):
    name = "VOCtrainval_06-Nov-2007.tar"
    body = server.files["/voc2007/" + name]
    voc.target.mkdir()
    for resumes, kept in ((False, body[:10000]), (True, body)):
        server.resumes = resumes
        (voc.target / (name + ".part")).write_bytes(kept)
        done = voc("--only=2007-trainval")
        assert done.returncode == 0, done.stderr
        assert (voc.target / name).read_bytes() == body
        for leftover in (voc.target / name, voc.target / f".{name}.extracted"):
            leftover.unlink()


def test_without_unzip_and_tar_python_extracts(coco, voc, tmp_path):
    path = bin_of(tmp_path, [t for t in TOOLS if t not in ("unzip", "tar")])
    done = coco("--only=val", path=path)
    assert done.returncode == 0 and (coco.target / "val2017/2").is_file(), done.stderr
    done = voc("--only=2012-trainval", path=path)
    assert done.returncode == 0 and (voc.target / "VOCdevkit/VOC2012/a").is_file(), done.stderr


def test_a_wrong_checksum_keeps_the_file_aside(voc, server):
    path = "/voc2007/VOCtest_06-Nov-2007.tar"
    good = server.files[path]
    server.files[path] = good[:-1] + b"x"
    wrong = hashlib.md5(server.files[path]).hexdigest()
    assert_one_error(voc("--only=2007-test"), f"has md5 {wrong}, expected", ".tar.bad")
    assert tree(voc.target) == ["VOCtest_06-Nov-2007.tar.bad"]
    server.files[path] = good
    done = voc("--only=2007-test")
    assert done.returncode == 0 and (voc.target / "VOCdevkit/VOC2007/b").is_file(), done.stderr


def test_archives_without_a_checksum_must_be_whole(coco, server):
    coco.sums.write_text("")
    assert coco("--only=annotations").returncode == 0
    server.files["/zips/val2017.zip"] = b"<html>log in</html>"
    assert_one_error(coco("--only=val"), "val2017.zip is not a complete archive", ".zip.bad")
    broken = bytearray(zip_of(train2017__1="picture " * 99))
    broken[60] ^= 255
    server.files["/zips/train2017.zip"] = bytes(broken)
    assert_one_error(coco("--only=train"), "train2017.zip is not a complete archive")


def test_errors_are_one_line(voc, server, tmp_path):
    del server.files["/voc2012/VOCtrainval_11-May-2012.tar"]
    for tool in ("curl", "wget"):
        path = bin_of(tmp_path, [t for t in TOOLS if t not in {"curl", "wget"} - {tool}])
        if shutil.which(tool):
            done = voc("--only=2012-trainval", path=path)
            assert_one_error(done, "11-May-2012.tar: the server refused", "base URL")
        (tmp_path / "bin" / tool).unlink(missing_ok=True)
    assert_one_error(voc("--only=2012-trainval", path=path), "curl or wget is needed")
    assert tree(voc.target) == []
    done = voc("--only=2012-trainval", VOC_BASE_URL="http://127.0.0.1:9")
    assert_one_error(done, "no connection", "run this again")
    assert_one_error(voc("--only=2011"), "--only takes a list of 2007-trainval,2007-test")
    assert_one_error(voc("--fast"), "unknown option --fast; see --help")
    assert_one_error(voc(VOC_MD5_FILE="/nowhere"), "no file /nowhere (VOC_MD5_FILE)")
    voc.target.rmdir()
    voc.target.touch()
    assert_one_error(voc(), "cannot make the folder")


@pytest.mark.parametrize(("name", "folder"), [("voc", "VOC"), ("coco", "coco")])
def test_help_and_the_default_folder(name, folder):
    file = ROOT / "download" / f"download_{name}.sh"
    assert os.access(file, os.X_OK)
    done = subprocess.run(["bash", file, "--help"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and done.stderr == ""
    assert f"default: data/{folder}" in done.stdout


def test_voc_checksums_are_those_of_torchvision():
    from torchvision.datasets.voc import DATASET_YEAR_DICT as archives

    text = (ROOT / "download" / "download_voc.sh").read_text()
    for year in ("2007", "2007-test", "2012"):
        archive = archives[year]
        assert f"{archive['md5']}  {archive['filename']}" in text
        path = archive["url"].partition("/pascal/VOC")[2]  # the host differs by version
        assert path and path in text
