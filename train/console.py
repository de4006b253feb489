"""Terminal output of a run: at its start, during training, at its end.

All of it goes to stderr. On a terminal there is a bar; elsewhere (a file, a pipe) there are plain
lines. Of several processes the first one speaks.
"""

import json
import math
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from dataset.find_dataset import data_of
from infer.results import Report
from train.build import Run
from train.loss import amp_dtype
from train.settings import batch_sizes
from train.validate import leading_metric
from utils.cli import base_class, pass_on, settings_types

ROOT = Path(__file__).resolve().parents[1]
PLAIN_SECONDS = 30.0  # between two lines of progress where there is no bar
NUM_NAMES = 6  # of classes that are listed
MAX_LOOKS = 50  # images in which an object is looked for
INFERENCE = {"detection": "object_detection", "captioning": "caption"}  # task -> end of the script


def start_text(run: Run, run_dir: Path) -> str:
    """The about ten lines at the start of a run; settings.json has all settings.

    Args:
        run_dir: the run folder.
    """
    base, changed = changed_settings(run.cfg)
    rows = [
        ("run folder", f"{_short(run_dir)} ({_curves(run)})"),
        ("model", _model(run)),
        ("weights", run.weights_from),
        *(("data", _data(run, task)) for task in run.tasks),
        ("classes", _classes(run)),
        ("schedule", _schedule(run)),
        ("device", _device(run)),
        ("settings", f"{base.__name__} with {' '.join(changed) or 'no change'}"),
    ]
    return "\n".join(f"{name:10}  {text}" for name, text in rows)


def _curves(run: Run) -> str:
    """Where the curves are, and where the first batch can be seen."""
    names = run.cfg.logger.split(",")
    places = [f"tensorboard --logdir {_short(run.cfg.runs_dir)}"] * ("tensorboard" in names)
    places += [name for name in names if name in ("wandb", "trackio")]
    return f"curves: {', '.join(places) or 'metrics.jsonl'}; first batch: pictures/"


def changed_settings(cfg) -> tuple[type, list[str]]:
    """The class of config.py of `cfg`, and its differing settings as "name=value"."""
    base = base_class(cfg)
    names = [n for n in settings_types(base) if getattr(cfg, n) != getattr(base, n)]
    return base, [f"{name}={_value(getattr(cfg, name))}" for name in names]


def _value(value) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _model(run: Run) -> str:
    model = run.state.model
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    height, width = model.config.image_size
    return f"{model.config.encoder}, {millions:.1f} M parameters, images of {width} x {height}"


def _data(run: Run, task: str) -> str:
    parts = {"to train on": run.sources[task], "to validate on": run.eval_sources[task]}
    sizes = ", ".join(f"{len(source)} samples {use}" for use, source in parts.items())
    data = data_of(run.cfg) if run.cfg.dataset == "coco" else None
    place = run.cfg.dataset if data is None else f"{_short(data.path)} ({data.title})"
    return f"{task} on {place}: {sizes}"


def _classes(run: Run) -> str:
    names = list(run.categories.names.values())
    more = ", …" if len(names) > NUM_NAMES else ""
    return f"{len(names)}: {', '.join(names[:NUM_NAMES])}{more}" if names else "none"


def _schedule(run: Run) -> str:
    cfg, steps = run.cfg, run.steps
    sizes = batch_sizes(cfg, run.tasks)
    batch = "+".join(map(str, sizes.values()))
    for count, name in ((cfg.accumulate_steps, "accumulated"), (run.world.size, "processes")):
        batch += f" x {count} {name}" if count > 1 else ""
    lr = run.state.scheduler.base_lrs[0]
    here = f", from step {run.state.step}" if run.state.step else ""
    return (
        f"{num_epochs(run)} epochs of {steps.epoch} steps, {steps.total} steps{here}; batch "
        f"{batch}; lr {lr:.3g}, {cfg.lr_schedule}, warm-up {steps.warmup} steps"
    )


def _device(run: Run) -> str:
    device = run.state.model.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    dtype = amp_dtype(run.cfg.amp, device) or torch.float32
    count = run.world.size
    processes = f", {count} processes" if count > 1 else ""
    return f"{device}{name}, {str(dtype).removeprefix('torch.')}{processes}"


