"""Captions of a COCO `captions_*.json`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset.annotation_errors import Faults
from dataset.coco_format import coco_paths, describe, read_annotations, read_images
from dataset.sample import Sample, read_annotated_image
from utils.categories import Categories
from utils.errors import UserError
from utils.files import fits, shown


class CocoCaptions:
    """Images sorted by id, each with its captions in the order of the file.

    Images without a caption are left out: there is nothing to learn from them and nothing to
    score against. Captions lose white space at both ends; of white space within, the tokenizer
    makes single spaces.
    """

    categories = Categories({}, {})  # captions know no classes

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        annotation_file: str | Path | None = None,
        image_folder: str | Path | None = None,
        image_ids: Sequence[int] | None = None,
        limit: int | None = None,
        skip_bad: bool = False,
    ):
        """
        Args:
            root: folder with train2017, val2017 and annotations (`coco_paths`).
            split: "train" or "val".
            image_ids: only these images.
            limit: only the first images, in the order of their ids.
            skip_bad: leave out, and count in `faults`, captions that otherwise are errors.
        """
        self.annotation_file, self.image_folder = coco_paths(
            root,
            split,
            kind="captions",
            annotation_file=annotation_file,
            image_folder=image_folder,
        )
        self.faults = Faults(self.annotation_file, skip=skip_bad)
        content = read_annotations(self.annotation_file, "captions", self.faults)
        images = read_images(content["images"], self.faults)
        captions = read_captions(content["annotations"], self.faults)
        rows = {image_id: i for i, image_id in enumerate(images.ids.tolist())}
        for image_id in sorted(captions.keys() - rows.keys()):
            self.faults.add("unlisted", f"captions of image {image_id}")
        if image_ids is not None:
            unknown = sorted(set(image_ids) - set(rows))
            if unknown:
                raise UserError(f"{self.annotation_file} has no image with the id {unknown[0]}")
            captions = {i: captions[i] for i in image_ids if i in captions}
        ids = sorted(i for i in captions if i in rows)[:limit]
        if not ids:
            raise UserError(f"{self.annotation_file} leaves no image to use; check the settings")
        self.image_ids = np.array(ids, np.int64)
        self._captions = [captions[i] for i in ids]
        self._file_names = [str(images.file_names[rows[i]]) for i in ids]
        self._sizes = [tuple(images.sizes[rows[i]].tolist()) for i in ids]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        image_id = int(self.image_ids[index])
        image, size = read_annotated_image(
            self.image_path(index),
            self._sizes[index],
            f"image id {image_id} needs it: complete the download or use --set coco_root=FOLDER",
        )
        return Sample(image, image_id, size, captions=self.captions(index))

    def captions(self, index: int) -> list[str]:
        """The captions of an image; it is not read."""
        return list(self._captions[index])

    def image_path(self, index: int) -> Path:
        return self.image_folder / self._file_names[index]

    @property
    def references(self) -> dict[int, list[str]]:
        """The ground truth: image id -> captions."""
        return dict(zip(self.image_ids.tolist(), self._captions, strict=True))


def read_captions(annotations: Sequence[dict], faults: Faults) -> dict[int, list[str]]:
    """Image id -> its captions, of those that say something."""
    captions: dict[int, list[str]] = {}
    for row in annotations:
        if not isinstance(row["caption"], str) or not fits(row["image_id"], int):
            faults.add(
                "caption",
                f"annotation {row.get('id')}",
                "caption must be text and image_id a whole number, got "
                f"{shown(row['caption'])} and {shown(row['image_id'])}",
            )
        elif text := row["caption"].strip():
            captions.setdefault(row["image_id"], []).append(text)
        else:
            faults.add("empty_caption", describe(row))
    return captions
