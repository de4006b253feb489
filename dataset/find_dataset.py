"""Recognises the format of a dataset folder and opens its parts.

`find_dataset` asks every module of `dataset/formats/`. `data_of` does it for the settings.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from weakref import WeakKeyDictionary

import numpy as np

import dataset.formats
from dataset.annotation_errors import AnnotationErrors
from dataset.coco_format import CocoFile, make_file
from dataset.coco_index import Columns, build_index, index_document, is_inside
from dataset.coco_rows import Image
from dataset.formats import ALL, NAMES, CocoPart, Part
from utils.array_cache import cached_arrays
from utils.errors import UserError
from utils.files import foreign, nearest_path, shown
from utils.images import FileNames, image_size, list_files, normal_form

coco = import_module("dataset.formats.coco")  # by name, as `formats` finds all of them
COPY = re.compile(r"\.rf\.\w+(?=\.\w+$)")  # what Roboflow adds to the name of a copy
FORMATS_PAGE = "docs/formats.md shows the formats"
MANY = 3  # places that a line lists
NUM_FILES = 20_000  # that are looked at to say what there is
_found: WeakKeyDictionary[object, "Dataset | None"] = WeakKeyDictionary()  # of settings


@dataclass(frozen=True)
class Dataset:
    """A dataset in its parts; without a validation part, a share of the images is used for it.

    It can replace the root of a COCO source: `CocoDetection(dataset, "train")`.
    """

    path: Path  # as the person named it
    title: str  # of the format
    parts: tuple[Part | CocoPart, ...]
    seed: int = 0
    val_share: float = 0.2

    @property
    def names(self) -> tuple[str, ...]:
        """The names of parts that `open` accepts."""
        names = [part.name for part in self.parts]
        if self._to_split is not None:
            names += ["train", "val"]
        return tuple(name for name in (*NAMES, ALL) if name in names)

    @property
    def _to_split(self) -> Part | CocoPart | None:
        """The part whose images training and validation share; None = each has its own."""
        by_name = {part.name: part for part in self.parts}
        return None if "val" in by_name else by_name.get("train", by_name.get(ALL))

    def open(self, part: str, kind: str) -> CocoFile:
        """Opens the annotations of a part; errors are collected in its `errors`.

        Args:
            part: one of `names`.
            kind: of annotation, a key of `ANNOTATION_KEYS`.

        Raises:
            UserError: there is no such part, or it holds nothing of this kind.
        """
        if part not in self.names:
            raise UserError(f"{self.path} has no part {part!r}; it has {', '.join(self.names)}")
        split = part in ("train", "val") and self._to_split is not None
        found = self._to_split if split else next(p for p in self.parts if p.name == part)
        source, files = found.source, found.files
        if isinstance(found, CocoPart):
            source = found.jsons.get(kind) or found.jsons.get("")
            if source is None:
                raise UserError(
                    f"{self.path} has no {kind} file of the part {part}, only "
                    f"{', '.join(found.jsons)}: choose a task that it has annotations of"
                )
            files = (source,)
        side = (part == "val", self.seed, self.val_share) if split else None
        choose = partial(_choose, found.image_folder, source, side)
        variant = f"-{self.title}-{found.name}-{found.image_folder}-{side}"
        variant = "-" + hashlib.sha256(variant.encode(errors="replace")).hexdigest()[:12]
        build = partial(_build, found, source, kind, choose)
        try:
            arrays = cached_arrays(source, f"{kind}{variant}", build, files)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is gone; start again") from error
        remedy = f"add it to {found.image_folder}, or take it out of {source}"
        return make_file(
            source, found.image_folder, arrays, remedy=remedy, variant=variant, depends=files
        )

    def holds(self, kind: str, *, outlined: bool = False) -> bool:
        """Whether some part has annotations of this kind.

        Args:
            outlined: they must have outlines.
        """
        for name in self.names:
            try:
                file = self.open(name, kind)
            except UserError:
                continue
            arrays = file.arrays
            labelled = arrays.get("num_labelled", arrays.get("id"))
            if kind == "person_keypoints" and not labelled.any():
                continue
            if outlined and not (np.diff(arrays["outline_span"]) > len("null")).any():
                continue
            if int(arrays["first"][-1]):
                return True
        return False

    def describe(self, kind: str, names: Sequence[str]) -> str:
        """One line for the log: format, and number of images of some parts."""
        files = {name: self.open(name, kind) for name in names}
        counts = [f"{name} {len(file.image_ids)}" for name, file in files.items()]
        classes = {name for file in files.values() for name in file.categories.names.values()}
        text = f"data: {self.path} is a {self.title} set{self._sources()}: {', '.join(counts)} "
        text += "images" + f", {len(classes)} class{'es' * (len(classes) > 1)}" * bool(classes)
        if self._to_split is not None and {"train", "val"} & set(names):
            share = f"val_share={self.val_share:g} of its images, seed={self.seed}"
            text += f"; it has no validation part, so validation uses {share}"
        return text

    def _sources(self) -> str:
        """The files by which the format was recognised, in brackets."""
        folder = (self.path if self.path.is_dir() else self.path.parent).resolve()
        places = [part.source.resolve() for part in self.parts]
        places = [place for place in places if place != folder]
        inside = (p.relative_to(folder) if p.is_relative_to(folder) else p for p in places)
        places = list(dict.fromkeys(place.as_posix() for place in inside))
        more = ", …" * (len(places) > MANY)
        return f" ({', '.join(places[:MANY])}{more})" * bool(places)


def data_of(cfg) -> Dataset | None:
    """The dataset of the settings `data` or `train_json`; None if neither is set.

    A folder is looked at once per settings, however many tasks and parts are opened.

    Raises:
        UserError: it cannot be found, or it is not clear what it is.
    """
    if cfg not in _found:
        _found[cfg] = _data_of(cfg)
    return _found[cfg]


def _data_of(cfg) -> Dataset | None:
    options = {"seed": cfg.seed, "val_share": cfg.val_share}
    if cfg.data is not None:
        return find_dataset(cfg.data, **options)
    if cfg.train_json is None:
        return None
    parts, coco = [], formats()["coco"]
    for name in NAMES:
        path, images = getattr(cfg, f"{name}_json"), getattr(cfg, f"{name}_images")
        if path is None and images is not None:
            raise UserError(f"{name}_images needs the annotations of these pictures: {name}_json")
        if path is not None:
            if not path.is_file():
                raise UserError(f"{name}_json: there is no file {path}{_near(path)}")
            parts.append(coco.make_part(name, {"": path}, path.parent, images))
    return Dataset(cfg.train_json, coco.TITLE, tuple(parts), **options)


def place_of_data(cfg, dataset: str, split: str) -> tuple[Path | Dataset, str]:
    """The root of a dataset and its name of the split, from the settings.

    The root is a folder, or the dataset that the settings `data` or `train_json` name.

    Args:
        split: "train", "val", or a split that the dataset knows by another name.

    Raises:
        UserError: there is no such dataset.
    """
    if dataset == "coco":
        return data_of(cfg) or cfg.coco_root, split
    if dataset == "voc":
        return cfg.voc_root, {"train": cfg.voc_sets, "val": cfg.voc_eval_sets}.get(split, split)
    raise UserError(f"dataset must be coco or voc, got {dataset!r}")


def find_dataset(path: str | Path, *, seed: int = 0, val_share: float = 0.2) -> Dataset:
    """Recognises the format of a folder, a COCO file or a data.yaml.

    Args:
        seed, val_share: of the images that are kept for validation, if the data has no such part.

    Raises:
        UserError: it is nothing that is known, or may be several things.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"data: there is no {path}{_near(path)}")
    options = {"seed": seed, "val_share": val_share}
    if path.is_file():
        title, parts = _parts_of_file(path)
        return Dataset(path, title, tuple(parts), **options)
    folder = path
    while not (matches := _matches(folder)):
        inside = [p for p in folder.iterdir() if not p.name.startswith((".", "__"))]
        if len(inside) != 1 or not inside[0].is_dir():  # archives often hold one folder
            raise UserError(_nothing(path))
        folder = inside[0]
    if len(matches) > 1:
        raise UserError(_ambiguous(path, folder, matches))
    title, parts = next(iter(matches.items()))
    _check_parts(path, title, parts)
    return Dataset(path, title, tuple(parts), **options)


