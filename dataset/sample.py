"""One image with its annotation, as sources yield it and transforms change it.

`read_annotated_image` reads the image to which an annotation belongs. Three sources change what
another one reads: one sample per object, samples with rare classes more often, and other images in
place of those that cannot be read.
"""

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from dataset.geometry import Geometry
from utils.errors import UserError
from utils.images import image_size, read_image

MAX_TRIES = 20  # images in a row that cannot be read; then something else is wrong

MOVED = {  # fields that `Sample.moved` changes, or knows to stay as they are
    *("image", "image_id", "orig_size", "geometry", "boxes", "labels"),
    *("keypoints", "flip_pairs", "polygons", "captions", "skipped"),
}


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), np.float32)


def _no_labels() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass
class Sample:
    """Everything known about one image.

    Coordinates are pixels, x to the right: of the original image, and after `moved` of the model
    input. Row i of boxes, labels, keypoints and polygons is the same object.
    """

    image: np.ndarray  # (H, W, 3) uint8 RGB; of a large original perhaps a half, … (`read_image`)
    image_id: int | str
    orig_size: tuple[int, int]  # (H, W) of the original image
    geometry: Geometry | None = None  # original pixels -> model input; None: not moved yet
    boxes: np.ndarray = field(default_factory=_no_boxes)  # (N, 4) float32 xyxy
    labels: np.ndarray = field(default_factory=_no_labels)  # (N,) int64 class ids, >= 1
    keypoints: np.ndarray | None = None  # (N, K, 3) float32 (x, y, visibility); 0 0 0 if unlabelled
    flip_pairs: tuple[tuple[int, int], ...] | None = None  # keypoints a mirror swaps (left, right)
    polygons: list[list[np.ndarray]] | None = None  # per object its parts, each (M, 2) float32
    captions: list[str] | None = None
    skipped: tuple[str, ...] = ()  # why other images, which this one replaces, cannot be used

    def moved(self, geometry: Geometry, *, antialias: bool = False) -> "Sample":
        """The sample in pixels of the model input, without its padding.

        Boxes and polygons are clipped to the picture, and no object is removed. Keypoints outside
        the picture become unlabelled, and a mirror swaps left and right keypoints.

        Args:
            antialias: see `Geometry.move_image`.
        """
        if unknown := sorted({f.name for f in fields(self)} - MOVED):
            raise TypeError(f"Sample.moved does not know how to move the fields {unknown}")
        if self.geometry is not None:
            raise ValueError("sample.geometry must be None, got a sample that was moved already")
        if self.orig_size != geometry.orig_size:
            raise ValueError(
                f"the image of this Geometry is {geometry.orig_size} (H, W), that of the sample "
                f"{self.orig_size}"
            )
        h, w = geometry.unpadded
        boxes = np.minimum(np.maximum(geometry.boxes(self.boxes), 0), np.float32([w, h, w, h]))
        keypoints, polygons = self.keypoints, self.polygons
        if keypoints is not None:
            keypoints = geometry.move_keypoints(keypoints, self.flip_pairs)
        if polygons is not None:
            polygons = geometry.move_polygons(polygons)
        image = geometry.move_image(self.image, antialias=antialias)
        return replace(
            self,
            image=image,
            geometry=geometry,
            boxes=boxes,
            keypoints=keypoints,
            polygons=polygons,
        )

    def select(self, keep: np.ndarray) -> "Sample":
        """The objects where `keep`, (N,) bool, is true."""
        if keep.all():
            return self
        keypoints, polygons = self.keypoints, self.polygons
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            keypoints=None if keypoints is None else keypoints[keep],
            polygons=None if polygons is None else [polygons[i] for i in np.flatnonzero(keep)],
        )


