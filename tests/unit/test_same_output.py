"""Whatever the order, dedup, window, cuts and deaths of engines: the output is that of asking row by row.

All is real but Ray and the engine: reading, prompts, hosts with their windows and their book, parsing, files.
"""

import asyncio
import random
import tempfile
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.book import Book
from actors.control import Switch
from actors.engine import Constraint, EngineConfig, SimulatedFaults
from actors.exchange import from_ipc, to_ipc
from actors.host import EngineHost
from actors.window import Window
from pipelines.changes import Reason, ShardWork
from pipelines.config import MessageConfig, ModelConfig, SourceConfig
from pipelines.flow_stages import parse_and_write, prepared_units, read_and_prepare
from pipelines.job.model import ModelFiles, resolve
from pipelines.sink.receipt import Receipt
from pipelines.source.shards import list_source
from pipelines.source.units import UnitSize
from pipelines.stages.carry import CarrySpec
from pipelines.stages.ordered import Ordered, answers_at, keep_answers, keyed, page_of, unanswered, written
from pipelines.stages.parcel import Parcel
from pipelines.stages.parse import data_schema, errors_schema
from pipelines.stages.prepare import PrepareSpec
from pipelines.stages.read import ReadSpec
from pipelines.stages.write import WriteSpec
from tests.in_process import ANSWER_TOKENS, CONTRACT, INPUT, SAMPLING, answer_of
from tests.unit.job.models import bytes_bpe

FINGERPRINT = "0" * 64
BLOCK = 4  # tokens
TEXTS = [
    None,
    "",
    *(f"{beginning} {end}" for beginning in ("once upon a time there", "dear sir", "a") for end in "xyz"),
]


class Shelf:
    """A real book, without an actor around it."""

    def __init__(self) -> None:
        self.book = Book()

    async def note(self, unit: str, page: pa.Table) -> bool:
        await asyncio.sleep(0)
        return self.book.note(unit, to_ipc(page))

    async def find(self, keys: Any) -> dict[str, pa.Table]:
        found = {unit: from_ipc(page) for unit, page in self.book.find(keys).items()}
        await asyncio.sleep(0)
        return found


class Never:
    def draining(self) -> bool:
        return False

    def begins(self, name: str) -> None: ...

    def ends(self, name: str) -> None: ...


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = bytes_bpe(tmp_path_factory.mktemp("same") / "model")
    return resolve(ModelConfig(name="mine", path=str(folder)), cache=folder.parent / "cache")


windows = st.builds(
    Window,
    mode=st.sampled_from(["continuous", "dynamic", "static"]),
    lookahead=st.sampled_from([0.0, 0.5, 2.0]),
    batch_rows=st.integers(1, 5),
    wait_ms=st.just(1.0),
    ordered=st.booleans(),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.lists(st.lists(st.sampled_from(TEXTS), max_size=25), min_size=1, max_size=3),
    unit_rows=st.integers(1, 9),
    window=windows,
    max_num_seqs=st.integers(1, 6),
    units_in_flight=st.integers(1, 4),
    hosts=st.integers(1, 2),
    # each asked; once for each key; all prompts sorted and asked first; and then by another run
    way=st.sampled_from(["each", "dedup", "corpus", "killed"]),
    die_every=st.sampled_from([None, 11]),
    seed=st.integers(0, 99),
)
def test_the_output_is_that_of_asking_row_by_row(
    model: ModelFiles,
    shards: list[list[str | None]],
    unit_rows: int,
    window: Window,
    max_num_seqs: int,
    units_in_flight: int,
    hosts: int,
    way: str,
    die_every: int | None,
    seed: int,
) -> None:
    faults = SimulatedFaults(output_tokens=ANSWER_TOKENS, die_every_rows=die_every, latency_s=0.0005)
    engine = EngineConfig(
        kind="simulated", model="none", model_name="none", max_num_seqs=max_num_seqs, simulated=faults
    )
    shelf = Shelf() if way != "each" else None
    expected = {
        (f"{number}.parquet", row): answer_of(model, FINGERPRINT, text) if text else "empty"
        for number, texts in enumerate(shards)
        for row, text in enumerate(texts)
    }

    with tempfile.TemporaryDirectory() as folder:
        flow = _Flow(Path(folder), model, shards, unit_rows)
        blocks = list(read_and_prepare(flow.todo, flow.read, flow.prepare, flow.carry, cast(Switch, Never())))
        random.Random(seed).shuffle(blocks)
        sorted_first = flow.pieces(unit_rows) if way in ("corpus", "killed") else []

        ended: list[int] = []  # rows that came out of engines, by phase

        async def answered(units: list[pa.Table]) -> list[pa.Table]:
            pool = [
                EngineHost(
                    engine=engine,
                    sampling=SAMPLING,
                    constraint=Constraint(),
                    window=window,
                    units_in_flight=units_in_flight,
                    notes=shelf,
                    max_restarts=1000,
                    max_restarts_per_hour=1000,
                )
                for _ in range(hosts)
            ]
            said = await asyncio.gather(*(pool[number % hosts](unit) for number, unit in enumerate(units)))
            ended.append(sum(host.stats().rows_ended for host in pool))
            for host in pool:
                host.close()
            return list(said)

        if shelf and sorted_first:
            for piece in asyncio.run(answered(sorted_first)):
                keep_answers(Parcel.from_block(piece), flow.sorted_at)
            if way == "killed":  # another run begins with the files that this one left
                shelf.book = Book()
                for uri in answers_at(flow.sorted_at):
                    assert shelf.book.note(uri, to_ipc(page_of(uri)))
        receipts = [flow.written(block) for block in asyncio.run(answered(blocks))]
        seen = flow.output()

    assert sum(receipt.rows_in for receipt in receipts) == len(expected)
    assert len(seen) == len(expected)  # no row twice
    assert dict(seen) == expected
    if shelf and (hosts == 1 or sorted_first) and die_every is None:
        asked = sum(receipt.rows_ok - receipt.rows_shared for receipt in receipts)
        assert asked == len({text for texts in shards for text in texts if text})
    if sorted_first and die_every is None:
        assert ended[-1] == 0  # all rows find their answer


