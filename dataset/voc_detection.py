"""Boxes of a VOCdevkit: Pascal VOC itself, or any data set in its format.

A VOCdevkit has year folders, split lists and one annotation file per image.
"""

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from dataset.annotation_errors import LARGEST, AnnotationErrors
from dataset.coco_index import MOST, NORMALISED
from dataset.sample import Sample, read_annotated_image
from utils.categories import Categories, check_class_names
from utils.errors import UserError, one_line
from utils.files import decode_text, foreign, read_text, shown, split_lines
from utils.images import MAX_SIDE, SUFFIXES, FileNames, normal_form

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
CHECK_ROOT = "check --set voc_root=FOLDER"
CORRECT = "correct or remove it"
CHOOSE = (
    "choose with --set voc_sets=YEAR:SPLIT (training) or voc_eval_sets=YEAR:SPLIT (validation); "
    "check_dataset.py: --split"
)
FLAG = re.compile(r"\s+(-1|0|1)$")  # of a class, at the end of a line of a split list
ENCODING = re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)")
WIDER = {  # what Windows means by these names
    **dict.fromkeys(("gbk", "gb2312", "gb_2312-80", "x-gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis"), "cp932"),
}
BOX_TAGS = {"bndbox", "robndbox", "box", "bbox", "object", "xmin"}  # in lower case
NOTHING = {"", "null", "none", "unspecified", "unknown"}  # a field that says nothing
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}  # a flag in words


@dataclass(frozen=True)
class VocAnnotation:
    """The content of one XML file; objects of all classes, including difficult ones."""

    names: tuple[str, ...]
    boxes: np.ndarray  # (N, 4) float32 xyxy, 0-based continuous pixels, only boxes with an area
    difficult: np.ndarray  # (N,) bool
    size: tuple[int, int]  # (H, W), (0, 0) if not stated
    errors: tuple[tuple[str, str], ...] = ()  # key of `KINDS`, and where

    def select(self, keep: np.ndarray) -> "VocAnnotation":
        """The objects where `keep`, (N,) bool, is true."""
        names = tuple(name for name, kept in zip(self.names, keep, strict=True) if kept)
        return replace(self, names=names, boxes=self.boxes[keep], difficult=self.difficult[keep])


def parse_voc_sets(text: str) -> list[tuple[str, str]]:
    """ "2007:trainval,2012:trainval" -> [("2007", "trainval"), ("2012", "trainval")]."""
    sets = []
    for item in text.split(","):
        year, colon, split = (part.strip() for part in item.partition(":"))
        if not (year and colon and split):
            raise UserError(
                f"sets of VOC are year:split, with commas between them, got {item.strip()!r}; "
                "for example 2007:trainval,2012:trainval"
            )
        sets.append((year.removeprefix("VOC"), split))
    return sets


def voc_year_folder(root: str | Path, year: str) -> Path:
    """Finds the folder VOC<year>; `root` may be VOCdevkit, its parent or a folder in it."""
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
    years = (path for parent in parents for path in parent.glob("VOC?*") if path.is_dir())
    found = sorted({path.name[3:] for path in years} - {"devkit"})
    there = (
        f"there is {', '.join(found)}; {CHOOSE}"
        if found
        else (f"--set voc_root=FOLDER must name the folder that holds VOCdevkit/{name}")
    )
    raise UserError(f"no {name} in {root}; {there}")


def read_split(folder: Path, split: str) -> list[str]:
    """The lines of ImageSets/Main/<split>.txt that are not empty."""
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        found = sorted(p.stem for p in path.parent.glob("[!.]*.txt") if "_" not in p.stem)
        there = f"there is {', '.join(found)}; {CHOOSE}" if found else CHECK_ROOT
        raise UserError(f"split list {path} does not exist; {there}")
    text = read_text(path, "correct this split list")
    lines = [line for line in split_lines(text) if line.strip()]
    if not lines:
        raise UserError(f"split list {path} is empty; {CHOOSE}")
    return lines


