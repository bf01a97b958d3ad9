"""Show readers what waits behind the gate, whatever it found: python -m pipelines.publish sink.uri=… reason=…

One commit to the log decides, one to each table shows it. What waits of other prompts is given up.
"""

import getpass
import secrets
import time
from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipelines import storage
from pipelines.accounts.summary import printable
from pipelines.cli import command_of_few_keys
from pipelines.config import STRICT, Exit, Place
from pipelines.newest import retain_hours
from pipelines.sink import alive
from pipelines.sink.found import Found
from pipelines.sink.output import Output

KEYS = {
    "sink.uri": "the output: a local path or s3://bucket/prefix",
    "reason": "why it is shown; it stays in the log",
    "by": "who says so (your name on this machine)",
    "run": "a run whose candidate is meant, if not the newest",
}
EXITS = {
    Exit.DONE: "readers see it",
    Exit.FAILED: "failed; a repetition, or the job's next run, brings it to an end",
    Exit.USAGE: "bad usage, or nothing waits, or a run is at work; nothing was changed",
}
Words = Annotated[str, Field(min_length=1, max_length=1000)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PublishSink:
    uri: Place


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PublishAsked:
    """Everything that the command is told."""

    sink: PublishSink
    reason: Words
    by: Words = field(default_factory=getpass.getuser)
    run: str | None = None


def publish(asked: PublishAsked) -> Exit:
    """Become the output's writer, publish, and leave it at rest."""
    sink_uri = storage.absolute(asked.sink.uri)
    alive.refuse_if_alive(sink_uri, doing=lambda _: None)
    found = Found.at(sink_uri)
    fingerprint, _ = found.chosen(asked.run)
    hours = retain_hours(sink_uri)
    run = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    with alive.beating(sink_uri, run):
        output = Output.at_rest(sink_uri, run=run, found=found, fingerprint=fingerprint)
        change = output.candidate()
        output.publish(by=asked.by, reason=asked.reason)
        output.close(retain_hours=hours, known_alone=True)
    print(printable(f"published: {len(change.new):,} units new to readers, {len(change.gone):,} replaced"))  # noqa: T201
    return Exit.DONE


if __name__ == "__main__":
    command_of_few_keys(publish, PublishAsked, doc=__doc__ or "", keys=KEYS, exits=EXITS)
