"""Reading an image to which an annotation belongs."""

from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.images import load_image


def read_annotated_image(path: Path, stated_size: tuple[int, int], advice: str) -> np.ndarray:
    """The pixels in the frame of the annotation, (H, W, 3) uint8.

    A photograph with an EXIF orientation may have been annotated upright or as stored: the size
    that the annotation states decides, upright where both agree with it.

    Args:
        stated_size: (H, W) as the annotation has it; a 0 means it is not stated.
        advice: what to do if the file is missing.
    """
    if not path.is_file():
        raise UserError(f"image {path} is missing; {advice}")
    image = load_image(path)
    if 0 in stated_size or image.shape[:2] == stated_size:
        return image
    stored = load_image(path, exif=False)
    if stored.shape[:2] == stated_size:
        return stored
    is_size, said = ("x".join(map(str, size)) for size in (image.shape[:2], stated_size))
    raise UserError(
        f"image {path} is {is_size} (HxW), but its annotation says {said}: its boxes cannot fit; "
        "correct the annotation or remove the image"
    )
