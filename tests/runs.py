"""Whole runs for tests: composed as the command line would, on a Ray that the test session shares; and how to read
what they leave with code that shares nothing with the pipeline's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.compose import compose
from pipelines.config import Exit
from pipelines.run import run

LABELS = "+job=classify"


def job(*overrides: str, sink: str | Path, source: str | Path) -> Exit:
    """Run a job with the simulated engine and without MLflow, unless the overrides say otherwise."""
    words = [LABELS, "engine=simulated", "tracking=none", f"source.uri={source}", f"sink.uri={sink}"]
    if any(word.startswith("+job=") for word in overrides):
        words.remove(LABELS)
    (config,) = compose([*words, *overrides])
    return run(config)


def data(sink: str | Path, options: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The rows that a Delta reader sees, by shard and row."""
    return _read(f"{sink}/data", options)


def errors(sink: str | Path, options: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The dead letters, likewise."""
    return _read(f"{sink}/errors", options)


def ledger(sink: str | Path, options: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The receipts."""
    return pl.read_delta(f"{sink}/ledger", storage_options=options).to_dicts()


def _read(table: str, options: dict[str, str] | None) -> list[dict[str, Any]]:
    rows = pl.read_delta(table, storage_options=options).to_dicts()
    return sorted(rows, key=lambda row: (row["_shard"], row["_row"]))


def write_texts(folder: Path, shards: Sequence[Sequence[str | None]]) -> None:
    """Parquet shards with a column `text` and a running `id`."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for number, texts in enumerate(shards):
        ids = pa.array(range(first, first + len(texts)), pa.int64())
        pq.write_table(pa.table({"id": ids, "text": pa.array(texts, pa.string())}), folder / f"part-{number}.parquet")
        first += len(texts)
