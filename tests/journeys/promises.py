"""What README.md says that its commands leave, and how long they may take."""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors import safe_open

from tests.journeys.clone import ROOT
from tests.journeys.page import Command
from tests.journeys.servers import OFFICIAL_VALUES

README = (ROOT / "README.md").read_text()
TASKS = ("detection", "segmentation", "keypoint", "captioning")
PICTURES = {
    "detection": "object_detection.png",
    "segmentation": "instance_segmentation.png",
    "keypoint": "keypoint_detection.png",
}
TASKS_OF_SCRIPT = {  # end of a script's name -> tasks that it draws pictures of
    "multi_task": ("detection", "segmentation", "keypoint"),
    "object_detection": ("detection",),
    "voc": ("detection",),
    "segmentation": ("segmentation",),
    "keypoint": ("keypoint",),
    "caption": (),
}


@dataclass(frozen=True)
class Outcome:
    """A command that has run, and the folder that it ran in."""

    root: Path
    command: str
    stdout: str
    stderr: str
    began: float  # seconds since the epoch
    old_runs: set[Path]  # run folders that were there before

    def option(self, name: str, default: str = "") -> str:
        """Value of an option of the command."""
        words = shlex.split(self.command)
        return words[words.index(name) + 1] if name in words else default

    def check_file(self, name: str | Path) -> Path:
        """A file that this command wrote and that can be opened."""
        path = self.root / name
        assert path.is_file(), f"{name} is not there"
        # the clock of files may be a hundredth of a second behind
        assert path.stat().st_mtime > self.began - 0.02, f"{name} is older than the command"
        assert path.stat().st_size, f"{name} is empty"
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            with safe_open(path, "numpy") as file:
                assert file.keys() and file.metadata()
        return path


@dataclass(frozen=True)
class Promise:
    """What is expected of commands that start alike."""

    seconds: int  # the longest that it may take
    check: Callable[[Outcome], None]


def check_demo(outcome: Outcome) -> None:
    """Drawn data, the evaluation of all tasks, pictures; fine-tuning on photographs, pictures."""
    assert len(list((outcome.root / "data" / "demo" / "train2017").iterdir())) == 2000
    for task in TASKS:
        for name in ("results.json", "metrics.json", "per_class.csv"):
            outcome.check_file(f"demo/evaluation/{task}/{name}")
        assert re.search(rf"^{task} .*\d\.\d", outcome.stdout, re.MULTILINE)
    for name in PICTURES.values():
        outcome.check_file(f"demo/{name}")
    judged = re.findall(r"step (\d+)/\d+ .*detection AP (\d\.\d+)", outcome.stderr)
    assert judged[0] == ("0", "0.000"), "the weights do not know these classes"
    assert float(judged[-1][1]) > 0.1
    assert len(list((outcome.root / "demo").glob("BloodImage_*_object_detection.png"))) == 4
    assert outcome.stdout.count("\n== ") == 7


def check_test(outcome: Outcome) -> None:
    assert "All checks passed!" in outcome.stdout, "linter"
    assert re.search(r"\d+ files? already formatted", outcome.stdout), "formatter"
    assert re.search(r"\d+(/\d+)? tests? collected", outcome.stdout)


def check_install(outcome: Outcome) -> None:
    assert "Requirement already satisfied: torch" in outcome.stdout


def check_inference(outcome: Outcome) -> None:
    """Pictures of the task, results on stdout, and JSON where it was asked for."""
    script = Path(shlex.split(outcome.command)[1]).stem
    tasks = next(tasks for name, tasks in TASKS_OF_SCRIPT.items() if script.endswith(name))
    images = sorted(outcome.root.glob(outcome.option("--image")))
    if images[0].is_dir():
        images = sorted(images[0].iterdir())
    out = Path(outcome.option("--out-dir", "."))
    for image in images:
        prefix = f"{image.stem}_" if len(images) > 1 else ""
        for task in tasks:
            picture = outcome.check_file(out / f"{prefix}{PICTURES[task]}")
            with Image.open(picture) as drawn, Image.open(image) as original:
                assert drawn.width >= original.width and drawn.height >= original.height
    assert outcome.stdout.strip(), "results go to stdout"
    if "--json" in outcome.command:
        if outcome.command.endswith("--json"):
            rows = json.loads(outcome.stdout)  # the results and nothing else
        else:
            rows = json.loads(outcome.check_file(outcome.option("--json")).read_text())
        assert [Path(row["image"]).name for row in rows] == [image.name for image in images]
    if "--timing" in outcome.command:
        assert "seconds" in outcome.stderr and "passes" in outcome.stderr


