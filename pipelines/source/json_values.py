"""JSON values and columns: which type a value suggests, and a value as one of a column's type, or why it is none.

Numbers are kept as they are written until a type is known, so that none is rounded on its way: an integer beyond
2^53 never becomes a float, one beyond int64 never wraps. A column of strings takes any other value as its JSON
text (`7`, `1.10`, `true`, `{"a":1}`). Objects lose keys that the column's type does not have; `unknown` collects them.
"""

import json
import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from pipelines.source.types import Refused, common

_DEPTH = 64  # of nesting: deeper ones are no data
_MOST_KEYS = 256  # of the objects under one key together: with more it is no record but a dictionary, kept as text
_INTEGER = re.compile(r"-?\d{1,40}")


class Number(str):
    """A JSON number as it is written."""

    __slots__ = ()


class Unfit(Exception):
    """A value that is none of its column's type; the text names both."""


_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=Number)


def parsed(line: bytes) -> dict[str, Any]:
    """The object in one line of JSONL, its numbers as `Number`.

    Raises:
        Unfit: with the reason.
    """
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Unfit(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise Unfit(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise Unfit(f"nested deeper than {_DEPTH}") from None
    if not isinstance(value, dict):
        raise Unfit(f"a JSON {_kind(value)}, not an object")
    return value


def _kind(value: object) -> str:
    names = {Number: "number", str: "string", bool: "boolean", list: "array", dict: "object", type(None): "null"}
    return names[type(value)]


# ---------------------------------------------------------------------------------------------- value to type


def suggested(value: object, depth: int = 0) -> pa.DataType:
    """The type that a value suggests for its column; objects become structs, `null` and `{}` tell nothing."""
    if depth > _DEPTH:
        return pa.string()
    if isinstance(value, Number):
        return _suggested_number(value)
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, list):
        item = pa.null()
        for element in value:
            item = mixed(item, suggested(element, depth + 1))
        return pa.list_(item)
    if isinstance(value, dict) and value:
        return pa.struct([(key, suggested(item, depth + 1)) for key, item in value.items()])
    return pa.null()


def _suggested_number(text: Number) -> pa.DataType:
    if not text.lstrip("-").isdigit():
        return pa.float64()
    if len(text) > 39:
        return pa.string()
    return pa.int64() if -(2**63) <= int(text) < 2**63 else pa.decimal128(38, 0)


def mixed(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """One type for two values under one key of a shard: what they have in common, else text."""
    if pat.is_struct(one) and pat.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = mixed(fields.get(field.name, pa.null()), field.type)
        if len(fields) > _MOST_KEYS:
            return pa.string()
        return pa.struct(list(fields.items()))
    if pat.is_list(one) and pat.is_list(other):
        return pa.list_(mixed(one.value_type, other.value_type))
    try:
        return common(one, other)
    except Refused:
        return pa.string()


# ---------------------------------------------------------------------------------------------- value of a type


def fitted(value: Any, kind: pa.DataType, unknown: set[str], path: str) -> Any:
    """`value` as pa.array takes it for a column of type `kind`.

    Raises:
        Unfit: it is no value of this type, or not without loss.
    """
    if value is None:
        return None
    if pat.is_string(kind):
        return _text(value, path)
    if pat.is_struct(kind) and isinstance(value, dict):
        unknown.update(f"{path}.{key}" for key in value.keys() - {field.name for field in kind} if len(unknown) < 20)
        return {
            field.name: fitted(value.get(field.name), field.type, unknown, f"{path}.{field.name}") for field in kind
        }
    if pat.is_list(kind) and isinstance(value, list):
        return [fitted(item, kind.value_type, unknown, path) for item in value]
    if pat.is_map(kind) and isinstance(value, dict) and pat.is_string(kind.key_type):
        return [(_text(key, path), fitted(item, kind.item_type, unknown, path)) for key, item in value.items()]
    if pat.is_boolean(kind) and isinstance(value, bool):
        return value
    if isinstance(value, Number):
        number = _number(value, kind)
        if number is not None:
            return number
    elif isinstance(value, str) and (pat.is_timestamp(kind) or pat.is_date32(kind)):
        try:
            return pa.scalar(value).cast(kind).as_py()
        except (pa.ArrowException, ValueError, OverflowError):
            pass
    shown = json_text(value)
    raise Unfit(f"column {path}: {shown[:60]!a} is no {kind}")


def _number(text: Number, kind: pa.DataType) -> int | float | Decimal | None:
    """The number as a value of `kind`; None: it is none, or not without loss."""
    try:
        if pat.is_signed_integer(kind):
            exact = Decimal(text) if len(text) <= 64 else Decimal("NaN")
            if not exact.is_finite() or exact.adjusted() > 20 or exact != exact.to_integral_value():
                return None
            return int(exact) if -(2 ** (kind.bit_width - 1)) <= exact < 2 ** (kind.bit_width - 1) else None
        if pat.is_floating(kind):
            number = float(text)
            if math.isinf(number) and "Inf" not in text:
                return None
            whole = _INTEGER.fullmatch(text) is not None
            return None if whole and int(text) != number else number
        if pat.is_decimal(kind):
            value = pa.scalar(Decimal(text), kind).as_py()
            return value if value == Decimal(text) else None
    except (ValueError, OverflowError, InvalidOperation, pa.ArrowException):
        return None
    return None


def _text(value: Any, path: str) -> str:
    text = value if isinstance(value, str) else json_text(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Unfit(f"column {path}: half of a surrogate pair, which no text can hold") from None
    return str(text)


def json_text(value: Any) -> str:
    """A parsed value as compact JSON, numbers as they were written."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_text(key)}:{json_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(json_text, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
