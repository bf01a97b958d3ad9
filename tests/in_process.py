"""Runs in one process, for tests of what survives what: the way of pipelines/dataflow.py, one unit after the other.

All but the engine and Ray is real: listing, reading, prompts, carrying over, parsing, files, ledger, tables. A test may
stop a run between any two of its steps, or in the midst of one, and look at what is there.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa

from actors.control import Switch
from actors.engine import Answer, Prompt, Sampling
from actors.exchange import ANSWERS
from actors.simulated import answer_by_hash
from pipelines import changes
from pipelines.changes import Changes
from pipelines.config import MessageConfig, OutputConfig, SourceConfig
from pipelines.flow_stages import parse_and_write, read_and_prepare
from pipelines.job.chat import open_chat
from pipelines.job.contract import OutputContract
from pipelines.job.fingerprint import row_key
from pipelines.job.model import ModelFiles
from pipelines.sink.ledger import Ledger
from pipelines.sink.output import Output
from pipelines.sink.receipt import Receipt
from pipelines.source.shards import list_source
from pipelines.source.units import UnitSize
from pipelines.stages.carry import CarrySpec
from pipelines.stages.parcel import Parcel
from pipelines.stages.parse import data_schema, errors_schema
from pipelines.stages.prepare import PrepareSpec
from pipelines.stages.read import ReadSpec, apply_limit
from pipelines.stages.write import WriteSpec

INPUT = pa.schema([("version", pa.int64()), ("text", pa.string())])
CONTRACT = OutputContract.of(OutputConfig(kind="text", column="answer"), job="mine")
SAMPLING = Sampling(max_tokens=8)
ANSWER_TOKENS = 6
MAX_ROW_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the runs of a test read and write, and the model whose tokenizer they use."""

    source: Path
    sink: str
    model: ModelFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one run is told."""

    fingerprint: str
    unit_rows: int = 3
    limit: int | None = None
    retry: bool | tuple[str, ...] = False
    retain_hours: float = 0.0
    gate: bool = False
    identity: Literal["stat", "content"] = "stat"  # of a shard
    run: str = "run"
    answer_tokens: int = ANSWER_TOKENS  # how long answers are
    refused: Mapping[str, str] = field(
        default_factory=dict
    )  # first word of a text: error type that the engine gives it


@dataclass(frozen=True, slots=True)
class Asked:
    """A row that an engine was asked for."""

    shard: str
    row: int
    key: str


class Session:
    """One run, step by step: `open`, `commit` of what `units` writes, `remove`, `limit_reached`, `close`."""

    def __init__(self, place: Place, order: Order) -> None:
        self.place, self.order = place, order
        self.asked: list[Asked] = []
        self.written: list[Receipt] = []
        listing = list_source(SourceConfig(uri=str(place.source), identity=order.identity))
        self.shards = tuple(apply_limit(listing.shards, order.limit, max_row_bytes=MAX_ROW_BYTES))
        self._elsewhere = {shard.path for shard in listing.shards} | listing.left_out
        self._retry: frozenset[str] = frozenset()
        if order.retry is not False:
            before = Ledger.open(place.sink, create=False).committed().receipts()
            types = None if order.retry is True else order.retry
            self._retry = changes.failed(before, fingerprint=order.fingerprint, types=types)
        self._output: Output | None = None

    @property
    def output(self) -> Output:
        """Of this run; an error before `open`."""
        if self._output is None:
            raise RuntimeError("open first")
        return self._output

    @property
    def opened(self) -> bool:
        """Whether this run became the writer."""
        return self._output is not None

    def open(self) -> None:
        """Become the writer."""
        self._output = Output.open(
            self.place.sink,
            data_schema=data_schema(INPUT, CONTRACT),
            errors_schema=errors_schema(INPUT),
            fingerprint=self.order.fingerprint,
            identities={shard.path: shard.identity for shard, _ in self.shards},
            retain_hours=self.order.retain_hours,
            run=self.order.run,
            gate=self.order.gate,
        )
        self._retry |= self._output.lost

    def changes(self) -> Changes:
        """What is left to do."""
        return changes.since(
            self.output.view.receipts(),
            self.shards,
            fingerprint=self.order.fingerprint,
            retry=self._retry,
            elsewhere=self._elsewhere,
        )

    def remove(self) -> None:
        """Take away what the output has of shards that are gone."""
        self.output.remove(self.changes().removed, fingerprint=self.order.fingerprint, run="run")

    def limit_reached(self) -> None:
        """Let readers see a shard that was done as far as the limit goes."""
        for shard, limit in self.shards:
            if limit is not None:
                self.output.limit_reached(
                    shard.path, shard.identity, limit, fingerprint=self.order.fingerprint, run="run"
                )

    def units(self) -> Iterator[Receipt]:
        """Do what is left, and give each unit's receipt once its files are written; nothing is committed."""
        order, place = self.order, self.place
        read = ReadSpec(
            schema=INPUT, size=UnitSize(rows=order.unit_rows, bytes=2**20), max_row_bytes=MAX_ROW_BYTES, columns=None
        )
        carry = CarrySpec(
            sink_uri=place.sink,
            outputs=tuple(CONTRACT.schema.names),
            retry=None if order.retry is True else order.retry or (),
        )
        write = WriteSpec(
            sink_uri=place.sink,
            run=order.run,
            fingerprint=order.fingerprint,
            data_schema=data_schema(INPUT, CONTRACT),
            errors_schema=errors_schema(INPUT),
        )
        todo = {"item": list(self.changes().todo)}
        switch = cast(Switch, _Never())
        for block in read_and_prepare(todo, read, _prepare(place.model, order.fingerprint), carry, switch):
            answered = self._answered(Parcel.from_block(block)).to_block()
            for text in parse_and_write(answered, CONTRACT, "simulated", None, write, switch)["receipt"].to_pylist():
                self.written.append(Receipt.from_json(text))
                yield self.written[-1]

    def _answered(self, parcel: Parcel) -> Parcel:
        """The parcel with what the engine says to its rows."""
        assert parcel.prompts is not None
        answers: list[dict[str, Any]] = []
        for line, (text, row) in enumerate(
            zip(parcel.rows["text"].to_pylist(), parcel.prompts.to_pylist(), strict=True)
        ):
            values: dict[str, Any] = {
                "_shared": False,
                "_attempts": 0,
                "_error_type": row["_error_type"],
                "_error": row["_error"],
            }
            if row["_prompt"] is not None:
                self.asked.append(Asked(parcel.unit.shard, parcel.unit.start + line, row["_key"]))
                values |= {"_attempts": 1, "_device_seconds": 0.1}
                refusal = self.order.refused.get(text.split()[0])
                values |= (
                    {"_error_type": refusal, "_error": "refused"}
                    if refusal
                    else _said(row["_key"], self.order.answer_tokens)
                )
            answers.append(values)
        return replace(parcel, answers=pa.Table.from_pylist(answers, ANSWERS))

    def close(self) -> None:
        """Leave the output at rest."""
        self.output.close(retain_hours=self.order.retain_hours)


