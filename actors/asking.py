"""Asking the rows of a unit: each gets the answer that is known, or what the engine says, asked again where that is not
accepted; and what a run of rows has cost is counted."""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.engine import Answer, Constraint, Prompt, Sampling
from actors.evidence import Suspicion, Verdict, Witness
from actors.outcome import Outcome
from actors.overdue import Overdues
from actors.replica import Replica
from actors.sharing import Sharing, shared
from actors.trial import Dossier


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of an engine beside a row's tokens: the same for all rows of a run."""

    sampling: Sampling
    constraint: Constraint
    alternatives: int = 0
    again: Callable[[tuple[int, ...], Answer], tuple[int, ...] | None] | None = None  # the next prompt; None: good
    ask_again: int = 0  # times that a row is asked again at most


@dataclass(slots=True, eq=False)
class HostedUnit:
    """A unit whose rows are here."""

    name: str
    suspicion: Suspicion
    known: Mapping[str, tuple[int | None, Outcome]]  # noted answers by row key, and which of its lines asked for them
    rows: list["asyncio.Task[Outcome]"] = field(default_factory=list)
    early: bool = False  # its rows are wanted before all that wait
    begun: bool = False  # an engine has seen a row of it
    handed_back: bool = False

    def begin(self) -> None:
        """An engine is about to see a row of it."""
        self.begun = True

    def hand_back(self) -> None:
        """Ask no more of its rows; it is to be done by another host."""
        self.handed_back = True
        for row in self.rows:
            row.cancel()


@dataclass(slots=True)
class _RowDossier:
    """See `Dossier`."""

    witness: Witness
    unit: str
    line: int
    deaths: int
    hung: bool

    async def enters(self) -> None:
        await self.witness.enters(self.unit, self.line)

    def leaves(self, *, answered: bool) -> None:
        self.witness.leaves(self.unit, self.line, answered=answered)


class Asking:
    """Asks one replica. `ended` is called whenever a row has left the engine for good."""

    def __init__(
        self,
        question: Question,
        replica: Replica,
        *,
        sharing: Sharing | None,
        witness: Witness | None,
        overdues: Overdues,
        ended: Callable[[], None],
    ) -> None:
        self._question = question
        self._replica = replica
        self._sharing = sharing
        self._witness = witness
        self._overdues = overdues
        self._ended = ended
        self.tokens = {"prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0}  # of all answers
        self.longest = (0, 0)  # output and prompt tokens of the row with most of the former

    async def row(self, row: dict[str, Any], line: int, unit: HostedUnit) -> Outcome:
        """What this row is told, or has been told, or another with its key."""
        if self._sharing is None:
            return await self._ask(row, line, unit)
        if (noted := unit.known.get(row["_key"])) is not None:
            owner, outcome = noted
            return outcome if owner == line else shared(outcome)
        place = (row["_place"], row["_place_row"]) if "_place" in row else None
        return await self._sharing.once(unit.name, line, row["_key"], lambda: self._ask(row, line, unit), place)

    async def _ask(self, row: dict[str, Any], line: int, unit: HostedUnit) -> Outcome:
        known, suspicion, question = unit.suspicion.guilty.get(row["_key"]), unit.suspicion, self._question
        if known:
            return Outcome(error_type=known.error_type, error=known.error)
        dossier = None
        if self._witness and suspicion.watched:
            deaths = suspicion.deaths.get(line, suspicion.base)
            dossier = _RowDossier(self._witness, unit.name, line, deaths, suspicion.hung)
        prompt = Prompt(
            key=row["_key"],
            token_ids=tuple(row["_prompt"]),
            sampling=question.sampling,
            constraint=question.constraint,
            alternatives=question.alternatives,
        )
        outcome = await self._in_engine(prompt, line, unit, dossier)
        self._ended()
        in_vain = 0.0
        for _ in range(question.ask_again):
            following = question.again(prompt.token_ids, outcome.answer) if question.again and outcome.answer else None
            if following is None:
                break
            self._replica.vain_device_seconds += outcome.device_seconds - in_vain
            in_vain = outcome.device_seconds
            prompt = dataclasses.replace(prompt, token_ids=following)
            outcome = outcome.then(await self._in_engine(prompt, line, unit, dossier))
        if self._witness and outcome.error_type in ("poison", "timeout"):
            verdict = Verdict(error_type=outcome.error_type, error=outcome.error or "")
            self._witness.condemns(unit.name, line, row["_key"], verdict)
        if answer := outcome.answer:
            for name in self.tokens:
                self.tokens[name] += getattr(answer, name)
            self.longest = max(self.longest, (answer.output_tokens, answer.prompt_tokens))
        return outcome

    async def _in_engine(self, prompt: Prompt, line: int, unit: HostedUnit, dossier: Dossier | None) -> Outcome:
        def begun() -> None:
            unit.begin()
            self._overdues.enters(unit.name, line)

        ended = False
        try:
            outcome = await self._replica.ask(prompt, begun, dossier, early=unit.early)
            ended = True
        finally:
            self._overdues.leaves(unit.name, line, ended=ended)
        return outcome
