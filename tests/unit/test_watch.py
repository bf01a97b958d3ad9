"""A run at work, seen from elsewhere: which one, how old the sign is, when it is over; one line for each mistake."""

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import storage
from pipelines.accounts import live_file
from pipelines.accounts.live import Live
from pipelines.accounts.snapshot import Snapshot
from pipelines.accounts.summary import Totals
from pipelines.cli import command_of_few_keys
from pipelines.config import Exit
from pipelines.sink import alive
from pipelines.watch import EXITS, GIVE_UP_S, KEYS, OLD_S, Sign, WatchConfig, WatchedSink, watch

HALF = Totals(units=2, rows_in=500, rows_ok=497, rows_error=3, errors_by_type={"\x1b[2J[red]": 3})


def left(sink: str, run: str, *, totals: Totals = HALF, ended: Exit | None = None, **changes: Any) -> Live:
    """What a run has left there by now; it is at work unless it has ended."""
    live = Live(run=run, job="classify", model="m", **changes)
    live.expect(1_000, estimated=True)
    live.started()
    live.see(totals)
    if ended is not None:
        live.finish(ended)
        live.over(None)
    storage.put(storage.join(sink, "runs", run, live_file.FILE), live.snapshot().to_json())
    return live


def asked(sink: str, **words: Any) -> WatchConfig:
    return WatchConfig(sink=WatchedSink(uri=sink), **words)


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        command_of_few_keys(watch, WatchConfig, doc="Shows.", keys=KEYS, exits=EXITS, argv=list(words))
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_once_says_in_one_line_where_the_newest_run_stands(store: str) -> None:
    left(store, "20260101T000000Z-aaaaaa", ended=Exit.DONE)
    left(store, "20260102T000000Z-bbbbbb")
    out = io.StringIO()

    assert watch(asked(store, once=True), out=out) is Exit.DONE
    (line,) = out.getvalue().splitlines()
    assert line.startswith("20260102T000000Z-bbbbbb running, 2 units, 500/~1,000 rows, 3 errors, ")
    assert line.endswith(" s ago")


def test_a_run_that_is_named_is_shown_with_its_end(tmp_path: Path) -> None:
    left(str(tmp_path), "r1", ended=Exit.TOO_MANY_ERRORS)
    left(str(tmp_path), "r2")
    out = io.StringIO()

    assert watch(asked(str(tmp_path), run="r1"), out=out) is Exit.DONE
    (line,) = out.getvalue().splitlines()
    assert line.startswith("r1 ended (exit 3), 2 units, 500/~1,000 rows")
    assert "over since 0:00:0" in line


class Told(io.StringIO):
    """What is shown, and whom to tell when something is."""

    def __init__(self, then: Callable[[str], None], *, terminal: bool = False) -> None:
        super().__init__()
        self._then, self._terminal = then, terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        written = super().write(text)
        self._then(self.getvalue())
        return written


