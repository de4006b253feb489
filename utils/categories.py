"""The names and ids of classes, and the names of keypoints.

Class ids fit the vocabulary; the ids of the annotation file are kept beside them. A skeleton says
which keypoints a picture joins by lines, and which ones a mirror swaps.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from utils.errors import UserError
from utils.files import fits, shown

NUM_COCO = 17  # keypoints that COCO's own sigmas are for
KEPT_IDS = range(1, 900)  # ids of a file that are class ids as they are; officially all there are
MAX_CLASSES = 32_000  # class ids, and tokens made of them, are int16 in places


@dataclass(frozen=True)
class Categories:
    """The one map between annotation files, class ids (what tokens and results use) and names.

    COCO ids 1..899 are class ids already (gaps stay gaps, as in the official vocabulary); a file
    with any other id has all of its categories renumbered 1..C. The map travels with the weights.
    """

    names: dict[int, str]  # class id -> name
    source_ids: dict[int, int]  # class id -> id in the annotation file

    def __post_init__(self):
        if len(self.names) > MAX_CLASSES:
            raise ValueError(f"at most {MAX_CLASSES} categories fit, got {len(self.names)}")

    @classmethod
    def from_coco(cls, categories: Sequence[dict]) -> "Categories":
        """From the `categories` list of a COCO annotation file."""
        for row in categories:
            if not (fits(row, dict) and fits(row.get("id"), int) and fits(row.get("name"), str)):
                raise ValueError(f"one must have a whole number as id and a name, got {shown(row)}")
        rows = sorted(categories, key=lambda row: row["id"])
        ids = [row["id"] for row in rows]
        if len(set(ids)) < len(ids):
            raise ValueError("an id occurs twice")
        keep = all(row["id"] in KEPT_IDS for row in rows)
        ids = [row["id"] if keep else i for i, row in enumerate(rows, 1)]
        names = {i: row["name"] for i, row in zip(ids, rows, strict=True)}
        return cls(names, {i: row["id"] for i, row in zip(ids, rows, strict=True)})

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "Categories":
        """Class ids 1..C in the given order (VOC has no ids of its own)."""
        return cls(dict(enumerate(names, 1)), {i: i for i in range(1, len(names) + 1)})

    def class_ids_of(self, source_ids: np.ndarray) -> np.ndarray:
        """(N,) ids of the annotation file -> (N,) int16 class ids; 0 of those not among these."""
        known = sorted((source, class_id) for class_id, source in self.source_ids.items())
        if not known:
            return np.zeros(len(source_ids), np.int16)
        sources, class_ids = np.array(known, np.int64).T
        place = np.minimum(np.searchsorted(sources, source_ids), len(known) - 1)
        return np.where(sources[place] == source_ids, class_ids[place], 0).astype(np.int16)

    @property
    def ids_of_names(self) -> dict[str, int]:
        return {name: i for i, name in self.names.items()}

    def only(self, ids: Sequence[int]) -> "Categories":
        """The categories with these class ids, in their order."""
        return Categories({i: self.names[i] for i in ids}, {i: self.source_ids[i] for i in ids})

    def to_json(self) -> list[dict]:
        return [
            {"id": i, "name": name, "source_id": self.source_ids[i]}
            for i, name in self.names.items()
        ]

    @classmethod
    def from_json(cls, rows: Sequence[dict]) -> "Categories":
        return cls(
            {int(row["id"]): str(row["name"]) for row in rows},
            {int(row["id"]): int(row["source_id"]) for row in rows},
        )


@dataclass(frozen=True)
class Skeleton:
    """The keypoints of a kind of object, in the order of its annotations."""

    names: tuple[str, ...]  # (K,)
    edges: tuple[tuple[int, int], ...] = ()  # pairs of indices, from 0
    stated_pairs: tuple[tuple[int, int], ...] | None = None  # see `flip_pairs`; None = by the names

    def __post_init__(self):
        strange = [edge for edge in self.edges if not all(0 <= i < len(self) for i in edge)]
        if not self.names or strange:
            raise ValueError(
                f"edges must join two of the {len(self)} keypoints (at least one), got {strange}"
            )

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_coco(cls, category: dict) -> "Skeleton":
        """From a category of a COCO file, which counts points from 1.

        Its field `flip_pairs`, pairs of numbers from 1, is not COCO's: other formats state which
        points a mirror swaps.

        Raises:
            ValueError: its fields `keypoints`, `skeleton` and `flip_pairs` are no such lists.
        """
        points, edges = category.get("keypoints"), category.get("skeleton") or []
        if not isinstance(points, list) or not all(fits(name, str | int) for name in points):
            raise ValueError(f"keypoints must be a list of names, got {shown(points)}")
        pairs = category.get("flip_pairs")
        joined = _counted_from_0(edges, len(points), "skeleton")
        if pairs is not None:
            pairs = _counted_from_0(pairs, len(points), "flip_pairs")
        return cls(tuple(map(str, points)), joined, pairs)

    @cached_property
    def flip_pairs(self) -> tuple[tuple[int, int], ...]:
        """(left, right) indices of points that a mirror swaps.

        Those that the annotations state, or those whose names differ in this word alone, see
        `SIDES`.
        """
        if self.stated_pairs is not None:
            return self.stated_pairs
        places: dict[tuple[str, ...], int] = {}  # spelling of a name -> its number
        for number, name in enumerate(self.names):
            for spelling in (name_parts(name), ("".join(name_parts(name)),)):
                places.setdefault(spelling, number)
        pairs: list[tuple[int, int]] = []
        for left, name in enumerate(self.names):
            spellings = (spelling for spelling in right_spellings(name) if spelling in places)
            right = places.get(next(spellings, ()), left)
            if right != left and not {left, right} & {i for pair in pairs for i in pair}:
                pairs.append((left, right))
        return tuple(pairs)

    def named_pairs(self, texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
        """(left, right) indices from texts such as "LEye:REye".

        Raises:
            UserError: a text names no two points, or a point is in two pairs.
        """
        pairs = [tuple(part.strip() for part in text.split(":")) for text in texts]
        for text, names in zip(texts, pairs, strict=True):
            if len(names) != 2 or not set(names) <= set(self.names):
                raise UserError(
                    f"keypoint_flip_pairs must be LEFT:RIGHT,... of {', '.join(self.names)}, got "
                    f"{text!r}"
                )
        used = [name for names in pairs for name in set(names)]
        if twice := [name for name in used if used.count(name) > 1]:
            raise UserError(f"keypoint_flip_pairs has {twice[0]!r} in two pairs; name it once")
        return tuple((self.names.index(left), self.names.index(right)) for left, right in pairs)


def _counted_from_0(pairs: object, count: int, field: str) -> tuple[tuple[int, int], ...]:
    """Pairs of the numbers 1 to `count` of keypoints -> pairs of indices.

    Raises:
        ValueError: they are none.
    """
    for edge in pairs if isinstance(pairs, list) else [pairs]:
        pair = isinstance(edge, list) and len(edge) == 2 and all(fits(i, float) for i in edge)
        if not pair or not all(1 <= i <= count and i == int(i) for i in edge):
            raise ValueError(
                f"{field} must be pairs of two of the numbers 1 to {count}, got {shown(edge)}"
            )
    return tuple((int(a) - 1, int(b) - 1) for a, b in pairs)


SIDES = (  # left and right in names of keypoints, as words
    *(("left", "right"), ("l", "r"), ("lt", "rt"), ("lft", "rgt"), ("lhs", "rhs")),
    *(("tl", "tr"), ("bl", "br"), ("ul", "ur"), ("ll", "lr")),  # of corners
    *(("links", "rechts"), ("linke", "rechte"), ("linker", "rechter"), ("linkes", "rechtes")),
    *(("gauche", "droite"), ("gauche", "droit"), ("izq", "der")),
    *(("izquierda", "derecha"), ("izquierdo", "derecho"), ("esquerda", "direita")),
    *(("esquerdo", "direito"), ("sinistra", "destra"), ("sinistro", "destro")),
    *(("левый", "правый"), ("левая", "правая"), ("левое", "правое")),
)
INSIDE = (("left", "right"), ("左", "右"), ("왼", "오른"))  # also where no word begins or ends
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+")  # LEye, eyeL, LEFT_EYE, eye.L


def name_parts(name: str) -> tuple[str, ...]:
    """The words of a name, whatever separates them: "LEye", "l_eye", "L.eye" -> ("l", "eye")."""
    return tuple(part.casefold() for part in PARTS.findall(unicodedata.normalize("NFKC", name)))


def right_spellings(name: str) -> Iterator[tuple[str, ...]]:
    """What the partner of a name on the left may be called, the likeliest first."""
    parts = name_parts(name)
    for left, right in SIDES:
        for i in (i for i, part in enumerate(parts) if part == left):
            yield (*parts[:i], right, *parts[i + 1 :])
    for left, right in INSIDE:
        if left in "".join(parts):
            yield tuple(part.replace(left, right) for part in parts)
            yield ("".join(parts).replace(left, right),)
    whole = "".join(parts)  # lwrist, wristl
    if whole.startswith("l"):
        yield ("r" + whole[1:],)
    if whole.endswith("l"):
        yield (whole[:-1] + "r",)


def pairs_of(edges: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Edges as JSON has them -> as `Skeleton` has them."""
    return tuple((int(a), int(b)) for a, b in edges)


