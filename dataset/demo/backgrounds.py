"""This module paints backgrounds and their light, and knows the words for them."""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.demo.drawing import Colour, Light, ellipse, fill, hsv, polygon, rectangle, tone

SKIES = {
    "sunny": ((70, 140, 225), (190, 222, 245)),
    "cloudy": ((140, 150, 165), (205, 210, 216)),
    "sunset": ((80, 70, 130), (250, 170, 105)),
}
CLOUDS = {"sunny": 0.5, "cloudy": 1.0, "sunset": 0.4}  # more is more
Rng = np.random.Generator
# setting -> how often things of a category turn up in it
COMMON = {
    "park": {"person": 5, "tree": 3, "kite": 3.5, "cat": 2, "ball": 2, "house": 2, "umbrella": 1},
    "street": {"person": 4, "car": 4.5, "house": 3, "umbrella": 1.5, "cat": 1, "tree": 1,
        "ball": 1},
    "beach": {"person": 4, "kite": 4, "umbrella": 2.5, "ball": 2, "fish": 1.5, "mug": 1,
        "cat": 0.5},
    "snow": {"person": 3, "house": 3.5, "tree": 3.5, "car": 1.5, "cat": 1, "ball": 1,
        "umbrella": 1},
    "room": {"person": 4, "cat": 3, "mug": 2, "ball": 2, "umbrella": 1, "kite": 0.5, "fish": 0.5},
    "table": {"mug": 5, "ball": 2, "cat": 2, "fish": 1.5, "car": 1, "house": 0.5, "umbrella": 0.5},
    "water": {"fish": 6, "ball": 1, "person": 1, "mug": 0.7, "car": 0.3},
}  # fmt: skip
ANYTHING = ("person", "car", "cat", "umbrella", "ball", "kite", "mug", "house", "tree", "fish")
COMMON |= {name: dict.fromkeys(ANYTHING, 1.0) for name in ("plain", "pattern")}
# setting -> how many of 28 pictures
SHARE = {
    "park": 5, "street": 4, "beach": 3.5, "snow": 3, "room": 4, "table": 2.5, "water": 2,
    "plain": 2, "pattern": 2,
}  # fmt: skip
# setting -> (adverbial, noun phrase)
WORDS = {
    "park": ("in a park", "a park"),
    "street": ("on a street", "a street"),
    "beach": ("on a beach", "a beach"),
    "snow": ("in the snow", "a snowy field"),
    "room": ("in a room", "a room"),
    "table": ("on a table", "a table"),
    "water": ("under water", "the sea"),
    "plain": ("on a plain background", "a plain background"),
    "pattern": ("on a patterned background", "a patterned background"),
}


def _texture(rng: Rng, h: int, w: int, cells: tuple[int, ...]) -> np.ndarray:
    """(h, w) noise summed over cell sizes in pixels; mean 0, spread about 1."""
    total = np.zeros((h, w), np.float32)
    for cell in cells:
        shape = max(h // cell, 1) + 1, max(w // cell, 1) + 1
        grid = rng.standard_normal(shape, dtype=np.float32)
        total += cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)
    return total / np.sqrt(len(cells))


def _streaks(rng: Rng, h: int, w: int, rows: int) -> np.ndarray:
    """(h, w) noise drawn out from left to right: ripples and the grain of wood."""
    grid = rng.standard_normal((max(rows, 1), 6), dtype=np.float32)
    return cv2.resize(grid, (w, h))


def _gradient(h: int, w: int, top: Colour, bottom: Colour) -> np.ndarray:
    t = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    rows = np.float32(top) * (1 - t) + np.float32(bottom) * t
    return np.broadcast_to(rows, (h, w, 3)).copy()


