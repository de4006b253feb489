"""Reading an image to which an annotation belongs."""

import os
from pathlib import Path

import numpy as np

from dataset.sample import image_size
from utils.errors import UserError
from utils.images import JpegFile, open_image


def read_annotated_image(
    path: Path, stated_size: tuple[int, int], advice: str
) -> tuple[np.ndarray | JpegFile, tuple[int, int]]:
    """The picture in the frame of the annotation, as a `Sample` takes it, and its (H, W).

    A photograph with an EXIF orientation may have been annotated upright or as stored: the size
    that the annotation states decides, upright where both agree with it.

    Args:
        stated_size: (H, W) as the annotation has it; a 0 means it is not stated.
        advice: what to do if the file is missing.
    """
    try:
        image = open_image(path)
    except UserError:
        if os.path.isfile(path):  # Path.is_file raises where a name is too long
            raise
        raise UserError(f"image {path} is missing; {advice}") from None
    size = image_size(image)
    if 0 in stated_size or size == stated_size:
        return image, size
    stored = open_image(path, exif=False)
    if image_size(stored) == stated_size:
        return stored, stated_size
    is_size, said = ("x".join(map(str, each)) for each in (size, stated_size))
    raise UserError(
        f"image {path} is {is_size} (HxW), but its annotation says {said}: its boxes cannot fit; "
        "correct the annotation or remove the image"
    )
