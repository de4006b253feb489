"""The one exception that ends in one line on stderr instead of a traceback."""


class UserError(Exception):
    """Something the person at the keyboard caused and can fix.

    The message is one line: what is wrong and what to do. Scripts print it on stderr and leave
    with exit status 2 (`utils.cli.run`).
    """


def one_line(error: BaseException, limit: int = 200) -> str:
    """What an exception of a library says, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
