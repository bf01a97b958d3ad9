"""What a run did, in numbers: sums over receipts, the rates that follow, and how the terminal shows them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from typing import Any, Protocol, Self

from actors.gpu_monitor import GpuUsage
from pipelines.accounts.bottleneck import Ceiling
from pipelines.accounts.cost import Bill, exact
from pipelines.accounts.quality_files import Quality
from pipelines.accounts.reuse import Reuse
from pipelines.config import Exit
from pipelines.redact import redacted
from pipelines.sink.receipt import Receipt
from pipelines.source.units import UNREADABLE_SHARD

# Controls (C0, DEL, C1) and the marks that turn the direction of text: a terminal obeys them.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` on one line with everything that a terminal would obey written as an escape such as \\x1b."""
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def without_secrets(value: Any) -> Any:
    """A JSON value with every string redacted; to do before dumping, after which a quote in a secret hides it."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {redacted(str(key)): without_secrets(each) for key, each in value.items()}
    return [without_secrets(each) for each in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over receipts; those of two groups add up with `+`. Empty: nothing done yet."""

    units: int = 0
    rows_in: int = 0
    rows_ok: int = 0
    rows_error: int = 0
    errors_by_type: Mapping[str, int] = field(default_factory=dict)
    columns_left_out: Mapping[str, int] = field(
        default_factory=dict
    )  # the output has no such columns; rows with a value
    rows_carried: int = 0  # of rows_in, those that were taken from the output as it was
    rows_shared: int = 0  # of rows_in, those that share the answer of another row with their key
    saved_prompt_tokens: int = 0  # of the carried and the shared rows: what the one took that was asked
    saved_output_tokens: int = 0
    prompt_tokens: int = 0  # cached ones included
    cached_tokens: int = 0
    output_tokens: int = 0
    device_seconds: Decimal = Decimal(0)  # in which engines were at work, as the receipts share it out
    gold_rows: int | None = None  # None: no gold column
    gold_correct: int | None = None

    @classmethod
    def of(cls, receipts: Iterable[Receipt]) -> Self:
        """The sums over these receipts."""
        total = cls()
        for receipt in receipts:
            total += cls(
                units=1,
                device_seconds=Decimal(repr(receipt.device_seconds)),
                **{name: getattr(receipt, name) for name in _FROM_RECEIPT},
            )
        return total

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: _sum(getattr(self, name), getattr(other, name)) for name in _TOTALS})

    @property
    def shards_unreadable(self) -> int:
        """Shards that could not be read to their end: each left one dead letter for the rest of it."""
        return self.errors_by_type.get(UNREADABLE_SHARD, 0)

    @property
    def accuracy(self) -> Decimal | None:
        """Share of the answered rows with a gold label whose label is that one, 0..1; None: there are none."""
        return None if not self.gold_rows or self.gold_correct is None else Decimal(self.gold_correct) / self.gold_rows

    @property
    def error_rate(self) -> Decimal | None:
        """0..1; None: no rows."""
        return Decimal(self.rows_error) / self.rows_in if self.rows_in else None

    @property
    def cache_hit_share(self) -> Decimal | None:
        """Share of the prompt tokens that the engine did not have to prefill, 0..1; None: no prompt tokens."""
        return Decimal(self.cached_tokens) / self.prompt_tokens if self.prompt_tokens else None


_TOTALS = tuple(each.name for each in fields(Totals))
_FROM_RECEIPT = tuple(name for name in _TOTALS if name not in ("units", "device_seconds"))