def images_of_lines(lines: Sequence[str], images: FileNames) -> list[str | None]:
    """The image that each line of a split list names; None where there is none.

    A line that is the name of an image means that image. Otherwise its last word may be the flag
    of a class, as lists of Pascal VOC have it.

    Args:
        images: names without suffix; a line may have one.
    """
    whole = [line.strip() for line in lines]
    unflagged = [FLAG.sub("", line) for line in whole]
    bare = [[_without_suffix(name) for name in names] for names in (whole, unflagged)]
    readings = zip(lines, whole, bare[0], unflagged, bare[1], strict=True)
    found = [next(filter(images.names.__contains__, names), None) for names in readings]
    for names in bare:
        found = images.resolve([f or n for f, n in zip(found, names, strict=True)])
    return found


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """File stem -> file of a folder, without hidden files (macOS adds them to archives)."""
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist; {CHECK_ROOT}")
    with os.scandir(folder) as entries:
        names = sorted((e.name for e in entries if not e.name.startswith(".")), reverse=True)
    paths = (folder / name for name in names)
    return {path.stem: path for path in paths if path.suffix.lower() in suffixes}


def read_voc_annotation(path: Path) -> VocAnnotation:
    """Parses one XML file; a file that has not changed is parsed once per process."""
    try:
        return _parse(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"annotation {path} does not exist; {CHECK_ROOT}") from error


@cache
def _parse(path: Path, _changed: int) -> VocAnnotation:
    errors: list[tuple[str, str]] = []
    try:
        root = parse_xml(path.read_bytes())
        _check_structure(root)
        rows = [_parse_object(node, errors) for node in root.findall("object")]
        size = tuple(_side(root.findtext(f"size/{side}"), side) for side in ("height", "width"))
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(
            f"annotation {path} is not a valid VOC annotation ({one_line(error)}); {CORRECT}"
        ) from error
    rows = [row for row in rows if row is not None]
    return VocAnnotation(
        names=tuple(row[0] for row in rows),
        boxes=np.array([row[1] for row in rows], np.float32).reshape(-1, 4),
        difficult=np.array([row[2] for row in rows], bool),
        size=size,
        errors=tuple(errors),
    )


def parse_xml(content: bytes) -> ElementTree.Element:
    """The root of an XML document in any encoding that Python knows; namespaces are left out.

    Raises:
        ValueError: it is in another encoding than it says, or declares a document type or entities.
        ElementTree.ParseError: it is no XML.
    """
    problem = "" if content.lstrip().startswith(b"<") else foreign(content)
    if problem or not content.strip():
        raise ValueError(f"it {problem or 'is empty'}")
    declared = ENCODING.match(content)
    encoding = declared[1].decode().lower() if declared else "utf-8"
    if encoding.startswith(("utf-16", "utf-32")):  # decode_text finds out whether it is
        encoding = "utf-8"
    text = decode_text(content, WIDER.get(encoding, encoding))
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type or entities")
    root = ElementTree.fromstring(text)
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    return root


def _check_structure(root: ElementTree.Element) -> None:
    """Refuses a document that has boxes where those of VOC are not."""
    if root.tag != "annotation":
        raise ValueError(f"its root is <{shown(root.tag)[1:-1]}>, not <annotation>")
    for child in root:
        if child.tag != "object" and any(node.tag.lower() in BOX_TAGS for node in child.iter()):
            raise ValueError(
                f"it has boxes in <{shown(child.tag)[1:-1]}>, those of VOC are in <object> "
                "directly below <annotation>"
            )


def _parse_object(
    node, errors: list[tuple[str, str]]
) -> tuple[str, tuple[float, ...], bool] | None:
    """Name, box and difficult flag; None where the corners enclose nothing.

    VOC counts pixels from 1 and includes the last one, so only the first corner moves.
    """
    name = normal_form((node.findtext("name") or "").strip())
    if not name:
        raise ValueError("an object has no name")
    box = []
    for corner in ("xmin", "ymin", "xmax", "ymax"):
        text = node.findtext(f"bndbox/{corner}")
        if text is None or text.strip().lower() in NOTHING:
            raise ValueError(f"object {shown(name)} has no {corner}")
        box.append(_number(text, f"{corner} of object {shown(name)}"))
    detail = f"box of {shown(name)} {shown(box)}"
    if not (np.abs(box) < LARGEST).all():
        errors.append(("not_finite", detail))
        return None
    xmin, ymin, xmax, ymax = box
    if not (xmax > xmin and ymax > ymin):
        errors.append(("no_area", detail))
        return None
    return name, (xmin - 1, ymin - 1, xmax, ymax), _flag(node.findtext("difficult"), name)


