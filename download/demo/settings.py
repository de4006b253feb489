"""Where a picture takes place: backgrounds, their light, and the words for them."""

from dataclasses import dataclass

import numpy as np

from download.demo.backgrounds import (
    OUTDOORS,
    paint_indoors,
    paint_outdoors,
    paint_plain,
    paint_water,
)
from download.demo.render import Light

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
