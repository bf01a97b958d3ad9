"""Runs side by side in a report: two of them in detail, and all of an output's as a trend."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TypeVar

import numpy as np

from pipelines.accounts import report_plots as plots
from pipelines.accounts.agreement import wilson
from pipelines.accounts.closing import money
from pipelines.accounts.report_data import Line, Run
from pipelines.accounts.report_page import Cell, Section, Table, percent, shown
from pipelines.accounts.report_rows import Answers
from pipelines.accounts.report_sections import label_table, seconds_of

PLOTTED_FROM = 3  # runs
_STATES: Mapping[int | None, str] = {0: "done", 3: "over the error rate", 4: "stopped"}

Number = TypeVar("Number", float, Decimal)


def trend(lines: Sequence[Line]) -> Section:
    """Cost and quality, run after run; nothing for a first run."""
    if len(lines) < 2:
        return Section(name="trend", title="Run after run")
    rows = [
        [
            Cell(line.run_id),
            Cell(_STATES.get(line.exit_code, line.state) if line.state == "ended" else shown(line.state)),
            Cell(shown(line.model, 80)),
            _cell(line.rows_in, "{:,}"),
            Cell("" if line.error_rate is None else percent(line.error_rate), line.error_rate),
            Cell("" if line.usd is None else money(line.usd), line.usd),
            Cell("" if line.usd_per_million is None else money(line.usd_per_million), line.usd_per_million),
            _cell(line.tokens_per_s, "{:,.0f}"),
            Cell(_accuracy(line.gold_correct, line.gold_rows), line.accuracy),
        ]
        for line in reversed(lines)
    ]
    heads = ("run", "ended", "model", "rows", "errors", "dollars", "$ per million", "tokens/s", "accuracy")
    table = Table(
        caption=f"The last {len(lines)} runs of this job into this output",
        heads=heads,
        rows=rows,
        numbers=frozenset(range(3, 9)),
    )
    figures: tuple[tuple[str, str, str, list[float | None]], ...] = (
        ("trend-cost", "Dollars per million tokens", "dollars", [_float(line.usd_per_million) for line in lines]),
        ("trend-accuracy", "Accuracy", "share", [_float(line.accuracy) for line in lines]),
    )
    drawn = [
        plots.trend(name, title, values, unit=unit)
        for name, title, unit, values in figures
        if sum(value is not None for value in values) >= PLOTTED_FROM
    ]
    return Section(name="trend", title="Run after run", tables=[table], plots=drawn)


def beside(before: Run, after: Run, seen_before: Answers, seen_after: Answers) -> Section:
    """Two runs: what they did, cost, and answered."""
    runs = (before, after)
    rows = [
        _row("rows in", [run.totals.rows_in for run in runs], "{:,}"),
        _row("errors, % of rows", [_hundred(run.totals.error_rate) for run in runs], "{:.2f}"),
        _row("prompt tokens", [run.totals.prompt_tokens for run in runs], "{:,}"),
        _row("cached, % of them", [_hundred(run.totals.cache_hit_share) for run in runs], "{:.1f}"),
        _row("output tokens", [run.totals.output_tokens for run in runs], "{:,}"),
        _row("median output tokens of a row", [_median(seen) for seen in (seen_before, seen_after)], "{:,.0f}"),
        _row("seconds", [seconds_of(run) for run in runs], "{:,.1f}"),
        _row("rows/s", [run.summary.get("rows_per_s") for run in runs], "{:,.1f}"),
        _row("tokens/s", [run.summary.get("tokens_per_s") for run in runs], "{:,.0f}"),
        _row("dollars", [None if run.spent is None else run.spent.usd for run in runs], "money"),
        *(_row(f"$ per million {name}", [_per_million(run, name) for run in runs], "money") for name in _KINDS),
        _row("accuracy, %", [_hundred(run.totals.accuracy) for run in runs], "{:.1f}"),
    ]
    heads = ("", before.run_id, after.run_id, "relative change")
    figures = Table(
        caption=f"Run {before.run_id} beside run {after.run_id}",
        heads=heads,
        rows=[row for row in rows if row],
        numbers=frozenset({1, 2, 3}),
    )
    tables = [figures]
    for column, counts in seen_after.labels.items():
        tables.append(
            label_table(column, {"of the first": seen_before.labels.get(column, {}), "of the second": counts})
        )
    same = before.manifest["fingerprint"] == after.manifest["fingerprint"]
    notes = ["Both runs asked the same (one fingerprint)." if same else f"What was asked differs: {_differs(*runs)}."]
    if seen_before.sampled or seen_after.sampled:
        notes.append("Labels and lengths are from a sample of the files.")
    return Section(name="beside", title=f"Beside run {before.run_id}", tables=tables, notes=notes)


_KINDS = ("input", "output", "total")


def _per_million(run: Run, kind: str) -> Decimal | None:
    return None if run.spent is None else getattr(run.spent.per_million(run.totals), kind)


def _differs(before: Run, after: Run) -> str:
    one, other = (run.manifest["fingerprint_parts"] for run in (before, after))
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    return shown(", ".join(names) or "in a way that the parts do not tell")


def _row(name: str, values: Sequence[Number | int | None], form: str) -> list[Cell]:
    """A line with the change from the first to the second; empty if neither was measured."""
    if all(value is None for value in values):
        return []
    cells: list[Cell] = [Cell(name)]
    for value in values:
        text = "" if value is None else money(Decimal(value)) if form == "money" else form.format(value)
        cells.append(Cell(text, None if value is None else float(value)))
    first, second = values
    change = None if first is None or second is None or not first else float(second) / float(first) - 1
    return [*cells, Cell("" if change is None else f"{change * 100:+.1f} %", change)]


def _cell(value: float | int | None, form: str) -> Cell:
    return Cell() if value is None else Cell(form.format(value), value)


def _accuracy(correct: int | None, of: int | None) -> str:
    if not of or correct is None:
        return ""
    low, high = wilson(correct, of)
    return f"{percent(correct / of)} ({percent(low)} to {percent(high)})"


def _hundred(share: Decimal | None) -> Decimal | None:
    return None if share is None else share * 100


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def _median(seen: Answers) -> float | None:
    return float(np.median(seen.output_tokens)) if len(seen.output_tokens) else None
