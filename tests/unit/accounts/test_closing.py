"""The end of a run on a terminal of 80 columns."""

import io
import shlex
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.gpu_monitor import GpuSample, GpuUsage
from pipelines.accounts.closing import commands, lines, money, show
from pipelines.accounts.delivery import Tracked
from pipelines.accounts.reuse import Reuse
from pipelines.accounts.summary import Summary, Totals
from pipelines.config import Exit
from tests.accounts_samples import summary

TRACKED = Tracked(uri="sqlite:///out/mlflow.db", experiment_id="1", run_id="abc", not_logged=(), reason=None)


def shown(end: Summary, tracked: Tracked | None = TRACKED, *, terminal: bool = False) -> str:
    text = io.StringIO()
    show(end, tracked, Console(file=text, width=80, force_terminal=terminal, highlight=False))
    return text.getvalue()


def test_the_figures_by_hand_are_on_the_terminal() -> None:
    text = " ".join(shown(summary()).split())

    for piece in (
        "classify with smollm2: done (exit 0)",
        "300 in = 297 ok + 3 errors (empty 1, too_long 2)",
        "66.7 % (198 of 297 answered rows with a gold label)",
        "40,000 in (10,000 cached, 25.0 %), 1,000 out",
        "30.0 rows/s, 4,100 tokens/s",
        "27.1 s start-up, 10.0 s steady",
        "first rows committed after 31.2 s; the engine took 9.3 s to start",
        "$0.04 for 400.0 device-seconds of cpu",
        "$0.976, input $0.968, output $1.29 per million tokens",
        "$0.36 an hour (a list, 2026-10-01)",
        "no GPU",
        "out/classify",
        "run abc at sqlite:///out/mlflow.db",
        "out/logs/run-1.log",
    ):
        assert piece in text


def test_what_prompts_share_is_told_as_it_was_to_be_had_captured_and_delivered() -> None:
    text = " ".join(shown(summary(reuse=Reuse(available=0.714, captured=0.5, delivered=0.25))).split())

    assert (
        "reuse 71 % of the prompt tokens were to be had (estimated), 50 % stood behind a prompt that begins alike, "
        "25 % were in the engines' caches"
    ) in text
    assert not any(label == "reuse" for label, _ in lines(summary(), TRACKED))


def test_every_line_but_a_command_fits_80_columns_whatever_the_names() -> None:
    lines = shown(summary(sink_uri="s3://" + "b" * 200, run_id="r" * 100)).splitlines()
    first_command = lines.index("Open the output:")

    assert max(map(len, lines[:first_command])) <= 80
    assert len(lines[first_command:]) == 4  # what it opens and the command, twice, each on a line of its own


def test_what_was_not_measured_is_not_shown_as_zero() -> None:
    text = shown(summary(totals=Totals(), startup_s=None, steady_s=None, bill=None), None)

    assert "accuracy" not in text
    assert "speed" not in text
    assert "$" not in text
    assert "per million" not in text


def test_a_gpu_is_shown_with_its_means_and_one_that_gave_none_as_not_measured() -> None:
    gpu = GpuUsage(node="10.0.0.3", index=0, name="NVIDIA H200", memory_total_bytes=140 * 2**30)
    text = shown(summary(gpus=(gpu.plus(GpuSample(utilization=0.5, memory_bytes=70 * 2**30)), gpu)))

    assert "NVIDIA H200 (10.0.0.3 0): 50.0 % busy, 70.0 of 140.0 GiB" in text
    assert "NVIDIA H200 (10.0.0.3 0): not measured" in text


def test_no_text_from_outside_reaches_the_terminal_as_a_command_or_as_markup() -> None:
    totals = Totals(units=1, rows_in=1, rows_error=1, errors_by_type={"\x1b[2J[red]x": 1})
    text = shown(summary(totals=totals, job="[link=http://x]y", model="\x1b]0;title\x07", sink_uri="a\x9b"))

    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "\x07" not in text
    assert "\\x1b[2J[red]x 1" in text
    assert "[link=http://x]y" in text


