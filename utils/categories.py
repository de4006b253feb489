"""Class ids that fit the vocabulary, their names, and the ids of the annotation file."""

from collections.abc import Sequence
from dataclasses import dataclass

from utils.plain import fits, shown

MAX_CLASS_ID = 899  # class tokens are 100 + id and end below the coordinates at 1000


@dataclass(frozen=True)
class Categories:
    """The one map between annotation files, class ids (what tokens and results use) and names.

    COCO ids 1..899 are class ids already (gaps stay gaps, as in the official vocabulary); a file
    with any other id has all of its categories renumbered 1..C. The map travels with the weights.
    """

    names: dict[int, str]  # class id -> name
    source_ids: dict[int, int]  # class id -> id in the annotation file

    def __post_init__(self):
        if len(self.names) > MAX_CLASS_ID:
            raise ValueError(f"at most {MAX_CLASS_ID} categories fit, got {len(self.names)}")

    @classmethod
    def from_coco(cls, categories: Sequence[dict]) -> "Categories":
        """From the `categories` list of a COCO annotation file."""
        for row in categories:
            if not (fits(row, dict) and fits(row.get("id"), int) and fits(row.get("name"), str)):
                raise ValueError(f"one must have a whole number as id and a name, got {shown(row)}")
        rows = sorted(categories, key=lambda row: row["id"])
        ids = [row["id"] for row in rows]
        if len(set(ids)) < len(ids):
            raise ValueError("an id stands there twice")
        keep = all(1 <= row["id"] <= MAX_CLASS_ID for row in rows)
        ids = [row["id"] if keep else i for i, row in enumerate(rows, 1)]
        names = {i: row["name"] for i, row in zip(ids, rows, strict=True)}
        return cls(names, {i: row["id"] for i, row in zip(ids, rows, strict=True)})

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "Categories":
        """Class ids 1..C in the given order (VOC has no ids of its own)."""
        return cls(dict(enumerate(names, 1)), {i: i for i in range(1, len(names) + 1)})

    @property
    def ids_of_source(self) -> dict[int, int]:
        return {source: i for i, source in self.source_ids.items()}

    @property
    def ids_of_names(self) -> dict[str, int]:
        return {name: i for i, name in self.names.items()}

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
