"""Files: text as any system writes it, files written complete or not at all, JSON values checked.

Weight files are found here too, for it needs no torch.
"""

import codecs
import difflib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shlex
import stat
import tempfile
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import numpy as np

from utils.errors import UserError, one_line

IN_RUN = ("best.safetensors", "last.safetensors")  # of a run folder, the first that is there
PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")  # how files of torch.save begin
PACKED = (b"PK\x03\x04", b"\x1f\x8b", b"\xfd7zXZ", b"BZh")  # a file of torch is a zip file, too
TENSORFLOW = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5}|h5)$")
HUB_NAME = re.compile(r"hf:/+")  # how names of the hub begin; a `Path` has one slash less
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
OFFICIAL = re.compile(  # names that download/download_official_weights.sh knows
    r"(obj365_M_640|coco_M_(640|1024|1333)|multi_vit_b_(640|1024))".replace(
        "M", "(resnet|resnetc|vit_b|vit_l)"
    )
)
NAME_ANOTHER = "train one, or name another with --weights"
TEMPORARY = re.compile(r"\.[\w-]+\.\d+(-[0-9a-f]{8})?\.\w+")  # names that `atomic_path` yields
BYTE_ORDER_MARKS = {  # that of UTF-32 first: that of UTF-16 begins as it does
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def cache_folder() -> Path:
    """Folder of what can be made again: `pix2seq` in XDG_CACHE_HOME, by default ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "pix2seq"


def name_of_path(path: Path) -> str:
    """What folders of results call a dataset: its folder (also for data.yaml), or its file."""
    path = path.resolve()
    generic = path.is_file() and path.stem in ("data", "dataset", "_annotations.coco")  # of exports
    return path.parent.name if generic else path.name if path.is_dir() else path.stem


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with its suffix; it replaces `path` on success.

    It is on the disk before it does: after a crash there is the old file or the new one.
    Missing parent folders are made; a failure leaves an existing `path` as it was. Others may read
    the file as far as the umask says, whatever the library does that writes it.
    """
    path = Path(path)
    if is_stream(path):
        raise UserError(f"cannot write {path}: it is not a regular file; choose another place")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # safetensors makes it private
            temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # it is there only after a failure
            temporary.unlink()


def is_stream(path: str | Path) -> bool:
    """Whether a path is a device, a pipe or an open file: no other file may take its place."""
    path = Path(os.path.abspath(path))
    is_special = path.exists() and not path.is_file() and not path.is_dir()
    return is_special or path.parent == Path("/dev") or path.is_relative_to("/proc")


def cannot_write(path: str | Path, error: OSError) -> UserError:
    """What to say where the system refuses to write a file."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "make room, or choose another place" if full else "choose another place"
    return UserError(f"cannot write {path}: {error.strerror or one_line(error)}; {remedy}")


def check_place(folder: str | Path) -> None:
    """Tries whether a file can be written in a folder, which may have to be made first.

    Nothing is left behind: the first folder above it that is there is tried.

    Raises:
        UserError: it cannot.
    """
    place = Path(os.path.abspath(folder))
    try:
        while not _is_there(place):
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise cannot_write(folder, error) from error


def _is_there(path: Path) -> bool:
    """Unlike `Path.exists`, raises what no path may be called."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # there folders cannot be opened
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Hexadecimal digest of a file that has been read before."""
    digest = hashlib.sha256()
    with path.expanduser().open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def decode_text(content: bytes, encoding: str = "utf-8") -> str:
    """The text of a file, whatever system wrote it; a byte order mark decides, and is removed.

    Args:
        encoding: of a text without a mark; UTF-16 is told by its zero bytes.

    Raises:
        ValueError: the bytes are no text in that encoding, or there is no such encoding.
    """
    mark, name = next(filter(content.startswith, BYTE_ORDER_MARKS), b""), encoding.upper()
    if mark:
        encoding = BYTE_ORDER_MARKS[mark]
        name = encoding.upper()
    elif b"\0" in content:  # half of the bytes of Latin letters and line ends
        zeros_come_first = content[0::2].count(0) > content[1::2].count(0)
        encoding = "utf-16-be" if zeros_come_first else "utf-16-le"
        name = f"{name} or UTF-16"
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = error.start + len(mark)
        raise ValueError(f"it is not valid {name} at byte {place}; save it as UTF-8") from error
    except LookupError as error:
        raise ValueError(f"there is no encoding {encoding!r}; save it as UTF-8") from error


def foreign(content: bytes) -> str:
    """Describes a web page, archive or LFS pointer found instead of a file; empty if none."""
    if content.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself; run: git lfs pull"
    if content[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page; download the file again"
    if content.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        return "is an archive (zip or gzip); unpack it"
    return ""


def read_text(path: str | Path, advice: str) -> str:
    """The content of a text file, see `decode_text`.

    Args:
        advice: what to do if it cannot be read.

    Raises:
        UserError: there is no such file, or it holds no text.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
        if problem := foreign(content):
            raise UserError(f"{path} {problem}")
        return decode_text(content)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); {advice}") from error
    except ValueError as error:
        raise UserError(f"cannot read {path} ({one_line(error)}); {advice}") from error


