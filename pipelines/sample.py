"""Sample: some answered rows of an output are answered again, by the same job and config, and compared.

The rows drawn become a corpus of their own, one Parquet shard, and a run over it writes to a folder that is removed at
the end: beside the sink where a cluster's workers must reach it, else in this machine's temporary folder.
"""

import io
import random
import secrets
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.control import Switch
from pipelines import dataflow, row_rules, storage
from pipelines.cluster import detect_on_cluster, flow, started_ray
from pipelines.config import RunConfig, SinkConfig, SourceConfig
from pipelines.engine_choice import detect
from pipelines.job.contract import OutputContract
from pipelines.job.fingerprint import difference
from pipelines.preparation import Prepared, open_output, prepare
from pipelines.refused import earlier_parts
from pipelines.sink.aside import open_file
from pipelines.sink.audit_files import Check
from pipelines.sink.receipt import Receipt
from pipelines.specs import cluster_address

Place = tuple[Receipt, int]  # an answered row: its unit, and where in the data file it stands


@dataclass(frozen=True, slots=True)
class Draw:
    """What to draw from: the current units of an output; how many rows, and by which seed."""

    sink_uri: str
    receipts: tuple[Receipt, ...]
    rows: int
    seed: int


def agreement(
    draw: Draw, config: RunConfig, ray_options: Callable[[], Mapping[str, Any]], doing: Callable[[str], None]
) -> Check:
    """Draw answered rows, answer them again by `config`, and tell how many answers are the same.

    `ray_options`: from `quiet_ray`.

    What differs is told, and is no finding: on most engines an answer's last digits depend on what else is in the
    batch. A row that has an answer and gets none this time is one.

    Raises:
        UserError: the config cannot be run here.
        RunFailed: Ray or the engine did not start, or a stage could not go on.
    """
    check = Check("sample", "rows drawn at random were answered again", "rows")
    sink_uri, places = draw.sink_uri, drawn(draw.receipts, draw.rows, draw.seed)
    if not places:
        check.notes.append("there is no answered row to draw")
        return check
    columns = OutputContract.of(config.job.output, job=config.job.name).schema.names
    before = read_places(sink_uri, places)
    inputs = before.select(before.schema.names[: before.schema.names.index(columns[0])])
    with scratch(sink_uri, config) as folder:
        put_sample(inputs, folder)
        again = over_sample(config, sink_uri, folder)
        with ExitStack() as ended:
            local = not cluster_address(config)
            if not local:
                ended.enter_context(started_ray(again, ray_options))
            prepared = prepare(again, hardware=detect if local else detect_on_cluster, doing=doing)
            asked = {receipt.fingerprint for receipt, _ in places}
            if asked != {prepared.fingerprint.digest}:
                check.notes += _changed(sink_uri, asked, prepared)
                return check
            doing("starting Ray and the engine")
            ended.enter_context(started_ray(again, ray_options))
            after = answered(again, prepared)
    check.checked = len(places)
    _compare(before, after, places, columns, check)
    return check


def drawn(receipts: Sequence[Receipt], rows: int, seed: int) -> list[Place]:
    """So many answered rows at random, or all if there are no more; the same for the same output and seed."""
    units = sorted((one for one in receipts if one.rows_ok), key=lambda one: (one.shard, one.start))
    ends = list(accumulate(one.rows_ok for one in units))
    total = ends[-1] if ends else 0
    chosen = sorted(random.Random(seed).sample(range(total), min(rows, total)))  # noqa: S311
    found = []
    for number in chosen:
        unit = bisect_right(ends, number)
        found.append((units[unit], number - (ends[unit - 1] if unit else 0)))
    return found


def read_places(sink_uri: str, places: Sequence[Place]) -> pa.Table:
    """These rows of the data files, waiting ones too, in order; one file is read at a time."""
    lines: dict[str, list[int]] = {}
    for receipt, line in places:
        lines.setdefault(receipt.data_file or "", []).append(line)
    parts = []
    for name, wanted in lines.items():
        with open_file(sink_uri, "data", name) as file:
            parts.append(pq.read_table(file).take(wanted))
    return pa.concat_tables(parts)