COCO_PERSON = Skeleton(
    (
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder",
        "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
        "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    (
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7),
        (6, 8), (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
)  # fmt: skip


def check_sigmas(sigmas: Sequence[float] | None, skeleton: Skeleton) -> list[float] | None:
    """Sigmas of the object keypoint similarity, one per point; None = COCO's own.

    Args:
        sigmas: one per point, or one for all; None or empty = COCO's own for its 17 points.

    Raises:
        UserError: they do not fit the points.
    """
    if not sigmas and len(skeleton) == NUM_COCO:
        return None
    sigmas = [float(sigma) for sigma in sigmas or ()]
    if len(sigmas) not in (1, len(skeleton)) or min(sigmas) <= 0:
        raise UserError(
            f"the data has {len(skeleton)} keypoints and {len(sigmas)} OKS sigmas; give one above "
            "0 for each, or one for all, with --set keypoint_sigmas=0.07 (about COCO's mean)"
        )
    return sigmas * len(skeleton) if len(sigmas) == 1 else sigmas


def check_class_names(wanted: Sequence[str], known: Iterable[str], where: str) -> None:
    """Raises a UserError with the nearest names if one of `wanted` is not in `known`."""
    known = sorted(known)
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:5]
            raise UserError(f"unknown class {name!r} in {where}; similar: {', '.join(near)}")
