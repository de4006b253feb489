"""Datasets as labelling tools export them, each format read by a module of its own.

A format is a module of this package with `TITLE`, its name as people know it ("YOLO"), and
`find_parts(folder: Path) -> list[Part]`. The function is cheap and opens no picture. It returns []
if the folder is not of this format, and raises `UserError` if it clearly is, but broken. `FILES`
are suffixes of files that it takes in place of a folder.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dataset.annotation_errors import AnnotationErrors

NAMES = ("train", "val", "test")  # of parts
ALL = "all"  # name of the one part of a dataset that says nothing of parts
WORDS = {  # in names of files and folders -> part
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Part:
    """One part of a dataset that is no COCO file.

    `read` makes a COCO document of it: a dict of the lists `images` (id, file_name, height, width;
    sides that are 0 or missing are read from the picture), `annotations` (id, image_id, and what
    the format has of category_id, bbox, area, iscrowd, segmentation, keypoints and caption) and
    `categories` (id, name, and of keypoints keypoints and skeleton). It gives what cannot be used
    to the errors, `errors.add("not_numbers", "labels/a.txt, line 3", "…")`, and leaves it out.
    """

    name: str  # one of NAMES, or ALL
    source: Path  # the file or folder that messages name
    files: tuple[Path, ...]  # what `read` depends on; a folder stands for the names in it
    image_folder: Path  # file names of the document are relative to it
    read: Callable[[AnnotationErrors], dict]


@dataclass(frozen=True)
class CocoPart:
    """One part of a dataset that is one COCO file, or one for each kind of annotation."""

    name: str  # one of NAMES, or ALL
    jsons: Mapping[str, Path]  # kind of annotation file -> file; "" = of any other kind
    image_folder: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.jsons.values())

    @property
    def source(self) -> Path:
        return self.jsons.get("instances") or self.files[0]


def part_of(name: str) -> str:
    """The part that a word in the name of a file or folder stands for; ALL if none or several."""
    words = re.findall(r"[a-z]+", name.lower())
    found = {WORDS[word] for word in words if word in WORDS}
    return found.pop() if len(found) == 1 else ALL
