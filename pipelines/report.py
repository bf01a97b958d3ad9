"""Make the report of a run again: python -m pipelines.report sink.uri=… [run=RUN] [compare='[RUN,RUN]']

Reads what lies beside the output, writes one HTML file into the run's folder, and says where it lies.
"""

from dataclasses import field
from pathlib import Path

from pydantic.dataclasses import dataclass

from pipelines import storage
from pipelines.accounts import report as page
from pipelines.cli import command_of_few_keys
from pipelines.config import STRICT, Exit, Place, UserError

KEYS = {
    "sink.uri": "the output: a local path or s3://bucket/prefix",
    "run": "the run, by its folder below runs; the newest, if none is said",
    "compare": "two runs, '[RUN,RUN]': the report of the second, with the first beside it",
}
EXITS = {
    Exit.DONE: "the report is made",
    Exit.FAILED: "failed",
    Exit.USAGE: "bad usage, or there is no such output or run",
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ReportSink:
    uri: Place


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ReportConfig:
    """Everything that report is told."""

    sink: ReportSink
    run: str | None = None
    compare: tuple[str, ...] = field(default_factory=tuple)


def report(asked: ReportConfig) -> Exit:
    """Make the page and store it; print where."""
    sink_uri = storage.absolute(asked.sink.uri)
    if not storage.is_s3(sink_uri) and not Path(sink_uri).is_dir():
        raise UserError(f"sink.uri={asked.sink.uri}: there is no such folder; check the path")
    if not asked.compare:
        run = asked.run or page.newest(sink_uri)
        uri = page.stored(sink_uri, run, page.made(sink_uri, run))
    else:
        before, after = _two(asked)
        made = page.made(sink_uri, after, other=before)
        uri = page.stored(sink_uri, after, made, f"report-beside-{before}.html")
    print(storage.shown(uri))  # noqa: T201
    return Exit.DONE


def _two(asked: ReportConfig) -> tuple[str, str]:
    if len(asked.compare) != 2 or len(set(asked.compare)) != 2:
        told = ",".join(asked.compare)
        raise UserError(f"compare=[{told}]: name two different runs, compare='[RUN,RUN]', as they stand below runs")
    if asked.run is not None:
        raise UserError(f"run={asked.run} and compare: say one of them; compare makes the report of its second run")
    return asked.compare[0], asked.compare[1]


if __name__ == "__main__":
    command_of_few_keys(report, ReportConfig, doc=__doc__ or "", keys=KEYS, exits=EXITS)
