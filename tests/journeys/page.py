"""Commands of a Markdown page, in its order."""

import re
from dataclasses import dataclass

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONTINUED = re.compile(r"(?:.*\\\n)*.*\n")  # a line, and those that it continues on
# Inline code is a command if it starts with one of these and goes on.
PROGRAMS = r"(?:python3?|make|pip|torchrun|tensorboard|\.venv/bin/\w+|download/\w+\.sh) \S"


@dataclass(frozen=True)
class Command:
    """A command that a page tells people to run."""

    section: str  # the heading above it
    text: str  # word for word
    language: str = ""  # of the block, if it is no command line

    @property
    def plain(self) -> str:
        """In one line, without its comment."""
        text = re.sub(r"(^|\s)#.*", "", self.text.replace("\\\n", " "))
        return " ".join(text.split())


def read_commands(page: str) -> list[Command]:
    """Commands of the fenced blocks without a language and of the prose, and blocks of Python."""
    found, section, parts = [], "", FENCE.split(page)  # prose, language, block, prose, …
    for place, part in enumerate(parts):
        if place % 3 == 0:
            for heading, inline in re.findall(r"^## (.+)$|`([^`]+)`", part, re.MULTILINE):
                section = heading or section
                if re.match(PROGRAMS, inline):
                    found.append(Command(section, inline))
        elif place % 3 == 2 and parts[place - 1]:
            if parts[place - 1] == "python":  # not what a program prints
                found.append(Command(section, part, "python"))
        elif place % 3 == 2:
            lines = [Command(section, text) for text in CONTINUED.findall(part)]
            found += [command for command in lines if command.plain]
    return found