def formats() -> dict[str, ModuleType]:
    """Name -> module of each format; all modules in `dataset/formats/` are formats."""
    names = sorted(module.name for module in iter_modules(dataset.formats.__path__))
    modules = {name: import_module(f"dataset.formats.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "find_parts")}


def _matches(folder: Path) -> dict[str, list[Part | CocoPart]]:
    """Title of a format -> its parts, of all formats that a folder may be."""
    matches, problems = {}, []
    for module in formats().values():
        try:
            if parts := module.find_parts(folder):
                matches[module.TITLE] = parts
        except UserError as error:
            problems.append(error)
    if problems and not matches:
        raise problems[0]
    return matches


def _parts_of_file(path: Path) -> tuple[str, list[Part | CocoPart]]:
    """Title and parts of a file that a person named."""
    with path.open("rb") as file:
        if problem := foreign(file.read(512)):
            raise UserError(f"data: {path} {problem}")
    coco = formats()["coco"]
    if coco.names_of(path):
        return coco.TITLE, [coco.make_part(ALL, {"": path}, path.parent)]
    modules, problems = list(formats().values()), []
    for module in modules:
        if path.suffix.lower() in getattr(module, "FILES", ()) and (
            parts := module.find_parts(path)
        ):
            return module.TITLE, parts
    for module in modules:
        if module is coco or path.suffix.lower() in getattr(module, "FILES", ()):
            continue
        try:
            parts = module.find_parts(path.parent)
        except UserError as error:  # of other files beside it, perhaps
            problems.append(error)
            continue
        if chosen := [part for part in parts if path.resolve() == part.source.resolve()]:
            return module.TITLE, chosen
        if any(path in part.files for part in parts):
            raise UserError(
                f"data: {path} is one file of a {module.TITLE} set; name its folder {path.parent}"
            )
    if problems:
        raise problems[0]
    raise UserError(f"data: {path} is neither a COCO file nor a data.yaml; {FORMATS_PAGE}")


def _check_parts(path: Path, title: str, parts: Sequence[Part | CocoPart]) -> None:
    counts = Counter(part.name for part in parts)
    for name, count in counts.items():
        if count > 1:
            places = ", ".join(str(part.source) for part in parts if part.name == name)
            raise UserError(
                f"data: {path} ({title}) has the part {name} {count} times: {places}; name the "
                "folder of one of them, or remove the others"
            )


def _ambiguous(path: Path, folder: Path, matches: dict[str, list[Part | CocoPart]]) -> str:
    """Which formats a folder may be, and what to name instead."""
    choices, root = [], Path(os.path.abspath(folder))
    for title, parts in matches.items():
        source = Path(os.path.abspath(parts[0].source))
        if source == root:
            source = Path(os.path.abspath(parts[0].files[0]))
        place = source if source.is_dir() else source.parent
        while place.parent not in (root, place) and place != root:
            place = place.parent
        choice = source if place == root else place
        if choice.is_relative_to(root):  # as the person wrote it
            choice = folder / choice.relative_to(root)
        others = " and ".join(other for other in matches if other != title)
        remedy = (
            f"--set data={choice}"
            if _is(choice, title)
            else f"move the files of {others} elsewhere"
        )
        choices.append(f"{title} ({remedy})")
    return f"data: {path} may be {' or '.join(choices)}; choose one of these"


def _is(path: Path, title: str) -> bool:
    """Whether a path alone is a dataset of this format."""
    try:
        return find_dataset(path).title == title
    except UserError:
        return False


def _nothing(path: Path) -> str:
    """What was looked for and what was found."""
    files = islice((p for p in path.rglob("*") if p.is_file()), NUM_FILES)
    counts = Counter(file.suffix.lower() or "without suffix" for file in files)
    found = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5)) or "no file"
    titles = ", ".join(module.TITLE for module in formats().values() if module.TITLE)
    return f"data: {path} is none of {titles}; it holds {found}; {FORMATS_PAGE}"


