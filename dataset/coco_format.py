"""Finds the annotation files of a COCO folder, and opens them as arrays.

`read_coco` is what the sources are built from. The arrays are made by `dataset/coco_index.py`, once
for every file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from dataset.annotation_errors import LARGEST, AnnotationErrors
from dataset.coco_index import build_index, describe
from dataset.coco_rows import check_lists
from utils.array_cache import Arrays, cached_arrays
from utils.categories import Categories
from utils.errors import UserError, one_line
from utils.files import read_json, shown
from utils.images import FileNames, list_files
from utils.masks import MIN_POINTS, check_length, check_rle

ANOTHER_LAYOUT = "a dataset in another layout is named with --set data=FOLDER"
COMPLETE = "complete the download or use --set coco_root=FOLDER"  # if pictures are missing
FLAT = 1e-3  # pixels: points that are no farther from a line enclose nothing


def folder_name(split: str) -> str:
    """The image folder of a split: "train" -> "train2017"; other names are folders already."""
    return f"{split}2017" if split in ("train", "val", "test") else split


def annotation_path(root: Path, split: str, kind: str) -> Path:
    """Where the annotation file of a split should be; arguments as those of `coco_paths`."""
    return root.expanduser() / "annotations" / f"{kind}_{folder_name(split)}.json"


def coco_paths(
    root: str | Path | None, split: str, *, kind: str = "instances"
) -> tuple[Path, Path]:
    """The annotation file and the image folder, checked to exist.

    Args:
        root: folder with train2017, val2017 and annotations.
        split: "train", "val", or a folder name such as "train2014".
        kind: "instances", "person_keypoints" or "captions".
    """
    if root is None:
        raise UserError("no COCO folder given; use --set coco_root=FOLDER")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(
            f"COCO folder {root} does not exist; get it with download/download_coco.sh "
            f"or use --set coco_root=FOLDER; {ANOTHER_LAYOUT}"
        )
    name = folder_name(split)
    annotations, images = annotation_path(root, split, kind), root / name
    if not annotations.is_file():
        raise UserError(
            f"annotation file {annotations} does not exist; --set coco_root=FOLDER must name the "
            f"folder that holds annotations/{kind}_{name}.json; {ANOTHER_LAYOUT}"
        )
    if not images.is_dir():
        raise UserError(
            f"image folder {images} does not exist; --set coco_root=FOLDER must name the folder "
            f"that holds {name}/; {ANOTHER_LAYOUT}"
        )
    return annotations, images


@dataclass(frozen=True)
class CocoFile:
    """One annotation file: its images by ascending id, and the annotations of each.

    The annotations of image i are rows first[i] to first[i + 1]; crowds and those that nobody can
    learn are among them.
    """

    path: Path
    image_folder: Path
    arrays: Arrays  # see `build_index`
    errors: AnnotationErrors
    categories: Categories  # all of the file; none of captions
    category_rows: list[dict]
    class_ids: np.ndarray  # (N,) int16 class id of each annotation; 0 of unknown categories
    files: Mapping[int, str | None]  # images whose file has another name, None = there is none
    remedy: str = COMPLETE  # what to do if pictures are missing
    variant: str = ""  # distinguishes files that are made from one `path`
    depends: tuple[Path, ...] = ()  # files that the arrays depend on; empty = `path`

    @property
    def image_ids(self) -> np.ndarray:
        """(I,) int64."""
        return self.arrays["image_id"]

    def image_name(self, image: int) -> str:
        """The file name of an image, relative to the image folder."""
        return self.files.get(image) or text_at(self.arrays, "file_name", image)

    def image_size(self, image: int) -> tuple[int, int]:
        """(H, W) of an image, (0, 0) if not stated."""
        return tuple(self.arrays["image_size"][image].tolist())

    def rows(self, image: int) -> slice:
        """The rows of an image's annotations in the arrays."""
        first = self.arrays["first"]
        return slice(int(first[image]), int(first[image + 1]))

    def present(self, images: np.ndarray) -> np.ndarray:
        """The images (n,) whose files exist; missing ones are recorded as errors.

        Raises:
            UserError: files are missing, and errors are not left out.
        """
        missing = [image for image in images.tolist() if self.files.get(image, "") is None]
        if not missing:
            return images
        names = FileNames(list_files(self.image_folder))
        for image in missing:
            name = self.image_name(image)
            hint = names.hint(name) or self.remedy
            needs = f"image id {self.image_ids[image]} needs it"
            path = str(self.image_folder / name).replace("\n", "\\n")
            where = f"image {path} is missing; {needs}"
            self.errors.add("image_missing", where, hint)
        self.errors.enforce()
        return images[~np.isin(images, missing)]

    def image_of_rows(self) -> np.ndarray:
        """(N,) int64, the number of the image of each annotation."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.arrays["first"]))

    def boxes(self, rows: slice | np.ndarray) -> np.ndarray:
        """(n, 4) float32 xyxy of these annotations."""
        boxes = np.array(self.arrays["bbox"][rows])  # (n, 4) float64 xywh
        boxes[:, 2:] += boxes[:, :2]
        return boxes.astype(np.float32)

    def describe(self, row: int, image: int) -> str:
        """Name of an annotation for messages."""
        image_id = int(self.image_ids[image])
        names = {image_id: self.image_words(image)} if "named" in self.arrays else {}
        return describe(int(self.arrays["id"][row]), image_id, names)

    def image_words(self, image: int) -> str:
        """Name of an image for messages: its id, or its file name in formats without ids."""
        if "named" in self.arrays:
            return self.image_name(image)
        return f"image {self.image_ids[image]}"

    def outline_text(self, row: int) -> bytes:
        """The JSON of an annotation's `segmentation`; empty if it has none."""
        start, end = self.arrays["outline_span"][row].tolist()
        return self._outlines[start:end].tobytes()

    @cached_property
    def _outlines(self) -> np.ndarray:
        if "outline_text" in self.arrays:
            return self.arrays["outline_text"]
        return np.memmap(self.path, np.uint8, "r").view(np.ndarray)

    def release(self) -> None:
        """Releases the memory pages of the file; they are read again on access."""
        self.__dict__.pop("_outlines", None)

    def __getstate__(self) -> dict:
        values = {name: value for name, value in self.__dict__.items() if name != "_outlines"}
        return values | {"depends": ()}  # many files, which nobody opens again


