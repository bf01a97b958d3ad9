"""Write: a unit's dead letters, then its data file, both under names never used before; its receipt.

Files are encoded in memory and stored by one put. pyarrow completes a Parquet file when its writer is left by an
exception, so a writer on the final name would leave a short file that looks whole.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.sink.receipt import FOOTER_KEY, Receipt
from pipelines.source.units import Unit
from pipelines.stages.carry import Carried


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteSpec:
    """Where a run's units go, and as what."""

    sink_uri: str  # absolute: workers have other working directories
    run: str
    fingerprint: str
    data_schema: pa.Schema
    errors_schema: pa.Schema


def write_unit(
    unit: Unit,
    data: pa.Table,
    dead: pa.Table,
    answers: pa.Table,
    spec: WriteSpec,
    *,
    gold_rows: int | None = None,
    gold_correct: int | None = None,
    measures: str | None = None,
    read_at: float | None = None,
    replaces: str | None = None,
    carried: Carried | None = None,
    left_out: Mapping[str, int] = MappingProxyType({}),
) -> Receipt:
    """Store one unit. `data` and `dead` hold each of its rows once; tokens and device seconds are those of `answers`,
    but for shared ones, which cost nothing.

    `replaces` is the attempt that is done again on purpose, `carried` what was taken from the output as it was,
    `left_out` the input's columns that the output does not have.

    A data file is stored even for a unit without a single row answered: its footer is the receipt.

    Raises:
        ValueError: rows are missing or too many, or a table is not in the run's schema; nothing was stored.
        StoreFailed: the store refused or stayed away; whatever was stored is named by no receipt.
    """
    now = time.time()
    asked = answers.filter(pc.invert(answers["_shared"]))
    shared = answers.filter(answers["_shared"])
    attempt = secrets.token_hex(5)
    name = f"{unit.name}.{attempt}.parquet"
    errors = encode(dead, spec.errors_schema) if dead.num_rows else b""
    receipt = Receipt(
        shard=unit.shard,
        identity=unit.identity,
        start=unit.start,
        stop=unit.stop,
        last=unit.last,
        limited=unit.limited,
        fingerprint=spec.fingerprint,
        run=spec.run,
        attempt=attempt,
        data_file=name,
        errors_file=name if errors else None,
        data_bytes=0,
        data_sha256="",
        errors_bytes=len(errors),
        errors_sha256=hashlib.sha256(errors).hexdigest() if errors else "",
        rows_in=unit.rows,
        rows_ok=data.num_rows,
        rows_error=dead.num_rows,
        errors_by_type=_counts(dead),
        columns_left_out=dict(left_out),
        prompt_tokens=int(_sum(asked, "_prompt_tokens")),
        cached_tokens=int(_sum(asked, "_cached_tokens")),
        output_tokens=int(_sum(asked, "_output_tokens")),
        device_seconds=float(_sum(answers, "_device_seconds")),
        started_at=now if read_at is None else read_at,
        finished_at=now,
        gold_rows=gold_rows,
        gold_correct=gold_correct,
        measures=measures,
        replaces=replaces,
        rows_carried=0 if carried is None else len(carried.lines),
        rows_shared=shared.num_rows,
        saved_prompt_tokens=_saved("_prompt_tokens", shared, carried),
        saved_output_tokens=_saved("_output_tokens", shared, carried),
    )
    whole = encode(data, spec.data_schema, receipt)
    # Dead letters first, the data file last: its footer is the receipt, so a data file that is there proves the
    # whole unit. The other way round, a crash between the two would lose rows.
    if errors:
        storage.put(storage.join(spec.sink_uri, "errors", name), errors)
    storage.put(storage.join(spec.sink_uri, "data", name), whole)
    return replace(receipt, data_bytes=len(whole), data_sha256=hashlib.sha256(whole).hexdigest())


def encode(table: pa.Table, schema: pa.Schema, receipt: Receipt | None = None) -> bytes:
    """`table` as a Parquet file in exactly `schema`, with `receipt` in its footer."""
    if table.schema.names != schema.names:
        raise ValueError(f"columns {table.schema.names} where the run's are {schema.names}")
    rows = table.cast(schema)
    out = pa.BufferOutputStream()
    with pq.ParquetWriter(out, schema, compression="zstd", write_statistics=True) as writer:
        writer.write_table(rows, row_group_size=max(rows.num_rows, 1))
        if receipt is not None:
            # Not in the schema's metadata: then no two files of the table would have one schema.
            writer.add_key_value_metadata({FOOTER_KEY.decode(): receipt.to_json()})
    return out.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _counts(dead: pa.Table) -> dict[str, int]:
    counted = pc.value_counts(dead["_error_type"]).to_pylist() if dead.num_rows else []
    return {one["values"]: one["counts"] for one in counted}


def _saved(column: str, shared: pa.Table, carried: Carried | None) -> int:
    return int(_sum(shared, column) + (0 if carried is None else _sum(carried.data, column)))


def _sum(answers: pa.Table, column: str) -> float:
    return pc.sum(answers[column]).as_py() or 0