def test_what_mlflow_did_not_get_is_said() -> None:
    lost = Tracked(
        uri="http://mlflow", experiment_id=None, run_id=None, not_logged=("7 metric points", "params"), reason="refused"
    )
    text = " ".join(shown(summary(), lost).split())

    assert "http://mlflow does not have the run; not logged: 7 metric points, params (refused)" in text
    assert "mlflow ui" not in text


@pytest.mark.parametrize(
    ("code", "words"),
    [(Exit.STOPPED, "stopped; the same command goes on"), (Exit.TOO_MANY_ERRORS, "done, with too many errors")],
)
def test_the_verdict_is_in_the_first_line(code: Exit, words: str) -> None:
    assert words in shown(summary(exit_code=code)).splitlines()[1]


def test_the_command_for_the_output_prints_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / 'it\'s a "sink"' / "data"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"label": ["seen it"]}), folder / "a.parquet")
    [(_, command), *_] = commands(summary(sink_uri=str(folder.parent)), None)

    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True, cwd=Path.cwd(), timeout=60)

    assert "seen it" in done.stdout
    assert Path(shlex.split(command)[0]).absolute() == Path(sys.executable)


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        ("0", "$0.00"),
        ("1234.567", "$1,234.57"),
        ("0.2", "$0.20"),
        ("0.03096", "$0.031"),
        ("0.0000012345", "$0.00000123"),
        ("0.9999", "$1.00"),
    ],
)
def test_small_money_keeps_three_digits(usd: str, text: str) -> None:
    assert money(Decimal(usd)) == text


def test_what_was_carried_over_and_taken_away_is_told_beside_what_the_output_holds_now() -> None:
    asked = Totals(units=1, rows_in=20, rows_ok=20, rows_carried=17, saved_prompt_tokens=1_700, saved_output_tokens=34)
    whole = Totals(units=9, rows_in=900, rows_ok=890, rows_error=10)

    told = dict(lines(summary(totals=asked, output=whole, shards_removed=2), None, "out/runs/r/report.html"))
    assert told["report"] == "out/runs/r/report.html"

    assert told["not asked"] == "17 from earlier answers: 1,700 in and 34 out tokens saved"
    assert told["removed"] == "2 shards that the corpus has no more"
    assert told["in all"] == "900 in = 890 ok + 10 errors, with earlier runs"
    assert not {"not asked", "removed", "in all"} & dict(lines(summary(), None)).keys()


def test_what_the_money_went_into_stands_in_columns_that_add_up_to_the_bill() -> None:
    end = summary()
    assert end.bill is not None
    told = lines(replace(end, bill=replace(end.bill, saved_by_dedup_usd=Decimal("0.001"))), None)

    start = [label for label, _ in told].index("spent on")
    assert [text for _, text in told[start : start + 8]] == [
        "start-up  $0.00800   20.0 %        80.0 s",
        "prefill   $0.02100   52.5 %       210.0 s",
        "decode    $0.00070    1.8 %         7.0 s",
        "idle      $0.00530   13.2 %        53.0 s",
        "tail      $0.00400   10.0 %        40.0 s",
        "shutdown  $0.00100    2.5 %        10.0 s",
        "$0.529, input $0.525, output $0.70 per million tokens for prefill and decode alone",
        "$0.007 by the prefix cache, $0.001 by prompts asked once (estimated)",
    ]
    assert [label for label, _ in told[start : start + 9]] == ["spent on", *[""] * 6, "saved", "price"]


def test_columns_that_the_output_does_not_have_are_told_the_most_frequent_first() -> None:
    left_out = {f"c{number}": number for number in range(1, 8)}
    text = " ".join(shown(replace(summary(), totals=replace(summary().totals, columns_left_out=left_out))).split())

    assert (
        "left out columns c7 (7 rows), c6 (6 rows), c5 (5 rows), c4 (4 rows), c3 (3 rows) and 2 more: none of" in text
    )
    assert "left out" not in shown(summary())
