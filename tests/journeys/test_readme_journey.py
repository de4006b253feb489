"""The commands of README.md, docs/inference.md and docs/evaluation.md, in one fresh clone.

Word for word; those of inference.md come behind "Start" and "Detect things in my photographs".

Each has a bound on its time, and what the page says that it leaves is looked at. What is done
differently from what the page says stands in the tables below, with the reason.
"""

import contextlib
import json
import re
import shlex
import shutil
import time
import urllib.request

import pytest

from tests.journeys import servers
from tests.journeys.clone import ROOT, SMALL_MODEL, Clone, wait_until
from tests.journeys.page import Command, read_commands
from tests.journeys.promises import PROMISES, README, Outcome, find_promise, find_runs

pytestmark = pytest.mark.slow

NOT_RUN = {  # command -> why
    "python3 -m venv .venv": "the clone borrows the environment that runs this",
    **dict.fromkeys(
        ("make install", "make extras", "pip install sentencepiece", "pip install torchao"),
        "it would install into that environment",
    ),
    **dict.fromkeys(
        (
            "download/download_official_weights.sh multi_vit_b_640",
            "python infer/infer_single_image_multi_task.py --image photo.jpg "
            "--weights weights/multi_vit_b_640.safetensors",
        ),
        "they need sentencepiece; test_download_official.py has a server with such a checkpoint",
    ),
    "torchrun --nproc-per-node 8 infer/evaluate.py …": "the page leaves the options open",
}
REPLACED = {  # text of a command -> what stands there instead, and why
    "img_size=640": ("img_size=64", "a step of 16 such pictures takes a minute and 13 GB"),
}
ENVIRONMENT = {  # command -> variables, beside the addresses of the downloads
    # the linter in full, and the tests are found; they themselves run outside this clone
    "make test": {"PYTEST_ADDOPTS": "--collect-only"},
}
# Of class CFG in config.py, for the sections after them: seconds of training instead of days.
SETTINGS = SMALL_MODEL | {
    "batch_size": 4,  # of 24 pictures
    "num_workers": 2,
    "max_steps": 2,
    "save_steps": 1,  # so that there is a checkpoint before the last one
    "log_every": 1,
    "eval_limit": 4,
}
INFERENCE, EVALUATION = (
    (ROOT / "docs" / name).read_text() for name in ("inference.md", "evaluation.md")
)
BEFORE, TRAINING, AFTER = README.partition("## Train on my data")
UNTOUCHED = read_commands(BEFORE) + read_commands(INFERENCE)  # these need no other settings
COMMANDS = [*UNTOUCHED, *read_commands(TRAINING + AFTER), *read_commands(EVALUATION)]
EXAMPLE_ENDS_WITH = """
import json
print(json.dumps({
    "objects": len(found.boxes), "names": list(found.names), "scores": found.scores.tolist(),
    "masks": list(masks.masks.shape), "people": list(people.points.shape),
    "captions": predictor.caption("images/demo.jpg").texts,
}))
"""


def draw_photo(clone: Clone, name: str) -> None:
    (clone.root / name).parent.mkdir(exist_ok=True)
    command = f"python download/make_demo_dataset.py --sample {name} --size 240 320 --seed 7"
    clone.run(command, seconds=30)


def draw_photos(clone: Clone, name: str) -> None:
    for photo in ("a.jpg", "b.jpg"):
        draw_photo(clone, f"{name}/{photo}")