def _near(path: Path) -> str:
    near = nearest_path(path)
    return f"; did you mean {near}?" if near else "; check the path"


# ---- documents to arrays -----------------------------------------------------------------------


def _build(part: Part | CocoPart, source: Path, kind: str, choose: Callable[..., tuple]) -> Columns:
    """The arrays of one part, as `build_index` makes them."""
    if isinstance(part, CocoPart):
        return build_index(source, kind, choose)
    errors = AnnotationErrors(source, report=True)
    return index_document(part.read(errors), kind, errors, choose)


def _choose(
    folder: Path,
    source: Path,
    side: tuple[bool, int, float] | None,
    images: list[Image],
    rows: Sequence,
) -> tuple[list[Image], Sequence]:
    """The images of one side of the split with their annotations, names and sizes completed.

    Args:
        side: whether it is that of validation, seed and share; None = all images.
    """
    _settle_names(folder, source, images)
    if side is not None:
        is_val, seed, share = side
        chosen = pick_validation([image.file_name for image in images], seed, share)
        if len(images) and chosen.all():
            raise UserError(
                f"{source} has only copies of one picture, {shown(images[0].file_name)}: they "
                "cannot be split into training and validation; add pictures"
            )
        keep = chosen == is_val
        left_out = {image.id for image, kept in zip(images, keep, strict=True) if not kept}
        images = [image for image, kept in zip(images, keep, strict=True) if kept]
        rows = [row for row in rows if row.image_id not in left_out]
    _fill_sizes(folder, images)
    # objects without keypoints among those that have some
    return images, [row for row in rows if bytes(getattr(row, "keypoints", b"[0]")) != b"[]"]


