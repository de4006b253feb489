"""Files of the Hugging Face hub, or of a mirror, such as `hf://owner/name/FILE@revision`.

The hub is asked which commit a name means, for a few seconds; without an answer the cache serves
what it has. `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN` are the variables of
huggingface_hub.
"""

import queue
import re
import threading
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from utils.cli import log
from utils.errors import UserError, one_line
from utils.files import file_sha256, path_text

NAME = re.compile(r"hf:/+([\w.-]+/[\w.-]+)/([^@]*[^@/])(?:@(.+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{64}")
PATIENCE = 2.5  # seconds that a server has to answer
FORM = "hf://owner/name/FILE.safetensors, with @revision if you like"


@dataclass(frozen=True)
class HubFile:
    """A file of the hub that lies in the cache."""

    name: str  # with the commit for its revision: it means this file for ever
    path: Path
    commit: str  # 40 hexadecimal digits
    sha256: str  # of the file


def split_name(name: str | Path) -> tuple[str, str, str | None]:
    """ "hf://owner/name/FILE@revision" -> owner/name, FILE, revision or None.

    Raises:
        UserError: it is no such name.
    """
    found = NAME.fullmatch(str(name))
    if found is None or ".." in found[2].split("/"):
        raise UserError(f"{path_text(name)} names no file of the hub; write {FORM}")
    return found[1], found[2], found[3]


def fetch(name: str | Path) -> HubFile:
    """Fetches a file of the hub; one that the cache has is not fetched again.

    A branch is asked for its commit once in a process.

    Raises:
        UserError: there is no such file, or the hub does not answer and the cache does not have it.
    """
    return _fetch(path_text(name))


@cache
def _fetch(name: str) -> HubFile:
    repo, file, revision = split_name(name)
    path = None
    if COMMIT.fullmatch(revision or "") or huggingface_hub.constants.HF_HUB_OFFLINE:
        path = _from_cache(repo, file, revision)
    if path is None and huggingface_hub.constants.HF_HUB_OFFLINE:
        folder = huggingface_hub.constants.HF_HUB_CACHE
        raise _refusal(name, f"HF_HUB_OFFLINE is set and {folder} does not have it")
    path = path or _download(name, repo, file, revision)
    return _describe(repo, file, path)


@cache
def _describe(repo: str, file: str, path: Path) -> HubFile:
    """What lies in the cache; a line says so, once."""
    commit = path.parts[-1 - len(Path(file).parts)]  # …/snapshots/COMMIT/FILE
    blob = path.resolve().name  # the cache names large files by their SHA-256
    digest = blob if DIGEST.fullmatch(blob) else file_sha256(path)
    found = HubFile(f"hf://{repo}/{file}@{commit}", path, commit, digest)
    log(f"weights: {found.name} (SHA-256 {found.sha256})")
    return found


def _download(name: str, repo: str, file: str, revision: str | None) -> Path:
    url = huggingface_hub.hf_hub_url(repo, file, revision=revision)
    if problem := server_problem(url):
        path = _from_cache(repo, file, revision)
        if path is None:
            raise _refusal(name, problem)
        log(f"notice: {problem}; {name} is taken from the cache and may not be the newest")
        return path
    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
    except LocalEntryNotFoundError as error:  # the network went away
        raise _refusal(name, one_line(error)) from error
    except GatedRepoError as error:
        raise UserError(
            f"{name} needs your consent to its conditions; give it on the page of {repo}, then set "
            "HF_TOKEN or run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no repository {repo}, or it is private; correct the name, or set "
            "HF_TOKEN or run: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{repo} has no revision {revision!r}; name a branch, a tag or a commit after the @"
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"{repo} has no file {file}; correct {name}") from error
    except Exception as error:  # of the client, of the disk
        raise _refusal(name, one_line(error)) from error


def first_file(repo: str, names: Collection[str], revision: str | None) -> Path:
    """The first of some files that a repository has, from the cache or else from the network.

    Raises:
        UserError: the cache has none, and there is no network; or the repository has none.
    """
    for name in names:
        if path := _from_cache(repo, name, revision):
            return path
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        folder = huggingface_hub.constants.HF_HUB_CACHE
        raise UserError(f"HF_HUB_OFFLINE is set, and {folder} has none")
    check_server(huggingface_hub.hf_hub_url(repo, next(iter(names)), revision=revision))
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError:  # an EntryNotFoundError, too: the network went away
            raise
        except EntryNotFoundError:
            continue
    raise UserError(f"{repo} has no {' or '.join(names)}")


def check_server(url: str) -> None:
    """Raises a `UserError` if a server does not answer in time."""
    if problem := server_problem(url):
        raise UserError(problem)


def server_problem(url: str) -> str:
    """Asks a server once, through the proxies that the hub would use.

    Returns:
        why it cannot be used, after `PATIENCE` seconds at most; empty if it answers.
    """
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask() -> None:
        try:
            status = huggingface_hub.get_session().head(url, timeout=PATIENCE).status_code
            answers.put(f"status {status}" if status // 100 == 5 else "")  # of the server
        except Exception as error:  # each version of the hub has another client
            answers.put(type(error).__name__)

    # A thread, for looking up the name of a server has no time limit of its own.
    threading.Thread(target=ask, daemon=True).start()
    try:
        problem = answers.get(timeout=PATIENCE)
    except queue.Empty:
        problem = "no answer"
    return problem and f"{'/'.join(url.split('/')[:3])}: {problem}"


def _from_cache(repo: str, file: str, revision: str | None) -> Path | None:
    found = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _refusal(name: str, reason: str) -> UserError:
    return UserError(
        f"cannot fetch {name} ({reason}); name a file with a path, or fill the cache where there "
        "is a network (HF_HOME) and set HF_HUB_OFFLINE=1 (docs/hub.md)"
    )
