"""Files of a VOCdevkit: year folders, split lists, annotations."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.images import SUFFIXES


@dataclass(frozen=True)
class VocAnnotation:
    """What one XML file says; objects of all classes, the difficult ones included."""

    names: tuple[str, ...]
    boxes: np.ndarray  # (N, 4) float32 xyxy, 0-based continuous pixels, only boxes with an area
    difficult: np.ndarray  # (N,) bool
    size: tuple[int, int]  # (H, W), (0, 0) if not stated


def parse_voc_sets(text: str) -> list[tuple[str, str]]:
    """ "2007:trainval,2012:trainval" -> [("2007", "trainval"), ("2012", "trainval")]."""
    sets = []
    for item in text.split(","):
        year, colon, split = (part.strip() for part in item.partition(":"))
        if not (year and colon and split):
            raise UserError(
                f"voc_sets wants year:split, comma separated, got {item.strip()!r}; "
                "for example --set voc_sets=2007:trainval,2012:trainval"
            )
        sets.append((year.removeprefix("VOC"), split))
    return sets


def voc_year_folder(root: str | Path, year: str) -> Path:
    """The folder VOC<year>, with `root` at, above or below VOCdevkit."""
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(
            f"VOC folder {root} does not exist; get it with download/download_voc.sh or use "
            "--set voc_root=FOLDER"
        )
    name = f"VOC{year}"
    candidates = [root / "VOCdevkit" / name, root / name]
    if root.name == name:
        candidates.append(root)
    for folder in candidates:
        if folder.is_dir():
            return folder
    parents = (root / "VOCdevkit", root)
    found = sorted({path.name[3:] for parent in parents for path in parent.glob("VOC?*")})
    there = (
        f"there is {', '.join(found)}; choose with --set voc_sets=YEAR:SPLIT"
        if found
        else (f"--set voc_root=FOLDER must name the folder that holds VOCdevkit/{name}")
    )
    raise UserError(f"no {name} in {root}; {there}")


def read_split(folder: Path, split: str) -> list[str]:
    """The image names in ImageSets/Main/<split>.txt; a -1/0/1 column of a class list is ignored."""
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        found = sorted(p.stem for p in path.parent.glob("*.txt") if "_" not in p.stem)
        there = f"there is {', '.join(found)}" if found else "check --set voc_root=FOLDER"
        raise UserError(
            f"split list {path} does not exist; {there}; choose with --set voc_sets=YEAR:SPLIT"
        ) from error
    names = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[-1] in ("-1", "0", "1"):
            words.pop()
        if words:
            names.append(" ".join(words))
    if not names:
        raise UserError(
            f"split list {path} is empty; choose another with --set voc_sets=YEAR:SPLIT"
        )
    return names


def find_images(folder: Path) -> dict[str, Path]:
    """Image name without suffix -> file in JPEGImages, whatever the usual suffix."""
    images = folder / "JPEGImages"
    if not images.is_dir():
        raise UserError(f"image folder {images} does not exist; check --set voc_root=FOLDER")
    files = (path for path in images.iterdir() if path.suffix.lower() in SUFFIXES)
    return {path.stem: path for path in sorted(files, reverse=True)}


def read_voc_annotation(path: Path) -> VocAnnotation:
    """Parses one XML file; a file that has not changed is parsed once per process."""
    try:
        return _parse(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"annotation {path} does not exist; check --set voc_root=FOLDER") from error


@cache
def _parse(path: Path, _changed: int) -> VocAnnotation:
    try:
        root = ElementTree.parse(path).getroot()
        rows = [_parse_object(node) for node in root.findall("object")]
        sides = [float(root.findtext(f"size/{side}") or 0) for side in ("height", "width")]
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"annotation {path} is no VOC annotation ({error})") from error
    rows = [row for row in rows if row[1] is not None]
    return VocAnnotation(
        names=tuple(row[0] for row in rows),
        boxes=np.array([row[1] for row in rows], np.float32).reshape(-1, 4),
        difficult=np.array([row[2] for row in rows], bool),
        size=(int(sides[0]), int(sides[1])),
    )


def _parse_object(node) -> tuple[str, tuple[float, ...] | None, bool]:
    """Name, box and difficult flag; no box where the corners enclose nothing.

    VOC counts pixels from 1 and includes the last one, so only the first corner moves.
    """
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    box = []
    for corner in ("xmin", "ymin", "xmax", "ymax"):
        text = node.findtext(f"bndbox/{corner}")
        if text is None:
            raise ValueError(f"object {name!r} has no {corner}")
        box.append(float(text))
    xmin, ymin, xmax, ymax = box
    usable = xmax > xmin and ymax > ymin and np.isfinite(box).all()
    difficult = int(float(node.findtext("difficult") or 0)) != 0
    return name, (xmin - 1, ymin - 1, xmax, ymax) if usable else None, difficult
