"""The command line that all scripts share: settings, overrides, one-line errors."""

import argparse
import contextlib
import difflib
import itertools
import logging
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from utils.errors import UserError, exit_on_sigterm, near_settings
from utils.files import fits, path_text, read_json, shown
from utils.setting_rules import PAIRS, RULES, Pair, complain, complain_of_options, complain_of_pairs


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, with what was probably meant."""

    elsewhere: Mapping[str, str] = {}  # option that this script lacks -> what to say about it

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; see --help")

    def parse_args(self, args=None, namespace=None):
        """As that of argparse; names what an unknown argument may have been meant to be.

        Empty words are refused: a variable of the shell that was not set would become the default,
        or this folder.
        """
        words = sys.argv[1:] if args is None else list(args)
        for option, word in itertools.pairwise(["the command line", *words]):
            if not word or re.fullmatch(r"--[\w-]+=", word):
                raise UserError(f"{word[:-1] or option} has an empty value; is a variable not set?")
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UserError(f"unknown argument {shown(unknown[0])}; {self._remedy(unknown)}")
        return values

    def _remedy(self, unknown: Sequence[str]) -> str:
        """What to write instead of the first of these words."""
        word, eq, value = unknown[0].partition("=")
        if not word.startswith("-"):
            is_override = eq and word in RULES
            return f"settings come after --set: --set {unknown[0]}" if is_override else "see --help"
        if not eq and len(unknown) > 1 and not unknown[1].startswith("--"):
            value = unknown[1]

        # An option of another script, a setting of this name, an option or a setting near it.
        name = word.lstrip("-").replace("-", "_")
        options = [option for action in self._actions for option in action.option_strings]
        option = f"--{name.replace('_', '-')}"
        if option in self.elsewhere:
            return self.elsewhere[option]
        near = difflib.get_close_matches(option, options, n=1)
        if near and name not in RULES:
            return f"did you mean {near[0]}?"
        for other in difflib.get_close_matches(option, self.elsewhere, n=1, cutoff=0.8):
            return self.elsewhere[other]
        for setting in near_settings(name, RULES, cutoff=0.8)[:1]:
            return f"settings come after --set: --set {setting}={value or 'VALUE'}"
        return "see --help"


def parser(doc: str, *, presets: Mapping[str, type] | None = None) -> argparse.ArgumentParser:
    """A parser with the options every script has; the script's docstring is its help.

    Args:
        presets: name -> CFG class, for scripts that have `--preset`.
    """
    out = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="override settings of config.py; docs/settings.md lists them",
    )
    out.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="read settings from a JSON file, such as the settings.json of a run",
    )
    if presets is not None:
        out.add_argument("--preset", help=f"start from these settings: {', '.join(presets)}")
    out.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return out


class ReaderGone(Exception):
    """Raised when the reader of standard output has closed the pipe, as in `… | head`."""


class _Stream:
    """A text stream that ends no program by a line that cannot be written or shown.

    A log may lose its reader (`| tee` that ended, a terminal that was closed) or its disk: lines
    that nobody reads are dropped. What the console's encoding lacks is shown as an escape.
    """

    def __init__(self, stream: typing.TextIO | None):
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self.failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.failed(error)

    def failed(self, error: OSError) -> None:
        """What is said to people: nobody listens."""

    def __getattr__(self, name: str):
        if name == "_stream":  # not there yet, while it is copied
            raise AttributeError(name)
        return getattr(self._stream, name)


class _Results(_Stream):
    """Standard output: what cannot be written is missing, and that must be known."""

    def failed(self, error: OSError) -> None:
        with contextlib.suppress(OSError, ValueError):  # or Python complains when it ends
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from error
        raise UserError(
            f"cannot write the results to standard output: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Replaces `sys.stdout` and `sys.stderr` by streams that handle failed writes."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Results(sys.stdout), _Stream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def run(main: Callable) -> typing.NoReturn:
    """Runs a script's `main`; a `UserError` ends in its lines on stderr and exit status 2."""
    debug, status = "--debug" in sys.argv, 0
    os.environ["MPLBACKEND"] = "agg"  # that of a notebook is not here, and nothing is shown
    with safe_streams(), exit_on_sigterm():
        try:
            main()
            sys.stdout.flush()
        except UserError as error:
            if debug:
                traceback.print_exc()
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            status = 130
        except ReaderGone:  # e.g. `… | head`
            status = 128 + 13  # as a program that SIGPIPE ends
        except SystemExit as left:  # of argparse, or of a training that was told to stop
            status = left.code
    _leave(status)


