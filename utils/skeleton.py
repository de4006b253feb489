"""Names of keypoints, which of them a picture joins by lines, and which a mirror swaps."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Skeleton:
    """The keypoints of a kind of object, in the order of its annotations."""

    names: tuple[str, ...]  # (K,)
    edges: tuple[tuple[int, int], ...] = ()  # pairs of indices, from 0

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

        Raises:
            ValueError: its fields `keypoints` and `skeleton` are no such lists.
        """
        try:
            edges = tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton") or ())
            return cls(tuple(map(str, category["keypoints"])), edges)
        except (TypeError, KeyError) as error:
            raise ValueError(f"keypoints and skeleton must be lists ({error})") from error

    @property
    def flip_pairs(self) -> tuple[tuple[int, int], ...]:
        """(left, right) indices of the names that differ in this word alone."""
        places = {name.lower(): i for i, name in enumerate(self.names)}
        pairs = []
        for name, left in places.items():
            right = places.get(name.replace("left", "right"))
            if "left" in name and right is not None:
                pairs.append((left, right))
        return tuple(pairs)


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
