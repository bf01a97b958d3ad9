"""What answers are like, in sums over units, and how far one run's are from another's.

`Measures` are exact counts of every answered row (stages/measures.py makes them, receipts carry them); `drift` compares
two of them. Formulas and sources of the distances are in distances.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, Self

from pipelines.accounts.distances import holm, homogeneity, js, psi
from pipelines.sink.measures import OUTSIDE, Counts, added
from pipelines.sink.receipt import Receipt

_NUMBERS = ("rows_in", "rows_ok", "rows_error", "gold_rows", "gold_correct")
SIGNIFICANT = 0.01  # corrected p-values from here on are taken for chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Sums over units; those of two groups add up with `+`. Empty: nothing done yet."""

    rows_in: int = 0
    rows_ok: int = 0  # answered, carried and shared ones included
    rows_error: int = 0
    errors_by_type: Mapping[str, int] = field(default_factory=dict)
    gold_rows: int | None = None  # of rows_ok, those with a gold label; None: the job has no gold column
    gold_correct: int | None = None
    counts: Counts = field(default_factory=Counts)  # of those of rows_ok whose receipts carry measures: `counts.rows`

    @classmethod
    def of(cls, receipts: Iterable[Receipt]) -> Self:
        """The sums over these receipts. Those of a ledger are to be read with `Ledger.measured`: in memory they have
        no measures, and then only rows and errors are known.
        """
        total = cls()
        for receipt in receipts:
            total += cls(
                rows_in=receipt.rows_in,
                rows_ok=receipt.rows_ok,
                rows_error=receipt.rows_error,
                errors_by_type=receipt.errors_by_type,
                gold_rows=receipt.gold_rows,
                gold_correct=receipt.gold_correct,
                counts=Counts() if receipt.measures is None else Counts.from_json(receipt.measures),
            )
        return total

    def __add__(self, other: Self) -> Self:
        kinds = {**self.errors_by_type, **other.errors_by_type}
        return type(self)(
            rows_in=self.rows_in + other.rows_in,
            rows_ok=self.rows_ok + other.rows_ok,
            rows_error=self.rows_error + other.rows_error,
            errors_by_type={k: self.errors_by_type.get(k, 0) + other.errors_by_type.get(k, 0) for k in kinds},
            gold_rows=added(self.gold_rows, other.gold_rows),
            gold_correct=added(self.gold_correct, other.gold_correct),
            counts=self.counts + other.counts,
        )

    @property
    def error_rate(self) -> float | None:
        """Dead letters among all rows, 0..1; None: no rows."""
        return self.rows_error / self.rows_in if self.rows_in else None

    @property
    def refusal_rate(self) -> float | None:
        """Answers that begin like a refusal among those measured, 0..1; None: no free text, or none measured."""
        refusals = self.counts.refusals
        return None if refusals is None or not self.counts.rows else refusals / self.counts.rows

    @property
    def accuracy(self) -> float | None:
        """Share of the rows with a gold label that carry it, 0..1; None: there is no gold label."""
        return self.gold_correct / self.gold_rows if self.gold_rows and self.gold_correct is not None else None

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: getattr(self, name) for name in _NUMBERS}
        return {**plain, "errors_by_type": dict(self.errors_by_type), "counts": self.counts.to_plain()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """What `to_plain` made."""
        return cls(**{**plain, "counts": Counts.from_plain(plain["counts"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far new answers are from old ones. None: not measured, on one of the sides or on both.

    Rates are new less old, -1..1. With several columns of labels, that of the one that is farthest.
    """

    rows_new: int  # measured
    rows_old: int
    labels_psi: float | None
    labels_js: float | None  # bits, 0..1
    lengths_psi: float | None  # of output tokens, in bins that double
    lengths_js: float | None
    prompts_js: float | None  # of prompt tokens: whether the input is another
    confidence_js: float | None
    error_rate_change: float | None
    refusal_rate_change: float | None
    accuracy_change: float | None
    p_values: Mapping[str, float]  # by what was compared, corrected after Holm for all of them
    significant_psi: float | None  # the largest PSI of labels, lengths and confidence with p < SIGNIFICANT; 0: none has

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """What `to_plain` made."""
        return cls(**plain)


def drift(new: Measures, old: Measures) -> Drift:
    """Compare the answers of two runs, or of two states of an output.

    Distributions (labels of each column, lengths of prompts and answers, bins of confidence) by `psi` and `js`, with
    the p-value of `homogeneity`; rates (errors, refusals, accuracy) by their difference, with the p-value of the same
    test over two bins. All p-values of one comparison are corrected together by `holm`.

    Of many rows the smallest difference is significant, of few rows a large PSI is chance: `significant_psi` asks for
    both, and is what an alert should look at.
    """
    one, other = new.counts, old.counts
    pairs: dict[str, tuple[list[int], list[int]]] = {}
    for column in one.labels.keys() & other.labels.keys():
        pairs[f"labels.{column}"] = _aligned(
            {**one.labels[column], OUTSIDE: one.others.get(column, 0)},
            {**other.labels[column], OUTSIDE: other.others.get(column, 0)},
        )
    pairs["lengths"] = _along(one.output_tokens, other.output_tokens)
    pairs["prompts"] = _along(one.prompt_tokens, other.prompt_tokens)
    pairs["confidence"] = _along([bin_.rows for bin_ in one.confidence], [bin_.rows for bin_ in other.confidence])
    rates = {
        "errors": ([new.rows_error, new.rows_ok], [old.rows_error, old.rows_ok]),
        "refusals": (_refusals(one), _refusals(other)),
        "accuracy": (_right_and_wrong(new), _right_and_wrong(old)),
    }
    found = {name: homogeneity(*sides) for name, sides in {**pairs, **rates}.items()}
    p_values = holm({name: p for name, p in sorted(found.items()) if p is not None})
    psis = {name: psi(*sides) for name, sides in pairs.items()}
    labels = [name for name in pairs if name.startswith("labels.")]
    of_answers = {name: value for name, value in psis.items() if value is not None and name != "prompts"}
    surprising = [value for name, value in of_answers.items() if p_values.get(name, 1.0) < SIGNIFICANT]
    return Drift(
        rows_new=one.rows,
        rows_old=other.rows,
        labels_psi=_farthest([psis[name] for name in labels]),
        labels_js=_farthest([js(*pairs[name]) for name in labels]),
        lengths_psi=psis["lengths"],
        lengths_js=js(*pairs["lengths"]),
        prompts_js=js(*pairs["prompts"]),
        confidence_js=js(*pairs["confidence"]),
        error_rate_change=_less(new.error_rate, old.error_rate),
        refusal_rate_change=_less(new.refusal_rate, old.refusal_rate),
        accuracy_change=_less(new.accuracy, old.accuracy),
        p_values=p_values,
        significant_psi=max(surprising, default=0.0) if of_answers else None,
    )


def _aligned(new: Mapping[str, int], old: Mapping[str, int]) -> tuple[list[int], list[int]]:
    values = sorted(new.keys() | old.keys())
    return [new.get(value, 0) for value in values], [old.get(value, 0) for value in values]


def _along(new: Iterable[int], old: Iterable[int]) -> tuple[list[int], list[int]]:
    pairs = list(zip_longest(new, old, fillvalue=0))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _refusals(counts: Counts) -> list[int]:
    """Refusals and other answers; empty: not measured."""
    return [] if counts.refusals is None else [counts.refusals, counts.rows - counts.refusals]


def _right_and_wrong(measures: Measures) -> list[int]:
    if not measures.gold_rows or measures.gold_correct is None:
        return []
    return [measures.gold_correct, measures.gold_rows - measures.gold_correct]


def _farthest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _less(new: float | None, old: float | None) -> float | None:
    return None if new is None or old is None else new - old
