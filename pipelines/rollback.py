"""Show readers an earlier version again: python -m pipelines.rollback sink.uri=… [to=RUN] reason=…

Without `to`, the version before the one they see. What is taken back waits, is not paid for again, and is shown no more
by a gate unless somebody approves of it or publishes it.
"""

import getpass
import secrets
import time
from collections.abc import Sequence
from dataclasses import field
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipelines import storage
from pipelines.accounts.summary import printable
from pipelines.cli import command_of_few_keys
from pipelines.config import STRICT, Exit, Place, UserError
from pipelines.newest import retain_hours
from pipelines.sink import alive
from pipelines.sink.aside import missing
from pipelines.sink.decisions import Counting, Version, versions
from pipelines.sink.found import Found
from pipelines.sink.output import Output

KEYS = {
    "sink.uri": "the output: a local path or s3://bucket/prefix",
    "to": "the run after which readers saw what they should see again; without it, the version before",
    "reason": "why; it stays in the log",
    "by": "who says so (your name on this machine)",
}
EXITS = {
    Exit.DONE: "readers see the earlier version",
    Exit.FAILED: "failed; a repetition, or the job's next run, brings it to an end",
    Exit.USAGE: "bad usage, or there is no such version, or its files are gone; nothing was changed",
}
Words = Annotated[str, Field(min_length=1, max_length=1000)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RollbackSink:
    uri: Place


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RollbackAsked:
    """Everything that the command is told."""

    sink: RollbackSink
    reason: Words
    by: Words = field(default_factory=getpass.getuser)
    to: str | None = None


def rollback(asked: RollbackAsked) -> Exit:
    """Become the output's writer, show the earlier version, and leave the output at rest."""
    sink_uri = storage.absolute(asked.sink.uri)
    alive.refuse_if_alive(sink_uri, doing=lambda _: None)
    found = Found.at(sink_uri)
    version = _wanted(asked, versions(found.publications.decisions(), found.ledger.ends()))
    view = found.ledger.fold(Counting(version.segments))
    if gone := missing(sink_uri, view.current()):
        raise UserError(
            f"the version after run {version.run or '(none)'} cannot be shown again: {len(gone):,} of its files are "
            f"gone, {gone[0]} for one, removed sink.retain_hours after they were replaced. Nothing was changed"
        )
    hours = retain_hours(sink_uri)
    run = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    with alive.beating(sink_uri, run):
        output = Output.at_rest(sink_uri, run=run, found=found)
        output.roll_back(version, by=asked.by, reason=asked.reason)
        output.close(retain_hours=hours, known_alone=True)
    rows = sum(receipt.rows_ok for receipt in view.current())
    print(printable(f"readers see the version after run {version.run or '(none)'} again: {rows:,} rows"))  # noqa: T201
    return Exit.DONE


def _wanted(asked: RollbackAsked, known: Sequence[Version]) -> Version:
    if len(known) < 2:
        raise UserError(f"sink.uri={asked.sink.uri}: there is no version before the one that readers see")
    if asked.to is None:
        return known[-2]
    here = [version for version in known[:-1] if version.run == asked.to]
    if not here:
        told = ", ".join(f"{one.run or '(none)'} at {_clock(one.at)}" for one in known[:-1])
        raise UserError(f"to={asked.to}: there is no version of that run before the one that readers see, but: {told}")
    return here[-1]


def _clock(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%MZ")


if __name__ == "__main__":
    command_of_few_keys(rollback, RollbackAsked, doc=__doc__ or "", keys=KEYS, exits=EXITS)
