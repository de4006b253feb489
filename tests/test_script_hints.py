"""What the inference scripts say about files and options that are not theirs."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from config import CFG
from infer import script
from infer.image_files import Output, find_images
from infer.script import VIDEOS, infer_parser
from utils.cli import snapshot
from utils.errors import UserError
from utils.images import load_image

SCRIPTS = {
    path.name: import_module(f"infer.{path.stem}")
    for path in sorted(Path(script.__file__).parent.glob("infer_single_image_*.py"))
}


def options_of(module, capsys) -> set[str]:
    with pytest.raises(SystemExit):
        module.main(["--help"])
    return set(re.findall(r"--[a-z-]+", capsys.readouterr().out.partition("options:")[2]))


def complaint(module, *arguments: str) -> str:
    with pytest.raises(UserError) as error:
        module.main(list(arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_option_of_another_script_names_a_script_that_has_it(capsys):
    options = {name: options_of(module, capsys) for name, module in SCRIPTS.items()}
    for module, own in zip(SCRIPTS.values(), options.values(), strict=True):
        for option in set().union(*options.values()) - own:
            line = complaint(module, "--image", "a.jpg", option, "x")
            (named,) = re.findall(r"; (\w+\.py) has it$", line)
            assert option in options[named] and "--set" not in line
    line = complaint(
        SCRIPTS["infer_single_image_caption.py"], "--image", "a.jpg", "--output-dir", "x"
    )
    assert "this script prints text and draws nothing" in line


@pytest.mark.parametrize("suffix", [VIDEOS[0], VIDEOS[2].upper()])
def test_a_video_is_sent_to_the_scripts_that_read_it(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    Path(f"there{suffix}").touch()
    for name in (f"there{suffix}", f"gone{suffix}", "0"):
        for task in ("caption", "keypoint", "segmentation"):
            line = complaint(SCRIPTS[f"infer_single_image_{task}.py"], "--image", name)
            named = re.findall(r"\w+\.py", line.partition("videos: use ")[2])
            assert len(named) == 2 and all(hasattr(SCRIPTS[n], "open_clip") for n in named)


def save(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name, "PNG")


def test_files_of_a_folder_that_are_no_pictures_of_ours_are_counted(tmp_path, capsys):
    save(tmp_path, "a.jpg", "b.heic", "c.HEIC", "d.cr2", ".e.heic", "sub/f.heic", "sub/g.png")
    for name in ("a.txt", "a.json", "b.csv", "c.xml", "d.yaml", "README"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images([str(tmp_path)])] == ["a.jpg"]
    said = capsys.readouterr().err
    assert said == (
        "notice: skipped 3 files that are no images this program reads: .heic 2, .cr2 1; convert "
        "them to JPEG\n"
    )
    assert len(find_images([str(tmp_path)], recursive=True)) == 2
    assert "skipped 4 files" in capsys.readouterr().err
    find_images([str(tmp_path / "a.jpg"), str(tmp_path / "*.heic").replace("heic", "jpg")])
    assert capsys.readouterr().err == ""
    save(tmp_path, "only/a.heic")
    with pytest.raises(UserError, match="no image at"):
        find_images([str(tmp_path / "only")])
    assert "skipped 1 file that is no image this program reads: .heic 1; convert it to" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("options", [[], ["--out-dir", "out"]])
def test_a_picture_in_the_current_folder_is_said_to_be_there(
    tmp_path, monkeypatch, capsys, options
):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, "a.png")
    (path,) = find_images(["a.png"])
    args = infer_parser("").parse_args(["--image", "a.png", *options])
    with Output(args, [path], object()) as output:
        image = load_image(path)
        output.add(path, image, "text", {}, {"drawn": image})
    (line,) = capsys.readouterr().err.splitlines()
    place = "drew drawn.png in the current folder" if not options else "drew out/drawn.png"
    assert line == place and (tmp_path / line.split()[1]).is_file()


def test_default_weights_that_are_official_ones_are_to_be_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "predictor_of", lambda file, *_: file)
    cfg = snapshot(CFG, [f"demo_weights={tmp_path}"])
    args = infer_parser("").parse_args(["--image", "a.jpg"])
    for name, remedy in (
        ("coco_vit_b_640", f"download_official_weights.sh coco_vit_b_640 {tmp_path}/no\n"),
        (
            "mine",
            "using the demo weights (they know drawn scenes only); name others with --weights\n",
        ),
    ):
        file = script.load_predictor(args, cfg, tmp_path / "no" / f"{name}.safetensors")
        assert file == tmp_path and capsys.readouterr().err.endswith(remedy)
