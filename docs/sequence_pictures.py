"""A sheet of paper for docs/draw_sequences.py: pictures, lines of text, tokens as chips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

FINE = 3  # drawn so many times larger, then reduced: smooth edges
COLORS = 220  # of the palette of the file, beside those of the chips
INK, GREY, PAPER = (30, 34, 40), (120, 126, 135), (255, 255, 255)
KINDS: dict[str, Color] = {  # colour of a chip by what its token is
    "prompt": (92, 70, 156),
    "coordinate": (38, 110, 190),
    "class": (21, 132, 92),
    "special": (196, 92, 24),
    "text": (150, 48, 110),
}
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@dataclass(frozen=True)
class Chip:
    """A token: its id large, what it means below, the loss weight as depth of the colour."""

    token: int
    meaning: str
    kind: str  # of `KINDS`
    weight: float = 1.0
    reads: int | None = None  # the id the decoder is shown in its place; None = the token itself


class Sheet:
    """White paper; all measures are pixels of the file, x to the right.

    Args:
        size: (H, W).
    """

    def __init__(self, size: tuple[int, int]):
        self.height, self.width = size
        self._image = Image.new("RGB", (FINE * self.width, FINE * self.height), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        bold: bool = False,
        color: Color = INK,
        anchor: str = "lm",
    ) -> float:
        """Writes a line at (x, y), by default its left end at mid height; returns its width."""
        font = _font(size, bold)
        self._draw.text((FINE * x, FINE * y), text, font=font, fill=color, anchor=anchor)
        return font.getlength(text) / FINE

    def chip(self, x: float, y: float, width: float, chip: Chip, *, height: float = 40) -> None:
        """A token with its upper left corner at (x, y)."""
        middle, color = x + width / 2, KINDS[chip.kind]
        self.swatch(x, y, width, height, chip.kind, chip.weight)
        ink = PAPER if chip.weight > 0.6 else color
        self.text(middle, y + height * 0.34, str(chip.token), bold=True, color=ink, anchor="mm")
        meaning = chip.meaning
        size = min(10.5, 10.5 * (width - 6) * FINE / max(_font(10.5).getlength(meaning), 1))
        self.text(middle, y + height * 0.74, meaning, size=size, color=ink, anchor="mm")
        if chip.reads is not None:
            self.flag(x + width, y)

    def swatch(
        self, x: float, y: float, width: float, height: float, kind: str, weight: float
    ) -> None:
        """The ground of a chip."""
        corners = [FINE * v for v in (x, y, x + width, y + height)]
        color = KINDS[kind]
        fill = _shade(color, weight)
        self._draw.rounded_rectangle(corners, FINE * 6, fill=fill, outline=color, width=FINE)

    def flag(self, x: float, y: float) -> None:
        """A small corner, its tip at (x, y)."""
        corners = [(x - 12, y), (x, y), (x, y + 12)]
        self._draw.polygon([(FINE * u, FINE * v) for u, v in corners], fill=INK)

    def badge(self, x: float, y: float, text: str, color: Color) -> None:
        """A disc with a number."""
        self.dot(x, y, 7.5, color, PAPER)
        self.text(x, y, text, size=9, bold=True, color=PAPER, anchor="mm")

    def title(self, title: str, text: str) -> None:
        """The head of the sheet."""
        width = self.text(24, 32, title, size=20, bold=True)
        self.text(24 + width + 14, 34, text, size=14, color=GREY)

    def legend(self, kinds: Sequence[str], *, flags: bool = True) -> Sheet:
        """What colours and their depth mean, at the foot of the sheet."""
        x, y = 24, self.height - 22
        for kind in kinds:
            self.dot(x + 6, y, 6, KINDS[kind])
            x += 34 + self.text(x + 17, y, kind, size=12, color=GREY)
        x += 24
        for weight in (1, 0.1, 0):
            self.swatch(x, y - 10, 24, 20, kinds[1], weight)
            x += 48 + self.text(x + 30, y, f"loss weight {weight}", size=12, color=GREY)
        if flags:
            self.flag(x + 16, y - 7)
            self.text(x + 24, y, "the decoder is shown another token here", size=12, color=GREY)
        return self

    def picture(
        self,
        x: float,
        y: float,
        image: np.ndarray,
        width: float,
    ) -> Picture:
        """Pastes an image (H, W, 3) uint8 RGB at a width; draw on what it returns."""
        scale = width / image.shape[1]
        size = (round(FINE * width), round(FINE * scale * image.shape[0]))
        pixels = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
        self._image.paste(pixels, (round(FINE * x), round(FINE * y)))
        return Picture(self, x, y, scale)

    def lines(
        self, points: Sequence, color: Color, width: float = 2, *, closed=False, dashed=False
    ) -> None:
        """A polyline through (x, y) points."""
        points = [(FINE * float(x), FINE * float(y)) for x, y in points]
        pairs = list(zip(points, points[1:] + points[:1] if closed else points[1:], strict=False))
        for (ax, ay), (bx, by) in pairs:
            length = max(np.hypot(bx - ax, by - ay), 1)
            step = FINE * 12 if dashed else length
            for start in np.arange(0, length, step):
                end = min(start + (step / 2 if dashed else step), length)
                ends = [start / length, end / length]
                ends = [(ax + (bx - ax) * t, ay + (by - ay) * t) for t in ends]
                self._draw.line(ends, fill=color, width=round(FINE * width))
            if not dashed:
                self.dot(bx / FINE, by / FINE, width / 2, color)

    def dot(self, x: float, y: float, radius: float, color: Color, ring: Color | None = None):
        """A disc around (x, y)."""
        corners = [FINE * v for v in (x - radius, y - radius, x + radius, y + radius)]
        self._draw.ellipse(corners, fill=color, outline=ring, width=round(1.3 * FINE))

    def plate(self, x: float, y: float, text: str, color: Color) -> None:
        """White text on a coloured ground, the lower left corner at (x, y)."""
        font = _font(12, bold=True)
        width = font.getlength(text) / FINE + 10
        x = min(x, self.width - width)
        corners = [FINE * v for v in (x, y - 18, x + width, y)]
        self._draw.rounded_rectangle(corners, FINE * 3, fill=color)
        self.text(x + 5, y - 9, text, size=12, bold=True, color=PAPER)

    def save(self, path: Path) -> None:
        """As a small PNG with a palette."""
        image = self._image.resize((self.width, self.height), Image.Resampling.LANCZOS)
        shades = [_shade(color, weight) for color in KINDS.values() for weight in (0.1, 1)]
        fixed = [value for color in (INK, GREY, PAPER, *shades) for value in color]
        own = image.quantize(COLORS, kmeans=1).getpalette()[: 3 * COLORS]
        palette = Image.new("P", (1, 1))
        palette.putpalette(own + fixed)
        image = image.quantize(palette=palette, dither=Image.Dither.NONE)
        colors = image.getpalette()
        ground = 3 * image.getpixel((0, 0))
        colors[ground : ground + 3] = PAPER  # the quantisation is a little off
        image.putpalette(colors)
        image.save(path, optimize=True)


@dataclass(frozen=True)
class Picture:
    """A picture on a sheet; points are pixels of the picture."""

    sheet: Sheet
    x: float
    y: float
    scale: float

    def place(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) pixels of the picture -> of the sheet."""
        return np.asarray(points, float) * self.scale + [self.x, self.y]

    def box(self, box: np.ndarray, color: Color, name: str = "", *, dashed: bool = False) -> None:
        """An xyxy box with a name plate."""
        (x0, y0), (x1, y1) = self.place(np.reshape(box, (2, 2)))
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        self.sheet.lines(corners, color, 1.6 if dashed else 2.4, closed=True, dashed=dashed)
        if name:
            self.sheet.plate(x0 - 1, max(y0, self.y + 18), name, color)

    def outline(self, points: np.ndarray, color: Color) -> None:
        """A closed polygon."""
        self.sheet.lines(self.place(points), color, 2, closed=True)

    def point(self, point: np.ndarray, color: Color, text: str) -> None:
        """A numbered disc."""
        self.sheet.badge(*self.place(point), text, color)


def _font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(FONTS / name, FINE * size)


def _shade(color: Color, weight: float) -> Color:
    """The depth of a colour for a loss weight: paper at 0."""
    share = 0.2 + 0.8 * weight if weight else 0.0
    return tuple(round(share * a + (1 - share) * b) for a, b in zip(color, PAPER, strict=True))
