"""Boxes of a VOCdevkit: Pascal VOC itself, or any data set in its format.

A VOCdevkit has year folders, split lists and one annotation file per image.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dataset.annotation_errors import LARGEST, AnnotationErrors
from dataset.sample import Sample, read_annotated_image
from utils.categories import Categories, check_class_names
from utils.errors import UserError, one_line
from utils.files import shown
from utils.images import MAX_SIDE, SUFFIXES

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


@dataclass(frozen=True)
class VocAnnotation:
    """What one XML file says; objects of all classes, the difficult ones included."""

    names: tuple[str, ...]
    boxes: np.ndarray  # (N, 4) float32 xyxy, 0-based continuous pixels, only boxes with an area
    difficult: np.ndarray  # (N,) bool
    size: tuple[int, int]  # (H, W), (0, 0) if not stated
    errors: tuple[tuple[str, str], ...] = ()  # key of `KINDS`, and where


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
    errors: list[tuple[str, str]] = []
    try:
        content = path.read_bytes()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise ValueError("it declares a document type or entities")
        root = ElementTree.fromstring(content)
        rows = [_parse_object(node, errors) for node in root.findall("object")]
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
        errors=tuple(errors),
    )


def _parse_object(
    node, errors: list[tuple[str, str]]
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
    detail = f"box of {name!r} {shown(box)}"
    if not (np.abs(box) < LARGEST).all():
        errors.append(("not_finite", detail))
        return None
    xmin, ymin, xmax, ymax = box
    if not (xmax > xmin and ymax > ymin):
        errors.append(("no_area", detail))
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
        self.categories = self._choose([folder for folder, _ in folders], classes)
        if limit is not None:
            del self.image_ids[limit:], self._images[limit:], self._annotations[limit:]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Sample:
        """Image number `index` with its objects; `at_least` is that of `read_image`."""
        image, size = read_annotated_image(
            self._images[index],
            self._annotations[index].size,
            "check --set voc_root=FOLDER",
            at_least,
        )
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
        """(M,) int64, objects of each image that are learned."""
        return np.array([len(self._learned(i)) for i in range(len(self))], np.int64)

    def objects_per_class(self) -> dict[int, int]:
        """Class id -> its objects that are learned."""
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
        """(H, W) of an image as its annotation has it, (0, 0) if it does not say."""
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
        images, have, seen = find_images(folder), set(self.image_ids), set(self._images)
        listed: set[str] = set()
        for name in read_split(folder, split):
            if name in listed:
                self.annotation_errors.add(
                    "listed_twice", f"image {shown(name)} of split {split!r}"
                )
            listed.add(name)
            path = images.get(name) or images.get(_without_suffix(name))
            if path is None:
                self.annotation_errors.add(
                    "image_missing",
                    f"image {shown(name)} of split {split!r} is missing in {folder / 'JPEGImages'}",
                )
                continue
            if path in seen:
                continue
            seen.add(path)
            annotation = self._read(folder / "Annotations" / f"{path.stem}.xml")
            if annotation is None:
                continue
            # two years of a data set of one's own may use the same names
            self.image_ids.append(f"{folder.name}/{path.stem}" if path.stem in have else path.stem)
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
        for i in np.flatnonzero(~(boxes[:, 2:] > boxes[:, :2]).all(1)):
            detail = f"box of {annotation.names[i]!r} {annotation.boxes[i].tolist()}"
            self.annotation_errors.add("outside", xml.name, detail)
        return annotation

    def _choose(self, folders: list[Path], classes: Sequence[str] | None) -> Categories:
        files = {path for folder in folders for path in (folder / "Annotations").glob("*.xml")}
        found: set[str] = set()
        for path in files:  # of other splits too: all of them have the same classes
            try:
                found.update(read_voc_annotation(path).names)
            except UserError:
                if not self.annotation_errors.skip:
                    raise
        if classes is not None:
            check_class_names(classes, found | set(VOC_CLASSES), str(folders[0].parent))
            return Categories.from_names(list(classes))
        if not found:
            raise UserError(f"no annotated object in {folders[0]}; check --set voc_root=FOLDER")
        return Categories.from_names(VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found))


def _without_suffix(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else name
