"""Reads the rows of a COCO annotation file.

A file as the format has it is read by a strict reader of typed rows. Any other is read by a
tolerant one, which takes what is meant and names what cannot be used. Both give the same rows.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from dataset.annotation_errors import LARGEST, AnnotationErrors
from utils.errors import UserError
from utils.files import fits, read_json, shown, whole_text
from utils.images import MAX_SIDE

ANNOTATION_KEYS = {  # they distinguish the kinds of annotation files
    "instances": ("bbox", "category_id"),
    "person_keypoints": ("bbox", "category_id", "keypoints"),
    "captions": ("caption",),
}
KINDS_IN_WORDS = {"instances": "objects", "person_keypoints": "keypoints", "captions": "captions"}
NO_OUTLINE = msgspec.Raw(b"")
NO_ID = -1  # of an annotation


# ---- typed rows --------------------------------------------------------------------------------

Side = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)]
Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Image(msgspec.Struct, gc=False):
    id: Id
    file_name: str = ""
    height: Side = 0
    width: Side = 0
    coco_url: str = ""

    def __post_init__(self):
        """LVIS names its pictures by their address alone: …/train2017/000000000009.jpg."""
        self.file_name = self.file_name or "/".join(self.coco_url.split("/")[-2:])
        self.coco_url = ""
        if not self.file_name:
            raise ValueError("file_name is missing")


class Caption(msgspec.Struct, gc=False):
    image_id: Id
    caption: str
    id: Id = NO_ID


class Object(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    id: Id = NO_ID
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    area: float = math.nan


class Instance(Object, gc=False):
    segmentation: msgspec.Raw = NO_OUTLINE


class Posed(Object, gc=False, kw_only=True):
    keypoints: msgspec.Raw  # a list of numbers


class Category(msgspec.Struct, gc=False):
    id: Id
    name: str
    keypoints: list[str] = []
    skeleton: list[tuple[int, int]] = []
    supercategory: str | None = None
    flip_pairs: list[tuple[int, int]] | None = None  # not COCO's, see `Skeleton.from_coco`


def _file_of(row: type) -> type:
    """A typed annotation file; those of captions need no categories."""
    categories = ("categories", list[Category], []) if row is Caption else None
    return msgspec.defstruct(
        f"{row.__name__}File",
        [
            ("images", list[Image]),
            ("annotations", list[row]),
            categories or ("categories", list[Category]),
        ],
        gc=False,
    )


ROWS = {"instances": Instance, "person_keypoints": Posed, "captions": Caption}
FILES = {kind: _file_of(row) for kind, row in ROWS.items()}


def read_strictly(data: bytes, kind: str) -> tuple[list[Image], list, list[dict]]:
    """The images, annotations and categories of a valid file.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError: it is not.
    """
    content = msgspec.json.decode(data, type=FILES[kind])
    return content.images, content.annotations, msgspec.to_builtins(content.categories)


# ---- tolerant ----------------------------------------------------------------------------------


class Unusable(Exception):
    """A value that cannot be read: the kind of error, and what is wrong."""


def check_lists(path: object, content: object, kind: str, advice: str = "") -> None:
    """Refuses a file that is not an annotation file of this kind.

    Args:
        advice: what to do; empty = that about `coco_root`.

    Raises:
        UserError: it is another file.
    """
    advice = advice or f"need a COCO {kind} file; check --set coco_root=FOLDER"
    for key in ("images", "annotations", "categories")[: 2 if kind == "captions" else 3]:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path} has no list {key!r}; {advice}")
    rows = content["annotations"]
    for key in ANNOTATION_KEYS[kind]:
        # a whole file without a field is no damage: it is another file
        if rows and not any(isinstance(row, dict) and key in row for row in rows):
            raise UserError(f"{path}: an entry of 'annotations' has no {key!r}; {advice}")


def keep_kind(path: object, content: object, kind: str) -> dict:
    """Reduces a document with several kinds of annotations to one kind.

    What is damaged stays, so that it is named.

    Raises:
        UserError: it has none of this kind, or is no such document.
    """
    words = KINDS_IN_WORDS[kind]
    advice = f"its annotations hold no {words}, which this task needs: choose another task"
    rows = content.get("annotations") if isinstance(content, dict) else None
    if isinstance(rows, list):
        kept = [row for row in rows if not isinstance(row, dict) or _may_be(row, kind)]
        content = {**content, "annotations": kept or rows}
    check_lists(path, content, kind, advice)
    return content


def _may_be(row: dict, kind: str) -> bool:
    """Whether an annotation is of this kind, or a damaged one of it."""
    if kind == "instances":
        return "bbox" in row or "caption" not in row
    return bool(row.get("keypoints")) if kind == "person_keypoints" else "caption" in row


def read_content(path: Path, kind: str, *, mixed: bool = False) -> dict:
    """The content of an annotation file, its lists checked.

    Args:
        mixed: it may hold annotations of other kinds too.

    Raises:
        UserError: this is no such file.
    """
    if mixed:
        return keep_kind(path, read_json(path, "name another file"), kind)
    content = read_json(path, f"need a COCO {kind} file; check --set coco_root=FOLDER")
    check_lists(path, content, kind)
    return content


def read_tolerantly(
    content: dict, kind: str, errors: AnnotationErrors
) -> tuple[list[Image], list, list[dict]]:
    """The images, annotations and categories that can be used; the others go to `errors`.

    Args:
        content: see `read_content`.
    """
    images = _rows(content["images"], read_image, errors, "images")
    annotations = _rows(content["annotations"], READERS[kind], errors, "annotations")
    categories = [] if kind == "captions" else _read_categories(content["categories"], errors)
    return images, annotations, categories


def _rows(rows: list, read: Callable, errors: AnnotationErrors, name: str) -> list:
    """The rows that can be read, typed."""
    found = []
    for number, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                kind = "entry" if name == "annotations" else "image_entry"
                raise Unusable(kind, f"it must be an object, got {shown(row)}")
            found.append(read(row))
        except Unusable as error:
            kind, problem = error.args
            errors.add(kind, _where(row, number, name), problem)
    return found


def _where(row: object, number: int, name: str) -> str:
    """An entry of a list in words."""
    row = row if isinstance(row, dict) else {}
    if row.get("id") is None:
        return f"entry {number} of {name!r}"
    if name == "images":
        return f"image {shown(row['id'])}"
    return f"annotation {shown(row['id'])} of image {shown(row.get('image_id'))}"


def read_image(row: dict) -> Image:
    """An entry of `images`."""
    try:
        image_id, sides = _whole(row, "id"), [_whole(row, key, 0) for key in ("height", "width")]
    except Unusable as error:
        raise Unusable("image_entry", error.args[1]) from None
    name = row.get("file_name", row.get("coco_url"))
    if not isinstance(name, str) or not name:
        raise Unusable("image_entry", f"file_name must be text, got {shown(name)}")
    for key, side in zip(("height", "width"), sides, strict=True):
        if not 0 <= side <= MAX_SIDE:
            raise Unusable("image_entry", f"{key} must be 1 to {MAX_SIDE} pixels, got {side}")
    if "file_name" not in row:
        return Image(image_id, "", *sides, whole_text(name))
    return Image(image_id, whole_text(name), *sides)


def read_instance(row: dict) -> Instance:
    """An entry of `annotations` of an instances file."""
    outline = row.get("segmentation")
    text = b"" if outline is None else json.dumps(outline).encode()
    return Instance(*_object_fields(row), segmentation=msgspec.Raw(text))


def read_posed(row: dict) -> Posed:
    """An entry of `annotations` of a keypoints file; its length is checked later."""
    _need(row, ("keypoints",))
    fields = _object_fields(row)
    points = [] if row["keypoints"] is None else _numbers(row, "keypoints", None)
    return Posed(*fields, keypoints=msgspec.Raw(json.dumps(points).encode()))


def _need(row: dict, keys: Sequence[str]) -> None:
    for key in keys:
        if key not in row:
            raise Unusable("entry", f"it has no {key!r}")


def _object_fields(row: dict) -> tuple:
    _need(row, ("image_id", *ANNOTATION_KEYS["instances"]))
    crowd = row.get("iscrowd")
    if crowd not in (None, 0, 1):  # true of True and 1.0 as well
        raise Unusable("not_numbers", f"iscrowd must be 0 or 1, got {shown(crowd)}")
    area = math.nan if row.get("area") is None else _number(row, "area")
    return (
        _whole(row, "image_id"),
        _whole(row, "category_id"),
        tuple(_numbers(row, "bbox", 4)),
        _annotation_id(row),
        int(crowd or 0),
        area,
    )


def read_caption(row: dict) -> Caption:
    """An entry of `annotations` of a captions file."""
    _need(row, ("image_id", "caption"))
    if not isinstance(row["caption"], str):
        raise Unusable("caption", f"caption must be text, got {shown(row['caption'])}")
    return Caption(_whole(row, "image_id"), whole_text(row["caption"]), _annotation_id(row))


READERS = {
    "instances": read_instance,
    "person_keypoints": read_posed,
    "captions": read_caption,
}


def _read_categories(rows: list, errors: AnnotationErrors) -> list[dict]:
    """The rows with whole numbers and text; keypoints and skeletons stay as they are."""
    found = []
    for number, row in enumerate(rows):
        where = f"entry {number} of 'categories'"
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            errors.add("categories", where, f"it must have an id and a name, got {shown(row)}")
            continue
        try:
            found.append({**row, "id": _whole(row, "id"), "name": whole_text(row["name"])})
        except Unusable as error:
            errors.add("categories", where, error.args[1])
    return found


def _annotation_id(row: dict) -> int:
    """The id, `NO_ID` where none can be used: nothing but messages needs it."""
    try:
        return _whole(row, "id", NO_ID)
    except Unusable:
        return NO_ID


def _whole(row: dict, key: str, default: int | None = None) -> int:
    """A whole number, 24.0 as well; null counts as missing where there is a default."""
    value = row.get(key)
    if value is None and default is not None:
        return default
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole):
        raise Unusable("not_numbers", f"{key} must be a whole number, got {shown(value)}")
    if not -(2**63) <= value < 2**63:
        raise Unusable("not_numbers", f"{key} must fit 64 bits, got {value:.3g}")
    return int(value)


def _number(row: dict, key: str) -> float:
    value = row[key]
    if not fits(value, float):
        raise Unusable("not_numbers", f"{key} must be a number, got {shown(value)}")
    return float(value)


def _numbers(row: dict, key: str, width: int | None) -> list[float]:
    """A list of so many numbers; None = of any length."""
    values, wanted = row[key], "numbers" if width is None else f"{width} numbers"
    is_list = isinstance(values, list) and (width is None or len(values) == width)
    if not is_list or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    ):
        raise Unusable("not_numbers", f"{key} must be {wanted}, got {shown(values)}")
    if not all(abs(v) < LARGEST for v in values):  # false of NaN
        detail = f"{key} must be finite and below {LARGEST:.0e}, got {shown(values)}"
        raise Unusable("not_finite", detail)
    return [float(v) for v in values]
