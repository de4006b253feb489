"""The commands of the other pages run, too: block by block, on tiny sets and models.

README.md, docs/inference.md and docs/evaluation.md are those of tests/test_readme.py. The tables
below say what differs from the page. Options of commands that are not run are checked there, too.
Blocks that train, export or measure have the marker `slow`.
"""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.decode_step.native import obstacle
from tests.conftest import ROOT
from tests.test_readme import RUN, blocks, place  # noqa: F401, the fixture
from tests.test_readme import run as run_script

PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name not in RUN)
PAGES += [ROOT / "weights" / "README.md", ROOT / "dataset" / "bccd" / "README.md"]
COMMAND = re.compile(r"(?:python|torchrun|pip|make|download/\S+\.sh) ")
NOT_RUN = {  # regular expression -> why
    r"pip install|make extras|make demo-data": "installs packages, or draws 2,200 pictures",
    r"download/download_": "needs the network; tests/test_download*.py run them with a server",
    r"torchrun ": "needs several GPUs or machines; tests/test_distributed.py runs two processes",
    r".* --device cuda": "needs a GPU",
    r"python -m pytest": "tests",
    r"python infer/app.py": "runs until it is closed; tests/test_app.py starts the page",
    r".*--image 0 ": "needs a camera",
    r".*--image https://": "needs the network; tests/test_video.py has a server",
    r"python weights/push.py": "needs the hub; tests/test_hub.py has one",
    r"python download/convert_port_weights.py": "needs weights of a port: test_convert_ports.py",
    r"python download/convert_official_weights.py": "needs a checkpoint: test_convert_official.py",
    r"python dataset/check_dataset.py --task pointing": "tests/test_tasks_page.py has this task",
}
SMALL = {  # setting -> value that it gets if a command has it
    **dict.fromkeys(("batch_size", "detection_batch_size", "segmentation_batch_size"), "2"),
    **dict.fromkeys(("keypoint_batch_size", "captioning_batch_size", "eval_batch_size"), "2"),
    **dict.fromkeys(("eval_limit", "likelihood_limit", "seg_max_objects", "num_layers"), "2"),
    **dict.fromkeys(("epochs", "eval_every"), "1"),
    "max_steps": "3",
    **dict.fromkeys(("num_workers", "warmup_steps", "warmup_epochs", "max_minutes"), "0"),
    **dict.fromkeys(("max_objects", "max_points", "max_caption_tokens"), "8"),
    **dict.fromkeys(("encoder_stride", "pretrained"), None),  # it is left out
    "img_size": "64",
    "dim": "32",
    "num_heads": "4",
    "mlp_dim": "64",
    "amp": "off",
    "infer_dtype": "float32",
    "freeze": "^encoder",
    "voc_sets": "2012:train",  # the drawn set has no other
    "voc_eval_sets": "2012:val",
}
ENCODERS = ("resnet50.a1_in1k", "tf_efficientnet_lite0")  # whose file is that of `test_vit` here
OPTIONS = {  # beginning of a command -> options that make it small; the last one counts
    "python download/make_demo_dataset.py": "--out drawn --train 3 --val 2 --size 96 128",
    "python download/make_coco_subset.py": "--out subset",
    "python dataset/build_captioning_vocab.py": "--out pieces.json",
    "python benchmarks/decode.py": "--model tiny --tokens 8 --repeat 1",
    "python benchmarks/onnx_decode.py": "--model tiny --tokens 4 --repeat 1 --no-hf",
    "python benchmarks/encoder.py": "--encoder test_vit --size 64 --repeat 1 --no-onnx",
    "python benchmarks/train_step.py": "--tasks detection --repeat 1 --batch 1",
    "python benchmarks/data.py": "--images 2 --repeat 1 --img-size 64",
    "python benchmarks/startup.py": "--images 40",
    "python benchmarks/variants.py": "--repeat 1",
    "python benchmarks/kill_test.py": "--kills 1 --steps 12",
    "python benchmarks/demo_captions.py": "--demo-root data/demo8k",
}
REPLACED = {  # text of a page -> what stands there instead
    "runs/detection/2026-01-31_12-00-00/best.safetensors": "W.safetensors",
    "runs/…/last.safetensors": "W.safetensors",
    "init_weights=STAGE1": "init_weights=W.safetensors",
    "init_weights=DETECTION": "init_weights=detection.safetensors",
    "--weights runs/…/best.safetensors": "--weights RUN",
    "--resume runs/…": "--resume MULTI",
    "keypoint --boxes detected --weights RUN": "keypoint --boxes detected --weights MULTI",
    "--dtype bfloat16": "--dtype float32",
    "/data/": "data/",
    "infer_dtype=int8": "infer_dtype=int8 decode_mode=plain",  # these widths have no native step
    ",my_metric:another": "",
    "[--set recompute_activations=true]": "--set recompute_activations=true",
}
SLOW = re.compile(r"python (train|benchmarks)/|export_onnx|-c ")


