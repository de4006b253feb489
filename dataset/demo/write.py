"""The demo set on disk: COCO 2017 layout, and VOC layout over the same pictures."""

import json
import multiprocessing
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
from tqdm import tqdm

from dataset.demo.captions import write_captions
from dataset.demo.people import KEYPOINTS, SKELETON
from dataset.demo.scene import Placed, Scene, draw_scene
from utils.errors import UserError

VERSION = 1  # raise it whenever the same arguments give other pictures or annotations
SPLITS = ("train", "val")
VAL_ID0 = 500_000  # image ids of val come after those of train
CATEGORY_IDS = {
    "person": 1, "car": 3, "cat": 17, "umbrella": 28, "ball": 37, "kite": 38, "mug": 47,
    "house": 91, "tree": 93, "fish": 95,
}  # fmt: skip
SUPERCATEGORIES = {"person": "person", "car": "vehicle", "cat": "animal", "fish": "animal"}
JPEG_QUALITY = 90
INFO = {
    "description": "Synthetic demo set in COCO layout", "url": "", "version": str(VERSION),
    "year": 2017, "contributor": "download/make_demo_dataset.py", "date_created": "2017/09/01",
}  # fmt: skip
LICENSES = [
    {"url": "https://www.apache.org/licenses/LICENSE-2.0", "id": 1, "name": "Apache License 2.0"}
]


@dataclass(frozen=True)
class DemoSet:
    """What determines every byte of the set: sizes of the splits, side lengths (pixels), seed."""

    train: int
    val: int
    size: tuple[int, int]
    seed: int

    def record(self, *, complete: bool) -> dict:
        """Content of `demo.json`."""
        return {
            "version": VERSION, "train": self.train, "val": self.val, "size": list(self.size),
            "seed": self.seed, "complete": complete,
        }  # fmt: skip


def image_id(split: str, index: int) -> int:
    """COCO image id (from 1) of the picture at `index` of a split."""
    return index + 1 + (VAL_ID0 if split == "val" else 0)


def draw_image(demo: DemoSet, split: str, index: int) -> tuple[Scene, list[str]]:
    """The picture at `index` of a split and its captions; depends on nothing else.

    In every hundred pictures one shows nothing and one has a crowd.
    """
    rng = np.random.default_rng([demo.seed, SPLITS.index(split), index])
    h, w = (int(n) for n in rng.integers(demo.size[0], demo.size[1] + 1, 2))
    kind = {37: "empty", 73: "crowd"}.get(index % 100, "things")
    scene = draw_scene(rng, h, w, kind=kind)
    return scene, write_captions(rng, scene)


def _annotation(thing: Placed) -> dict:
    """COCO annotation without its ids; a person's with keypoints."""
    entry = {
        "segmentation": thing.region.segmentation, "area": thing.region.area,
        "iscrowd": int(thing.is_crowd), "bbox": thing.region.box,
        "category_id": CATEGORY_IDS[thing.category],
    }  # fmt: skip
    if thing.category == "person":
        points = thing.keypoints if thing.keypoints is not None else np.zeros((17, 3), np.int64)
        entry["num_keypoints"] = int((points[:, 2] > 0).sum())
        entry["keypoints"] = points.ravel().tolist()
    return entry


def _voc_xml(name: str, scene: Scene) -> str:
    """VOC annotation; boxes are 1-based and inclusive, groups are difficult."""
    h, w = scene.image.shape[:2]
    lines = [
        "<annotation>", "\t<folder>VOC2012</folder>", f"\t<filename>{name}.jpg</filename>",
        "\t<source>\n\t\t<database>Synthetic demo set</database>",
        "\t\t<annotation>PASCAL VOC2012</annotation>\n\t\t<image>synthetic</image>\n\t</source>",
        f"\t<size>\n\t\t<width>{w}</width>\n\t\t<height>{h}</height>\n\t\t<depth>3</depth>\n\t</size>",
        "\t<segmented>0</segmented>",
    ]  # fmt: skip
    poses = {"left": "Left", "right": "Right", "front": "Frontal", "back": "Rear"}
    for thing in scene.placed:
        x, y, bw, bh = (int(v) for v in thing.region.box)
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + bw, "ymax": y + bh}
        lines += [
            "\t<object>", f"\t\t<name>{escape(thing.category)}</name>",
            f"\t\t<pose>{poses.get(thing.facing, 'Unspecified')}</pose>",
            f"\t\t<truncated>{int(thing.truncated)}</truncated>",
            f"\t\t<difficult>{int(thing.is_crowd)}</difficult>", "\t\t<bndbox>",
            *(f"\t\t\t<{key}>{value}</{key}>" for key, value in corners.items()),
            "\t\t</bndbox>", "\t</object>",
        ]  # fmt: skip
    return "\n".join([*lines, "</annotation>", ""])