def _sky(rng: Rng, mood: str, h: int, w: int) -> np.ndarray:
    top, bottom = SKIES[mood]
    sky = _gradient(h, w, top, bottom)
    clouds = cv2.resize(_texture(rng, h, max(w // 3, 8), (32, 16, 8, 4)), (w, h))
    x = np.clip(clouds * 0.4 + CLOUDS[mood] - 0.55, 0, 1)
    weight = (0.85 * x * x * (3 - 2 * x))[..., None]  # soft edges
    return sky * (1 - weight) + np.float32(tone(bottom, 1.5)) * weight


def _ground(
    rng: Rng, h: int, w: int, colour: Colour, *, cells: tuple[int, ...], spread: float
) -> np.ndarray:
    """Ground that gets darker and rougher towards the viewer."""
    ground = _gradient(h, w, tone(colour, 1.15), tone(colour, 0.85))
    rough = np.linspace(0.3, 1, h, dtype=np.float32)[:, None]
    return ground * (1 + spread * rough * _texture(rng, h, w, cells))[..., None]


def _blend_below(image: np.ndarray, edge: np.ndarray, colour: Colour, weight: float = 1) -> None:
    """Colour everything below a line, in place; `edge` (W,) is its height, fractions count."""
    rows = np.arange(image.shape[0], dtype=np.float32)[:, None]
    cover = weight * np.clip(rows - edge[None] + 0.5, 0, 1).astype(np.float32)[..., None]
    image += cover * (np.float32(colour) - image)


def _paint_park(rng: Rng, image: np.ndarray, line: int) -> None:
    h, w = image.shape[:2]
    x = np.arange(w, dtype=np.float32) / w
    for k, shade in enumerate((0.75, 0.95)):
        wave = 1 + np.sin(x * rng.uniform(3, 9) + rng.uniform(0, 6))
        hill = tone(hsv(rng.uniform(105, 150), 0.35, 0.6), shade)
        _blend_below(image[:line], line - h * (0.09 - 0.05 * k) * wave, hill)
    grass = hsv(rng.uniform(82, 112), 0.55, 0.55)
    image[line:] = _ground(rng, h - line, w, grass, cells=(30, 6, 2), spread=0.09)


def _paint_street(rng: Rng, image: np.ndarray, line: int) -> None:
    h, w = image.shape[:2]
    below, unit = h - line, h / 288
    x = -10.0
    while x < w:  # a row of office blocks
        wide, tall = rng.uniform(0.08, 0.22) * w, rng.uniform(0.12, 0.75) * line
        wall = hsv(rng.uniform(190, 260), 0.12, rng.uniform(0.42, 0.72))
        fill(image, rectangle(x, line - tall, x + wide, line), wall)
        for wy in np.arange(line - tall + 6 * unit, line - 8 * unit, 9 * unit):
            for wx in np.arange(x + 4 * unit, x + wide - 6 * unit, 8 * unit):
                window = rectangle(wx, wy, wx + 3 * unit, wy + 4 * unit)
                fill(image, window, tone(wall, rng.choice([0.75, 1.25])))
        x += wide + rng.uniform(0, 6) * unit
    asphalt = hsv(220, 0.04, rng.uniform(0.34, 0.5))
    image[line:] = _ground(rng, below, w, asphalt, cells=(40, 3), spread=0.05)
    pavement = image[line : line + max(below // 7, 3)]
    pavement *= 0.4
    pavement += 105
    y, half = line + below * 0.62, below * 0.018
    for x in np.arange(-0.2, 1.2, 0.24) * w:
        right = x + 0.11 * w
        mark = polygon((x, y - half), (right, y - half), (right - 1, y + half), (x - 3, y + half))
        fill(image, mark, (214, 210, 196))


def _paint_beach(rng: Rng, image: np.ndarray, line: int) -> None:
    h, w = image.shape[:2]
    shore = line + max(int((h - line) * rng.uniform(0.12, 0.3)), 4)
    sea = _gradient(shore - line, w, (36, 108, 150), (70, 170, 190))
    ripple = _streaks(rng, shore - line, w, (shore - line) // 2)
    image[line:shore] = sea * (1 + 0.07 * ripple)[..., None]
    sand = (226, 200, 150)
    image[shore:] = _ground(rng, h - shore, w, sand, cells=(40, 3, 1), spread=0.04)
    foam = image[shore : shore + 3]
    foam *= 0.3
    foam += 168


def _paint_snow(rng: Rng, image: np.ndarray, line: int) -> None:
    h, w = image.shape[:2]
    snow = (214, 224, 236)
    image[line:] = _ground(rng, h - line, w, snow, cells=(60, 24), spread=0.035)
    for x, y in rng.uniform((0, 0), (w, h), (int(rng.integers(0, 90)), 2)):
        radius = rng.uniform(0.8, 2.0) * h / 288
        fill(image, ellipse(x, y, radius, radius)[::5], (244, 247, 250))


OUTDOORS = {
    "park": _paint_park,
    "street": _paint_street,
    "beach": _paint_beach,
    "snow": _paint_snow,
}


def paint_outdoors(rng: Rng, name: str, mood: str, *, h: int, w: int, line: int) -> np.ndarray:
    """Sky above `line` and one of `OUTDOORS` below it."""
    image = np.empty((h, w, 3), np.float32)
    image[:line] = _sky(rng, mood, line, w)
    OUTDOORS[name](rng, image, line)
    return image


def _paint_wall(rng: Rng, image: np.ndarray, wall: Colour, *, decorate: bool) -> None:
    """Wallpaper, and a window or a framed picture."""
    h, w = image.shape[:2]
    image[:] = _gradient(h, w, wall, tone(wall, 0.88))
    style = rng.integers(3)
    if style == 0:
        stripes = np.sign(np.sin(np.arange(w) * 2 * np.pi / rng.uniform(0.06, 0.14) / w))
        image *= (1 + 0.04 * stripes).astype(np.float32)[None, :, None]
    elif style == 1:
        image *= (1 + 0.03 * _texture(rng, h, w, (16, 3)))[..., None]
    kind, frame = rng.random(), tone(wall, rng.choice([0.5, 1.6]))
    wide = rng.uniform(0.16, 0.26) * w if kind < 0.45 else rng.uniform(0.09, 0.16) * w
    tall = wide * rng.uniform(0.7, 1.2)
    x0, y0, edge = rng.uniform(0.05, 0.7) * w, rng.uniform(0.12, 0.3) * h, 0.012 * w
    x1, y1 = x0 + wide, y0 + tall
    if kind < 0.45:
        fill(image, rectangle(x0 - edge, y0 - edge, x1 + edge, y1 + edge), frame)
        fill(image, rectangle(x0, y0, x1, y1), hsv(rng.uniform(180, 240), 0.25, 0.88))
        x, y, bar = (x0 + x1) / 2, (y0 + y1) / 2, 0.3 * edge
        fill(image, rectangle(x - bar, y0, x + bar, y1), frame)
        fill(image, rectangle(x0, y - bar, x1, y + bar), frame)
    elif kind < 0.75 and decorate:
        fill(image, rectangle(x0 - edge, y0 - edge, x1 + edge, y1 + edge), tone(wall, 0.35))
        fill(image, rectangle(x0, y0, x1, y1), hsv(rng.uniform(0, 360), 0.3, 0.8))
        land = hsv(rng.uniform(60, 150), 0.35, 0.6)
        fill(image, rectangle(x0, y0 + tall * 0.6, x1, y1), land)


def paint_indoors(rng: Rng, name: str, *, h: int, w: int, line: int) -> np.ndarray:
    """A wall above `line`; a floor (`room`) or a table's top (`table`) below it."""
    image = np.empty((h, w, 3), np.float32)
    below = h - line
    wall = hsv(rng.uniform(0, 360), rng.uniform(0.05, 0.3), rng.uniform(0.6, 0.92))
    _paint_wall(rng, image[:line], wall, decorate=name == "room")
    if name == "table" or rng.random() < 0.7:
        floor = hsv(rng.uniform(18, 35), rng.uniform(0.3, 0.55), rng.uniform(0.4, 0.75))
        image[line:] = _ground(rng, below, w, floor, cells=(30,), spread=0.04)
        image[line:] *= (1 + 0.05 * _streaks(rng, below, w, below))[..., None]
        if name == "room":  # boards
            for y in line + below * np.linspace(0.05, 1, 6) ** 1.4:
                fill(image, rectangle(0, y, w, y + 1), tone(floor, 0.6))
    else:
        floor = hsv(rng.uniform(0, 360), rng.uniform(0.1, 0.35), rng.uniform(0.4, 0.7))
        image[line:] = _ground(rng, below, w, floor, cells=(3, 1), spread=0.04)
    if name == "room" and rng.random() < 0.5:
        rug = hsv(rng.uniform(0, 360), rng.uniform(0.25, 0.6), rng.uniform(0.4, 0.75))
        cx, cy = rng.uniform(0.25, 0.75) * w, line + below * rng.uniform(0.5, 0.8)
        for share, shade in ((0.3, 0.8), (0.265, 1.25), (0.235, 1)):
            fill(image, ellipse(cx, cy, share * w, share * below), tone(rug, shade))
    edge = tone(floor, 0.5) if name == "table" else tone(wall, 1.5)
    fill(image, rectangle(0, line - 3, w, line + 1), edge)
    if name == "table":  # the wall is out of focus
        image[: line - 3] = cv2.GaussianBlur(image[: line - 3], (0, 0), 0.01 * w)
    return image


def paint_water(rng: Rng, h: int, w: int) -> np.ndarray:
    """Under water: rays of light, bubbles, sand at the bottom."""
    yy, xx = np.mgrid[:h, :w].astype(np.float32)
    hue = rng.uniform(180, 215)
    image = _gradient(h, w, hsv(hue, 0.45, 0.85), hsv(hue + 10, 0.75, 0.38))
    rays = np.sin((xx + yy * rng.uniform(-0.6, 0.6)) / (rng.uniform(0.03, 0.07) * w))
    rays *= np.exp(-yy / (0.5 * h))
    image *= (1 + 0.07 * rays + 0.03 * _texture(rng, h, w, (40,)))[..., None]
    wave = 0.014 * h * np.sin(xx[0] / (0.09 * w) + rng.uniform(0, 6))
    _blend_below(image, h * rng.uniform(0.82, 0.95) + wave, (170, 160, 120), 0.75)
    for x, y in rng.uniform((0, 0), (w, h), (int(rng.integers(4, 16)), 2)):
        r = rng.uniform(1.5, 4) * h / 288
        fill(image, ellipse(x, y, r, r), (205, 232, 240))
        fill(image, ellipse(x + 0.1 * r, y + 0.15 * r, 0.75 * r, 0.75 * r), (120, 180, 205))
    return image


def paint_plain(rng: Rng, h: int, w: int, *, patterned: bool) -> np.ndarray:
    """Two colours running into each other; blotches or stripes of them if `patterned`."""
    yy, xx = np.mgrid[:h, :w].astype(np.float32)
    first, second = (
        np.float32(hsv(rng.uniform(0, 360), rng.uniform(0, 0.45), rng.uniform(0.25, 0.95)))
        for _ in range(2)
    )
    turn = rng.uniform(0, 2 * np.pi)
    along = (xx / w - 0.5) * np.cos(turn) + (yy / h - 0.5) * np.sin(turn)
    if patterned and rng.random() < 0.5:
        weight = 0.5 + 0.3 * _texture(rng, h, w, (60, 24, 8))
    elif patterned:
        weight = 0.5 + np.clip(2 * np.sin(along * rng.uniform(20, 60)), -0.2, 0.2)
    elif rng.random() < 0.5:
        weight = 0.5 + 0.7 * along
    else:
        weight = 1.1 * np.hypot(xx / w - 0.5, yy / h - 0.5) + 0.05 * _texture(rng, h, w, (2, 1))
    weight = np.clip(weight, 0, 1).astype(np.float32)[..., None]
    return first * (1 - weight) + second * weight


@dataclass
class Setting:
    """A background before anything stands on it.

    Attributes:
        name: key of `WORDS`.
        mood: `sunny`, `cloudy` or `sunset`, or None indoors.
        image: (H, W, 3) float32 RGB, 0 to 255.
        horizon: height of the line where the ground begins, pixels; None where things float.
    """

    name: str
    mood: str | None
    image: np.ndarray
    horizon: float | None
    light: Light


def draw_setting(rng: np.random.Generator, h: int, w: int) -> Setting:
    """A background of (h, w) pixels with the light that falls on the things in it."""
    names = list(SHARE)
    share = np.array([SHARE[name] for name in names])
    name = names[rng.choice(len(names), p=share / share.sum())]
    mood, horizon = None, None
    if name in OUTDOORS:
        mood = ("sunny", "cloudy", "sunset")[rng.choice(3, p=[0.5, 0.35, 0.15])]
        horizon = rng.uniform(0.36, 0.6) * h
        image = paint_outdoors(rng, name, mood, h=h, w=w, line=int(horizon))
    elif name in ("room", "table"):
        horizon = rng.uniform(0.5, 0.68) * h if name == "room" else rng.uniform(0.3, 0.5) * h
        image = paint_indoors(rng, name, h=h, w=w, line=int(horizon))
    elif name == "water":
        image = paint_water(rng, h, w)
    else:
        image = paint_plain(rng, h, w, patterned=name == "pattern")
    turn = np.radians(rng.uniform(20, 160))
    hard = 0.25 if mood == "cloudy" else rng.uniform(0.3, 0.5)
    light = Light(float(np.cos(turn)), float(-np.sin(turn)), float(hard))
    return Setting(name, mood, np.clip(image, 0, 255), horizon, light)