def split_lines(text: str) -> list[str]:
    """Lines as Windows, Unix and old Macs end them; other control characters end none."""
    return re.split(r"\r\n|\r|\n", text)


def read_json(path: str | Path, advice: str) -> object:
    """The content of a JSON file.

    Args:
        advice: what to do if it cannot be read.

    Raises:
        UserError: there is no such file, or it holds no JSON.
    """
    text = read_text(path, advice)
    if not text.strip():
        raise UserError(f"{path} is empty; {advice}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} as JSON ({one_line(error)}); {advice}") from error


def nearest_path(path: Path) -> Path | None:
    """The path that a misspelt one may have meant; None if there is none."""
    found = Path(path.anchor)
    try:
        for name in path.relative_to(path.anchor).parts:
            if not (found / name).exists():
                names = [entry.name for entry in found.iterdir()]
                near = difflib.get_close_matches(name, names, n=1)
                near += [other for other in names if Path(other).stem == name]
                if not near:
                    return None
                name = near[0]
            found /= name
    except OSError:
        return None
    return found


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes UTF-8; bytes of a name that are no text stand as \\udcXX, in JSON their own escape.

    A stream such as /dev/stdout gets the text and stays what it is.
    """
    options = {"encoding": "utf-8", "errors": "backslashreplace"}
    if not is_stream(path):
        with atomic_path(path) as temporary:
            temporary.write_text(text, **options)
        return
    try:
        with open(path, "a", **options) as file:
            file.write(text)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json_atomic(path: str | Path, obj: object, *, indent: int | None = 2) -> None:
    """Standard JSON: numpy values become plain ones, NaN and infinities null.

    Args:
        indent: None for one compact line (large result files).
    """
    options = {"indent": indent, "ensure_ascii": False, "allow_nan": False, "default": _plain}
    try:
        text = json.dumps(obj, **options)
    except ValueError:  # rare, so only then is the whole object walked
        obj = _without_nan(obj)
        text = json.dumps(obj, **options)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is no UTF-8, half of a surrogate pair
        text = json.dumps(obj, **options | {"ensure_ascii": True})
    write_text_atomic(path, text + "\n")


def _plain(value):
    """What `json` does not know itself."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _without_nan(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value


def fits(value: object, kind: object) -> bool:
    """Whether a JSON value is of an annotated type; numbers must be finite.

    Args:
        kind: bool, int, float, str, Path (a string), tuple, list, dict, `Sequence[…]` or `… | …`.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType) or origin is typing.Union:
        return any(fits(value, one) for one in inner)
    if origin in (tuple, list, Sequence):
        fixed = origin is tuple and inner[-1] is not Ellipsis
        if not isinstance(value, (list, tuple)) or (fixed and len(value) != len(inner)):
            return False
        return all(fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if kind in (int, float):
        number = isinstance(value, (int,) if kind is int else (int, float))
        finite = number and (isinstance(value, int) or math.isfinite(value))
        return finite and not isinstance(value, bool)
    if kind is types.NoneType:
        return value is None
    return isinstance(value, str if kind is Path else kind)


def check_fields(values: object, kinds: Mapping[str, object]) -> None:
    """Checks a JSON object against annotated names; names may be missing.

    Raises:
        ValueError: it is no object, or a name is unknown or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it must be an object, got {shown(values)}")
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"it has the unknown field {shown(name)}")
        if not fits(value, kinds[name]):
            kind = kinds[name]
            expected = kind.__name__ if isinstance(kind, type) else str(kind)
            raise ValueError(f"{name} must be of type {expected}, got {shown(value)}")


