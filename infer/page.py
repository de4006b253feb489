"""Predictions and pictures of the browser page (`infer/app.py`), for one visitor and picture.

Nothing here needs gradio: `infer/page_layout.py` puts it into a page.
"""

import dataclasses
import json
import re
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from infer.batches import as_tensor
from infer.multi_task import AllTasksOptions, check_can_start, draw_together, find_all
from infer.predictor import Predictor
from infer.results import AllTasks, Captions, Detections, InstanceMasks, Keypoints
from infer.script import predictor_of
from models.weights import read_header
from utils.errors import UserError
from utils.files import find_weight_file, is_hub_name, path_text, write_json_atomic
from utils.images import load_image
from utils.visualize import draw_detections, save_image

MIN_SCORE = 0.1  # masks and keypoints are asked for objects that score at least this
KEPT = 2  # models in memory
TASKS = {  # what the page calls a task -> the tasks of the weights that it needs, one of them
    "everything": ("detection", "captioning"),
    "objects": ("detection",),
    "masks": ("segmentation",),
    "keypoints": ("keypoint",),
    "caption": ("captioning",),
}
KINDS = ("captions", "objects", "masks", "keypoints")
BOXED = ("masks", "keypoints")  # tasks that are asked about the boxes that are drawn
ANY_CLASS = "predicted by the model"
DEMO_NOTICE = "These weights only know drawn scenes, such as the example picture."
EMPTY = "The answer appears here. Drop a picture, choose a task and press “Ask the model”."
MARK = (230, 25, 75)


