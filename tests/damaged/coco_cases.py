"""Damaged images and COCO annotation files."""

from collections.abc import Callable

from PIL import Image

from tests.damaged import readers
from tests.damaged.case import Case, cut, file
from tests.damaged.place import Place, png_header

NAN, INF = float("nan"), float("inf")
DETECTION, SEGMENTATION = readers.coco("detection"), readers.coco("segmentation")
KEYPOINT, CAPTIONING = readers.coco("keypoint"), readers.coco("captioning")


def _row(kind: str, **values) -> Callable[[Place], None]:
    """Changes fields of the first annotation; `...` as a value takes the field away."""

    def change(content: dict) -> None:
        row = content["annotations"][0]
        row.update(values)
        for name in [name for name, value in values.items() if value is ...]:
            del row[name]

    return lambda place: place.change(kind, change)


def _image(**values) -> Callable[[Place], None]:
    return lambda place: place.change("instances", lambda c: c["images"][0].update(values))


def _category(**values) -> Callable[[Place], None]:
    change = lambda c: c["categories"][0].update(values)  # noqa: E731
    return lambda place: [place.change(k, change) for k in ("instances", "person_keypoints")]


def _gray_bomb(place: Place) -> None:
    Image.new("1", (20_000, 20_000)).save(place.root / "picture.png")


IMAGES = [
    Case(
        "image",
        "missing",
        lambda p: (p.root / "train2017/1.jpg").unlink(),
        DETECTION,
        "1.jpg is missing; image id 1 needs it",
    ),
    Case(
        "image",
        "cut off",
        cut("train2017/1.jpg", 0.6),
        DETECTION,
        "cannot read image .*1.jpg: .*truncated",
    ),
    Case(
        "image",
        "empty",
        file("train2017/1.jpg", b""),
        DETECTION,
        "cannot read image .*1.jpg",
    ),
    Case(
        "image",
        "a web page",
        file("train2017/1.jpg", "<html>"),
        CAPTIONING,
        "cannot read image .*1.jpg",
    ),
    Case(
        "image",
        "another size than annotated",
        lambda p: Image.new("RGB", (9, 7)).save(p.root / "train2017/1.jpg"),
        DETECTION,
        "is 7x9 .HxW., but its annotation says 40x60",
    ),
    Case(
        "image",
        "claims 100,000 x 100,000 pixels",
        file("picture.png", png_header(100_000, 100_000)),
        readers.image,
        "picture.png: Image size .10000000000 pixels. exceeds",
    ),
    Case(
        "image",
        "claims 70,000 x 10 pixels",
        file("picture.png", png_header(70_000, 10)),
        readers.image,
        "it claims to be 10x70000 .HxW.",
    ),
    Case(
        "image",
        "50 kB that unpack to 20,000 x 20,000 pixels",
        _gray_bomb,
        readers.image,
        "exceeds limit|claims to be",
    ),
    Case(
        "image",
        "no pixels in it",
        file("picture.png", png_header(20, 20)),
        readers.image,
        "picture.png: image file is truncated",
    ),
]