def copy_demo_weights(clone: Clone, name: str) -> None:
    (clone.root / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(clone.root / "weights" / "demo.safetensors", clone.root / name)


BROUGHT = {  # what a person has, by its name in a command
    "photo.jpg": draw_photo,
    "street.jpg": draw_photo,
    "photos": draw_photos,
    "runs/detection/2026-01-31_12-00-00/best.safetensors": copy_demo_weights,
    "W.safetensors": copy_demo_weights,
}


@pytest.fixture(scope="module")
def addresses(scratch, drawn_set):
    """Variables that lead the download scripts to servers on this machine."""
    folders = {name: scratch / f"server of {name}" for name in ("coco", "voc", "official")}
    for folder in folders.values():
        folder.mkdir()
    servers.write_coco_archives(drawn_set, folders["coco"])
    servers.write_voc_archives(drawn_set, folders["voc"])
    servers.write_official_checkpoint(folders["official"])
    with contextlib.ExitStack() as stack:
        urls = {k: stack.enter_context(servers.serve_folder(v)) for k, v in folders.items()}
        yield {
            "COCO_BASE_URL": urls["coco"],
            "COCO_SHA256_FILE": str(servers.write_sums(folders["coco"], "sha256")),
            "VOC_BASE_URL": urls["voc"],
            "VOC_MD5_FILE": str(servers.write_sums(folders["voc"], "md5")),
            "OFFICIAL_BASE_URL": urls["official"],
        }


@pytest.fixture(scope="module")
def small_settings(fresh_clone):
    fresh_clone.edit_settings(SETTINGS)


def name_test(number: int, command: Command) -> str:
    text = "python example" if command.language else command.plain
    return f"{number:02} {text}"


RUN = [command for command in COMMANDS if command.plain not in NOT_RUN]


@pytest.mark.parametrize("command", RUN, ids=[name_test(*pair) for pair in enumerate(RUN, 1)])
def test_a_command_does_what_the_page_says(command, fresh_clone, addresses, request):
    promise = find_promise(command)
    assert promise, f"no promise for {command.plain}"
    if command not in UNTOUCHED:
        request.getfixturevalue("small_settings")
    text, plain = command.text, command.plain
    for there, (here, _) in REPLACED.items():
        text, plain = text.replace(there, here), plain.replace(there, here)
    for name, bring in BROUGHT.items():
        named = re.search(rf"(?<![\w/]){re.escape(name)}\b", plain)
        if named and not (fresh_clone.root / name).exists():
            bring(fresh_clone, name)
    environment = addresses | ENVIRONMENT.get(plain, {})
    if command.language == "python":
        text = f"python -c {shlex.quote(text + EXAMPLE_ENDS_WITH)}"
    began, old_runs = time.time(), find_runs(fresh_clone.root)
    if plain.startswith("tensorboard"):
        look_at_tensorboard(fresh_clone, text, promise.seconds)
        return
    done = fresh_clone.run(text, seconds=promise.seconds, **environment)
    outcome = Outcome(fresh_clone.root, plain, done.stdout, done.stderr, began, old_runs)
    promise.check(outcome)


def look_at_tensorboard(clone: Clone, command: str, seconds: int) -> None:
    """Starts it, asks it for the curves of all runs, and ends it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    with clone.start(f"exec {command}") as process:

        def address() -> str | None:
            log = clone.stderr.read_text()
            assert process.poll() is None, log
            found = re.search(r"http://localhost:\d+/", log)
            return found and found[0]

        wait_until(address, seconds=seconds, what="TensorBoard")

        def all_runs_have_losses() -> bool:
            with opener.open(f"{address()}data/plugin/scalars/tags") as answer:
                tags = json.load(answer)
            trained = {path.parent for path in clone.root.glob("runs/*/*/metrics.jsonl")}
            shown = [run for run in tags.values() if any("loss" in tag for tag in run)]
            return len(shown) == len(trained)

        wait_until(all_runs_have_losses, seconds=seconds, what="curves of all runs")


def test_every_entry_of_the_tables_is_needed():
    plain = [command.plain for command in COMMANDS]
    assert [c.plain for c in RUN if find_promise(c) is None] == [], "commands without a promise"
    assert set(NOT_RUN) <= set(plain)
    assert set(ENVIRONMENT) <= set(plain)
    for text in REPLACED:
        assert any(text in command for command in plain), text
    for start in PROMISES:
        assert any(command.startswith(start) for command in plain), start
    for name in BROUGHT:
        assert any(name in command for command in plain), name