def run(session: Session, dice: random.Random, look: Callable[[], None] = lambda: None) -> None:
    """A whole run: units end in any order, and are committed in groups of any size. `look` is called in between."""
    session.open()
    look()
    pending: list[Receipt] = []
    for receipt in session.units():
        pending.append(receipt)
        if dice.random() < 0.4:
            ended = dice.sample(pending, dice.randint(1, len(pending)))
            session.output.commit(ended)
            pending = [one for one in pending if one not in ended]
            look()
    dice.shuffle(pending)
    session.output.commit(pending)
    session.remove()
    session.limit_reached()
    session.close()


class _Never:
    def draining(self) -> bool:
        return False

    def begins(self, name: str) -> None: ...

    def ends(self, name: str) -> None: ...


def _prepare(model: ModelFiles, fingerprint: str) -> PrepareSpec:
    return PrepareSpec(
        job="mine",
        messages=(MessageConfig(role="user", content="{{ text }}"),),
        model=model,
        max_model_len=512,
        sampling=SAMPLING,
        fingerprint=fingerprint,
    )


def _said(key: str, tokens: int) -> dict[str, Any]:
    answer = _answer(key, tokens)
    counts = ("_prompt_tokens", "_cached_tokens", "_output_tokens")
    return {
        "_answer": answer.text,
        "_finish_reason": answer.finish_reason,
        **{name: getattr(answer, name[1:]) for name in counts},
    }


def _answer(key: str, tokens: int = ANSWER_TOKENS) -> Answer:
    return answer_by_hash(Prompt(key=key, token_ids=(1, 2), sampling=SAMPLING), tokens)


def answer_of(model: ModelFiles, fingerprint: str, text: str) -> str:
    """What a row with this text must be answered."""
    return _answer(_key(model.tokenizer_folder, model.vocab_size, fingerprint, text)).text


@lru_cache(maxsize=4096)
def _key(tokenizer_folder: str, vocab_size: int, fingerprint: str, text: str) -> str:
    return row_key(fingerprint, open_chat(tokenizer_folder, vocab_size).tokens([("user", text)]))
