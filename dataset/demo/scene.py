"""One picture: a setting, things placed in it back to front, and their ground truth.

While it is painted, the canvas holds colour and owner of every oversampled pixel.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.demo import things
from dataset.demo.backgrounds import COMMON, Setting, draw_setting
from dataset.demo.drawing import SS, Region, Sprite, Thing, find_region, render
from dataset.demo.people import make_person

MIN_VISIBLE = 0.32  # share of the whole silhouette that stays in sight, or the thing is not drawn
MIN_INSIDE = 0.5  # share of a new silhouette that must lie inside the image
MIN_AREA = 45 * SS**2  # visible pixels (45 in the image)
MIN_COVER = 0.06  # share of a silhouette that counts as hidden by the thing in front
# category -> (maker, smallest and largest size as a share of the image side, most tilt in degrees)
CATALOGUE = {
    "person": (make_person, 0.22, 0.64, 7),
    "car": (things.make_car, 0.15, 0.6, 6),
    "cat": (things.make_cat, 0.12, 0.5, 7),
    "umbrella": (things.make_umbrella, 0.1, 0.5, 28),
    "ball": (things.make_ball, 0.06, 0.4, 180),
    "kite": (things.make_kite, 0.12, 0.5, 40),
    "mug": (things.make_mug, 0.08, 0.45, 10),
    "house": (things.make_house, 0.18, 0.6, 2),
    "tree": (things.make_tree, 0.16, 0.6, 4),
    "fish": (things.make_fish, 0.09, 0.5, 25),
}
STANDING = {"person", "car", "cat", "house", "tree", "mug"}
COUNTS = (0.17, 0.19, 0.19, 0.16, 0.11, 0.08, 0.06, 0.04)  # probability of 1 to 8 things
NUM_TRIES = 10
CROWDS = ("person", "ball", "cat", "fish", "mug")  # what groups are made of


@dataclass
class Entry:
    """A thing on the canvas: its sprite with the place of the top left corner."""

    thing: Thing
    sprite: Sprite
    x: int
    y: int
    facing: str | None
    is_crowd: bool
    full: int  # silhouette in pixels, the part outside the image included
    covered: frozenset[int]  # owners of which it hides a part


class Canvas:
    """Sprites painted back to front; pixels belong to entry `owner - 1`, or to nobody (0)."""

    def __init__(self, setting: Setting) -> None:
        h, w = setting.image.shape[:2]
        self.setting = setting
        self.size = (h * SS, w * SS)
        self.colour = cv2.resize(setting.image.astype(np.uint8), self.size[::-1])
        self.owner = np.zeros(self.size, np.uint8)
        self.entries: list[Entry] = []

    def crop(self, sprite: Sprite, x: int, y: int) -> tuple[tuple, tuple] | None:
        """Slices of the canvas and of the sprite where they meet, or None if they do not."""
        (h, w), (ch, cw) = sprite.mask.shape, self.size
        y0, y1, x0, x1 = max(y, 0), min(y + h, ch), max(x, 0), min(x + w, cw)
        if y0 >= y1 or x0 >= x1:
            return None
        return np.s_[y0:y1, x0:x1], np.s_[y0 - y : y1 - y, x0 - x : x1 - x]

    def _lost(self, inside: tuple, drawn: np.ndarray) -> np.ndarray:
        """(entries + 1,) pixels of each owner under what would be drawn."""
        return np.bincount(self.owner[inside][drawn], minlength=len(self.entries) + 1)

    def fits(self, sprite: Sprite, x: int, y: int) -> bool:
        """Would everything still be seen well enough with the sprite here?"""
        place = self.crop(sprite, x, y)
        if place is None:
            return False
        inside, part = place
        if sprite.mask[part].sum() < max(MIN_INSIDE * sprite.mask.sum(), MIN_AREA):
            return False
        lost = self._lost(inside, sprite.mask[part] | sprite.prop[part])
        if not lost[1:].any():
            return True
        left = np.bincount(self.owner.ravel(), minlength=len(lost)) - lost
        return all(
            left[k] >= max(MIN_VISIBLE * self.entries[k - 1].full, MIN_AREA)
            for k in np.flatnonzero(lost[1:]) + 1
        )

    def shadow(self, sprite: Sprite, x: int, y: int) -> None:
        """Darken the ground under the sprite."""
        (h, w), (ch, cw) = sprite.mask.shape, self.size
        light = self.setting.light
        depth = 0.1 * w + 3 * SS
        x0, x1 = max(int(x - 0.35 * w), 0), min(int(x + 1.35 * w), cw)
        y0, y1 = max(int(y + h - 1.2 * depth), 0), min(int(y + h + 1.2 * depth), ch)
        if x0 >= x1 or y0 >= y1:
            return
        yy, xx = np.ogrid[y0:y1:SS, x0:x1:SS]
        dx = (xx - x - w * (0.5 - 0.22 * light.x)) / (0.52 * w)
        dy = (yy - y - h + 0.3 * depth) / (0.7 * depth)
        dark = (0.2 + 0.5 * light.strength) * np.clip(1.15 - dx**2 - dy**2, 0, 1)
        shade = cv2.resize((1 - dark).astype(np.float32), (x1 - x0, y1 - y0))
        under = self.colour[y0:y1, x0:x1]
        self.colour[y0:y1, x0:x1] = cv2.multiply(under, cv2.merge([shade] * 3), dtype=cv2.CV_8U)

    def paint(self, sprite: Sprite, x: int, y: int, *, owner: int) -> frozenset[int]:
        """Put the sprite in front of everything; returns the owners it hides a part of."""
        inside, part = self.crop(sprite, x, y)
        drawn = sprite.mask[part] | sprite.prop[part]
        lost = self._lost(inside, drawn)
        np.copyto(self.colour[inside], sprite.colour[part], where=drawn[..., None])
        self.owner[inside][sprite.prop[part]] = 0
        self.owner[inside][sprite.mask[part]] = owner
        return frozenset(
            k + 1
            for k, entry in enumerate(self.entries)
            if k + 1 != owner and lost[k + 1] > MIN_COVER * entry.full
        )

    def add(
        self,
        thing: Thing,
        sprite: Sprite,
        x: int,
        y: int,
        *,
        facing: str | None,
        crowd: bool = False,
    ) -> None:
        """Paint a thing that gets an annotation."""
        covered = self.paint(sprite, x, y, owner=len(self.entries) + 1)
        full = int(sprite.mask.sum())
        self.entries.append(Entry(thing, sprite, x, y, facing, crowd, full, covered))


@dataclass
class Placed:
    """A thing in the picture with its visible part, in image pixels.

    Attributes:
        keypoints: (17, 3) int (x, y, visibility), or None for all but people.
        is_crowd: a group of things that is annotated as one region.
        order: painted later means in front.
        covered: orders of things that this one hides a part of.
        truncated: a part of it is outside the image.
    """

    category: str
    colour: str
    facing: str | None
    action: str | None
    region: Region
    keypoints: np.ndarray | None
    is_crowd: bool
    order: int
    covered: frozenset[int]
    truncated: bool


@dataclass
class Scene:
    """image (H, W, 3) uint8 RGB; the visible things, farthest first."""

    image: np.ndarray
    setting: Setting
    placed: list[Placed]


def _position(
    rng: np.random.Generator, canvas: Canvas, sprite: Sprite, *, ground: bool, depth: float
) -> tuple[int, int]:
    """Top left corner of a sprite: on the ground at a depth (0 far, 1 near), or anywhere."""
    (h, w), (ch, cw) = sprite.mask.shape, canvas.size
    x = rng.uniform(-0.2 * w, cw - 0.8 * w)
    horizon = canvas.setting.horizon
    if canvas.entries and rng.random() < 0.25:  # near another thing, to make them overlap
        other = canvas.entries[rng.integers(len(canvas.entries))]
        width = other.sprite.mask.shape[1]
        x = other.x + (width - w) / 2 + rng.uniform(-0.5, 0.5) * (w + width)
    if ground:
        line = horizon * SS
        return int(x), int(line + (ch - line) * (0.08 + 0.9 * depth) - h)
    lowest = ch - 0.85 * h
    if horizon is not None and rng.random() < 0.75:  # what flies is mostly seen against the sky
        lowest = max(min(lowest, horizon * SS - 0.4 * h), 0.05 * h)
    return int(x), int(rng.uniform(-0.15 * h, lowest))


def _add_thing(
    rng: np.random.Generator, canvas: Canvas, category: str, depth: float, largest: float
) -> None:
    """Draw a thing where everything stays in sight; nothing is drawn if there is no such place."""
    maker, low, high, tilt = CATALOGUE[category]
    setting = canvas.setting
    high = max(min(high, largest), low * 1.2)
    ground = category in STANDING or setting.name == "table"
    ground = ground or (category != "kite" and rng.random() < 0.4)
    ground = ground and setting.horizon is not None
    share = np.exp(rng.uniform(np.log(low), np.log(high)))
    if ground:  # what is near is larger
        share = np.clip(share * (0.75 + 0.45 * depth), low, high)
    thing = maker(rng)
    facing, mirror = thing.facing, False
    if category != "person" and facing == "right" and rng.random() < 0.5:
        facing, mirror = "left", True
    angle = rng.uniform(-1, 1) * (tilt if not ground or category == "ball" else 0.4 * tilt)
    size = share * np.sqrt(canvas.size[0] * canvas.size[1])
    sprite = render(thing, size, angle=angle, mirror=mirror, light=setting.light, rng=rng)
    for _ in range(NUM_TRIES):
        x, y = _position(rng, canvas, sprite, ground=ground, depth=depth)
        if canvas.fits(sprite, x, y):
            if ground:
                canvas.shadow(sprite, x, y)
            canvas.add(thing, sprite, x, y, facing=facing)
            return


def _add_crowd(rng: np.random.Generator, canvas: Canvas, category: str) -> None:
    """A dozen or two of small things close together, annotated as one region."""
    setting, maker = canvas.setting, CATALOGUE[category][0]
    ch, cw = canvas.size
    columns, rows = int(rng.integers(5, 8)), int(rng.integers(2, 4))
    size = rng.uniform(0.15, 0.19) * np.sqrt(ch * cw)
    x0, y0 = rng.uniform(0.02, 0.1) * cw, 0.9 * ch - rows * 0.4 * size
    if setting.horizon is not None:
        y0 = setting.horizon * SS + 0.2 * size
    for row in range(rows):
        for column in range(columns):
            thing = maker(rng)
            sprite = render(thing, size, angle=0, mirror=False, light=setting.light, rng=rng)
            x = int(x0 + (column + rng.uniform(-0.2, 0.2) + 0.4 * (row % 2)) * 0.62 * size)
            y = int(y0 + (0.35 * row + rng.uniform(0.95, 1.05)) * size - sprite.mask.shape[0])
            if canvas.crop(sprite, x, y) is None:
                continue
            if canvas.entries:
                canvas.paint(sprite, x, y, owner=1)
            else:
                canvas.add(thing, sprite, x, y, facing=None, crowd=True)
    canvas.entries[0].full = int((canvas.owner == 1).sum())


def _finish(rng: np.random.Generator, colour: np.ndarray, setting: Setting) -> np.ndarray:
    """Down to the image's size, with exposure, colour cast, vignette and sensor noise."""
    h, w = setting.image.shape[:2]
    image = cv2.resize(colour, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32)
    warm = rng.normal(0, 0.03) + {"sunset": 0.06}.get(setting.mood, 0.0)
    gain = rng.uniform(0.78, 1.12) * np.array([1 + warm, 1 + rng.normal(0, 0.012), 1 - warm])
    image = 255 * (image / 255) ** np.float32(rng.uniform(0.85, 1.2)) * gain.astype(np.float32)
    if rng.random() < 0.5:
        yy, xx = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
        fade = 1 - rng.uniform(0.05, 0.22) * (xx**2 + yy**2) + rng.uniform(-0.12, 0.12) * xx
        image *= fade.astype(np.float32)[..., None]
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.8))
    noise = rng.standard_normal((h, w, 1), dtype=np.float32) * np.float32(rng.uniform(0.5, 5))
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _keypoints(canvas: Canvas, owner: int, mask: np.ndarray) -> np.ndarray:
    """(17, 3) int: 2 visible, 1 hidden by something, 0 outside the image or not to be placed.

    Args:
        mask: (H, W), the annotated region: what peeps out of it counts as hidden.
    """
    entry = canvas.entries[owner - 1]
    mask = cv2.dilate(mask, np.ones((3, 3), np.uint8))
    keypoints = np.zeros((len(entry.sprite.joints), 3), np.int64)
    for k, (px, py) in enumerate(np.round(entry.sprite.joints).astype(int)):
        x, y = px + entry.x, py + entry.y
        tags = entry.thing.owners[k]
        if not tags or not (0 <= x < canvas.size[1] and 0 <= y < canvas.size[0]):
            continue
        tag = entry.sprite.tag_names[entry.sprite.tags[py, px]]
        seen = canvas.owner[y, x] == owner and tag in tags and mask[y // SS, x // SS]
        keypoints[k] = x // SS, y // SS, 2 if seen else 1
    return keypoints


def _annotate(canvas: Canvas, owner: int) -> Placed:
    entry = canvas.entries[owner - 1]
    thing, (h, w), (ch, cw) = entry.thing, entry.sprite.mask.shape, canvas.size
    region = find_region(canvas.owner == owner, crowd=entry.is_crowd)
    has_joints = thing.joints is not None and not entry.is_crowd
    return Placed(
        category=thing.category,
        colour=thing.colour,
        facing=entry.facing,
        action=thing.action,
        region=region,
        keypoints=_keypoints(canvas, owner, region.mask) if has_joints else None,
        is_crowd=entry.is_crowd,
        order=owner,
        covered=entry.covered,
        truncated=entry.x < 0 or entry.y < 0 or entry.x + w > cw or entry.y + h > ch,
    )


def draw_scene(rng: np.random.Generator, h: int, w: int, *, kind: str = "things") -> Scene:
    """Draw one picture.

    Args:
        h: height, pixels.
        w: width, pixels.
        kind: `things`, `crowd` (one group annotated as a crowd, and other things) or `empty`.
    """
    setting = draw_setting(rng, h, w)
    canvas = Canvas(setting)
    weights = dict(COMMON[setting.name])
    num = 0 if kind == "empty" else 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    if kind == "crowd":
        groups = [name for name in CROWDS if name in weights]
        crowd = groups[rng.integers(len(groups))]
        _add_crowd(rng, canvas, crowd)
        weights.pop(crowd)
        num = int(rng.integers(1, 4))
    names = list(weights)
    share = np.array([weights[name] for name in names]) / sum(weights.values())
    wanted = [names[k] for k in rng.choice(len(names), num, p=share)]
    if num > 1 and rng.random() < 0.4:  # several of a kind
        wanted = [wanted[0] if rng.random() < 0.6 else name for name in wanted]
    for category, depth in zip(wanted, np.sort(rng.random(num)), strict=True):
        _add_thing(rng, canvas, category, float(depth), 0.62 if num < 4 else 0.45)
    while kind != "empty" and len(canvas.entries) == (kind == "crowd"):  # at least one thing
        _add_thing(rng, canvas, names[rng.integers(len(names))], 0.9, 0.4)
    placed = [_annotate(canvas, owner + 1) for owner in range(len(canvas.entries))]
    return Scene(_finish(rng, canvas.colour, setting), setting, placed)