COCO = [
    Case(
        "instances JSON",
        "a web page",
        file("annotations/instances_train2017.json", "<html>"),
        DETECTION,
        "is a web page",
    ),
    Case(
        "instances JSON",
        "cut off",
        cut("annotations/instances_train2017.json", 0.7),
        DETECTION,
        "as JSON",
    ),
    Case(
        "instances JSON",
        "100,000 nested lists",
        file("annotations/instances_train2017.json", "[" * 100_000),
        DETECTION,
        "as JSON",
    ),
    Case(
        "instances JSON",
        "a list",
        file("annotations/instances_train2017.json", "[1]"),
        DETECTION,
        "no list 'images'",
    ),
    Case(
        "instances JSON",
        "holds captions",
        lambda p: p.write_json("annotations/instances_train2017.json", p.annotations("captions")),
        DETECTION,
        "has no 'bbox'",
    ),
    Case(
        "instances JSON",
        "no categories",
        lambda p: p.change("instances", lambda c: c.pop("categories")),
        DETECTION,
        "no list 'categories'",
    ),
    Case(
        "instances JSON",
        "category id is text",
        _category(id="1"),
        DETECTION,
        "entry 0 of 'categories': id must be a whole number, got '1'",
    ),
    Case(
        "instances JSON",
        "category id twice",
        lambda p: p.change("instances", lambda c: c["categories"].append(c["categories"][0])),
        DETECTION,
        "an id occurs twice",
    ),
    Case(
        "instances JSON",
        "image id twice",
        lambda p: p.change("instances", lambda c: c["images"].append(c["images"][0])),
        DETECTION,
        "image id 1 twice",
    ),
    Case(
        "instances JSON",
        "image id is a fraction",
        _image(id=1.5),
        DETECTION,
        "id must be a whole number, got 1.5",
    ),
    Case(
        "instances JSON",
        "file_name /etc/passwd",
        _image(file_name="/etc/passwd"),
        DETECTION,
        "image 1: file_name must stay in the image folder",
    ),
    Case(
        "instances JSON",
        "file_name ../2.jpg",
        _image(file_name="../train2017/2.jpg"),
        DETECTION,
        "image 1: file_name must stay in the image folder",
    ),
    Case(
        "instances JSON",
        "file_name with a drive",
        _image(file_name="C:\\secret.png"),
        DETECTION,
        "image 1: file_name must stay in the image folder",
    ),
    Case(
        "instances JSON",
        "file_name is a number",
        _image(file_name=7),
        DETECTION,
        "file_name must be text, got 7",
    ),
    Case(
        "instances JSON",
        "image width -5",
        _image(width=-5),
        DETECTION,
        "width must be 1 to 65535 pixels, got -5",
    ),
    Case(
        "instances JSON",
        "image height 1e9",
        _image(height=10**9),
        DETECTION,
        "height must be 1 to 65535 pixels",
    ),
    Case(
        "instances JSON",
        "bbox with NaN",
        _row("instances", bbox=[1, NAN, 3, 4]),
        DETECTION,
        "annotation 1 of image 1: bbox must be finite",
    ),
    Case(
        "instances JSON",
        "bbox with infinity",
        _row("instances", bbox=[1, 2, INF, 4]),
        DETECTION,
        "annotation 1 of image 1: bbox must be finite",
    ),
    Case(
        "instances JSON",
        "bbox up to 1e30",
        _row("instances", bbox=[0, 0, 1e30, 1e30]),
        DETECTION,
        "annotation 1 of image 1: bbox must be finite",
    ),
    Case(
        "instances JSON",
        "bbox of three numbers",
        _row("instances", bbox=[1, 2, 3]),
        DETECTION,
        "annotation 1 of image 1: bbox must be 4 numbers",
    ),
    Case(
        "instances JSON",
        "bbox is text",
        _row("instances", bbox="1 2 3 4"),
        DETECTION,
        "annotation 1 of image 1: bbox must be 4 numbers",
    ),
    Case(
        "instances JSON",
        "unknown category",
        _row("instances", category_id=5),
        DETECTION,
        "annotation 1 of image 1: it has the unknown category 5",
    ),
    Case(
        "instances JSON",
        "category_id 1.5",
        _row("instances", category_id=1.5),
        DETECTION,
        "category_id must be a whole number",
    ),
    Case(
        "instances JSON",
        "no image_id",
        _row("instances", image_id=...),
        DETECTION,
        "annotation 1 of image None: it has no 'image_id'",
    ),
    Case(
        "instances JSON",
        "bbox of width 0",
        _row("instances", bbox=[5, 5, 0, 9]),
        DETECTION,
        "boxes without an area, 1 .annotation 1 of image 1",
        notice=True,
    ),
    Case(
        "instances JSON",
        "bbox of height -3",
        _row("instances", bbox=[5, 5, 4, -3]),
        DETECTION,
        "boxes without an area, 1 .annotation 1 of image 1",
        notice=True,
    ),
    Case(
        "instances JSON",
        "bbox outside the image",
        _row("instances", bbox=[100, 5, 4, 4]),
        DETECTION,
        "boxes outside their image, 1",
        notice=True,
    ),
    Case(
        "instances JSON",
        "annotation of an image it does not list",
        _row("instances", image_id=9),
        DETECTION,
        "that the file does not list, 1",
        notice=True,
    ),
    Case(
        "instances JSON",
        "polygon of two points",
        _row("instances", segmentation=[[1, 2, 3, 4]]),
        SEGMENTATION,
        "fewer than three points or without an area, 1",
        notice=True,
    ),
    Case(
        "instances JSON",
        "no outline",
        _row("instances", segmentation=[]),
        SEGMENTATION,
        "objects without an outline, 1",
        notice=True,
    ),
    Case(
        "instances JSON",
        "polygon of seven numbers",
        _row("instances", segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        SEGMENTATION,
        "even count of numbers, got 7",
    ),
    Case(
        "instances JSON",
        "polygon with NaN",
        _row("instances", segmentation=[[1, 2, 3, 4, 5, NAN]]),
        SEGMENTATION,
        "coordinates must be finite",
    ),
    Case(
        "instances JSON",
        "polygon that goes to and fro for 36 million pixels",
        _row("instances", segmentation=[[0, 0, 900_000, 0] * 20]),
        SEGMENTATION,
        "an outline of 36000000 pixels in a picture of 40x60",
    ),
    Case(
        "instances JSON",
        "segmentation is text",
        _row("instances", segmentation="all"),
        SEGMENTATION,
        "segmentation must be polygons or run lengths",
    ),
    Case(
        "instances JSON",
        "run lengths beyond the image",
        _row("instances", segmentation={"size": [40, 60], "counts": [0, 9999]}),
        SEGMENTATION,
        "must add up to the 2400 pixels",
    ),
    Case(
        "instances JSON",
        "run lengths that made pycocotools write past its memory",
        _row("instances", segmentation={"size": [40, 60], "counts": "\u007fZ\u0002o~~~"}),
        SEGMENTATION,
        "not valid COCO text",
    ),
    Case(
        "instances JSON",
        "run lengths of a mask of 1e6 x 1e6",
        _row("instances", segmentation={"size": [10**6, 10**6], "counts": [10**12]}),
        SEGMENTATION,
        "size of run lengths must be that of a picture",
    ),
    Case(
        "instances JSON",
        "the same of a crowd, in evaluation",
        _row("instances", iscrowd=1, segmentation={"size": [40, 60], "counts": [-1, 2401]}),
        readers.ground_truth,
        "must be whole numbers, 0 or more",
    ),
    Case(
        "keypoints JSON",
        "one number too few",
        _row("person_keypoints", keypoints=[6, 6, 2, 20, 15]),
        KEYPOINT,
        "keypoints must be 6 numbers",
    ),
    Case(
        "keypoints JSON",
        "NaN",
        _row("person_keypoints", keypoints=[6, NAN, 2, 20, 15, 1]),
        KEYPOINT,
        "keypoints must be finite",
    ),
    Case(
        "keypoints JSON",
        "visibility 7",
        _row("person_keypoints", keypoints=[6, 6, 7, 20, 15, 1]),
        KEYPOINT,
        "visibility of keypoints must be 0, 1 or 2",
    ),
    Case(
        "keypoints JSON",
        "skeleton joins a point that is not there",
        _category(skeleton=[[1, 9]]),
        KEYPOINT,
        "skeleton must be pairs of two of the numbers 1 to 2",
    ),
    Case(
        "captions JSON",
        "caption is a number",
        _row("captions", caption=7),
        CAPTIONING,
        "annotation 1 of image 1: caption must be text",
    ),
    Case(
        "captions JSON",
        "caption is empty",
        _row("captions", caption="  "),
        CAPTIONING,
        "empty captions, 1",
        notice=True,
    ),
    Case(
        "captions JSON",
        "of an image it does not list",
        _row("captions", image_id=9),
        CAPTIONING,
        "does not list, 1 .annotation 1 of image 9",
        notice=True,
    ),
]
