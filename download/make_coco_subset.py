"""Cut a small dataset in COCO layout out of a large one, to see whether a model can learn it.

python download/make_coco_subset.py --coco-root data/coco --out data/coco16
python download/make_coco_subset.py --out data/pose16 --with-keypoints --max-objects 10
python train/train_coco_object_detection.py --set coco_root=data/coco16 eval_split=train

The first images in the order of their ids are copied, with all annotation files of the split
that are there. An existing folder is not touched.
"""

import argparse
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from config import CFG
from dataset.coco_format import coco_paths, read_annotations
from dataset.coco_rows import ANNOTATION_KEYS
from utils.cli import log, parser, run
from utils.errors import UserError


def choose_images(contents: dict[str, dict], count: int, with_keypoints: bool) -> list[int]:
    """Ids of the first `count` images, ascending.

    Args:
        contents: kind of annotation file -> its content.
        with_keypoints: only images that show a person with a labelled keypoint.
    """
    kind = "person_keypoints" if with_keypoints else "instances"
    ids = {row["id"] for row in contents[kind]["images"]}
    if with_keypoints:
        rows = contents[kind]["annotations"]
        posed = [r for r in rows if r.get("num_keypoints", 0) > 0 and not r.get("iscrowd")]
        ids &= {row["image_id"] for row in posed}
    return sorted(ids)[:count]


def choose_objects(rows: list[dict], max_objects: int) -> set[int]:
    """Ids of the largest objects of each image by their boxes, crowd aside; 0 = all objects."""
    by_image = defaultdict(list)
    for row in rows:
        if not row.get("iscrowd"):
            by_image[row["image_id"]].append(row)
    keep = set()
    for objects in by_image.values():
        objects.sort(key=lambda row: row["bbox"][2] * row["bbox"][3], reverse=True)
        keep |= {row["id"] for row in objects[: max_objects or None]}
    return keep


def cut(content: dict, images: set[int], objects: set[int] | None) -> dict:
    """The same annotation file with only these images and, of objects, only these."""
    rows = [row for row in content["annotations"] if row["image_id"] in images]
    if objects is not None:
        rows = [row for row in rows if row["id"] in objects]
    kept = [row for row in content["images"] if row["id"] in images]
    return {**content, "images": kept, "annotations": rows}


def make_subset(args: argparse.Namespace) -> Path:
    """Writes the folder `args.out`.

    Raises:
        UserError: the folder is there already, or annotation files or images are missing.
    """
    if args.out.exists():
        raise UserError(f"{args.out} exists already; name another folder with --out")
    contents, image_folder = {}, None
    for kind in ANNOTATION_KEYS:
        needed = kind == ("person_keypoints" if args.with_keypoints else "instances")
        path = args.coco_root / "annotations" / f"{kind}_{args.split}2017.json"
        if needed or path.is_file():
            path, image_folder = coco_paths(args.coco_root, args.split, kind=kind)
            contents[kind] = read_annotations(path, kind)
    images = set(choose_images(contents, args.count, args.with_keypoints))
    rows = [row for kind in contents if kind != "captions" for row in contents[kind]["annotations"]]
    unique = {row["id"]: row for row in rows if row["image_id"] in images}
    objects = choose_objects(list(unique.values()), args.max_objects)
    (args.out / "annotations").mkdir(parents=True)
    (args.out / image_folder.name).mkdir()
    for kind, content in contents.items():
        small = cut(content, images, None if kind == "captions" else objects)
        name = f"{kind}_{image_folder.name}.json"
        (args.out / "annotations" / name).write_text(json.dumps(small))
    for row in contents[next(iter(contents))]["images"]:
        if row["id"] in images:
            source = image_folder / row["file_name"]
            if not source.is_file():
                raise UserError(f"image {source} is missing; complete the download")
            shutil.copy(source, args.out / image_folder.name)
    log(f"{args.out}: {len(images)} images, {len(objects)} objects")
    return args.out


def main(argv=None):
    args = parser(__doc__)
    args.add_argument("--coco-root", type=Path, default=CFG.coco_root, help="where COCO is")
    args.add_argument("--out", type=Path, required=True, help="folder to make")
    args.add_argument("--split", default="train", choices=("train", "val"))
    args.add_argument("--count", type=int, default=16, help="images (16)")
    args.add_argument(
        "--with-keypoints", action="store_true", help="only images with a labelled person"
    )
    args.add_argument(
        "--max-objects", type=int, default=0, help="the largest so many per image; 0 = all"
    )
    make_subset(args.parse_args(argv))


if __name__ == "__main__":
    run(main)
