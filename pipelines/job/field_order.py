"""The order of a job's fields in which sorted prompts share most: one order for the whole job, from column statistics.

Prompts that are sorted share what equal leading fields print. So in an order each field spares its tokens in every row
but the first of those that are equal in it and in all fields before it. What a field spares depends on which fields
stand before it, not on how those are ordered among themselves; that makes the best order one over sets of fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_EXACT = 10  # fields for which every set is looked at; of more, the best next one is taken again and again

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Best:
    """An order of fields, by their place in the given one, and what it and the given one let prompts share."""

    order: tuple[int, ...]
    shared: float  # of the tokens of all fields, 0..1; estimated, unless the rows are all there are
    shared_given: float


def best_order(
    columns: Sequence[Sequence[str]], tokens: npt.NDArray[np.int64], *, rows: int, most_exact: int = MOST_EXACT
) -> Best:
    """The order that spares most. `columns`: what each field prints in each of some rows; `tokens`: how many that are,
    a line for each row and a column for each field; `rows`: of the corpus that they were drawn from.

    Of orders that spare the same, the one nearest to the given order. Exact for up to `most_exact` fields.
    """
    found = _Spared(columns, tokens, rows)
    count, total = len(columns), float(tokens.sum()) * found.scale
    order = _exact(found, count) if count <= most_exact else _greedy(found, count)
    if not total:
        return Best(tuple(range(count)), 0.0, 0.0)
    return Best(order, found.of(order) / total, found.of(range(count)) / total)


class _Spared:
    """Tokens that a field spares behind a set of fields, in the whole corpus."""

    def __init__(self, columns: Sequence[Sequence[str]], tokens: npt.NDArray[np.int64], rows: int) -> None:
        self._codes = [
            np.unique(np.array(column, object), return_inverse=True)[1].astype(np.int64) for column in columns
        ]
        self._tokens = tokens
        drawn = max(1, tokens.shape[0])
        self.scale = max(1.0, rows / drawn)
        self._groups: dict[int, Codes] = {0: np.zeros(tokens.shape[0], np.int64)}

    def by(self, field: int, before: int) -> float:
        """By `field` behind those in the bits of `before`.

        A value seen once in the sample stands for the root of the scale of different ones (the estimator GEE of
        Charikar et al. 2000), one seen more often for itself.
        """
        groups = self._of(before | 1 << field)
        first, counts = np.unique(groups, return_index=True, return_counts=True)[1:]
        different = np.where(counts == 1, np.sqrt(self.scale), 1.0)
        lengths = self._tokens[:, field]
        return float(lengths.sum() * self.scale - (different * lengths[first]).sum())

    def of(self, order: Sequence[int]) -> float:
        """By all fields in this order."""
        spared, before = 0.0, 0
        for field in order:
            spared += self.by(field, before)
            before |= 1 << field
        return spared

    def _of(self, fields: int) -> Codes:
        """For each row, the number of its group: rows of one are equal in all these fields."""
        if fields not in self._groups:
            lowest = (fields & -fields).bit_length() - 1
            rest, codes = self._of(fields & (fields - 1)), self._codes[lowest]
            width = int(codes.max(initial=0)) + 1
            self._groups[fields] = np.unique(rest * width + codes, return_inverse=True)[1].astype(np.int64)
        return self._groups[fields]


def _exact(found: _Spared, count: int) -> tuple[int, ...]:
    """By the most that the fields not yet placed can spare, for each set of those that are."""
    whole = (1 << count) - 1
    most = {whole: 0.0}
    first: dict[int, int] = {}
    for placed in range(whole - 1, -1, -1):
        for field in range(count):
            if placed >> field & 1:
                continue
            spared = found.by(field, placed) + most[placed | 1 << field]
            # Sums of the same numbers in another order differ in their last digits.
            if placed not in most or spared > most[placed] * (1 + 1e-9) + 1e-9:
                most[placed], first[placed] = spared, field
    order, placed = [], 0
    while placed != whole:
        order.append(first[placed])
        placed |= 1 << first[placed]
    return tuple(order)


def _greedy(found: _Spared, count: int) -> tuple[int, ...]:
    order: list[int] = []
    placed = 0
    while len(order) < count:
        left = [field for field in range(count) if not placed >> field & 1]
        best = max(left, key=lambda field: (found.by(field, placed), -field))
        order.append(best)
        placed |= 1 << best
    return tuple(order)