def commands_of(text: str, variables: dict[str, str]) -> list[str]:
    """Command lines of a block: continued lines joined, variables, loops and comments resolved.

    Args:
        variables: of the shell, as earlier blocks left them; those of this block are added.
    """
    text = re.sub(r'^(\w+)="(.*?)"$', _join_value, text, flags=re.MULTILINE | re.DOTALL)
    found, loop = [], [{}]
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"\s+#.*", "", line.strip())
        line = re.sub(r"^until (.*); do$", r"\1", line)
        if value := re.fullmatch(r'(\w+)="?([^"]*?)"?', line):
            variables[value[1]] = " ".join(value[2].split())
        elif values := re.fullmatch(r"for (\w+) in (.*); do", line):
            loop = [{values[1]: value} for value in values[2].split()]
        elif line == "done":
            loop = [{}]
        line = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)  # of the environment
        for values in loop if COMMAND.match(line) else ():
            one = line
            for name, value in (variables | values).items():
                one = one.replace(f"${name}", value)
            found.append(one)
    return [" ".join(one.split()) for one in found]


def _join_value(match: re.Match) -> str:
    return f'{match[1]}="{match[2]}"'.replace("\\\n", " ")


def blocks_of(page: Path) -> list[list[str]]:
    """The commands of each block of a page, fenced or indented; blocks without any left out."""
    text = page.read_text()
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?<=\n\n)((?:    .*\n)+)", rest)
    texts = blocks(text) + [re.sub(r"^    ", "", part, flags=re.MULTILINE) for part in indented]
    variables = {}
    return [found for part in texts if (found := commands_of(part, variables))]


def why_not_run(command: str) -> str | None:
    return next((why for text, why in NOT_RUN.items() if re.match(text, command)), None)


def shrunk(command: str) -> str:
    """A command as it is run here."""
    for there, here in REPLACED.items():
        command = command.replace(there, here)
    command = re.sub(r"(?<=\s)encoder=[^\s:]+(?=\s|$)", "", command)  # a class (module:name) stays
    for name, value in SMALL.items():
        new = "" if value is None else f"{name}={value}"
        command = re.sub(rf'(?<=[\s"]){name}=[^\s"]+', lambda _, new=new: new, command)
    for name in ENCODERS:
        command = command.replace(f"encoders/{name}.", "encoders/test_vit.")
    options = next((more for start, more in OPTIONS.items() if command.startswith(start)), "")
    return f"{command} {options}".strip()


ALL = {
    f"{page.relative_to(ROOT).with_suffix('')}-{n}": found
    for page in PAGES
    for n, found in enumerate(blocks_of(page), 1)
}
RUN_HERE = {
    name: kept
    for name, found in ALL.items()
    if (kept := [command for command in found if not why_not_run(command)])
}


def cases() -> list:
    return [
        pytest.param(found, id=name, marks=[pytest.mark.slow] if SLOW.search(str(found)) else [])
        for name, found in RUN_HERE.items()
    ]


