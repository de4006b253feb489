"""COCO results files of boxes, checked row by row."""

from pathlib import Path

from utils.errors import UserError
from utils.files import read_json
from utils.plain import fits, shown

ADVICE = (
    "--boxes must be gt, detected or a COCO results file: a list of image_id, category_id, bbox "
    "and score"
)
FIELDS = {
    "image_id": (int, "a whole number"),
    "category_id": (int, "a whole number"),
    "bbox": (tuple[float, float, float, float], "4 finite numbers"),
    "score": (float, "a finite number"),
}


def read_results(path: Path) -> list[dict]:
    """The rows of a results file; every row has the `FIELDS`.

    Raises:
        UserError: no such file, or not of this format.
    """
    rows = read_json(path, ADVICE)
    if not isinstance(rows, list):
        raise UserError(f"cannot read the boxes in {path}: it holds no list; {ADVICE}")
    for number, row in enumerate(rows):
        for name, (kind, wanted) in FIELDS.items():
            value = row.get(name) if isinstance(row, dict) else None
            if not fits(value, kind) or (kind is int and abs(value) >= 2**63):
                raise UserError(
                    f"cannot read the boxes in {path}: row {number}: {name} must be {wanted}, got "
                    f"{shown(value)}; {ADVICE}"
                )
    return rows