def text_at(arrays: Arrays, name: str, number: int) -> str:
    """One text of many in the UTF-8 array `name`; another array has the ends of the texts."""
    ends = arrays[f"{name}_end"]
    start = int(ends[number - 1]) if number else 0
    return arrays[name][start : int(ends[number])].tobytes().decode()


def all_texts(arrays: Arrays, name: str) -> list[str]:
    """All texts of `text_at`."""
    data, ends = arrays[name].tobytes(), arrays[f"{name}_end"].tolist()
    return [data[start:end].decode() for start, end in pairwise([0, *ends])]


class Parts(Protocol):
    """Interface of a dataset that finds its own parts, see `dataset.find_dataset.Dataset`."""

    def open(self, part: str, kind: str) -> CocoFile: ...


def read_coco(
    root: str | Path | Parts | None, split: str, kind: str, *, skip_bad: bool
) -> CocoFile:
    """Opens the annotations of a split.

    Args:
        root: a folder, or a dataset that knows its parts.
        split, kind: see `coco_paths`.
        skip_bad: leave out, and count, annotations that otherwise are errors.

    Raises:
        UserError: the file is missing or wrong.
    """
    file = open_split(root, split, kind)
    file.errors.skip = skip_bad
    file.errors.enforce()
    return file


def open_split(root: str | Path | Parts | None, split: str, kind: str) -> CocoFile:
    """As `read_coco`, but errors are only collected in `errors`, not raised."""
    if root is None or isinstance(root, (str, Path)):
        return open_coco(*coco_paths(root, split, kind=kind), kind)
    return root.open(split, kind)


def open_coco(path: Path, image_folder: Path, kind: str) -> CocoFile:
    """Opens an annotation file; errors are only collected in its `errors`, not raised."""
    arrays = cached_arrays(path, kind, lambda: build_index(path, kind))
    return make_file(path, image_folder, arrays)


