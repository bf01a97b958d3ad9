"""How far apart two groups of counts are, and whether chance explains it: plain functions with their sources."""

from collections.abc import Mapping, Sequence
from math import log, log2

LEAST_EXPECTED = 5.0  # rows in a cell, below which Pearson's approximation is poor (Cochran 1954, doi 10.2307/3001616)


def psi(new: Sequence[int], old: Sequence[int]) -> float | None:
    """Population stability index: sum over bins of (a - b) ln(a / b), a and b the shares of the bin in new and old.

    The sum of both directed Kullback-Leibler divergences; 0 for equal shares, without an upper end. By custom below 0.1
    is no shift and from 0.25 on a large one (Siddiqi, Credit Risk Scorecards, 2006). A bin that is empty on one side
    counts as half a row there, or one rare value would make it infinite. Of N and M rows out of one distribution over k
    bins it is about (k - 1)(1/N + 1/M) by chance alone (Yurdakul 2018), so it says little of few rows: see
    `homogeneity`. None: a side has no rows.
    """
    rows_new, rows_old = sum(new), sum(old)
    if not rows_new or not rows_old:
        return None
    total = 0.0
    for count_new, count_old in zip(new, old, strict=True):
        if count_new or count_old:
            share_new, share_old = (count_new or 0.5) / rows_new, (count_old or 0.5) / rows_old
            total += (share_new - share_old) * log(share_new / share_old)
    return total


def js(new: Sequence[int], old: Sequence[int]) -> float | None:
    """Jensen-Shannon divergence in bits, 0..1: sum over bins of a/2 log2(a / m) + b/2 log2(b / m), m = (a + b) / 2.

    0 for equal shares, 1 where no bin has rows of both (Lin 1991, doi 10.1109/18.61115). None: a side has no rows.
    """
    rows_new, rows_old = sum(new), sum(old)
    if not rows_new or not rows_old:
        return None
    total = 0.0
    for count_new, count_old in zip(new, old, strict=True):
        a, b = count_new / rows_new, count_old / rows_old
        middle = (a + b) / 2
        total += sum(share / 2 * log2(share / middle) for share in (a, b) if share)
    return min(1.0, max(0.0, total))


def homogeneity(new: Sequence[int], old: Sequence[int]) -> float | None:
    """The probability of counts at least so far apart, were both drawn from one distribution.

    Pearson's chi-squared test over bins that expect LEAST_EXPECTED rows on both sides, smaller ones counted as one;
    where only two bins are left and one of them is smaller still, Fisher's exact test. It takes rows for independent:
    rows that repeat one another make it too sure. None: a side has no rows, or all rows are in one bin.
    """
    rows_new, rows_old = sum(new), sum(old)
    if not rows_new or not rows_old:
        return None
    from scipy.stats import chi2, fisher_exact  # half a second, which no command should wait for before it starts

    bins = _pooled(list(zip(new, old, strict=True)), min(rows_new, rows_old) / (rows_new + rows_old))
    if len(bins) < 2:
        return None
    if len(bins) == 2 and any(_expected(one, rows_new, rows_old) < LEAST_EXPECTED for one in bins):
        return float(fisher_exact(bins).pvalue)
    statistic = 0.0
    for one in bins:
        for count, rows in zip(one, (rows_new, rows_old), strict=True):
            expected = sum(one) * rows / (rows_new + rows_old)
            statistic += (count - expected) ** 2 / expected
    return float(chi2.sf(statistic, len(bins) - 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Each p-value as corrected for there being several: the k-th smallest of n times n - k + 1, and none below the one
    before it (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Those below a level keep the probability of any false one among them below that level, whatever their dependence.
    """
    corrected: dict[str, float] = {}
    least = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda one: one[1])):
        least = max(least, min(1.0, p * (len(p_values) - place)))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}


def _pooled(bins: list[tuple[int, int]], share: float) -> list[tuple[int, int]]:
    """The bins, with those that expect too few rows on the smaller side (`share` of all rows) counted as one."""
    there = [one for one in bins if sum(one)]
    large = sorted((one for one in there if sum(one) * share >= LEAST_EXPECTED), key=sum)
    small = [one for one in there if sum(one) * share < LEAST_EXPECTED]
    if not small:
        return large
    rest = (sum(one[0] for one in small), sum(one[1] for one in small))
    if sum(rest) * share < LEAST_EXPECTED and len(large) > 1:
        return [(large[0][0] + rest[0], large[0][1] + rest[1]), *large[1:]]
    return [rest, *large]


def _expected(one: tuple[int, int], rows_new: int, rows_old: int) -> float:
    return sum(one) * min(rows_new, rows_old) / (rows_new + rows_old)