def _sum(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return right if left is None else left
    if isinstance(left, Mapping):
        return {key: left.get(key, 0) + right.get(key, 0) for key in sorted({*left, *right})}
    return left + right


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """What became of a run's candidate."""

    passed: bool  # readers see it
    words: str


class Guessing(Protocol):
    """What is asked of a host's report (actors/host_stats.py)."""

    @property
    def drafted_tokens(self) -> int | None: ...  # None: its engine does not guess
    @property
    def rejected_tokens(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculated:
    """Tokens that the engines of a run have guessed."""

    drafted: int
    rejected: int

    @classmethod
    def of(cls, hosts: Iterable[Guessing]) -> Self | None:
        """By what hosts report; None: none of them guesses."""
        guessing = [host for host in hosts if host.drafted_tokens is not None]
        if not guessing:
            return None
        drafted = sum(host.drafted_tokens or 0 for host in guessing)
        return cls(drafted=drafted, rejected=sum(host.rejected_tokens or 0 for host in guessing))

    @property
    def sentence(self) -> str:
        """For people."""
        taken = self.drafted - self.rejected
        share = f" ({taken / self.drafted:.1%})" if self.drafted else ""
        return f"{taken:,} of {self.drafted:,} guessed tokens were right{share}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All that is told about a run at its end. None: not measured."""

    run_id: str
    job: str
    model: str
    exit_code: Exit
    stopped_by: str | None = None  # the reason, if it stopped before the end
    error: str | None = None  # why it failed
    gate: Gated | None = None  # None: there is no gate, or the run stopped before it
    totals: Totals  # of this run
    output: Totals  # of all that the output holds now, whichever run answered it
    shards_removed: int = 0  # whose answers were taken away
    startup_s: float | None  # from the command to engines that answer
    engine_start_s: float | None = None  # of that, what the first engine to answer took itself
    first_commit_s: float | None = None  # from the command to the first rows in the ledger
    steady_s: float | None  # from there to the last row
    bill: Bill | None
    speculation: Speculated | None = None  # None: no engine guessed
    engines: float | None = None  # held on the mean while they answered; those on CPU are one machine
    gpus: tuple[GpuUsage, ...] = ()
    ceiling: Ceiling | None = None  # beside the limits of the hardware
    reuse: Reuse | None = None  # of the beginnings of prompts; None: none was asked
    quality: Quality | None = None  # what its answers are like
    sink_uri: str
    log_file: str | None = None
    worker_logs: str | None = None  # folder, on each node, of what engines and workers say

    @property
    def rows_per_s(self) -> float | None:
        """Rows answered or dead in a second of steady time."""
        return self._per_s(self.totals.rows_in)

    @property
    def tokens_per_s(self) -> float | None:
        """Prompt and output tokens in a second of steady time."""
        return self._per_s(self.totals.prompt_tokens + self.totals.output_tokens)

    def _per_s(self, count: int) -> float | None:
        return count / self.steady_s if self.steady_s and count else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: money and exact shares as decimal strings, absent figures as null."""
        return {
            "run_id": self.run_id,
            "job": self.job,
            "model": self.model,
            "exit_code": int(self.exit_code),
            "stopped_by": self.stopped_by,
            "error": self.error,
            "gate": None if self.gate is None else asdict(self.gate),
            "this_run": _totals_dict(self.totals),
            "output": _totals_dict(self.output),
            "shards_removed": self.shards_removed,
            "startup_s": self.startup_s,
            "engine_start_s": self.engine_start_s,
            "first_commit_s": self.first_commit_s,
            "steady_s": self.steady_s,
            "rows_per_s": self.rows_per_s,
            "tokens_per_s": self.tokens_per_s,
            "engines": self.engines,
            "speculation": None if self.speculation is None else asdict(self.speculation),
            "bill": None if self.bill is None else _bill_dict(self.bill),
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "quality": None if self.quality is None else self.quality.to_plain() | self.quality.figures(),
            "reuse": None if self.reuse is None else asdict(self.reuse),
            "limits": None if self.ceiling is None else self.ceiling.to_dict(),
            "sink_uri": self.sink_uri,
            "log_file": self.log_file,
            "worker_logs": self.worker_logs,
        }


def _totals_dict(totals: Totals) -> dict[str, Any]:
    shares = {
        name: getattr(totals, name) for name in ("shards_unreadable", "accuracy", "error_rate", "cache_hit_share")
    }
    plain = {name: getattr(totals, name) for name in _TOTALS} | shares
    return {name: str(value) if isinstance(value, Decimal) else value for name, value in plain.items()}


def _bill_dict(bill: Bill) -> dict[str, Any]:
    plain = {each.name: getattr(bill, each.name) for each in fields(bill) if each.name not in ("price", "parts")}
    parts = {name: {"device_ns": ns, "usd": exact(bill.usd_of(ns))} for name, ns in bill.parts.known()}
    price = {
        "usd_per_hour": str(bill.price.usd_per_hour),
        "source": bill.price.source,
        "date": bill.price.date,
    }
    return {name: exact(value) if isinstance(value, Decimal) else value for name, value in plain.items()} | {
        "price": price,
        "parts": parts,
    }
