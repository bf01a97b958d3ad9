"""Outcome: what became of one row in an engine; and outcomes as lines of ANSWERS, there and back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from actors.engine import Alternative, Answer
from actors.exchange import ALTERNATIVE, ANSWERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one row: an answer or an error, never both."""

    answer: Answer | None = None
    error_type: str | None = None  # engine: refused by it; poison, timeout: kills engines, or makes them hang
    error: str | None = None
    attempts: int = 0  # times that an engine was asked
    asked_again: int = 0  # times because the answer was not accepted
    device_seconds: float = 0.0  # over all attempts
    shared: bool = False  # it is another row's, with the same key, and cost nothing

    def then(self, later: "Outcome") -> "Outcome":
        """How the row ended that was asked again: as it did later, for the price of both."""
        answer = later.answer
        if self.answer and answer:
            counts = ("prompt_tokens", "cached_tokens", "output_tokens")
            answer = replace(answer, **{name: getattr(self.answer, name) + getattr(answer, name) for name in counts})
        return replace(
            later,
            answer=answer,
            attempts=self.attempts + later.attempts,
            asked_again=self.asked_again + 1,
            device_seconds=self.device_seconds + later.device_seconds,
        )


def answers_table(outcomes: Sequence[Outcome]) -> pa.Table:
    """ANSWERS, one line for each outcome."""
    answers = [outcome.answer for outcome in outcomes]
    columns: dict[str, list[Any]] = {
        "_answer": [answer and answer.text for answer in answers],
        "_finish_reason": [answer and answer.finish_reason for answer in answers],
        "_prompt_tokens": [answer and answer.prompt_tokens for answer in answers],
        "_cached_tokens": [answer and answer.cached_tokens for answer in answers],
        "_output_tokens": [answer and answer.output_tokens for answer in answers],
        "_token_logprobs": [answer and answer.token_logprobs for answer in answers],
        "_alternatives": [answer and _alternatives(answer.alternatives) for answer in answers],
        "_device_seconds": [outcome.device_seconds for outcome in outcomes],
        "_attempts": [outcome.attempts for outcome in outcomes],
        "_error_type": [outcome.error_type for outcome in outcomes],
        "_error": [outcome.error for outcome in outcomes],
        "_shared": [outcome.shared for outcome in outcomes],
    }
    return pa.table([pa.array(columns[each.name], each.type) for each in ANSWERS], schema=ANSWERS)


def unit_answers(
    rows: Sequence[Mapping[str, Any]], outcomes: Iterator[Outcome], *, asked_again: bool = False
) -> pa.Table:
    """ANSWERS for a unit's rows, lines of PROMPTS: the next outcome for each that has a prompt, the others' own errors.

    `asked_again`: with a column that says how often each was.
    """
    ended = [
        next(outcomes) if row["_prompt"] is not None else Outcome(error_type=row["_error_type"], error=row["_error"])
        for row in rows
    ]
    answers = answers_table(ended)
    if not asked_again:
        return answers
    return answers.append_column("_asked_again", pa.array([each.asked_again for each in ended], pa.int32()))


def _alternatives(positions: Sequence[Sequence[Alternative]]) -> list[list[dict[str, Any]]]:
    names = [each.name for each in ALTERNATIVE]
    return [[{name: getattr(option, name) for name in names} for option in options] for options in positions]


def answered(row: Mapping[str, Any], *, asked_again: int = 0) -> Outcome:
    """The outcome in a line of ANSWERS that holds an answer."""
    return Outcome(
        answer=Answer(
            text=row["_answer"],
            finish_reason=row["_finish_reason"],
            prompt_tokens=row["_prompt_tokens"],
            cached_tokens=row["_cached_tokens"],
            output_tokens=row["_output_tokens"],
            token_logprobs=tuple(row["_token_logprobs"]),
            alternatives=tuple(tuple(Alternative(**each) for each in options) for options in row["_alternatives"]),
        ),
        attempts=row["_attempts"],
        asked_again=asked_again,
        device_seconds=row["_device_seconds"],
    )
