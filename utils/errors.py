"""The one exception that ends in one line on stderr instead of a traceback."""


class UserError(Exception):
    """Something the person at the keyboard caused and can fix.

    The message is one line: what is wrong and what to do. Scripts print it on stderr and leave
    with exit status 2 (`utils.cli.run`).
    """
