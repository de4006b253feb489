"""Cats and fish."""

import numpy as np

from download.demo.shapes import (
    BRIGHT,
    Colour,
    Part,
    band,
    draw_colour,
    ellipse,
    limb,
    polygon,
    smooth,
    tone,
)
from download.demo.things import DARK, Thing, pick_colour


def make_fish(rng: np.random.Generator) -> Thing:
    name, colour = pick_colour(rng, (*BRIGHT, "gray"))
    fat = rng.uniform(0.36, 0.52)
    fin = tone(colour, 0.75)
    parts = [
        Part(smooth((-0.6, 0), (-1.05, -0.42), (-0.93, 0), (-1.05, 0.42)), fin),
        Part(smooth((-0.25, -fat * 0.8), (0.0, -fat - 0.25), (0.3, -fat * 0.75)), fin),
        Part(smooth((-0.1, fat * 0.8), (-0.1, fat + 0.2), (0.25, fat * 0.75)), fin),
        Part(smooth((0.95, 0), (0.5, -fat * 0.9), (0, -fat), (-0.45, -fat * 0.55), (-0.75, 0),
                    (-0.45, fat * 0.55), (0, fat), (0.5, fat * 0.9)), colour),
    ]  # fmt: skip
    if rng.random() < 0.6:
        stripe = tone(colour, 1.6) if name != "yellow" else draw_colour(rng, "black")
        for x in (-0.3, 0.05, 0.38)[: rng.integers(1, 4)]:
            bow = smooth((x - 0.05, -0.7), (x + 0.06, 0), (x - 0.05, 0.7), closed=False)
            parts.append(Part(band(bow, 0.12), stripe, inside=True))
    parts += [
        Part(smooth((0.15, 0.05), (-0.1, 0.16), (0.1, 0.22)), fin),
        Part(ellipse(0.62, -0.1, 0.11, 0.11), (250.0, 250.0, 250.0)),
        Part(ellipse(0.64, -0.1, 0.06, 0.06), DARK),
        Part(band(smooth((0.9, 0.06), (0.8, 0.1), (0.72, 0.09), closed=False), 0.03), DARK),
    ]
    return Thing("fish", name, parts, facing="right")


def _cat_head(x: float, y: float, size: float, colour: Colour, name: str) -> list[Part]:
    """Face with two pointed ears, looking at the viewer."""
    eye = (240.0, 205.0, 60.0) if name == "black" else (50.0, 90.0, 45.0)
    parts = []
    for side in (-1, 1):
        ear = polygon((side * 0.95, -0.35), (side * 0.85, -1.35), (side * 0.2, -0.85))
        parts.append(Part(ear * size + (x, y), colour))
        parts.append(Part((ear * 0.6 + (side * 0.25, -0.4)) * size + (x, y), (226.0, 150.0, 150.0)))
    parts.append(Part(ellipse(x, y, size, size * 0.88), tone(colour, 1.06)))
    for side in (-1, 1):
        cx = x + side * 0.4 * size
        parts.append(Part(ellipse(cx, y - 0.12 * size, 0.17 * size, 0.2 * size), eye))
        parts.append(Part(ellipse(cx, y - 0.12 * size, 0.07 * size, 0.18 * size), (15.0,) * 3))
        whisker = [(side * 0.35, 0.36), (side * 0.8, 0.3), (side * 1.2, 0.25)]
        line = band(np.asarray(whisker) * size + (x, y), 0.05 * size)
        parts.append(
            Part(line, tone(colour, 0.4) if name != "black" else (200.0,) * 3, inside=True)
        )
    nose = polygon((-0.14, 0.2), (0.14, 0.2), (0, 0.38)) * size + (x, y)
    parts.append(Part(nose, (214.0, 110.0, 120.0)))
    return parts


def make_cat(rng: np.random.Generator) -> Thing:
    name, colour = pick_colour(rng, ("orange", "black", "white", "gray", "brown"))
    dark, light = tone(colour, 0.8), tone(colour, 1.25)
    if rng.random() < 0.5:  # sitting
        tail = smooth((-0.4, -0.1), (-0.75, -0.12), (-0.85, -0.45), (-0.7, -0.62), closed=False)
        torso = smooth((0.05, -1.05), (0.36, -0.75), (0.4, -0.1), (0.3, 0), (-0.45, 0),
                       (-0.58, -0.25), (-0.38, -0.75))  # fmt: skip
        parts = [Part(band(tail, 0.16), dark), Part(torso, colour)]
        parts.append(Part(ellipse(0.16, -0.55, 0.18, 0.3), light))
        for x in (0.08, 0.3):
            parts.append(Part(limb((x, -0.5), (x, -0.06), 0.1, 0.09), tone(colour, 0.93)))
        parts += _cat_head(0.1, -1.15, 0.36, colour, name)
    else:
        lift = rng.uniform(-0.25, 0.1)
        tail = smooth(
            (-0.7, -0.7), (-1.0, -0.85), (-1.1, -1.2 + lift), (-0.95, -1.45 + lift), closed=False
        )
        parts = [Part(band(tail, 0.15), dark)]
        step = rng.uniform(-0.12, 0.12)
        for x, shade in (
            (-0.5 + step, 0.75),
            (0.4 - step, 0.75),
            (-0.62 - step, 0.95),
            (0.52 + step, 0.95),
        ):
            hip = (np.clip(x, -0.55, 0.45), -0.55)
            parts.append(Part(limb(hip, (x, -0.07), 0.13, 0.08), tone(colour, shade)))
        torso = smooth((-0.78, -0.6), (-0.6, -0.86), (0, -0.84), (0.5, -0.9), (0.66, -0.6),
                       (0.4, -0.4), (-0.2, -0.42), (-0.65, -0.38))  # fmt: skip
        parts.append(Part(torso, colour))
        for x in (-0.4, -0.15, 0.1) if rng.random() < 0.6 else ():
            bow = smooth((x, -0.95), (x + 0.04, -0.75), (x, -0.62), closed=False)
            parts.append(Part(band(bow, 0.07), dark, inside=True))
        parts += _cat_head(0.72, -1.0, 0.34, colour, name)
    return Thing("cat", name, parts, facing="right")
