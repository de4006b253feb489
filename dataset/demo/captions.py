"""Five captions of a scene that say true things about it in a small vocabulary.

Wherever a caption puts numbers (a, an, one, two, ...) before the name of a category, they add up
to the number of annotations of that category in the picture.
"""

import re
from collections.abc import Iterable

import numpy as np

from dataset.demo.backgrounds import WORDS
from dataset.demo.drawing import HSV
from dataset.demo.scene import Placed, Scene

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
PLURALS = {"person": "people", "fish": "fish"}
GROUPS = {"person": "a crowd of people", "fish": "a school of fish"}
MAX_WORDS = 14
NUM_CAPTIONS = 5
CLEAR = 0.6  # a relation holds when the centres are this share of the mean size apart


def plural(category: str) -> str:
    """The word for several of a category."""
    return PLURALS.get(category, category + "s")


def stated_counts(caption: str, categories: Iterable[str]) -> list[tuple[int, str, str]]:
    """Number, colour or "", and category of everything that a caption counts.

    Args:
        categories: their names.
    """
    nouns = {word: name for name in categories for word in (name, plural(name))}
    numbers = {"a": 1, "an": 1} | {word: k for k, word in enumerate(NUMBERS) if k}
    colours, names = "|".join(HSV), "|".join(sorted(nouns, key=len, reverse=True))
    pattern = rf"\b({'|'.join(numbers)}) (?:({colours}) )?({names})\b"
    found = re.findall(pattern, caption.lower())
    return [(numbers[number], colour, nouns[noun]) for number, colour, noun in found]


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _shirt(thing: Placed) -> str:
    return f"{_article(thing.category)} in {_article(thing.colour + ' shirt')}"


def _single(rng: np.random.Generator, thing: Placed, *, coloured: float = 0.7) -> str:
    """'a red ball', 'a cat', 'a person in a blue shirt'."""
    if thing.category == "person":
        return _shirt(thing) if rng.random() < 0.5 * coloured else "a person"
    return _article(
        f"{thing.colour} {thing.category}" if rng.random() < coloured else thing.category
    )


def _phrase(rng: np.random.Generator, things: list[Placed]) -> str:
    """All things of one category: 'two red balls', 'a red ball and a blue ball', 'one cat'."""
    category, num = things[0].category, len(things)
    if things[0].is_crowd:
        return GROUPS.get(category, f"a group of {plural(category)}")
    if num == 1:
        return f"one {category}" if rng.random() < 0.15 else _single(rng, things[0])
    colours = [thing.colour for thing in things]
    if category == "person":
        return f"{NUMBERS[num]} people"
    if len(set(colours)) == 1 and rng.random() < 0.7:
        return f"{NUMBERS[num]} {colours[0]} {plural(category)}"
    if num == 2 and colours[0] != colours[1] and rng.random() < 0.35:
        return " and ".join(_article(f"{colour} {category}") for colour in colours)
    return f"{NUMBERS[num]} {plural(category)}"


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _where(rng: np.random.Generator, scene: Scene) -> str:
    """'on a beach', 'on a beach at sunset', or nothing."""
    place = WORDS[scene.setting.name][0]
    extra = {"sunny": " on a sunny day", "cloudy": " on a cloudy day", "sunset": " at sunset"}
    draw = rng.random()
    if draw < 0.2:
        return ""
    return " " + place + (extra.get(scene.setting.mood, "") if draw > 0.8 else "")


def _count(rng: np.random.Generator, scene: Scene, groups: list[list[Placed]]) -> str:
    """What there is, all of it or two or three kinds."""
    order = [groups[k] for k in rng.permutation(len(groups))]
    if all(group[0].is_crowd for group in order[:3]):
        order = order[::-1]
    listed = _join([_phrase(rng, group) for group in order[:3]])
    several = not order[0][0].is_crowd and len(order[0]) > 1
    return (
        f"{listed}{_where(rng, scene)}",
        f"there {'are' if several else 'is'} {listed}{_where(rng, scene)}",
        f"a picture of {listed}",
        f"{WORDS[scene.setting.name][1]} with {listed}",
    )[rng.choice(4, p=[0.4, 0.25, 0.1, 0.25])]


