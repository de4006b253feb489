"""Drawing results into pictures: boxes, masks, poses, several pictures in one; and fonts for it."""

import hashlib
import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.cli import log
from utils.files import atomic_path

# Colours that are told apart at a glance, also in thin lines.
PALETTE = (
    (230, 25, 75), (60, 180, 75), (0, 110, 230), (255, 200, 0), (145, 30, 180), (0, 190, 200),
    (245, 120, 30), (240, 50, 230), (130, 190, 20), (250, 140, 160), (0, 128, 128), (150, 90, 30),
    (170, 130, 255), (128, 0, 30), (90, 220, 160), (20, 40, 150), (255, 90, 90), (150, 150, 0),
    (0, 160, 255), (200, 100, 60), (100, 60, 220), (0, 110, 50), (255, 150, 0), (190, 20, 130),
)  # fmt: skip
OPACITY = 0.45  # of masks
GAP = 6  # pixels between the pictures of a sheet
MATPLOTLIB = Path(importlib.util.find_spec("matplotlib").origin).parent  # it is not imported here
DEJAVU = MATPLOTLIB / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
TRIAL_SIZE = 16  # pixels
CLASS_COLORS = (  # these, lighter and darker
    *PALETTE,
    *(tuple(round(0.62 * v + 0.38 * 255) for v in color) for color in PALETTE),
    *(tuple(round(0.62 * v) for v in color) for color in PALETTE),
)
COLOR_SALT = 101356  # found by search: keeps the classes of VOC and the commonest of COCO apart


