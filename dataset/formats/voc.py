"""Pascal VOC in any shape: one XML file for each picture.

A VOCdevkit with its lists; `Annotations/` and `JPEGImages/` or `images/` without lists (LabelImg,
Label Studio); pictures and XML files side by side, also in `train/` and `valid/` (Roboflow);
`data/` and `labels/` (FiftyOne).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from dataset.annotation_errors import AnnotationErrors
from dataset.formats import ALL, NAMES, Part, part_of
from dataset.voc_detection import (
    CORRECT,
    VOC_CLASSES,
    VocAnnotation,
    files_by_stem,
    images_of_lines,
    read_split,
    read_voc_annotation,
)
from utils.errors import UserError
from utils.files import shown
from utils.images import SUFFIXES, FileNames, image_size

TITLE = "Pascal VOC"
XML_FOLDERS = ("annotations", "labels", "xml", "xmls", "")
IMAGE_FOLDERS = ("jpegimages", "images", "image", "data", "img", "imgs", "pictures", "")
ROOT = re.compile(rb"<annotation[\s>]")
HEAD = 4096  # bytes, in which the root of an XML file must stand
ADVICE = "correct it, or move it out of the folder"


@dataclass(frozen=True)
class Place:
    """A folder of XML files and its folder of pictures; a split list may choose some."""

    xmls: Path
    images: Path
    list_of: tuple[Path, str] | None = None  # folder VOC<year> and name of the list

    @property
    def files(self) -> list[Path]:
        """All that decides what is read."""
        found = [self.xmls, self.images, *_xmls(self.xmls)]
        if self.list_of is not None:
            folder, name = self.list_of
            found.append(folder / "ImageSets" / "Main" / f"{name}.txt")
        return found


def find_parts(folder: Path) -> list[Part]:
    """The parts of a folder; none if it holds no XML files of VOC."""
    places = _find_places(folder)
    top = folder if len(places) > 1 or not places else _top(folder, places)
    everything = tuple(place for each in places.values() for place in each)
    xmls = tuple(dict.fromkeys(place.xmls for place in everything))
    files = tuple(dict.fromkeys(file for place in everything for file in place.files))
    return [
        Part(name, top, files, folder, partial(_read, folder, tuple(places[name]), xmls))
        for name in (*NAMES, ALL)
        if name in places
    ]


def _top(folder: Path, places: dict[str, list[Place]]) -> Path:
    """The folder that a single part lies in."""
    xmls = [place.xmls for each in places.values() for place in each]
    return xmls[0] if len(xmls) == 1 and xmls[0] != folder else folder


def _find_places(folder: Path) -> dict[str, list[Place]]:
    """Name of a part -> where it lies."""
    places: dict[str, list[Place]] = {}
    # years of a VOCdevkit, each with its lists
    for year in _years(folder):
        for name, place in _listed(year).items():
            places.setdefault(name, []).append(place)
    if places:
        return places
    # a folder for each part
    for inside in sorted(p for p in folder.iterdir() if p.is_dir()):
        name = part_of(inside.name)
        if name != ALL and (place := _place(inside)):
            places.setdefault(name, []).append(place)
    if places:
        return places
    if place := _place(folder):
        return {ALL: [place]}
    for place in _nested(folder):
        places.setdefault(part_of(place.xmls.name), []).append(place)
    return places


def _nested(folder: Path) -> list[Place]:
    """Annotations/train and images/train, and others of the same names."""
    inside = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}
    tops = [inside[name] for name in IMAGE_FOLDERS if name in inside]
    places = []
    for name in XML_FOLDERS:
        xmls = sorted(inside[name].iterdir()) if name in inside else []
        for place in (p for p in xmls if p.is_dir() and _is_voc(p)):
            images = [top / place.name for top in tops if (top / place.name).is_dir()]
            images = [p for p in (*images, *tops) if files_by_stem(p, SUFFIXES)]
            places.append(Place(place, images[0] if images else place))
    return places


def _years(folder: Path) -> list[Path]:
    """The folders that hold ImageSets/Main: this one, or those of a VOCdevkit in or around it."""
    tops = (folder, folder / "VOCdevkit")
    inside = [p for top in tops if top.is_dir() for p in sorted(top.iterdir()) if p.is_dir()]
    return [p for p in (folder, *inside) if (p / "ImageSets" / "Main").is_dir() and _place(p)]


def _listed(year: Path) -> dict[str, Place]:
    """Name of a part -> its place, by the split lists of a year: train, val, test, or trainval."""
    place = _place(year)
    lists = {path.stem for path in (year / "ImageSets" / "Main").glob("[!.]*.txt")}
    chosen = {name: name for name in NAMES if name in lists}
    if "train" not in chosen and "val" not in chosen and "trainval" in lists:
        chosen["train"] = "trainval"
    if "train" not in chosen:  # lists of another meaning
        return {ALL: place}
    return {
        name: Place(place.xmls, place.images, (year, stem)) for name, stem in sorted(chosen.items())
    }


def _place(folder: Path) -> Place | None:
    """The XML files and pictures of a folder without lists."""
    inside = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()} | {"": folder}
    for name in XML_FOLDERS:
        if name in inside and _is_voc(inside[name]):
            xmls = inside[name]
            images = [inside[n] for n in IMAGE_FOLDERS if n in inside] + [xmls]
            images = [place for place in images if files_by_stem(place, SUFFIXES)]
            return Place(xmls, images[0] if images else xmls)
    return None


def _xmls(folder: Path) -> list[Path]:
    return list(files_by_stem(folder, (".xml",)).values())


def _is_voc(folder: Path) -> bool:
    """Whether the first XML file of a folder has the root of VOC."""
    first = next(iter(_xmls(folder)), None)
    if first is None:
        return False
    try:
        with first.open("rb") as file:
            return bool(ROOT.search(file.read(HEAD).replace(b"\0", b"")))
    except OSError:
        return False


# ---- reading -----------------------------------------------------------------------------------


def _read(
    root: Path, places: Sequence[Place], xmls: Sequence[Path], errors: AnnotationErrors
) -> dict:
    """The COCO document of a part.

    Args:
        root: file names are relative to it.
        xmls: folders of all parts, which have the same classes.
    """
    class_ids = _class_ids(xmls)
    images: list[dict] = []
    annotations: list[dict] = []
    numbers = count(1)
    seen: set[Path] = set()
    for place in places:
        for picture, xml in _pairs(place, errors):
            if picture in seen:
                continue
            seen.add(picture)
            annotation = _annotation(xml, root, errors)
            if annotation is None:
                continue
            height, width = annotation.size if all(annotation.size) else _size(picture)
            name = picture.relative_to(root).as_posix()
            number = len(images) + 1
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for row in _objects(annotation, class_ids):
                annotations.append({"id": next(numbers), "image_id": number, **row})
    categories = [{"id": number, "name": name} for name, number in class_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _pairs(place: Place, errors: AnnotationErrors) -> list[tuple[Path, Path]]:
    """Each picture of a place with its XML file."""
    pictures, xmls = files_by_stem(place.images, SUFFIXES), files_by_stem(place.xmls, (".xml",))
    names, stems = FileNames(pictures), sorted(pictures)
    xml_of = dict(zip(stems, FileNames(xmls).resolve(stems), strict=True))
    if place.list_of is None:
        for stem in stems:
            if xml_of[stem] is None:
                errors.add("unlabelled", pictures[stem].name, "no XML file of its name")
        used = {xml for xml in xml_of.values() if xml is not None}
        for stem in sorted(set(xmls) - used):
            errors.add("image_missing", xmls[stem].name, f"no picture of its name; {ADVICE}")
        return [(pictures[s], xmls[xml_of[s]]) for s in stems if xml_of[s] is not None]
    lines = read_split(*place.list_of)
    pairs = []
    for line, stem in zip(lines, images_of_lines(lines, names), strict=True):
        where = f"image {shown(line.strip())} of split {place.list_of[1]!r}"
        if stem is None:
            errors.add("image_missing", where, f"it is not in {place.images}")
        elif xml_of[stem] is None:
            errors.add("xml_missing", where, f"it is not in {place.xmls}")
        else:
            pairs.append((pictures[stem], xmls[xml_of[stem]]))
    return pairs


def _annotation(xml: Path, root: Path, errors: AnnotationErrors) -> VocAnnotation | None:
    """What an XML file says; None where it is no VOC annotation."""
    try:
        annotation = read_voc_annotation(xml)
    except UserError as error:
        problem = str(error).removeprefix(f"annotation {xml} ").removesuffix(f"; {CORRECT}")
        errors.add("xml", xml.relative_to(root).as_posix(), problem)
        return None
    for kind, detail in annotation.errors:
        errors.add(kind, xml.relative_to(root).as_posix(), detail)
    return annotation


def _class_ids(folders: Sequence[Path]) -> dict[str, int]:
    """Name -> id: the classes of VOC if all names are among them, else all names, sorted."""
    found: set[str] = set()
    for folder in folders:
        for xml in _xmls(folder):
            try:
                found.update(read_voc_annotation(xml).names)
            except UserError:  # named where its part is read
                continue
    names = VOC_CLASSES if found <= set(VOC_CLASSES) and found else sorted(found)
    return {name: number for number, name in enumerate(names, 1)}


def _objects(annotation: VocAnnotation, class_ids: dict[str, int]) -> list[dict]:
    """The objects as COCO has them; difficult ones are crowds, which scoring passes over."""
    rows = []
    columns = annotation.names, annotation.boxes.tolist(), annotation.difficult.tolist()
    for name, (x1, y1, x2, y2), difficult in zip(*columns, strict=True):
        # files that count from 0 begin one pixel outside
        x1, y1 = (0.0 if -1 <= side < 0 else side for side in (x1, y1))
        box = [x1, y1, x2 - x1, y2 - y1]
        rows.append({"category_id": class_ids[name], "bbox": box, "iscrowd": int(difficult)})
    return rows


def _size(picture: Path) -> tuple[int, int]:
    """(H, W) of a picture, (0, 0) if it cannot be read, which is named elsewhere."""
    try:
        return image_size(picture)
    except UserError:
        return 0, 0
