"""What it costs to open full-size COCO: time, memory, and what workers add.

python benchmarks/startup.py
python benchmarks/startup.py --images 5000 --dir /tmp/small

Writes annotation files of the size of train2017 with made-up contents (118,287 images, 860,001
objects of 26 points, 262,465 persons, 591,753 captions; pictures are empty files), unless --dir
holds them, and measures in fresh processes, in CPU seconds and MiB:
  first        no index is there: the file is read and the index is built
  index        the index is there
  second       memory of a process that opens the index, which no other one shares
  worker       growth of a forked worker's own memory over a pass; no image is read
Peak memory is counted above that of the imports.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

import numpy as np
import torch

from benchmarks.machine import machine
from utils.cli import log, run
from utils.files import write_json_atomic

TASKS = ("detection", "segmentation", "keypoint", "captioning")
OBJECTS, PERSONS, CAPTIONS, IMAGES = 860_001, 262_465, 591_753, 118_287  # of train2017
POINTS = 26  # of an outline
WORDS = (
    "a",
    "man",
    "on",
    "the",
    "red",
    "bus",
    "with",
    "two",
    "small",
    "dogs",
    "near",
    "an",
    "open",
)


def parse(argv=None) -> argparse.Namespace:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--images", type=int, default=IMAGES, help="fewer of everything")
    args.add_argument("--dir", type=Path, help="where the files are kept; default: a new folder")
    args.add_argument("--out", type=Path, help="write the figures as JSON")
    args.add_argument("--one", help=argparse.SUPPRESS)  # what a fresh process measures
    args.add_argument("--tasks", nargs="+", default=list(TASKS), help=argparse.SUPPRESS)
    return args.parse_args(argv)


def main(argv=None) -> None:
    args = parse(argv)
    if args.one:
        print(json.dumps(MEASURES[args.one](args.dir, args.tasks)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = args.dir or Path(folder)
        write_set(root, args.images)
        rows = {}
        for tasks in ([task] for task in TASKS):
            rows[tasks[0]] = measure(root, tasks, workers=True)
        rows["all four"] = measure(root, list(TASKS), workers=False)
    print(f"{machine(torch.device('cpu'))}, {args.images} images")
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"{'':14}" + "".join(f"{name:>14}" for name in names))
    for task, row in rows.items():
        cells = (f"{row[name]:14.1f}" if name in row else f"{'':14}" for name in names)
        print(f"{task:14}" + "".join(cells))
    if args.out:
        write_json_atomic(args.out, rows)


def measure(root: Path, tasks: list[str], *, workers: bool) -> dict[str, float]:
    """Opens the training sources of some tasks in fresh processes, with a cache of their own."""
    with tempfile.TemporaryDirectory(dir=root) as cache:
        first, index = (_process("open", root, tasks, cache) for _ in range(2))
        out = {
            "first s": first["seconds"],
            "first MB": first["peak"],
            "index s": index["seconds"],
            "index MB": index["peak"],
        }
        os.sync()  # pages of a file that are still to be written look like memory of one's own
        out["second MB"] = _process("second", root, tasks, cache)["own"]
        if workers:
            out["worker MB"] = _process("worker", root, tasks, cache)["growth"]
    return out


def _process(what: str, root: Path, tasks: list[str], cache: str) -> dict:
    command = [sys.executable, __file__, "--one", what, "--dir", str(root), "--tasks", *tasks]
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


# ---- in a fresh process ------------------------------------------------------------------------


def open_sources(root: Path, tasks: list[str]) -> list:
    """The training sources, as a training with the settings of `CFG` opens them."""
    from config import CFG
    from train.build import build_source_of
    from utils.cli import snapshot

    cfg = snapshot(CFG, [f"coco_root={root}"])
    return [build_source_of(cfg, task, train=True) for task in tasks]


def _open(root: Path, tasks: list[str]) -> dict:
    import train.build  # noqa: F401  the imports do not count

    before, seconds = _peak(), time.process_time()
    sources = open_sources(root, tasks)
    seconds = time.process_time() - seconds
    return {"seconds": seconds, "peak": _peak() - before, "samples": [len(s) for s in sources]}


def _second(root: Path, tasks: list[str]) -> dict:
    """Memory that is this process's own; the pages of the index are those of the machine."""
    import train.build  # noqa: F401

    before = _own()
    sources = open_sources(root, tasks)
    return {"own": _own() - before, "samples": [len(s) for s in sources]}


