"""Makes the exports of this folder with the tools themselves, from four drawn pictures.

    python tests/exports/make.py                  # all that is installed
    python tests/exports/make.py datumaro labelme

The tools (README.md has their versions) belong in an environment of their own. Pictures are not
kept, `pictures.json` says where each tool put which: the tests draw them again.
"""

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np

from dataset.demo.write import DemoSet, write_demo_set

DEMO = DemoSet(train=3, val=1, size=(96, 128), seed=8)
KEPT = (".json", ".txt", ".yaml", ".xml", ".names", ".data")  # suffixes of texts
PERSON = "person"


@dataclass
class Picture:
    """A picture and its objects, rows of a COCO file with the name of the class."""

    part: str
    path: Path
    size: tuple[int, int]
    objects: list[dict]

    @property
    def stem(self) -> str:
        return self.path.stem


def draw(folder: Path) -> tuple[list[Picture], list[dict]]:
    """The drawn pictures, and the categories that they use."""
    write_demo_set(DEMO, folder, workers=1, progress=False)
    pictures, categories = [], []
    for part in ("train", "val"):
        read = {
            kind: json.loads((folder / "annotations" / f"{kind}_{part}2017.json").read_text())
            for kind in ("instances", "person_keypoints")
        }
        points = {row["id"]: row["keypoints"] for row in read["person_keypoints"]["annotations"]}
        person = read["person_keypoints"]["categories"][0]
        categories = [person if c["id"] == person["id"] else c
                      for c in read["instances"]["categories"]]  # fmt: skip
        names = {row["id"]: row["name"] for row in categories}
        for image in read["instances"]["images"]:
            rows = [
                {**row, "name": names[row["category_id"]], "keypoints": points.get(row["id"])}
                for row in read["instances"]["annotations"]
                if row["image_id"] == image["id"]
            ]
            path = folder / f"{part}2017" / image["file_name"]
            pictures.append(Picture(part, path, (image["height"], image["width"]), rows))
    used = {row["name"] for picture in pictures for row in picture.objects}
    return pictures, [row for row in categories if row["name"] in used]


# ---- the tools ---------------------------------------------------------------------------------


def datumaro(out: Path, pictures: list[Picture], categories: list[dict]) -> None:
    """COCO, VOC, YOLO of Darknet and Ultralytics, CVAT and its own JSON."""
    import datumaro as dm

    names = [row["name"] for row in categories]
    items = []
    for picture in pictures:
        annotations = []
        for row in picture.objects:
            common = {"label": names.index(row["name"]), "group": row["id"], "id": row["id"]}
            annotations.append(dm.Bbox(*row["bbox"], **common))
            annotations += [dm.Polygon(part, **common) for part in row["segmentation"]]
            if row["keypoints"]:
                points = np.array(row["keypoints"], float).reshape(-1, 3)
                xy, seen = points[:, :2].ravel().tolist(), points[:, 2].astype(int).tolist()
                annotations.append(dm.Points(xy, seen, **common))
        media = dm.Image.from_file(str(picture.path), size=picture.size)
        items.append(
            dm.DatasetItem(
                id=picture.stem, subset=picture.part, media=media, annotations=annotations
            )
        )
    person = next(row for row in categories if row["name"] == PERSON)
    points = dm.PointsCategories.from_iterable(
        [(names.index(PERSON), person["keypoints"], {tuple(e) for e in person["skeleton"]})]
    )
    labels = dm.LabelCategories.from_iterable(names)
    kinds = {dm.AnnotationType.label: labels, dm.AnnotationType.points: points}
    formats = ("coco_instances", "coco_person_keypoints", "voc_detection", "yolo", "datumaro")
    for name in (*formats, "yolo_ultralytics", "cvat"):
        chosen = items
        if name == "cvat":  # one file has one part
            chosen = [item.wrap(subset="train") for item in items]
        dataset = dm.Dataset.from_iterable(chosen, categories=kinds, media_type=dm.Image)
        dataset.export(str(out / f"datumaro_{name}"), name, save_media=True)


