"""When to stop, why, and with which exit code: signals, budget and deadline (allowance.py), and the error rate.

The first SIGINT or SIGTERM asks the run to end: no new rows, what is in the engines is finished and committed, within
`grace_s`. A second SIGINT, or the end of the grace, interrupts whatever the main thread is doing, by KeyboardInterrupt;
nothing that is committed is lost, since a commit is one append. Both end in exit 4.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from types import FrameType
from typing import Any

from pipelines.accounts.summary import Totals
from pipelines.config import Exit

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether and why to stop before the end. One for each run, used in the main thread."""

    def __init__(self, *, grace_s: float, max_error_rate: float) -> None:
        self.reason: str | None = None  # None: nothing asks to stop
        self._grace_s = grace_s
        self._max_error_rate = max_error_rate
        self._ends_at: float | None = None  # monotonic
        self._grace_over = False
        self._timer: threading.Timer | None = None
        self._installed = False

    @contextmanager
    def install(self) -> Iterator["Stop"]:
        """Take SIGINT and SIGTERM while inside; what handled them before gets them back.

        Ray takes SIGTERM for itself in `ray.init`, and its C++ core ends the process by abort then: call `arm` right
        after it. While Ray starts, its handler makes a SystemExit of SIGTERM, which `heard` makes a KeyboardInterrupt.
        """
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        self._installed = True
        self.arm()
        try:
            with self.heard():
                yield self
        finally:
            self._installed = False  # a signal that is on its way changes nothing any more
            if self._timer is not None:
                self._timer.cancel()
                self._timer.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, a SIGTERM of which Ray makes a SystemExit is the stop that it asks for, to all that it passes."""
        try:
            yield
        except SystemExit as error:
            if error.code != signal.SIGTERM:
                raise
            self.request("SIGTERM")
            raise KeyboardInterrupt from error

    def arm(self) -> None:
        """Take the two signals, again if need be. Does nothing outside `install`."""
        if self._installed:
            for number in _SIGNALS:
                signal.signal(number, self._on_signal)

    def request(self, reason: str, *, within_s: float | None = None) -> None:
        """Ask the run to end within the grace, or `within_s` where that is shorter; only the first reason counts."""
        if self.reason is not None:
            return
        self.reason = reason
        grace_s = self._grace_s if within_s is None else min(self._grace_s, within_s)
        self._ends_at = time.monotonic() + grace_s
        self._timer = threading.Timer(grace_s, self._end_grace, args=(threading.main_thread().ident,))
        self._timer.daemon = True
        self._timer.start()

    def requested(self) -> bool:
        """Whether the run should admit no more rows and finish what is in the engines."""
        return self.reason is not None

    def seconds_left(self) -> float | None:
        """Of the grace, at least 0. None: nothing asks to stop."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    def exit_code(self, totals: Totals, *, finished: bool = False) -> Exit:
        """How the run ended. `totals` are those of the whole output: doing nothing over a bad one is no success.

        `finished`: nothing was left to do, so a request to stop came too late to change anything.
        """
        if self.requested() and not finished:
            return Exit.STOPPED
        if totals.shards_unreadable or too_many_errors(totals, self._max_error_rate):
            return Exit.TOO_MANY_ERRORS
        return Exit.DONE

    def _on_signal(self, number: int, frame: FrameType | None) -> Any:
        if not self._installed:
            return
        if self._grace_over or (self.requested() and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.request(signal.Signals(number).name)

    def _end_grace(self, main_thread: int) -> None:
        # A real signal to the main thread: it ends a wait in C, which an exception set by another thread does not.
        self._grace_over = True
        if self._installed:
            signal.pthread_kill(main_thread, signal.SIGINT)


def too_many_errors(totals: Totals, max_error_rate: float) -> bool:
    """Whether more than this share (0..1) of the rows are dead letters; exact at the limit, which is allowed."""
    return totals.rows_error > Decimal(repr(max_error_rate)) * totals.rows_in
