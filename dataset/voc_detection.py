"""Boxes of a VOCdevkit: Pascal VOC itself, or any data set in its format."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset.annotated_image import read_annotated_image
from dataset.classes import check_class_names
from dataset.faults import Faults
from dataset.sample import Sample
from dataset.voc_files import (
    VocAnnotation,
    find_images,
    read_split,
    read_voc_annotation,
    voc_year_folder,
)
from utils.categories import Categories
from utils.errors import UserError
from utils.images import SUFFIXES
from utils.plain import shown

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


class VocDetection:
    """Images in the order of the split lists.

    Difficult objects are no targets unless asked for; they stay in `ground_truth`, marked.
    """

    def __init__(
        self,
        root: str | Path | None,
        sets: Sequence[tuple[str, str]] = (("2012", "train"),),
        *,
        classes: Sequence[str] | None = None,
        use_difficult: bool = False,
        limit: int | None = None,
        skip_bad: bool = False,
    ):
        """
        Args:
            root: VOCdevkit, the folder above it, or the folder that holds VOC2007, VOC2012, ...
            sets: (year, split) pairs; VOC<year>/ImageSets/Main/<split>.txt lists the images.
            classes: names, class ids 1..C in this order; objects of other classes are ignored.
                Without it: the 20 VOC classes if all names in the annotations are among them,
                else all names found in the folders, sorted.
            use_difficult: train on difficult objects too.
            limit: only the first images.
            skip_bad: leave out, and count in `faults`, images and objects that otherwise are
                errors.
        """
        if root is None:
            raise UserError("no VOC folder given; use --set voc_root=FOLDER")
        self.use_difficult, self.faults = use_difficult, Faults(root, skip=skip_bad)
        self.image_ids: list[str] = []
        self._images: list[Path] = []
        self._annotations: list[VocAnnotation] = []
        folders = [(voc_year_folder(root, year), split) for year, split in sets]
        for folder, split in folders:
            self._add(folder, split)
        self.categories = self._choose([folder for folder, _ in folders], classes)
        if limit is not None:
            del self.image_ids[limit:], self._images[limit:], self._annotations[limit:]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        image, size = read_annotated_image(
            self._images[index], self._annotations[index].size, "check --set voc_root=FOLDER"
        )
        boxes, labels, difficult = self.objects(index)
        keep = np.ones(len(labels), bool) if self.use_difficult else ~difficult
        boxes = np.clip(boxes, 0, np.float32([size[1], size[0]] * 2))
        keep &= (boxes[:, 2:] > boxes[:, :2]).all(1)
        return Sample(image, self.image_ids[index], size, boxes=boxes[keep], labels=labels[keep])

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """boxes (N, 4) float32 xyxy as annotated, labels (N,), difficult (N,) bool."""
        annotation, ids = self._annotations[index], self.categories.ids_of_names
        labels = np.array([ids.get(name, 0) for name in annotation.names], np.int64)
        keep = labels > 0
        return annotation.boxes[keep], labels[keep], annotation.difficult[keep]

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
                self.faults.add("listed_twice", f"image {shown(name)} of split {split!r}")
            listed.add(name)
            path = images.get(name) or images.get(_without_suffix(name))
            if path is None:
                self.faults.add(
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
        """An annotation, its faults counted; None where it cannot be used and is left out."""
        try:
            annotation = read_voc_annotation(xml)
        except UserError as error:
            if not self.faults.skip:
                raise
            self.faults.add("xml" if xml.is_file() else "xml_missing", str(error))
            return None
        for kind, said in annotation.faults:
            self.faults.add(kind, xml.name, said)
        height, width = annotation.size
        boxes = np.clip(annotation.boxes, 0, [width or np.inf, height or np.inf] * 2)
        for i in np.flatnonzero(~(boxes[:, 2:] > boxes[:, :2]).all(1)):
            said = f"box of {annotation.names[i]!r} {annotation.boxes[i].tolist()}"
            self.faults.add("outside", xml.name, said)
        return annotation

    def _choose(self, folders: list[Path], classes: Sequence[str] | None) -> Categories:
        files = {path for folder in folders for path in (folder / "Annotations").glob("*.xml")}
        found: set[str] = set()
        for path in files:  # of other splits too: all of them have the same classes
            try:
                found.update(read_voc_annotation(path).names)
            except UserError:
                if not self.faults.skip:
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
