"""Reading pictures of every kind into one form: (H, W, 3) uint8 RGB."""

import glob
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".mpo", ".gif", ".ppm")
ORIENTATION_TAG = 0x0112
TRANSPOSE = {  # EXIF orientation -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
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
    try:
        with Image.open(path) as image:
            return _rgb_array(image, exif)
    except FileNotFoundError:
        raise UserError(f"no image at {path}; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name one image file") from None
    except Exception as error:  # Pillow's decoders raise far more than OSError on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read image {path}: {reason}; replace or remove it") from error


def as_image(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """A path, a PIL image (EXIF orientation applied) or an RGB array -> (H, W, 3) uint8 RGB.

    Args:
        image: arrays must be (H, W, 3) uint8 in RGB order already; they are not copied.
    """
    if isinstance(image, (str, Path)):
        return load_image(image)
    if isinstance(image, Image.Image):
        return _rgb_array(image, exif=True)
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise ValueError(
            f"image must be a path, a PIL image or an RGB uint8 array (H, W, 3), got {kind}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"image must be an RGB uint8 array (H, W, 3), got {image.dtype} {image.shape}"
        )
    return np.ascontiguousarray(image)


def list_images(pattern: str | Path) -> list[Path]:
    """The images of a file, a folder (not its subfolders) or a glob, sorted by path."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    names = path.iterdir() if path.is_dir() else map(Path, glob.iglob(str(path), recursive=True))
    found = sorted(p for p in names if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    found = [p for p in found if p.is_file()]
    if not found:
        kinds = " ".join(SUFFIXES)
        raise UserError(f"no image at {pattern}; give a file, a folder or a glob of {kinds}")
    return found


def _rgb_array(image: Image.Image, exif: bool) -> np.ndarray:
    image.load()
    if exif:
        image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        gray, opaque = _gray_8bit(image)
        return np.repeat(np.where(opaque, gray, np.uint8(255))[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))  # a copy: the result is writable


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; an EXIF block nobody can read counts as none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            turn = TRANSPOSE.get(image.getexif().get(ORIENTATION_TAG))
        except Exception:  # malformed EXIF raises SyntaxError, struct.error, KeyError, …
            turn = None
    return image if turn is None else image.transpose(turn)


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