@dataclass
class Session:
    """The state of one visitor."""

    name: str = ""  # of the picture
    image: np.ndarray | None = None  # (H, W, 3) uint8 RGB
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # xyxy pixels
    corner: tuple[float, float] | None = None  # x, y of the first click of a box
    found: dict[str, object] = field(default_factory=dict)  # kind -> result, of all scores
    record: dict[str, object] = field(default_factory=dict)  # of the answer, for the JSON
    folder: Path | None = None  # of what can be downloaded

    def open(self, path: str | Path | None) -> None:
        """Opens another picture; boxes and results are discarded.

        Raises:
            UserError: it is no picture.
        """
        self.boxes, self.corner, self.found, self.record = [], None, {}, {}
        self.image, self.name = None, "" if path is None else Path(path).name
        if path is None:
            return
        try:
            self.image = load_image(path)
        except UserError as error:  # it lies where the page keeps what is uploaded
            raise UserError(str(error).replace(str(path), self.name)) from error

    def click(self, x: float, y: float) -> None:
        """The first click is a corner of a box, the second one the opposite corner."""
        if self.image is None:
            return
        height, width = self.image.shape[:2]
        x, y = float(np.clip(x, 0, width)), float(np.clip(y, 0, height))
        if self.corner is None:
            self.corner = x, y
            return
        (x0, y0), self.corner = self.corner, None
        if x != x0 and y != y0:
            self.boxes.append((min(x, x0), min(y, y0), max(x, x0), max(y, y0)))

    def forget_boxes(self) -> None:
        self.boxes, self.corner = [], None

    def marked(self) -> np.ndarray | None:
        """The picture with the boxes and the corner that were drawn."""
        if self.image is None:
            return None
        boxes = [*self.boxes]
        names = [f"box {i}" for i in range(1, len(boxes) + 1)]
        if self.corner is not None:
            radius = max(3, max(self.image.shape) // 150)
            (x, y) = self.corner
            boxes.append((x - radius, y - radius, x + radius, y + radius))
            names.append("+")
        return draw_detections(self.image, np.float32(boxes), names, colors=[MARK] * len(boxes))


class Answers:
    """Runs the offered weights; the last used ones stay loaded.

    Args:
        weights: files, run folders or names of the hub.
        cfg: settings, for how it computes.

    Raises:
        UserError: one of them is no weight file of ours.
    """

    def __init__(self, weights: list[Path], cfg, device: str | None = None):
        self.cfg, self.device = cfg, device
        names = [
            path_text(path) if is_hub_name(path) else "/".join(path.parts[-2:]) for path in weights
        ]
        if len(set(names)) < len(weights):
            names = list(map(path_text, weights))
        self.files = dict(zip(names, weights, strict=True))
        self.metas = {n: read_header(find_weight_file(p))[1] for n, p in self.files.items()}
        self.loaded: dict[str, Predictor] = {}
        self.lock = threading.Lock()

    def tasks(self, name: str) -> list[str]:
        """The tasks of a weight file, as the page names them."""
        known = set(self.metas[name]["tasks"])
        tasks = [task for task, needed in TASKS.items() if known & set(needed)]
        return tasks if len(known) > 1 else [task for task in tasks if task != "everything"]

    def notice(self, name: str) -> str:
        """What a person should know about the weights; empty if nothing."""
        demo = self.cfg.demo_weights.resolve()
        return DEMO_NOTICE if Path(self.files[name]).resolve() == demo else ""

    def classes(self, name: str) -> list[str]:
        return [row["name"] for row in self.metas[name]["categories"]]

    def answer(self, session: Session, name: str, task: str, label: str = ANY_CLASS) -> None:
        """Runs the model; the session keeps the results, so that the threshold can change.

        Raises:
            UserError: there is no picture, the weights cannot do it, or another picture was opened
                meanwhile.
        """
        image = session.image
        if image is None:
            raise UserError("there is no picture; drop one first")
        if session.corner is not None:
            raise UserError("a box is half drawn; click its other corner, or press Remove boxes")
        if task not in self.tasks(name):
            raise UserError(f"{name} does not know {task}; choose another task or other weights")
        with self.lock:  # one model at a time has the processor
            predictor = self._load(name)
            began = time.perf_counter()
            boxes = np.float32(session.boxes) if session.boxes else None
            found = _ask(predictor, image, boxes, task, None if label == ANY_CLASS else label)
            seconds = time.perf_counter() - began
        if session.image is not image:
            raise UserError("another picture was opened; ask the model again")
        session.found = found
        session.record = {
            "weights": predictor.weights_record, "task": task, "seconds": round(seconds, 3),
        }  # fmt: skip

    def _load(self, name: str) -> Predictor:
        if name not in self.loaded:
            while len(self.loaded) >= KEPT:
                del self.loaded[next(iter(self.loaded))]
            self.loaded[name] = predictor_of(self.files[name], self.cfg, self.device)
        return self.loaded[name]


def _ask(
    predictor: Predictor, image: np.ndarray, boxes: np.ndarray | None, task: str, label: str | None
) -> dict:
    """The results of a task by their kind, of objects with any score."""
    options = {"score_threshold": MIN_SCORE}
    if boxes is not None:
        options = {"labels": label}
    if task == "objects":
        return {"objects": predictor.detect(image)}
    if task == "masks":
        return {"masks": predictor.segment(image, boxes, **options)}
    if task == "keypoints":
        return {"keypoints": predictor.keypoints(image, boxes, **options)}
    if task == "caption":
        return {"captions": predictor.caption(image)}
    check_can_start(predictor)
    (found,) = find_all(predictor, [as_tensor(image)], AllTasksOptions(score_threshold=MIN_SCORE))
    kinds = {name: getattr(found, name) for name in KINDS}
    return {name: one for name, one in kinds.items() if one is not None}


def above(found: Detections | InstanceMasks | Keypoints, threshold: float):
    """The objects of a result that score at least `threshold`."""
    rows = np.flatnonzero(found.scores >= threshold)
    changes = {}
    for each in dataclasses.fields(found):
        value = getattr(found, each.name)
        if isinstance(value, np.ndarray):
            changes[each.name] = value[rows]
        elif isinstance(value, list):
            changes[each.name] = [value[i] for i in rows]
    return dataclasses.replace(found, **changes)


@dataclass(frozen=True)
class View:
    """The part of a result that is visible at a threshold."""

    picture: np.ndarray | None  # (H, W, 3) uint8 RGB
    text: str  # Markdown
    files: tuple[Path, ...] = ()  # PNG and JSON


def view(session: Session, threshold: float) -> View:
    """Draws the results of a session without running the model again."""
    if not session.found:
        return View(None, EMPTY)
    shown = {
        kind: one if isinstance(one, Captions) else above(one, threshold)
        for kind, one in session.found.items()
    }
    picture = draw_together(session.image, AllTasks(**dict.fromkeys(KINDS) | shown))
    height, width = session.image.shape[:2]
    head = {"image": session.name, "size": [width, height], **session.record}
    rows = {kind: one.to_json() for kind, one in shown.items()}
    content = head | {"score_threshold": round(float(threshold), 4)} | rows
    return View(picture, _text(session, shown), _write(session, picture, content))


def _text(session: Session, shown: dict) -> str:
    """Captions, a table of objects, and how long it took."""
    lines = []
    if "captions" in shown:
        lines += [f"> {_plain(text)}" for text in shown["captions"].texts]
    objects = next((shown[k] for k in ("objects", "masks", "keypoints") if k in shown), None)
    if objects is not None:
        count, hidden = len(objects), _count(session.found) - len(objects)
        below = f", {hidden} more below the threshold" if hidden else ""
        lines += ["", f"**{count} object{'' if count == 1 else 's'}**{below}", ""]
        if count:
            lines += [
                "| class | score | box: xmin, ymin, xmax, ymax (px) |",
                "| --- | ---: | --- |",
            ]
        for name, score, box in zip(objects.names, objects.scores, objects.boxes, strict=True):
            corners = ", ".join(f"{value:.0f}" for value in box)
            lines.append(f"| {_plain(name)} | {100 * score:.0f}% | {corners} |")
    task = session.record["task"]
    if session.boxes and task not in BOXED:
        lines += ["", f"The boxes were not used: {task} is about the whole picture."]
    lines += ["", f"{session.record['seconds']:.2f} s for {task}"]
    return "\n".join(lines)


def _count(found: dict) -> int:
    """Objects of an answer, of all scores."""
    return next((len(one) for kind, one in found.items() if kind != "captions"), 0)


def _plain(text: str) -> str:
    """Names and captions are what somebody trained: nothing of them is markup."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&~$-])", r"\\\1", " ".join(text.split()))


def _write(session: Session, picture: np.ndarray, content: dict) -> tuple[Path, Path]:
    """PNG and JSON in a folder of the session, named as the picture."""
    if session.folder is None:
        session.folder = Path(tempfile.mkdtemp(prefix="pix2seq-page-"))
    stem = re.sub(r"[^\w-]", "_", Path(session.name).stem)[:60] or "picture"
    png, text = (session.folder / f"{stem}_result.{suffix}" for suffix in ("png", "json"))
    save_image(png, picture)
    write_json_atomic(text, json.loads(json.dumps(content)))
    return png, text
