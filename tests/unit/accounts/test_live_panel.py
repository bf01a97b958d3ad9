"""The panel of a run: what stands in it, that it fits, and that no name in it is obeyed."""

import io
from dataclasses import replace
from decimal import Decimal

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipelines.accounts.live_panel import clock, count, panel, sparkline, words
from pipelines.accounts.snapshot import EngineNow, Snapshot

HOSTILE = "[bold red]x[/]\x1b[2J\x07\r\n\u202eevil\x9b31m [link=http://x]y[/link]"
WORKING = Snapshot(
    run="20261129T190000Z-abc123",
    job="classify",
    model="smollm2-135m-instruct",
    elapsed_s=192,
    steady_s=150,
    at=1e9,
    units=59,
    rows_in=30_208,
    rows_ok=30_205,
    rows_error=3,
    errors_by_type={"empty": 1, "too_long": 2},
    rows_done=30_720,
    rows_total=74_000,
    rows_total_estimated=True,
    rows_in_flight=256,
    prompt_tokens=48_900_000,
    cached_tokens=40_000_000,
    output_tokens=400_000,
    rows_per_s=204.8,
    tokens_per_s=33_000.4,
    rows_history=tuple(float(step) for step in range(20)),
    tokens_history=(1.0, 2.0),
    eta_s=211,
    usd=Decimal("0.0123"),
    usd_per_s=Decimal("0.000027"),
    budget_usd=Decimal(5),
    budget_spent_usd=Decimal("1.5"),
    finish_at=1e9 + 3600,
    held_back="decode took 61 % of the devices' time: raise batching.max_num_seqs while KV has room; lower "
    "job.sampling.max_tokens, or ask for shorter answers; at most 1.4 x as fast (an estimate)",
    engines=(
        EngineNow(name="gpu-node-3:812", phase="rebuilding", running=0, waiting=90, restarts=2),
        EngineNow(
            name="gpu-node-1:811",
            phase="serving",
            running=128,
            waiting=64,
            kv_usage=0.41,
            cache_hit_share=0.83,
            rows_ended=30_720,
        ),
    ),
    engines_total=2,
)


def drawn(now: Snapshot, *, width: int = 100, height: int = 40, sign: str | None = None) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(panel(now, sign=sign))
    return out.getvalue().splitlines()


def test_all_that_is_asked_of_a_live_view_stands_in_the_panel() -> None:
    text = "\n".join(drawn(WORKING, width=120, sign="as of 3 s ago"))

    for words_of_it in (
        "classify with smollm2-135m-instruct",
        "run 20261129T190000Z-abc123, as of 3 s ago",
        "42%  ~0:03:31 left",
        "30,208 of ~74,000; 512 answered and not committed; 256 in engines",
        "49.3 M of ~118.8 M; 48.9 M in (82% cached); 400,000 out",
        "$0.0123 of ~$0.018; $0.0972 an hour",
        "30.0% of $5.00 spent; the rest lasts 36:00:30; deadline in 1:00:00",
        "3: too_long 2, empty 1",
        "decode took 61 % of the devices' time",
    ):
        assert words_of_it in text
    (rows,) = [line for line in text.splitlines() if "rows/s" in line]
    assert "204.8" in rows
    assert "▁▁▁▂▂▃▃▃▄▄▅▅▆▆▆▇▇███"[-4:] in rows
    (serving,) = [line.split() for line in text.splitlines() if "gpu-node-1" in line]
    assert serving[1:-1] == ["gpu-node-1:811", "serving", "128", "64", "41%", "83%", "0", "30,720"]
    (rebuilding,) = [line.split() for line in text.splitlines() if "gpu-node-3" in line]
    assert rebuilding[1:-1] == ["gpu-node-3:812", "rebuilding", "0", "90", "2", "0"]  # not measured is blank


def test_a_row_that_is_overdue_stands_in_the_panel_while_the_run_works() -> None:
    late = replace(WORKING, overdue="row 17 of shard [a].jsonl has been in the engine of gpu-node-1:811 for 312 s")

    (line,) = [line for line in drawn(late, width=120) if "overdue" in line]
    assert "row 17 of shard [a].jsonl has been in the engine of gpu-node-1:811 for 312 s" in line
    assert not [line for line in drawn(replace(late, state="ended"), width=120) if "overdue" in line]


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40])
def test_the_panel_is_as_wide_as_the_terminal_and_all_of_a_long_line_is_there(width: int) -> None:
    lines = drawn(WORKING, width=width)
    letters = "".join("".join(lines).split()).replace("│", "")

    assert {cell_len(line) for line in lines} == {width}
    assert "atmost1.4xasfast(anestimate)" in letters
    assert "gpu-node-3:812" in letters
    assert "rebuilding" in letters


