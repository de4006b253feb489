"""Where a COCO tree keeps its files, and reading an annotation file of any of its kinds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.faults import Faults
from utils.errors import UserError
from utils.files import read_json
from utils.images import MAX_SIDE
from utils.plain import fits, shown

ANNOTATION_KEYS = {  # what tells the kinds of annotation file apart
    "instances": ("bbox", "category_id"),
    "person_keypoints": ("bbox", "keypoints"),
    "captions": ("caption",),
}


def coco_paths(
    root: str | Path | None,
    split: str,
    *,
    kind: str = "instances",
    annotation_file: str | Path | None = None,
    image_folder: str | Path | None = None,
) -> tuple[Path, Path]:
    """The annotation file and the image folder, checked to exist.

    Args:
        root: folder with train2017, val2017 and annotations; not needed if the two optional
            paths are given.
        split: "train", "val", or a folder name such as "train2014".
        kind: "instances", "person_keypoints" or "captions".
    """
    name = f"{split}2017" if split in ("train", "val", "test") else split
    if root is None and (annotation_file is None or image_folder is None):
        raise UserError("no COCO folder given; use --set coco_root=FOLDER")
    if annotation_file is None or image_folder is None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise UserError(
                f"COCO folder {root} does not exist; get it with download/download_coco.sh "
                "or use --set coco_root=FOLDER"
            )
    annotations = Path(annotation_file or root / "annotations" / f"{kind}_{name}.json").expanduser()
    images = Path(image_folder or root / name).expanduser()
    if not annotations.is_file():
        raise UserError(
            f"annotation file {annotations} does not exist; --set coco_root=FOLDER must name the "
            f"folder that holds annotations/{kind}_{name}.json"
        )
    if not images.is_dir():
        raise UserError(
            f"image folder {images} does not exist; --set coco_root=FOLDER must name the folder "
            f"that holds {name}/"
        )
    return annotations, images


def read_annotations(path: Path, kind: str = "instances", faults: Faults | None = None) -> dict:
    """The content of a COCO annotation file, checked to be of this kind.

    Args:
        faults: takes annotations that lack a field, which then are left out; None = they are
            errors.

    Raises:
        UserError: this is no such file.
    """
    advice = f"need a COCO {kind} file; check --set coco_root=FOLDER"
    faults = faults or Faults(path)
    content = read_json(path, advice)
    keys = ("images", "annotations", "categories")[: 2 if kind == "captions" else 3]
    missing = [key for key in keys if not isinstance(_get(content, key), list)]
    if missing:
        raise UserError(f"{path} has no list {missing[0]!r}; {advice}")
    _refuse_other_kind(path, content["annotations"], kind, advice)
    needed, rows = ("image_id", *ANNOTATION_KEYS[kind]), []
    for number, row in enumerate(content["annotations"]):
        lacks = needed if not isinstance(row, dict) else [k for k in needed if k not in row]
        if lacks:
            where = f"annotation {row['id']}" if _get(row, "id") is not None else f"entry {number}"
            faults.add("entry", f"{where} of 'annotations'", f"it has no {lacks[0]!r}")
        else:
            rows.append(row)
    return {**content, "annotations": rows}


def _refuse_other_kind(path: Path, rows: list, kind: str, advice: str) -> None:
    """A whole file without a field is no damage: it is another file."""
    for key in ANNOTATION_KEYS[kind]:
        if rows and not any(isinstance(row, dict) and key in row for row in rows):
            raise UserError(f"{path}: an entry of 'annotations' has no {key!r}; {advice}")


@dataclass(frozen=True)
class ImageTable:
    """The images of an annotation file, by ascending id."""

    ids: np.ndarray  # (I,) int64
    file_names: np.ndarray  # (I,) str, below the image folder
    sizes: np.ndarray  # (I, 2) int32 (H, W), (0, 0) if not stated


def read_images(rows: list, faults: Faults) -> ImageTable:
    """The list `images` of an annotation file; entries that cannot be used are left out."""
    good, seen = [], set()
    for number, row in enumerate(rows):
        reason = _image_problem(row)
        where = f"image {row['id']}" if _get(row, "id") is not None else f"image entry {number}"
        if reason:
            faults.add("image_entry", where, reason)
        elif not is_inside(row["file_name"]):
            name = shown(row["file_name"])
            faults.add("file_name", where, f"file_name must stay in the image folder, got {name}")
        elif row["id"] in seen:
            faults.add("image_id_twice", f"image id {row['id']} twice")
        else:
            seen.add(row["id"])
            good.append((row["id"], row["file_name"], *_stated_size(row)))
    good.sort(key=lambda row: row[0])
    ids, names, heights, widths = zip(*good, strict=True) if good else ((), (), (), ())
    sizes = np.array([heights, widths], np.int32).T.reshape(-1, 2)
    return ImageTable(np.array(ids, np.int64), np.array(names, dtype=str), sizes)


def is_inside(name: str) -> bool:
    """Whether a relative path of a file stays below the folder that it starts from."""
    if not name or "\0" in name or "\\" in name or name.startswith("/") or name[1:2] == ":":
        return False
    return ".." not in name.split("/") and not name.endswith("/")


def _image_problem(row: object) -> str:
    if not isinstance(row, dict):
        return f"it must be an object, got {shown(row)}"
    for key, kind in (("id", int), ("file_name", str)):
        if not fits(row.get(key), kind):
            wanted = "a whole number" if kind is int else "text"
            return f"{key} must be {wanted}, got {shown(row.get(key))}"
    if not -(2**63) <= row["id"] < 2**63:
        return f"id must fit 64 bits, got {row['id']:.3g}"
    for key in ("height", "width"):
        side = row.get(key)
        if side is not None and not (fits(side, int) and 0 <= side <= MAX_SIDE):
            return f"{key} must be 1 to {MAX_SIDE} pixels, got {shown(side)}"
    return ""


def _stated_size(row: dict) -> tuple[int, int]:
    return row.get("height") or 0, row.get("width") or 0


def _get(content, key: str):
    return content.get(key) if isinstance(content, dict) else None
