"""Captions of a COCO `captions_*.json`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset.coco_format import read_coco, text_at
from dataset.sample import Sample, read_annotated_image
from utils.errors import UserError


class CocoCaptions:
    """Images sorted by id, each with its captions in the order of the file.

    Images without a caption are left out: there is nothing to learn from them and nothing to
    score against. Captions lose white space at both ends; of white space within, the tokenizer
    makes single spaces.

    Attributes:
        file: the annotation file.
        categories: none; captions have no classes.
        annotation_errors: what is wrong with the file and was left out.
    """

    kind = "captions"

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        limit: int | None = None,
        skip_bad: bool = False,
    ):
        """
        Args:
            root: folder with train2017, val2017 and annotations (`coco_paths`), or a `Dataset`.
            split: "train", "val", or another part of a `Dataset`.
            classes: without effect; the sources of other tasks know it.
            limit: only the first images, in the order of their ids.
            skip_bad: leave out captions that otherwise are errors.
        """
        self.file = file = read_coco(root, split, self.kind, skip_bad=skip_bad)
        self.annotation_errors, self.categories = file.errors, file.categories
        # (I,) numbers of the images that have some
        self._images = file.present(np.flatnonzero(np.diff(file.arrays["first"]) > 0)[:limit])
        if not len(self):
            raise UserError(f"{file.path} has no caption of an image to use; check the file")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    @property
    def image_ids(self) -> np.ndarray:
        """(I,) int64."""
        return self.file.image_ids[self._images]

    @property
    def annotation_file(self) -> Path:
        return self.file.path

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Sample:
        """Image number `index` with its captions; `at_least` is that of `read_image`."""
        number = self._images[index]
        image_id = int(self.file.image_ids[number])
        image, size = read_annotated_image(
            self.image_path(index),
            self.file.image_size(number),
            f"image id {image_id} needs it: {self.file.remedy}",
            at_least,
        )
        return Sample(image, image_id, size, captions=self.captions(index))

    def captions(self, index: int) -> list[str]:
        """The captions of an image, without reading the image."""
        rows = self.file.rows(self._images[index])
        return [text_at(self.file.arrays, "caption", row) for row in range(rows.start, rows.stop)]

    def stated_size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image as stated in the annotation file, (0, 0) if missing."""
        return self.file.image_size(self._images[index])

    def image_path(self, index: int) -> Path:
        return self.file.image_folder / self.file.image_name(self._images[index])

    @property
    def references(self) -> dict[int, list[str]]:
        """The ground truth: image id -> captions."""
        return {image: self.captions(i) for i, image in enumerate(self.image_ids.tolist())}