def _worker(root: Path, tasks: list[str]) -> dict:
    """Growth of what a forked worker has to itself, while it looks at all annotations once."""
    from dataset.loader import init_worker

    sources = open_sources(root, tasks)
    receive, send = os.pipe()
    if os.fork() == 0:
        init_worker(0)
        before = _own()
        for source in sources:
            for index in range(len(source)):
                look(source, index)
        os.write(send, str(_own() - before).encode())
        os._exit(0)
    os.wait()
    return {"growth": float(os.read(receive, 100))}


def look(source, index: int) -> None:
    """Reads the annotations of a sample, without its image."""
    if hasattr(source, "items"):  # one sample per object
        source, index = source.source, int(source.items[index, 0])
    if hasattr(source, "captions"):
        source.captions(index)
        return
    source.objects(index)
    source.more_fields(index)


MEASURES = {"open": _open, "second": _second, "worker": _worker}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _own() -> float:
    """MB of memory that no other process can share: written to, so not the pages of a file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


# ---- the made-up set ---------------------------------------------------------------------------


def write_set(root: Path, num_images: int) -> None:
    """Annotation files of a share of train2017's size; those that are there stay."""
    share, folder = num_images / IMAGES, root / "annotations"
    (root / "train2017").mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    images = [
        {"id": 3 * i + 9, "file_name": f"{3 * i + 9:012}.jpg", "height": 480, "width": 640}
        for i in range(num_images)
    ]
    for row in images:
        (root / "train2017" / row["file_name"]).touch()
    writers = {
        "instances": (_instance, OBJECTS),
        "person_keypoints": (_person, PERSONS),
        "captions": (_caption, CAPTIONS),
    }
    for kind, (write, count) in writers.items():
        path = folder / f"{kind}_train2017.json"
        if path.is_file():
            continue
        log(f"writing {path}")
        draws, count = np.random.default_rng(0), round(count * share)
        with path.open("w") as file:
            file.write(json.dumps({"images": images, "categories": _categories(kind)})[:-1])
            file.write(', "annotations": [')
            for i in range(count):
                row = {"id": i + 1, "image_id": images[i % num_images]["id"]}
                file.write((", " if i else "") + json.dumps(row | write(draws)))
            file.write("]}")


def _categories(kind: str) -> list[dict]:
    if kind == "captions":
        return []
    if kind == "instances":
        return [{"id": i, "name": f"class {i}", "supercategory": "thing"} for i in range(1, 81)]
    names = [f"point_{i}" for i in range(17)]
    return [{"id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 2], [2, 3]]}]


def _box(draws: np.random.Generator) -> list[float]:
    x, y, w, h = draws.uniform(1, 200, 4).round(2).tolist()
    return [x, y, w, h]


def _instance(draws: np.random.Generator) -> dict:
    x, y, w, h = _box(draws)
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    reach = draws.uniform(0.6, 1, POINTS)
    points = np.stack([x + w * (1 + reach * np.cos(angles)) / 2, y + h * (1 + np.sin(angles)) / 2])
    outline = points.T.round(2).ravel().tolist()
    return {
        "segmentation": [outline],
        "area": round(w * h * 0.7, 4),
        "iscrowd": 0,
        "bbox": [x, y, w, h],
        "category_id": int(draws.integers(1, 81)),
    }


def _person(draws: np.random.Generator) -> dict:
    points = draws.integers(0, 640, (17, 3))
    points[:, 2] %= 3
    values = _instance(draws) | {"keypoints": points.ravel().tolist(), "category_id": 1}
    return values | {"num_keypoints": int((points[:, 2] > 0).sum())}


def _caption(draws: np.random.Generator) -> dict:
    words = draws.choice(WORDS, int(draws.integers(8, 14)))
    return {"caption": f"{' '.join(words)}."}


if __name__ == "__main__":
    run(main)