def read_annotated_image(
    path: Path,
    stated_size: tuple[int, int],
    advice: str,
    at_least: tuple[int, int] | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads an image in the orientation (upright or as stored) that fits its annotation.

    A photograph with an EXIF orientation may have been annotated either way. The size that the
    annotation states decides; where both fit, the image is upright.

    Args:
        stated_size: (H, W) as the annotation has it; a 0 means it is not stated.
        advice: what to do if the file is missing.
        at_least: (H, W) that is needed, see `read_image`.

    Returns:
        pixels (h, w, 3) uint8 RGB, and the (H, W) of the image.
    """
    try:
        image, size = read_image(path, at_least=at_least)
    except UserError:
        if os.path.isfile(path):  # Path.is_file raises where a name is too long
            raise
        raise UserError(f"image {path} is missing; {advice}") from None
    if 0 in stated_size or size == stated_size:
        return image, size
    stored, stored_size = read_image(path, exif=False, at_least=at_least)
    if stored_size == stated_size:
        return stored, stored_size
    raise _other_size(path, size, stated_size)


def check_header(path: Path, stated_size: tuple[int, int]) -> None:
    """Checks the header of an image as `read_annotated_image` checks the image.

    Raises:
        UserError: it is no image, or has another size.
    """
    size = image_size(path)
    if 0 not in stated_size and stated_size not in (size, image_size(path, exif=False)):
        raise _other_size(path, size, stated_size)


def _other_size(path: Path, size: tuple[int, int], stated_size: tuple[int, int]) -> UserError:
    found, stated = ("x".join(map(str, each)) for each in (size, stated_size))
    return UserError(
        f"image {path} is {found} (HxW), but its annotation says {stated}: its boxes cannot fit; "
        "correct the annotation or remove the image"
    )


class ChangedSource:
    """Wraps a source and changes what it reads; everything else is passed through."""

    def __init__(self, source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def __getattr__(self, name: str):
        if name == "source":  # not there yet, while a worker process unpickles this
            raise AttributeError(name)
        return getattr(self.source, name)


class PerObject(ChangedSource):
    """Makes one sample of each object: its image, and this object only."""

    def __init__(self, source):
        super().__init__(source)
        self.items = source.learnable_objects()  # (K, 2) image, object in the image
        if not len(self):
            raise UserError(f"{source.annotation_file} has no object to use; check the settings")

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Sample:
        image, number = self.items[index].tolist()
        return self.source.read(image, at_least, only=number)

    def image_path(self, index: int) -> Path:
        return self.source.image_path(int(self.items[index, 0]))


class ReplaceUnreadable(ChangedSource):
    """A source that never fails on one image: a sample that cannot be read becomes another.

    Which one depends on the index alone, so batches keep their size and a run that resumes sees
    the same. `Sample.skipped` says why.
    """

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Sample:
        skipped: list[str] = []
        draws = np.random.default_rng([len(self), index])
        for _ in range(MAX_TRIES):
            try:
                sample = self.source.read(index, at_least)
            except UserError as error:
                skipped.append(str(error))
                index = int(draws.integers(len(self)))
                continue
            return replace(sample, skipped=tuple(skipped)) if skipped else sample
        raise UserError(
            f"{MAX_TRIES} images in a row cannot be used, the last one: {skipped[-1]}; look at "
            "them with dataset/check_dataset.py"
        )


def repeat_factors(labels: list[np.ndarray], threshold: float) -> np.ndarray:
    """How often each image is shown in an epoch, (M,) float64, at least 1.

    A class that is on a share f of the images has the factor sqrt(threshold / f); an image has the
    largest factor of its classes.

    Args:
        labels: the class ids of each image's objects.
    """
    classes = [np.unique(ids) for ids in labels]
    present, counts = np.unique(np.concatenate([*classes, []]).astype(int), return_counts=True)
    factors = np.maximum(1.0, np.sqrt(threshold * len(labels) / np.maximum(counts, 1)))
    of_class = dict(zip(present.tolist(), factors.tolist(), strict=True))
    return np.array([max((of_class[i] for i in ids.tolist()), default=1.0) for ids in classes])


class RepeatRare(ChangedSource):
    """Repeats samples with rare classes: repeat-factor sampling (arXiv 1908.03195).

    A factor of 2.3 is three times for 30 % of the samples and twice for the others; which ones is
    drawn once.
    """

    def __init__(self, source, threshold: float, seed: int):
        """
        Args:
            source: with `objects(index)`; of samples of one object each counts as an image.
            threshold: share of the images below which a class is rare.
        """
        super().__init__(source)
        factors = repeat_factors([_labels(source, i) for i in range(len(source))], threshold)
        draws = np.random.default_rng([seed, len(factors)]).random(len(factors))
        times = np.floor(factors) + (draws < factors % 1)
        self.numbers = np.repeat(np.arange(len(factors)), times.astype(int))  # (K,)

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Sample:
        return self.source.read(int(self.numbers[index]), at_least)

    def image_path(self, index: int) -> Path:
        return self.source.image_path(int(self.numbers[index]))


def _labels(source, index: int) -> np.ndarray:
    """Class ids of a sample's objects, crowds and difficult ones apart."""
    items = getattr(source, "items", None)  # of samples of one object
    image, number = (index, slice(None)) if items is None else items[index].tolist()
    _, labels, *difficult = source.objects(image)
    labels = np.where(difficult[0], 0, labels) if difficult else labels
    chosen = np.atleast_1d(labels[number])
    return chosen[chosen > 0]
