"""Datasets in the formats of YOLO: finds the pictures of each part and the names of the classes.

Three layouts are known. A YAML file names pictures and classes (Ultralytics, Roboflow, CVAT); the
files obj.data and obj.names do (Darknet, CVAT); or there are just folders and a list of classes
(Label Studio, LabelImg).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import yaml

from dataset.formats import ALL, NAMES, Part, part_of
from dataset.formats.document import is_picture, list_pictures, name_parts
from dataset.formats.yolo_labels import (
    BOX,
    Classes,
    Pictures,
    label_folders,
    label_places,
    read_pictures,
)
from utils.errors import UserError, one_line
from utils.files import read_text, shown, split_lines

TITLE = "YOLO"
YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")  # the usual ones
FILES = (".yaml", ".yml")
PART_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "images/classes.txt")
NOT_PARTS = ("classes", "names", "backup", "eval")  # other keys of obj.data
LOOKED_AT = 200  # pictures whose label file is looked for, to see what a folder is


def find_parts(folder: Path) -> list[Part]:
    """See `dataset/formats/__init__.py`; `folder` may be the YAML file itself."""
    folder = Path(os.path.abspath(folder))
    file, settings = _find_yaml(folder)
    if file is not None and any(settings.get(key) for key in PART_KEYS):
        return _yaml_parts(file, settings)
    if not folder.is_dir():
        return []
    if any((folder / name).is_file() for name in ("obj.data", "obj.names")) and (
        lists := _darknet_lists(folder)
    ):
        return _darknet_parts(folder, lists)
    return _plain_parts(folder, file, settings)


def _parts(
    lists: dict[str, tuple[Pictures, Sequence[Path]]], classes: Classes, source: Path
) -> list[Part]:
    """Parts that are read by `read_pictures`.

    Args:
        lists: name of a part -> its pictures, and the files that name them.
    """
    return [
        Part(
            name,
            source,
            (
                *files,
                pictures.folder,
                *label_folders(pictures),
                *filter(None, pictures.labels()),
                *pictures.paths(),
            ),
            pictures.folder,
            partial(read_pictures, pictures, classes),
        )
        for name, (pictures, files) in lists.items()
    ]


# ---- a YAML file -------------------------------------------------------------------------------


def _find_yaml(folder: Path) -> tuple[Path | None, dict]:
    """The YAML file of a dataset and its content; None if there is none."""
    if folder.suffix.lower() in FILES and folder.is_file():
        return folder, _read_yaml(folder)
    if not folder.is_dir():
        return None, {}
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in FILES)
    usual = [folder / name for name in YAML_NAMES if folder / name in files]
    for file in usual:
        return file, _read_yaml(file)
    found = {}
    for file in files:
        try:
            settings = _read_yaml(file)
        except UserError:
            continue  # of something else
        if any(key in settings for key in PART_KEYS) and settings.keys() & {"names", "nc"}:
            found[file] = settings
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{folder} has several YAML files of YOLO datasets: {names}; name one")
    return next(iter(found.items()), (None, {}))


def _read_yaml(file: Path) -> dict:
    """The content of a YAML file; aliases, which can make a small file endless, are refused."""
    text = read_text(file, "correct this YAML file")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"{file} uses aliases (*name); write the values out")
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file} as YAML ({one_line(error)}); correct it") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file} must have lines such as 'train: images/train'; correct it")
    return settings


def _yaml_parts(file: Path, settings: dict) -> list[Part]:
    classes, lists = _yaml_classes(file, settings), {}
    for key, name in PART_KEYS.items():
        entries = settings.get(key)
        if not entries:
            continue
        entries = entries if isinstance(entries, list) else [entries]
        if not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{file}: {key} must be a folder or a list, got {shown(entries)}")
        if name in lists:
            raise UserError(f"{file} names the part {name} twice; remove one")
        bases = _bases(file, settings)
        try:
            places = [_locate(entry, bases, f"{file}: {key}") for entry in entries]
            pictures = _collect(places, bases[0], file)
        except UserError as error:
            if name == "test":  # Roboflow names it where there is none
                continue
            if name == "val" and settings.get("train"):
                share = "val_share (a fifth) of the training pictures is used to validate"
                raise UserError(f"{error}, or delete the line '{key}:': then {share}") from error
            raise
        lists[name] = pictures, [file, *(place for place in places if place.is_file())]
    return _parts(lists, classes, file)


def _yaml_classes(file: Path, settings: dict) -> Classes:
    """names, nc, kpt_shape, kpt_names and flip_idx of a YAML file."""
    names, count = settings.get("names"), settings.get("nc")
    if names is None and type(count) is int and count > 0:
        names = [f"class_{i}" for i in range(count)]
    if isinstance(names, list):
        names = dict(enumerate(names))
    good = isinstance(names, dict) and names and all(_is_id(key) for key in names)
    if not good or not all(isinstance(name, (str, int, float)) for name in names.values()):
        raise UserError(f"{file}: names must be a list of class names, got {shown(names)}")
    names = {int(key): str(name) for key, name in names.items()}
    if count is not None and count != len(names):
        raise UserError(f"{file}: nc is {shown(count)}, but names has {len(names)}; correct it")
    shape = settings.get("kpt_shape")
    if shape is None:
        return Classes(names)
    if not _is_shape(shape):
        raise UserError(
            f"{file}: kpt_shape must be [count of points, 2 or 3], got {shown(shape)}; correct it"
        )
    points, flip = settings.get("kpt_names") or [], settings.get("flip_idx") or []
    if isinstance(points, dict):  # one list per class
        lists = [tuple(each) if isinstance(each, list) else None for each in points.values()]
        if len(set(lists)) != 1:
            raise UserError(f"{file}: kpt_names must be the same for all classes; make them so")
        points = list(lists[0] or [])
    whole = isinstance(flip, list) and all(type(number) is int for number in flip)
    if not whole or not isinstance(points, list):
        raise UserError(f"{file}: flip_idx and kpt_names must be lists; correct them")
    try:
        return Classes(names, *shape, tuple(map(str, points)), tuple(flip))
    except ValueError as error:
        raise UserError(f"{file}: {error}; correct it") from error


def _is_id(key: object) -> bool:
    return (type(key) is int and key >= 0) or (isinstance(key, str) and key.strip().isdecimal())


def _is_shape(shape: object) -> bool:
    whole = isinstance(shape, list) and [type(number) for number in shape] == [int, int]
    return whole and 0 < shape[0] <= 1000 and shape[1] in (2, 3)


def _bases(file: Path, settings: dict) -> list[Path]:
    """Folders that entries of a YAML file may be relative to, the likeliest first."""
    here, stated = file.parent, settings.get("path")
    if not isinstance(stated, str) or not stated.strip():
        return [here]
    stated = Path(stated.replace("\\", "/")).expanduser()
    bases = [Path(os.path.abspath(here / stated)), Path.cwd() / stated, here]
    return [base for base in bases if base.is_dir()]


def _locate(entry: str, bases: Sequence[Path], where: str) -> Path:
    """The folder or file that an entry means.

    Roboflow writes "../train/images" where it means "train/images". Paths of another machine are
    found by their last parts.

    Raises:
        UserError: there is none.
    """
    entry = entry.strip().replace("\\", "/")
    for base in bases:
        place = Path(os.path.abspath(base / entry))
        if place.exists():
            return place
    for base in bases:
        for tail in _tails(entry):
            place = base / tail
            if place.exists():
                return place
    tried = " and ".join(dict.fromkeys(str(base) for base in bases))
    raise UserError(f"{where} is {shown(entry)}, which is not in {tried}; correct it")


def _tails(path: str) -> Iterator[str]:
    """The last parts of a path, the longest first; a folder near its end that names a part stays.

    "train/images" must not become "images", which may hold all pictures.
    """
    names = [name for name in Path(path).parts if name not in ("..", "/")]
    near = range(max(len(names) - 3, 0), len(names) - is_picture(path))
    last = max((i for i in near if part_of(names[i]) in NAMES), default=len(names) - 1)
    for first in range(last + 1):
        yield "/".join(names[first:])


def _collect(places: Sequence[Path], root: Path, source: Path) -> Pictures:
    """The pictures of folders, and of files that list pictures.

    Args:
        root: of the dataset.
    """
    pictures, missing = [], []
    for place in places:
        if place.is_dir():
            pictures += [place / name for name in list_pictures(place)]
        elif is_picture(place.name):
            pictures.append(place)
        else:
            found, not_found = _listed(place, root)
            pictures, missing = pictures + found, missing + not_found
    if not pictures:
        named = ", ".join(map(str, places))
        raise UserError(f"{source}: there is no picture in {named}; put the pictures there")
    pictures = list(dict.fromkeys(pictures))
    folder = places[0] if len(places) == 1 and places[0].is_dir() else root
    if not all(picture.is_relative_to(folder) for picture in pictures):
        folder = Path(os.path.commonpath([picture.parent for picture in pictures]))
    names = tuple(picture.relative_to(folder).as_posix() for picture in pictures)
    is_whole = all(place.is_dir() for place in places)
    return Pictures(root, folder, names, tuple(missing), is_whole)


def _listed(file: Path, root: Path) -> tuple[list[Path], list[str]]:
    """The pictures that a text file lists, and its lines that name none, in words."""
    names = set(list_pictures(root))
    found, missing = [], []
    lines = split_lines(read_text(file, "it must list pictures, one a line"))
    for number, line in enumerate(lines, 1):
        name = line.strip().replace("\\", "/")
        if not name:
            continue
        place = Path(os.path.abspath(file.parent / name))
        tail = next(filter(names.__contains__, _tails(name)), None)
        if place.is_file():
            found.append(place)
        elif tail is not None:  # Darknet writes "data/…", and there are paths of other machines
            found.append(root / tail)
        else:
            missing.append(f"{os.path.relpath(file, root)}, line {number}")
    return found, missing


# ---- Darknet -----------------------------------------------------------------------------------


def _darknet_lists(folder: Path) -> dict[str, Path]:
    """Name of a part, as the tool has it -> the file that lists its pictures."""
    data = folder / "obj.data"
    if not data.is_file():
        files = [file for file in folder.glob("*.txt") if part_of(file.stem) in NAMES]
        return {file.stem: file for file in files}
    lists = {}
    for line in split_lines(read_text(data, "correct this file")):
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and value and key not in NOT_PARTS:
            lists[key] = _locate(value, [folder], f"{data}: {key}")
    return lists


def _darknet_parts(folder: Path, lists: dict[str, Path]) -> list[Part]:
    names = folder / "obj.names"
    if not names.is_file():
        raise UserError(f"{folder} has no obj.names with the names of the classes; add it")
    parts = {}
    for name, tools_names in name_parts(lists, folder / "obj.data").items():
        files = [lists[each] for each in tools_names]
        parts[name] = _collect(files, folder, files[0]), [names, *files]
    return _parts(parts, Classes(_read_names(names)), folder)


def _read_names(file: Path) -> dict[int, str]:
    """Class id -> name, of a file with a name per line."""
    lines = [line.strip() for line in split_lines(read_text(file, "correct this list of classes"))]
    while lines and not lines[-1]:
        lines.pop()
    if not all(lines) or not lines:
        raise UserError(f"{file} must have the name of a class on each line; correct it")
    return dict(enumerate(lines))


# ---- folders alone -----------------------------------------------------------------------------


def _plain_parts(folder: Path, file: Path | None, settings: dict) -> list[Part]:
    """Pictures and label files in folders.

    Args:
        file, settings: a YAML file that names classes and no pictures, if there is one.
    """
    places = _plain_folders(folder)
    labels = folder / "labels"
    found = {name: list_pictures(place) for name, place in places.items()}
    if not any(found.values()) and labels.is_dir() and _are_labels(labels.rglob("*.txt")):
        raise UserError(f"{labels} has label files of YOLO, but there are no pictures in "
                        f"{places.get(ALL, folder)}; put them there")  # fmt: skip
    found = {name: names for name, names in found.items() if names}
    pairs = [(places[name] / n) for name, names in found.items() for n in names[:LOOKED_AT]]
    if not _are_labels(label for picture in pairs for label in label_places(picture)):
        return []
    named = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    if file is not None and settings.keys() & {"names", "nc"}:
        named, classes = file, _yaml_classes(file, settings)
    elif named is not None:
        classes = Classes(_read_names(named))
    else:
        raise UserError(
            f"{folder} has label files of YOLO, but nothing names the classes; add classes.txt "
            "with the name of a class on each line, or name the folder that holds data.yaml"
        )
    parts = {
        name: (Pictures(folder, places[name], tuple(names)), [named])
        for name, names in found.items()
    }
    return _parts(parts, classes, folder)


def _plain_folders(folder: Path) -> dict[str, Path]:
    """Part -> the folder of its pictures."""
    images = folder / "images"
    for above in (images, folder):
        below = sorted(p for p in above.iterdir() if p.is_dir()) if above.is_dir() else []
        parts = [place for place in below if part_of(place.name) in NAMES]
        if parts:
            names = [part_of(place.name) for place in parts]
            if len(set(names)) < len(names):
                raise UserError(f"{above} has two folders of one part; rename or remove one")
            return {
                name: place / "images" if (place / "images").is_dir() else place
                for name, place in zip(names, parts, strict=True)
            }
    return {ALL: images if images.is_dir() else folder}


def _are_labels(files: Iterable[Path]) -> bool:
    """Whether the first of some files that holds a line holds one of YOLO."""
    for file in files:
        if not file.is_file() or file.name == "classes.txt":
            continue
        try:
            lines = read_text(file, "").split("\n")
        except UserError:
            continue
        words = next((line.split() for line in lines if line.strip()), [])
        if words:
            return len(words) > BOX and all(map(_is_number, words))
    return False


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
