"""Answers of a unit to its data rows and its dead letters, in the columns of the contract."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import UserError
from pipelines.job.contract import OutputContract, Position, Verdict
from pipelines.stages.carry import Carried

INTERNAL = ("_row", "_error_type", "_error")  # columns that travel behind the input's
AFTER_ANSWER = (
    ("_shard", pa.string()),
    ("_row", pa.int64()),
    ("_key", pa.string()),
    ("_model", pa.string()),
    ("_prompt_tokens", pa.int32()),
    ("_cached_tokens", pa.int32()),
    ("_output_tokens", pa.int32()),
    ("_finish_reason", pa.string()),
)
AFTER_ERROR = (
    ("_shard", pa.string()),
    ("_row", pa.int64()),
    ("_error_type", pa.string()),
    ("_error", pa.string()),
    ("_attempts", pa.int32()),
    ("_first_tried", pa.timestamp("us", "UTC")),
    ("_last_tried", pa.timestamp("us", "UTC")),
)
MARKS = ("_cut_chars", "_asked_again")  # how far up its ladder a row went: columns of prompts, and of answers
RESERVED = tuple(dict.fromkeys((*(name for name, _ in (*AFTER_ANSWER, *AFTER_ERROR)), *MARKS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A unit's rows, each in exactly one of the two tables, in row order."""

    data: pa.Table
    dead: pa.Table


def data_schema(input_schema: pa.Schema, contract: OutputContract, marks: Sequence[pa.Field] = ()) -> pa.Schema:
    """Columns of the answers: the input's, the contract's, where a row came from and what it took, `ladder.marks`."""
    return pa.schema([*input_schema, *contract.schema, *(pa.field(*column) for column in AFTER_ANSWER), *marks])


def errors_schema(input_schema: pa.Schema) -> pa.Schema:
    """Columns of the dead letters: the input's, then where a row came from and why it has no answer."""
    return pa.schema([*input_schema, *(pa.field(*column) for column in AFTER_ERROR)])


def check_output_columns(input_schema: pa.Schema, contract: OutputContract, *, job: str) -> None:
    """See that no two columns of the output have one name. Delta tells names apart by more than their case.

    Raises:
        UserError: names the column and the ways out.
    """
    taken: dict[str, str] = {}
    for name in RESERVED:
        taken[name.lower()] = "a column that every output has"
    for name in contract.schema.names:
        if (owner := taken.get(name.lower())) is not None:
            raise UserError(f"job {job} writes a column {name!r}, but {owner} has that name; rename it in its output")
        taken[name.lower()] = f"the output of job {job}"
    for name in input_schema.names:
        if (owner := taken.get(name.lower())) is not None:
            ours = name.startswith("_") or contract.output.kind == "labels"
            raise UserError(
                f"the input has a column {name!r}, but {owner} has that name. Leave it out with source.columns=[…], "
                + ("or rename it in the input" if ours else f"or rename the output column in conf/job/{job}.yaml")
            )
        taken[name.lower()] = "another column of the input"


def parse(
    rows: pa.Table,
    prompts: pa.Table,
    answers: pa.Table,
    *,
    shard: str,
    contract: OutputContract,
    model_name: str,
    at: float,
    carried: Carried | None = None,
) -> Parsed:
    """Split an answered unit into its data rows and its dead letters.

    The three tables are line by line the same rows: the input with `INTERNAL`, `PROMPTS`, `ANSWERS`. What is `carried`
    stands as it stood; what was tried, was tried `at` (seconds since the epoch). Every row ends in exactly one of the
    two results, in row order.
    """
    known = _lines(answers.num_rows, carried)
    verdicts = list(_verdicts(answers, contract, known))
    good = np.fromiter((verdict.values is not None for verdict in verdicts), np.bool_, len(verdicts))
    source = rows.drop_columns(list(INTERNAL))
    lines = np.flatnonzero(good)
    columns = list(zip(*(verdict.values for verdict in verdicts if verdict.values is not None), strict=True))
    outputs = [pa.array(columns[place] if columns else [], field.type) for place, field in enumerate(contract.schema)]
    counts = ("_prompt_tokens", "_cached_tokens", "_output_tokens", "_finish_reason")
    marked = [(table, field) for table in (prompts, answers) for field in table.schema if field.name in MARKS]
    data = [
        *source.take(lines).columns,
        *outputs,
        pa.repeat(shard, len(lines)),
        rows["_row"].take(lines),
        prompts["_key"].take(lines),
        pa.repeat(model_name, len(lines)),
        *(answers[name].take(lines) for name in counts),
        *(table[field.name].take(lines) for table, field in marked),
    ]
    lost = np.flatnonzero(~good & ~known)
    dead = [
        *source.take(lost).columns,
        pa.repeat(shard, len(lost)),
        rows["_row"].take(lost),
        pa.array([verdicts[line].error_type for line in lost], pa.string()),
        pa.array([verdicts[line].error for line in lost], pa.string()),
        *_tries(lost, answers["_attempts"].to_numpy(), carried, round(at * 1e6)),
    ]
    marks = [field for _, field in marked]
    answered = pa.Table.from_arrays(data, schema=data_schema(source.schema, contract, marks))
    if carried is not None and carried.data.num_rows:
        stands = _as_it_stood(rows, source, shard, carried.data, answered.schema)
        answered = pa.concat_tables([answered, stands]).sort_by("_row")
    return Parsed(data=answered, dead=pa.Table.from_arrays(dead, schema=errors_schema(source.schema)))


