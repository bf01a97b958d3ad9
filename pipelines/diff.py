"""Say what would change if a candidate were published: python -m pipelines.diff sink.uri=… [run=RUN] [key=value …]

Compares what waits behind the gate with what readers see: rows, dead letters, drift, and answers that moved, with
examples. Writes nothing, asks no model.
"""

import json
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines import storage
from pipelines.accounts.gate import compared
from pipelines.accounts.moved import Moved, moved, shares
from pipelines.accounts.quality import Drift, Measures
from pipelines.accounts.summary import printable, without_secrets
from pipelines.cli import command_of_few_keys
from pipelines.config import STRICT, Exit, Place
from pipelines.sink.decisions import Decision
from pipelines.sink.found import Found

KEYS = {
    "sink.uri": "the output: a local path or s3://bucket/prefix",
    "run": "a run whose candidate is meant, if not the newest",
    "examples": "rows of each column to show (5)",
    "units": "units whose rows are compared, spread over the corpus (200)",
    "format": "table (the default), or json: one document on stdout",
}
EXITS = {
    Exit.DONE: "told",
    Exit.USAGE: "bad usage, or nothing waits to be published",
}
MOVES_SHOWN = 10


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DiffSink:
    uri: Place


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DiffAsked:
    """Everything that the command is told."""

    sink: DiffSink
    run: str | None = None
    examples: Annotated[int, Field(ge=0)] = 5
    units: Annotated[int, Field(ge=1)] = 200
    format: Literal["table", "json"] = "table"


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Between what readers see and what they would see."""

    runs: tuple[str, ...]  # that answered the candidate
    shown: Measures
    candidate: Measures
    units_new: int
    units_gone: int
    units_before: int  # of the candidate, those that are still another fingerprint's
    drift: Drift | None  # of the new rows, against all that are shown; None: nothing is
    moved: Moved
    decisions: tuple[Decision, ...]  # about the candidate

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "runs": list(self.runs),
            "shown": self.shown.to_plain(),
            "candidate": self.candidate.to_plain(),
            "units_new": self.units_new,
            "units_gone": self.units_gone,
            "units_before": self.units_before,
            "drift": None if self.drift is None else self.drift.to_plain(),
            "moved": self.moved.to_plain(),
            "decisions": [{"at": d.at, "action": d.action, "by": d.by, "reason": d.reason} for d in self.decisions],
        }


def diff(asked: DiffAsked) -> Exit:
    """Find it out and show it."""
    found = difference(asked)
    if asked.format == "json":
        print(json.dumps(without_secrets(found.to_plain())))  # noqa: T201
    else:
        _show(found)
    return Exit.DONE


def difference(asked: DiffAsked) -> Difference:
    """What publishing would change.

    Raises:
        UserError: nothing waits.
    """
    sink_uri = storage.absolute(asked.sink.uri)
    there = Found.at(sink_uri)
    fingerprint, waiting = there.chosen(asked.run)
    shown, candidate = (list(view.current()) for view in there.views(fingerprint))
    seen, wanted = {one.attempt for one in shown}, {one.attempt for one in candidate}
    new = [one for one in candidate if one.attempt not in seen]
    inputs = there.input_schema()
    return Difference(
        runs=tuple(dict.fromkeys(receipt.run for receipt in waiting)),
        shown=Measures.of(there.ledger.measured(shown)),
        candidate=Measures.of(there.ledger.measured(candidate)),
        units_new=len(new),
        units_gone=sum(one.attempt not in wanted for one in shown),
        units_before=sum(one.fingerprint != fingerprint for one in candidate),
        drift=compared(there.ledger, new, shown) if shown else None,
        moved=moved(
            sink_uri,
            new,
            shown,
            inputs=[] if inputs is None else inputs.names,
            most_units=asked.units,
            examples=asked.examples,
        ),
        decisions=tuple(one for one in there.publications.decisions() if one.fingerprint == fingerprint),
    )


def _show(found: Difference) -> None:
    out = Console(highlight=False)
    out.print(Text(f"to be published: {found.units_new:,} new units of {printable(', '.join(found.runs))}"))
    table = _table("", "readers see", "they would see")
    table.add_row("rows", f"{found.shown.rows_in:,}", f"{found.candidate.rows_in:,}")
    table.add_row("answers", f"{found.shown.rows_ok:,}", f"{found.candidate.rows_ok:,}")
    table.add_row("dead letters", f"{found.shown.rows_error:,}", f"{found.candidate.rows_error:,}")
    for labelled in sorted(found.shown.counts.labels.keys() | found.candidate.counts.labels.keys()):
        before = shares(found.shown.counts.labels.get(labelled, {}))
        after = shares(found.candidate.counts.labels.get(labelled, {}))
        for value in dict.fromkeys((*before, *after)):
            cells = [f"{side[value]:.1%}" if value in side else "" for side in (before, after)]
            table.add_row(Text(printable(f"{labelled}={value}")), *cells)
    out.print(table)
    for line in _lines(found):
        out.print(Text(printable(line)))
    for name, column in found.moved.columns.items():
        if not column.changed:
            continue
        out.print(Text(printable(f"{name}: {column.changed:,} of {column.rows:,} answers are others")))
        moves = _table("from", "to", "rows")
        for (before_, after_), rows in column.moves.most_common(MOVES_SHOWN):
            moves.add_row(Text(printable(before_[:60])), Text(printable(after_[:60])), f"{rows:,}")
        out.print(moves)
        for one in column.examples:
            words = f"  {one.shard} row {one.row}: {one.before[:40]} → {one.after[:40]}  {one.text}"
            out.print(Text(printable(words)), soft_wrap=True)


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="cyan")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _lines(found: Difference) -> list[str]:
    lines = []
    if found.drift is not None and found.drift.significant_psi is not None:
        lines.append(f"drift: PSI {found.drift.significant_psi:.3f} where p < 0.01; 0: no more than chance")
    elif found.drift is not None:
        lines.append("drift: not measured")
    if found.units_before:
        lines.append(f"{found.units_before:,} units would stay as another prompt answered them; run the job to do them")
    if found.moved.lost or found.moved.found:
        lines.append(
            f"{found.moved.lost:,} answers would be dead letters, {found.moved.found:,} dead letters have an answer"
        )
    if found.moved.units < found.moved.units_alike:
        lines.append(f"rows compared in {found.moved.units:,} of {found.moved.units_alike:,} units (units=n for more)")
    lines += [f"{one.action} by {one.by}: {one.reason}" for one in found.decisions[-3:]]
    return lines


if __name__ == "__main__":
    command_of_few_keys(diff, DiffAsked, doc=__doc__ or "", keys=KEYS, exits=EXITS)
