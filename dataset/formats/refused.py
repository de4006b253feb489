"""Formats that are recognised only to say what to export instead."""

import json
import re
from pathlib import Path

from dataset.formats import Part
from dataset.formats.document import head_and_tail
from utils.errors import UserError

TITLE = ""  # it is no format that one could choose
INSTEAD = "export it as COCO or YOLO instead"
TABLES = ("_annotations.csv", "annotations.csv", "labels.csv")
RECORDS = (".tfrecord", ".tfrecords", ".record")
LOOKED_AT = 5  # JSON files of a folder
SPACE = re.compile(r"[\ufeff\s]*")


def find_parts(folder: Path) -> list[Part]:
    """Raises a `UserError` for a folder of such a format, see `dataset/formats/__init__.py`."""
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    files += sorted(path for path in folder.glob("*/*") if path.suffix.lower() in RECORDS)
    jsons = [path for path in files if path.suffix.lower() == ".json"][:LOOKED_AT]
    jsons += sorted(folder.glob("*/_annotations.createml.json"))
    for path in jsons:
        if name := _name_of_json(path):
            raise UserError(f"{path} is {name}, which is not supported; {INSTEAD}")
    for path in files:
        if any(word in path.name.lower() for word in RECORDS):
            raise UserError(f"{path} is a TFRecord, which is not supported; {INSTEAD}")
        if path.name in TABLES:
            raise UserError(f"{path} is a table (CSV), which is not supported; {INSTEAD}")
    return []


def _name_of_json(path: Path) -> str:
    """The format of a JSON file that is not read; "" of any other."""
    text = head_and_tail(path)
    if '"_via_img_metadata"' in text or '"_via_settings"' in text:
        return "a project of VIA"
    begin = SPACE.match(text).end()
    if not text.startswith("[", begin):
        return ""
    keys = _keys_of_first(text, SPACE.match(text, begin + 1).end())
    if {"image", "annotations"} <= keys and '"coordinates"' in text:
        return "CreateML's JSON"
    tasks = {"data", "annotations"} <= keys or {"data", "completions"} <= keys
    short = {"annotator", "annotation_id"} & keys and '"original_width"' in text
    return "Label Studio's own JSON" if tasks or short else ""


def _keys_of_first(text: str, begin: int) -> set[str]:
    """The keys of the first object of a list, which begins there.

    Where the object is longer than what was read, all keys in sight.
    """
    try:
        first, _ = json.JSONDecoder().raw_decode(text, begin)
        return set(first) if isinstance(first, dict) else set()
    except (ValueError, RecursionError):
        return set(re.findall(r'"(\w+)"\s*:', text))
