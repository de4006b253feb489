"""Videos and cameras: predictions for each frame, an annotated MP4, a JSON line per frame.

A few frames are in memory at a time, however long the video is.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from utils.cli import log
from utils.errors import UserError
from utils.files import atomic_path, check_place

BATCH = 8  # frames of a file that are answered together; a camera is answered at once
MOST_RATE = 1_001  # frames a second; headers of damaged files say more
CAMERA_RATE = 30.0  # most frames a second of a camera's video: each has to be encoded
MOST_GAP = 10.0  # seconds that are filled with one frame; longer ones are cut
USUAL_RATE = 25.0  # frames a second, of a source that states none
CODEC = "mp4v"  # of the codecs that every build of OpenCV writes
LOG_LEVEL = "OPENCV_FFMPEG_LOGLEVEL", "-8"  # quiet: what is wrong is our own line

# (H, W, 3) uint8 RGB frames -> of each the row of JSON, and the annotated frame of the same size
Answer = Callable[[list[np.ndarray]], list[tuple[dict, np.ndarray]]]


class Clip:
    """An opened video file or camera, and the output paths of its results.

    Args:
        source: path of a video file, or the number of a camera.
        args: `out_dir`, `json`, `stride` and `max_frames` of the command line.

    Raises:
        UserError: it cannot be opened, or a result would replace a file.
    """

    def __init__(self, source: str, args: argparse.Namespace):
        self.args = args
        self.is_camera = source.isdecimal() and not Path(source).exists()
        self.capture = _open(source, self.is_camera)
        self.name = f"camera {source}" if self.is_camera else source
        stem = f"camera{source}" if self.is_camera else Path(source).stem
        check_place(args.out_dir)
        self.video = _free(args.out_dir / f"{stem}_annotated.mp4")
        self.lines = None  # stdout
        if args.json != "-":
            named = None if args.json is None else Path(args.json)
            self.lines = named or _free(self.video.with_suffix(".jsonl"))
            if self.lines.exists():
                raise UserError(f"--json {self.lines} is there already; name another file")
            check_place(self.lines.parent)
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if np.isfinite(rate) and 0 < rate <= MOST_RATE else USUAL_RATE
        if self.is_camera:
            self.rate = min(self.rate, CAMERA_RATE)
        count = self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if not self.is_camera and 0 < count < 1e9 else None

    def frames(self) -> Iterator[tuple[int, float, np.ndarray]]:
        """Every `stride`-th frame: number from 0, seconds since the first, (H, W, 3) uint8 RGB.

        The seconds of a camera are those of the clock: a model that is slower misses frames.
        """
        stride, most = self.args.stride, self.args.max_frames
        start = None
        for number in itertools.count():
            if most is not None and number >= most * stride:
                return
            if number % stride:
                if not self.capture.grab():  # read, but not converted
                    return
                continue
            there, frame = self.capture.read()
            if not there:
                self._check_end(number)
                return
            start = start or time.monotonic()
            seconds = time.monotonic() - start if self.is_camera else number / self.rate
            yield number, seconds, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def _check_end(self, number: int) -> None:
        """Says so where a source ends before its time."""
        if number == 0:
            raise UserError(f"{self.name} gives no frame that OpenCV can read; convert the video")
        if self.count is not None and number < self.count - 1:
            log(f"notice: {self.name} states {self.count} frames, {number} could be read")

    def batches(self) -> Iterator[tuple[list[tuple[int, float]], list[np.ndarray]]]:
        """Batches of frames with their numbers and seconds; all have the size of the first one."""
        frames, size = self.frames(), None
        while batch := list(itertools.islice(frames, 1 if self.is_camera else BATCH)):
            numbers, seconds, images = zip(*batch, strict=True)
            size = size or images[0].shape[:2]
            places = list(zip(numbers, seconds, strict=True))
            yield places, [_resized(image, size) for image in images]

    def annotate(self, answer: Answer, weights: dict | None = None) -> None:
        """Predicts all frames; writes the annotated video and the JSON lines.

        Both files are complete or not there. Ctrl-C ends a camera: what it gave is kept. The video
        of a camera is as long as it was watched: missed frames are filled with the one before.

        Args:
            weights: `Predictor.weights_record`, for the JSON lines.
        """
        from tqdm import tqdm

        total = None if self.count is None else -(-self.count // self.args.stride)
        total = min((n for n in (total, self.args.max_frames) if n is not None), default=None)
        with ExitStack() as stack:
            stack.callback(self.capture.release)
            stream = sys.stdout
            if self.lines is not None:
                path = stack.enter_context(atomic_path(self.lines))
                stream = stack.enter_context(path.open("w", encoding="utf-8"))
            target = stack.enter_context(atomic_path(self.video))
            writer = Writer(target, self.rate / self.args.stride)
            stack.callback(writer.close)
            with tqdm(total=total, unit="frame", desc=self.name, file=sys.stderr) as progress:
                try:
                    for places, images in self.batches():
                        found = answer(images)
                        if weights is not None:
                            found = [({"weights": weights} | row, shown) for row, shown in found]
                        self._write(places, found, images, writer, stream)
                        progress.update(len(places))
                except (KeyboardInterrupt, SystemExit):  # SIGTERM: `utils.cli.run`
                    if not self.is_camera or not progress.n:
                        raise
            if not writer.finish():
                raise UserError(f"cannot write all of {self.video}; make room, or name --out-dir")
            count, speed = progress.n, progress.format_dict
        seconds = max(speed["elapsed"], 1e-9)
        where = f" and {self.lines}" if self.lines else ""
        log(f"{count} frames, {count / seconds:.1f} frames a second: {self.video}{where}")

    def _write(self, places, answers, images, writer: "Writer", stream) -> None:
        for (number, seconds), image, (row, picture) in zip(places, images, answers, strict=True):
            height, width = image.shape[:2]
            place = {"frame": number, "time": round(seconds, 3), "size": [width, height]}
            print(json.dumps(place | row, ensure_ascii=False), file=stream, flush=True)
            writer.add(picture, seconds if self.is_camera else None)


class Writer:
    """Writes an MP4 of frames of one size; it is opened by the first.

    Args:
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.rate, self.writer = path, rate, None
        self.count, self.last = 0, None  # frames that were written, the last one
        self.cut = 0.0  # seconds that were left out

    def add(self, picture: np.ndarray, seconds: float | None = None) -> None:
        """Adds a frame.

        Args:
            picture: (H, W, 3) uint8 RGB.
            seconds: when it is seen; None = after the one before. The gap before it is filled.
        """
        height, width = picture.shape[:2]
        # The codec has no odd sizes.
        even = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self.writer is None:
            code = cv2.VideoWriter.fourcc(*CODEC)
            self.writer = cv2.VideoWriter(str(self.path), code, self.rate, even.shape[1::-1])
            if not self.writer.isOpened():
                raise UserError(f"OpenCV cannot write {CODEC} of {width} x {height} pixels here")
        if self.count and seconds is not None:
            gap = seconds - self.cut - self.count / self.rate
            self.cut += max(gap - MOST_GAP, 0)
            for _ in range(int(min(gap, MOST_GAP) * self.rate)):
                self._write(self.last)
        self.last = cv2.cvtColor(even, cv2.COLOR_RGB2BGR)
        self._write(self.last)

    def _write(self, frame: np.ndarray) -> None:
        self.writer.write(frame)
        self.count += 1

    def finish(self) -> bool:
        """Ends the video; false if it is not whole: OpenCV does not report a full disk."""
        self.close()
        video = cv2.VideoCapture(str(self.path))
        whole = video.isOpened() and video.get(cv2.CAP_PROP_FRAME_COUNT) >= self.count
        video.release()
        return whole

    def close(self) -> None:
        if self.writer is not None:
            self.writer.release()


def _open(source: str, is_camera: bool) -> cv2.VideoCapture:
    """The source, from which a frame can be read."""
    if not is_camera:
        path = Path(source)
        if not path.is_file():
            raise UserError(f"no video at {path}; name a file or the number of a camera")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; download or copy it again")
    os.environ.setdefault(*LOG_LEVEL)
    capture = cv2.VideoCapture(int(source) if is_camera else source)
    if not capture.isOpened():
        if is_camera:
            raise UserError(f"there is no camera {source}, or another program has it; try 0 or 1")
        raise UserError(f"{source} is not a video that OpenCV can read; convert it to MP4")
    return capture


def _free(path: Path) -> Path:
    """The path, with a number where it is taken: no earlier video is replaced."""
    names = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2))
    return next(p for p in itertools.chain([path], names) if not p.exists())


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A stream may change its size on the way, its MP4 may not."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
