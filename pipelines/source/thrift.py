"""Thrift's compact protocol, as much as it takes to walk over Parquet's footer and page headers.

Arrow reads both itself, but does not tell the page headers, and what it tells of a footer's column chunks ends the
process (25.0.1: `RowGroupMetaData.column` over broken size statistics throws through Cython). Values come as plain
Python: a struct is a dict by field id, an enum is an int.
"""

from typing import Any

Struct = dict[int, Any]

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_DEEPEST = 16


class Cut(Exception):
    """The struct goes on behind these bytes."""


class Malformed(Exception):
    """These bytes are no struct."""


def struct(data: bytes, at: int = 0, depth: int = 0) -> tuple[Struct, int]:
    """The struct that begins at `at`, and where it ends.

    Raises:
        Cut, Malformed
    """
    if depth > _DEEPEST:
        raise Malformed
    found: Struct = {}
    name = 0
    try:
        while head := data[at]:
            at += 1
            if head >> 4:
                name += head >> 4
            else:
                name, at = _integer(data, at)
            kind = head & 15
            if kind in (_TRUE, _FALSE):
                found[name] = kind == _TRUE
            else:
                found[name], at = _value(data, at, kind, depth)
    except IndexError:
        raise Cut from None
    return found, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I16, _I32, _I64):
        return _integer(data, at)
    if kind == _BINARY:
        length, at = _unsigned(data, at)
        return _bytes(data, at, length), at + length
    if kind == _STRUCT:
        return struct(data, at, depth + 1)
    if kind in (_LIST, _SET):
        return _list(data, at, depth)
    if kind in (_BYTE, _TRUE, _FALSE):  # a boolean in a list takes a byte
        return data[at], at + 1
    if kind == _DOUBLE:
        return _bytes(data, at, 8), at + 8
    raise Malformed  # maps: Parquet has none


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    head = data[at]
    at += 1
    count = head >> 4
    if count == 15:
        count, at = _unsigned(data, at)
    values = []
    for _ in range(count):  # each takes a byte at least, so a count that lies ends with the data
        value, at = _value(data, at, head & 15, depth + 1)
        values.append(value)
    return values, at


def _bytes(data: bytes, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise Cut
    return data[at : at + length]


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise Malformed


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at