def supervision(out: Path, pictures: list[Picture], categories: list[dict]) -> None:
    """COCO, VOC, YOLO boxes and outlines, LabelMe, CreateML."""
    import supervision as sv

    names = [row["name"] for row in categories]
    for part in ("train", "val"):
        annotations = {}
        for picture in (p for p in pictures if p.part == part):
            boxes = np.array([row["bbox"] for row in picture.objects], float)
            boxes[:, 2:] += boxes[:, :2]
            ids = np.array([names.index(row["name"]) for row in picture.objects])
            masks = np.array([fill(row["segmentation"], picture.size) for row in picture.objects])
            annotations[str(picture.path)] = sv.Detections(boxes, masks, class_id=ids)
        boxes = {
            path: sv.Detections(d.xyxy, class_id=d.class_id) for path, d in annotations.items()
        }
        for kind, detections in (("boxes", boxes), ("masks", annotations)):
            dataset = sv.DetectionDataset(names, list(detections), detections)
            folder = out / f"supervision_yolo_{kind}"
            dataset.as_yolo(
                str(folder / part / "images"),
                str(folder / part / "labels"),
                str(folder / "data.yaml"),
            )
            folder = out / f"supervision_coco_{kind}" / part
            dataset.as_coco(str(folder), str(folder / "_annotations.coco.json"))
            folder = out / f"supervision_labelme_{kind}" / part
            dataset.as_labelme(str(folder), str(folder))
        dataset = sv.DetectionDataset(names, list(boxes), boxes)
        folder = out / "supervision_voc" / part
        dataset.as_pascal_voc(str(folder), str(folder))
        folder = out / "supervision_createml"
        dataset.as_createml(str(folder / part), str(folder / part / "_annotations.createml.json"))


