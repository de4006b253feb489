"""What ends training between two steps: a signal, or the time limit."""

import signal
import time

from utils.world import World


class Stopped(Exception):
    """Training was asked to stop between two steps: a signal, or the time is up."""


class StopSignal:
    """Ctrl-C, SIGTERM and the time limit, all asked for between two steps."""

    def __init__(self, max_minutes: float):
        self.signal = 0
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._remember) for number in numbers}

    def restore(self) -> None:
        """Gives the signals back to whoever had them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number, _frame) -> None:
        if self.signal:  # the second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.signal = number

    def reason(self) -> str:
        if self.signal:
            return signal.Signals(self.signal).name
        if self.deadline is not None and time.monotonic() > self.deadline:
            return "time is up"
        return ""


def check_stop(stop: StopSignal, world: World) -> None:
    """Raises `Stopped` on every process where one has a reason."""
    reason = stop.reason()
    if world.sums([float(bool(reason))])[0]:
        stop.signal, reason = max(world.gather((stop.signal, reason)))  # a signal before the time
        raise Stopped(reason)
