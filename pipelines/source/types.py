"""Types of columns: what Delta can hold of what Parquet can, and what two shards' types have in common.

Both answers are without loss: a value of either type is a value of the result, or the pair is refused.
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.types as pat

_NARROW = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.date64(): pa.date32(),
    pa.null(): pa.string(),
}
_DIGITS = {pa.int8(): 3, pa.int16(): 5, pa.int32(): 10, pa.int64(): 19}  # decimal digits that hold any value
_KEPT: tuple[Callable[[pa.DataType], bool], ...] = (
    pat.is_boolean,
    pat.is_signed_integer,
    pat.is_float32,
    pat.is_float64,
    pat.is_string,
    pat.is_binary,
    pat.is_date32,
)


class Refused(Exception):
    """A type that Delta cannot hold, or a pair that has nothing in common; the text says which and why."""


def widened(kind: pa.DataType, *, null: pa.DataType | None = None) -> pa.DataType:
    """The type that holds all values of `kind` in a Delta table; `null` stands for a column without any value.

    Raises:
        Refused: there is none.
    """
    if isinstance(kind, pa.BaseExtensionType):
        raise Refused(f"extension type {kind}")
    if pat.is_null(kind):
        return pa.string() if null is None else null
    if kind in _NARROW:
        return _NARROW[kind]
    if any(kept(kind) for kept in _KEPT):
        return kind
    if pat.is_dictionary(kind) or pat.is_run_end_encoded(kind):
        return widened(kind.value_type, null=null)
    if pat.is_fixed_size_binary(kind):
        return pa.binary()
    if pat.is_timestamp(kind):
        return pa.timestamp("us", tz="UTC" if kind.tz else None)
    if pat.is_decimal(kind):
        if kind.precision > 38 or not 0 <= kind.scale <= kind.precision:
            raise Refused(f"{kind}: Delta has decimals of at most 38 digits, scale 0 to precision")
        return pa.decimal128(kind.precision, kind.scale)
    if pat.is_struct(kind):
        if kind.num_fields == 0:
            return pa.string() if null is None else null
        return pa.struct([_plain(field, null) for field in kind])
    if pat.is_map(kind):
        return pa.map_(_plain(kind.key_field, null).type, _plain(kind.item_field, null).type)
    if pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_field, null).type)
    raise Refused(f"{kind}: Delta has no such type")


def _plain(field: pa.Field, null: pa.DataType | None) -> pa.Field:
    if b"ARROW:extension:name" in (field.metadata or {}):
        raise Refused(f"extension type in field {field.name!r}")
    return pa.field(field.name, widened(field.type, null=null))


def common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds all values of two widened ones; null has no values and fits any.

    Raises:
        Refused: there is none without loss, as for int64 and string.
    """
    if one == other or pat.is_null(other):
        return one
    if pat.is_null(one):
        return other
    if pat.is_signed_integer(one) and pat.is_signed_integer(other):
        return max(one, other, key=lambda kind: kind.bit_width)
    numbers = (pat.is_signed_integer, pat.is_floating)
    if all(any(test(kind) for test in numbers) for kind in (one, other)):
        # An integer beyond 2^53 that a float64 cannot hold is refused row by row, never rounded.
        return pa.float64()
    if all(kind in _DIGITS or pat.is_decimal(kind) for kind in (one, other)):
        return _common_decimal(one, other)
    if pat.is_struct(one) and pat.is_struct(other):
        return _common_struct(one, other)
    if pat.is_list(one) and pat.is_list(other):
        return pa.list_(common(one.value_type, other.value_type))
    if pat.is_map(one) and pat.is_map(other) and one.key_type == other.key_type:
        return pa.map_(one.key_type, common(one.item_type, other.item_type))
    raise Refused(f"{one} and {other}")


def _common_decimal(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    scales = [kind.scale if pat.is_decimal(kind) else 0 for kind in (one, other)]
    wholes = [kind.precision - kind.scale if pat.is_decimal(kind) else _DIGITS[kind] for kind in (one, other)]
    if max(wholes) + max(scales) > 38:
        raise Refused(f"{one} and {other}")
    return pa.decimal128(max(wholes) + max(scales), max(scales))


def _common_struct(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    fields = {field.name: field.type for field in one}
    for field in other:
        fields[field.name] = common(fields[field.name], field.type) if field.name in fields else field.type
    return pa.struct(list(fields.items()))
