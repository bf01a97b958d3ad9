"""How far answers agree with gold labels: per class, confusion, and whether confidences can be believed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

from pipelines.sink.measures import MILLION, OUTSIDE, Confident

_Z = 1.959963984540054  # of the normal distribution: 95 % lie between -z and z


def wilson(correct: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share, each end 0..1 (Wilson 1927, doi 10.1080/01621459.1927.10502953); `of` > 0."""
    share, z2 = correct / of, _Z**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * sqrt(share * (1 - share) / of + z2 / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """One label, of the answered rows with a gold label."""

    label: str
    expected: int  # rows whose gold label it is
    answered: int  # rows whose answer it is
    correct: int  # both

    @property
    def precision(self) -> float | None:
        """Of the rows so answered, those so expected, 0..1; None: it was never answered."""
        return self.correct / self.answered if self.answered else None

    @property
    def recall(self) -> float | None:
        """Of the rows so expected, those so answered, 0..1; None: it was never expected."""
        return self.correct / self.expected if self.expected else None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of both, 2 correct / (expected + answered), 0..1; None: neither expected nor answered."""
        both = self.expected + self.answered
        return 2 * self.correct / both if both else None


def classes(confusion: Mapping[str, Mapping[str, int]], labels: Iterable[str] = ()) -> list[Class]:
    """Each label that was expected or answered, and these `labels`; a gold label of no class is wrongly answered."""
    names = dict.fromkeys([*labels, *confusion, *(label for answered in confusion.values() for label in answered)])
    return [
        Class(
            label=name,
            expected=sum(confusion.get(name, {}).values()),
            answered=sum(answered.get(name, 0) for answered in confusion.values()),
            correct=confusion.get(name, {}).get(name, 0),
        )
        for name in names
        if name != OUTSIDE
    ]


def macro_f1(found: Iterable[Class]) -> float | None:
    """The mean F1 of the classes that have one, each as heavy as another, 0..1; None: none has."""
    known = [one.f1 for one in found if one.f1 is not None]
    return sum(known) / len(known) if known else None


def calibration_error(bins: Iterable[Confident]) -> float | None:
    """Expected calibration error, 0..1: over bins of confidence, |share correct - mean confidence|, weighted by rows.

    0: of the answers given with 80 % confidence, 80 % are correct (Naeini et al. 2015; in 15 bins of equal width as in
    Guo et al. 2017, arXiv 1706.04599). Of n rows it is above 0 by chance, about as 1 / sqrt(n) in each bin. None: no
    row has both a confidence and a gold label.
    """
    with_gold = [one for one in bins if one.gold_rows]
    rows = sum(one.gold_rows for one in with_gold)
    if not rows:
        return None
    return sum(abs(one.gold_correct - one.gold_millionths / MILLION) for one in with_gold) / rows
