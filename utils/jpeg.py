"""JPEG files decoded straight into an array, and smaller than they are where that is enough."""

import struct

import cv2
import numpy as np
from PIL import Image

FORMATS = ("JPEG", "MPO")
MODES = ("RGB", "L")  # CMYK is for Pillow
READ = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
REDUCED = {  # denominator -> flags; the flags of OpenCV include those of blue first
    8: cv2.IMREAD_REDUCED_COLOR_8 & ~cv2.IMREAD_COLOR | READ,
    4: cv2.IMREAD_REDUCED_COLOR_4 & ~cv2.IMREAD_COLOR | READ,
    2: cv2.IMREAD_REDUCED_COLOR_2 & ~cv2.IMREAD_COLOR | READ,
    1: READ,
}

START = b"\xff\xd8"
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; the other ones are rare
EXIF_OR_XMP, SCAN = 0xE1, 0xDA  # pixels begin with the scan
SEGMENTS = (*range(0xE0, 0xF0), 0xC4, 0xDB, 0xDD, 0xFE)  # APPn, tables, restarts, comment


def upright_size(content: bytes) -> tuple[int, int] | None:
    """(H, W) of a JPEG in colour or gray that nothing may turn, from its header.

    Pillow takes thrice the time for it. None = ask Pillow: another format, a kind that is rare, or
    something is wrong.
    """
    place, size = len(START), None
    if content[:place] != START:
        return None
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == SCAN:
            return size
        if marker in FRAMES and size is None:
            bits, *size, channels = struct.unpack_from(">BHHB", content, place + 4)
            size = tuple(size)
            if bits != 8 or channels not in (1, 3) or 0 in size:
                return None
        elif marker not in SEGMENTS or marker == EXIF_OR_XMP:
            return None
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return None


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether `decode_jpeg` can read it: JPEG in colour or gray."""
    return image.format in FORMATS and image.mode in MODES


def read_content(image: Image.Image) -> np.ndarray:
    """The bytes of the file of an image that is opened, not loaded."""
    image.fp.seek(0)
    return np.frombuffer(image.fp.read(), np.uint8)


def decode_jpeg(
    content: np.ndarray, size: tuple[int, int], denominator: int = 1
) -> np.ndarray | None:
    """The pixels that Pillow would give, in half the time: it packs them into an array twice.

    Args:
        content: the bytes of a file that `is_plain_jpeg`.
        size: (H, W) as its header says.
        denominator: 1, 2, 4 or 8; pixel i of a reduced picture is the mean of `denominator`
            original ones from denominator * i on, the last one may reach beyond the border.

    Returns:
        (H, W, 3) uint8 RGB, sides divided and rounded up, not turned; None if it is damaged
        (Pillow can tell why).
    """
    try:
        pixels = cv2.imdecode(content, REDUCED[denominator])
    except cv2.error:
        return None
    expected = tuple(-(-side // denominator) for side in size)
    return pixels if pixels is not None and pixels.shape == (*expected, 3) else None


def reduction(size: tuple[int, int], at_least: tuple[int, int], *, exact: bool) -> int:
    """The largest denominator that leaves `at_least` pixels of both sides.

    Args:
        size, at_least: (H, W).
        exact: only denominators that divide both sides.
    """
    for denominator in REDUCED:
        leaves = all(s >= denominator * a for s, a in zip(size, at_least, strict=True))
        if leaves and not (exact and any(s % denominator for s in size)):
            return denominator
    return 1
