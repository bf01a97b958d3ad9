"""A replica: one engine kept alive. A lost one is rebuilt in place, the rows that were in it are asked again, and a
row that kills engines is found.

A row that was in the engine at two deaths is a suspect, and is asked with nothing else in the engine, after a harmless
prompt has shown that this engine answers at all. Two engines that die so prove it guilty, and it becomes a dead
letter; an answer acquits it. One guilty row costs four engine starts, and each row beside it one solitary try; rows
that are guilty together share the first two. Where the engine takes its process along, a `Dossier` keeps the count.
"""

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable
from time import monotonic

from actors.beginnings import Beginnings
from actors.busy import BusyTime
from actors.engine import Answer, BadPrompt, Engine, EngineLost, Prompt, Sampling
from actors.evidence import Past
from actors.hang import hangs_for
from actors.lengths import Lengths
from actors.outcome import Outcome
from actors.restarts import Restarts
from actors.trial import SOLITARY_DEATHS, Dossier, Life, Trial
from actors.window import Admission, Window

logger = logging.getLogger(__name__)

NO_PAST = Past()


class Replica:
    """Asks one engine after the other, each made by `open_engine`. Belongs to one event loop."""

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        *,
        window: Window,
        max_num_seqs: int,
        block: int | None = None,  # tokens of one KV block; None: the engine's default
        devices: int = 1,
        max_restarts: int = 3,
        max_restarts_per_hour: int = 30,
        past: Past = NO_PAST,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Open the first engine.

        Raises:
            EngineLost: it does not start, or by its past this replica is beyond its caps.
        """
        self._open = open_engine
        self._clock = clock
        self.restarts = Restarts(past, most=max_restarts, most_per_hour=max_restarts_per_hour)
        self._rebuilding: asyncio.Task[None] | None = None
        # Given up: nobody is answered any more.
        self._gone: EngineLost | None = self.restarts.beyond_caps(last_was_harmless=past.harmless)
        if self._gone:
            raise self._gone
        self._life = Life(engine=open_engine(), moved_at=clock())
        self._unproven = self.restarts.in_a_loop
        self._answered: Prompt | None = None  # the last one that an engine answered
        self._lengths = Lengths(block)
        self.admission = Admission(window, max_num_seqs, self._lengths)
        self._ordered = window.ordered
        self.beginnings = Beginnings(block)
        self.busy = BusyTime(devices, clock)
        self.vain_device_seconds = 0.0  # of tries that ended in no answer, or in one that was asked for again
        self.rows_ended = 0

    @property
    def engine(self) -> Engine:
        """The engine of this moment."""
        return self._life.engine

    @property
    def rebuilding(self) -> bool:
        """Whether the next engine is being started."""
        return self._rebuilding is not None

    async def ask(
        self,
        prompt: Prompt,
        begun: Callable[[], None] = lambda: None,
        dossier: Dossier | None = None,
        *,
        early: bool = False,
    ) -> Outcome:
        """How the row ended. `begun` is called when an engine is about to see it; `early`: before all that wait.

        Raises:
            EngineLost: the engine could not be kept alive within the caps; nothing here is answered any more.
        """
        trial = Trial(earlier=dossier.deaths, hung=dossier.hung) if dossier else Trial()
        if trial.proved:
            return self._condemned(trial)
        trial.alone = trial.suspected
        # A place is kept after a death: the rows that were in go in again before any other. Suspects go before all.
        # Big-endian, so that bytes are ordered as the ids are. Of early ones the bytes are less than of any other.
        ids = prompt.token_ids
        order = struct.pack(f">?{len(ids)}i", not early, *ids) if self._ordered else b""
        place = self.admission.solitude() if trial.alone else self.admission.place(order, len(ids))
        async with place:
            while True:
                if dossier and trial.inside:  # until here, for the process may have had to die with the engine
                    await self._living()
                    dossier.leaves(answered=False)
                    trial.inside = False
                if trial.suspected and not trial.alone:
                    await self.admission.go_alone()
                    trial.alone = True
                life = await self._living()
                begun()
                if not trial.attempts:
                    self.beginnings.enters(prompt.token_ids)
                if trial.alone and not await self._is_sound(life):
                    continue
                outcome = await self._try(life, prompt, trial, dossier)
                if outcome:
                    return outcome

    def close(self) -> None:
        """Free the engine; rows that are in it, or come later, get EngineLost."""
        self._gone = self._gone or EngineLost("the replica was closed")
        self._life.engine.close()

    async def watch(self) -> None:
        """Give up an engine that has rows in it and does not move. To be called every now and then.

        Raises:
            EngineLost: it cannot be stopped without this process.
        """
        life, now = self._life, self._clock()
        if life.rows_at_death is not None:
            return
        progress = (self.rows_ended, life.engine.load().tokens)
        limit_s = hangs_for(life, progress, rows=self.busy.rows, now=now)
        if limit_s is not None:
            life.hung = True
            error = EngineLost(f"the engine hangs: no token for {limit_s:.0f} s with {self.busy.rows} rows in it")
            self._note_death(life, error)
            try:
                await asyncio.to_thread(life.engine.close)  # ends the calls in flight
            except EngineLost as stuck:
                raise EngineLost(f"{error}; {stuck}") from stuck

    async def _try(self, life: Life, prompt: Prompt, trial: Trial, dossier: Dossier | None) -> Outcome | None:
        """Ask once. None: the engine was lost, and the row is not known to be the reason."""
        answer: Answer | None = None
        error_type, text = None, None
        if dossier:
            await dossier.enters()
            trial.inside = True
            if life.rows_at_death is not None:  # it died meanwhile, and not of this row
                return None
        trial.attempts += 1
        lost = False
        mark = self.busy.enter()
        try:
            answer = await life.engine.answer(prompt)
        except BadPrompt as error:
            error_type, text = "engine", str(error)
            lost = True
        except EngineLost as error:
            self._note_death(life, error)
            trial.deaths.append(life)
            trial.hung = life.hung
            lost = True
            if not trial.proved:
                return None
        finally:
            share = self.busy.leave(mark)
            trial.device_seconds += share
            self.vain_device_seconds += share if lost else 0.0  # not of a row that is handed back, which has no receipt
        if dossier:
            dossier.leaves(answered=answer is not None or error_type is not None)
        if answer is None and error_type is None:
            return self._condemned(trial)
        if answer:
            self._answered = prompt
            self._lengths.see(answer)
            self.restarts.fruitless = 0
        return self._ended(trial, answer=answer, error_type=error_type, error=text)

    def _condemned(self, trial: Trial) -> Outcome:
        alone = f"the last {SOLITARY_DEATHS} with no other row"
        text = f"{trial.deaths_seen} engines were lost with this row, {alone}: {self.restarts.last_words}"
        return self._ended(trial, error_type="timeout" if trial.hung else "poison", error=text)

    def _ended(
        self, trial: Trial, *, answer: Answer | None = None, error_type: str | None = None, error: str | None = None
    ) -> Outcome:
        self._judge(trial, guilty=error_type in ("poison", "timeout"))
        self.rows_ended += 1
        return Outcome(
            answer=answer,
            error_type=error_type,
            error=error,
            attempts=trial.earlier + trial.attempts,
            device_seconds=trial.device_seconds,
        )

    async def _is_sound(self, life: Life) -> bool:
        """Whether this engine answers what has been answered before; if it dies of that, no suspect is to blame."""
        harmless = self._answered or Prompt(key="", token_ids=(1,), sampling=Sampling(max_tokens=1))
        try:
            await life.engine.answer(harmless)
        except BadPrompt:
            pass  # an answer of a kind
        except EngineLost as error:
            life.harmless = True
            self._note_death(life, error)
            return False
        return True

    def _judge(self, trial: Trial, *, guilty: bool) -> None:
        """Explain the deaths that a row went through, or take it off the suspects. Found guilty, it uses up no restart.

        A death without suspects left was the engine's own, and counts against `max_restarts`.
        """
        for life in trial.deaths:
            life.explained |= guilty
            life.suspects -= 1
            self.restarts.unexplained += life.suspects == 0 and not life.explained

    def _note_death(self, life: Life, error: EngineLost) -> None:
        """Count a death once, whichever row tells it first: all others are still counted as in the engine."""
        if life.rows_at_death is None:
            life.rows_at_death = life.suspects = self.busy.rows
            self.restarts.died(error, suspects=life.suspects)
            logger.warning("engine lost with %d rows in it: %s", life.rows_at_death, error)

    async def _living(self) -> Life:
        """The engine, after its rebuild if it has died: whoever comes first starts that, all wait for it."""
        while self._gone or self._unproven or self._life.rows_at_death is not None:
            if self._gone:
                raise self._gone
            if self._rebuilding is None:
                self._rebuilding = asyncio.create_task(self._prove() if self._unproven else self._rebuild())
            await asyncio.shield(self._rebuilding)
        return self._life

    async def _prove(self) -> None:
        """Before this process's first engine has any row in it: the processes before it died without an answer."""
        try:
            await self._is_sound(self._life)
        finally:
            self._unproven = False
            self._rebuilding = None

    async def _rebuild(self) -> None:
        try:
            self._gone = self.restarts.beyond_caps(last_was_harmless=self._life.harmless)
            if self._gone:
                logger.error("given up: %s", self._gone)
                return
            with contextlib.suppress(EngineLost):  # it is lost already
                await asyncio.to_thread(self._life.engine.close)
            try:
                engine = await asyncio.to_thread(self._open)
            except Exception as error:
                self._gone = EngineLost(f"engine lost ({self.restarts.last_words}) and not started again: {error}")
                raise self._gone from error
            life = self._life = Life(engine=engine, moved_at=self._clock())
            self.restarts.started()
            logger.warning("engine started again, for the %d. time in this process", self.restarts.here)
            if self.restarts.in_a_loop:
                await self._is_sound(life)
        finally:
            self._rebuilding = None
