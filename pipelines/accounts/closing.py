"""The end of a run on the terminal: what it did, what it cost, the commands that open its output and its MLflow run.

Text that may come from outside (names, paths, error types) is shown with `printable`, so that a terminal obeys none
of it. Lines fit 80 columns, but for commands, which are left whole so that they can be copied.
"""

import importlib.util
import json
import shlex
import sys
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.gpu_monitor import GpuUsage
from pipelines.accounts.attribution import NS
from pipelines.accounts.cost import CPU, Bill
from pipelines.accounts.delivery import Tracked
from pipelines.accounts.quality import SIGNIFICANT
from pipelines.accounts.quality_files import Quality
from pipelines.accounts.summary import Summary, Totals, printable
from pipelines.config import Exit
from pipelines.redact import redacted

_GIB = 2**30
_GPUS_SHOWN = 8
_COLUMNS_SHOWN = 5
_PARTS = {
    "startup": "start-up",
    "prefill": "prefill",
    "decode": "decode",
    "idle": "idle",
    "tail": "tail",
    "failed": "failed",
    "rejected": "rejected",
    "shutdown": "shutdown",
}
_VERDICTS = {
    Exit.DONE: ("done", "green"),
    Exit.FAILED: ("failed", "red"),
    Exit.USAGE: ("not started", "red"),
    Exit.TOO_MANY_ERRORS: ("done, with too many errors", "yellow"),
    Exit.STOPPED: ("stopped; the same command goes on", "yellow"),
}


