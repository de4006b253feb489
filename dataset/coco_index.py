"""A COCO annotation file as flat arrays, which all processes of a machine share."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path

import msgspec
import numpy as np

from dataset.annotation_errors import LARGEST, AnnotationErrors
from dataset.coco_rows import (
    NO_ID,
    Image,
    Instance,
    Object,
    Posed,
    keep_kind,
    read_content,
    read_strictly,
    read_tolerantly,
)
from utils.errors import UserError
from utils.files import shown
from utils.images import normal_form

NORMALISED = 2.0  # pixels; where most boxes end below it they are shares of the picture
MOST = 0.9
CORNERS = 0.5  # of boxes that reach out of their image, if they are corners
GROUP = 1024  # rows whose keypoints are read at a time
Columns = dict[str, np.ndarray]


Choose = Callable[[list[Image], Sequence], tuple[list[Image], Sequence]]


def build_index(path: Path, kind: str, choose: Choose | None = None) -> Columns:
    """Reads an annotation file into the flat arrays that the sources use.

    Args:
        kind: a key of `ANNOTATION_KEYS`.
        choose: (images, annotations) -> those that count, corrected; then the file may hold
            annotations of other kinds too. None = all of them, of this kind.

    Returns:
        image_id (I,) int64 ascending, image_size (I, 2) int32 (H, W) or (0, 0), file_name and
        file_name_end (texts), first (I + 1,) int64: where the annotations of each image begin.
        Of the annotations id (N,) int64 or `NO_ID`. Of captions caption and
        caption_end (texts). Of objects category_id (N,) int64, bbox (N, 4) float64 xywh, area (N,)
        float64, iscrowd (N,) bool, usable (N,) bool: a box in the picture, of a known category.
        Of instances outline_span (N, 2) int64, in the file or in outline_text. Of keypoints points
        (P, 3) float64, points_end (N,) int64 and num_labelled (N,) int16. meta: JSON of categories
        and errors.

    Raises:
        UserError: this is no such file.
    """
    errors = AnnotationErrors(path, report=True)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return _index(*_chosen(read_strictly(data, kind), choose), errors, kind, data)
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError):
        del data  # not as the format has it: the tolerant reader says why
    errors = AnnotationErrors(path, report=True)
    content = read_content(path, kind, mixed=choose is not None)
    return _index(*_chosen(read_tolerantly(content, kind, errors), choose), errors, kind, None)


def index_document(
    content: dict, kind: str, errors: AnnotationErrors, choose: Choose | None = None
) -> Columns:
    """As `build_index`, for a COCO document in memory; earlier errors are kept.

    Nobody knows the ids of such a document: `named` is there, and messages have file names.

    Raises:
        UserError: it holds nothing of this kind.
    """
    content = keep_kind(errors.source, content, kind)
    found = _chosen(read_tolerantly(content, kind, errors), choose)
    out = _index(*found, errors, kind, None, named=True)
    return out | {"named": np.ones(1, bool)}


def _chosen(content: tuple[list[Image], list, list[dict]], choose: Choose | None) -> tuple:
    images, rows, categories = content
    return (*(choose(images, rows) if choose else (images, rows)), categories)


def _index(
    images: list[Image],
    rows: Sequence,
    categories: list[dict],
    errors: AnnotationErrors,
    kind: str,
    data: bytes | None,
    named: bool = False,
) -> Columns:
    """Typed rows as the columns that `build_index` returns.

    Args:
        data: the file that outlines are views of; None = they are texts of their own.
        named: images have their file names in messages, not their ids.
    """
    categories = _with_plain_names(categories, errors)
    out = _image_columns(images, errors)
    names = {image.id: image.file_name for image in images} if named else {}
    image_id, number = _column(rows, "image_id"), _column(rows, "id")
    keep = np.isin(image_id, out["image_id"])

    def leave_out(name: str, bad: np.ndarray, detail: Callable[[int], str]) -> None:
        for i in np.flatnonzero(bad):
            errors.add(name, describe(int(number[i]), int(image_id[i]), names), detail(i))

    columns, crowd = {"id": number}, np.zeros(len(rows), bool)
    if kind == "captions":
        texts = [row.caption.strip() for row in rows]
        empty = ~np.fromiter(map(bool, texts), bool, len(texts))
        leave_out("empty_caption", keep & empty, lambda i: "")
        keep &= ~empty
    else:
        columns |= _object_columns(rows)
        crowd = columns["iscrowd"]
        if kind == "person_keypoints":
            points, count, fitting = _point_columns(
                rows, columns["category_id"], categories, leave_out
            )
            keep &= fitting
        if kind == "instances":
            columns["outline_span"], text = _outline_spans(rows, data)
            out |= {} if text is None else {"outline_text": text}
    leave_out("unlisted", ~np.isin(image_id, out["image_id"]) & ~crowd, lambda i: "")

    # by image, in an image in the order of the file
    place = np.searchsorted(out["image_id"], image_id[keep])
    order = np.flatnonzero(keep)[np.argsort(place, kind="stable")]
    out["first"] = np.searchsorted(np.sort(place), np.arange(len(out["image_id"]) + 1))
    out |= {name: column[order] for name, column in columns.items()}
    if kind == "captions":
        out |= texts_as_arrays("caption", [texts[i] for i in order.tolist()])
    else:
        out["usable"] = _usable(out, categories, errors, names)
        _note_crowds(out, categories, errors)
        categories = _without_repeated_names(categories, out["category_id"], errors)
    if kind == "person_keypoints":
        out |= _take_points(points, count, order)
        _check_points(out, errors)
    meta = json.dumps({"categories": categories, "errors": errors.to_json()})
    return out | {"meta": np.frombuffer(meta.encode(), np.uint8).copy()}


def describe(annotation_id: int, image_id: int, names: Mapping[int, str] = {}) -> str:
    """Name of an annotation for messages.

    Args:
        names: image id -> what the image is called, of a document whose ids nobody knows.
    """
    name = f"annotation {annotation_id}" if annotation_id != NO_ID else "an annotation"
    if image_id in names:
        return f"an annotation of {names[image_id]}"
    return f"{name} of image {image_id}"


def texts_as_arrays(name: str, texts: Sequence[str]) -> Columns:
    """Packs texts into one UTF-8 array and one array of their ends; `text_at` reads them."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8).copy(), f"{name}_end": ends}


