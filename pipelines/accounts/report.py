"""The report of a run: <sink>/runs/<run id>/report.html, what a manager reads in a minute and an engineer in ten.

It is made from what lies beside the output alone (manifest, ledger, costs, the files themselves), so it can be made
again at any time, by `python -m pipelines.report`.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from pipelines import storage
from pipelines.accounts import judged, quality_files
from pipelines.accounts.closing import money
from pipelines.accounts.quality import Measures
from pipelines.accounts.quality_files import Quality
from pipelines.accounts.report_data import Beside, Line, Run
from pipelines.accounts.report_money import cost, elsewhere
from pipelines.accounts.report_page import Level, Page, lasted, percent, rendered, shown
from pipelines.accounts.report_quality import quality
from pipelines.accounts.report_rows import answers, examples, label_columns
from pipelines.accounts.report_runs import beside, trend
from pipelines.accounts.report_sections import (
    did,
    errors,
    held_back,
    lengths,
    lineage,
    links,
    seconds_of,
    speed,
)
from pipelines.config import Exit, UserError
from pipelines.sink.ledger import Ledger
from pipelines.sink.receipt import Receipt

log = logging.getLogger(__name__)

FILE = "report.html"


def at_the_end(sink_uri: str, run_id: str, receipts: Iterable[Receipt], *, tell: Callable[[str], None]) -> str | None:
    """Make and store the report of a run that has just ended. None: it could not be made, of which `tell` is told.

    `receipts`: those of the run, and any others. The page is what is returned.
    """
    try:
        page = made(sink_uri, run_id, receipts=receipts)
        stored(sink_uri, run_id, page)
    except Exception as error:
        # The rows are answered and paid: nothing that is wrong with a page may make a failure of that.
        log.info("run %s has no report", run_id, exc_info=True)  # the terminal gets one line
        reason = next(iter(str(error).splitlines()), "")[:200]
        tell(f"warning: no report was made ({type(error).__name__}: {reason}); python -m pipelines.report says more")
        return None
    return page


def made(
    sink_uri: str,
    run_id: str,
    *,
    other: str | None = None,
    receipts: Iterable[Receipt] | None = None,
    now: datetime | None = None,
) -> str:
    """The page of a run; with `other`, that run beside it.

    `receipts`: of the ledger, where they are at hand.

    Raises:
        UserError: there is no such run, or it has left no manifest.
    """
    around, today = Beside.of(sink_uri), now or datetime.now(UTC)
    run = around.run(run_id, receipts)
    seen = answers(sink_uri, run.receipts, label_columns(run.manifest["config"]))
    lines = around.trend(run.run_id)
    sections = [
        did(run),
        cost(run, today=today.date()),
        elsewhere(run, at=today),
        speed(run),
        held_back(run),
        lengths(run, seen),
        quality(run, seen, *_measured(sink_uri, run), judged.of_run(sink_uri, run.run_id)),
        errors(run, examples(sink_uri, run.receipts)),
        trend(lines),
        lineage(run),
        links(run),
    ]
    if other is not None:
        before = around.run(other)
        labels = label_columns(before.manifest["config"])
        sections.insert(0, beside(before, run, answers(sink_uri, before.receipts, labels), seen))
    level, word, said = verdict(run, lines[:-1])
    command = f"python -m pipelines.report sink.uri={shown(run.manifest['config']['sink']['uri'])} run={run.run_id}"
    return rendered(
        Page(
            title=f"{shown(run.job, 80)} with {shown(run.model, 80)}, run {run.run_id}",
            level=level,
            word=word,
            verdict=said,
            sections=sections,
            made=f"Made {today.isoformat(timespec='seconds')} from what lies beside the output; again: {command}",
        )
    )


def newest(sink_uri: str) -> str:
    """The newest run of an output.

    Raises:
        UserError: there is none.
    """
    found = Beside.of(sink_uri).newest()
    if found is None:
        raise UserError(f"{storage.shown(sink_uri)}/runs has no run; check sink.uri")
    return found


def stored(sink_uri: str, run_id: str, page: str, name: str = FILE) -> str:
    """Store the page in the folder of its run; where it lies then."""
    uri = storage.join(sink_uri, "runs", run_id, name)
    storage.put(uri, page.encode())
    return uri


def _measured(sink_uri: str, run: Run) -> tuple[Measures, Quality | None]:
    """What the run's answers are like, and what it found of that at its end."""
    found = quality_files.of_run(sink_uri, run.run_id)
    if found is not None:
        return found.measures, found
    return Measures.of(Ledger.open(sink_uri, create=False).measured(run.receipts)), None


def verdict(run: Run, before: Sequence[Line]) -> tuple[Level, str, str]:
    """How a run ended: good or bad, a word, and the rest of the sentence. `before`: earlier runs, oldest first."""
    totals, state = run.totals, run.manifest["state"]
    level, word, why = _ending(run)
    if state == "ended" and not totals.rows_in:
        return level, word, f"{why}: there was no row to do."
    rows = f"{totals.rows_ok:,} of {totals.rows_in:,} rows answered"
    if totals.rows_error:
        rows += f", {totals.rows_error:,} errors ({percent(totals.error_rate or Decimal(0))})"
    took = seconds_of(run)
    said = [rows, *([f"in {lasted(took)}"] if took else [])]
    per_million = None
    if run.spent is not None:
        per_million = run.spent.per_million(totals).total
        said.append(
            f"for {money(run.spent.usd)}"
            + ("" if per_million is None else f", {money(per_million)} per million tokens")
        )
    return level, word, f"{why}: {' '.join(said)}{_against(run, per_million, before)}."


def _ending(run: Run) -> tuple[Level, str, str]:
    state, code = run.manifest["state"], run.manifest["exit_code"]
    if state == "running":
        return "warn", "Not ended", ", at work or killed; what is committed"
    if state == "failed":
        return "bad", "Failed", f" ({shown(run.manifest['error'])}); what is committed"
    if code == Exit.STOPPED:
        reason = run.summary.get("stopped_by")
        told = f" ({shown(reason)})" if reason else ""
        return "warn", "Stopped", f"{told}, the same command goes on"
    if code == Exit.TOO_MANY_ERRORS:
        if run.totals.shards_unreadable:
            return "bad", "Done, with unreadable shards", ""
        allowed = run.manifest["config"].get("max_error_rate")
        return "bad", "Over the error rate", "" if allowed is None else f" of {percent(allowed)} that was allowed"
    return "good", "Done", ""


def _against(run: Run, per_million: Decimal | None, before: Sequence[Line]) -> str:
    """In words, how it did beside the newest earlier run of the same job that cost or answered something."""
    measured = [line for line in before if line.usd_per_million or line.accuracy is not None]
    if not measured:
        return ""
    earlier, told = measured[-1], []
    if per_million is not None and earlier.usd_per_million:
        change = per_million / earlier.usd_per_million - 1
        apart = percent(abs(change))
        same = apart == percent(Decimal(0))
        told.append("as much per million" if same else f"{apart} {'more' if change > 0 else 'less'} per million")
    accuracy = run.totals.accuracy
    if accuracy is not None and earlier.accuracy is not None:
        told.append(f"accuracy {(accuracy - earlier.accuracy) * 100:+.1f} points")
    return f"; against run {earlier.run_id}: {', '.join(told)}" if told else ""