def num_epochs(run: Run) -> int:
    """Epochs of the run; the last one need not be whole."""
    return -(-run.steps.total // run.steps.epoch)


class Progress:
    """A bar on a terminal, plain lines elsewhere, and a line per epoch that stays."""

    def __init__(self, run: Run):
        self.run, self.is_main = run, run.world.is_main
        self.has_bar = self.is_main and sys.stderr.isatty()
        self.bar = tqdm(
            total=run.steps.total,
            initial=run.state.step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.has_bar,
        )
        self._last_line = time.monotonic()

    def step(self) -> None:
        """Call after every optimiser step."""
        self.bar.update()

    def point(self, values: dict[str, float]) -> None:
        """Shows a point of the curves."""
        numbers = {
            "loss": f"{values.get('train/loss', math.nan):.3f}",
            "lr": f"{values['train/lr']:.2e}",
            "images/s": f"{values['train/images_per_s']:.0f}",
        }
        if self.has_bar:
            self.bar.set_description(f"epoch {self._epoch()}", refresh=False)
            self.bar.set_postfix(numbers, refresh=False)
        if time.monotonic() - self._last_line > PLAIN_SECONDS:
            self.say(f"{self._place()}  {_joined(numbers)}", shown=not self.has_bar)

    def epoch(self, loss: float, seconds: float, reports: dict[str, Report]) -> None:
        """A line about the epoch that ended.

        Args:
            loss: mean of its steps.
            seconds: that they took.
            reports: task -> its validation; empty if there was none.
        """
        numbers = f"loss {loss:.3f}  {seconds:.0f} s"
        self.say(f"{self._place()}  {numbers}{figures_text(reports)}{self._mark(reports)}")

    def evaluation(self, reports: dict[str, Report]) -> None:
        """A line about an evaluation that a resumed run had still to do."""
        if reports:
            self.say(f"{self._place()}{figures_text(reports)}{self._mark(reports)}")

    def say(self, text: str, *, shown: bool = True) -> None:
        """Prints a line above the bar, or writes it only to log.txt if it is not shown."""
        if self.is_main:
            if shown:
                tqdm.write(text, sys.stderr)
                sys.stderr.flush()
            pass_on(text)
            self._last_line = time.monotonic()

    def warn(self, text: str) -> None:
        """Prints a line about this process only, on any process."""
        tqdm.write(text, sys.stderr)
        pass_on(text)

    def close(self) -> None:
        self.bar.close()

    def _mark(self, reports: dict[str, Report]) -> str:
        """The best evaluation so far is marked."""
        state = self.run.state
        return "  best" if reports and state.best_step == state.step and state.best >= 0 else ""

    def _epoch(self) -> str:
        return f"{-(-self.run.state.step // self.run.steps.epoch)}/{num_epochs(self.run)}"

    def _place(self) -> str:
        return f"epoch {self._epoch()}  step {self.run.state.step}/{self.run.steps.total}"


def _joined(numbers: dict[str, str]) -> str:
    return "  ".join(f"{name} {text}" for name, text in numbers.items())


def figures_text(reports: dict[str, Report]) -> str:
    """The main figures as text; for several tasks, the one of each whose mean decides."""
    text = ""
    for task, report in reports.items():
        names = list(report.metrics)[:3]
        if len(reports) > 1:
            names = [leading_metric(report, alone=False)]
        values = {name: report.metrics[name] for name in (*names, *report.own)}
        figures = (f"{n} {_figure(v, n in report.own)}" for n, v in values.items())
        text += f"  {task} " + ", ".join(figures)
    return text


def _figure(value: float, any_sign: bool = False) -> str:
    """COCO's -1, which says that there is no such object, is a dash."""
    return f"{value:.3f}" if value >= 0 or any_sign else "-"


def end_text(run: Run, run_dir: Path) -> str:
    """The last lines of a run: best figure, its weight file, and two commands."""
    state, best = run.state, run_dir / "best.safetensors"
    minutes, seconds = divmod(round(state.seconds), 60)
    lines = [f"run folder: {_short(run_dir)}"]
    lines += [f"trained: {state.step} steps in {minutes} min {seconds} s"]
    if best.is_file() and math.isfinite(state.best):
        step = f" at step {state.best_step}" if state.best_step else ""
        lines += [
            f"best: {_leading_name(run, run_dir)} {_figure(state.best)}{step}, {_short(best)}"
        ]
        lines += [f"evaluate it: {evaluate_command(run, run_dir)}"]
        if command := infer_command(run, run_dir):
            lines += [f"use it: {command}"]
    return "\n".join(lines)


def _leading_name(run: Run, run_dir: Path) -> str:
    """What the best weights were chosen by, as the files of their evaluation say."""
    if len(run.tasks) > 1:
        return f"mean of the {len(run.tasks)} tasks"
    try:
        name = next(iter(json.loads((run_dir / "best" / "metrics.json").read_text())))
    except (OSError, ValueError, StopIteration):
        name = "validation"
    return f"{run.tasks[0]} {name}"


def evaluate_command(run: Run, run_dir: Path) -> str:
    """The command that evaluates the best weights; `--split` selects other images."""
    words = ["--task", ",".join(run.tasks), "--weights", _short(run_dir / "best.safetensors")]
    words += ["--config", _short(run_dir / "settings.json")]
    if run.cfg.dataset != "voc" and run.cfg.eval_split == "train":
        words += ["--split", "train"]
    return _command("evaluate", words)


def infer_command(run: Run, run_dir: Path) -> str:
    """The command that runs the best weights on a validation image; "" without a script.

    Weights that cannot detect need a box of the object to look at.
    """
    task = run.tasks[0]
    name = INFERENCE.get(task, task)
    if task == "detection" and run.cfg.dataset == "voc":
        name = "voc"
    if task == "detection" and len(run.tasks) > 1:
        name = "multi_task"
    script = f"infer_single_image_{name}"
    if not (ROOT / "infer" / f"{script}.py").is_file():
        return ""
    source = run.eval_sources[task]
    if task not in ("segmentation", "keypoint"):
        words = ["--image", _short(source.image_path(0))] if len(source) else []
    else:
        words = _first_object(source) or _first_object(run.sources[task])
    if not words:
        return ""
    return _command(script, [*words, "--weights", _short(run_dir / "best.safetensors")])


def _first_object(source) -> list[str]:
    """Options that name an image and an object in it; empty if the first images have none."""
    for index in range(min(len(source), MAX_LOOKS)):
        sample = source[index]
        if len(sample.boxes):
            x0, y0, x1, y1 = sample.boxes[0].tolist()
            box = [f"{number:.4g}" for number in (x0, y0, x1 - x0, y1 - y0)]
            label = source.categories.names[int(sample.labels[0])]
            return ["--image", _short(source.image_path(index)), "--box", *box, "--label", label]
    return []


def _command(script: str, words: list[str]) -> str:
    """A command line that works when it is pasted into the shell that started the run."""
    python = "python" if shutil.which("python") == sys.executable else _short(Path(sys.executable))
    return shlex.join([python, _short(ROOT / "infer" / f"{script}.py"), *words])


def _short(path: Path) -> str:
    """A path as seen from the current folder, where it lies in it."""
    path = Path(os.path.abspath(path))  # not resolved: a virtual environment is a link
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
