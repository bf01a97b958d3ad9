"""What a template may do to a value: how each kind of value prints, and the filters there are, all of them bounded.

A filter bounds what it is about to make before it makes it. None of them reads an attribute, calls what it is given
or multiplies text.
"""

import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import jinja2

MAX_CHARS = 8 * 2**20  # of all messages of a row, and of what a filter makes on the way


class RowError(Exception):
    """One row cannot be asked: its dead letter's type and reason. The run goes on."""

    def __init__(self, type: str, reason: str) -> None:
        super().__init__(type, reason)
        self.type = type
        self.reason = reason


def _plain(value: object) -> str | int | float | bool | None:
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    kind = type(value).__name__
    raise RowError("template", f"a value of type {kind} has no text; leave its column out of the prompt")


def text_of(value: Any) -> str:
    """How a value prints."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, jinja2.Undefined):
        return str(value)  # raises, with the name
    if isinstance(value, Mapping | list | tuple | bool):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    if isinstance(value, int | float):
        return str(value)
    return str(_plain(value))


def _bounded(chars: int) -> None:
    if chars > MAX_CHARS:
        raise RowError("template", f"it would make {chars:,} characters; the bound is {MAX_CHARS:,}")


def _join(value: Any, separator: str = "") -> str:
    parts = [text_of(item) for item in value] if isinstance(value, list | tuple) else [text_of(value)]
    _bounded(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def _replace(value: Any, old: str, new: str) -> str:
    text = text_of(value)
    if not old:
        raise RowError("template", "filter replace has nothing to look for")
    _bounded(len(text) + text.count(old) * max(0, len(new) - len(old)))
    return text.replace(old, new)


def _truncate(value: Any, length: int = 255, end: str = "…") -> str:
    text = text_of(value)
    return text if len(text) <= length else text[:length] + end


def _default(value: Any, other: Any = "", blank: bool = False) -> Any:
    """`other` for null; with `blank`, for an empty or blank text as well."""
    return other if value is None or (blank and not text_of(value).strip()) else value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise RowError("template", f"filter list needs a list, not {type(value).__name__}")
    return list(value)


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": lambda value: abs(value),
    "capitalize": lambda value: text_of(value).capitalize(),
    "d": _default,
    "default": _default,
    "first": lambda value: value[0] if value else None,
    "float": _number,
    "int": lambda value: int(_number(value)),
    "join": _join,
    "last": lambda value: value[-1] if value else None,
    "length": lambda value: 0 if value is None else len(value),
    "list": _list,
    "lower": lambda value: text_of(value).lower(),
    "replace": _replace,
    "round": lambda value, digits=0: round(value, digits) if digits else round(value),
    "string": text_of,
    "title": lambda value: text_of(value).title(),
    "tojson": lambda value: json.dumps(value, ensure_ascii=False, default=_plain),
    "trim": lambda value: text_of(value).strip(),
    "truncate": _truncate,
    "upper": lambda value: text_of(value).upper(),
}
