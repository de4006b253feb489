"""Videos, cameras and addresses: every frame once, in order, nothing replaced."""

import argparse
import http.server
import json
import os
import resource
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from infer.image_files import Output, find_images
from infer.script import open_clip
from infer.video import BATCH, Clip, Writer
from utils import fetch
from utils.errors import UserError
from utils.images import load_image
from utils.setting_rules import complain_of_options

ROOT = Path(__file__).resolve().parents[1]
RATE = 10.0


def frame(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """(H, W, 3) uint8 RGB; five bars, white or black, are the bits of its number."""
    picture = np.full((*size, 3), 128, np.uint8)
    for bit in range(5):
        picture[:32, 8 * bit : 8 * bit + 8] = 255 * (number >> bit & 1)
    return picture


def number_of(picture: np.ndarray) -> int:
    means = [picture[4:28, 8 * bit + 2 : 8 * bit + 6].mean() for bit in range(5)]
    return sum(int(mean > 128) << bit for bit, mean in enumerate(means))


def write_video(path: Path, count: int, size: tuple[int, int] = (48, 64)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, size[::-1])
    for number in range(count):
        writer.write(frame(number, size))
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB))
    return frames, capture.get(cv2.CAP_PROP_FPS)


def arguments(source: object, out: Path, **values) -> argparse.Namespace:
    values = {"json": None, "stride": 1, "max_frames": None} | values
    return argparse.Namespace(image=[str(source)], out_dir=out, **values)


def answer(frames: list[np.ndarray]) -> list[tuple[dict, np.ndarray]]:
    """What a model would say: the number that it sees; the picture turns red in a corner."""
    answers = []
    for one in frames:
        picture = one.copy()
        picture[-8:, -8:] = 255, 0, 0
        answers.append(({"seen": number_of(one)}, picture))
    return answers


def refusal(function, *args) -> str:
    with pytest.raises(UserError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- videos --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "most"), [(1, None), (3, None), (1, 5), (4, 2), (100, None)], ids=str
)
def test_every_stride_th_frame_is_answered_once_in_order(tmp_path, stride, most):
    video = write_video(tmp_path / "clip.mp4", 21)
    weights = {"name": "w.safetensors", "revision": None, "sha256": "0" * 64}
    clip = open_clip(arguments(video, tmp_path, stride=stride, max_frames=most))
    clip.annotate(answer, weights)
    expected = list(range(0, 21, stride))[:most]
    lines = (tmp_path / "clip_annotated.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["frame"] for row in rows] == [row["seen"] for row in rows] == expected
    assert [row["time"] for row in rows] == [round(n / RATE, 3) for n in expected]
    assert all(row["size"] == [64, 48] and row["weights"] == weights for row in rows)

    frames, rate = read_video(tmp_path / "clip_annotated.mp4")
    assert [number_of(one) for one in frames] == expected
    assert rate == pytest.approx(RATE / stride, rel=1e-3)  # it lasts as long
    red = frames[0][-4:, -4:].reshape(-1, 3).mean(0)
    assert red[0] > 150 and max(red[1:]) < 100


def test_no_more_than_a_batch_of_frames_is_in_memory(tmp_path):
    alive, sizes = [], []

    def watched(frames):
        sizes.append(len(frames))
        alive.append(frames[0].nbytes * len(frames))
        return answer(frames)

    video = write_video(tmp_path / "clip.mp4", 2 * BATCH + 3)
    Clip(str(video), arguments(video, tmp_path)).annotate(watched)
    assert sizes == [BATCH, BATCH, 3]


def test_a_video_of_odd_size_keeps_its_pixels(tmp_path):
    writer = Writer(tmp_path / "odd.mp4", RATE)
    for number in range(3):
        writer.add(frame(number, (49, 65)))
    writer.close()
    frames, _ = read_video(tmp_path / "odd.mp4")
    assert [number_of(one) for one in frames] == [0, 1, 2]
    assert frames[0].shape == (50, 66, 3)


def test_neither_the_video_nor_an_earlier_result_is_replaced(tmp_path):
    video = write_video(tmp_path / "a_annotated.mp4", 2)
    for name in ("a_annotated.mp4", "a_annotated_annotated.mp4"):
        before = video.read_bytes()
        open_clip(arguments(tmp_path / name, tmp_path)).annotate(answer)
        assert video.read_bytes() == before
    (tmp_path / "a.mp4").write_bytes(video.read_bytes())
    open_clip(arguments(tmp_path / "a.mp4", tmp_path)).annotate(answer)
    assert video.read_bytes() == before and (tmp_path / "a_annotated-2.mp4").is_file()
    text = refusal(open_clip, arguments(video, tmp_path, json=str(video)))
    assert "is there already" in text


def test_a_failure_leaves_no_half_a_video(tmp_path):
    video = write_video(tmp_path / "clip.mp4", 2 * BATCH)
    calls = []

    def fail(frames):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("memory")
        return answer(frames)

    with pytest.raises(RuntimeError):
        open_clip(arguments(video, tmp_path)).annotate(fail)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_video_that_does_not_fit_is_one_line_and_no_file(tmp_path):
    """OpenCV says nothing when the disk is full."""
    video = write_video(tmp_path / "clip.mp4", 21)
    free, limits = 1_000, resource.getrlimit(resource.RLIMIT_FSIZE)
    clip = open_clip(arguments(video, tmp_path, json="-"))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (free, limits[1]))
        assert "make room" in refusal(clip.annotate, answer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no video at"),
        (b"", "is empty"),
        (b"no video" * 99, "not a video that OpenCV can read"),
    ],
)
def test_what_is_no_video_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "clip.mp4").write_bytes(content)
    assert message in refusal(open_clip, arguments(tmp_path / "clip.mp4", tmp_path))
    assert "at least 1" in complain_of_options({"stride": 0})[0]


