"""This module makes the things that are drawn, except people: one maker per category."""

import numpy as np

from dataset.demo.drawing import (
    BRIGHT,
    Colour,
    Part,
    Thing,
    band,
    draw_colour,
    ellipse,
    limb,
    polygon,
    rectangle,
    smooth,
    tone,
)

DARK = (38.0, 36.0, 40.0)
GLASS = (150.0, 190.0, 215.0)


def pick_colour(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[str, Colour]:
    """One of the names and a shade of it."""
    name = names[rng.integers(len(names))]
    return name, draw_colour(rng, name)


def make_ball(rng: np.random.Generator) -> Thing:
    name, colour = pick_colour(rng, (*BRIGHT, "white"))
    parts = [Part(ellipse(0, 0, 1, 1), colour)]
    second = (250.0, 250.0, 250.0) if name != "white" else DARK
    style = rng.integers(4) if name != "white" else 2
    if style == 0:
        bow = smooth((-1.2, -0.15), (0, 0.25), (1.2, -0.15), closed=False)
        parts.append(Part(band(bow, 0.35), second, inside=True))
    elif style == 1:
        for start in (0, 120, 240):
            wedge = np.concatenate(
                [[[0.0, -0.1]], ellipse(0, 0, 1.2, 1.2, start=start, end=start + 60)]
            )
            parts.append(Part(wedge, second, inside=True))
    elif style == 2:
        for angle in np.radians(np.arange(5) * 72 - 90):
            centre = 0.82 * np.cos(angle), 0.82 * np.sin(angle)
            patch = ellipse(*centre, 0.27, 0.27)[::8]
            parts.append(Part(patch, second, inside=True))
        parts.append(Part(ellipse(0, 0, 0.3, 0.3)[::8], second, inside=True))
    return Thing("ball", name, parts, is_sphere=True)


def make_kite(rng: np.random.Generator) -> Thing:
    name, colour = pick_colour(rng, BRIGHT)
    other = draw_colour(rng, BRIGHT[(BRIGHT.index(name) + rng.integers(2, 5)) % len(BRIGHT)])
    width = rng.uniform(0.5, 0.7)
    sway = rng.uniform(0.1, 0.25) * rng.choice([-1, 1])
    tail = smooth((0, 0.6), (sway, 0.85), (-sway, 1.15), (sway, 1.4), (0, 1.6), closed=False)
    parts = [Part(band(tail, 0.07), other)]
    for y, shift in ((0.98, 0.0), (1.3, 0.02)):
        bow = polygon((-0.14, y - 0.08), (0.14, y + 0.08), (0.14, y - 0.08), (-0.14, y + 0.08))
        parts.append(Part(bow + (shift, 0), other))
    parts += [
        Part(polygon((0, -0.85), (width, -0.15), (0, 0.75), (-width, -0.15)), colour),
        Part(polygon((0, -0.85), (width, -0.15), (0, -0.15)), tone(colour, 1.35)),
        Part(polygon((0, 0.75), (-width, -0.15), (0, -0.15)), tone(colour, 0.75)),
        Part(band([(0, -0.85), (0, 0), (0, 0.75)], 0.035), DARK),
        Part(band([(-width, -0.15), (0, -0.15), (width, -0.15)], 0.035), DARK),
    ]
    return Thing("kite", name, parts)


def make_mug(rng: np.random.Generator) -> Thing:
    name, colour = pick_colour(rng, (*BRIGHT, "white", "black"))
    taper = rng.uniform(0.78, 1.0)
    high = rng.uniform(1.0, 1.35)
    handle = ellipse(0.62, -high * 0.5, 0.42, high * 0.3, start=-100, end=100)
    body = smooth(
        (-0.65, -high), (-0.66 * taper, -0.3), (-0.6 * taper, -0.03), (0, 0.05),
        (0.6 * taper, -0.03), (0.66 * taper, -0.3), (0.65, -high), (0, -high - 0.05),
    )  # fmt: skip
    parts = [Part(band(handle, 0.17), tone(colour, 0.85)), Part(body, colour)]
    if rng.random() < 0.5:
        stripe = (250.0, 250.0, 250.0) if name != "white" else draw_colour(rng, "blue")
        level = -high * rng.uniform(0.25, 0.6)
        curve = smooth((-0.6, level), (0, level + 0.08), (0.6, level), closed=False)
        parts.append(Part(band(curve, 0.16), stripe, inside=True))
    parts.append(Part(ellipse(0, -high, 0.65, 0.16), tone(colour, 1.3)))
    parts.append(Part(ellipse(0, -high + 0.015, 0.55, 0.115), (70.0, 42.0, 26.0)))
    parts.append(Part(rectangle(-0.45, -high * 0.8, -0.3, -0.2), (255.0, 255.0, 255.0), alpha=0.35))
    return Thing("mug", name, parts, facing="right")


def make_umbrella(rng: np.random.Generator) -> Thing:
    name, colour = pick_colour(rng, (*BRIGHT, "black"))
    other = tone(colour, 0.72) if rng.random() < 0.5 else (245.0, 245.0, 240.0)
    flat = rng.uniform(0.7, 0.95)
    hook = [(0, -0.1), (0, 0.85), (0.05, 0.98), (0.16, 1.0), (0.24, 0.88)]
    parts = [Part(band(smooth(*hook, closed=False), 0.08), (96.0, 62.0, 40.0))]
    parts.append(Part(band([(0, -flat - 0.1), (0, -flat), (0, -flat + 0.1)], 0.08), DARK))
    dome = ellipse(0, 0, 1, flat, start=180, end=360)
    edges = np.linspace(1, -1, 7)
    scallops = [
        ellipse((a + b) / 2, 0, abs(a - b) / 2, 0.09, start=0, end=-180)
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    parts.append(Part(np.concatenate([dome, *scallops]), colour))
    for k in (0, 2, 4):
        x0, x1 = edges[k], edges[k + 1]
        rib = smooth((0, -flat), (x0 * 0.75, -flat * 0.62), (x0, 0.02), closed=False)
        back = smooth((x1, 0.02), (x1 * 0.75, -flat * 0.62), (0, -flat), closed=False)
        parts.append(Part(np.concatenate([rib, back]), other, inside=True))
    return Thing("umbrella", name, parts)


def make_tree(rng: np.random.Generator) -> Thing:
    name, colour = pick_colour(rng, ("green", "green", "green", "green", "orange"))
    bark = draw_colour(rng, "brown")
    style = rng.integers(3)
    trunk = polygon((-0.09, -0.75), (0.09, -0.75), (0.15, 0), (-0.15, 0))
    parts = [Part(trunk, bark)]
    if style == 0:
        spread = rng.uniform(0.38, 0.5)
        leaves = [(0, -1.15)] + [
            (spread * np.cos(a), -1.1 + 0.8 * spread * np.sin(a))
            for a in np.radians(np.arange(7) * 51.4 + rng.uniform(0, 50))
        ]
        parts += [Part(ellipse(x, y, 0.36, 0.33), tone(colour, 0.9)) for x, y in leaves[1:]]
        parts.append(Part(ellipse(*leaves[0], 0.5, 0.45), colour))
        for x, y in leaves[::2]:
            parts.append(
                Part(ellipse(x - 0.1, y - 0.1, 0.14, 0.11), tone(colour, 1.25), inside=True)
            )
    elif style == 1:
        width = rng.uniform(0.5, 0.68)
        for k, y in enumerate((-0.35, -0.8, -1.2)):
            half = width * (1 - 0.22 * k)
            layer = polygon((0, y - 0.75), (half, y), (half * 0.4, y - 0.06), (0, y + 0.03),
                            (-half * 0.4, y - 0.06), (-half, y))  # fmt: skip
            parts.append(Part(layer, tone(colour, 0.85 + 0.15 * k)))
    else:
        crown = smooth((0, -1.95), (0.3, -1.45), (0.4, -0.95), (0.22, -0.5), (-0.22, -0.5),
                       (-0.4, -0.95), (-0.3, -1.45))  # fmt: skip
        parts.append(Part(crown, colour))
        for x, y in rng.uniform((-0.25, -1.6), (0.25, -0.7), (6, 2)):
            parts.append(Part(ellipse(x, y, 0.08, 0.12), tone(colour, 1.25), inside=True))
    return Thing("tree", name, parts)


def make_house(rng: np.random.Generator) -> Thing:
    name, colour = pick_colour(rng, ("white", "yellow", "blue", "pink", "gray", "brown", "red"))
    roof = draw_colour(
        rng, "brown" if name in ("red", "gray") else str(rng.choice(["red", "brown", "gray"]))
    )
    if name == "brown":
        roof = draw_colour(rng, "red")
    wide, high, top = rng.uniform(0.7, 1.0), rng.uniform(0.75, 1.1), rng.uniform(0.45, 0.7)
    parts = []
    if rng.random() < 0.6:
        x = wide * rng.choice([-0.5, 0.5])
        parts.append(Part(rectangle(x - 0.1, -high - top, x + 0.1, -high), tone(roof, 0.7)))
    parts.append(Part(rectangle(-wide, -high, wide, 0), colour))
    eave = wide + 0.15
    if rng.random() < 0.6:
        gable = polygon((-eave, -high + 0.04), (0, -high - top), (eave, -high + 0.04))
    else:
        gable = polygon((-eave, -high + 0.04), (-wide * 0.6, -high - top * 0.8),
                        (wide * 0.6, -high - top * 0.8), (eave, -high + 0.04))  # fmt: skip
    parts.append(Part(gable, roof))
    door = wide * rng.uniform(-0.5, 0.5)
    wood = draw_colour(rng, "white" if name in ("brown", "red") else "brown")
    parts.append(Part(rectangle(door - 0.17, -0.55, door + 0.17, 0), wood))
    parts.append(Part(ellipse(door + 0.1, -0.27, 0.03, 0.03), (230.0, 200.0, 90.0)))
    glass = (255.0, 226.0, 140.0) if rng.random() < 0.3 else GLASS
    frame = (250.0, 250.0, 250.0) if name != "white" else (120.0, 96.0, 80.0)
    for x in (-wide * 0.66, 0.0, wide * 0.66):
        low = -high * 0.82
        if abs(x - door) < 0.4 and low + 0.34 > -0.55:
            continue
        parts.append(Part(rectangle(x - 0.18, low - 0.03, x + 0.18, low + 0.33), frame))
        parts.append(Part(rectangle(x - 0.14, low + 0.01, x + 0.14, low + 0.29), glass))
        parts.append(Part(rectangle(x - 0.015, low, x + 0.015, low + 0.3), frame))
    return Thing("house", name, parts)


def make_car(rng: np.random.Generator) -> Thing:
    name, colour = pick_colour(
        rng, ("red", "blue", "yellow", "green", "white", "black", "gray", "orange")
    )
    style = rng.integers(3)
    cabin, body = (
        ([(-0.62, -0.5), (-0.4, -0.86), (0.22, -0.86), (0.52, -0.5)], [(-1, -0.5), (0.96, -0.46)]),
        ([(-0.94, -0.5), (-0.9, -1.05), (0.42, -1.05), (0.68, -0.5)], [(-1, -0.55), (1.0, -0.5)]),
        ([(-0.95, -0.5), (-0.72, -0.88), (0.2, -0.88), (0.5, -0.5)], [(-1, -0.52), (0.88, -0.47)]),
    )[style]
    (xb, yb), (xf, yf) = body
    hull = smooth((xb, yb + 0.06), (xb + 0.06, yb), (0, yb), (xf - 0.15, yf), (xf, yf + 0.1),
                  (xf + 0.02, -0.16), (xf - 0.1, -0.12), (0, -0.12), (xb + 0.08, -0.12),
                  (xb - 0.01, -0.18))  # fmt: skip
    shell = np.asarray(cabin)
    middle = shell.mean(0)
    glass = middle + (shell - middle) * (0.84, 0.72) + (0, 0.0)
    split = rng.uniform(-0.2, 0.0)
    wheels = (-0.57, 0.55)
    parts = [
        Part(shell, tone(colour, 0.92)),
        Part(hull, colour),
        Part(glass, GLASS if name != "blue" else (205.0, 222.0, 232.0)),
        Part(rectangle(split - 0.035, -1.1, split + 0.035, -0.48), tone(colour, 0.92), inside=True),
        Part(rectangle(xb - 0.1, -0.24, xf + 0.1, -0.18), tone(colour, 0.7), inside=True),
        Part(ellipse(xf - 0.05, -0.36, 0.07, 0.06), (255.0, 244.0, 190.0), inside=True),
        Part(rectangle(xb - 0.05, -0.46, xb + 0.07, -0.34), (190.0, 30.0, 30.0), inside=True),
    ]
    for x in wheels:
        parts.append(Part(ellipse(x, -0.13, 0.2, 0.2), DARK))
        parts.append(Part(ellipse(x, -0.13, 0.1, 0.1), (190.0, 190.0, 195.0)))
    return Thing("car", name, parts, facing="right")


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