def _leave(status: int | str | None) -> typing.NoReturn:
    """Ends the process.

    Of several, it goes at once: DDP keeps its process group, `destroy_process_group` or not, and
    once in a while a thread of it aborts an interpreter that takes itself down (torch 2.14).
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and isinstance(status, int):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # its reader is gone, or it is closed
                stream.flush()
        os._exit(status)
    sys.exit(status)


_listeners: list[Callable[[str], None]] = []


@contextlib.contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Passes every line that is shown on the terminal to `listener`, within this context."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def pass_on(text: str) -> None:
    """Gives a line that was shown in another way than by `log` to those who listen."""
    for listener in _listeners:
        listener(text)


def log(text: str) -> None:
    """A line for the person at the terminal; stdout is for results alone.

    Of the processes that torchrun starts the first one speaks.
    """
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
        pass_on(text)


def _refuse(self, name, value):
    raise AttributeError(f"settings are read-only; set {name} in config.py or with --set")


def settings_types(base: type) -> dict[str, object]:
    """Name -> annotated type of every setting of a CFG class."""
    return typing.get_type_hints(base)


def load_settings(
    args: argparse.Namespace,
    base: type,
    *,
    presets: Mapping[str, type] | None = None,
    inherited: dict | None = None,
    pairs: Sequence[Pair] = PAIRS,
):
    """The settings of a script, read-only: CFG < preset < `inherited` < `--config` < `--set`.

    Args:
        args: of `parser`; options that obey the range of a setting are checked, too.
        base: the CFG class of the script; `--preset` names another.
        inherited: settings of the run or weight file that one goes on from (`settings_dict`).
        pairs: see `snapshot`.

    Raises:
        UserError: a line for everything that is wrong.
    """
    if presets is not None and args.preset is not None:
        base = find_preset(presets, args.preset)
    complaints = complain_of_options(vars(args))
    try:
        cfg = snapshot(base, args.set, saved=inherited, file=args.config, pairs=pairs)
    except UserError as error:
        complaints.append(str(error))
    if complaints:
        raise UserError("\n".join(complaints))
    return cfg


def base_class(cfg) -> type:
    """The class of config.py that a snapshot was made of: `snapshot` makes a subclass of it."""
    return type(cfg).__mro__[1]


def snapshot(
    base: type,
    overrides: Sequence[str] = (),
    *,
    saved: dict | None = None,
    file: Path | None = None,
    pairs: Sequence[Pair] = PAIRS,
):
    """A read-only instance of the CFG class `base` with `name=value` overrides.

    Args:
        saved: values of an earlier run (`settings_dict`), below the file and the overrides.
        file: JSON object of settings, below the overrides, such as a run's settings.json.
        pairs: conditions on several settings; none while values of a run are still to come in
            between.

    Raises:
        UserError: unknown names, values of another type or out of their range (`RULES`), settings
            that do not go together: a line for each.
    """
    kinds = settings_types(base)
    cfg = type("Frozen" + base.__name__, (base,), {"__setattr__": _refuse})()
    known = {name: value for name, value in (saved or {}).items() if name in kinds}
    values, complaints = {}, []  # values: name -> value, and where it was written

    # From an earlier run; what it has more does not count. Then from --config.
    damaged = "the saved settings are damaged: ", "; correct them (settings.json)"
    for rows, (head, tail) in ((known, damaged), (_read_config(file, kinds), (f"{file}: ", ""))):
        for name, value in rows.items():
            wrong = _complain_of_name(name, kinds) or _complain_of_type(name, value, kinds[name])
            if wrong:
                complaints.append(f"{head}{wrong}{tail}")
            else:
                values[name] = _from_plain(value, kinds[name])
    # --set
    for item in overrides:
        name, eq, text = item.partition("=")
        try:
            if not eq:
                raise UserError(f"--set wants name=value, got {shown(item)}")
            if wrong := _complain_of_name(name, kinds):
                raise UserError(wrong)
            values[name] = parse_value(name, text, kinds[name])
        except UserError as error:
            complaints.append(str(error))

    # Ranges, also of what stands in config.py; then settings together.
    cfg.__dict__.update(values)
    for name, value in settings_dict(cfg).items():
        wrong = _complain_of_type(name, value, kinds[name])
        complaints.append(wrong or complain(name, getattr(cfg, name)))
    if not any(complaints):
        complaints += complain_of_pairs(cfg, pairs)
    if any(complaints):
        raise UserError("\n".join(filter(None, complaints)))
    return cfg


def _complain_of_name(name: str, kinds: Mapping[str, object]) -> str:
    if name in kinds:
        return ""
    near = ", ".join(near_settings(name, kinds))
    hint = f"similar names: {near}" if near else "class CFG there has all names"
    return f"no setting {shown(name)} in config.py; {hint}"


def _complain_of_type(name: str, value: object, kind: object) -> str:
    """Of a value as JSON has it; numbers that are not finite are left to the range."""
    number = isinstance(value, float) and kind is float
    if number or (fits(value, kind) and (value != "" or kind is not Path)):
        return ""
    expected = getattr(kind, "__name__", kind)
    return f"{name} must be of type {expected}, got {shown(value)}"


def read_config(file: Path) -> dict:
    """All that stands in a file of `--config`."""
    values = read_json(file, "name a JSON file of settings with --config")
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold a JSON object of settings, got {shown(values)}")
    return values


def _read_config(file: Path | None, kinds: Mapping[str, object]) -> dict:
    """The settings in a file of `--config`.

    That of a run holds `tasks` too. What it names beyond the settings was one in another version
    and does not count; its budgets and rates are chosen already (`finetune`).
    """
    values = {} if file is None else read_config(file)
    if "tasks" not in values:
        return values
    values = {name: value for name, value in values.items() if name in kinds} | {"finetune": False}
    vocab, own = values.get("caption_vocab"), file.parent / "caption_vocab.json"
    if isinstance(vocab, str) and own.is_file() and not os.path.isfile(vocab):
        values["caption_vocab"] = str(own)  # the run kept its own
    return values


def pick_names(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Names that a person listed with commas, in the order of `known` whatever theirs.

    Raises:
        UserError: one is not known, or none is named.
    """
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{option} must name some of {', '.join(known)}, with commas, got {name!r}{hint}"
            )
    return [name for name in known if name in wanted]


