"""Finds the files that annotations name, though another system may have written the names.

A name means the file of that very name. If there is none, it means the file whose name differs in
the Unicode normal form alone (a Mac writes é as two characters). If there is none, either, it may
differ in letter case, separators and %-codes, and at last in the folders in front.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from utils.files import shown


def normal_form(name: str) -> str:
    """The name as most systems write it: accents are part of their letter."""
    return unicodedata.normalize("NFC", name)


def plain_form(name: str) -> str:
    """The name without letter case, with slashes, and without the %-codes of web addresses."""
    parts = normal_form(unquote(name)).replace("\\", "/").casefold().split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def last_part(name: str) -> str:
    """The plain name without folders."""
    return plain_form(name).rpartition("/")[2]


def stem(name: str) -> str:
    """The plain name without folders and suffix."""
    return last_part(name).rpartition(".")[0] or last_part(name)


FORMS: dict[Callable[[str], str], str] = {  # the closest first -> what differs, for people
    normal_form: "with letters in another Unicode normal form",
    plain_form: "in another spelling (letter case, separators or %-codes)",
    last_part: "in another folder",
    stem: "with another suffix",
}


class FileNames:
    """The names of the files of a folder, to find those that annotations mean.

    Args:
        names: such as those of `list_files`.
    """

    def __init__(self, names: Iterable[str]):
        self.names = frozenset(names)
        self._by_form: dict[Callable, dict[str, list[str]]] = {}  # made when they are needed

    def resolve(self, names: Sequence[str]) -> list[str | None]:
        """The file that each name means; None where there is none, or where it is not clear.

        Only the exact name may mean a file that another name means, too.

        Args:
            names: all that an annotation file has, so that no two mean one file by chance.
        """
        found = [name if name in self.names else None for name in names]
        for form in (normal_form, plain_form, last_part):
            missing = [i for i, file in enumerate(found) if file is None]
            if not missing:
                break
            files, wanted = self._files_of_form(form), Counter(map(form, set(names)))
            for i in missing:
                key = form(names[i])
                if len(files.get(key, ())) == 1 and wanted[key] == 1:
                    found[i] = files[key][0]
        return found

    def hint(self, name: str) -> str:
        """What to say about a name that `resolve` did not find: a file that is near it, or ""."""
        for form, difference in FORMS.items():
            near = [file for file in self._files_of_form(form).get(form(name), ()) if file != name]
            if near:
                alike = normal_form(near[0]) == normal_form(name)
                return f"there is {ascii(near[0]) if alike else shown(near[0])} {difference}"
        odd = next((file for file in self.names if not is_unicode(file)), None)
        return "" if odd is None else f"names such as {shown(odd)} are no UTF-8, rename them"

    def _files_of_form(self, form: Callable[[str], str]) -> dict[str, list[str]]:
        if form not in self._by_form:
            files = self._by_form[form] = defaultdict(list)
            for name in sorted(self.names):
                files[form(name)].append(name)
        return self._by_form[form]


def list_files(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, with slashes: one look per folder."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        above, here = (os.path.realpath(p) + os.sep for p in (os.path.dirname(place), place))
        if os.path.islink(place) and above.startswith(here):  # it leads back
            folders.clear()
            continue
        parts = os.path.relpath(place, folder).split(os.sep)
        prefix = "" if parts == ["."] else "/".join(parts) + "/"
        found += [prefix + file for file in files]
    return found


def is_unicode(name: str) -> bool:
    """Whether a name can be written in any Unicode encoding: Python keeps other bytes of names."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