class _Flow:
    """A corpus and what the stages are told of it."""

    def __init__(self, folder: Path, model: ModelFiles, shards: list[list[str | None]], unit_rows: int) -> None:
        source, self.sink = folder / "in", folder / "out"
        source.mkdir()
        self.sorted_at = str(self.sink / "_ordered" / "sort")
        for number, texts in enumerate(shards):
            rows = pa.Table.from_pylist([{"version": 0, "text": text} for text in texts], INPUT)
            pq.write_table(rows, source / f"{number}.parquet")
        listed = list_source(SourceConfig(uri=str(source))).shards
        self.todo: dict[str, Any] = {"item": [ShardWork(shard=s, reason=Reason.NEW, limit=None) for s in listed]}
        self.read = ReadSpec(schema=INPUT, size=UnitSize(rows=unit_rows, bytes=2**20), max_row_bytes=2**20)
        self.carry = CarrySpec(sink_uri=str(self.sink), outputs=tuple(CONTRACT.schema.names), retry=())
        self.prepare = PrepareSpec(
            job="mine",
            messages=(MessageConfig(role="user", content="{{ text }}"),),
            model=model,
            max_model_len=512,
            sampling=SAMPLING,
            fingerprint=FINGERPRINT,
        )
        self.write = WriteSpec(
            sink_uri=str(self.sink),
            run="run",
            fingerprint=FINGERPRINT,
            data_schema=data_schema(INPUT, CONTRACT),
            errors_schema=errors_schema(INPUT),
        )

    def pieces(self, unit_rows: int) -> list[pa.Table]:
        """The prompts of all shards, sorted, as they go to the engines before any shard is read."""
        keyed_units = [
            keyed(parcel, BLOCK)
            for work in self.todo["item"]
            for parcel in prepared_units(work, self.read, self.prepare, self.carry)
        ]
        rows = pa.concat_tables(keyed_units).sort_by("_order")
        found = written(rows, self.sorted_at, block=BLOCK, unit_rows=unit_rows, answer_tokens=ANSWER_TOKENS)
        ordered = Ordered(uri=self.sorted_at, pieces=tuple(piece for _, piece in found))
        parcels = [unanswered(ordered, piece) for piece in ordered.pieces]
        return [parcel.to_block() for parcel in parcels if parcel]

    def written(self, block: pa.Table) -> Receipt:
        written = parse_and_write(block, CONTRACT, "simulated", None, self.write, cast(Switch, Never()))
        (text,) = written["receipt"].to_pylist()
        return Receipt.from_json(text)

    def output(self) -> list[tuple[tuple[str, int], str]]:
        """Place and answer, or type of error, of all rows in the files."""
        return [
            ((row["_shard"], row["_row"]), row[column])
            for table, column in (("data", "answer"), ("errors", "_error_type"))
            for file in (self.sink / table).rglob("*.parquet")
            for row in pq.ParquetFile(file).read().to_pylist()
        ]