def save_jpeg(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB."""
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert ok, f"cannot encode {path}"
    path.write_bytes(data.tobytes())


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _write_image(job: tuple[DemoSet, Path, str, int]) -> dict:
    """Draw one picture into both layouts; returns what the COCO files say about it."""
    demo, out, split, index = job
    scene, captions = draw_image(demo, split, index)
    number = image_id(split, index)
    name = f"{number:012d}"
    picture = out / f"{split}2017" / f"{name}.jpg"
    picture.unlink(missing_ok=True)  # never write through a hard link
    save_jpeg(picture, scene.image)
    voc = out / "VOCdevkit" / "VOC2012"
    _link(picture, voc / "JPEGImages" / f"{name}.jpg")
    (voc / "Annotations" / f"{name}.xml").write_text(_voc_xml(name, scene))
    h, w = scene.image.shape[:2]
    image = {
        "license": 1, "file_name": f"{name}.jpg", "coco_url": "", "height": h, "width": w,
        "date_captured": "2017-09-01 00:00:00", "flickr_url": "", "id": number,
    }  # fmt: skip
    return {
        "image": image,
        "annotations": [_annotation(t) for t in scene.placed],
        "captions": captions,
    }


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")))


def _write_annotations(folder: Path, split: str, records: list[dict]) -> None:
    """The three COCO files of a split; annotation ids are shared by instances and keypoints."""
    start = 1_000_000 * (1 + SPLITS.index(split))
    head = {"info": INFO, "licenses": LICENSES, "images": [r["image"] for r in records]}
    categories = [
        {"supercategory": SUPERCATEGORIES.get(name, "object"), "id": number, "name": name}
        for name, number in CATEGORY_IDS.items()
    ]
    instances, people, captions = [], [], []
    for record in records:
        number = record["image"]["id"]
        for entry in record["annotations"]:
            entry = {**entry, "image_id": number, "id": start + len(instances)}
            if "keypoints" in entry:
                people.append(entry)
            plain = {k: v for k, v in entry.items() if k not in ("keypoints", "num_keypoints")}
            instances.append(plain)
        for text in record["captions"]:
            captions.append({"image_id": number, "id": start + len(captions), "caption": text})
    person = {**categories[0], "keypoints": KEYPOINTS, "skeleton": SKELETON}
    _write_json(
        folder / f"instances_{split}2017.json",
        {**head, "annotations": instances, "categories": categories},
    )
    _write_json(
        folder / f"person_keypoints_{split}2017.json",
        {**head, "annotations": people, "categories": [person]},
    )
    _write_json(folder / f"captions_{split}2017.json", {**head, "annotations": captions})


def _is_complete(out: Path, demo: DemoSet) -> bool:
    """Does `out` hold exactly this set? Raises where something else is in the way."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out} is a file; choose another folder with --out")
    record = out / "demo.json"
    if not record.is_file():
        if any(out.iterdir()):
            raise UserError(f"{out} holds files that are not a demo set; choose another --out")
        return False
    try:
        found = json.loads(record.read_text())
        complete = bool(found.pop("complete"))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{record} is not readable; remove {out} or choose another --out") from None
    wanted = demo.record(complete=False)
    wanted.pop("complete")
    if found != wanted:
        raise UserError(
            f"{out} holds a demo set made with other arguments ({found}); "
            "remove that folder or choose another --out"
        )
    files = [
        out / f"{s}2017" / f"{image_id(s, k):012d}.jpg"
        for s in SPLITS
        for k in range(getattr(demo, s))
    ]
    return complete and all(path.is_file() for path in files)


def _pool_map(jobs: list, workers: int):
    """Results in the order of the jobs."""
    if workers <= 1:
        yield from map(_write_image, jobs)
        return
    # spawn: forking a process that already runs OpenCV threads may hang
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.imap(_write_image, jobs, chunksize=8)


def write_demo_set(demo: DemoSet, out: Path, *, workers: int, progress: bool = True) -> bool:
    """Write the set into `out`.

    Returns:
        False if `out` already holds exactly this set and nothing was done.
    """
    if _is_complete(out, demo):
        return False
    voc = out / "VOCdevkit" / "VOC2012"
    folders = [out / f"{split}2017" for split in SPLITS] + [out / "annotations"]
    folders += [voc / "JPEGImages", voc / "Annotations", voc / "ImageSets" / "Main"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    _write_json(out / "demo.json", demo.record(complete=False))
    jobs = [(demo, out, split, k) for split in SPLITS for k in range(getattr(demo, split))]
    bar = tqdm(
        _pool_map(jobs, workers), total=len(jobs), desc="demo set", unit="img", disable=not progress
    )
    records = list(bar)
    names = {}
    for split, chosen in (("train", records[: demo.train]), ("val", records[demo.train :])):
        _write_annotations(out / "annotations", split, chosen)
        names[split] = [record["image"]["file_name"][:-4] for record in chosen]
    names["trainval"] = names["train"] + names["val"]
    for split, stems in names.items():
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{s}\n" for s in stems))
    _write_json(out / "demo.json", demo.record(complete=True))
    return True