def _settle_names(folder: Path, source: Path, images: Sequence[Image]) -> None:
    """Gives images that are named as on another computer the name of their file in the folder.

    Raises:
        UserError: two of them are one file here.
    """
    foreign_names = [image.file_name for image in images if not is_inside(image.file_name)]
    if not foreign_names:
        return
    files, taken = set(list_files(folder)), {}
    for image in images:
        stated = image.file_name
        if not is_inside(stated):
            parts = stated.replace("\\", "/").split("/")
            tails = ("/".join(parts[first:]) for first in range(1, len(parts)))
            image.file_name = next(filter(files.__contains__, tails), parts[-1])
        if taken.setdefault(image.file_name, stated) != stated:
            raise UserError(
                f"{source}: {shown(taken[image.file_name])} and {shown(stated)} would both be "
                f"{folder / image.file_name}; keep their folders, or rename one"
            )


def pick_validation(names: Sequence[str], seed: int, share: float) -> np.ndarray:
    """(N,) bool mask of the validation images; copies of a picture are in the same part.

    Whether an image is depends on its name and the seed alone, so that nothing changes when others
    are added; but one is for validation and one is not, if there are two.
    """
    draws = np.array([_draw(name, seed) for name in names])
    chosen = draws < share
    if len(draws) and not chosen.any():
        chosen = draws == draws.min()
    if len(draws) and chosen.all():
        chosen = draws < draws.max() if draws.max() > draws.min() else chosen
    return chosen


def _draw(name: str, seed: int) -> float:
    """A number from 0 to 1 that an image always has."""
    source = COPY.sub("", normal_form(name).replace("\\", "/"))
    digest = hashlib.sha256(f"{seed} {source}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _fill_sizes(folder: Path, images: Sequence[Image]) -> None:
    """Gives images without a stated size that of their header; 0 stays where it cannot be read."""
    unsized = [image for image in images if not (image.height and image.width)]
    if not unsized:
        return
    files = FileNames(list_files(folder)).resolve([image.file_name for image in images])
    by_id = {id(image): file for image, file in zip(images, files, strict=True)}
    for image in unsized:
        if file := by_id[id(image)]:
            try:
                image.height, image.width = image_size(folder / file)
            except UserError:  # the check of the pictures names it
                continue
