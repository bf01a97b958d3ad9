"""Ladder: what a job may do about a row before it becomes a dead letter. Off unless the job says otherwise.

An answer that breaks its contract is asked again, with what was wrong with it; a prompt that is too long for the model
loses part of its longest text. Both are marked in the row: `_asked_again` (times), `_cut_chars`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from actors.engine import Answer
from pipelines.config import LadderConfig, UserError
from pipelines.job.chat import Chat, open_chat
from pipelines.job.contract import OutputContract
from pipelines.job.filters import RowError
from pipelines.job.model import ModelFiles, tokenizer_here

GAP = " […] "  # where the middle of a text was
MOST_TRIES = 16  # to find how much of a text fits

Prompt = TypeVar("Prompt")


def marks(ladder: LadderConfig) -> list[pa.Field]:
    """The columns that tell of each row how far up the ladder it went; none for a ladder that is off."""
    fields = []
    if ladder.too_long != "error":
        fields.append(pa.field("_cut_chars", pa.int32()))
    if ladder.ask_again:
        fields.append(pa.field("_asked_again", pa.int32()))
    return fields


# ------------------------------------------------------------------------------------------------- asked again


@dataclass(frozen=True, slots=True, kw_only=True)
class AskAgain:
    """The next question after an answer that breaks its contract. Picklable: it travels to every engine."""

    times: int  # at most, for one row
    model: ModelFiles
    contract: OutputContract
    max_tokens: int
    max_model_len: int  # prompt and answer together

    def __call__(self, token_ids: tuple[int, ...], answer: Answer) -> tuple[int, ...] | None:
        """The prompt that goes on from this one and its answer; None: the answer is good, or there is no room."""
        verdict = self.contract.read(answer.text, answer.finish_reason)
        if verdict.error_type is None:
            return None
        chat = open_chat(tokenizer_here(self.model), self.model.vocab_size, self.model.chat_arguments)
        try:
            following = follow_up(chat, answer.text, f"Your answer is not accepted: {verdict.error}. Answer again.")
        except RowError:
            return None
        prompt = (*token_ids, *following)
        return prompt if len(prompt) + self.max_tokens <= self.max_model_len else None


def follow_up(chat: Chat, answer: str, message: str) -> list[int]:
    """Token ids that go behind any prompt of this chat: its answer, then `message`, then the turn to answer again.

    Raises:
        RowError: the answer cannot be quoted, or the model's chat template does not go on from a prompt.
    """
    short = chat.tokens([("user", "x")])
    whole = chat.tokens([("user", "x"), ("assistant", answer), ("user", message)])
    if whole[: len(short)] != short:
        raise RowError("template", "the model's chat template rewrites earlier turns")
    return whole[len(short) :]


def check(ladder: LadderConfig, chat: Chat, *, job: str) -> None:
    """See before the start that the model's chat template can go on from an answer, if the ladder needs that.

    Raises:
        UserError: it cannot.
    """
    if ladder.ask_again:
        try:
            follow_up(chat, "x", "x")
        except RowError as error:
            why = f"does not go with this model: {error.reason}; set it to 0"
            raise UserError(f"job {job}: ladder.ask_again={ladder.ask_again} {why}") from None


# ------------------------------------------------------------------------------------------------- cut


def shortened(
    row: Mapping[str, Any],
    printed: tuple[str, ...],
    ladder: LadderConfig,
    fitting: Callable[[dict[str, Any]], Prompt | None],
    most_chars: int,
) -> tuple[Prompt, int] | None:
    """The prompt of a row whose longest printed text is cut until it fits, and how many characters that took.

    `fitting` makes the prompt of a row, None if it is too long; no text of more than `most_chars` characters can fit.
    None: nothing is left to cut. Found by halving, so at most a 2^-16th of the text is cut in vain.
    """
    texts = {name: row[name] for name in printed if isinstance(row[name], str)}
    if not texts:
        return None
    name = max(texts, key=lambda each: len(texts[each]))
    text = texts[name]
    low, high = 0, min(len(text), most_chars + 1)  # so many characters fit, so many do not
    best: Prompt | None = None
    for _ in range(MOST_TRIES):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        prompt = fitting({**row, name: _cut(text, middle, ladder.too_long)})
        if prompt is None:
            high = middle
        else:
            low, best = middle, prompt
    return None if best is None else (best, len(text) - low)


def _cut(text: str, keep: int, policy: str) -> str:
    if policy == "cut_end":
        return text[:keep]
    if policy == "cut_start":
        return text[len(text) - keep :]
    return f"{text[: keep - keep // 2]}{GAP}{text[len(text) - keep // 2 :]}"
