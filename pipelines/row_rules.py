"""Rules for the order of fields that some rows were asked by, kept beside the output, and what came of it.

A change of their order changes prompts, and may change answers. So a run takes rules only where `pipelines.agree` has
asked the same model the same job in both orders, and enough of the answers were the same.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pipelines import storage
from pipelines.config import UserError
from pipelines.job.fingerprint import FIELD_ORDER, difference
from pipelines.job.row_order import Rule, Rules, of_json, to_json

FILE = "_field_order.json"  # of an output
TRY = "python -m pipelines.agree, with the same words, asks some rows in both orders"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Rules, and how many of the rows that were asked had the same answer as in the order that the job lists."""

    rules: Rules
    fields: tuple[str, ...]  # as the job lists them
    asked: int
    same: int
    parts: Mapping[str, str]  # of the fingerprint that they were asked under, but for the order
    at: str  # ISO 8601

    @property
    def share(self) -> float:
        """Of the rows asked, those with the same answer, 0..1."""
        return self.same / self.asked if self.asked else 0.0

    @property
    def count(self) -> int:
        """Rules there are."""
        left, count = [self.rules], 0
        while left:
            if isinstance(one := left.pop(), Rule):
                count += 1
                left += [one.then, one.rest]
        return count


def keep(sink_uri: str, tried: Tried) -> str:
    """Write what was tried beside the output; the URI of the file."""
    plain = {**asdict(tried), "rules": to_json(tried.rules)}
    uri = storage.join(sink_uri, FILE)
    storage.put(uri, json.dumps(plain, indent=1).encode())
    return uri


def kept(sink_uri: str, fields: tuple[str, ...]) -> Tried | None:
    """What was tried for this output and these fields; None: nothing."""
    try:
        plain = json.loads(storage.get(storage.join(sink_uri, FILE)))
    except FileNotFoundError:
        return None
    tried = Tried(**{**plain, "rules": of_json(plain["rules"]), "fields": tuple(plain["fields"])})
    return tried if tried.fields == fields else None


def apart(parts: Mapping[str, str]) -> dict[str, str]:
    """The parts of a fingerprint but for the order of fields."""
    return {name: part for name, part in parts.items() if name != FIELD_ORDER}


def check(tried: Tried, parts: Mapping[str, str], *, least: float) -> None:
    """See that a run may go by these rules; `parts`: of its fingerprint.

    Raises:
        UserError: they were tried with another job or model, or too few answers were the same.
    """
    if changed := difference(tried.parts, apart(parts)):
        raise UserError(f"prompt.field_order=rows was tried before this changed: {'; '.join(changed)}. {TRY}")
    if tried.share < least:
        raise UserError(
            f"prompt.field_order=rows: of {tried.asked:,} rows {tried.same:,} ({tried.share:.1%}) had the same answer "
            f"as in the order that the job lists, and prompt.min_agreement={least:g}: use prompt.field_order=auto, or "
            "lower it"
        )
