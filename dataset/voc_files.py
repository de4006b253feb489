"""Files of a VOCdevkit: year folders, split lists, annotations."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dataset.faults import LARGEST
from utils.errors import UserError, one_line
from utils.images import MAX_SIDE, SUFFIXES
from utils.plain import shown


@dataclass(frozen=True)
class VocAnnotation:
    """What one XML file says; objects of all classes, the difficult ones included."""

    names: tuple[str, ...]
    boxes: np.ndarray  # (N, 4) float32 xyxy, 0-based continuous pixels, only boxes with an area
    difficult: np.ndarray  # (N,) bool
    size: tuple[int, int]  # (H, W), (0, 0) if not stated
    faults: tuple[tuple[str, str], ...] = ()  # kind of `Faults` and what it is about


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
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"split list {path} is no text: {error}; correct it") from error
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
    faults: list[tuple[str, str]] = []
    try:
        content = path.read_bytes()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise ValueError("it declares a document type or entities")
        root = ElementTree.fromstring(content)
        rows = [_parse_object(node, faults) for node in root.findall("object")]
        size = tuple(_side(root.findtext(f"size/{side}")) for side in ("height", "width"))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(
            f"annotation {path} is no VOC annotation ({one_line(error)}); correct or remove it"
        ) from error
    rows = [row for row in rows if row is not None]
    return VocAnnotation(
        names=tuple(row[0] for row in rows),
        boxes=np.array([row[1] for row in rows], np.float32).reshape(-1, 4),
        difficult=np.array([row[2] for row in rows], bool),
        size=size,
        faults=tuple(faults),
    )


def _parse_object(
    node, faults: list[tuple[str, str]]
) -> tuple[str, tuple[float, ...], bool] | None:
    """Name, box and difficult flag; None where the corners enclose nothing.

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
    said = f"box of {name!r} {shown(box)}"
    if not (np.abs(box) < LARGEST).all():
        faults.append(("not_finite", said))
        return None
    xmin, ymin, xmax, ymax = box
    if not (xmax > xmin and ymax > ymin):
        faults.append(("no_area", said))
        return None
    return name, (xmin - 1, ymin - 1, xmax, ymax), _flag(node.findtext("difficult"))


def _flag(text: str | None) -> bool:
    value = float(text or 0)
    if value not in (0, 1):
        raise ValueError(f"difficult must be 0 or 1, got {text}")
    return value == 1


def _side(text: str | None) -> int:
    """Height or width in pixels; 0 if not stated."""
    side = float(text or 0)
    if not 0 <= side <= MAX_SIDE:
        raise ValueError(f"height and width must be 1 to {MAX_SIDE} pixels, got {text}")
    return int(side)
