"""Reads picture files of every kind into one form: (H, W, 3) uint8 RGB.

A JPEG file that is larger than needed can be decoded at a half, a quarter or an eighth of its size.
"""

import glob
import io
import os
import re
import sys
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError, features

from utils.errors import UserError, one_line
from utils.files import foreign, nearest_path, shown

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".mpo", ".gif")
SUFFIXES += (".ppm", ".avif") if features.check("avif") else (".ppm",)
MAX_PIXELS = 178_956_970  # of a picture; Pillow, too, refuses what is larger
MAX_SIDE = 65_535  # pixels; a JPEG cannot be longer
ADDRESS = re.compile(r"(?:https?|ftp|s3|gs|file):/", re.IGNORECASE)  # `Path` leaves one slash
# Said from half that size on, about pictures that are read; `_opened` refuses the larger ones.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
ORIENTATION_TAG = 0x0112
TURNS = {  # EXIF orientation -> what turns the stored pixels upright
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
QUARTER_TURNS = (5, 6, 7, 8)  # width and height change places
INVERSE = {6: 8, 8: 6}  # orientation -> that which turns back; the others undo themselves
FORMATS = ("JPEG", "MPO")
MODES = ("RGB", "L")  # CMYK is for Pillow
READ = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
REDUCED = {  # denominator -> flags; the flags of OpenCV include those of blue first
    8: cv2.IMREAD_REDUCED_COLOR_8 & ~cv2.IMREAD_COLOR | READ,
    4: cv2.IMREAD_REDUCED_COLOR_4 & ~cv2.IMREAD_COLOR | READ,
    2: cv2.IMREAD_REDUCED_COLOR_2 & ~cv2.IMREAD_COLOR | READ,
    1: READ,
}


def load_image(path: str | Path, *, exif: bool = True) -> np.ndarray:
    """Reads a picture file; transparent parts become white, of several frames the first counts.

    Args:
        exif: turn the picture upright as its EXIF orientation says. Annotation files do not agree
            on this point; what decides is whether the width and height they state are those of
            the stored or of the upright picture (COCO's own images carry no orientation).

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return read_image(path, exif=exif)[0]


def read_image(
    path: str | Path, *, exif: bool = True, at_least: tuple[int, int] | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads a picture file, a JPEG much larger than `at_least` at a fraction of its size.

    Args:
        exif: see `load_image`.
        at_least: (H, W) that the caller needs; None = all pixels.

    Returns:
        pixels (h, w, 3) uint8 RGB, and the size (H, W) of the picture in the file. At a fraction
        1 / d of the size, pixel i is the mean of d original pixels from d * i on, and h and w are
        H / d and W / d, rounded up.
    """
    with _opened(path) as image:
        orientation = _needed_turn(image, exif) if image.format == "TIFF" else None
        if not is_plain_jpeg(image):
            image.load()  # before EXIF is read: that would hide the damage of a PNG
        if orientation is None:
            orientation = _needed_turn(image, exif)
        stored = image.height, image.width
        size = stored[::-1] if orientation in QUARTER_TURNS else stored
        pixels = None
        if is_plain_jpeg(image):
            # in a turned picture incomplete blocks could come first
            denominator = reduction(size, at_least, exact=orientation != 1) if at_least else 1
            pixels = decode_jpeg(read_content(image), stored, denominator)
        if pixels is None:
            pixels = _rgb_array(image)
        return _turned(pixels, orientation), size


def image_size(path: str | Path, *, exif: bool = True) -> tuple[int, int]:
    """(H, W) of a picture file from its header; the pixels are not decoded.

    Args:
        exif: of the upright picture, see `load_image`.
    """
    try:
        with Image.open(path) as image:  # does not read the whole file
            return _size(image, exif)
    except Exception:  # whatever it is, `_opened` can tell
        with _opened(path) as image:
            return _size(image, exif)


def _size(image: Image.Image, exif: bool) -> tuple[int, int]:
    """(H, W) of an opened image."""
    _check_size(image)
    turned = _needed_turn(image, exif) in QUARTER_TURNS
    return image.size if turned else image.size[::-1]


def _check_size(image: Image.Image) -> None:
    """Raises a ValueError for a picture that claims to be too large."""
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ValueError(
            f"it claims to be {height}x{width} (HxW), more than {MAX_PIXELS} pixels or "
            f"{MAX_SIDE} on a side"
        )


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The file as Pillow opens it; whatever goes wrong with it is an error of the user.

    Every picture file is opened here, whatever function was called with its path.
    """
    refuse_address(path)
    try:
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            _check_size(image)
            yield image
    except FileNotFoundError:
        raise UserError(f"no image at {path}; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name one image file") from None
    except UnidentifiedImageError as error:
        if problem := "is empty; replace or remove it" if not content else foreign(content):
            raise UserError(f"cannot read image {path}: it {problem}") from error
        reason = "it is not an image, or its format is unknown to Pillow"
        raise UserError(f"cannot read image {path}: {reason}; replace or remove it") from error
    except Exception as error:  # Pillow's decoders raise far more than OSError on damaged files
        raise UserError(
            f"cannot read image {path}: {one_line(error)}; replace or remove it"
        ) from error


def refuse_address(path: str | Path) -> None:
    """Raises a `UserError` for an address of the web, which is no path of a file."""
    if ADDRESS.match(str(path)) and not Path(path).exists():
        raise UserError(f"{path} is an address, images are read from files; download it first")


def as_image(image: object) -> np.ndarray:
    """A picture of any kind -> (H, W, 3) uint8 RGB.

    Args:
        image: a path; a PIL image (EXIF orientation applied); an array (H, W, 3) uint8 in RGB
            order, which is not copied; a tensor of torch (3, H, W) in RGB order, uint8 or float
            from 0 to 1. OpenCV reads BGR: give `image[..., ::-1]`.

    Raises:
        UserError: a path that holds no image.
        ValueError: something else.
    """
    if isinstance(image, (str, Path)):
        return load_image(image)
    if isinstance(image, Image.Image):
        return _turned(_rgb_array(image), _orientation(image))
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    if torch and isinstance(image, torch.Tensor):
        return _tensor_array(image.detach().cpu())
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        kinds = "a path, a PIL image, an RGB uint8 array (H, W, 3) or a tensor (3, H, W)"
        raise ValueError(f"image must be {kinds}, got {kind}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"image must be an RGB uint8 array (H, W, 3), got {image.dtype} {image.shape}"
        )
    return np.ascontiguousarray(image)


def _tensor_array(image) -> np.ndarray:
    """A tensor of torch as an array, see `as_image`."""
    kind = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise ValueError(
            f"image must be a tensor (3, H, W) or an RGB uint8 array (H, W, 3), got {kind}; "
            "give a list of images for several"
        )
    real = image.is_floating_point()
    pixels = image.float().numpy() * 255 if real else image.numpy()
    if pixels.dtype != np.uint8 and not (real and pixels.min() >= 0 and pixels.max() <= 255):
        low, high = image.min().item(), image.max().item()
        raise ValueError(
            "image must be a tensor of uint8, or of floats from 0 to 1 that are not normalised, "
            f"got {kind} from {low:.3g} to {high:.3g}"
        )
    rounded = pixels if pixels.dtype == np.uint8 else (pixels + 0.5).astype(np.uint8)
    return np.ascontiguousarray(rounded.transpose(1, 2, 0))


def list_images(pattern: str | Path, *, recursive: bool = False) -> list[Path]:
    """The images of a file, a folder or a glob, sorted by path.

    Args:
        recursive: those in the subfolders of a folder, too.
    """
    refuse_address(pattern)
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = list_files(path) if recursive else os.listdir(path)
        names = [path / name for name in inside if "/." not in f"/{name}"]  # none that is hidden
    else:
        names = map(Path, glob.iglob(str(path), recursive=True))
    found = sorted(p for p in names if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    found = [p for p in found if p.is_file()]
    if not found:
        near = None if path.is_dir() else nearest_path(path)
        advice = f"give a file, a folder or a glob of {' '.join(SUFFIXES)}"
        if path.is_dir() and not recursive and any(p.is_dir() for p in path.iterdir()):
            advice = "its subfolders are read with --recursive"
        raise UserError(f"no image at {pattern}; {f'did you mean {near}?' if near else advice}")
    return found


def _rgb_array(image: Image.Image) -> np.ndarray:
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        gray, opaque = _gray_8bit(image)
        return np.repeat(np.where(opaque, gray, np.uint8(255))[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))  # a copy: the result is writable


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; a block nobody can read counts as none."""
    if is_plain_jpeg(image) and not image.info.keys() & {"exif", "xmp"}:
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return image.getexif().get(ORIENTATION_TAG, 1)
        except Exception:  # malformed EXIF raises SyntaxError, struct.error, KeyError, …
            return 1


def _needed_turn(image: Image.Image, exif: bool) -> int:
    """The orientation by which pixels must be turned as Pillow loads them.

    Pillow turns a TIFF upright itself, and then forgets the orientation: ask before it is loaded.

    Args:
        exif: make it upright; False = as it is stored.
    """
    if image.format == "TIFF":
        orientation = 1 if exif else _orientation(image)
        return INVERSE.get(orientation, orientation)
    return _orientation(image) if exif else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return TURNS[orientation](pixels) if orientation in TURNS else pixels


def _gray_8bit(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of one deep channel -> (H, W) uint8, (H, W) bool opaque.

    16 bits have a fixed white, 65535, so they are divided (a converter that clips turns nearly
    every such picture white); 32-bit integers and floats have none, their own range is stretched.
    """
    values = np.asarray(image).astype(np.float64)
    opaque = values != image.info.get("transparency", np.nan)
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = 0.0, 65535.0
    if image.mode == "F" or values.min() < 0 or values.max() > high:
        low, high = values.min(), values.max()
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return (scaled + 0.5).astype(np.uint8), opaque


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
    """The largest denominator that leaves more than `at_least` pixels of both sides.

    Args:
        size, at_least: (H, W).
        exact: only denominators that divide both sides.
    """
    for denominator in REDUCED:
        leaves = all(s > denominator * a for s, a in zip(size, at_least, strict=True))
        if leaves and not (exact and any(s % denominator for s in size)):
            return denominator
    return 1


# ---- names of image files ----------------------------------------------------------------------
#
# Another system may have written them. A name means the file of that very name. If there is none,
# it means the file whose name differs in the Unicode normal form alone (a Mac writes é as two
# characters). If there is none, either, it may differ in letter case, separators and %-codes, and
# at last in the folders in front.


def normal_form(name: str) -> str:
    """The name as most systems write it: accents are part of their letter."""
    return unicodedata.normalize("NFC", name)


def plain_form(name: str) -> str:
    """The name without letter case, outer white space and %-codes, and with slashes."""
    parts = normal_form(unquote(name)).strip().replace("\\", "/").casefold().split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def last_part(name: str) -> str:
    """The plain name without folders."""
    return plain_form(name).rpartition("/")[2]


def stem(name: str) -> str:
    """The plain name without folders and suffix."""
    return last_part(name).rpartition(".")[0] or last_part(name)


FORMS: dict[Callable[[str], str], str] = {  # the closest first -> what differs, for people
    normal_form: "with letters in another Unicode normal form",
    plain_form: "in another spelling (letter case, separators or %-codes)",
    last_part: "in another folder",
    stem: "with another suffix",
}


class FileNames:
    """The names of the files of a folder, to find those that annotations mean.

    Args:
        names: such as those of `list_files`.
    """

    def __init__(self, names: Iterable[str]):
        self.names = frozenset(names)
        self._by_form: dict[Callable, dict[str, list[str]]] = {}  # made when they are needed

    def resolve(self, names: Sequence[str]) -> list[str | None]:
        """The file that each name means; None where there is none, or where it is not clear.

        Only the exact name may mean a file that another name means, too.

        Args:
            names: all that an annotation file has, so that no two mean one file by chance.
        """
        found = [name if name in self.names else None for name in names]
        for form in (normal_form, plain_form, last_part):
            missing = [i for i, file in enumerate(found) if file is None]
            if not missing:
                break
            files, wanted = self._files_of_form(form), Counter(map(form, set(names)))
            for i in missing:
                key = form(names[i])
                if len(files.get(key, ())) == 1 and wanted[key] == 1:
                    found[i] = files[key][0]
        return found

    def hint(self, name: str) -> str:
        """What to say about a name that `resolve` did not find: a file that is near it, or ""."""
        for form, difference in FORMS.items():
            near = [file for file in self._files_of_form(form).get(form(name), ()) if file != name]
            if near:
                alike = normal_form(near[0]) == normal_form(name)
                return f"there is {ascii(near[0]) if alike else shown(near[0])} {difference}"
        odd = next((file for file in self.names if not is_unicode(file)), None)
        return "" if odd is None else f"names such as {shown(odd)} are not UTF-8, rename them"

    def _files_of_form(self, form: Callable[[str], str]) -> dict[str, list[str]]:
        if form not in self._by_form:
            files = self._by_form[form] = defaultdict(list)
            for name in sorted(self.names):
                files[form(name)].append(name)
        return self._by_form[form]


def list_files(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, with slashes: one look per folder."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        above, here = (os.path.realpath(p) + os.sep for p in (os.path.dirname(place), place))
        if os.path.islink(place) and above.startswith(here):  # it leads back
            folders.clear()
            continue
        parts = os.path.relpath(place, folder).split(os.sep)
        prefix = "" if parts == ["."] else "/".join(parts) + "/"
        found += [prefix + file for file in files]
    return found


def is_unicode(name: str) -> bool:
    """Whether a name can be written in any Unicode encoding: Python keeps other bytes of names."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
