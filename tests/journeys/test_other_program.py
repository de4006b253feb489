"""A program with a `utils` and a `config` of its own installs the project and detects objects.

As docs/api.md says it: once editable, so that the checkout is used, and once as a copy.
"""

import sys
import sysconfig
from pathlib import Path

import pytest

from tests.journeys.clone import Clone

pytestmark = pytest.mark.slow

OWN = ("utils", "config", "models", "dataset", "train", "infer")
MODULES = ("files", "images", "cli", "predictor")
PIP = "install --quiet --no-index --no-deps --no-build-isolation"
PROGRAM = """
import sys
import utils.files, config
from pix2seq import Predictor
import models, dataset.images, train, infer.predictor
import pix2seq

if __name__ == "__main__":
    found = Predictor(sys.argv[1]).detect(sys.argv[2], score_threshold=0.3)
    found.save("found.png")
    print(found)
    assert utils.files.mine == "utils.files" and infer.predictor.mine == "infer.predictor"
    print(pix2seq.infer.__file__)
    from pix2seq.config import CFG
    print(CFG.img_size)
"""


@pytest.fixture(scope="module")
def program(scratch) -> Path:
    """A folder with a program whose packages have the names of ours."""
    folder = scratch / "program"
    for name in OWN:
        (folder / name).mkdir(parents=True)
        for module in ("__init__", *MODULES):
            (folder / name / f"{module}.py").write_text(f"mine = '{name}.{module}'")
    (folder / "main.py").write_text(PROGRAM)
    return folder


@pytest.mark.parametrize("option", ["--editable", ""], ids=["editable", "copy"])
def test_a_program_of_its_own_uses_the_package(fresh_clone: Clone, program, scratch, option):
    environment = scratch / f"environment{option}"
    fresh_clone.run(f"{sys.executable} -m venv --without-pip {environment}", seconds=300)
    # what the project requires is borrowed: installing it takes minutes and a network
    paths = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    install = f"{sys.executable} -m pip --python {environment}/bin/python {PIP} {option} ."
    fresh_clone.run(install, seconds=300)

    weights, image = fresh_clone.root / "weights/demo.safetensors", "images/demo.jpg"
    main = f"{environment}/bin/python main.py {weights} {fresh_clone.root / image}"
    done = fresh_clone.run(f"cd {program} && {main}", seconds=300)
    text, place, size = done.stdout.splitlines()
    assert text.startswith("Detections: ") and " objects: " in text and "1 cat" in text
    assert (program / "found.png").stat().st_size > 10_000
    here = fresh_clone.root / "infer" if option else packages / "pix2seq" / "infer"
    assert Path(place).parent == here and int(size) > 0

    # nothing of ours is found under another name
    code = "import importlib.util as u; print([n for n in ('utils', 'config') if u.find_spec(n)])"
    done = fresh_clone.run(f'cd / && {environment}/bin/python -c "{code}"', seconds=60)
    assert done.stdout.strip() == "[]"