@pytest.mark.parametrize("terminal", [False, True])
def test_it_follows_the_run_and_ends_when_the_run_ends(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    left(str(tmp_path), "r1")
    seen = threading.Event()
    out = Told(lambda text: seen.set() if "500" in text else None, terminal=terminal)

    def go_on() -> None:
        assert seen.wait(30)
        left(str(tmp_path), "r1", totals=Totals(units=4, rows_in=1000, rows_ok=1000), ended=Exit.DONE)

    run = threading.Thread(target=go_on)
    run.start()
    code = watch(asked(str(tmp_path)), out=out, look_s=0.01, line_s=0.0)
    run.join()
    text = out.getvalue()

    assert code is Exit.DONE
    assert "exit 0" in text
    assert "\x1b[2J" not in text
    if terminal:
        assert "classify with m" in text
        assert "\\x1b[2J[red] 3" in text
    else:
        assert all(line.isprintable() for line in text.splitlines())
        assert [line for line in text.splitlines() if line.startswith("r1 running, 2 units, 500/~1,000 rows")]
        assert text.splitlines()[-1].startswith("r1 ended (exit 0), 4 units, 1,000/~1,000 rows")


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def sign_of(sink: str, run: str) -> tuple[Sign, Clock]:
    """Its sign, seen by a machine whose clock is an hour ahead from now on."""
    here = Clock(0.0)
    seen = Sign(sink, run, clock=here, wall=lambda: 1_003_600.0)
    return seen, here


def test_how_old_a_sign_is_is_told_by_this_machines_clock_once_a_new_one_has_come(tmp_path: Path) -> None:
    there = Clock(1_000_000.0)
    live = left(str(tmp_path), "r1", wall=there)
    sign, here = sign_of(str(tmp_path), "r1")
    sign.look()
    first = sign.words()
    here.now, there.now = 5.0, 1_000_005.0
    storage.put(storage.join(str(tmp_path), "runs", "r1", live_file.FILE), live.snapshot().to_json())
    sign.look()
    here.now = 8.0

    assert first == "NO SIGN SINCE 1:00:00"
    assert sign.words() == "as of 3 s ago"
    here.now = 8.0 + OLD_S
    assert sign.words() == "NO SIGN SINCE 0:00:23"


def test_a_run_that_died_without_a_word_is_told_as_such_and_one_that_lives_is_waited_for(tmp_path: Path) -> None:
    sink = str(tmp_path)
    live = left(sink, "r1", wall=lambda: 1_003_600.0)
    sign, here = sign_of(sink, "r1")
    sign.look()
    at_once = sign.gone()
    here.now = OLD_S
    with alive.beating(sink, "r1"):
        lives = sign.gone()
        here.now = GIVE_UP_S
        silent = sign.gone()
    here.now = OLD_S

    assert (at_once, lives) == (None, None)
    assert silent == "no sign for 0:05:00: it was killed, or is cut off from its store"
    assert sign.gone() == "it is at work no more, and has told no end: the same command goes on with what is committed"
    assert live.snapshot().state == "running"


def test_a_dead_run_ends_the_watch_with_exit_1(tmp_path: Path) -> None:
    left(str(tmp_path), "r1", wall=lambda: 1.0)
    out = io.StringIO()

    assert watch(asked(str(tmp_path)), out=out, look_s=0.01) is Exit.FAILED
    assert out.getvalue().splitlines()[-1].startswith("it is at work no more")


def test_what_is_typed_wrong_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = str(tmp_path / "out")
    left(sink, "20260102T000000Z-bbbbbb")
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn" / "runs" / "r1").mkdir(parents=True)
    (tmp_path / "torn" / "runs" / "r1" / live_file.FILE).write_text("{")
    wrong = {
        (): "sink.uri",
        (f"sink.uri={tmp_path}/none",): "there is no such folder; check the path",
        (f"sink.uri={tmp_path}/empty",): "no run has left a live.json there; check the path",
        (f"sink.uri={tmp_path}/torn",): "is not understood",
        (f"sink.uri={sink}", "run=20260102T000000Z-bbbbbc"): "the nearest is 20260102T000000Z-bbbbbb",
        (f"sink.uri={sink}", "run=../../etc"): "run",
        (f"sink.uri={sink}", "once=maybe"): "once",
        (f"sink.uri={sink}", "rnu=x"): "the nearest is run",
        ("sink.uri=http://x/y",): "give a local path or s3://bucket/prefix",
    }
    for words, told in wrong.items():
        code, out, err = typed(capsys, *words)
        assert (code, out) == (2, ""), words
        assert err.count("\n") == 1, err
        assert err.startswith("error: ")
        assert told in err, err


def test_help_says_its_keys_and_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capsys, "--help")

    assert code == 0
    assert all(key in out for key in KEYS)
    assert all(f"{int(number)} {meaning}" in out for number, meaning in EXITS.items())


def test_a_snapshot_of_hostile_making_is_text(tmp_path: Path) -> None:
    hostile = Snapshot(run="r1", elapsed_s=1, doing="\x1b]0;owned\x07 [link=x]y[/link]\n", state="ended")
    storage.put(storage.join(str(tmp_path), "runs", "r1", live_file.FILE), hostile.to_json())
    out = io.StringIO()

    watch(asked(str(tmp_path)), out=out)
    assert all(line.isprintable() for line in out.getvalue().splitlines())
    assert "[link=x]y[/link]" in out.getvalue()
