"""The images that a script of infer/ reads, and the files that it writes."""

import argparse
import itertools
import json
import os
import re
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np

from infer.script import VIDEOS, is_camera
from utils.cli import log
from utils.errors import UserError
from utils.files import write_json_atomic
from utils.images import SUFFIXES, list_files, list_images, load_image

URL = re.compile(r"https?://", re.IGNORECASE)
ADDRESSES: dict[Path, str] = {}  # file of a picture that was fetched -> where it is from
NO_PICTURES = (".txt", ".json", ".csv", ".xml", ".yaml", ".yml", ".md", ".ini", ".db")
VIDEO_SCRIPTS = (
    "videos: use infer_single_image_object_detection.py or infer_single_image_multi_task.py"
)
PICTURES_AHEAD = 16  # that wait to be written


def find_images(patterns: Sequence[str], recursive: bool = False) -> list[Path]:
    """The images that `--image` names, each once.

    Files of a folder that are left out because of their suffix are counted in a notice.

    Raises:
        UserError: one of the patterns names none, or a video or a camera.
    """
    for one in patterns:
        if one.lower().endswith(VIDEOS) or is_camera(one):
            raise UserError(f"--image {one} is no picture; {VIDEO_SCRIPTS}")
        if not URL.match(one) and os.path.isdir(os.path.expanduser(one)):
            _report_skipped(Path(one).expanduser(), recursive)
    paths = [
        path
        for one in patterns
        for path in (_fetched(one) if URL.match(one) else list_images(one, recursive=recursive))
    ]
    return list({os.path.abspath(path): path for path in reversed(paths)}.values())[::-1]


def _report_skipped(folder: Path, recursive: bool) -> None:
    """Says how many files of a folder are passed over, such as raw pictures of a camera."""
    names = list_files(folder) if recursive else os.listdir(folder)
    visible = [Path(name) for name in names if "/." not in f"/{name}"]
    suffixes = (path.suffix.lower() for path in visible if (folder / path).is_file())
    counts = Counter(s for s in suffixes if s and s not in (*SUFFIXES, *NO_PICTURES))
    if not counts:
        return
    number = counts.total()
    kinds = ", ".join(f"{suffix} {count}" for suffix, count in counts.most_common())
    what = "1 file that is no image" if number == 1 else f"{number} files that are no images"
    remedy = f"convert {'it' if number == 1 else 'them'} to JPEG"
    log(
        f"notice: skipped {what} this program reads: {kinds}; "
        + (VIDEO_SCRIPTS if set(counts) <= set(VIDEOS) else remedy)
    )


def _fetched(url: str) -> list[Path]:
    path = import_module("utils.fetch").fetch_picture(url)
    ADDRESSES[path] = url
    return [path]


