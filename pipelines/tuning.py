"""The search for batch sizes: which to try next, from what those tried so far have reached. It runs nothing itself.

From a start that memory and lengths suggest, each of the two sizes is doubled as long as that pays, or halved where
doubling does not; then half a step is tried to either side of the best, and the best is measured once more. The start
is measured twice: a gain within what two runs of one size differ by is none.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

PAYS = 1.03  # times the tokens/s, at least: less is not worth larger batches
NOISIEST = 1.15  # times: what two runs of one size differ by beyond that is no reason to stop
FEWEST = {"max_num_seqs": 1, "max_num_batched_tokens": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The two sizes of a batch in an engine."""

    max_num_seqs: int  # rows that decode together
    max_num_batched_tokens: int  # tokens of one engine step

    def scaled(self, name: str, factor: float) -> "Sizes":
        """With one of the two so many times as large."""
        return replace(self, **{name: max(FEWEST[name], round(getattr(self, name) * factor))})

    def within(self, most: "Sizes") -> bool:
        """Whether neither is larger than that of `most`."""
        return self.max_num_seqs <= most.max_num_seqs and self.max_num_batched_tokens <= most.max_num_batched_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What some sizes reached."""

    sizes: Sizes
    tokens_per_s: float | None  # prompt and output, of an engine at work; None: it died, and `why` says of what
    why: str | None = None


def first_sizes(kv_capacity_tokens: float, tokens_per_row: float, most: Sizes) -> Sizes:
    """Where to start: half the rows that the KV memory holds, and tokens for a step that admits an eighth of them."""
    rows = max(1, min(most.max_num_seqs, int(kv_capacity_tokens / max(1.0, tokens_per_row) / 2)))
    rows = 2 ** (rows.bit_length() - 1)
    tokens = 2 ** int(max(512, rows * tokens_per_row / 8)).bit_length()
    return Sizes(max_num_seqs=rows, max_num_batched_tokens=min(most.max_num_batched_tokens, tokens))


def search(measure: Callable[[Sizes], Trial], first: Sizes, most: Sizes) -> list[Trial]:
    """All that was tried, in its order; `best` says which is the best of them. Empty: `first` is beyond `most`."""
    trials: list[Trial] = []
    tried: dict[Sizes, Trial] = {}

    def reached(sizes: Sizes) -> float:
        if not sizes.within(most):
            return 0.0
        if sizes not in tried:
            tried[sizes] = measure(sizes)
            trials.append(tried[sizes])
        return tried[sizes].tokens_per_s or 0.0

    at = first
    while not reached(at) and at.max_num_seqs > 1:  # too large for the memory: down until it lives
        at = at.scaled("max_num_seqs", 0.5).scaled("max_num_batched_tokens", 0.5)
    if not reached(at):
        return trials
    trials.append(measure(at))
    pays, tried[at] = noise(trials), best(trials) or tried[at]
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        at = _climb(reached, at, name, max(PAYS, min(pays, NOISIEST)))
    if sum(trial.sizes == at for trial in trials) < 2:
        trials.append(measure(at))
    return trials


def noise(trials: list[Trial]) -> float:
    """How many times as fast one run was as another of the same sizes, at most; 1: none was measured twice."""
    rates = _rates(trials).values()
    return max((max(each) / min(each) for each in rates), default=1.0)


def _climb(reached: Callable[[Sizes], float], at: Sizes, name: str, pays: float) -> Sizes:
    """The best along one of the two sizes."""
    for factor in (2.0, 0.5):
        start = at
        while (following := at.scaled(name, factor)) != at and reached(following) > pays * reached(at):
            at = following
        if at != start:
            break
    between = [at.scaled(name, factor) for factor in (2**0.5, 0.5**0.5)]  # a doubling may have passed over the best
    finer = max(between, key=reached)
    return finer if reached(finer) > pays * reached(at) else at


def _rates(trials: list[Trial]) -> dict[Sizes, list[float]]:
    rates: dict[Sizes, list[float]] = {}
    for trial in trials:
        if trial.tokens_per_s:
            rates.setdefault(trial.sizes, []).append(trial.tokens_per_s)
    return rates


def best(trials: list[Trial]) -> Trial | None:
    """The sizes with the highest mean over their trials; of those that are equal but for noise, the smallest.

    None: none lived.
    """
    rates = _rates(trials)
    if not rates:
        return None
    means = {sizes: sum(each) / len(each) for sizes, each in rates.items()}
    enough = max(means.values()) / PAYS
    chosen = min(
        (sizes for sizes, mean in means.items() if mean >= enough),
        key=lambda sizes: (sizes.max_num_seqs * sizes.max_num_batched_tokens, sizes.max_num_seqs),
    )
    return Trial(sizes=chosen, tokens_per_s=means[chosen])
