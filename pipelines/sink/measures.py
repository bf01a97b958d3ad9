"""Counts: what the answered rows of a unit say, in whole numbers that add up. A column of its receipt, as JSON.

Everything here is a count over a set that is known before the run, so that sums over units, shards and runs are exact
and take no more room than those of one unit.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Self

MOST_VALUES = 100  # of a closed set, in its order, that are counted one by one; the rest of it is counted as one
CONFIDENCE_BINS = 15  # of equal width, 0..1: as many as in Guo et al. 2017
OUTSIDE = ""  # in `confusion`: a gold label that is none of the job's, or one beyond MOST_VALUES; no label is empty
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Confident:
    """Answers of one bin of confidence."""

    rows: int = 0
    millionths: int = 0  # sum of their confidences: whole, so that the order of adding changes nothing
    gold_rows: int = 0  # of the rows, those with a gold label
    gold_millionths: int = 0
    gold_correct: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(sum, zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[int, ...]:
        return self.rows, self.millionths, self.gold_rows, self.gold_millionths, self.gold_correct


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Of some answered rows, whoever answered them: carried and shared ones count as any other. Empty: of none.

    Lengths stand in bins: bin 0 holds the rows with no token, bin k those with 2^(k-1) to 2^k - 1.
    """

    rows: int = 0
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # column of a closed set: value: rows
    others: Mapping[str, int] = field(default_factory=dict)  # column: rows with a value beyond MOST_VALUES, or none
    prompt_tokens: tuple[int, ...] = ()  # rows by length
    output_tokens: tuple[int, ...] = ()
    confidence: tuple[Confident, ...] = ()  # CONFIDENCE_BINS of them; empty: none was reported
    confusion: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # gold label: label: rows; empty: no gold
    refusals: int | None = None  # rows whose text declines to answer; None: the job's answers hold no free text

    def __add__(self, other: Self) -> Self:
        return type(self)(
            rows=self.rows + other.rows,
            labels=_nested(self.labels, other.labels),
            others=_added(self.others, other.others),
            prompt_tokens=_along(self.prompt_tokens, other.prompt_tokens),
            output_tokens=_along(self.output_tokens, other.output_tokens),
            confidence=tuple(
                one + another for one, another in zip_longest(self.confidence, other.confidence, fillvalue=Confident())
            ),
            confusion=_nested(self.confusion, other.confusion),
            refusals=added(self.refusals, other.refusals),
        )

    def to_plain(self) -> dict[str, Any]:
        """For JSON, and short: what is empty is left out."""
        plain: dict[str, Any] = {
            "rows": self.rows,
            "labels": self.labels,
            "others": self.others,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "confidence": [one._values() if one.rows else () for one in self.confidence],
            "confusion": self.confusion,
            "refusals": self.refusals,
        }
        return {name: value for name, value in plain.items() if value or value == 0}

    def to_json(self) -> str:
        return json.dumps(self.to_plain(), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` made."""
        return cls.from_plain(json.loads(text))

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """From what JSON makes of it."""
        return cls(
            rows=plain.get("rows", 0),
            labels=plain.get("labels", {}),
            others=plain.get("others", {}),
            prompt_tokens=tuple(plain.get("prompt_tokens", ())),
            output_tokens=tuple(plain.get("output_tokens", ())),
            confidence=tuple(Confident(*values) for values in plain.get("confidence", ())),
            confusion=plain.get("confusion", {}),
            refusals=plain.get("refusals"),
        )


def added(left: int | None, right: int | None) -> int | None:
    """The sum of what is known; None: nothing is."""
    return right if left is None else left if right is None else left + right


def _along(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(sum, zip_longest(left, right, fillvalue=0)))


def _added(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {name: left.get(name, 0) + right.get(name, 0) for name in {**left, **right}}


def _nested(left: Mapping[str, Mapping[str, int]], right: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {name: _added(left.get(name, {}), right.get(name, {})) for name in {**left, **right}}