def test_a_video_that_was_cut_gives_what_it_has(tmp_path, capsys):
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (64, 48))
    for number in range(30):
        writer.write(frame(number))
    writer.release()
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    open_clip(arguments(video, tmp_path)).annotate(answer)
    count = len((tmp_path / "clip_annotated.jsonl").read_text().splitlines())
    assert 0 < count < 30
    assert len(read_video(tmp_path / "clip_annotated.mp4")[0]) == count


# ---- cameras -------------------------------------------------------------------------------------


class Camera:
    """A stand-in for OpenCV's: it has three frames, then a person presses Ctrl-C."""

    ended: type[BaseException] = KeyboardInterrupt

    def __init__(self, number: int):
        assert number == 7
        self.read_so_far = 0

    def isOpened(self) -> bool:
        return True

    def get(self, _) -> float:
        return 0.0

    def grab(self) -> bool:
        return self.read()[0]

    def read(self) -> tuple[bool, np.ndarray]:
        if self.read_so_far == 3:
            raise self.ended
        self.read_so_far += 1
        return True, frame(self.read_so_far - 1)

    def release(self) -> None: ...


@pytest.mark.parametrize("ended", [KeyboardInterrupt, SystemExit])  # Ctrl-C, SIGTERM
def test_a_camera_runs_until_it_is_ended(tmp_path, monkeypatch, capsys, ended):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Camera, "ended", ended)
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    clip = open_clip(arguments(7, tmp_path, json="-"))
    monkeypatch.undo()
    sizes = []
    clip.annotate(lambda frames: sizes.append(len(frames)) or answer(frames))
    assert sizes == [1, 1, 1]  # answered at once, not when a batch is full
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["frame"] for row in rows] == [0, 1, 2]
    frames, rate = read_video(tmp_path / "camera7_annotated.mp4")
    assert ([number_of(one) for one in frames], rate) == ([0, 1, 2], 25)


def test_the_seconds_of_a_camera_are_those_of_the_clock(tmp_path, monkeypatch, capsys):
    """A model that takes longer than a frame must not make a film that runs too fast."""
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    clip = open_clip(arguments(7, tmp_path, json="-"))
    monkeypatch.undo()
    clip.annotate(lambda frames: time.sleep(0.4) or answer(frames))
    times = [json.loads(line)["time"] for line in capsys.readouterr().out.splitlines()]
    assert times[0] < 0.01 and all(0.4 <= b - a < 2 for a, b in zip(times, times[1:], strict=False))
    frames, rate = read_video(tmp_path / "camera7_annotated.mp4")
    seen = [number_of(one) for one in frames]
    assert seen == sorted(seen) and set(seen) == {0, 1, 2}
    assert len(frames) / rate == pytest.approx(times[-1], abs=0.1)