def make_file(
    path: Path,
    image_folder: Path,
    arrays: Arrays,
    *,
    remedy: str = COMPLETE,
    variant: str = "",
    depends: Sequence[Path] = (),
) -> CocoFile:
    """Makes a `CocoFile` of the arrays of `build_index`; the other arguments are its fields."""
    meta = json.loads(arrays["meta"].tobytes())
    errors = AnnotationErrors.from_json(path, meta["errors"])
    category_rows = meta["categories"]
    try:
        categories = Categories.from_coco(category_rows)
    except ValueError as error:
        errors.add("categories", "categories", one_line(error))
        categories = Categories({}, {})
    class_ids = np.zeros(0, np.int16)
    if "category_id" in arrays:
        class_ids = categories.class_ids_of(arrays["category_id"])
    return CocoFile(
        path,
        image_folder,
        arrays,
        errors,
        categories,
        category_rows,
        class_ids,
        other_names(image_folder, all_texts(arrays, "file_name")),
        remedy,
        variant,
        tuple(depends),
    )


def other_names(folder: Path, names: list[str]) -> dict[int, str | None]:
    """Index of a name -> its file, for names that are not files under exactly this name."""
    found = FileNames(list_files(folder)).resolve(names)
    pairs = enumerate(zip(names, found, strict=True))
    return {number: file for number, (name, file) in pairs if file != name}


def read_annotations(path: Path, kind: str = "instances") -> dict:
    """The whole content of a COCO annotation file, for writing a part of it to a new file.

    Raises:
        UserError: this is no such file.
    """
    content = read_json(path, f"need a COCO {kind} file; check --set coco_root=FOLDER")
    check_lists(path, content, kind)
    return content


def read_outline(
    text: bytes, where: str, errors: AnnotationErrors, *, size: tuple[int, int] = (0, 0)
) -> list[np.ndarray | dict]:
    """The parts of an annotation's outline.

    Args:
        text: the JSON of its `segmentation`; empty = there is none.
        where: the annotation in words.
        size: (H, W) of the image; 0 = not known.

    Returns:
        polygons with an area, each (M, 2) float32; or COCO run lengths, checked, as the one entry.
    """
    try:
        segmentation = json.loads(text or b"null")
        if isinstance(segmentation, dict):
            return [check_rle(segmentation, size)]
        if not isinstance(segmentation, (list, type(None))):
            raise TypeError(f"got {shown(segmentation)}")
        parts = [_polygon(part) for part in segmentation or []]
        check_length(parts, size)
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        errors.add(
            "outline", where, f"segmentation must be polygons or run lengths ({one_line(error)})"
        )
        return []
    for part in parts:
        if len(part) < MIN_POINTS:
            errors.add("few_points", where, f"{len(part)} points")
        elif is_flat(part):
            errors.add("few_points", where, f"{len(part)} points on a line")
    return [part for part in parts if len(part) >= MIN_POINTS and not is_flat(part)]


def is_flat(part: np.ndarray) -> bool:
    """Whether the points of an outline, (M, 2), lie on a line or on one spot."""
    points = part.astype(np.float64) - part[0]
    far = points[np.argmax((points**2).sum(1))]
    length = float(np.hypot(*far))
    # the distances from the line to the farthest point
    return length == 0 or bool(np.abs(points @ [-far[1], far[0]]).max() <= FLAT * length)


def _polygon(part: object) -> np.ndarray:
    """[x, y, x, y, …] -> (M, 2) float32."""
    numbers = isinstance(part, list) and all(type(value) in (int, float) for value in part)
    if not numbers:
        raise TypeError(f"a polygon must be a list of numbers x, y, x, y, …, got {shown(part)}")
    if len(part) % 2:
        raise ValueError(f"a polygon must have an even count of numbers, got {len(part)}")
    points = np.array(part, np.float64)
    if not (np.abs(points) < LARGEST).all():
        raise ValueError(f"coordinates must be finite and below {LARGEST:.0e}")
    return points.astype(np.float32).reshape(-1, 2)
