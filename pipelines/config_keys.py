"""The keys of a config: which exist, which is nearest to a wrong one, which could reach code; errors in one line."""

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipelines.config import RunConfig, UserError

_CODE = re.compile(r"_[A-Za-z]\w*_")  # _target_, _partial_, _args_: how Hydra and its like name code in data
_SHOWN = 80  # characters of a value in an error


def leaves(kind: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every key that can be set, dotted: `source.uri`. Keys below a list or a mapping are not followed."""
    for name, inner in _fields(kind).items():
        nested = next((arm for arm in _arms(inner) if dataclasses.is_dataclass(arm)), None)
        if nested is None:
            yield f"{prefix}{name}"
        else:
            yield from leaves(nested, f"{prefix}{name}.")


def nearest(word: str, of: Iterable[str]) -> str:
    """`, the nearest is …`, or nothing if none is near."""
    found = difflib.get_close_matches(word, list(of), n=1, cutoff=0.55)
    return f", the nearest is {found[0]}" if found else ""


def nearest_key(key: str, schema: Any = RunConfig) -> str:
    """The same over all keys and groups: a key of the same last part first, then whatever is spelled like it."""
    keys, last = list(leaves(schema)), key.rsplit(".", 1)[-1]
    same = [known for known in keys if known.rsplit(".", 1)[-1] == last]
    if same:
        group = key.split(".")[0]
        best = difflib.get_close_matches(key, same, n=1, cutoff=0.0)[0]
        return f", the nearest is {next((known for known in same if known.startswith(f'{group}.')), best)}"
    whole = {".".join(known.split(".")[:depth]) for known in keys for depth in range(1, known.count(".") + 2)}
    return nearest(key, sorted(whole)) or nearest(last, {known.rsplit(".", 1)[-1] for known in keys})


def refuse_unknown(key: str, value: str, schema: Any = RunConfig) -> None:
    """Raise UserError unless `key` (dotted) can be set."""
    refuse_code(dict.fromkeys(key.split(".")))
    kinds: Sequence[Any] = [schema]
    for done, part in enumerate(key.split(".")):
        kinds = [inner for kind in kinds for inner in _below(kind, part)]
        if not kinds:
            where = ".".join(key.split(".")[:done])
            inside = f" ({where} holds no keys)" if where in set(leaves(schema)) else ""
            near = nearest_key(key, schema)
            raise UserError(f"there is no key {key} (={_short(value)}){inside}{near}; --help lists them")


def refuse_code(value: Any, where: str = "") -> None:
    """Raise UserError if anywhere in `value` a key names code, as `_target_` does."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str) and _CODE.fullmatch(key):
                raise UserError(f"{where}the key {key} is refused: a config is data, nothing in it is executed")
            refuse_code(inner, where)
    elif isinstance(value, list):
        for inner in value:
            refuse_code(inner, where)


def first_error(error: ValidationError, config: Any) -> str:
    """The first thing that the schema refuses, in one line, and how many more there are."""
    errors = error.errors(include_url=False, include_context=True)
    groups: dict[str, list[ErrorDetails]] = {}
    for detail in errors:
        groups.setdefault(_path(detail["loc"], config), []).append(detail)
    # An unknown key is the likelier mistake than the missing one that it stands for.
    first = min(groups, key=lambda path: groups[path][0]["type"] == "missing")
    more = f" (and {len(groups) - 1} more)" if len(groups) > 1 else ""
    return _sentence(first, groups[first]) + more


def _sentence(path: str, details: list[ErrorDetails]) -> str:
    """What is wrong at `path`. Several details: the arms of a union, each of which was refused."""
    kind, value = details[0]["type"], details[0]["input"]
    if kind == "unexpected_keyword_argument":
        return f"there is no key {path} (={_short(value)}){nearest_key(path)}"
    if kind == "missing":
        return f"{path} is missing: say {path}=…"  # the value at hand is the whole parent: not shown
    if kind == "value_error":
        said = str(details[0]["ctx"]["error"])
        last = path.rsplit(".", 1)[-1]
        if path and said.startswith(f"{last}."):
            return f"{path.removesuffix(last)}{said}"
        return f"{path}={_short(value)} {said}" if path and isinstance(value, str) else said
    if kind == "literal_error":
        allowed = [word.strip("' ") for word in re.split(r",| or ", str(details[0]["ctx"]["expected"]))]
        near = nearest(str(value), allowed)
        return f"{path}={_short(value)} is not one of {', '.join(allowed)}{near}"
    wanted = " or ".join(dict.fromkeys(_wanted(detail) for detail in details))
    quotes = "; put it in quotes" if wanted == "text" and isinstance(value, int | float) else ""
    return f"{path}={_short(value)} is not {wanted}{quotes}"


def _wanted(detail: ErrorDetails) -> str:
    """What would have been right, to stand behind `is not`."""
    limits: Any = detail.get("ctx", {})
    words = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list [a,b]",
        "dict_type": "a mapping {key: value}",
        "dataclass_type": "a mapping of keys",
        "decimal_type": "a number",
        "decimal_parsing": "a number",
        "greater_than_equal": f"at least {limits.get('ge')}",
        "greater_than": f"greater than {limits.get('gt')}",
        "less_than_equal": f"at most {limits.get('le')}",
        "less_than": f"less than {limits.get('lt')}",
        "too_short": f"a list of at least {limits.get('min_length')}",
        "too_long": f"a list of at most {limits.get('max_length')}",
        "string_pattern_mismatch": "a name of letters, digits, dots, dashes and underscores, 64 at most",
    }
    return words.get(detail["type"], f"right ({detail['msg']})")


def _path(loc: tuple[int | str, ...], config: Any) -> str:
    """Where an error is, dotted, without the names that pydantic gives to the arms of a union."""
    path: list[str] = []
    for step in loc:
        if isinstance(config, dict):
            path.append(str(step))
            config = config.get(step)
        elif isinstance(config, list) and isinstance(step, int):
            path.append(str(step))
            config = config[step] if step < len(config) else None
    return ".".join(path)


def _short(value: Any) -> str:
    """A value as a command line would spell it, cut."""
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _fields(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _arms(kind: Any) -> list[Any]:
    """The alternatives of a type, unwrapped of Annotated and of unions."""
    if get_origin(kind) is Annotated:
        return _arms(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [arm for inner in get_args(kind) for arm in _arms(inner)]
    return [kind]


def _below(kind: Any, part: str) -> Iterator[Any]:
    """The types that a key or an index may lead to."""
    for arm in _arms(kind):
        if dataclasses.is_dataclass(arm):
            fields = _fields(arm)
            if part in fields:
                yield fields[part]
        elif arm is Any:
            yield Any
        elif get_origin(arm) is dict:
            yield get_args(arm)[1]
        elif get_origin(arm) is tuple and part.isdigit():
            yield get_args(arm)[0]