@pytest.fixture
def folder(place, demo_set, tiny_weights, multi_weights, caption_vocab, monkeypatch):  # noqa: F811
    """The folder of `place` with what these pages name besides."""
    monkeypatch.syspath_prepend(place)
    known = set(sys.modules)
    for name in ("weights/obj365_vit_b_640", "demo_stage1"):
        (place / f"{name}.safetensors").symlink_to(multi_weights)
    for name, weights in {"RUN": tiny_weights, "W": tiny_weights, "MULTI": multi_weights}.items():
        shutil.copytree(weights.parent, place / name)
    shutil.copy(place / "RUN" / "last.safetensors", place / "RUN" / "last_ema.safetensors")
    (place / "SAMPLE").symlink_to(demo_set)
    for name in ("coco16", "data/demo8k", "data/small", "data/coco"):  # COCO layout alone
        (place / name).mkdir()
        for part in ("train2017", "val2017", "annotations"):
            (place / name / part).symlink_to(demo_set / part)
    for name in ("BCCD", "RACCOONS", "KANGAROOS", "HOME", "data/mine", "my/folder"):  # VOC layout
        (place / name).mkdir(parents=True)
        (place / name / "VOCdevkit").symlink_to(demo_set / "VOCdevkit")
    for name in ("coco16/caption_", "data/demo_caption_", "sample_"):
        (place / f"{name}vocab.json").symlink_to(caption_vocab)
    (place / "more").mkdir()
    for photo in (place / "photos").glob("*.jpg"):
        shutil.copy(photo, place / "more" / f"more_{photo.name}")
    for code in blocks((ROOT / "docs" / "extending.md").read_text(), "python"):
        name = re.match(r"# (\S+)\n", code)[1]
        if "/" not in name:
            (place / name).write_text(code)
    write_encoder(place / "weights" / "encoders")
    write_clip(place / "clip.mp4")
    threads = torch.get_num_threads(), cv2.getNumThreads()
    yield place
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])
    for name in set(sys.modules) - known:
        if name.startswith("my_"):  # another folder has others
            del sys.modules[name]


def write_encoder(folder: Path) -> None:
    import timm
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(timm.create_model("test_vit").state_dict(), folder / "test_vit.safetensors")


def write_clip(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 48))
    for shade in (0, 100, 200):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()


@pytest.mark.parametrize("found", cases())
def test_the_commands_of_a_block_work(found, folder, capsys):
    if "onnx" in str(found):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    if "--dtype int8" in str(found) and (reason := obstacle(torch.int8)):
        pytest.skip(reason)
    for command in found:
        run(shrunk(command), folder)
    assert "Traceback" not in capsys.readouterr().err


def run(command: str, folder: Path) -> None:
    words = shlex.split(command)
    if words[1] == "-c":
        exec(words[2], {})
    elif (ROOT / words[1]).is_file():
        run_script(command)
    else:  # a script that an earlier command wrote
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", words[1:])
            runpy.run_path(str(folder / words[1]), run_name="__main__")


def test_every_entry_of_the_tables_is_needed():
    every = [command for found in ALL.values() for command in found]
    assert len(RUN_HERE) > 40
    for text in NOT_RUN:
        assert any(re.match(text, command) for command in every), text
    for start in OPTIONS:
        assert any(command.startswith(start) for command in every), start
    for text in (*REPLACED, *ENCODERS):
        assert any(text in command for command in every), text
    for name in SMALL:
        assert any(re.search(rf'[\s"]{name}=', command) for command in every), name
    used = [command for found in RUN_HERE.values() for command in map(shrunk, found)]
    assert not [command for command in used if "…" in command or "$" in command]


def test_a_block_is_read_as_a_shell_reads_it():
    text = 'S="a=1 \\\n    b=2"\nfor X in p q; do\npython f.py --set $S x=$X  # why\ndone\n'
    text += "A=1 python g.py \\\n  --h\nsome output\n"
    assert commands_of(text, {}) == [
        "python f.py --set a=1 b=2 x=p",
        "python f.py --set a=1 b=2 x=q",
        "python g.py --h",
    ]
