"""Show a run at work, from any machine that reaches its output: python -m pipelines.watch sink.uri=… [run=RUN]

On a terminal the panel that the run itself shows, piped a line now and then, until the run ends; once=true says one
line and ends. It reads runs/RUN/live.json, which the run renews every few seconds, and says how old that is.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, TextIO

from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console, RenderableType
from rich.live import Live as Screen
from rich.text import Text

from pipelines import storage
from pipelines.accounts import live_file
from pipelines.accounts.live_panel import clock, panel, words
from pipelines.accounts.snapshot import Snapshot
from pipelines.cli import command_of_few_keys
from pipelines.config import STRICT, Exit, Place, UserError
from pipelines.config_keys import nearest
from pipelines.sink import alive

LOOK_S = 2.0  # between two looks at the file
LINE_S = 10.0  # between two plain lines
OLD_S = 4 * live_file.RENEW_S  # from so old a sign on, it is shown as one
GIVE_UP_S = 300.0  # a sign that stays as it is for so long is of a run that was killed, or cut off from its store
KEYS = {
    "sink.uri": "the output: a local path or s3://bucket/prefix",
    "run": "the run, by its folder below runs; the newest, if none is said",
    "once": "true: say where it stands now, in one line",
}
EXITS = {
    Exit.DONE: "the run has ended, in whichever way; with once=true: said",
    Exit.FAILED: "the run is gone without an end, or the store does not answer",
    Exit.USAGE: "bad usage, or there is no such output or run",
    Exit.STOPPED: "left by Ctrl-C; the run goes on",
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class WatchedSink:
    uri: Place


@dataclass(frozen=True, config=STRICT, kw_only=True)
class WatchConfig:
    """Everything that watch is told."""

    sink: WatchedSink
    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] | None = None
    once: bool = False


class Sign:
    """What a run said last, and since when nothing new has come: by this machine's clock, but for the first sign,
    whose age is told by comparing the two machines' clocks."""

    def __init__(
        self,
        sink_uri: str,
        run: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._sink_uri, self._run = sink_uri, run
        self._clock, self._wall = clock, wall
        self.now: Snapshot | None = None
        self._changed_at = clock()

    def look(self) -> None:
        """Read it once more.

        Raises:
            UserError: it is not there any more, or is not understood.
            StoreFailed: the store refused, or stayed away.
        """
        found = live_file.read(self._sink_uri, self._run)
        if found is None:
            raise UserError(f"{storage.shown(self._sink_uri)}: run {self._run} has left no {live_file.FILE}")
        if self.now is None:
            self._changed_at = self._clock() - max(0.0, self._wall() - found.at)
        elif found.at != self.now.at:
            self._changed_at = self._clock()
        self.now = found

    @property
    def age_s(self) -> float:
        """How old the sign is."""
        return self._clock() - self._changed_at

    def gone(self) -> str | None:
        """Why nothing more will come of a run that has told no end, in words; None: more may come."""
        if self.age_s < OLD_S:
            return None
        if alive.dead(self._sink_uri, self._run):
            return "it is at work no more, and has told no end: the same command goes on with what is committed"
        if self.age_s >= GIVE_UP_S:
            return f"no sign for {clock(self.age_s)}: it was killed, or is cut off from its store"
        return None

    def words(self) -> str:
        """How old it is, in words."""
        if self.now is not None and self.now.state != "running":
            return f"over since {clock(self.age_s)}"
        return f"as of {self.age_s:.0f} s ago" if self.age_s < OLD_S else f"NO SIGN SINCE {clock(self.age_s)}"


def watch(asked: WatchConfig, *, out: TextIO | None = None, look_s: float = LOOK_S, line_s: float = LINE_S) -> Exit:
    """Show the run until it ends; see the module."""
    sink_uri = storage.absolute(asked.sink.uri)
    sign = Sign(sink_uri, _run(asked, sink_uri))
    sign.look()
    console = Console(file=out or sys.stdout, highlight=False)
    if asked.once:
        _say(console, sign)
        return Exit.DONE
    with ExitStack() as ended:
        if console.is_terminal:
            screen = Screen(get_renderable=lambda: _panel(sign), console=console, refresh_per_second=1)
            ended.enter_context(screen)
        said_at, gone = float("-inf"), None
        while _at(sign).state == "running" and gone is None:
            if not console.is_terminal and time.monotonic() - said_at >= line_s:
                _say(console, sign)
                said_at = time.monotonic()
            time.sleep(look_s)
            sign.look()
            gone = sign.gone() if _at(sign).state == "running" else None
    if not console.is_terminal:
        _say(console, sign)
    if gone is not None:
        console.print(Text(gone), soft_wrap=True)
        return Exit.FAILED
    return Exit.DONE


def _run(asked: WatchConfig, sink_uri: str) -> str:
    """The run that is meant."""
    if not storage.is_s3(sink_uri) and not Path(sink_uri).is_dir():
        raise UserError(f"sink.uri={asked.sink.uri}: there is no such folder; check the path")
    runs = live_file.runs(sink_uri)
    if not runs:
        raise UserError(f"sink.uri={asked.sink.uri}: no run has left a {live_file.FILE} there; check the path")
    if asked.run is None:
        return runs[-1]
    if asked.run not in runs:
        raise UserError(
            f"run={asked.run}: there is no such run{nearest(asked.run, runs)}; the newest of {len(runs)} is {runs[-1]}"
        )
    return asked.run


def _at(sign: Sign) -> Snapshot:
    if sign.now is None:
        raise RuntimeError("look first")
    return sign.now


def _panel(sign: Sign) -> RenderableType:
    return panel(_at(sign), sign=sign.words())


def _say(console: Console, sign: Sign) -> None:
    now = _at(sign)
    state = now.state if now.exit_code is None else f"{now.state} (exit {now.exit_code})"
    line = ", ".join([f"{now.run} {state}", *words(now), sign.words()])
    console.print(Text(line), soft_wrap=True)


if __name__ == "__main__":
    command_of_few_keys(watch, WatchConfig, doc=__doc__ or "", keys=KEYS, exits=EXITS)
