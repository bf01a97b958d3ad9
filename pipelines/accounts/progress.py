"""Where a run stands, while it runs: a panel on a terminal (live_panel.py), plain lines when piped.

It goes to stderr; stdout keeps the summary. Ray's messages would tear it apart: `quiet_ray` sends them to a file.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, RenderableType
from rich.live import Live as Screen
from rich.text import Text

from pipelines.accounts.live import Live
from pipelines.accounts.live_panel import panel, words
from pipelines.accounts.summary import printable

logger = logging.getLogger(__name__)

EVERY_S = 10.0  # between two plain lines
_LOOKS = 2  # in a second, on a terminal


class Progress:
    """Shows what `live` knows while inside, on stderr unless told otherwise."""

    def __init__(self, live: Live | None = None, *, stream: TextIO | None = None, every_s: float = EVERY_S) -> None:
        self.live = live or Live()
        self._stream = stream
        self._every_s = every_s
        self._said = ""
        self._over = threading.Event()
        self._screen: Screen | None = None
        self._thread: threading.Thread | None = None
        self._console = Console(file=sys.stderr)

    def __enter__(self) -> Self:
        # Not before: quiet_ray exchanges sys.stderr.
        self._console = Console(file=self._stream or sys.stderr, highlight=False, soft_wrap=True)
        if self._console.is_terminal:
            self._screen = Screen(
                get_renderable=self._rendered, console=self._console, refresh_per_second=_LOOKS, transient=True
            )
            self._screen.start()
        else:
            self._thread = threading.Thread(target=self._say, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._screen is not None:
            self._screen.stop()
        if self._thread is not None:
            self._thread.join()
            self._line()

    def doing(self, what: str) -> None:
        """What the run does now, in words, for instance "listing shards"; a plain line at once when piped."""
        if what != self._said:
            self._said = what
            self.live.doing(what)
            if self._thread is not None and what:
                self._line()

    def started(self, engine_start_s: float) -> None:
        """Engines answer; they took so many seconds. Rates count from now."""
        self.live.started()
        self._said = ""
        self.note(f"engines ready after {engine_start_s:.1f} s")

    def expecting(self, rows: Callable[[], tuple[int, bool] | None]) -> None:
        """How many rows there are to do, and whether that is estimated: asked for in a thread, as it may take a while
        and nothing should wait for it. None: it cannot be told."""

        def ask() -> None:
            try:
                found = rows()
            except Exception as error:  # noqa: BLE001 - a total that is not known ends no run
                logger.warning("rows to do are not known: %s", error)
                return
            if found is not None:
                self.live.expect(found[0], estimated=found[1])

        threading.Thread(target=ask, name="rows-ahead", daemon=True).start()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(printable(text)))

    def _rendered(self) -> RenderableType:
        now = self.live.snapshot()
        if not now.run:  # a command without a run: what it does, and since when
            return Text(", ".join(words(now)), overflow="ellipsis", no_wrap=True)
        return panel(now)

    def _say(self) -> None:
        while not self._over.wait(self._every_s):
            self._line()

    def _line(self) -> None:
        self.note(f"{time.strftime('%H:%M:%S')} {', '.join(words(self.live.snapshot()))}")
