"""Errors that the person at the keyboard can fix, what they meant, and code that they name.

And how a program ends that is told to.
"""

import contextlib
import difflib
import importlib
import inspect
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator

IMPORT_PATH = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # package.module:name
AT_ONCE = 1.0  # seconds between two signals that are one
ALIASES = {  # setting -> its names in Ultralytics, detectron2 and Hugging Face
    "lr": ("learning_rate", "lr0", "base_lr"),
    "epochs": ("epoch", "num_epochs", "num_train_epochs"),
    "max_steps": ("max_iter", "max_train_steps"),
    "batch_size": ("batch", "ims_per_batch", "per_device_train_batch_size"),
    "accumulate_steps": ("gradient_accumulation_steps",),
    "num_workers": ("workers", "dataloader_num_workers"),
    "img_size": ("imgsz", "img", "image_size", "min_size_train"),
    "encoder": ("backbone",),
    "init_weights": ("weights", "pretrained_weights", "checkpoint"),
    "data": ("data_dir", "dataset_dir", "dataset_name"),
    "runs_dir": ("output_dir", "project", "save_dir"),
    "early_stop_patience": ("patience", "early_stopping_patience"),
    "score_threshold": ("conf", "conf_threshold"),
    "warmup_steps": ("warmup_iters",),
    "lr_schedule": ("lr_scheduler_type", "lr_scheduler_name"),
    "clip_grad": ("max_grad_norm", "clip_gradients"),
    "amp": ("mixed_precision", "fp16", "bf16"),
    "flip_prob": ("fliplr", "random_flip"),
    "logger": ("report_to",),
}


class UserError(Exception):
    """Something the person at the keyboard caused and can fix.

    The message is one line: what is wrong and what to do. Scripts print it on stderr and leave
    with exit status 2 (`utils.cli.run`).
    """


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end a program as Ctrl-C does: what it has is written, exit status 143.

    Schedulers, `timeout` and `docker stop` send it. Who handles it already keeps to that. `timeout`
    sends it twice at once, which must not interrupt the writing.
    """
    owner, first = os.getpid(), -math.inf

    def leave(number: int, frame) -> None:
        nonlocal first
        if os.getpid() == owner:
            before, first = first, max(first, time.monotonic())
            if first - before > AT_ONCE:
                sys.exit(128 + number)
            return
        signal.signal(number, signal.SIG_DFL)  # a process that was forked has nothing to write
        os.kill(os.getpid(), number)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def one_line(error: BaseException, limit: int = 200) -> str:
    """What an exception of a library says, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_import_path(text: str) -> bool:
    """Whether a text is "package.module:name"."""
    return re.fullmatch(IMPORT_PATH, text) is not None


def import_named(setting: str, path: str) -> object:
    """Imports the object "package.module:name"; None if the module does not have that name.

    Args:
        setting: where the path stands, for errors.

    Raises:
        UserError: the module is not found, cannot be imported, or is one of Python's own.
    """
    module_name, _, name = path.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:  # a weight file may name anything
        raise UserError(f"{setting} {path!r} is in the standard library; name a module of your own")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), name, None)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{setting} {path!r} needs the module {error.name!r}, which is not found; install the "
            "package that holds it, or run this in the folder of its file"
        ) from error
    except Exception as error:  # the module is not ours
        raise UserError(
            f"cannot import the module of {setting} {path!r} ({type(error).__name__}: "
            f"{one_line(error)}); correct it"
        ) from error


def import_function(setting: str, path: str, arguments: str):
    """The function that "package.module:name" names.

    Args:
        arguments: names of what it is called with, by position, such as "logits, targets".

    Raises:
        UserError: as `import_named`; there is none, or it does not take these arguments.
    """
    found = import_named(setting, path)
    module_name, _, name = path.partition(":")
    if not callable(found):
        raise UserError(f"module {module_name!r} has no function {name!r}; correct {setting}=...")
    try:
        inspect.signature(found).bind(*arguments.split(", "))
    except TypeError as error:
        raise UserError(
            f"{setting} {path!r} cannot be called with ({arguments}): {one_line(error)}; correct "
            "its parameters"
        ) from error
    except ValueError:  # of code without a signature: its first call shows it
        pass
    return found


def near_settings(name: str, known: Collection[str], *, cutoff: float = 0.6) -> list[str]:
    """Settings that an unknown name may mean: that of this meaning, else those spelt like it.

    Args:
        known: the names of the settings.
        cutoff: how much the spelling must be alike, 0 to 1.
    """
    name = name.lower().rpartition(".")[2]  # SOLVER.BASE_LR of detectron2
    if ours := [setting for setting in known if name in ALIASES.get(setting, ())]:
        return ours
    return difflib.get_close_matches(name, known, n=3, cutoff=cutoff)
