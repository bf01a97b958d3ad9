"""Rows of a unit to prompts: render, tokenize, check the length, key. What cannot be asked gets its reason here."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.engine import Sampling
from actors.exchange import PROMPTS
from pipelines.config import LadderConfig, MessageConfig
from pipelines.job.chat import Chat, Ids, open_chat
from pipelines.job.filters import RowError
from pipelines.job.fingerprint import row_key
from pipelines.job.ladder import marks, shortened
from pipelines.job.model import ModelFiles, tokenizer_here
from pipelines.job.row_order import Rules
from pipelines.job.template import Message, Template, compile_messages
from pipelines.stages.carry import Carried

(_CUT,) = marks(LadderConfig(too_long="cut_end"))
BLANKS = "\x00\ufeff\u200b\u2060"  # besides white space: NUL, byte order mark, and spaces of no width


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSpec:
    """What turns rows into prompts. Small and picklable: it travels to every task."""

    job: str
    messages: tuple[MessageConfig, ...]
    fields: tuple[str, ...] = ()  # the columns in `{{ fields }}`, in order
    rules: Rules | None = None  # that give each row an order of its own; None: that one
    ladder: LadderConfig = field(default_factory=LadderConfig)
    model: ModelFiles
    max_model_len: int  # prompt and output tokens together
    sampling: Sampling
    fingerprint: str  # digest


def prepare(rows: pa.Table, spec: PrepareSpec, carried: Carried | None = None) -> pa.Table:
    """The prompts of a unit: a table of `PROMPTS`, line by line the rows of `rows`.

    A row that is `carried` gets no prompt, and if it stays a dead letter, its error. A row that has an error keeps it.
    Otherwise a row gets a key and a prompt, or an error of type
        empty       all columns that the messages print are null, blank or empty in it
        unreadable  its text is no valid Unicode
        template    the messages, or the model's chat template, cannot be rendered for it
        too_long    its prompt and `sampling.max_tokens` together are over `max_model_len`
    """
    template = _template(spec.job, spec.messages, spec.fields, spec.rules)
    chat = open_chat(tokenizer_here(spec.model), spec.model.vocab_size, spec.model.chat_arguments)
    errors: list[RowError | None] = [
        None if kind is None else RowError(kind, reason or "")
        for kind, reason in zip(rows["_error_type"].to_pylist(), rows["_error"].to_pylist(), strict=True)
    ]
    settled = _settled(carried, errors)
    asked: list[int] = []
    chats: list[list[Message]] = []
    values = _values(rows, template.columns)
    for line, row in enumerate(values):
        if errors[line] is not None or line in settled:
            continue
        rendered = row if isinstance(row, RowError) else _rendered(row, template, chat, spec)
        if isinstance(rendered, RowError):
            errors[line] = rendered
        else:
            asked.append(line)
            chats.append(rendered)
    prompts: list[Ids | None] = [None] * rows.num_rows
    for line, ids in zip(asked, chat.batch(chats), strict=True):
        if isinstance(ids, RowError):
            errors[line] = ids
        elif len(ids) + spec.sampling.max_tokens > spec.max_model_len:
            errors[line] = _too_long(f"{len(ids):,}", spec)
        else:
            prompts[line] = ids
    if spec.ladder.too_long == "error":
        return _table(prompts, errors, spec.fingerprint)
    cut = _shorten(values, prompts, errors, template, chat, spec, settled)
    return _table(prompts, errors, spec.fingerprint).append_column(_CUT, pa.array(cut, _CUT.type))


def _shorten(
    values: list[dict[str, Any] | RowError],
    prompts: list[Ids | None],
    errors: list[RowError | None],
    template: Template,
    chat: Chat,
    spec: PrepareSpec,
    settled: set[int],
) -> list[int | None]:
    """Give rows that are too long the prompt that fits, where part of a text can go; how many characters went."""
    cut: list[int | None] = [None if ids is None else 0 for ids in prompts]
    room = spec.max_model_len - spec.sampling.max_tokens

    def fitting(row: dict[str, Any]) -> Ids | None:
        rendered = _rendered(row, template, chat, spec)
        ids = rendered if isinstance(rendered, RowError) else chat.batch([rendered])[0]
        return None if isinstance(ids, RowError) or len(ids) > room else ids

    for line, error in enumerate(errors):
        row = values[line]
        if error is None or error.type != "too_long" or line in settled:
            continue
        if not isinstance(row, RowError):
            found = shortened(row, template.printed, spec.ladder, fitting, room * chat.longest_token)
            if found:
                prompts[line], cut[line] = found
                errors[line] = None
    return cut


def _settled(carried: Carried | None, errors: list[RowError | None]) -> set[int]:
    """Lines for which there is nothing to ask; of those that stay dead letters, their error is put in."""
    if carried is None:
        return set()
    if carried.dead is not None:
        for letter in carried.dead.filter(pc.invert(carried.dead["_again"])).to_pylist():
            errors[letter["_line"]] = RowError(letter["_error_type"], letter["_error"])
    for line in carried.data["_line"].to_pylist():
        errors[line] = None
    return set(carried.lines.tolist())


def without_prompts(prompts: pa.Table, carried: Carried) -> pa.Table:
    """`prompts`, where no engine is asked for the rows that are carried."""
    keep = np.ones(prompts.num_rows, np.bool_)
    keep[carried.lines] = False
    at = prompts.schema.get_field_index("_prompt")
    asked = pc.if_else(pa.array(keep), prompts["_prompt"], pa.scalar(None, PROMPTS.field("_prompt").type))
    return prompts.set_column(at, PROMPTS.field("_prompt"), asked)


@functools.lru_cache(maxsize=8)
def _template(job: str, messages: tuple[MessageConfig, ...], fields: tuple[str, ...], rules: Rules | None) -> Template:
    return compile_messages(messages, job=job, fields=fields, rules=rules)


def _values(rows: pa.Table, columns: Sequence[str]) -> list[dict[str, Any] | RowError]:
    """The columns of each row as Python values."""
    needed = rows.select(list(columns))
    try:
        return needed.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [_value(needed.slice(line, 1)) for line in range(rows.num_rows)]


def _value(row: pa.Table) -> dict[str, Any] | RowError:
    try:
        return row.to_pylist()[0]  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return RowError("unreadable", "its text is no valid UTF-8")


def _rendered(row: dict[str, Any], template: Template, chat: Chat, spec: PrepareSpec) -> list[Message] | RowError:
    if all(_blank(row[name]) for name in template.printed):
        return RowError("empty", f"nothing to ask about: {', '.join(template.printed)} null, blank or empty")
    try:
        messages = template.render(row)
    except RowError as error:
        return error
    # Ten megabytes of text take seconds to tokenize, only to be too long.
    fewest = chat.fewest_tokens(sum(len(content) for _, content in messages))
    if fewest + spec.sampling.max_tokens > spec.max_model_len:
        return _too_long(f"at least {fewest:,}", spec)
    return messages


def _blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip().strip(BLANKS).strip()
    if isinstance(value, dict):
        return all(map(_blank, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_blank, value))
    return value is None


def _too_long(tokens: str, spec: PrepareSpec) -> RowError:
    most = f"the {spec.max_model_len:,} tokens of max_model_len"
    return RowError("too_long", f"{tokens} prompt tokens + {spec.sampling.max_tokens:,} for the answer are over {most}")


def _table(prompts: list[Ids | None], errors: list[RowError | None], fingerprint: str) -> pa.Table:
    keys = [None if ids is None else row_key(fingerprint, ids) for ids in prompts]
    present = [ids for ids in prompts if ids is not None]
    offsets = np.zeros(len(prompts) + 1, np.int32)
    np.cumsum([0 if ids is None else len(ids) for ids in prompts], out=offsets[1:])
    flat = np.concatenate(present) if present else np.zeros(0, np.int32)
    missing = pa.array([ids is None for ids in prompts], pa.bool_())
    return pa.table(
        [
            pa.array(keys, pa.string()),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), mask=missing),
            pa.array([None if error is None else error.type for error in errors], pa.string()),
            pa.array([None if error is None else error.reason for error in errors], pa.string()),
        ],
        schema=PROMPTS,
    )
