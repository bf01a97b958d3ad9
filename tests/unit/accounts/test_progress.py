"""Where a run stands, on its own terminal and piped."""

import io
import threading
from decimal import Decimal

import pytest

from actors.engine import EngineConfig
from pipelines.accounts.allowance import Allowance
from pipelines.accounts.attribution import Parts
from pipelines.accounts.live import Live
from pipelines.accounts.progress import Progress
from pipelines.accounts.summary import Totals

HALF = Totals(units=2, rows_in=1_000, rows_ok=997, rows_error=3)


class HalfADollar:
    """An account of which half a dollar is spent."""

    def usd(self) -> Decimal:
        return Decimal("0.5")

    def usd_per_s(self) -> Decimal:
        return Decimal(0)

    def parts_at_work(self, *, computed_prompt_tokens: int, output_tokens: int) -> Parts:
        return Parts()


def test_piped_there_are_plain_lines_without_any_control_character() -> None:
    text = io.StringIO()
    with Progress(Live(run="r", job="classify"), stream=text, every_s=3600) as progress:
        engine = EngineConfig(kind="simulated", model="m", model_name="m")
        progress.live.pays(HalfADollar(), Allowance(grace_s=0), engine)
        progress.doing("listing shards")
        progress.live.expect(74_000, estimated=True)
        progress.started(12.34)
        progress.live.see(HALF)
        progress.note("hostile \x1b[2J\r name")
    lines = text.getvalue().splitlines()

    assert lines[0].endswith("listing shards, 0:00:00, $0.50")
    assert lines[1] == "engines ready after 12.3 s"
    assert lines[2] == "hostile \\x1b[2J\\r name"
    assert lines[3].endswith("2 units, 1,000/~74,000 rows, 3 errors, $0.50")
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)


def test_piped_a_line_comes_by_itself_while_nothing_else_happens() -> None:
    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            if self.getvalue().count("\n") >= 3:
                enough.set()
            return super().write(text)

    enough, pipe = threading.Event(), Pipe()
    with Progress(stream=pipe, every_s=0.001):
        assert enough.wait(30)


def test_rows_that_take_long_to_count_keep_nobody_waiting_and_a_count_that_fails_ends_nothing() -> None:
    counted, said = threading.Event(), threading.Event()
    live = Live()

    def slow() -> tuple[int, bool]:
        assert counted.wait(30)
        return 7, False

    def broken() -> tuple[int, bool]:
        said.set()
        raise OSError("no such store")

    with Progress(live, stream=io.StringIO(), every_s=3600) as progress:
        progress.expecting(slow)
        before = live.snapshot().rows_total
        progress.expecting(broken)
        assert said.wait(30)
        counted.set()
        for thread in threading.enumerate():
            if thread.name == "rows-ahead":
                thread.join(30)

    assert (before, live.snapshot().rows_total) == (None, 7)


@pytest.mark.parametrize("width", [120, 80, 40])
def test_on_a_terminal_the_panel_stays_within_the_width_and_is_gone_at_the_end(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    with Progress(Live(run="r", job="classify", model="m"), stream=terminal) as progress:
        progress.live.expect(2_000, estimated=False)
        progress.started(1.0)
        progress.live.see(HALF)
        assert progress._screen is not None
        progress._screen.refresh()
    text = terminal.getvalue()

    assert "1,000 of 2,000" in text
    assert "50%" in text
    assert "engines ready after 1.0 s" in text
    assert text.rstrip().endswith("\x1b[?25h") or "\x1b[2K" in text  # cursor back, lines erased
