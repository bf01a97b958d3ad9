"""Reuse: of the prompt tokens that engines were given, how many a prefix cache could have had, how many their order put
right behind a prompt that begins alike, and how many the engine's cache had."""

from collections.abc import Iterable
from dataclasses import dataclass

from actors.beginnings import Begun, different


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Shares of the prompt tokens, 0..1."""

    available: float  # to a cache that is shared by all engines and forgets nothing; estimated, to some 2 %
    captured: float  # by order alone: to a cache that holds no more than the prompt before
    delivered: float | None  # by the engines, as they say. None: nothing was answered

    @classmethod
    def of(cls, seen: Iterable[Begun], *, delivered: float | None) -> "Reuse | None":
        """From what each host has seen; None: no prompt entered an engine."""
        hosts = [one for one in seen if one.tokens]
        tokens = sum(one.tokens for one in hosts)
        if not tokens:
            return None
        once = different(one.sketch for one in hosts) * hosts[0].block
        captured = sum(one.after_one_alike for one in hosts)
        shared = max(captured, sum(one.in_blocks for one in hosts) - once)  # an estimate may be below what is known
        return cls(available=shared / tokens, captured=captured / tokens, delivered=delivered)

    def words(self) -> str:
        """For people."""
        told = f"{self.available * 100:.0f} % of the prompt tokens were to be had (estimated), "
        cached = "" if self.delivered is None else f", {self.delivered * 100:.0f} % were in the engines' caches"
        return f"{told}{self.captured * 100:.0f} % stood behind a prompt that begins alike{cached}"