def read_images(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Reads images one after the other, see `read_batches`."""
    for batch in read_batches(paths, 1):
        yield from batch


def read_batches(paths: Sequence[Path], size: int) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """Reads images in batches; of several images, unreadable ones are reported and left out.

    The next images are read while the caller works on a batch. A terminal shows how many of several
    are done.

    Yields:
        up to `size` pairs of path and (H, W, 3) uint8 RGB pixels.

    Raises:
        UserError: at the end, if images were left out; at once if there is one image alone.
    """
    from tqdm import tqdm

    batch, unread = [], []
    disable = None if len(paths) > 1 else True  # None: no bar without a terminal
    with tqdm(total=len(paths), unit="image", disable=disable) as bar:
        for path, image in _read_ahead(paths, size):
            try:
                batch.append((path, image.result()))
            except UserError as error:
                if len(paths) == 1:
                    raise
                _note(f"left out: {error}")
                unread.append(path)
                bar.update()
            if len(batch) == size:
                yield batch
                bar.update(size)
                batch = []
        if batch:
            yield batch
            bar.update(len(batch))
    if unread:
        raise UserError(
            f"{len(unread)} of {len(paths)} images could not be read, {unread[0]} first"
        )


def _read_ahead(paths: Sequence[Path], ahead: int) -> Iterator[tuple[Path, Future]]:
    """Images in order; one thread reads up to `ahead` of them before they are asked for."""
    reader, waiting, rest = ThreadPoolExecutor(1), deque(), iter(paths)
    try:
        for path in paths:
            for later in itertools.islice(rest, ahead + 1 - len(waiting)):
                waiting.append(reader.submit(load_image, later))
            yield path, waiting.popleft()
    finally:
        reader.shutdown(cancel_futures=True)


def _note(text: str) -> None:
    """`log`, above the bar of `read_batches`."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        log(text)


class Output:
    """Writes the results of a script: pictures to `--out-dir`, the rest to stdout and `--json`.

    What other tools read goes to `--csv`, `--yolo` and `--crops`. It is a context. At its end the
    results are printed, also if an error ended it.

    Args:
        predictor: whose results they are; JSON names its weights, and what is given as `found`
            has its classes.
    """

    def __init__(self, args: argparse.Namespace, paths: Sequence[Path], predictor=None):
        self.args, self.predictor, self.exports = args, predictor, None
        if predictor is None and getattr(args, "csv", None) is not None:
            raise UserError("this script writes no --csv; --json FILE writes its results")
        if getattr(args, "yolo", None) is not None:
            check_stems(paths)
        self.begins = name_pictures(paths)
        self.inputs = {os.path.realpath(path) for path in paths}
        # The checksum is taken now: a training may replace the file.
        self.weights = predictor.weights_record if predictor and args.json else None
        self.rows: list[dict] = []
        self.texts: list[str] = []
        self.writer = ThreadPoolExecutor(1)  # compressing a picture takes as long as detecting
        self.unwritten: deque[Future] = deque()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        try:
            self._wait(0)
        finally:
            self.writer.shutdown(cancel_futures=True)
            self._print()

    def _wait(self, most: int) -> None:
        """Waits until at most so many pictures are still to be written."""
        while len(self.unwritten) > most:
            self.unwritten.popleft().result()

    def _print(self) -> None:
        if self.rows:
            print_results(self.args, self.rows, self.texts)
        if self.exports is not None:
            self.exports.close()

    def add(
        self,
        path: Path,
        image: np.ndarray,
        text: str,
        row: dict,
        pictures: dict[str, np.ndarray] | None = None,
        *,
        found=None,
    ) -> None:
        """Adds the result of an image; pictures are written while the caller goes on.

        Args:
            text: for people.
            row: of the JSON, beside path and size of the image.
            pictures: name -> RGB uint8.
            found: the result for tools: objects of one kind, or captions.
        """
        for name, picture in (pictures or {}).items():
            target = self.args.out_dir / f"{self.begins[path]}{name}.png"
            while os.path.realpath(target) in self.inputs:  # a picture of an earlier call, say
                target = target.with_stem(target.stem + "-2")
            self.unwritten.append(self.writer.submit(_write_picture, target, picture))
        self._wait(PICTURES_AHEAD)
        places = [getattr(self.args, name, None) for name in ("csv", "yolo", "crops")]
        if found is not None and any(places):
            if self.exports is None:
                formats = import_module("infer.result_formats")
                self.exports = formats.Exports(*places, self.predictor.categories)
            self.exports.add(path, self.begins[path][:-1] or path.stem, image, found)
        name = ADDRESSES.get(path, str(path))
        head = {"image": name, "size": [image.shape[1], image.shape[0]]}
        if self.weights is not None:
            head["weights"] = self.weights
        self.rows.append(head | row)
        self.texts.append(text.replace(str(path), name))


def _write_picture(target: Path, picture: np.ndarray) -> None:
    from utils.visualize import save_image

    save_image(target, picture)
    _note(f"drew {target}" + " in the current folder" * (target.parent == Path()))


def name_pictures(paths: Sequence[Path]) -> dict[Path, str]:
    """The beginning of the names of each image's pictures: no two are equal, in any case.

    It is nothing for one image; of several `<stem>_`, with the suffix where stems repeat, with the
    folders where names repeat, and with a number where that does not do.
    """
    if len(paths) == 1:
        return {paths[0]: ""}
    top = os.path.commonpath([path.absolute().parent for path in paths])
    longer = (
        lambda path: path.stem,
        lambda path: path.name,
        lambda path: "_".join(path.absolute().relative_to(top).parts),
    )
    counts = [Counter(_comparable(name(path)) for path in paths) for name in longer]
    out, taken = {}, set()
    for path in paths:
        names = [name(path) for name in longer]
        alone = [n for n, count in zip(names, counts, strict=True) if count[_comparable(n)] == 1]
        start = (alone or names[-1:])[0]
        numbered = (f"{start}-{i}" for i in itertools.count(2))
        chosen = next(n for n in itertools.chain([start], numbered) if _comparable(n) not in taken)
        taken.add(_comparable(chosen))
        out[path] = f"{chosen}_"
    return out


def check_stems(paths: Sequence[Path]) -> None:
    """Checks that a file of labels belongs to one picture: YOLO goes by the name alone.

    Raises:
        UserError: names are equal, apart from folder and suffix.
    """
    known: dict[str, Path] = {}
    for path in paths:
        if (other := known.setdefault(_comparable(path.stem), path)) is not path:
            raise UserError(
                f"{other} and {path} have one name for --yolo, which ignores folder and suffix; "
                "rename one, or run once for each folder"
            )


def _comparable(name: str) -> str:
    """A name as file systems compare it that ignore case and the normal form."""
    return unicodedata.normalize("NFC", name.casefold())


def print_results(args: argparse.Namespace, rows: list[dict], texts: list[str]) -> None:
    """Prints the texts, or the rows as JSON; `--json FILE` writes the rows too."""
    if args.json == "-":
        json.dump(rows, sys.stdout, indent=2)
        print()
    else:
        print("\n\n".join(texts))
    if args.json not in (None, "-"):
        write_json_atomic(args.json, rows)
