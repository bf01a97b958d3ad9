"""Prove an output against its input and its ledger: python -m pipelines.verify sink.uri=… [key=value …]

Reads the input's row counts, the ledger, and every file of the output; writes nothing and asks no model, unless
`sample=n` says to answer n random rows again. For an output that no run is writing.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipelines import storage
from pipelines.accounts import proof
from pipelines.accounts.audit_costs import audit_costs
from pipelines.accounts.progress import Progress
from pipelines.accounts.quiet import quiet_ray
from pipelines.cli import command_of_few_keys
from pipelines.config import STRICT, Exit, Place, RunConfig, SourceConfig, UserError
from pipelines.newest import newest_config
from pipelines.sink.audit import Audit, audit
from pipelines.sink.audit_files import Check
from pipelines.sink.ledger import Ledger
from pipelines.sink.receipt import Receipt
from pipelines.source.shards import Shard, list_source
from pipelines.source.units import UNREADABLE_SHARD
from pipelines.stages.read import count_rows

COUNTED_AT_ONCE = 8  # shards
KEYS = {
    "sink.uri": "the output: a local path or s3://bucket/prefix",
    "source.uri": "the input, if it is no longer where the newest run read it",
    "sample": "rows to draw at random and to answer again; 0 (the default): none",
    "seed": "of the draw (0)",
    "format": "table (the default), or json: one document on stdout",
}
EXITS = {
    Exit.DONE: "proved: nothing is wrong",
    Exit.FAILED: "not proved; the table says what is wrong",
    Exit.USAGE: "bad usage, or there is no output; nothing was checked",
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class VerifySink:
    uri: Place


@dataclass(frozen=True, config=STRICT, kw_only=True)
class VerifySource:
    uri: Place | None = None  # None: where the newest run read it


@dataclass(frozen=True, config=STRICT, kw_only=True)
class VerifyConfig:
    """Everything that verify is told."""

    sink: VerifySink
    source: VerifySource = field(default_factory=VerifySource)
    sample: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    format: Literal["table", "json"] = "table"


def verify(asked: VerifyConfig) -> Exit:
    """Check everything; print what was found."""
    sink_uri = storage.absolute(asked.sink.uri)
    if not storage.is_s3(sink_uri) and not Path(sink_uri).is_dir():
        raise UserError(f"sink.uri={asked.sink.uri}: there is no such folder; check the path")
    # Ray is started for a sample alone; what turns its messages away has to come before the progress.
    quiet: AbstractContextManager[Callable[[], dict[str, Any]]] = nullcontext(dict)
    if asked.sample:
        quiet = quiet_ray(Path("out") / "logs" / "verify.log")
    with quiet as ray_options, Progress() as progress:
        progress.doing("reading the output")
        config, at_work = newest_config(sink_uri), runs_at_work(sink_uri)
        audited = audit(sink_uri, retain_hours=config.sink.retain_hours if config else 0.0)
        checks = list(audited.checks)
        if at_work:
            told = f"run {at_work[-1]} is at work, or was killed: what it has in hand is told as wrong here"
            checks[-1].notes.append(told)
        if audited.view is not None:
            checks += audit_costs(sink_uri, Ledger.open(sink_uri, create=False))
            progress.doing("counting the input's rows")
            checks += against_input(audited, _source(asked, config), config)
            if asked.sample and proof.proved(audited.checks):  # else the rows to draw may not be there
                if config is None:
                    raise UserError(f"sample={asked.sample}: no run left its config in {asked.sink.uri}/runs")
                from pipelines.sample import Draw, agreement  # not before: it imports Ray

                draw = Draw(sink_uri, tuple(audited.view.current()), rows=asked.sample, seed=asked.seed)
                checks.append(agreement(draw, config, ray_options, progress.doing))
    if asked.format == "json":
        print(proof.document(asked.sink.uri, checks))  # noqa: T201
    else:
        proof.show(asked.sink.uri, checks)
    return Exit.DONE if proof.proved(checks) else Exit.FAILED


def runs_at_work(sink_uri: str) -> list[str]:
    """Runs that have left a sign of life (sink/alive.py): at work, or killed."""
    listed = storage.listing(storage.join(sink_uri, "runs"), missing_ok=True)
    return sorted(stored.path.split("/")[0] for stored in listed if stored.path.endswith("/alive.json"))


def _source(asked: VerifyConfig, config: RunConfig | None) -> SourceConfig:
    if config is None:
        if asked.source.uri is None:
            raise UserError(f"no run left its config in {asked.sink.uri}/runs: say source.uri=…, where the input is")
        return SourceConfig(uri=asked.source.uri)
    return config.source if asked.source.uri is None else replace(config.source, uri=asked.source.uri)


# ------------------------------------------------------------------------------------------------------ input


def against_input(audited: Audit, source: SourceConfig, config: RunConfig | None) -> list[Check]:
    """Every shard is as it was read and every row of it is in the output; the totals add up.

    Raises:
        UserError: the input is not there.
    """
    shards = Check("input", "each shard is the one that was read, and nothing is left to do", "shards")
    rows = Check("input rows", "each row of the input is in the output, and no other", "rows")
    by_shard: dict[str, list[Receipt]] = defaultdict(list)
    waiting: dict[str, int] = defaultdict(int)
    for receipt in audited.view.current() if audited.view else ():
        by_shard[receipt.shard].append(receipt)
    for receipt in audited.view.waiting() if audited.view else ():
        waiting[receipt.shard] += 1
    behind_the_gate: dict[str, set[str]] = defaultdict(set)  # by shard, the identities that were read
    for receipt in audited.unseen:
        behind_the_gate[receipt.shard].add(receipt.identity)
    listed = list_source(source)
    covered = sum(receipt.rows_in for receipts in by_shard.values() for receipt in receipts)
    beyond = source.limit is not None and covered >= source.limit  # shards behind source.limit are not asked for
    unchanged: list[tuple[Shard, list[Receipt]]] = []
    for shard in listed.shards:
        shards.checked += 1
        receipts = by_shard.pop(shard.path, [])
        here = {receipt.identity for receipt in receipts} == {shard.identity}
        if not here and shard.identity in behind_the_gate[shard.path]:
            shards.notes.append(f"{shard.path} as it is now is answered, and waits to be published")
        elif not receipts:
            if not beyond:
                shards.find(f"{shard.path} is new: run the job's command again")
        elif any(receipt.identity != shard.identity for receipt in receipts):
            waits = f" ({waiting[shard.path]:,} of its new units are done and wait)" if waiting[shard.path] else ""
            shards.find(f"{shard.path} has changed since it was read{waits}: run the job's command again")
        else:
            unchanged.append((shard, receipts))
    _deleted(sorted(by_shard), listed.left_out, config, shards)
    behind = 0
    for shard, receipts, count in _counted(unchanged, source):
        at = _compare(shard, receipts, count, source, rows)
        rows.checked += at
        behind += max(0, count - at)
    if behind and source.limit is not None:
        rows.notes.append(f"{behind:,} more rows of these shards lie behind source.limit={source.limit:,}")
    told = audited.data_rows + audited.error_rows
    if told != covered:
        rows.find(
            f"{audited.data_rows:,} data rows + {audited.error_rows:,} dead letters are not the {covered:,} rows in"
        )
    return [shards, rows]


def _deleted(paths: Sequence[str], left_out: frozenset[str], config: RunConfig | None, shards: Check) -> None:
    kept = config is not None and config.on_deleted == "keep"
    gone = [path for path in paths if path not in left_out]
    if len(gone) < len(paths):
        shards.notes.append(f"{len(paths) - len(gone):,} shards are left out by source.include or source.exclude now")
    if kept and gone:
        shards.notes.append(f"{len(gone):,} shards are gone from the input and stay in the output (on_deleted=keep)")
    for path in [] if kept else gone:
        shards.find(f"{path} is gone from the input: run the job's command again, which removes it, or on_deleted=keep")


def _counted(
    shards: Sequence[tuple[Shard, list[Receipt]]], source: SourceConfig
) -> Iterator[tuple[Shard, list[Receipt], int]]:
    """Each shard with its number of rows, a few shards at a time."""

    def count(shard: Shard) -> int:
        return count_rows(shard, sys.maxsize, max_row_bytes=source.max_row_bytes)

    with ThreadPoolExecutor(COUNTED_AT_ONCE) as pool:
        for start in range(0, len(shards), COUNTED_AT_ONCE * 4):
            some = shards[start : start + COUNTED_AT_ONCE * 4]
            for (shard, receipts), rows in zip(some, pool.map(count, [shard for shard, _ in some]), strict=True):
                yield shard, receipts, rows


def _compare(shard: Shard, receipts: Sequence[Receipt], rows: int, source: SourceConfig, check: Check) -> int:
    """The units of an unchanged shard follow one another from its first row to its last, or to `source.limit`.

    The row that they reach.
    """
    at = 0
    for start, stop in sorted((receipt.start, receipt.stop) for receipt in receipts):
        if start > at:
            check.find(f"{shard.path}: rows {at} to {start} are not done; run the job's command again")
        at = max(at, stop)
    if UNREADABLE_SHARD in {kind for receipt in receipts for kind in receipt.errors_by_type}:
        check.notes.append(f"{shard.path} cannot be read from row {at - 1} on; a dead letter stands for the rest")
    elif at > rows:
        check.find(f"{shard.path} has {rows:,} rows, the output has {at:,} of it")
    elif at < rows and source.limit is None:
        check.find(f"{shard.path}: rows {at} to {rows} are not done; run the job's command again")
    elif at == rows and not any(receipt.last for receipt in receipts) and source.limit is None:
        check.find(f"{shard.path}: no unit says that the shard ends; run the job's command again")
    return at


if __name__ == "__main__":
    command_of_few_keys(verify, VerifyConfig, doc=__doc__ or "", keys=KEYS, exits=EXITS)
