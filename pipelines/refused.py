"""Why a run does not start over an output that is there: a line each, with what to do."""

from collections.abc import Collection, Sequence

from pipelines.accounts import run_summary
from pipelines.changes import Changes
from pipelines.job.fingerprint import Fingerprint, difference
from pipelines.sink.publications import Publications
from pipelines.sink.receipt import Receipt


def asked_otherwise(todo: Changes, asked: Fingerprint, sink_uri: str) -> str:
    """What changed, what it would cost, and the two ways on."""
    lines = [
        line for parts in earlier_parts(sink_uri, todo.other_fingerprints) for line in difference(parts, asked.parts)
    ]
    what = "; ".join(dict.fromkeys(lines)) or "the runs that asked it left no summary"
    return (
        f"{todo.other_rows:,} rows in {sink_uri} were asked something else, and would be paid for again. "
        f"Changed: {what}. Add on_change=reprocess to do so, or choose another sink.uri"
    )


def not_published(waits: Sequence[Receipt], publications: Publications, sink_uri: str) -> str:
    """Without a gate, what was blocked or rolled back would be shown after all, and nobody would have said so.

    `waits`: units of one fingerprint.
    """
    decision = publications.newest(waits[0].fingerprint)
    why = "" if decision is None else f" ({decision.action} by {decision.by}: {decision.reason})"
    return (
        f"{len(waits):,} units that this job has answered wait in {sink_uri} to be published{why}. Add "
        "publish=gate, which keeps them back until they pass, or show them: python -m pipelines.publish sink.uri=…"
    )


def all_gone(todo: Changes, source_uri: str, sink_uri: str) -> str:
    """To empty an output because source.uri points elsewhere is nobody's wish."""
    return (
        f"none of the {len(todo.removed):,} shards in {sink_uri} is in source.uri={source_uri}, so "
        "all of its answers would be taken away. Correct source.uri, choose another sink.uri, or add "
        "on_deleted=keep"
    )


def earlier_parts(sink_uri: str, digests: Collection[str]) -> list[dict[str, str]]:
    """The parts of these fingerprints, from the summaries of the runs that left them; those not found are left out."""
    found: dict[str, dict[str, str]] = {}
    for run in run_summary.newest(sink_uri):
        if run.fingerprint in digests and run.fingerprint_parts:
            found[run.fingerprint] = dict(run.fingerprint_parts)
        if len(found) == len(digests):
            break
    return list(found.values())
