"""What a reader of a dataset format returns.

A format is a module of this package with `TITLE`, its name as people know it ("YOLO"), and
`find_parts(folder: Path) -> list[Part]`. The function is cheap and opens no picture. It returns []
if the folder is not of this format, and raises `UserError` if it clearly is, but broken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dataset.annotation_errors import AnnotationErrors

NAMES = ("train", "val", "test")  # of parts
ALL = "all"  # name of the one part of a dataset that says nothing of parts


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
