"""Answer for a candidate, so that its gate lets it through: python -m pipelines.approve sink.uri=… run=RUN by=NAME

Drift and gate.approval are overlooked then, dead letters and broken files are not. The job's next run publishes it, or
pipelines.publish. An approval holds until what readers see changes; it stays in the log.
"""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipelines import storage
from pipelines.accounts.summary import printable
from pipelines.cli import command_of_few_keys
from pipelines.config import STRICT, Exit, Place
from pipelines.sink.found import Found

KEYS = {
    "sink.uri": "the output: a local path or s3://bucket/prefix",
    "run": "the run that was not published",
    "by": "who answers for it",
    "note": "what they have seen and why it is right",
}
EXITS = {
    Exit.DONE: "written down",
    Exit.USAGE: "bad usage, or nothing of that run waits; nothing was written",
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ApproveSink:
    uri: Place


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ApproveAsked:
    """Everything that the command is told."""

    sink: ApproveSink
    run: Annotated[str, Field(min_length=1)]
    by: Annotated[str, Field(min_length=1, max_length=100)]
    note: Annotated[str, Field(max_length=1000)] = ""


def approve(asked: ApproveAsked) -> Exit:
    """Write it into the log; whoever writes to the output goes on."""
    found = Found.at(storage.absolute(asked.sink.uri))
    fingerprint, _ = found.chosen(asked.run)
    found.publications.approve(
        run=asked.run, fingerprint=fingerprint, by=asked.by, note=asked.note, until=found.ledger.end()
    )
    print(printable(f"run {asked.run} is approved by {asked.by}; the job's next run publishes it"))  # noqa: T201
    return Exit.DONE


if __name__ == "__main__":
    command_of_few_keys(approve, ApproveAsked, doc=__doc__ or "", keys=KEYS, exits=EXITS)