def _number(text: str | None, what: str) -> float:
    """A field as a number; 0 where it says nothing.

    Raises:
        ValueError: it says something else.
    """
    text = (text or "").strip()
    if text.lower() in NOTHING:
        return 0.0
    try:
        return float(text.replace("_", "?"))  # Python's own 1_000 is no number here
    except ValueError:
        raise ValueError(f"{what} must be a number, got {shown(text)}") from None


def _flag(text: str | None, name: str) -> bool:
    value = WORDS.get((text or "").strip().lower())
    value = _number(text, f"difficult of object {shown(name)}") if value is None else value
    if value not in (0, 1):
        raise ValueError(f"difficult of object {shown(name)} must be 0 or 1, got {shown(text)}")
    return value == 1


def _side(text: str | None, side: str) -> int:
    """Height or width in pixels; 0 if not stated."""
    pixels = _number(text, side)
    if not 0 <= pixels <= MAX_SIDE or pixels != int(pixels):
        raise ValueError(f"{side} must be 1 to {MAX_SIDE} whole pixels, got {shown(text)}")
    return int(pixels)


class VocDetection:
    """Images in the order of the split lists.

    Difficult objects are no targets; they stay in `ground_truth`, marked.

    Attributes:
        categories: the classes in use.
        annotation_errors: what is wrong with the files and was left out.
    """

    def __init__(
        self,
        root: str | Path | None,
        sets: str = "2012:train",
        *,
        classes: Sequence[str] | None = None,
        limit: int | None = None,
        skip_bad: bool = False,
    ):
        """
        Args:
            root: VOCdevkit, the folder above it, or the folder that holds VOC2007, VOC2012, ...
            sets: such as "2007:trainval,2012:trainval" (`parse_voc_sets`);
                VOC<year>/ImageSets/Main/<split>.txt lists the images.
            classes: names, class ids 1..C in this order; objects of other classes are ignored.
                Without it: the 20 VOC classes if all names in the annotations are among them,
                else all names found in the folders, sorted.
            limit: only the first images.
            skip_bad: leave out images and objects that otherwise are errors.
        """
        if root is None:
            raise UserError("no VOC folder given; use --set voc_root=FOLDER")
        self.annotation_errors = AnnotationErrors(root, skip=skip_bad)
        self.image_ids: list[str] = []
        self._images: list[Path] = []
        self._annotations: list[VocAnnotation] = []
        folders = [(voc_year_folder(root, year), split) for year, split in parse_voc_sets(sets)]
        for folder, split in folders:
            self._add(folder, split)
        self._check_normalised()
        self.categories = self._choose([folder for folder, _ in folders], classes)
        if limit is not None:
            del self.image_ids[limit:], self._images[limit:], self._annotations[limit:]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Sample:
        """Image number `index` with its objects; `at_least` is that of `read_image`."""
        stated = self._annotations[index].size
        image, size = read_annotated_image(self._images[index], stated, CHECK_ROOT, at_least)
        boxes, labels, difficult = self.objects(index)
        boxes = np.clip(boxes, 0, np.float32([size[1], size[0]] * 2))
        keep = ~difficult & (boxes[:, 2:] > boxes[:, :2]).all(1)
        return Sample(image, self.image_ids[index], size, boxes=boxes[keep], labels=labels[keep])

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """boxes (N, 4) float32 xyxy as annotated, labels (N,), difficult (N,) bool."""
        annotation, ids = self._annotations[index], self.categories.ids_of_names
        labels = np.array([ids.get(name, 0) for name in annotation.names], np.int64)
        keep = labels > 0
        return annotation.boxes[keep], labels[keep], annotation.difficult[keep]

    def objects_per_image(self) -> np.ndarray:
        """(M,) int64, number of objects of each image that are trained on."""
        return np.array([len(self._learned(i)) for i in range(len(self))], np.int64)

    def objects_per_class(self) -> dict[int, int]:
        """Class id -> number of its objects that are trained on."""
        labels = np.concatenate([self._learned(i) for i in range(len(self))] or [[]]).astype(int)
        counts = np.bincount(labels, minlength=len(self.categories.names) + 1)
        return {class_id: int(counts[class_id]) for class_id in self.categories.names}

    def _learned(self, index: int) -> np.ndarray:
        """(n,) labels of the objects of an image that are no difficult ones."""
        _, labels, difficult = self.objects(index)
        return labels[~difficult]

    def image_path(self, index: int) -> Path:
        return self._images[index]

    def stated_size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image as stated in its annotation, (0, 0) if missing."""
        return self._annotations[index].size

    def ground_truth(self) -> dict[str, dict[str, np.ndarray]]:
        """image id -> boxes (N, 4) clipped to the image, labels (N,), difficult (N,) bool."""
        truth = {}
        for index, image_id in enumerate(self.image_ids):
            boxes, labels, difficult = self.objects(index)
            height, width = self._annotations[index].size
            upper = np.float32([width or np.inf, height or np.inf] * 2)
            truth[image_id] = {
                "boxes": np.clip(boxes, 0, upper),
                "labels": labels,
                "difficult": difficult,
            }
        return truth

    def _add(self, folder: Path, split: str) -> None:
        """Appends the images of one split; one that an earlier split listed is not repeated."""
        images = files_by_stem(folder / "JPEGImages", SUFFIXES)
        xmls = files_by_stem(folder / "Annotations", (".xml",))
        names, lines = FileNames(images), read_split(folder, split)
        xml_of = dict(zip(images, FileNames(xmls).resolve(list(images)), strict=True))
        have, seen, listed = set(self.image_ids), set(self._images), set()
        for line, name in zip(lines, images_of_lines(lines, names), strict=True):
            where = f"image {shown(line.strip())} of split {split!r}"
            if (name or line) in listed:
                self.annotation_errors.add("listed_twice", where)
            listed.add(name or line)
            if name is None:
                place = f"{where} is missing in {folder / 'JPEGImages'}"
                hint = names.hint(_without_suffix(FLAG.sub("", line.strip())))
                self.annotation_errors.add("image_missing", place + f"; {hint}" * bool(hint))
                continue
            path = images[name]
            if path in seen:
                continue
            seen.add(path)
            xml = xml_of[name]
            missing = folder / "Annotations" / f"{name}.xml"
            annotation = self._read(missing if xml is None else xmls[xml])
            if annotation is None:
                continue
            # two years of a data set of one's own may use the same names
            self.image_ids.append(f"{folder.name}/{name}" if name in have else name)
            self._images.append(path)
            self._annotations.append(annotation)

    def _read(self, xml: Path) -> VocAnnotation | None:
        """An annotation, its errors counted; None where it cannot be used and is left out."""
        try:
            annotation = read_voc_annotation(xml)
        except UserError as error:
            if not self.annotation_errors.skip:
                raise
            self.annotation_errors.add("xml" if xml.is_file() else "xml_missing", str(error))
            return None
        for kind, detail in annotation.errors:
            self.annotation_errors.add(kind, xml.name, detail)
        height, width = annotation.size
        boxes = np.clip(annotation.boxes, 0, [width or np.inf, height or np.inf] * 2)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        for i in np.flatnonzero(~inside):
            detail = f"box of {annotation.names[i]!r} {annotation.boxes[i].tolist()}"
            self.annotation_errors.add("outside", xml.name, detail)
        return annotation.select(inside)

    def _check_normalised(self) -> None:
        """Refuses boxes that are shares of the picture."""
        boxes = np.concatenate([np.zeros((0, 4)), *(each.boxes for each in self._annotations)])
        tiny = (boxes <= NORMALISED).all(1)
        if len(boxes) and tiny.mean() > MOST:
            detail = f"{tiny.sum()} of {len(boxes)} boxes end below {NORMALISED:g} pixels"
            self.annotation_errors.add("normalised", f"box {boxes[tiny][0].tolist()}", detail)

    def _choose(self, folders: list[Path], classes: Sequence[str] | None) -> Categories:
        annotations = [files_by_stem(folder / "Annotations", (".xml",)) for folder in folders]
        files = {path for by_stem in annotations for path in by_stem.values()}
        found: set[str] = set()
        for path in files:  # of other splits too: all of them have the same classes
            try:
                found.update(read_voc_annotation(path).names)
            except UserError:
                if not self.annotation_errors.skip:
                    raise
        if classes is not None:
            classes = [normal_form(name) for name in classes]
            check_class_names(classes, found | set(VOC_CLASSES), str(folders[0].parent))
            return Categories.from_names(list(classes))
        if not found:
            raise UserError(f"no annotated object in {folders[0]}; {CHECK_ROOT}")
        return Categories.from_names(VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found))


def _without_suffix(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in (*SUFFIXES, ".xml") else name