def is_inside(name: str) -> bool:
    """Whether a relative path stays below the folder that it starts from, on any system."""
    parts = name.replace("\\", "/").split("/")
    return bool(parts[0] and parts[-1]) and ".." not in parts and not {"\0", ":"} & set(name[:2])


def _image_columns(images: list[Image], errors: AnnotationErrors) -> Columns:
    good: dict[int, Image] = {}
    for image in images:
        if not is_inside(image.file_name):
            errors.add(
                "file_name",
                f"image {image.id}",
                f"file_name must stay in the image folder, got {shown(image.file_name)}",
            )
        elif image.id in good:
            errors.add("image_id_twice", f"image id {image.id} twice")
        else:
            good[image.id] = image
    rows = [good[image_id] for image_id in sorted(good)]
    sizes = [(row.height, row.width) for row in rows]
    return {
        "image_id": _column(rows, "id"),
        "image_size": np.array(sizes, np.int32).reshape(-1, 2),
        **texts_as_arrays("file_name", [row.file_name for row in rows]),
    }


def _object_columns(rows: Sequence[Object]) -> Columns:
    boxes = np.fromiter(chain.from_iterable(row.bbox for row in rows), np.float64, 4 * len(rows))
    if not (np.abs(boxes) < LARGEST).all():
        raise OverflowError("a box is too large")
    return {
        "category_id": _column(rows, "category_id"),
        "bbox": boxes.reshape(-1, 4),
        "area": _column(rows, "area", np.float64),
        "iscrowd": _column(rows, "iscrowd", bool),
    }


def _column(rows: Sequence, name: str, dtype: type = np.int64) -> np.ndarray:
    return np.fromiter(map(attrgetter(name), rows), dtype, len(rows))


def _outline_spans(rows: Sequence[Instance], data: bytes | None) -> tuple:
    """(N, 2) int64, where the outlines begin and end; and their text, None = the file."""
    lengths = np.fromiter((len(memoryview(row.segmentation)) for row in rows), np.int64, len(rows))
    if data is None:
        ends = np.cumsum(lengths)
        text = b"".join(bytes(row.segmentation) for row in rows)
        return np.column_stack([ends - lengths, ends]), np.frombuffer(text, np.uint8).copy()
    addresses = (_address(row.segmentation) for row in rows)
    start = np.fromiter(addresses, np.int64, len(rows)) - _address(data)
    start[lengths == 0] = 0
    return np.column_stack([start, start + lengths]), None


