"""COCO files wherever a tool writes them.

The official folder, and exports of Roboflow (`train/_annotations.coco.json` beside the pictures),
CVAT (`annotations/instances_default.json`), Label Studio (`result.json`), FiftyOne (`labels.json`
and `data/`), Datumaro (`annotations/instances_train.json`) and others like them.
"""

import re
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import msgspec

from dataset.coco_rows import ANNOTATION_KEYS
from dataset.formats import ALL, NAMES, CocoPart, part_of
from utils.errors import UserError

TITLE = "COCO"
OTHERS = re.compile(r"(panoptic|stuff|image_info|labels)_")  # kinds that nobody learns here
TELLING = re.compile(r"coco|annotation|instances|keypoints|captions|labels|result", re.IGNORECASE)
MANY = 20  # files of a folder: with more, each belongs to one picture
FOLDERS = ("", "images", "data", "Images", "JPEGImages", "img", "imgs", "pictures")
NUM_NAMES = 16  # pictures that are looked for to find their folder
CHOOSE = "choose with --set train_json=FILE val_json=FILE (train_images=FOLDER val_images=FOLDER)"


class _Image(msgspec.Struct):
    file_name: str


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: msgspec.Raw


def find_parts(folder: Path) -> list[CocoPart]:
    """The parts of a folder; none if it holds no COCO file."""
    by_part: dict[str, dict[str, list[Path]]] = {}
    for path in _candidates(folder):
        if names_of(path):
            part = _part_of_file(path, folder)
            by_part.setdefault(part, {}).setdefault(_kind(path), []).append(path)
    if not by_part:
        return []
    _check_clear(folder, by_part)
    return [
        make_part(name, {kind: paths[0] for kind, paths in sorted(by_part[name].items())}, folder)
        for name in (*NAMES, ALL)
        if name in by_part
    ]


def make_part(
    name: str, jsons: dict[str, Path], root: Path, image_folder: Path | None = None
) -> CocoPart:
    """A part of these files.

    Args:
        jsons: kind -> file, "" = of any kind.
        root: the pictures lie in or below it.
        image_folder: where they lie; None = look for them.

    Raises:
        UserError: a file is no COCO file, or its pictures are nowhere.
    """
    for path in jsons.values():
        if names_of(path) is None:
            raise UserError(
                f"{path} is not a valid COCO file: it has no lists of images with file_name and of "
                "annotations; name another file"
            )
    if image_folder is None:
        image_folder = find_images(next(iter(jsons.values())), name, root)
    elif not image_folder.is_dir():
        raise UserError(f"folder of pictures {image_folder} does not exist; name another one")
    return CocoPart(name, jsons, image_folder)


def names_of(path: Path) -> list[str] | None:
    """The names of the pictures of a COCO file; None if it is another file, or lists none."""
    try:
        state = path.stat()
        return _names(path, state.st_mtime_ns, state.st_size) or None
    except OSError:
        return None


@cache
def _names(path: Path, _changed: int, _size: int) -> list[str]:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return _names_tolerantly(path)
    is_list = bytes(content.annotations).lstrip().startswith(b"[")
    return [image.file_name for image in content.images] if is_list else []


def _names_tolerantly(path: Path) -> list[str]:
    """As the strict reader, of a file in which some value is damaged."""
    try:
        content = msgspec.json.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        return []
    images = content.get("images")
    rows = [row for row in images if isinstance(row, dict)] if isinstance(images, list) else []
    return [row["file_name"] for row in rows if isinstance(row.get("file_name"), str)]


def _candidates(folder: Path) -> list[Path]:
    """JSON files where annotations lie: here, in the folders here, and in `annotations` there."""
    found = _jsons(folder)
    for place in sorted(_folders(folder)):
        found += _jsons(place)
        found += _jsons(place / "annotations")
    return [path for path in found if not OTHERS.match(path.name)]


def _folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir()]


def _jsons(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.glob("*.json") if not p.name.startswith(".") and p.is_file())
    return found if len(found) <= MANY else [path for path in found if TELLING.search(path.stem)]


def _kind(path: Path) -> str:
    """The kind that the name of an official file begins with; "" of others."""
    kinds = [kind for kind in ANNOTATION_KEYS if path.name.startswith(f"{kind}_")]
    return kinds[0] if kinds else ""


def _part_of_file(path: Path, folder: Path) -> str:
    """From the name of the file, or else of the folders above it."""
    names = [path.stem, *reversed(path.relative_to(folder).parts[:-1])]
    return next((part for part in map(part_of, names) if part != ALL), ALL)


def _check_clear(folder: Path, by_part: dict[str, dict[str, list[Path]]]) -> None:
    """Raises a UserError where two files annotate the same part."""
    for part, by_kind in by_part.items():
        rivals = next((paths for paths in by_kind.values() if len(paths) > 1), [])
        if "" in by_kind and len(by_kind) > 1:
            rivals = [paths[0] for paths in by_kind.values()]
        if rivals:
            what = "the same pictures" if part == ALL else f"the part {part}"
            raise UserError(f"{folder}: {_listed(rivals, folder)} all annotate {what}; {CHOOSE}")
    if ALL in by_part and len(by_part) > 1:
        paths = [next(iter(by_kind.values()))[0] for by_kind in by_part.values()]
        raise UserError(
            f"{folder}: of {_listed(paths, folder)} one names no part (train, val, test); {CHOOSE}"
        )


def _listed(paths: Sequence[Path], folder: Path) -> str:
    return ", ".join(path.relative_to(folder).as_posix() for path in paths)


def find_images(path: Path, part: str, root: Path) -> Path:
    """The folder that the file names of a COCO file are relative to.

    Raises:
        UserError: no picture lies in any of the folders in question.
    """
    names = names_of(path) or []
    some = list(islice(names, 0, None, -(-len(names) // NUM_NAMES)))
    tops = dict.fromkeys((path.parent, path.parent.parent, root))
    subset = [p.name for top in tops for base in (top, top / "images") for p in _parts(base, part)]
    subset = list(dict.fromkeys(["", *_endings(path), *subset]))
    places = [top / name / end for top in tops for name in FOLDERS for end in subset]
    places = [place for place in dict.fromkeys(places) if place.is_dir()]
    counts = [_count(place, some) for place in places]
    if not any(counts):
        tried = ", ".join(str(place) for place in places[:4])
        raise UserError(
            f"{path}: no picture such as {some[0]!r} was found in {tried} or similar folders; name "
            "the folder with --set train_json=FILE train_images=FOLDER"
        )
    return places[counts.index(max(counts))]


def _parts(folder: Path, part: str) -> list[Path]:
    """The folders whose name is that of a part."""
    if part == ALL or not folder.is_dir():
        return []
    return sorted(place for place in _folders(folder) if part_of(place.name) == part)


def _endings(path: Path) -> list[str]:
    """instances_train2017.json -> train2017, as CVAT and Datumaro call the folder of pictures."""
    return [path.stem.removeprefix(f"{_kind(path)}_")] if _kind(path) else []


def _count(folder: Path, names: Sequence[str]) -> int:
    """How many of these pictures lie in a folder; those of the whole name count twice.

    Names of another computer may have their last parts alone here.
    """
    found = 0
    for name in names:
        parts = name.replace("\\", "/").split("/")
        tails = ("/".join(parts[first:]) for first in range(1, len(parts)))
        try:
            whole = (folder / "/".join(parts)).is_file()
            found += 2 * whole or any((folder / tail).is_file() for tail in tails)
        except (OSError, ValueError):  # too long, or no name at all
            continue
    return found