def test_printed_after_a_line_that_is_not_wrapped_the_panel_is_wrapped_all_the_same() -> None:
    out = io.StringIO()
    Console(file=out, width=80, height=40, force_terminal=True, color_system=None).print(panel(WORKING), soft_wrap=True)

    assert {cell_len(line) for line in out.getvalue().splitlines()} == {80}
    assert "(an estimate)" in out.getvalue()


@pytest.mark.parametrize("height", [24, 50])
def test_of_a_thousand_engines_as_many_are_shown_as_there_is_room_for_and_the_others_in_sum(height: int) -> None:
    engines = tuple(
        EngineNow(name=f"h:{number}", phase="serving", running=2, waiting=1, kv_usage=0.5) for number in range(500)
    )
    lines = drawn(replace(WORKING, engines=engines, engines_total=1000), width=120, height=height)
    shown = [line for line in lines if " h:" in line]
    (rest,) = [line.split() for line in lines if " more " in line]

    assert len(lines) <= height
    assert len(shown) == {24: 4, 50: 15}[height]
    assert rest[1:8] == ["and", f"{1000 - len(shown)}", "more", "serving", f"{2 * (500 - len(shown)):,}", *rest[6:8]]


@pytest.mark.parametrize("width", [120, 80, 40])
def test_hostile_names_are_shown_and_not_obeyed(width: int) -> None:
    engine = EngineNow(name=HOSTILE, phase=HOSTILE, running=1, waiting=1)
    hostile = replace(
        WORKING,
        run=HOSTILE,
        job=HOSTILE,
        model=HOSTILE * 50,
        doing=HOSTILE,
        held_back=HOSTILE,
        errors_by_type={HOSTILE: 2},
        engines=(engine,),
    )
    out = io.StringIO()
    console = Console(file=out, width=width, height=40, force_terminal=True)
    console.print(panel(hostile, sign=HOSTILE))
    plain = drawn(hostile, width=width)

    assert all(line.isprintable() and cell_len(line) == width for line in plain)
    assert "[bold red]" in "".join("".join(plain).replace("│", " ").split("  "))
    for obeyed in ("\x1b[2J", "\x07", "\u202e", "\x9b", "\x1b]8"):  # the last: a link
        assert obeyed not in out.getvalue()
    assert all(text.isprintable() for text in words(hostile))


def test_before_an_engine_answers_the_panel_says_what_is_done() -> None:
    lines = drawn(Snapshot(run="r", job="j", model="m", doing="starting the engine", elapsed_s=61, usd=Decimal(1)))

    assert any("starting the engine, 0:01:01 so far" in line for line in lines)
    assert any("$1.00" in line for line in lines)
    assert not any("rows" in line for line in lines)


def test_of_a_run_that_is_over_nothing_is_foretold() -> None:
    over = replace(WORKING, state="ended", exit_code=3, eta_s=None, usd_per_s=None, engines=(), engines_total=0)
    text = "\n".join(drawn(over))

    assert "ended (exit 3), 0:03:12 in all" in text
    assert "30,208; 512 answered" in text
    assert "~" not in text
    assert "held back" not in text


def test_where_letters_of_unicode_cannot_be_shown_there_are_none_but_in_the_frame() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    Console(file=out, width=80, force_terminal=True, color_system=None).print(panel(WORKING))


def test_the_words_of_a_line_by_hand() -> None:
    said = [
        "59 units",
        "30,208/~74,000 rows",
        "204.8 rows/s",
        "33,000 tokens/s",
        "ETA ~0:03:31",
        "3 errors",
        "256 in flight",
        "$0.0123",
    ]
    assert words(WORKING) == said
    assert words(Snapshot(elapsed_s=9, steady_s=5)) == ["0 units", "0 rows", "0 errors"]
    assert words(Snapshot(elapsed_s=61, doing="starting engines")) == ["starting engines", "0:01:01"]
    assert words(Snapshot(elapsed_s=61)) == ["0:01:01"]


def test_numbers_are_written_to_be_read() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3725, 86400 * 4.5)] == ["0:00:00", "0:01:00", "1:02:05", "4 d 12 h"]
    assert [count(number) for number in (0, 9_999_999, 10_000_000, 12_345_678_901)] == [
        "0",
        "9,999,999",
        "10.0 M",
        "12.3 G",
    ]
    assert sparkline((0.0, 1.0, 2.0)) == "▁▅█"
    assert sparkline((0.0, 0.0)) == "▁▁"
    assert len(sparkline(tuple(float(step) for step in range(100)))) == 24