def over_sample(config: RunConfig, sink_uri: str, folder: str) -> RunConfig:
    """The same job over the sample in `folder`: one engine, no tracking, whatever the run did about changes.

    Its fields stand in the order that the run found, which these rows could not tell; rules are beside the output.
    """
    by_rules = config.prompt.field_order == "rows"
    if by_rules and (tried := row_rules.kept(sink_uri, config.job.fields)):
        row_rules.keep(storage.join(folder, "out"), tried)
    return replace(
        config,
        source=SourceConfig(uri=storage.join(folder, "in"), max_row_bytes=config.source.max_row_bytes),
        sink=SinkConfig(uri=storage.join(folder, "out")),
        tracking=replace(config.tracking, uri=None),
        engine=replace(config.engine, replicas=1),
        retry_errors=False,
        publish="auto",
        prompt=config.prompt if by_rules else replace(config.prompt, field_order="given"),
    )


def put_sample(rows: pa.Table, folder: str) -> None:
    """Make these rows the corpus that `over_sample` reads."""
    out = io.BytesIO()
    pq.write_table(rows, out)
    storage.put(storage.join(folder, "in", "sample.parquet"), out.getvalue())


def answered(config: RunConfig, prepared: Prepared) -> dict[int, dict[str, Any]]:
    """The sample's rows that got an answer, by their row number in it."""
    output = open_output(config, prepared)
    found: dict[int, dict[str, Any]] = {}
    for receipts in dataflow.finished(prepared.left(output.view), flow(config, prepared, "sample"), Switch.create()):
        for receipt in receipts:
            data = storage.get(storage.join(prepared.sink_uri, "data", receipt.data_file or ""))
            found.update((row["_row"], row) for row in pq.read_table(io.BytesIO(data)).to_pylist())
    return found


def _compare(
    before: pa.Table, after: dict[int, dict[str, Any]], places: Sequence[Place], columns: Sequence[str], check: Check
) -> None:
    old = before.to_pylist()
    for number, (receipt, _) in enumerate(places):
        if number not in after:
            check.find(f"{receipt.shard} row {old[number]['_row']} has an answer, and got none this time")
    for column in columns:
        pairs = [(old[number][column], row[column]) for number, row in sorted(after.items())]
        same = sum(one == other for one, other in pairs)
        check.notes.append(f"{column}: {same:,} of {len(pairs):,} the same{_apart(pairs)}")


def _apart(pairs: Sequence[tuple[Any, Any]]) -> str:
    """How far numbers are apart that are not the same."""
    gaps = [abs(one - other) for one, other in pairs if isinstance(one, float) and isinstance(other, float)]
    return f", at most {max(gaps):.2g} apart" if gaps and max(gaps) > 0 else ""


def _changed(sink_uri: str, asked: set[str], prepared: Prepared) -> list[str]:
    """Why nothing is compared: what was asked is not what would be asked now."""
    digest, parts = prepared.fingerprint.digest, prepared.fingerprint.parts
    others = asked - {digest}
    lines = [line for earlier in earlier_parts(sink_uri, others) for line in difference(earlier, parts)]
    what = "; ".join(dict.fromkeys(lines)) or "no manifest tells what"
    return [f"not compared: the rows drawn were asked under another fingerprint than this machine's now ({what})"]


@contextmanager
def scratch(sink_uri: str, config: RunConfig, name: str = "verify") -> Iterator[str]:
    """A place that the run's workers reach; gone afterwards."""
    if not cluster_address(config):
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
            yield folder
        return
    uri = storage.join(sink_uri, f"_{name}-{secrets.token_hex(5)}")
    try:
        yield uri
    finally:
        if storage.is_s3(uri):
            storage.delete_all([stored.uri for stored in storage.listing(uri, missing_ok=True)])
        else:
            shutil.rmtree(uri, ignore_errors=True)
