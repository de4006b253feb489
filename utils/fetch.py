"""Pictures from an address: limits of size and time, and a check that it is a picture."""

import atexit
import itertools
import re
import shutil
import tempfile
import time
import urllib.request
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

from utils.errors import UserError, one_line
from utils.files import foreign
from utils.images import image_size

MAX_BYTES = 50_000_000  # of a picture
PATIENCE = 10.0  # seconds that a server may be silent
DEADLINE = 60.0  # seconds for the whole picture
BLOCK = 1 << 16
NUMBERS = itertools.count(1)


@cache
def _folder() -> Path:
    """For the pictures of this process; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="pix2seq-pictures-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def fetch_picture(url: str) -> Path:
    """A file with the picture at an http or https address; it is there until the process ends.

    Raises:
        UserError: no answer in time, more than `MAX_BYTES`, or no picture.
    """
    content = _read(url)
    if problem := foreign(content):
        raise UserError(f"{url} {problem.split(';')[0]}; name the address of the picture itself")
    path = _folder() / str(next(NUMBERS)) / _file_name(url)
    path.parent.mkdir()
    path.write_bytes(content)
    try:
        image_size(path)
    except UserError as error:
        reason = str(error).replace(str(path), url)
        raise UserError(f"{reason} (fetched from {_host(url)})") from error
    return path


def _read(url: str) -> bytes:
    """The content at an address, through the proxies of the environment."""
    end = time.monotonic() + DEADLINE
    limit = f"{MAX_BYTES / 1e6:.0f} MB"
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "pix2seq-pytorch"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            content = bytearray()
            while block := answer.read1(BLOCK):
                content += block
                if len(content) > MAX_BYTES:
                    raise UserError(f"{url} is larger than {limit}; fetch and reduce it yourself")
                if time.monotonic() > end:
                    raise TimeoutError(f"not finished after {DEADLINE:.0f} s")
    except HTTPError as error:
        raise UserError(f"cannot fetch {url} (status {error.code}); correct the address") from error
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        reason = one_line(error).removeprefix("<urlopen error ").removesuffix(">")
        remedy = "fetch it yourself, and name the file"
        raise UserError(f"cannot fetch {url} ({reason}); {remedy}") from error
    if not content:
        raise UserError(f"{url} is empty; correct the address")
    return bytes(content)


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _file_name(url: str) -> str:
    """A name for the file of a picture: that of the address, without what may not be in a name."""
    name = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]", "_", name).lstrip(".")[-80:] or "picture"
