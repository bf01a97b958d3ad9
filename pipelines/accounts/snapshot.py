"""A snapshot: a run at work at one moment, in one value that terminal, live file and Prometheus show alike.

It crosses processes as JSON, and is checked when it is read: the file may be another version's, or anybody's.
"""

import json
from collections.abc import Mapping
from dataclasses import field
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from pipelines.accounts.summary import without_secrets

_TOLERANT = ConfigDict(extra="ignore", allow_inf_nan=False)  # a later version may say more

Share = Annotated[float, Field(ge=0, le=1)]
State = Literal["running", "ended", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True, config=_TOLERANT)
class EngineNow:
    """One engine. None: it cannot tell."""

    name: str
    phase: str  # starting, serving, rebuilding, draining
    running: int  # rows that it computes
    waiting: int  # rows that wait in it, or for a place in it
    kv_usage: Share | None = None
    cache_hit_share: Share | None = None  # of the prompt tokens since it started
    restarts: int = 0
    rows_ended: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=_TOLERANT)
class Snapshot:
    """A run at one moment. None: not known, or not measured."""

    version: Literal[1] = 1
    run: str = ""
    job: str = ""
    model: str = ""
    state: State = "running"
    exit_code: int | None = None
    doing: str = ""  # in words; empty: answering rows
    at: float = 0.0  # seconds since the epoch, by the clock of the run's machine
    elapsed_s: float
    steady_s: float | None = None  # since engines answer; None: they do not yet
    units: int = 0  # committed, as are the rows:
    rows_in: int = 0
    rows_ok: int = 0
    rows_error: int = 0
    errors_by_type: Mapping[str, int] = field(default_factory=dict)
    rows_done: int = 0  # committed, or ended in an engine
    rows_total: int | None = None  # to do in this run
    rows_total_estimated: bool = False  # by the bytes of shards whose rows nobody has counted
    rows_in_flight: int | None = None
    prompt_tokens: int = 0  # of rows that are done, cached ones included
    cached_tokens: int = 0
    output_tokens: int = 0
    rows_per_s: float | None = None  # in the last minute
    tokens_per_s: float | None = None
    rows_history: tuple[float, ...] = ()  # rows/s since engines answer, each over `history_s` seconds
    tokens_history: tuple[float, ...] = ()
    history_s: float = 0.0
    eta_s: float | None = None  # at the rate of the second half of its time
    usd: Decimal | None = None
    usd_per_s: Decimal | None = None
    budget_usd: Decimal | None = None
    budget_spent_usd: Decimal | None = None  # of it, earlier runs of the output included where they count
    finish_at: float | None = None  # the deadline, seconds since the epoch
    device_s: Mapping[str, float] = field(default_factory=dict)  # seconds of devices, by part (docs/cost.md)
    held_back: str | None = None  # the bottleneck of the last minute, in words
    overdue: str | None = None  # the row that is in an engine for longest, where that is too long, in words
    engines: tuple[EngineNow, ...] = ()
    engines_total: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and output tokens."""
        return self.prompt_tokens + self.output_tokens

    @property
    def tokens_total(self) -> int | None:
        """Estimated: as many for each row that is left as for those that are done."""
        if not self.rows_done or not self.tokens or self.rows_total is None:
            return None
        return round(self.tokens * max(1.0, self.rows_total / self.rows_done))

    @property
    def usd_total(self) -> Decimal | None:
        """What it will have cost, estimated."""
        if self.usd is None or self.usd_per_s is None or self.eta_s is None:
            return None
        return self.usd + self.usd_per_s * Decimal(repr(self.eta_s))

    @property
    def share_done(self) -> float | None:
        """Of the rows, 0..1."""
        return min(1.0, self.rows_done / self.rows_total) if self.rows_total else None

    @property
    def budget_share(self) -> float | None:
        """Of the budget that is spent; over 1 where it was passed."""
        if not self.budget_usd or self.budget_spent_usd is None:
            return None
        return float(self.budget_spent_usd / self.budget_usd)

    @property
    def budget_lasts_s(self) -> float | None:
        """How long what is left of the budget pays for what is held now."""
        if self.budget_usd is None or self.budget_spent_usd is None or not self.usd_per_s:
            return None
        return float(max(Decimal(0), self.budget_usd - self.budget_spent_usd) / self.usd_per_s)

    def to_json(self) -> bytes:
        """For its file, without secrets; money as decimal strings."""
        return json.dumps(without_secrets(_JSON.dump_python(self, mode="json")), indent=1).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Snapshot":
        """What `to_json` made; ValueError if it is something else."""
        return _JSON.validate_json(text)


_JSON: TypeAdapter[Snapshot] = TypeAdapter(Snapshot)