def _lines(rows: int, carried: Carried | None) -> npt.NDArray[np.bool_]:
    """Which rows have an answer already."""
    known = np.zeros(rows, np.bool_)
    if carried is not None:
        known[carried.data["_line"].to_numpy()] = True
    return known


def _as_it_stood(rows: pa.Table, source: pa.Table, shard: str, carried: pa.Table, schema: pa.Schema) -> pa.Table:
    """Data rows of answers that are carried: the input as it is now, the rest as it was."""
    lines = carried["_line"]
    ours = {"_shard": pa.repeat(shard, len(lines)), "_row": rows["_row"].take(lines)}
    here = dict(zip(source.schema.names, source.take(lines).columns, strict=True))
    columns = [
        (here if field.name in here else ours if field.name in ours else carried)[field.name] for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _tries(
    lost: npt.NDArray[np.int64], attempts: npt.NDArray[np.int32], carried: Carried | None, now_us: int
) -> list[pa.Array]:
    """`_attempts`, `_first_tried` and `_last_tried` of dead letters, with those of earlier runs counted in."""
    before = {}
    if carried is not None and carried.dead is not None:
        before = {letter["_line"]: letter for letter in carried.dead.to_pylist()}
    counts, first, last = [], [], []
    for line in lost.tolist():
        earlier = before.get(line)
        counts.append(int(attempts[line]) + (earlier["_attempts"] if earlier else 0))
        first.append(earlier["_first_tried"] if earlier else now_us)
        last.append(earlier["_last_tried"] if earlier and not earlier["_again"] else now_us)
    kind = pa.timestamp("us", "UTC")
    return [pa.array(counts, pa.int32()), pa.array(first, kind), pa.array(last, kind)]


def _verdicts(answers: pa.Table, contract: OutputContract, known: npt.NDArray[np.bool_]) -> Iterator[Verdict]:
    """What each row of the answers says: its values, the engine's error, or a breach of the contract.

    One that is `known` was not asked, and has neither.
    """
    columns = ("_answer", "_finish_reason", "_token_logprobs", "_error_type", "_error")
    lists = [answers[name].to_pylist() for name in columns]
    positions = _positions(answers["_alternatives"]) if contract.alternatives else [[]] * answers.num_rows
    for asked, text, finish_reason, logprobs, error_type, error, alternatives in zip(
        ~known, *lists, positions, strict=True
    ):
        if not asked:
            yield Verdict()
        elif error_type is not None:
            yield Verdict(error_type=error_type, error=error or "no reason was given")
        elif text is None:
            yield Verdict(error_type="engine", error="the engine gave neither an answer nor an error")
        else:
            yield contract.read(text, finish_reason, logprobs or (), alternatives)


def _positions(column: pa.ChunkedArray) -> list[list[Position]]:
    """The alternatives of each row. As dicts, as `to_pylist` makes them, they would take most of the stage's time."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        return [[]] * len(array)
    inner = array.flatten()
    tokens = inner.flatten()
    pairs = list(zip(tokens.field("text").to_pylist(), tokens.field("logprob").to_pylist(), strict=True))
    cuts = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(inner), 0).to_numpy(False))]).tolist()
    positions: list[Position] = [pairs[start:stop] for start, stop in pairwise(cuts)]
    ends = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(array), 0).to_numpy(False))]).tolist()
    return [positions[start:stop] for start, stop in pairwise(ends)]
