"""Measures: what the data rows of a unit say, counted. Exact, whoever answered them, and a few passes over columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.job.contract import OutputContract
from pipelines.sink.measures import CONFIDENCE_BINS, MILLION, MOST_VALUES, OUTSIDE, Confident, Counts
from pipelines.stages.refusals import refused


def measured(data: pa.Table, contract: OutputContract, gold: str | None) -> Counts:
    """The counts of a unit's data rows. `gold`: the input column with the expected label; None: there is none."""
    sets = closed_sets(contract)
    labels, others = {}, {}
    for column, values in sets.items():
        counted, rest = _values(data[column], values[:MOST_VALUES])
        labels[column] = counted
        if rest:
            others[column] = rest
    kind = contract.output.kind
    gold_of = None if gold is None or kind != "labels" else pc.cast(data[gold], pa.string())
    return Counts(
        rows=data.num_rows,
        labels=labels,
        others=others,
        prompt_tokens=_lengths(data["_prompt_tokens"]),
        output_tokens=_lengths(data["_output_tokens"]),
        confidence=_confidence(data, gold_of) if kind == "labels" else (),
        confusion={} if gold_of is None else _confusion(gold_of, data["label"], contract.output.labels[:MOST_VALUES]),
        refusals=_refusals(data, contract),
    )


def closed_sets(contract: OutputContract) -> Mapping[str, Sequence[str]]:
    """Columns of the output whose values the contract lists, and these values as text, in its order."""
    if contract.output.kind == "labels":
        return {"label": contract.output.labels}
    if contract.output.kind == "text":
        return {}
    sets: dict[str, Sequence[str]] = {}
    for name, part in ((contract.output.json_schema or {}).get("properties") or {}).items():
        if not isinstance(part, dict) or name not in contract.schema.names:
            continue
        kind = contract.schema.field(name).type
        if isinstance(part.get("enum"), list):
            listed = pa.array([value for value in part["enum"] if value is not None], kind)
            sets[name] = pc.cast(listed, pa.string()).to_pylist()
        elif pa.types.is_boolean(kind):
            sets[name] = ("true", "false")
    return sets


def free_text(contract: OutputContract) -> tuple[str, ...]:
    """Columns of the output that hold text of which the contract does not list the values."""
    if contract.output.kind == "labels":
        return ()
    closed = closed_sets(contract)
    return tuple(one.name for one in contract.schema if pa.types.is_string(one.type) and one.name not in closed)


def _values(column: pa.ChunkedArray, values: Sequence[str]) -> tuple[dict[str, int], int]:
    """Rows with each of these values, zero where there is none, and rows with any other or none."""
    found = pc.value_counts(pc.cast(column, pa.string())).to_pylist()
    counts = {one["values"]: one["counts"] for one in found}
    listed = {value: counts.get(value, 0) for value in values}
    return listed, len(column) - sum(listed.values())


def _lengths(tokens: pa.ChunkedArray) -> tuple[int, ...]:
    lengths: npt.NDArray[np.int64] = pc.fill_null(tokens, 0).to_numpy()
    _, bits = np.frexp(lengths.astype(np.float64))  # of whole numbers: how many bits they take
    return tuple(np.bincount(bits).tolist())


def _confidence(data: pa.Table, gold: pa.ChunkedArray | None) -> tuple[Confident, ...]:
    known = pc.is_valid(data["confidence"]).to_numpy()
    if not known.any():
        return ()
    sure: npt.NDArray[np.float64] = pc.fill_null(data["confidence"], 0.0).to_numpy()
    places = np.minimum((sure * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    millionths = np.rint(sure * MILLION).astype(np.int64)
    nobody = np.zeros(len(known), np.bool_)
    expected = nobody if gold is None else pc.is_valid(gold).to_numpy()
    correct = nobody if gold is None else pc.fill_null(pc.equal(gold, data["label"]), False).to_numpy()

    def by_bin(which: npt.NDArray[np.bool_], weights: npt.NDArray[np.int64] | None = None) -> list[int]:
        if weights is None:
            return np.bincount(places[which], minlength=CONFIDENCE_BINS).tolist()  # type: ignore[no-any-return]
        return [int(weights[which & (places == place)].sum()) for place in range(CONFIDENCE_BINS)]

    with_gold = known & expected
    columns = (
        by_bin(known),
        by_bin(known, millionths),
        by_bin(with_gold),
        by_bin(with_gold, millionths),
        by_bin(with_gold & correct),
    )
    return tuple(Confident(*values) for values in zip(*columns, strict=True))


def _confusion(gold: pa.ChunkedArray, label: pa.ChunkedArray, labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """How often each label was answered where each was expected."""
    known = pa.array(labels, pa.string())
    both = pa.table({"gold": gold, "label": label}).filter(pc.is_valid(gold))
    named = {name: pc.if_else(pc.is_in(both[name], known), both[name], OUTSIDE) for name in ("gold", "label")}
    pairs: list[dict[str, Any]] = (
        pa.table({**named, "rows": pa.repeat(1, both.num_rows)})
        .group_by(["gold", "label"])
        .aggregate([("rows", "sum")])
        .to_pylist()
    )
    found: dict[str, dict[str, int]] = {}
    for pair in sorted(pairs, key=lambda one: (one["gold"], one["label"])):
        found.setdefault(pair["gold"], {})[pair["label"]] = pair["rows_sum"]
    return found


def _refusals(data: pa.Table, contract: OutputContract) -> int | None:
    """Rows in which a column of free text begins like a refusal; None: there is no such column."""
    free = free_text(contract)
    if not free:
        return None
    said = pa.array(np.zeros(data.num_rows, np.bool_))
    for name in free:
        said = pc.or_(said, pc.fill_null(refused(data[name]), False))
    return pc.sum(said).as_py() or 0
