"""Builds the package `pix2seq`: our folders and config.py below one name, see pix2seq/__init__.py.

The settings of pyproject.toml cannot say that config.py, a single file, is a module of it.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = ("dataset", "download", "infer", "models", "tokenizer", "train", "utils")


class BuildWithSettings(build_py):
    """Copies config.py beside the folders; an editable install finds it where it is."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("config.py", str(Path(self.build_lib) / "pix2seq" / "config.py"))


inside = [f"{top}.{name}" for top in FOLDERS for name in find_packages(top)]
places = {f"pix2seq.{name}": name.replace(".", "/") for name in (*FOLDERS, *inside)}
lines = Path("requirements.txt").read_text().splitlines()
requirements = [line.partition("#")[0].strip() for line in lines]
setup(
    packages=["pix2seq", *places],
    package_dir={"pix2seq": "pix2seq", **places},
    package_data={"pix2seq.models.decode_step": ["*.cpp"], "pix2seq.download": ["*.sh"]},
    install_requires=[requirement for requirement in requirements if requirement],
    cmdclass={"build_py": BuildWithSettings},
)
