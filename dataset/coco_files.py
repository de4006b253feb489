"""Where a COCO tree keeps its files, and reading an annotation file of any of its kinds."""

import json
from pathlib import Path

from utils.errors import UserError

ANNOTATION_KEYS = {  # what tells the kinds of annotation file apart
    "instances": ("bbox", "category_id"),
    "person_keypoints": ("bbox", "keypoints"),
    "captions": ("caption",),
}


def coco_paths(
    root: str | Path | None,
    split: str,
    *,
    kind: str = "instances",
    annotation_file: str | Path | None = None,
    image_folder: str | Path | None = None,
) -> tuple[Path, Path]:
    """The annotation file and the image folder, checked to exist.

    Args:
        root: folder with train2017, val2017 and annotations; not needed if the two optional
            paths are given.
        split: "train", "val", or a folder name such as "train2014".
        kind: "instances", "person_keypoints" or "captions".
    """
    name = f"{split}2017" if split in ("train", "val", "test") else split
    if root is None and (annotation_file is None or image_folder is None):
        raise UserError("no COCO folder given; use --set coco_root=FOLDER")
    if annotation_file is None or image_folder is None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise UserError(
                f"COCO folder {root} does not exist; get it with download/download_coco.sh "
                "or use --set coco_root=FOLDER"
            )
    annotations = Path(annotation_file or root / "annotations" / f"{kind}_{name}.json").expanduser()
    images = Path(image_folder or root / name).expanduser()
    if not annotations.is_file():
        raise UserError(
            f"annotation file {annotations} does not exist; --set coco_root=FOLDER must name the "
            f"folder that holds annotations/{kind}_{name}.json"
        )
    if not images.is_dir():
        raise UserError(
            f"image folder {images} does not exist; --set coco_root=FOLDER must name the folder "
            f"that holds {name}/"
        )
    return annotations, images


def read_annotations(path: Path, kind: str = "instances") -> dict:
    """The content of a COCO annotation file, checked to be of this kind."""
    advice = f"need a COCO {kind} file; check --set coco_root=FOLDER"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON ({error}); {advice}") from error
    keys = ("images", "annotations", "categories")[: 2 if kind == "captions" else 3]
    missing = [key for key in keys if not isinstance(_get(content, key), list)]
    if missing:
        raise UserError(f"{path} has no list {missing[0]!r}; {advice}")
    for key, needed in (("images", ("id", "file_name")), ("annotations", ("image_id",))):
        wanted = (*needed, *ANNOTATION_KEYS[kind]) if key == "annotations" else needed
        for row in content[key]:
            if not isinstance(row, dict) or any(name not in row for name in wanted):
                lacks = [name for name in wanted if name not in row]
                raise UserError(f"{path}: an entry of {key!r} has no {lacks[0]!r}; {advice}")
    return content


def _get(content, key: str):
    return content.get(key) if isinstance(content, dict) else None