def class_colors(names: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """One colour per class, by its name alone: the same in every picture, run and process.

    Two classes may meet on one colour of `CLASS_COLORS`; those of VOC do not.
    """
    return {name: _class_color(name) for name in set(names)}


@cache
def _class_color(name: str) -> tuple[int, int, int]:
    digest = hashlib.blake2b(f"{COLOR_SALT}{name}".encode(), digest_size=4).digest()
    return CLASS_COLORS[int.from_bytes(digest, "little") % len(CLASS_COLORS)]


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """Draws boxes with name plates; everything stays inside the picture.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        boxes: (N, 4) xyxy pixels of `image`; parts outside are cut off.
        scores: (N,) in [0, 1], shown as percent.
        colors: one per box; default `class_colors` of the names.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    # colours and texts
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    by_name = class_colors(names)
    colors = [by_name[name] for name in names] if colors is None else list(colors)
    if not len(boxes) == len(names) == len(colors):
        raise ValueError(f"{len(boxes)} boxes, {len(names)} names and {len(colors)} colors differ")
    texts = list(names)
    if scores is not None:
        texts = [f"{name} {100 * s:.0f}%" for name, s in zip(names, scores, strict=True)]
    # boxes, inside the picture
    height, width = image.shape[:2]
    line = _line_width(image)
    picture = Image.fromarray(image).copy()
    draw = ImageDraw.Draw(picture)
    corners = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    corners = np.clip(np.nan_to_num(corners), 0, [width, height, width, height])
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    order = np.argsort(-area, kind="stable")  # small boxes stay visible on large ones
    for i in order:
        _rectangle(draw, corners[i], colors[i], line)
    # name plates
    taken: list[tuple] = []
    font_size = max(10, round(0.022 * (height * width) ** 0.5))
    for i in order[::-1]:  # small objects have the fewest places for their plate
        _plate(draw, texts[i], corners[i], colors[i], font_size, taken)
    return np.asarray(picture).copy()


def draw_masks(
    image: np.ndarray,
    masks: np.ndarray,
    names: Sequence[str],
    *,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """Tints objects and draws their contours; objects of one class differ in shade.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        masks: (N, H, W) bool.
        colors: one per mask; default shades of `class_colors` of the names.
    """
    masks = np.asarray(masks, bool).reshape(-1, *image.shape[:2])
    colors = _shades(names) if colors is None else colors
    result = image.astype(np.float32)
    order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    for i in order:
        result[masks[i]] = (1 - OPACITY) * result[masks[i]] + OPACITY * np.float32(colors[i])
    result = np.ascontiguousarray((result + 0.5).astype(np.uint8))
    for i in order:
        outlines, _ = cv2.findContours(
            masks[i].astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(result, outlines, -1, colors[i], max(2, _line_width(image) // 2))
    return result


def draw_keypoints(
    image: np.ndarray,
    keypoints: np.ndarray,
    skeleton: Sequence[tuple[int, int]] = (),
    *,
    colors: Sequence[tuple[int, int, int]] = PALETTE,
) -> np.ndarray:
    """Draws poses: one colour per object, visible points filled, occluded ones hollow.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        keypoints: (N, K, 3) x, y in pixels of `image`, visibility (0 none, 1 occluded, 2 visible).
        skeleton: pairs of point indices, from 0 (COCO files count from 1).
        colors: of the objects, used in turn.
    """
    keypoints = np.asarray(keypoints, np.float64)
    result, line = np.ascontiguousarray(image).copy(), _line_width(image)
    for n, points in enumerate(keypoints):
        color = colors[n % len(colors)]
        fine = [tuple(int(v) for v in np.clip(16 * p, -1e6, 1e6).round()) for p in points[:, :2]]
        shown = points[:, 2] > 0
        for a, b in skeleton:
            if shown[a] and shown[b]:
                cv2.line(result, fine[a], fine[b], color, line, cv2.LINE_AA, shift=4)
        for p, visibility in zip(fine, points[:, 2], strict=True):
            if visibility <= 0:
                continue
            inside = color if visibility >= 2 else (255, 255, 255)
            radius = 16 * (line + 1)
            cv2.circle(result, p, radius, inside, cv2.FILLED, cv2.LINE_AA, shift=4)
            rim = (255, 255, 255) if visibility >= 2 else color
            cv2.circle(result, p, radius, rim, max(1, line // 2), cv2.LINE_AA, shift=4)
    return result


def draw_caption(image: np.ndarray, text: str) -> np.ndarray:
    """Adds a white strip with `text` below the picture, in as many lines as it takes.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.

    Returns:
        (H + strip, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    font = load_font(max(11, round(0.05 * width)), find_font(text))
    lines, room = [""], width - font.size
    for word in text.split():
        pieces = [word] if font.getlength(word) <= room else list(word)  # Chinese has no spaces
        for i, piece in enumerate(pieces):
            longer = f"{lines[-1]} {piece}".strip() if i == 0 else lines[-1] + piece
            if lines[-1] and font.getlength(longer) > room:
                lines.append(piece)
            else:
                lines[-1] = longer
    step = round(1.25 * sum(font.getmetrics()))
    picture = Image.new("RGB", (width, height + step * len(lines) + font.size // 2), "white")
    picture.paste(Image.fromarray(image))
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        place = (font.size // 2, height + font.size // 4 + i * step)
        draw.text(place, line, fill=(0, 0, 0), font=font)
    return np.asarray(picture).copy()


def contact_sheet(
    images: Sequence[np.ndarray], columns: int = 4, *, max_side: int = 480
) -> np.ndarray:
    """Pictures of any sizes in one grid, row by row, each centred in its cell.

    Args:
        images: (H, W, 3) uint8 RGB each; larger ones are reduced to `max_side`, none enlarged.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if not len(images) or columns < 1:
        raise ValueError("a contact sheet needs at least one image and one column")
    pictures = [Image.fromarray(image) for image in images]
    for picture in pictures:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell_w, cell_h = (max(p.size[k] for p in pictures) + GAP for k in (0, 1))
    size = (columns * cell_w + GAP, rows * cell_h + GAP)
    sheet = Image.new("RGB", size, "white")
    for n, p in enumerate(pictures):
        x, y = GAP + n % columns * cell_w, GAP + n // columns * cell_h
        sheet.paste(p, (x + (cell_w - GAP - p.width) // 2, y + (cell_h - GAP - p.height) // 2))
    return np.asarray(sheet).copy()


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB; an existing file is replaced only by a complete one."""
    with atomic_path(path) as temporary:
        options = {"quality": 95} if temporary.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
        Image.fromarray(image).save(temporary, **options)


def _line_width(image: np.ndarray) -> int:
    """Three pixels in a picture of 640 x 480, two in small ones."""
    return max(2, round(0.0048 * (image.shape[0] * image.shape[1]) ** 0.5))


def _rectangle(draw: ImageDraw.ImageDraw, box: np.ndarray, color: tuple, line: int) -> None:
    """PIL names pixels: continuous x2 ends on pixel x2 - 1."""
    x1, y1, x2, y2 = np.floor(box + 0.5).astype(int).tolist()
    x1, y1 = min(x1, draw.im.size[0] - 1), min(y1, draw.im.size[1] - 1)
    x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)
    draw.rectangle((x1, y1, x2, y2), outline=color, width=line)


def _plate(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: np.ndarray,
    color: tuple[int, int, int],
    font_size: int,
    taken: list[tuple],
) -> None:
    """Writes `text` where it covers the fewest other plates: above the box, inside it, below it."""
    text = " ".join(text.split())  # one line
    font = load_font(font_size, find_font(text))
    if font.getlength(text) > 1.5 * (box[2] - box[0]):  # small objects get small plates
        font = load_font(max(9, round(0.8 * font_size)), find_font(text))
    pad = max(1, font.size // 5)
    w, h = int(font.getlength(text)) + 2 * pad, sum(font.getmetrics()) + pad
    limit = np.maximum(np.subtract(draw.im.size, (w, h)), 0)
    x1, y1, x2, y2 = box
    places = [(x1, y1), (x1, y1 - h), (x2 - w, y1 - h), (x1, y2 - h), (x1, y2), (x2 - w, y1)]
    places = [places[1], places[0], *places[2:]] if y1 >= h else places
    rects = []
    for place in places:
        x, y = np.clip(np.round(place), 0, limit).astype(int).tolist()
        rects.append((x, y, x + w, y + h))
    rect = min(rects, key=lambda r: sum(_overlap(r, other) for other in taken))
    taken.append(rect)
    draw.rectangle((rect[0], rect[1], rect[2] - 1, rect[3] - 1), fill=color)
    draw.text((rect[0] + pad, rect[1] + pad // 2), text, fill=ink_on(color), font=font)


def ink_on(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has the larger contrast (at least 4.5, by the rule of WCAG 2)."""
    shares = np.array(color) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _overlap(a: tuple, b: tuple) -> int:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)


def _shades(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """`class_colors`, lighter and darker in turn for further objects of a class."""
    by_name, seen, colors = class_colors(names), {}, []
    for name in names:
        n = seen[name] = seen.get(name, -1) + 1
        mix, strength = (255, 0)[n % 2], 0.18 * ((n + 1) // 2 % 4)
        shade = (1 - strength) * np.array(by_name[name]) + strength * mix
        colors.append(tuple(int(v) for v in shade.round()))
    return colors


# ---- fonts -----------------------------------------------------------------------------------


@cache
def load_font(size: int, path: Path = DEJAVU) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def find_font(text: str) -> Path:
    """The file of a font that has the letters of a text, DejaVu Sans if that has them.

    If no font has all of them, it is the one that has the most, and a line says so once.
    """
    if text.isascii():
        return DEJAVU
    try:
        return _find_font(frozenset(text))
    except (ImportError, ValueError):  # matplotlib refuses the backend of the caller's MPLBACKEND
        return DEJAVU


@cache
def _find_font(letters: frozenset[str]) -> Path:
    letters = frozenset(c for c in letters if c.isprintable() and not c.isspace())
    missing = letters - letters_of(DEJAVU)
    if not missing:
        return DEJAVU
    best, most = DEJAVU, len(letters) - len(missing)
    for path in system_fonts():
        count = len(letters & letters_of(path))
        if count > most:
            best, most = path, count
        if most == len(letters):
            return best
    _say_once()
    return best


@cache
def _say_once() -> None:
    log(
        "notice: no font of this system has all letters of the names or captions; pictures show "
        "empty squares instead; install a font that has them, such as Noto Sans CJK"
    )


@cache
def letters_of(path: Path) -> frozenset[str]:
    """The letters that a font can draw; none if it cannot be used."""
    from matplotlib.ft2font import FT2Font  # only for letters beyond ASCII

    try:
        load_font(TRIAL_SIZE, path)  # fonts of fixed sizes cannot be used, nor damaged ones
        return frozenset(map(chr, FT2Font(str(path)).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def system_fonts() -> list[Path]:
    """The fonts of the system, upright ones without serifs first."""
    from matplotlib.font_manager import findSystemFonts

    def order(path: Path) -> tuple:
        name = path.name.lower()
        styled = any(word in name for word in ("bold", "italic", "oblique", "light", "black"))
        return styled, "sans" not in name, name

    return sorted(map(Path, findSystemFonts()), key=order)


@contextmanager
def figure_fonts(texts: Iterable[str]) -> Iterator[None]:
    """Within it, figures of matplotlib use fonts that have the letters of these texts."""
    from matplotlib import rc_context
    from matplotlib.font_manager import FontProperties, fontManager

    families = ["DejaVu Sans"]
    for path in {find_font(text) for text in texts} - {DEJAVU}:
        fontManager.addfont(str(path))
        families.append(FontProperties(fname=str(path)).get_name())
    with rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # `find_font` has said it
        yield