def fill(parts: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, polygons filled."""
    import cv2

    mask = np.zeros(size, np.uint8)
    for part in parts:
        cv2.fillPoly(mask, [np.array(part).reshape(-1, 2).round().astype(np.int32)], 1)
    return mask.astype(bool)


def labelme(out: Path, pictures: list[Picture], categories: list[dict]) -> None:
    """Rectangles, polygons of which several may be one object, and masks."""
    from labelme._label_file import write_label_file
    from labelme.utils import img_arr_to_b64

    for kind in ("rectangles", "polygons", "masks"):
        folder = out / f"labelme_{kind}"
        folder.mkdir(parents=True)
        for picture in pictures:
            shapes = []
            for row in picture.objects:
                x, y, width, height = row["bbox"]
                common = {"label": row["name"], "group_id": None, "description": "", "flags": {}}
                common |= {"mask": None}
                corners = [[x, y], [x + width, y + height]]
                if kind == "rectangles":
                    shapes.append({**common, "shape_type": "rectangle", "points": corners})
                elif kind == "masks":
                    mask = fill(row["segmentation"], picture.size)
                    ys, xs = np.nonzero(mask)
                    x1, y1, x2, y2 = (int(v) for v in (xs.min(), ys.min(), xs.max(), ys.max()))
                    text = img_arr_to_b64(mask[y1 : y2 + 1, x1 : x2 + 1].astype(np.uint8) * 255)
                    fields = {"points": [[x1, y1], [x2, y2]], "mask": text}
                    shapes.append({**common, "shape_type": "mask", **fields})
                else:
                    group = row["id"] if len(row["segmentation"]) > 1 else None
                    for part in row["segmentation"]:
                        points = np.array(part).reshape(-1, 2).tolist()
                        fields = {"shape_type": "polygon", "points": points, "group_id": group}
                        shapes.append({**common, **fields})
            shutil.copy(picture.path, folder)
            write_label_file(
                str(folder / f"{picture.stem}.json"), shapes=shapes, image_path=picture.path.name,
                image_height=picture.size[0], image_width=picture.size[1],
            )  # fmt: skip


def label_studio(out: Path, pictures: list[Picture], categories: list[dict]) -> None:
    """COCO, VOC and YOLO of its converter, and the JSON that it converts."""
    from label_studio_sdk.converter import Converter

    names = [row["name"] for row in categories]
    labels = "".join(f'<Label value="{name}"/>' for name in names)
    for kind, tag in (("boxes", "RectangleLabels"), ("polygons", "PolygonLabels")):
        config = (
            f'<View><Image name="image" value="$image"/><{tag} name="label" toName="image">'
            f"{labels}</{tag}></View>"
        )
        tasks = [label_studio_task(number, p, kind) for number, p in enumerate(pictures, 1)]
        source = out / f"label-studio_json_{kind}"
        source.mkdir(parents=True)
        (source / "project-1.json").write_text(json.dumps(tasks, indent=1))
        converter = Converter(config, str(source), download_resources=False)
        formats = {"YOLO": "yolo", "COCO": "coco", "VOC": "voc", "YOLO_OBB": "yolo_obb"}
        for format, name in formats.items():
            if kind == "polygons" and name in ("voc", "yolo_obb"):
                continue
            folder = out / f"label-studio_{name}_{kind}"
            converter.convert(str(source), str(folder), format, is_dir=True)
            images = folder / "images"
            images.mkdir(exist_ok=True)
            for picture in pictures:
                shutil.copy(picture.path, images)


def label_studio_task(number: int, picture: Picture, kind: str) -> dict:
    """A task with one annotation; its numbers are per cent."""
    height, width = picture.size
    results = []
    for row in picture.objects:
        common = {
            "from_name": "label", "to_name": "image", "original_width": width,
            "original_height": height, "image_rotation": 0, "origin": "manual",
        }  # fmt: skip
        x, y, w, h = row["bbox"]
        if kind == "boxes":
            value = {"x": x / width, "y": y / height, "width": w / width, "height": h / height}
            value = {key: 100 * share for key, share in value.items()} | {"rotation": 0}
            result = {
                "type": "rectanglelabels",
                "value": value | {"rectanglelabels": [row["name"]]},
            }
            results.append({**common, **result, "id": f"r{len(results)}"})
            continue
        for part in row["segmentation"]:
            points = (np.array(part).reshape(-1, 2) * 100 / [width, height]).tolist()
            value = {"points": points, "closed": True, "polygonlabels": [row["name"]]}
            result = {"type": "polygonlabels", "value": value}
            results.append({**common, **result, "id": f"r{len(results)}"})
    annotation = {"id": number, "result": results, "was_cancelled": False}
    image = f"/data/upload/1/{picture.path.name}"
    return {"id": number, "data": {"image": image}, "annotations": [annotation], "predictions": []}


def ultralytics(out: Path, pictures: list[Picture], categories: list[dict]) -> None:
    """YOLO boxes, outlines and poses, by its converter of COCO files."""
    from ultralytics.data.converter import convert_coco

    names = [row["name"] for row in categories]
    ids = {row["id"]: number for number, row in enumerate(categories, 1)}
    for kind in ("boxes", "segments", "poses"):
        folder = out / f"ultralytics_yolo_{kind}"
        with tempfile.TemporaryDirectory() as temporary:
            for part in ("train", "val"):
                chosen = [p for p in pictures if p.part == part]
                content = coco_of(chosen, categories, ids, kind)
                (Path(temporary) / f"{part}.json").write_text(json.dumps(content))
            made = Path(temporary) / "made"
            convert_coco(
                temporary, str(made), use_segments=kind == "segments",
                use_keypoints=kind == "poses", cls91to80=False,
            )  # fmt: skip
            for part in ("train", "val"):
                shutil.copytree(made / "labels" / part, folder / "labels" / part)
                (folder / "images" / part).mkdir(parents=True)
                for picture in pictures:
                    if picture.part == part:
                        shutil.copy(picture.path, folder / "images" / part)
        rows = ["path: .", "train: images/train", "val: images/val"]
        used = [PERSON] if kind == "poses" else names
        if kind == "poses":
            rows += ["kpt_shape: [17, 3]", f"flip_idx: {flip_idx(categories)}"]
        rows += ["names:", *(f"  {i}: {name}" for i, name in enumerate(used))]
        (folder / "data.yaml").write_text("\n".join([*rows, ""]))


def flip_idx(categories: list[dict]) -> list[int]:
    """For each point of a person the one that it becomes in a mirror."""
    points = next(row["keypoints"] for row in categories if row["name"] == PERSON)
    swap = {"left": "right", "right": "left"}
    others = ["_".join(swap.get(word, word) for word in name.split("_")) for name in points]
    return [points.index(name) for name in others]


def coco_of(pictures: list[Picture], categories: list[dict], ids: dict, kind: str) -> dict:
    """A COCO file with ids from 1, of poses those of people alone."""
    images = [
        {"id": i, "file_name": p.path.name, "height": p.size[0], "width": p.size[1]}
        for i, p in enumerate(pictures, 1)
    ]
    rows = []
    for i, picture in enumerate(pictures, 1):
        for row in picture.objects:
            if kind == "poses" and row["name"] != PERSON:
                continue
            row = {key: value for key, value in row.items() if key != "name" and value is not None}
            rows.append({**row, "image_id": i, "category_id": ids[row["category_id"]]})
    return {
        "images": images,
        "annotations": rows,
        "categories": [{**row, "id": ids[row["id"]]} for row in categories],
    }


def fiftyone(out: Path, pictures: list[Picture], categories: list[dict]) -> None:
    """COCO, VOC, YOLO of versions 4 and 5, by its exporters alone: datasets need a database."""
    import fiftyone as fo
    from fiftyone.utils.coco import COCODetectionDatasetExporter
    from fiftyone.utils.voc import VOCDetectionDatasetExporter
    from fiftyone.utils.yolo import YOLOv4DatasetExporter, YOLOv5DatasetExporter

    names = [row["name"] for row in categories]
    folder = out / "fiftyone_yolov4"
    exporters = {("train", "val"): [YOLOv4DatasetExporter(str(folder), classes=names)]}
    for part in ("train", "val"):
        folders = [str(out / f"fiftyone_{name}" / part) for name in ("coco", "voc")]
        exporters[(part,)] = [
            YOLOv5DatasetExporter(str(out / "fiftyone_yolov5"), split=part, classes=names),
            COCODetectionDatasetExporter(folders[0], classes=names),
            VOCDetectionDatasetExporter(folders[1]),
        ]
    for parts, each in exporters.items():
        for exporter in each:
            with exporter:
                for picture in (p for p in pictures if p.part in parts):
                    height, width = picture.size
                    detections = []
                    for row in picture.objects:
                        x, y, w, h = row["bbox"]
                        box = [x / width, y / height, w / width, h / height]
                        detections.append(fo.Detection(label=row["name"], bounding_box=box))
                    metadata = fo.ImageMetadata.build_for(str(picture.path))
                    truth = fo.Detections(detections=detections)
                    exporter.export_sample(str(picture.path), truth, metadata=metadata)


TOOLS = {
    "datumaro": datumaro,
    "supervision": supervision,
    "labelme": labelme,
    "label-studio-sdk": label_studio,
    "ultralytics": ultralytics,
    "fiftyone": fiftyone,
}


def keep_texts(made: Path, stems: set[str]) -> dict[str, dict[str, str]]:
    """Copies the text files of exports here.

    Returns:
        export -> place of a picture in it -> name of the drawn picture.
    """
    places = {}
    for export in sorted(path for path in made.iterdir() if path.is_dir()):
        shutil.rmtree(HERE / export.name, ignore_errors=True)
        pictures = {}
        for path in sorted(path for path in export.rglob("*") if path.is_file()):
            inside = path.relative_to(export)
            if path.suffix in KEPT:
                target = HERE / export.name / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                text = path.read_text().replace(str(made), "/home/user/exports")
                target.write_text(text.replace(str(made.parent), "/home/user"))
            elif path.suffix == ".jpg" and path.stem in stems:
                pictures[inside.as_posix()] = path.name
        places[export.name] = pictures
    return places


def main(chosen: list[str]) -> None:
    listing = HERE / "pictures.json"
    places = json.loads(listing.read_text()) if listing.is_file() else {}
    for name in chosen or TOOLS:
        with tempfile.TemporaryDirectory() as temporary:
            pictures, categories = draw(Path(temporary) / "drawn")
            made = Path(temporary) / "made"
            made.mkdir()
            try:
                TOOLS[name](made, pictures, categories)
            except ModuleNotFoundError as error:
                print(f"{name} is not installed: {error}")
                continue
            places |= keep_texts(made, {picture.stem for picture in pictures})
            print(f"{name} {version(name)}: {', '.join(sorted(p.name for p in made.iterdir()))}")
    listing.write_text(json.dumps(places, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
