"""From a JSON schema to Arrow types, and from a valid JSON document to values of those types.

Typed are text, whole numbers, numbers, booleans, enumerations, lists and objects, each also nullable, and
references inside the schema. What has no column type is refused by its place in the schema, before the start.
"""

from typing import Any

import jsonschema
import pyarrow as pa

from pipelines.config import UserError

MAX_DEPTH = 32  # of nested types, references followed
MAX_NODES = 10_000  # of a schema
_SIMPLE = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
_RANGE = range(-(2**63), 2**63)


class Unfit(ValueError):
    """A value that is valid JSON but does not fit its column."""


def closed(schema: Any, where: str) -> dict[str, Any]:
    """The schema, checked, with every object closed to properties that it does not name.

    What an answer added beyond them would have no column and be lost.

    Raises:
        UserError: it is no JSON schema of an object with properties, or reaches outside itself.
    """
    left = [MAX_NODES]
    document = _closed(schema, where, left, 0)
    try:
        jsonschema.Draft202012Validator.check_schema(document)
    except jsonschema.SchemaError as error:
        at = ".".join(str(part) for part in error.absolute_path)
        raise UserError(f"{where}{'.' if at else ''}{at}: {error.message}") from None
    if not isinstance(document, dict) or document.get("type") != "object" or not document.get("properties"):
        raise UserError(f"{where} must be of type object with properties: each becomes a column")
    return document


def _closed(part: Any, where: str, left: list[int], depth: int) -> Any:
    left[0] -= 1
    if left[0] < 0 or depth > 4 * MAX_DEPTH:
        raise UserError(f"{where}: the schema is too large or nested too deep")
    if isinstance(part, list):
        return [_closed(item, f"{where}[{index}]", left, depth + 1) for index, item in enumerate(part)]
    if not isinstance(part, dict):
        return part
    for key in part:
        if not isinstance(key, str):
            raise UserError(f"{where}: the name {key!r} is no text; put it in quotes")
    reference = part.get("$ref", "#/")
    if isinstance(reference, str) and not reference.startswith("#/"):
        raise UserError(f"{where}.$ref is {reference!r}: only references inside the schema (#/$defs/…) are followed")
    whole = {key: _closed(value, f"{where}.{key}", left, depth + 1) for key, value in part.items()}
    if isinstance(part.get("properties"), dict) and part.get("type") in ("object", ["object", "null"]):
        if part.get("additionalProperties", False) is not False or "patternProperties" in part:
            raise UserError(f"{where}: properties without a name have no column; set additionalProperties to false")
        whole["additionalProperties"] = False
    return whole


def arrow_type(part: Any, document: dict[str, Any], where: str, depth: int = 0) -> pa.DataType:
    """The Arrow type of one place in a schema; every one is nullable.

    Raises:
        UserError: there is none; the place is named.
    """
    if depth > MAX_DEPTH:
        raise UserError(f"{where}: types nested deeper than {MAX_DEPTH}, or a type that contains itself")
    if not isinstance(part, dict):
        raise UserError(f"{where}: any value would do, so it has no column type; state its type")
    if "$ref" in part:
        return arrow_type(_resolved(part["$ref"], document, where), document, where, depth + 1)
    if "allOf" in part:
        raise UserError(f"{where}: allOf has no column type; write its parts out")
    if "enum" in part or "const" in part:
        return _common([_value_type(value, where) for value in part.get("enum", [part.get("const")])], where)
    for word in ("anyOf", "oneOf"):
        if word in part:
            options = [option for option in part[word] if option != {"type": "null"}]
            return _common([arrow_type(option, document, where, depth + 1) for option in options], where)
    named = part.get("type")
    names = [name for name in (named if isinstance(named, list) else [named]) if name != "null"]
    return _common([_named_type(name, part, document, where, depth) for name in names], where)


def _named_type(name: Any, part: dict[str, Any], document: dict[str, Any], where: str, depth: int) -> pa.DataType:
    if name in _SIMPLE:
        return _SIMPLE[name]
    if name == "array":
        if "prefixItems" in part or "items" not in part:
            raise UserError(f"{where}: a list needs one type for all its elements: items: {{type: …}}")
        return pa.list_(arrow_type(part["items"], document, f"{where}.items", depth + 1))
    if name == "object":
        if not part.get("properties"):
            raise UserError(f"{where}: an object needs properties; one without has no column type")
        return pa.struct(
            [
                pa.field(key, arrow_type(value, document, f"{where}.properties.{key}", depth + 1))
                for key, value in part["properties"].items()
            ]
        )
    raise UserError(f"{where}: type {name!r} has no column type; there are {', '.join(_SIMPLE)}, array and object")


def _resolved(reference: str, document: dict[str, Any], where: str) -> Any:
    at: Any = document
    for key in reference.removeprefix("#/").split("/"):
        key = key.replace("~1", "/").replace("~0", "~")
        if not isinstance(at, dict) or key not in at:
            raise UserError(f"{where}.$ref is {reference!r}: there is nothing there in the schema")
        at = at[key]
    return at


def _value_type(value: Any, where: str) -> pa.DataType | None:
    if value is None:
        return None
    for kind, arrow in ((bool, pa.bool_()), (str, pa.string()), (int, pa.int64()), (float, pa.float64())):
        if isinstance(value, kind):
            return arrow
    raise UserError(f"{where}: an enumeration holds text, numbers or booleans, not {type(value).__name__}")


def _common(types: list[pa.DataType | None], where: str) -> pa.DataType:
    distinct = {kind for kind in types if kind is not None}
    if distinct == {pa.int64(), pa.float64()}:
        return pa.float64()
    if len(distinct) != 1:
        said = " or ".join(sorted(map(str, distinct))) or "nothing but null"
        raise UserError(f"{where} may be {said}: a column has one type")
    return distinct.pop()


def fitted(value: Any, kind: pa.DataType) -> Any:
    """A value that is valid under the schema, as one that Arrow takes for the type made from it.

    Raises:
        Unfit: a whole number beyond 64 bits, or half a surrogate pair in a text.
    """
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: fitted(value.get(field.name), field.type) for field in kind}
    if pa.types.is_list(kind):
        return [fitted(item, kind.value_type) for item in value]
    if pa.types.is_integer(kind):
        if int(value) not in _RANGE:
            raise Unfit("a whole number does not fit in 64 bits")
        return int(value)
    if pa.types.is_floating(kind):
        return _float(value)
    if pa.types.is_string(kind):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unfit("a text holds half a surrogate pair") from None
    return value


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise Unfit("a number does not fit in 64 bits") from None
