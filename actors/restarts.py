"""How often engines of a replica died, and whether another one may be started."""

import time

from actors.engine import EngineLost
from actors.evidence import Past
from actors.journal import HOUR_S

# research/reliability.md B3: where each limit comes from.
CRASH_LOOP = 3  # engines lost without a row answered between them, the last one by a harmless prompt
FRUITLESS_DEATHS = 10  # or so many, whatever the last one died of: three guilty rows, one after the other, and more
FAILED_STARTS = 2  # processes in a row that died while their engine was starting


class Restarts:
    """Counts deaths and starts, those of earlier processes included, against their caps."""

    def __init__(self, past: Past, *, most: int, most_per_hour: int) -> None:
        self._past = past
        self._most = most
        self._most_per_hour = most_per_hour
        self._at = list(past.restarts)  # epoch seconds
        self.here = 0  # in this process
        self.fruitless = past.fruitless  # deaths since a row was last answered
        self.unexplained = 0  # deaths of which all suspects were acquitted; not those before this process
        self.last_words = past.last_words

    @property
    def in_a_loop(self) -> bool:
        """One death more without an answer is too many: the next engine must show that it is sound."""
        return self.fruitless >= CRASH_LOOP - 1

    def died(self, error: EngineLost, *, suspects: int) -> None:
        """An engine did, with so many rows in it."""
        self.fruitless += 1
        self.unexplained += suspects == 0
        self.last_words = str(error)

    def started(self) -> None:
        """Another engine was."""
        self.here += 1
        self._at.append(time.time())

    def beyond_caps(self, *, last_was_harmless: bool) -> EngineLost | None:
        """Why no other engine is started; None: one may be. `last_was_harmless`: nothing but the prompt that proves an
        engine sound was in the last one that died."""
        unexplained = self._past.unexplained + self.unexplained
        hour = sum(at > time.time() - HOUR_S for at in self._at)
        if self._past.failed_starts >= FAILED_STARTS:
            why = f"{self._past.failed_starts} processes in a row died before their engine had started"
        elif self.fruitless >= (CRASH_LOOP if last_was_harmless else FRUITLESS_DEATHS):
            why = f"{self.fruitless} engines in a row were lost before any row was answered"
        elif unexplained > self._most:
            limit = f"engine.max_restarts allows {self._most}"
            why = f"{unexplained} engines were lost, and not by a row's doing; {limit}"
        elif hour > self._most_per_hour:
            limit = f"engine.max_restarts_per_hour allows {self._most_per_hour}"
            why = f"{hour} engines were lost within an hour, whatever the reason; {limit}"
        else:
            return None
        return EngineLost(f"{why}; the last one: {self.last_words}")
