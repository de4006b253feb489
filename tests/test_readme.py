"""Every command of README.md, of two pages and of `make demo` runs, on tiny sets and models.

Those of the other pages run in tests/test_page_commands.py.

Commands run as they stand, in a folder that holds the files they name, with the settings below in
place of those of config.py. What is replaced in a command is listed in `REPLACED`; nothing is left
out.
"""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from config import CFG, PRESETS
from dataset.tasks import TASKS
from docs.write_settings import PAGE, page
from tests.conftest import ROOT, TINY
from tests.test_download import coco, server, voc  # noqa: F401, the fixtures
from tests.test_download_official import official  # noqa: F401
from utils.cli import parse_value, settings_types

README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
REPLACED = {  # in README commands; each is needed
    "runs/detection/2026-01-31_12-00-00/best.safetensors": "detection.safetensors",
    "--split 2007:test": "--split 2012:val",  # the drawn set calls itself VOC2012
    "img_size=640": "img_size=64",
    "batch_size=16": "batch_size=4",  # of 14 pictures
}
MAKE = {"--out data/demo": "--out data/demo --train 3 --val 2 --size 96 128"}  # not 2200
SETTINGS = [*TINY, "max_steps=1", "eval_limit=2", "max_points=8", "seg_max_objects=2"]
SETTINGS += [f"{task}_batch_size=0" for task in TASKS if hasattr(CFG, f"{task}_batch_size")]
SETTINGS += ["max_caption_tokens=8", "captions_per_image=2", "seg_samples=2", "max_minutes=0"]