def show(
    summary: Summary, tracked: Tracked | None, console: Console | None = None, *, report: str | None = None
) -> None:
    """Print the summary, to stdout unless told otherwise. `tracked` None: tracking is off; `report`: where it lies."""
    out = console or Console(highlight=False)
    verdict, colour = _VERDICTS[summary.exit_code]
    if summary.totals.shards_unreadable and summary.exit_code is Exit.TOO_MANY_ERRORS:
        verdict = "done, but for shards that could not be read to their end"
    if summary.gate is not None and not summary.gate.passed:
        verdict = "done, and not published"
    title = Text(f"\n{printable(summary.job)} with {printable(summary.model)}: ", style="bold")
    out.print(title.append(verdict, style=colour).append(f"  (exit {int(summary.exit_code)})", style="not bold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in lines(summary, tracked, report):
        table.add_row(label, Text(printable(value)))
    out.print(table)
    for what, command in commands(summary, tracked):
        out.print(Text(f"{what}:", style="cyan"))
        out.print(Text(f"  {printable(command)}"), soft_wrap=True)


def lines(summary: Summary, tracked: Tracked | None, report: str | None = None) -> list[tuple[str, str]]:
    """Label and text of each line; what was not measured has no line or says so."""
    totals = summary.totals
    found = [("run", summary.run_id), *([("stopped by", summary.stopped_by)] if summary.stopped_by else [])]
    if summary.gate is not None:
        found.append(("gate", f"{'' if summary.gate.passed else 'not published: '}{summary.gate.words}"))
    found.append(("rows", _rows(totals)))
    if totals.shards_unreadable:
        found.append(
            ("unreadable", f"{totals.shards_unreadable:,} shards, from some row on; the dead letters name them")
        )
    if totals.rows_carried or totals.rows_shared:
        saved = f"{totals.saved_prompt_tokens:,} in and {totals.saved_output_tokens:,} out tokens saved"
        carried = f"{totals.rows_carried:,} from earlier answers" if totals.rows_carried else ""
        shared = f"{totals.rows_shared:,} with the same prompt as another" if totals.rows_shared else ""
        found.append(("not asked", f"{', '.join(filter(None, (carried, shared)))}: {saved}"))
    if totals.columns_left_out:
        found.append(("left out", _left_out(totals.columns_left_out)))
    if summary.shards_removed:
        found.append(("removed", f"{summary.shards_removed:,} shards that the corpus has no more"))
    if summary.output.rows_in != totals.rows_in:
        found.append(("in all", _rows(summary.output) + ", with earlier runs"))
    if totals.accuracy is not None:
        correct = f"{totals.gold_correct:,} of {totals.gold_rows:,} answered rows with a gold label"
        found.append(("accuracy", f"{_percent(totals.accuracy)} ({correct})"))
    if summary.quality is not None and (told := quality(summary.quality)):
        found.append(("drift", told))
    share = "" if totals.cache_hit_share is None else f", {_percent(totals.cache_hit_share)}"
    cached = f"{totals.cached_tokens:,} cached{share}"
    found.append(("tokens", f"{totals.prompt_tokens:,} in ({cached}), {totals.output_tokens:,} out"))
    if summary.speculation is not None:
        found.append(("speculation", summary.speculation.sentence))
    if summary.reuse is not None:
        found.append(("reuse", summary.reuse.words()))
    if summary.rows_per_s is not None and summary.tokens_per_s is not None:
        found.append(("speed", f"{summary.rows_per_s:,.1f} rows/s, {summary.tokens_per_s:,.0f} tokens/s once started"))
    times = ((summary.startup_s, "start-up"), (summary.steady_s, "steady"))
    found.append(("time", ", ".join(f"{value:,.1f} s {name}" for value, name in times if value is not None) or "-"))
    if summary.first_commit_s is not None:
        own = "" if summary.engine_start_s is None else f"; the engine took {summary.engine_start_s:,.1f} s to start"
        found.append(("", f"first rows committed after {summary.first_commit_s:,.1f} s{own}"))
    if summary.bill is not None:
        found += [("cost", _cost(summary.bill)), *_per_million(summary.bill), *_spent_on(summary.bill)]
        found += [*_saved(summary.bill), ("price", _price(summary.bill))]
    found += [] if summary.ceiling is None else summary.ceiling.lines()
    found += [("GPU" if place == 0 else "", text) for place, text in enumerate(_gpus(summary))]
    found += [("output", summary.sink_uri), *([("report", report)] if report else [])]
    found.append(("MLflow", _mlflow(tracked)))
    if summary.log_file is not None:
        found.append(("log", summary.log_file))
    if summary.worker_logs is not None:
        found.append(("", f"{summary.worker_logs} has what engines and workers say"))
    return [(label, redacted(text)) for label, text in found]


def quality(found: Quality) -> str | None:
    """How far the answers are from those of the run that they were compared with, in words; None: it is not known."""
    apart = found.drift
    if apart is None or apart.significant_psi is None:
        return None
    names = {"lengths": "lengths of answers", "prompts": "lengths of prompts"}
    moved = [
        names.get(name, name.replace("labels.", "values of ", 1))
        for name, p in sorted(apart.p_values.items(), key=lambda one: one[1])
        if p < SIGNIFICANT
    ]
    if not moved:
        return f"none that chance does not explain, against run {found.against}"
    psi = f"PSI {apart.significant_psi:.2f}, " if apart.significant_psi else ""
    return f"{psi}in {', '.join(moved)}; against run {found.against}"


def commands(summary: Summary, tracked: Tracked | None) -> list[tuple[str, str]]:
    """What to type to see the output and the MLflow run, for the shell and folder that the run was started from."""
    python, data = _python(), f"{summary.sink_uri.rstrip('/')}/data"
    if "://" not in data and importlib.util.find_spec("duckdb") is not None:
        code = f"import duckdb; duckdb.read_parquet({json.dumps(f'{data}/*.parquet')}).show()"
    else:
        code = f"from deltalake import DeltaTable; print(DeltaTable({json.dumps(data)}).to_pandas())"
    found = [("Open the output", f"{python} -c {shlex.quote(code)}")] if summary.totals.units else []
    if tracked is None or tracked.run_id is None:
        return found
    place = f"/#/experiments/{tracked.experiment_id}/runs/{tracked.run_id}"
    if tracked.uri.startswith(("http://", "https://")):
        return [*found, ("Open the MLflow run", tracked.uri.rstrip("/") + place)]
    # Otherwise it starts seven processes for jobs that nobody asked for, and leaves them behind when it is stopped.
    server = f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {python} -m mlflow ui --workers 1"
    ui = f"{server} --backend-store-uri {shlex.quote(tracked.uri)}"
    return [*found, ("Open the MLflow run", f"{ui}  # http://127.0.0.1:5000{place}")]


def money(usd: Decimal) -> str:
    """Dollars to the cent, and below a dollar to three significant digits."""
    if usd == 0 or abs(usd) >= 1:
        return f"${usd:,.2f}"
    cents, rest = f"{usd:.{2 - usd.adjusted()}f}".split(".")
    return f"${cents}.{rest[:2]}{rest[2:].rstrip('0')}"


def _rows(totals: Totals) -> str:
    by_type = ", ".join(f"{name} {count:,}" for name, count in sorted(totals.errors_by_type.items()) if count)
    return f"{totals.rows_in:,} in = {totals.rows_ok:,} ok + {totals.rows_error:,} errors" + (
        by_type and f" ({by_type})"
    )


def _left_out(columns: Mapping[str, int]) -> str:
    told = [
        f"{name} ({rows:,} rows)" for name, rows in sorted(columns.items(), key=lambda each: -each[1])[:_COLUMNS_SHOWN]
    ]
    more = f" and {len(columns) - len(told):,} more" if len(columns) > len(told) else ""
    return (
        f"columns {', '.join(told)}{more}: none of the rows that the schema is found from, the first of a shard, has "
        "them, so the output has no such columns; a small shard with them brings them into a new output"
    )


def _percent(share: Decimal | float) -> str:
    return f"{share * 100:.1f} %"


def _cost(bill: Bill) -> str:
    return f"{money(bill.usd)} for {bill.device_seconds:,.1f} device-seconds of {bill.device}"


def _per_million(bill: Bill) -> list[tuple[str, str]]:
    parts = {
        "": bill.usd_per_million_total,
        "input ": bill.usd_per_million_input,
        "output ": bill.usd_per_million_output,
    }
    told = [f"{name}{money(value)}" for name, value in parts.items() if value is not None]
    return [("", f"{', '.join(told)} per million tokens")] if told else []


def _spent_on(bill: Bill) -> list[tuple[str, str]]:
    """One line for each part that took time, in columns; then what the tokens would cost without all but the work."""
    parts = [(name, ns) for name, ns in bill.parts.known() if ns]
    digits = max(2, 3 - bill.usd.adjusted())  # behind the point, so that the column can be added up
    dollars = [f"${bill.usd_of(ns):,.{digits}f}" for _, ns in parts]
    wide = max(map(len, dollars), default=0)
    table = [
        f"{_PARTS[name]:<8}  {usd:>{wide}}  {_percent(Decimal(ns) / bill.parts.total):>7}  {Decimal(ns) / NS:>10,.1f} s"
        for (name, ns), usd in zip(parts, dollars, strict=True)
    ]
    per_million = (("", "total"), ("input ", "input"), ("output ", "output"))
    useful = [(name, getattr(bill, f"useful_usd_per_million_{key}")) for name, key in per_million]
    told = ", ".join(f"{name}{money(usd)}" for name, usd in useful if usd)
    lines = [*table, *([f"{told} per million tokens for prefill and decode alone"] if told else [])]
    return [("spent on" if place == 0 else "", line) for place, line in enumerate(lines)]


def _saved(bill: Bill) -> list[tuple[str, str]]:
    by = (("cache", "the prefix cache"), ("dedup", "prompts asked once"), ("carry", "earlier answers"))
    saved = [(name, getattr(bill, f"saved_by_{key}_usd")) for key, name in by]
    told = ", ".join(f"{money(usd)} by {name}" for name, usd in saved if usd)
    return [("saved", f"{told} (estimated)")] if told else []


def _price(bill: Bill) -> str:
    return f"{money(bill.price.usd_per_hour)} an hour ({bill.price.source}, {bill.price.date})"


def _gpus(summary: Summary) -> list[str]:
    if not summary.gpus:
        without = summary.bill is None or summary.bill.device == CPU
        return ["no GPU" if without else "not measured: NVML did not answer"]
    shown = [_gpu(gpu) for gpu in summary.gpus[:_GPUS_SHOWN]]
    more = len(summary.gpus) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def _gpu(gpu: GpuUsage) -> str:
    if gpu.utilization is None or gpu.memory_bytes is None:
        return f"{gpu.name} ({gpu.node} {gpu.index}): not measured"
    memory = f"{gpu.memory_bytes / _GIB:.1f} of {gpu.memory_total_bytes / _GIB:.1f} GiB"
    return f"{gpu.name} ({gpu.node} {gpu.index}): {_percent(gpu.utilization)} busy, {memory}"


def _mlflow(tracked: Tracked | None) -> str:
    if tracked is None:
        return "off (tracking.uri is null)"
    place = f"run {tracked.run_id} at {tracked.uri}" if tracked.run_id else f"{tracked.uri} does not have the run"
    if not tracked.not_logged:
        return place
    return f"{place}; not logged: {', '.join(tracked.not_logged)} ({tracked.reason})"


def _python() -> str:
    # As it was called: resolving the link would lead out of the virtual environment.
    here, python = Path.cwd(), Path(sys.executable)
    return shlex.quote(str(python.relative_to(here) if python.is_relative_to(here) else python))