def _side(first: Placed, second: Placed) -> str | None:
    """Where the first of two things is, as the second one sees it in the picture."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = first.region.box, second.region.box
    dx, dy = x2 + w2 / 2 - x1 - w1 / 2, y2 + h2 / 2 - y1 - h1 / 2
    if second.order in first.covered:
        return "in front of"
    if first.order in second.covered:
        return "behind"
    if abs(dx) > CLEAR * (w1 + w2) and abs(dx) > 1.5 * abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    if abs(dy) > CLEAR * (h1 + h2) and abs(dy) > 1.5 * abs(dx):
        return "above" if dy > 0 else "below"
    return None


def _relation(rng: np.random.Generator, scene: Scene, groups: list[list[Placed]]) -> str | None:
    """One thing and where another one is, if both are the only ones of their kind."""
    single = [group[0] for group in groups if len(group) == 1 and not group[0].is_crowd]
    pairs = [(a, b) for a in single for b in single if a is not b]
    pairs += [
        tuple(group) for group in groups if len(group) == 2 and group[0].colour != group[1].colour
    ]
    for k in rng.permutation(len(pairs)):
        first, second = pairs[k]
        side = _side(first, second)
        if side is None:
            continue
        if first.category == second.category:
            one, two = (
                f"a person in {t.colour}"
                if t.category == "person"
                else _article(f"{t.colour} {t.category}")
                for t in (first, second)
            )
        else:
            one, two = _single(rng, first), _single(rng, second)
        return f"{one} {'is ' if rng.random() < 0.5 else ''}{side} {two}"
    return None


def _deed(rng: np.random.Generator, scene: Scene, groups: list[list[Placed]]) -> str | None:
    """What one thing does or which way it looks."""
    for k in rng.permutation(len(groups)):
        group = groups[k]
        thing = group[rng.integers(len(group))]
        if thing.is_crowd or (thing.action is None and thing.facing not in ("left", "right")):
            continue
        who = (
            _single(rng, thing)
            if len(group) == 1
            else f"one of the {NUMBERS[len(group)]} {plural(thing.category)}"
        )
        way = f" to the {thing.facing}" if thing.facing in ("left", "right") else ""
        if thing.category == "mug":
            return f"{who} with its handle on the {thing.facing}{_where(rng, scene)}"
        if thing.action is None:
            return f"{who} {rng.choice(['is ', ''])}facing{way}{_where(rng, scene)}"
        deed = str(thing.action) + (way if thing.action in ("walking", "running") else "")
        return f"{who} {'is ' if rng.random() < 0.6 else ''}{deed}{_where(rng, scene)}"
    return None


def _nothing(rng: np.random.Generator, scene: Scene) -> str:
    place, noun = WORDS[scene.setting.name]
    preposition = "on" if place.startswith("on") else "in"
    return (
        f"there is nothing {place}",
        f"{noun} with nothing {preposition} it",
        f"a picture of {noun}",
        f"nothing can be seen {place}",
        f"{noun} without any people or things",
        f"no people and no things {place}",
        f"only {noun} and nothing else",
    )[rng.integers(7)]


def write_captions(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Five different captions; at least three of them state counts (unless nothing is there)."""
    groups: dict[str, list[Placed]] = {}
    for thing in scene.placed:
        groups.setdefault(thing.category, []).append(thing)
    listed = list(groups.values())
    captions: list[str] = []
    plan = [_count, _count, _count, _relation, _deed] if listed else [_nothing] * NUM_CAPTIONS
    while len(captions) < NUM_CAPTIONS:
        make = plan[len(captions)]
        for attempt in range(40):
            few = (
                listed[:] if attempt < 8 else [listed[k] for k in rng.permutation(len(listed))[:2]]
            )
            if make is _nothing:
                text = _nothing(rng, scene)
            else:
                text = (make(rng, scene, few) if attempt < 20 else None) or _count(rng, scene, few)
            sentence = text[0].upper() + text[1:] + "."
            if len(sentence.split()) <= MAX_WORDS and sentence not in captions:
                captions.append(sentence)
                break
        else:  # too little to say: repeat what is true
            captions.append(captions[-1])
    return [captions[k] for k in rng.permutation(NUM_CAPTIONS)]