def blocks(text: str, language: str = "") -> list[str]:
    """Fenced blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


def commands(text: str) -> list[str]:
    """Lines of the blocks without a language, continued lines joined, comments cut off."""
    lines = "\n".join(blocks(text)).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line]


RUN = ("inference.md", "evaluation.md")  # pages whose commands are run, too
COMMANDS = commands(README)
COMMANDS += [c for page in RUN for c in commands((ROOT / "docs" / page).read_text())]
COMMANDS = list(dict.fromkeys(COMMANDS))
NOT_RUN = {"pip install sentencepiece": "installs a package"}


@pytest.fixture
def place(tmp_path, monkeypatch, demo_set, multi_weights, tiny_weights, caption_vocab):
    """A folder with the files that the commands name; every preset is that of a tiny model."""
    pictures = sorted((demo_set / "val2017").iterdir())
    work = tmp_path / "work"
    for folder in ("images", "photos", "weights", "data", "dataset"):
        (work / folder).mkdir(parents=True)
    (work / "dataset" / "bccd").symlink_to(ROOT / "dataset" / "bccd")
    (work / "data" / "VOC").symlink_to(demo_set)
    for name in ("images/demo.jpg", "photo.jpg", "street.jpg", "photos/a.jpg", "photos/b.jpg"):
        shutil.copy(pictures[0], work / name)
    for name in ("W", "weights/demo", "weights/coco_vit_b_640", "weights/multi_vit_b_640"):
        (work / f"{name}.safetensors").symlink_to(multi_weights)
    (work / "detection.safetensors").symlink_to(tiny_weights)
    roots = [f"coco_root={demo_set}", f"voc_root={demo_set}", f"runs_dir={work / 'runs'}"]
    roots += ["voc_sets=2012:train", "voc_eval_sets=2012:val", f"caption_vocab={caption_vocab}"]
    kinds = settings_types(PRESETS["default"])
    weights = [f"{name}={work / 'none'}" for name in kinds if name.endswith("_weights")]
    weights = [item for item in weights if not item.startswith(("init", "demo", "encoder"))]
    weights.append(f"demo_weights={multi_weights}")
    tiny = values_of([*SETTINGS, *roots, *weights], kinds)
    plain = {name: getattr(PRESETS["default"], name) for name in kinds if name != "dataset"}
    for preset in PRESETS.values():
        for name, value in (plain | tiny).items():
            monkeypatch.setattr(preset, name, value)
    monkeypatch.chdir(work)
    return work


def values_of(items: list[str], kinds: dict) -> dict:
    """Values of `name=value` texts."""
    pairs = [item.split("=", 1) for item in items]
    return {name: parse_value(name, text, kinds[name]) for name, text in pairs}


def run(command: str) -> None:
    """A `python FILE …` command, in this process."""
    python, script, *argv = shlex.split(command)
    assert python == "python" and (ROOT / script).is_file()
    importlib.import_module(script.removesuffix(".py").replace("/", ".")).main(argv)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_every_command_works(command, place, capsys):
    for there, here in REPLACED.items():
        command = command.replace(there, here)
    run(command)
    out = capsys.readouterr().out
    if command.startswith("python infer/"):
        assert out.strip(), "results go to stdout"
    written = [name for name in shlex.split(command) if name.endswith(".json")]
    assert all((place / name).is_file() for name in written)


def test_the_downloads_work(coco, voc, official):  # noqa: F811
    """Against a server on this machine, into another folder."""
    scripts = {"download/download_coco.sh": coco, "download/download_voc.sh": voc}
    scripts["download/download_official_weights.sh"] = official
    used = set()
    for command in (c for c in COMMANDS if c.startswith("download/")):
        script, *argv = shlex.split(command)
        done = scripts[script](*argv)
        assert done.returncode == 0, done.stderr
        used.add(script)
    assert used == set(scripts)


def test_no_command_is_left_out():
    kinds = ("python ", "download/", "make ")
    assert [c for c in COMMANDS if not c.startswith(kinds)] == list(NOT_RUN)
    assert [c for c in COMMANDS if c.startswith("make ")] == ["make demo", "make test"]
    for there in REPLACED:
        assert any(there in command for command in COMMANDS), there
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", prose)
    assert [text for text in inline if re.match(r"(python|download/\S+\.sh) \S", text)] == []


@pytest.fixture
def dry_run():
    """What `make TARGET` would do, as `python …` commands."""
    if not shutil.which("make"):
        pytest.skip("needs make")

    def of(target: str) -> list[str]:
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
        )
        lines = done.stdout.replace("\\\n", " ").splitlines()
        return [" ".join(line.split()) for line in lines]

    return of


def test_make_demo_works(dry_run, place, capsys):
    lines = [line for line in dry_run("demo") if re.match(r"\.venv/bin/python (?!-)", line)]
    assert len(lines) == 5
    for line in lines:
        for there, here in MAKE.items():
            line = line.replace(there, here)
        newest = next((place / "demo" / "runs" / "detection").glob("*/"), "")
        line = re.sub(r"\$\(ls [^)]*\)", f"{newest}/", line)
        run(line.replace(".venv/bin/", "", 1).replace("max_minutes=3", "max_minutes=0"))
    out = capsys.readouterr().out
    assert all(f"\n{task}" in out for task in ("detection", "segmentation", "keypoint"))
    assert len(list((place / "demo").glob("*.png"))) == 3 + 4, "photographs"
    assert (place / "demo" / "evaluation" / "captioning" / "metrics.json").is_file()


def test_make_test_runs_linter_formatter_and_tests(dry_run):
    lines = "\n".join(dry_run("test"))
    for part in ("ruff check .", "ruff format --check .", "python -m pytest"):
        assert part in lines


def test_the_python_example_works(place):
    (code,) = blocks(README, "python")
    names = {}
    exec(code, names)
    assert len(names["masks"]) == len(names["found"])
    assert names["everything"].captions.texts and names["people"].points.shape[1:] == (17, 3)


def test_the_examples_of_the_api_page_work(tmp_path, monkeypatch, capsys):
    """All in one program, with the demo weights; what comments say is printed is printed."""
    for name in ("images", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    text, names = (ROOT / "docs" / "api.md").read_text(), {}
    for code in blocks(text, "python"):
        if "supervision" not in code or importlib.util.find_spec("supervision"):
            exec(code, names)
    first = capsys.readouterr().out.splitlines()[0]
    assert f"print(found)  # {first}\n" in text
    written = {path.name for path in tmp_path.iterdir()}
    assert {"frame.png", "drawn.png", "all.png", "found.csv"} <= written


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    for link in links:
        assert link.startswith("http") or not link or (page.parent / link).exists(), link
    paths = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|sh|md))`", text)
    example = set(re.findall(r"^# (\S+\.py)$", text, re.MULTILINE))
    assert [path for path in paths if not (ROOT / path).exists() and path not in example] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_of_the_documents_are_understood(page):
    """They may train for hours: scripts, options and settings are checked, not run."""
    kinds = settings_types(PRESETS["default"])
    text = page.read_text().replace("\\\n", " ")
    folders = "train|infer|dataset|download|benchmarks|docs"
    program = r"(?:python|torchrun(?: -\S+(?: [^-\s]\S*)?)*) *"
    found = re.findall(rf"{program} ((?:{folders})/\S+\.py)([^\n`|]*)", text)
    for script, rest in found:
        text = (ROOT / script).read_text()
        name = script.removesuffix(".py").replace("/", ".")
        shared = ROOT / script.split("/")[0]
        texts = text + "".join(path.read_text() for path in shared.glob("*script.py"))
        texts += (ROOT / "utils" / "cli.py").read_text()
        for option in re.findall(r"(?<=\s)(--[a-z-]+)", rest):
            assert f'"{option}"' in texts, f"{name} has no {option}"
        for setting in re.findall(r"(?<=\s)([a-z_]+)=", rest):
            assert setting in kinds, f"no setting {setting}"


def test_the_page_of_settings_is_that_of_the_code():
    assert PAGE.read_text() == page(), "run python docs/write_settings.py"
    described = [line.split("`")[1] for line in page().splitlines() if line.startswith("| `")]
    assert set(settings_types(CFG)) <= set(described)


def test_the_table_of_the_layout_is_true():
    table = README.split("## Layout")[1]
    rows = re.findall(r"^\| ((?:`[a-z0-9_.]+/?`(?:, )?)+) \|", table, re.MULTILINE)
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1}
    assert folders - {".ci"} <= named
    assert all((ROOT / name).exists() for name in named)


def tracked() -> list[Path]:
    """Files of the repository; of an archive without git, the source folders."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return [Path(line) for line in done.stdout.splitlines()]
