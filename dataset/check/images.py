"""Image files: there, readable, and of the size that the annotation states."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tqdm import tqdm

from dataset.check.checked import ImageEntry
from dataset.faults import Faults
from utils.errors import UserError
from utils.images import image_size, load_image


def check_images(
    entries: Iterable[ImageEntry], faults: Faults, *, decode: bool, threads: int
) -> int:
    """Counts what is wrong with images; returns how many were looked at.

    Args:
        decode: read all pixels; otherwise only the headers, which takes a tenth of the time but
            does not see that a file is cut off.
    """
    entries = list({entry.path: entry for entry in entries}.values())
    look: Callable = partial(_look, decode=decode)
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        found = tqdm(pool.map(look, entries), "images", len(entries), unit="image", disable=None)
        for entry, (kind, detail) in zip(entries, found, strict=True):
            if kind:
                faults.add(kind, entry.name, detail)
    return len(entries)


def _look(entry: ImageEntry, decode: bool) -> tuple[str, str]:
    """The kind of fault of one image and what it is; empty if there is none."""
    if not entry.path.is_file():
        return "image_missing", f"no file {entry.path}"
    try:
        size = image_size(entry.path)
        if decode:
            load_image(entry.path)
    except UserError as error:
        return "image_unreadable", str(error)
    if 0 not in entry.size and entry.size not in (size, image_size(entry.path, exif=False)):
        said, found = ("x".join(map(str, s)) for s in (entry.size, size))
        return "image_size", f"{entry.path} is {found} (HxW), its annotation says {said}"
    return "", ""
