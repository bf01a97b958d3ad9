"""Outputs of runs that never ran, for the tests of reports: real tables and files, with figures known beforehand."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.engine import EngineConfig
from pipelines.accounts.account import tokens_of
from pipelines.accounts.attribution import Parts
from pipelines.accounts.cost import bill, dollars_of
from pipelines.accounts.manifest import evidence
from pipelines.accounts.summary import Totals
from pipelines.cli import to_yaml
from pipelines.config import Exit, RunConfig
from pipelines.job.fingerprint import Fingerprint
from pipelines.job.model import ModelFiles
from pipelines.sink.costs import Cost, Costs
from pipelines.sink.output import Output
from pipelines.sink.receipt import Receipt
from pipelines.source.units import Unit
from pipelines.stages.write import WriteSpec, write_unit
from tests.accounts_samples import PARTS, PRICE, run_config, summary

BEGAN = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
INPUT = pa.schema([("text", pa.string())])
DATA = pa.schema(
    [
        *INPUT,
        ("label", pa.string()),
        ("_shard", pa.string()),
        ("_row", pa.int64()),
        ("_prompt_tokens", pa.int32()),
        ("_output_tokens", pa.int32()),
    ]
)
ERRORS = pa.schema(
    [*INPUT, ("_shard", pa.string()), ("_row", pa.int64()), ("_error_type", pa.string()), ("_error", pa.string())]
)
ANSWERS = pa.schema(
    [
        ("_prompt_tokens", pa.int32()),
        ("_cached_tokens", pa.int32()),
        ("_output_tokens", pa.int32()),
        ("_device_seconds", pa.float64()),
        ("_shared", pa.bool_()),
    ]
)
PARTS_OF_FINGERPRINT = (
    "prompt template", "output contract", "sampling", "engine", "model", "chat template", "precision",
)  # fmt: skip
MODEL = ModelFiles(
    source="embedded://smollm2",
    folder_or_id="/cache/m",
    tokenizer_folder="/cache/m",
    cache="/cache",
    revision=None,
    context_length=2048,
    vocab_size=100,
    dtype="float32",
    quantization=None,
    file_hashes={"model.safetensors": "abc", "tokenizer.json": "def"},
    identity="files 1",
    weights_location=None,
)


def opened(sink: Path | str) -> Output:
    """The output, in the hands of a run that begins. To be opened before its units are written."""
    return Output.open(
        str(sink), data_schema=DATA, errors_schema=ERRORS, fingerprint="f", identities={}, retain_hours=1
    )


def unit(
    sink: Path | str,
    run: str,
    start: int,
    labels: Sequence[str],
    *,
    dead: Sequence[tuple[str, str, str]] = (),
    finished_s: float = 2.0,
    shard: str = "a.jsonl",
    **changes: Any,
) -> Receipt:
    """A unit of shard a: its rows answered with these labels, then its dead letters, each type, error and text.

    The answer of row n has a prompt of 100 + n % 50 tokens and 1 + n % 3 output tokens.
    """
    spec = WriteSpec(sink_uri=str(sink), run=run, fingerprint="f", data_schema=DATA, errors_schema=ERRORS)
    rows = range(start, start + len(labels))
    data = pa.table(
        {
            "text": [f"text {row}" for row in rows],
            "label": list(labels),
            "_shard": [shard] * len(labels),
            "_row": list(rows),
            "_prompt_tokens": [100 + row % 50 for row in rows],
            "_output_tokens": [1 + row % 3 for row in rows],
        },
        schema=DATA,
    )
    letters = [
        {"text": text, "_shard": shard, "_row": row, "_error_type": kind, "_error": error}
        for row, (kind, error, text) in enumerate(dead, start=rows.stop)
    ]
    what = Unit(shard=shard, identity="v1", start=start, stop=rows.stop + len(letters), last=False)
    receipt = write_unit(what, data, pa.Table.from_pylist(letters, ERRORS), ANSWERS.empty_table(), spec)
    times = {"started_at": BEGAN + finished_s - 1, "finished_at": BEGAN + finished_s}
    return replace(receipt, **(times | changes))


def ended(
    sink: Path | str,
    output: Output,
    run: str,
    receipts: Sequence[Receipt],
    *,
    parts: Parts | None = PARTS,
    exit_code: Exit = Exit.DONE,
    config: RunConfig | None = None,
    finish: bool = True,
    **changes: Any,
) -> None:
    """Commit these units, and let the run leave what a run leaves. Its bill is that of `parts`; None: it has none."""
    config = config or run_config(Path("jobs"))
    output.commit(list(receipts))
    totals = Totals.of(receipts)
    if parts is not None:
        Costs(str(sink), epoch=output.ledger.epoch, run=run).book(costs_of(run, parts))
    with evidence(
        str(sink),
        to_yaml(replace(config, sink=replace(config.sink, uri=str(sink)))),
        run_id=run,
        started_at=BEGAN,
        fingerprint=Fingerprint(dict.fromkeys(PARTS_OF_FINGERPRINT, "p")),
        seed=7,
        model=MODEL,
        engine=EngineConfig(kind="simulated", model="m", model_name="smollm2"),
        hardware={
            "device": "cpu",
            "gpu_name": None,
            "gpus": 0,
            "compute_capability": None,
            "cores": 2,
            "cpu_flags": "",
        },
        inputs={"a.jsonl": "v1", "b.jsonl": "v1"},
    ) as left:
        if not finish:
            return
        told = summary(
            run_id=run,
            exit_code=exit_code,
            totals=totals,
            bill=None if parts is None else bill(parts, PRICE, tokens_of(totals), device_name=None),
            **changes,
        )
        left.finish(told, finished_at=BEGAN + 330.0, current=output.view.current(), committed=receipts)


def costs_of(run: str, parts: Parts) -> list[Cost]:
    """The lines of the table of costs that these parts make."""
    return [
        Cost(
            run=run,
            job="classify",
            model="smollm2",
            day=date(2026, 11, 1),
            part=name,
            device="cpu",
            device_ns=ns,
            usd=round(dollars_of(ns, PRICE), 18),
            usd_per_hour=PRICE.usd_per_hour,
            price="on_demand",
            price_source=PRICE.source,
            price_date=PRICE.date,
            booked_at=BEGAN,
        )
        for name, ns in parts.known()
    ]


def two_units(sink: Path | str, run: str) -> list[Receipt]:
    """200 rows: 49 good and 147 bad, 3 too long and 1 that broke the contract; 40,000 prompt tokens, 10,000 cached."""
    tokens: dict[str, Any] = {
        "prompt_tokens": 20_000,
        "cached_tokens": 5_000,
        "output_tokens": 500,
        "device_seconds": 108.5,
    }
    first = unit(sink, run, 0, ["good"] * 49 + ["bad"] * 51, gold_rows=100, gold_correct=80, **tokens)
    too_long = ("too_long", "9,000 tokens, at most 8,192", "a long text")
    dead = [too_long, too_long, too_long, ("contract", "not one of the labels", "an odd text")]
    more: dict[str, Any] = {"gold_rows": 96, "gold_correct": 67, "finished_s": 300.0}
    return [first, unit(sink, run, 100, ["bad"] * 96, dead=dead, **tokens, **more)]