def parse_value(name: str, text: str, kind) -> object:
    """`text` as a value of the annotated type: bool, int, float, str, Path, tuple, `… | None`.

    Raises:
        UserError: it is none.
    """
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if text.lower() == "none":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        parts = [part for part in text.split(",") if part]
        if inner[-1] is not Ellipsis and len(parts) != len(inner):
            raise UserError(f"{name} must be {len(inner)} values with commas, got {shown(text)}")
        return tuple(parse_value(name, part, inner[0]) for part in parts)
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UserError(f"{name} must be true or false, got {shown(text)}")
        return text.lower() in ("true", "1", "yes")
    try:
        if kind is Path:
            if not text.strip():
                raise ValueError
            return Path(text).expanduser()
        return kind(text)
    except (ValueError, RuntimeError):  # RuntimeError: "~nobody"
        raise UserError(f"{name} must be of type {kind.__name__}, got {shown(text)}") from None


def settings_dict(cfg) -> dict[str, object]:
    """All settings as plain values, ready for JSON."""

    def plain(value):
        if isinstance(value, Path):
            return path_text(value)
        return list(value) if isinstance(value, tuple) else value

    return {name: plain(getattr(cfg, name)) for name in settings_types(type(cfg))}


def _from_plain(value, kind):
    """Inverse of `settings_dict` for one value."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and (kind is Path or Path in typing.get_args(kind)):
        return Path(value)
    return value


def find_preset(presets: dict[str, type], name: str) -> type:
    """The preset class a user named.

    Raises:
        UserError: there is none of that name.
    """
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is: {', '.join(presets)}"
        raise UserError(f"no preset {name!r} in config.py; {hint}")
    return presets[name]
