"""What a second model said of a sample of a run's answers: <sink>/runs/<run id>/judged-<job>.json."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from pipelines import storage
from pipelines.accounts.agreement import wilson
from pipelines.redact import redacted

log = logging.getLogger(__name__)

EXAMPLES = 20  # rows that did not pass, by their place; their text is in the output
_FILE = "judged-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Verdicts of one judge. A share is over the rows that got one."""

    run_id: str  # whose answers
    job: str  # of the judge
    model: str  # of the judge
    fingerprint: str  # of the judge: others do not compare with it
    at: str  # ISO 8601, UTC
    drawn: int  # rows
    good: str  # the verdict that passes
    verdicts: Mapping[str, int]  # rows by verdict
    examples: tuple[tuple[str, int, str], ...] = ()  # shard, row, verdict of some that did not pass
    gold_rows: int = 0  # of those with a verdict, rows whose right label is known
    gold_agreed: int = 0  # of these, answers that are right and passed, or wrong and did not

    @property
    def rows(self) -> int:
        """Rows with a verdict; the others could not be asked, or their judge broke its contract."""
        return sum(self.verdicts.values())

    @property
    def share(self) -> float | None:
        """Of the rows with a verdict, those that passed, 0..1; None: no row has one."""
        return self.verdicts.get(self.good, 0) / self.rows if self.rows else None

    def words(self) -> str:
        """In a line."""
        if self.share is None:
            return f"none of {self.drawn:,} answers drawn got a verdict"
        low, high = wilson(self.verdicts.get(self.good, 0), self.rows)
        told = f"{self.share:.1%} {self.good}, of {self.rows:,} answers ({low:.1%} to {high:.1%} at 95 %)"
        return told if self.rows == self.drawn else f"{told}; {self.drawn - self.rows:,} more got no verdict"

    def of_gold(self) -> str | None:
        """How far the judge can be believed, in a line; None: nothing is known to hold it against."""
        if not self.gold_rows:
            return None
        low, high = wilson(self.gold_agreed, self.gold_rows)
        share = self.gold_agreed / self.gold_rows
        return f"right itself in {share:.1%} of {self.gold_rows:,} rows with a gold label ({low:.1%} to {high:.1%})"

    @classmethod
    def of(cls, rows: Sequence[tuple[str, int, str, bool | None]], **told: Any) -> Self:
        """Of shard, row, verdict, and whether the answer is right, if that is known."""
        good = told["good"]
        known = [(verdict == good, right) for _, _, verdict, right in rows if right is not None]
        return cls(
            verdicts=dict(Counter(verdict for _, _, verdict, _ in rows).most_common()),
            examples=tuple((shard, row, verdict) for shard, row, verdict, _ in rows if verdict != good)[:EXAMPLES],
            gold_rows=len(known),
            gold_agreed=sum(passed == right for passed, right in known),
            **told,
        )


def keep(sink_uri: str, found: Judged) -> str:
    """Store it, in the place of what a judge of this name said before; where."""
    uri = storage.join(sink_uri, "runs", found.run_id, f"{_FILE}{found.job}.json")
    storage.put(uri, redacted(json.dumps(asdict(found), indent=1, ensure_ascii=False)).encode())
    return uri


def of_run(sink_uri: str, run_id: str) -> list[Judged]:
    """What judges said of a run's answers, by their names."""
    found = []
    for stored in storage.listing(storage.join(sink_uri, "runs", run_id), missing_ok=True):
        if stored.path.startswith(_FILE):
            try:
                plain = json.loads(storage.get(stored.uri))
                plain["examples"] = tuple((str(shard), int(row), str(said)) for shard, row, said in plain["examples"])
                found.append(Judged(**plain))
            except (ValueError, TypeError, KeyError) as error:
                log.warning("%s is left out: %s", storage.shown(stored.uri), error)
    return sorted(found, key=lambda one: one.job)
