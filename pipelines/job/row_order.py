"""The order of a job's fields in each row's prompt: rules that are found on some rows, and that go by the row alone.

After GGR (Liu et al., "Optimizing LLM Queries in Relational Data Analytics Workloads", MLSys 2025): of the values that
come back, the one that spares most goes first in the rows that have it, and so on in those and in the others. There the
whole table is reordered; here what was found on a sample is kept as rules, so that a row has one prompt wherever and
whenever it is asked, whichever rows are beside it. A rule names its value by a hash: no text of a row is in it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pipelines.job.field_order import best_order
from pipelines.job.filters import RowError, text_of

FEWEST_ROWS = 8  # of a sample that a rule is for: of fewer, what was drawn by chance looks like what comes back
LEAST_SHARE = 0.01  # of the fields' tokens that a rule has to spare, over the one order for all rows that it is for
EXACT_FIELDS = 4  # with more, the order of the rows of a rule is found field by field


@dataclass(frozen=True, slots=True)
class Rule:
    """Rows whose `field` prints a certain value begin with it; which fields follow, and in which order others stand."""

    field: str
    value: str  # the hash of what the field prints
    then: "Rules"
    rest: "Rules"


Rules = Rule | tuple[str, ...]  # fields in their order, where there is nothing to ask any more


@dataclass(frozen=True, slots=True)
class Found:
    """Rules, and what the prompts of these rows share by them, sorted: of the tokens of all fields, 0..1."""

    rules: Rules
    shared: float
    shared_fixed: float  # in the best order that is the same for all rows


def in_order(rules: Rules, row: Mapping[str, object]) -> tuple[str, ...]:
    """The fields of this row as its prompt prints them."""
    front: list[str] = []
    values: dict[str, str] = {}
    while isinstance(rules, Rule):
        name = rules.field
        if name not in values:
            values[name] = _hash(printed(name, row[name]))
        if values[name] == rules.value:
            front.append(name)
            rules = rules.then
        else:
            rules = rules.rest
    return (*front, *rules)


def printed(name: str, value: object) -> str:
    """A field as `{{ fields }}` prints it, but for its braces; nothing where it cannot be printed."""
    try:
        return text_of({name: value})[1:-1] + ", "
    except RowError:
        return ""


def best_rules(names: Sequence[str], columns: Sequence[Sequence[str]], tokens: npt.NDArray[np.int64]) -> Found:
    """The rules that spare more than the best order for all rows; that order alone, where none does.

    `columns`: what each field prints in each of some rows; `tokens`: how many that are, a line for each row and a
    column for each field. All is counted in these rows: in a larger corpus values that are single here may come back,
    and an estimate of how many do would let ids look like them.
    """
    table = _Table(tuple(names), np.array(columns, object), tokens)
    fixed = best_order(columns, tokens, rows=len(tokens))
    total = float(tokens.sum())
    if not total:
        return Found(tuple(names), 0.0, 0.0)
    found = _found(table, np.arange(tokens.shape[0]), tuple(range(len(names))), LEAST_SHARE * total)
    order = tuple(names[place] for place in fixed.order)
    if not isinstance(found.rules, Rule) or found.spared < (fixed.shared + LEAST_SHARE) * total:
        return Found(order, fixed.shared, fixed.shared)
    return Found(found.rules, found.spared / total, fixed.shared)


@dataclass(frozen=True, slots=True)
class _Table:
    names: tuple[str, ...]
    columns: npt.NDArray[np.object_]  # a line for each field
    tokens: npt.NDArray[np.int64]  # a line for each row


@dataclass(frozen=True, slots=True)
class _Spared:
    rules: Rules
    spared: float  # tokens


def _found(table: _Table, lines: npt.NDArray[np.int64], fields: tuple[int, ...], least: float) -> _Spared:
    """The best rules for these rows and fields."""
    tokens = table.tokens[lines][:, list(fields)]
    columns = [cast("Sequence[str]", table.columns[field, lines]) for field in fields]
    best = best_order(columns, tokens, rows=len(lines), most_exact=EXACT_FIELDS)
    alone = _Spared(tuple(table.names[fields[place]] for place in best.order), best.shared * float(tokens.sum()))
    field, having, worth = _worth_most(table, lines, fields)
    if len(fields) < 2 or worth < least or having.all():
        return alone
    then = _found(table, lines[having], tuple(each for each in fields if each != field), least)
    rest = _found(table, lines[~having], fields, least)
    spared = worth + then.spared + rest.spared
    if spared < alone.spared + least:
        return alone
    value = _hash(str(table.columns[field, lines[having][0]]))
    return _Spared(Rule(table.names[field], value, then.rules, rest.rules), spared)


def _worth_most(
    table: _Table, lines: npt.NDArray[np.int64], fields: tuple[int, ...]
) -> tuple[int, npt.NDArray[np.bool_], float]:
    """The field and the rows of the value that spares most if it stands first, and how many tokens that are."""
    best = (fields[0], np.zeros(len(lines), np.bool_), 0.0)
    for field in fields:
        column = table.columns[field, lines]
        _, first, which, counts = np.unique(column, return_index=True, return_inverse=True, return_counts=True)
        worth = table.tokens[lines[first], field] * (counts - 1) * (counts >= FEWEST_ROWS)
        if len(worth) and worth.max() > best[2]:
            most = int(worth.argmax())
            best = (field, which == most, float(worth[most]))
    return best


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


# ------------------------------------------------------------------------------------------------- as JSON


def to_json(rules: Rules) -> Any:
    """The rules as plain values."""
    if not isinstance(rules, Rule):
        return list(rules)
    then, rest = to_json(rules.then), to_json(rules.rest)
    return {"field": rules.field, "value": rules.value, "then": then, "rest": rest}


def of_json(value: Any) -> Rules:
    """The rules that `to_json` made this of."""
    if isinstance(value, list):
        return tuple(value)
    return Rule(value["field"], value["value"], of_json(value["then"]), of_json(value["rest"]))


def canonical(rules: Rules) -> str:
    """The rules as one text, the same for the same rules."""
    return json.dumps(to_json(rules), ensure_ascii=True, separators=(",", ":"))
