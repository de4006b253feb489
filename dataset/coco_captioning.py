"""Captions of a COCO `captions_*.json`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset.annotation_errors import AnnotationErrors
from dataset.coco_format import describe, read_coco
from dataset.sample import Sample, read_annotated_image
from utils.errors import UserError
from utils.files import fits, shown


class CocoCaptions:
    """Images sorted by id, each with its captions in the order of the file.

    Images without a caption are left out: there is nothing to learn from them and nothing to
    score against. Captions lose white space at both ends; of white space within, the tokenizer
    makes single spaces.

    Attributes:
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
            root: folder with train2017, val2017 and annotations (`coco_paths`).
            split: "train" or "val".
            classes: without effect; the sources of other tasks know it.
            limit: only the first images, in the order of their ids.
            skip_bad: leave out captions that otherwise are errors.
        """
        file = read_coco(root, split, self.kind, skip_bad=skip_bad)
        self.annotation_file, self.image_folder = file.path, file.image_folder
        self.annotation_errors, self.categories = file.errors, file.categories
        captions = read_captions(file.rows, file.errors)
        for image_id in sorted(captions.keys() - set(file.images.ids.tolist())):
            file.errors.add("unlisted", f"captions of image {image_id}")
        # the images that have some
        chosen = np.isin(file.images.ids, list(captions))
        if limit is not None:
            chosen &= np.cumsum(chosen) <= limit
        if not chosen.any():
            raise UserError(f"{file.path} leaves no image to use; check the settings")
        self._images = file.images.keep(chosen)
        self._captions = [captions[i] for i in self.image_ids.tolist()]

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    @property
    def image_ids(self) -> np.ndarray:
        """(I,) int64."""
        return self._images.ids

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> Sample:
        """Image number `index` with its captions; `at_least` is that of `read_image`."""
        image_id = int(self.image_ids[index])
        image, size = read_annotated_image(
            self.image_path(index),
            tuple(self._images.sizes[index].tolist()),
            f"image id {image_id} needs it: complete the download or use --set coco_root=FOLDER",
            at_least,
        )
        return Sample(image, image_id, size, captions=self.captions(index))

    def captions(self, index: int) -> list[str]:
        """The captions of an image; it is not read."""
        return list(self._captions[index])

    def image_path(self, index: int) -> Path:
        return self.image_folder / str(self._images.file_names[index])

    @property
    def references(self) -> dict[int, list[str]]:
        """The ground truth: image id -> captions."""
        return dict(zip(self.image_ids.tolist(), self._captions, strict=True))


def read_captions(annotations: Sequence[dict], errors: AnnotationErrors) -> dict[int, list[str]]:
    """Image id -> its captions, of those that say something."""
    captions: dict[int, list[str]] = {}
    for row in annotations:
        if not isinstance(row["caption"], str) or not fits(row["image_id"], int):
            errors.add(
                "caption",
                f"annotation {row.get('id')}",
                "caption must be text and image_id a whole number, got "
                f"{shown(row['caption'])} and {shown(row['image_id'])}",
            )
        elif text := row["caption"].strip():
            captions.setdefault(row["image_id"], []).append(text)
        else:
            errors.add("empty_caption", describe(row))
    return captions