def check_example(outcome: Outcome) -> None:
    """The Python example: what it found in a picture that the weights have not seen."""
    found = json.loads(outcome.stdout)
    assert found["objects"] == len(found["names"]) == found["masks"][0] > 0
    assert found["scores"] == sorted(found["scores"], reverse=True), "best first"
    with Image.open(outcome.root / "images" / "demo.jpg") as image:
        assert found["masks"][1:] == [image.height, image.width]
    assert found["people"][1:] == [17, 3]
    assert all(found["captions"])


def check_coco(outcome: Outcome) -> None:
    for folder in ("train2017", "val2017", "annotations"):
        assert list((outcome.root / "data" / "coco" / folder).iterdir())


def check_voc(outcome: Outcome) -> None:
    kit = outcome.root / "data" / "VOC" / "VOCdevkit"
    for name in ("VOC2007/ImageSets/Main/test.txt", "VOC2012/ImageSets/Main/trainval.txt"):
        assert (kit / name).read_text().split()


def check_official(outcome: Outcome) -> None:
    """A whole weight file with as many values as the published one, and its checksum."""
    path = outcome.check_file("weights/coco_vit_b_640.safetensors")
    with safe_open(path, "numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    assert sum(map(math.prod, shapes)) == OFFICIAL_VALUES
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_name(path.name + ".sha256").read_text().split() == [digest, path.name]


def check_vocabulary(outcome: Outcome) -> None:
    outcome.check_file("data/caption_vocab.json")


def check_dataset(outcome: Outcome) -> None:
    """Counts on stdout, sheets of samples and statistics."""
    sheets = list((outcome.root / "dataset_check").rglob("*.png"))
    assert sheets and outcome.stdout.strip()
    for sheet in sheets:
        outcome.check_file(sheet)


def check_run(outcome: Outcome, too_early: tuple[str, ...] = ()) -> None:
    """One new folder of this command, with the files in the page's table of a run.

    Args:
        too_early: names in that table that the run was too short for.
    """
    new = find_runs(outcome.root) - outcome.old_runs
    assert len(new) == 1, f"one new folder below runs/, got {new}"
    (run_dir,) = new
    table = README.split("| file | content |")[1].split("\n\n")[0]
    names = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert len(names) >= 9, "the table of what a run leaves"
    if not json.loads((run_dir / "settings.json").read_text())["ema_decay"]:
        names.remove("last_ema.safetensors")
    for name in names:
        if name in too_early:
            continue
        paths = sorted(run_dir.glob(name.rstrip("/")))
        assert paths, f"{name} is not in {run_dir}"
        for path in filter(Path.is_file, paths):
            outcome.check_file(path)
    if "best/" not in too_early:
        assert list((run_dir / "best").rglob("metrics.json")), "results of the best evaluation"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [value for row in rows for name, value in row.items() if name.endswith("loss")]
    assert losses and all(map(math.isfinite, losses))


def find_runs(root: Path) -> set[Path]:
    return set(root.glob("runs/*/*/"))


def check_evaluation(outcome: Outcome) -> None:
    """Results and a report for each task; the weights know these scenes, so AP is not 0."""
    task, dataset = outcome.option("--task"), outcome.option("--dataset", "coco")
    split = outcome.option("--split", "val").replace(":", "-")
    out = Path("results") / f"{task}_{dataset}_{split}"
    for folder in [out / name for name in TASKS] if task == "all" else [out]:
        outcome.check_file(folder / "results.json")
        outcome.check_file(folder / "per_class.csv")
        outcome.check_file(folder / "report.html")
        metrics = json.loads(outcome.check_file(folder / "metrics.json").read_text())
        first = next(iter(metrics.values()))  # the one to compare weights by
        assert first > 0.1, f"{folder}: {metrics}"
    assert outcome.stdout.strip()


PROMISES = {  # beginning of a command -> what is expected; the first that fits
    "make demo": Promise(600, check_demo),  # the page says 5 minutes, and 4 for the installation
    "make test": Promise(180, check_test),
    ".venv/bin/pip install": Promise(60, check_install),
    "python infer/infer_": Promise(60, check_inference),
    "from infer": Promise(60, check_example),
    "python infer/evaluate.py": Promise(120, check_evaluation),
    "download/download_coco.sh": Promise(30, check_coco),
    "download/download_voc.sh": Promise(30, check_voc),
    "download/download_official_weights.sh": Promise(120, check_official),
    "python dataset/build_captioning_vocab.py": Promise(30, check_vocabulary),
    "python dataset/check_dataset.py": Promise(60, check_dataset),
    "python train/": Promise(180, check_run),
    "tensorboard ": Promise(60, lambda outcome: None),  # looked at while it runs
}


def find_promise(command: Command) -> Promise | None:
    found = (p for start, p in PROMISES.items() if command.plain.startswith(start))
    return next(found, None)
