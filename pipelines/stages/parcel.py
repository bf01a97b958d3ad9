"""Parcel: a unit as it travels through Ray Data, one row of its table, so that it stays one block from read to write.

Tables that a task yields are merged and cut by size; a row is not. So the unit's tables stand in that row as
Arrow IPC values beside its descriptor.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from actors.exchange import from_ipc, to_ipc
from pipelines.sink.receipt import Redo
from pipelines.source.units import Unit
from pipelines.stages.carry import Carried


def place_of(shard: str) -> str:
    """A shard's path as short as rows can carry it: 20 hex digits."""
    return hashlib.blake2b(shard.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


_TIMES = ("read_at", "read_seconds", "prepare_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A unit with its input rows and, as far as it has come, its prompts and answers, line by line the same rows."""

    unit: Unit
    rows: pa.Table  # the input's columns in the run's schema, then `_row`, `_error_type`, `_error` (null: readable)
    prompts: pa.Table | None = None  # actors.exchange.PROMPTS
    answers: pa.Table | None = None  # actors.exchange.ANSWERS; None after the engines: handed back unanswered
    redo: Redo | None = None  # the unit that this one is to replace
    carried: Carried | None = None  # what the output says already of some of the rows
    read_at: float = 0.0  # when its rows had been read, in seconds since the epoch
    left_out: Mapping[str, int] = field(default_factory=dict)  # columns that the run's schema lacks, and rows with them
    read_seconds: float = 0.0  # that it took
    prepare_seconds: float = 0.0
    ordered: str | None = None  # no unit of a shard but a piece of the sorted prompts, of this name

    def to_block(self) -> pa.Table:
        """The parcel as a table of one row."""
        columns = {
            "unit": pa.array([json.dumps(asdict(self.unit))], pa.string()),
            "redo": pa.array([self.redo and json.dumps(asdict(self.redo))], pa.string()),
            **{name: pa.array([getattr(self, name)], pa.float64()) for name in _TIMES},
            "left_out": pa.array([json.dumps(dict(self.left_out))], pa.string()),
            "place": pa.array([place_of(self.unit.shard)], pa.string()),
            "start": pa.array([self.unit.start], pa.int64()),
            "ordered": pa.array([self.ordered], pa.string()),
        }
        tables = {
            "rows": self.rows,
            "prompts": self.prompts,
            "answers": self.answers,
            "carried_data": self.carried and self.carried.data,
            "carried_dead": self.carried and self.carried.dead,
        }
        for name, table in tables.items():
            columns[name] = pa.array([None if table is None else to_ipc(table)], pa.large_binary())
        return pa.table(columns)

    @classmethod
    def from_block(cls, block: pa.Table) -> "Parcel":
        """The parcel in a table of one row."""
        tables = {}
        for name in ("rows", "prompts", "answers", "carried_data", "carried_dead"):
            value = block[name][0]
            tables[name] = from_ipc(value.as_buffer()) if value.is_valid else None
        data, dead = tables.pop("carried_data"), tables.pop("carried_dead")
        return cls(
            unit=Unit(**json.loads(block["unit"][0].as_py())),
            redo=None if block["redo"][0].as_py() is None else Redo(**json.loads(block["redo"][0].as_py())),
            carried=None if data is None else Carried(data=data, dead=dead),
            read_at=block["read_at"][0].as_py(),
            left_out=json.loads(block["left_out"][0].as_py()),
            read_seconds=block["read_seconds"][0].as_py(),
            prepare_seconds=block["prepare_seconds"][0].as_py(),
            ordered=block["ordered"][0].as_py(),
            **tables,
        )