def whole_text(text: str) -> str:
    """Text without half characters: JSON may hold one half of a surrogate pair."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def shown(value: object, limit: int = 60) -> str:
    """A value from a file in a message: short, on one line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_hub_name(path: str | Path | None) -> bool:
    """Whether weights are named by a repository of the Hugging Face hub: "hf://owner/name/…"."""
    return path is not None and HUB_NAME.match(str(path)) is not None


def path_text(path: str | Path) -> str:
    """A path as a person writes it: a name of the hub keeps both slashes."""
    return HUB_NAME.sub("hf://", str(path), count=1) if is_hub_name(path) else str(path)


def find_weight_file(path: str | Path, remedy: str = NAME_ANOTHER) -> Path:
    """The weight file at `path`, the best one of the run folder there, or a file of the hub.

    Args:
        path: or "hf://owner/name/FILE@revision", which is fetched if the cache does not have it.
        remedy: what to do if there is none.

    Raises:
        UserError: there is none, or it is plainly something else: a checkpoint of a run, a file of
            torch or TensorFlow, a Git LFS pointer, a web page.
    """
    file = path = Path(path).expanduser()
    remedy = explain_download(path) or remedy
    if is_hub_name(path):
        file = import_module("utils.hub").fetch(path).path
    elif path.is_dir():
        file = next((path / name for name in IN_RUN if (path / name).is_file()), None)
        if file is None:
            found = sorted(path.rglob(IN_RUN[0]), key=lambda p: p.parent.name)[-1:]
            hint = f"did you mean {found[0].parent}?" if found else remedy
            raise UserError(f"no {' or '.join(IN_RUN)} in the folder {path}; {hint}")
    if not file.is_file():
        near = None if explain_download(path) else nearest_path(file)
        raise UserError(f"no weight file at {path}; {f'did you mean {near}?' if near else remedy}")
    _check_begin(file)
    return file


def explain_download(path: Path) -> str:
    """How to get official weights that are not at `path`; empty if it is no name of theirs."""
    name, folder = path.name.removesuffix(".safetensors"), path.parent.resolve()
    if OFFICIAL.fullmatch(name) is None:
        return ""
    if (file := WEIGHTS / f"{name}.safetensors").is_file():
        return f"did you mean {file}?"
    target = "" if folder in (WEIGHTS, Path.cwd()) else f" {shlex.quote(str(path.parent))}"
    return f"download it: download/download_official_weights.sh {name}{target}"


def describe_weights(name: str, file: Path) -> dict[str, str | None]:
    """Which weights they are, as JSON values: name, revision (a commit of the hub) and sha256.

    Args:
        name: a path, or "hf://owner/name/FILE@revision".
        file: what `find_weight_file` found there.
    """
    if is_hub_name(name):
        found = import_module("utils.hub").fetch(name)
        return {"name": name, "revision": found.commit, "sha256": found.sha256}
    return {"name": name, "revision": None, "sha256": file_sha256(file)}


def _check_begin(path: Path) -> None:
    """Raises a `UserError` for a file that begins as none of safetensors does."""
    try:
        with path.open("rb") as file:
            begin = file.read(256)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error})") from error
    if not begin:
        raise UserError(f"{path} is empty; download or copy it again")
    if begin.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} {foreign(begin)}")
    if begin.lstrip().startswith((b"<!", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not a weight file; download it again")
    if begin.startswith(PACKED) and b"/data.pkl" not in begin:
        raise UserError(f"{path} is packed (zip, gzip, xz or bzip2); unpack it first")
    if PICKLE.match(begin) and begin[8:9] != b"{":  # the length of a header may begin so, too
        weights = path.with_name(IN_RUN[1])
        if path.suffix == ".ckpt" and weights.is_file():
            raise UserError(f"{path} is a checkpoint of a run; its weights are {weights} beside it")
        raise UserError(
            f"{path} is a file of torch (.pth, .pt, .ckpt); convert the weights of a port with "
            "download/convert_port_weights.py"
        )
    if TENSORFLOW.search(path.name):
        raise UserError(
            f"{path} belongs to a checkpoint of TensorFlow; convert it with "
            "download/convert_official_weights.py"
        )