def _address(data: bytes | msgspec.Raw) -> int:
    return np.frombuffer(data, np.uint8).__array_interface__["data"][0] if len(data) else 0


def _point_columns(
    rows: Sequence[Posed], category_id: np.ndarray, categories: list[dict], leave_out: Callable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The keypoints of all rows one after the other.

    Returns:
        (P, 3) x, y, visibility; (N,) how many each row has, 0 where its category has none; and (N,)
        bool, which rows have as many as their category.
    """
    sizes = {
        row["id"]: len(row["keypoints"])
        for row in categories
        if isinstance(row.get("keypoints"), list)
    }
    wanted = 3 * np.array([sizes.get(category, 0) for category in category_id.tolist()], np.int64)
    groups, lengths = [np.zeros(0)], [np.zeros(0, np.int64)]
    for start in range(0, len(rows), GROUP):
        texts = b",".join(row.keypoints for row in rows[start : start + GROUP])
        lists = msgspec.json.decode(b"[" + texts + b"]", type=list[list[float]])
        groups.append(np.fromiter(chain.from_iterable(lists), np.float64))
        lengths.append(np.fromiter(map(len, lists), np.int64, len(lists)))
    values, length = np.concatenate(groups), np.concatenate(lengths)
    if not (np.abs(values) < LARGEST).all():
        raise OverflowError("a keypoint is too far")
    bad = (wanted > 0) & (length != wanted)

    def detail(i: int) -> str:
        text = bytes(rows[i].keypoints).decode()
        return f"keypoints must be {wanted[i]} numbers, got {shown(json.loads(text))}"

    leave_out("not_numbers", bad, detail)
    fitting = (wanted > 0) & ~bad
    points = values[np.repeat(fitting, length)].reshape(-1, 3)
    count = np.where(fitting, length // 3, 0)
    unknown = np.repeat(np.arange(len(rows)), count)[~np.isin(points[:, 2], (0, 1, 2))]
    strange = np.zeros(len(rows), bool)
    strange[unknown] = True
    leave_out("not_numbers", strange, lambda i: "the visibility of keypoints must be 0, 1 or 2")
    return points, count, ~(bad | strange)


def _take_points(points: np.ndarray, count: np.ndarray, order: np.ndarray) -> Columns:
    """The keypoints of the rows `order`, (n,), one after the other."""
    start, count = (np.cumsum(count) - count)[order], count[order]
    end = np.cumsum(count)
    place = np.repeat(start - (end - count), count) + np.arange(count.sum())
    points = points[place]
    seen = np.concatenate([[0], np.cumsum(points[:, 2] > 0)])
    labelled = seen[end] - seen[end - count]
    return {"points": points, "points_end": end, "num_labelled": labelled.astype(np.int16)}


def _check_points(out: Columns, errors: AnnotationErrors) -> None:
    """Refuses keypoints that are shares of the picture, where the boxes are pixels."""
    points = out["points"][out["points"][:, 2] > 0, :2]
    large = out["usable"].any() and np.median(out["bbox"][out["usable"], 2:]) > 2 * NORMALISED
    if len(points) and large and (points <= 1).all(1).mean() > MOST:
        detail = "nearly all keypoints lie between 0 and 1; those of COCO are in pixels"
        errors.add("normalised", f"keypoint {points[0].tolist()}", detail)


def _usable(
    out: Columns, categories: list[dict], errors: AnnotationErrors, names: Mapping[int, str]
) -> np.ndarray:
    """(N,) bool, which objects are no crowd and have a box in the picture."""
    good = ~out["iscrowd"]
    boxes, category = out["bbox"].copy(), out["category_id"]
    place = np.repeat(np.arange(len(out["image_id"])), np.diff(out["first"]))  # (N,)
    image_id = out["image_id"][place]

    def leave_out(name: str, bad: np.ndarray, detail: Callable[[int], str]) -> None:
        for i in np.flatnonzero(good & bad):
            where = describe(int(out["id"][i]), int(image_id[i]), names)
            errors.add(name, where, detail(i))
        good[bad] = False

    def bbox(i: int) -> str:
        return f"bbox {shown(out['bbox'][i].tolist())}"

    leave_out(
        "unknown_category",
        ~np.isin(category, [row["id"] for row in categories]),
        lambda i: f"it has the unknown category {category[i]}",
    )
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    narrow = boxes.astype(np.float32)  # as samples have them
    leave_out("no_area", ~(narrow[:, 2:] > narrow[:, :2]).all(1), bbox)
    # without a stated size no box is outside
    upper = np.tile(out["image_size"][place][:, ::-1].astype(np.float32), 2)  # (N, 4)
    upper[(upper == 0).any(1)] = np.inf
    inside = np.clip(narrow, 0, upper)
    leave_out("outside", ~(inside[:, 2:] > inside[:, :2]).all(1), bbox)
    _check_corners(out, good, upper, errors)
    tiny = (narrow[good, 2:] <= NORMALISED).all(1)
    if len(tiny) and tiny.mean() > MOST and (upper[good] > 4 * NORMALISED).all():
        first = int(np.flatnonzero(good)[0])
        where = describe(int(out["id"][first]), int(image_id[first]), names)
        detail = f"{bbox(first)}; {tiny.sum()} of {len(tiny)} boxes end below {NORMALISED:g} pixels"
        errors.add("normalised", where, f"{detail}; COCO boxes are x, y, width, height in pixels")
    return good


def _check_corners(
    out: Columns, rows: np.ndarray, upper: np.ndarray, errors: AnnotationErrors
) -> None:
    """Refuses boxes that are x1, y1, x2, y2: all end right of and below where they begin.

    Args:
        rows: (N,) bool, the boxes to look at.
        upper: (N, 4) the far corners of the images.
    """
    boxes = out["bbox"][rows]
    reach_out = (boxes[:, :2] + boxes[:, 2:] > upper[rows, 2:] + 1).any(1)
    if len(boxes) < 2 or reach_out.mean() < CORNERS or (boxes[:, 2:] <= boxes[:, :2]).any():
        return
    detail = (
        f"{reach_out.sum()} of {len(boxes)} boxes reach out of their image, as x1, y1, x2, y2 "
        "would; COCO boxes are x, y, width, height in pixels"
    )
    errors.add("corners", f"bbox {shown(boxes[reach_out][0].tolist())}", detail)


def _note_crowds(out: Columns, categories: list[dict], errors: AnnotationErrors) -> None:
    """Names the categories that have crowds alone."""
    for row in categories:
        mine = out["category_id"] == row["id"]
        if mine.any() and out["iscrowd"][mine].all():
            detail = f"all its {mine.sum()} annotations have iscrowd=1 and do not count"
            errors.add("only_crowds", f"category {shown(row['name'])}", detail)


def _with_plain_names(rows: list[dict], errors: AnnotationErrors) -> list[dict]:
    """The categories with names as people read them; an empty one is an error."""
    rows = [{**row, "name": normal_form(row["name"]).strip()} for row in rows]
    for row in rows:
        if not row["name"]:
            errors.add("categories", f"category {row['id']}", "its name is empty")
    return rows


def _without_headings(rows: list[dict], used: set[int]) -> list[dict]:
    """The categories without one that only heads the others: Roboflow lists such with id 0."""
    above = [row.get("supercategory") for row in rows]
    named = [name for name in above if isinstance(name, str) and name != "none"]
    if len(rows) < 2 or len(set(named)) != 1:
        return rows
    pairs = zip(rows, above, strict=True)
    heads = [row for row, name in pairs if name == "none" and row["name"] == named[0]]
    return [row for row in rows if row not in heads or row["id"] in used]


def _without_repeated_names(
    rows: list[dict], category_id: np.ndarray, errors: AnnotationErrors
) -> list[dict]:
    """Of categories of one name those with annotations; some exports list an empty one beside it.

    Two with one name and annotations of their own cannot be distinguished.
    """
    used = set(np.unique(category_id).tolist())
    by_name: dict[str, list[dict]] = {}
    rows = _without_headings(rows, used)
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    dropped = []
    for name, same in by_name.items():
        if len({row["id"] for row in same}) < len(same) or len(same) == 1:
            continue  # duplicate ids are reported elsewhere
        ids = ", ".join(str(row["id"]) for row in same)
        annotated = [row for row in same if row["id"] in used]
        if len(annotated) > 1:
            errors.add(
                "same_name", f"categories {ids}", f"all are called {shown(name)}; merge or rename"
            )
        else:
            errors.add("name_unused", f"categories {ids}", f"all are called {shown(name)}")
        kept = annotated or same[:1]
        dropped += [row for row in same if row not in kept]
    return [row for row in rows if row not in dropped]