def test_a_camera_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: argparse.Namespace(isOpened=lambda: False))
    assert "no camera 7" in refusal(open_clip, arguments(7, tmp_path))
    Image.fromarray(frame(0)).save(tmp_path / "7", "png")
    assert open_clip(arguments(7, tmp_path)) is None  # a file of that name comes first
    both = arguments(7, tmp_path)
    both.image = ["a.mp4", "b.jpg"]
    assert "give a video or camera alone" in refusal(open_clip, both)


@pytest.mark.parametrize(
    ("option", "value"),
    [("csv", "a.csv"), ("crops", Path("cut")), ("yolo", Path("labels")), ("timing", True)],
)
def test_options_for_pictures_are_refused_for_videos_and_cameras(
    tmp_path, monkeypatch, option, value
):
    monkeypatch.chdir(tmp_path)
    for source in (write_video(tmp_path / "a.mp4", 2), 7):
        text = refusal(open_clip, arguments(source, tmp_path, **{option: value}))
        assert f"--{option} is for pictures" in text and "docs/video.md" in text
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    picture = tmp_path / "a.png"
    assert open_clip(arguments(picture, tmp_path, **{option: value})) is None


# ---- addresses -----------------------------------------------------------------------------------


class Server(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow.png":
            self.send_response(200)
            self.end_headers()
            time.sleep(1)
        elif self.path == "/local":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_) -> None: ...


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(fetch, "PATIENCE", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_picture_at_an_address_is_that_picture(served, tmp_path, capsys):
    folder, address = served
    for name, value in (("a.png", 1), ("b c.png", 2)):
        Image.fromarray(frame(value)).save(folder / name)
    urls = [f"{address}/a.png", f"{address}/b%20c.png?size=1"]
    paths = find_images([*urls, str(folder / "a.png")])
    assert [number_of(load_image(path)) for path in paths] == [1, 2, 1]
    args = argparse.Namespace(json="-", out_dir=tmp_path / "out")
    with Output(args, paths) as output:
        for path in paths:
            output.add(path, load_image(path), f"{path}: text", {}, {"boxes": frame(0)})
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == [*urls, str(folder / "a.png")]
    assert output.texts[0] == f"{urls[0]}: text"
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_what_is_no_picture_at_an_address_is_one_line(served, monkeypatch):
    folder, address = served
    (folder / "page.png").write_text("<!doctype html><html></html>")
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "large.png").write_bytes(bytes(5000))
    expected = {
        "page.png": "is a web page; name the address of the picture itself",
        "text.png": "text.png",
        "empty.png": "is empty",
        "none.png": "status 404",
        "slow.png": "timed out",
        "local": "cannot fetch",
    }
    for name, message in expected.items():
        text = refusal(fetch.fetch_picture, f"{address}/{name}")
        assert message in text and f"{address}/{name}" in text and "/tmp" not in text, text
    monkeypatch.setattr(fetch, "MAX_BYTES", 4000)
    assert "is larger than" in refusal(fetch.fetch_picture, f"{address}/large.png")
    assert "Connection refused" in refusal(fetch.fetch_picture, "http://127.0.0.1:9/a.png")


# ---- the scripts ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("script", ["object_detection", "voc", "multi_task"])
def test_a_script_annotates_a_video(tmp_path, script):
    image = load_image(ROOT / "images" / "demo.jpg")
    size = image.shape[1::-1]
    writer = cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, size)
    for _ in range(3):
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()
    command = [sys.executable, str(ROOT / "infer" / f"infer_single_image_{script}.py")]
    command += ["--image", "a.mp4", "--stride", "2", "--json", "lines.jsonl"]
    command += ["--weights", str(ROOT / "weights" / "demo.safetensors")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "frames a second: a_annotated.mp4 and lines.jsonl" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == [0, 2]
    assert all(row["objects"] for row in rows)
    assert len(read_video(tmp_path / "a_annotated.mp4")[0]) == 2
