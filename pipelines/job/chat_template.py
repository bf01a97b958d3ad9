"""A model's chat template, rendered as transformers renders it, but bounded: it comes with the model, not from us.

It runs in Jinja's sandbox. On top of that every loop pass and every call costs a step, and whatever makes text longer
(+, ~, *, replace, join, set blocks, macros) is stopped at MAX_CHARS, so neither time nor memory runs away.

The date that some chat templates print (`strftime_now`) is a constant: an answer must not change overnight.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from itertools import islice
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from pipelines.config import UserError
from pipelines.job.filters import MAX_CHARS, RowError

NOW = datetime(2024, 7, 26)  # the date that Llama 3.1's template takes when it is told none
MAX_SOURCE_CHARS = 2**18
MAX_STEPS = 100_000  # loop passes and calls of one rendering
MAX_INT_BITS = 256
_STEPS, _LOOP, _JOIN, _BOUND = "steps left", "counted loop", "bounded join", "bounded text"  # unspellable in a template
_GROWING = ("center", "format", "pprint", "urlize", "wordwrap", "xmlattr")  # filters whose output has no bound
_GROWING_METHODS = {"center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"}


class ChatTemplate:
    """A parsed chat template with the tokens that it may print (`bos_token` and its like)."""

    def __init__(
        self, source: str, named: Mapping[str, str], *, where: str, arguments: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Parse it. `arguments` are what it is told besides the messages.

        Raises:
            UserError: it is no template, uses what the sandbox does not have, or knows nothing of an argument;
                `where` names the file.
        """
        if len(source) > MAX_SOURCE_CHARS:
            raise UserError(f"{where}: {len(source):,} characters of chat template; at most {MAX_SOURCE_CHARS:,}")
        environment = _environment()
        try:
            parsed = environment.parse(source)
            asked_for = meta.find_undeclared_variables(parsed)
            tree = _Counting().visit(parsed)
            code = environment.compile(tree, name="chat_template")
        except jinja2.TemplateError as error:
            raise UserError(f"{where}: the chat template does not parse: {error}") from None
        except RecursionError:
            raise UserError(f"{where}: the chat template is nested too deep") from None
        self._compiled = jinja2.Template.from_code(environment, code, environment.globals)
        for name in arguments.keys() - asked_for:  # it would be ignored, and the answers be others than was thought
            near = get_close_matches(name, asked_for, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"chat_template_args.{name}: the chat template of {where} knows no such argument.{hint}")
        self._named = {**named, **arguments}

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """The chat as one text, up to where the model's answer begins.

        Raises:
            RowError: of type `template` where the chat template refuses these messages or takes too many steps; of type
            `too_long` where it would make too much text.
        """
        variables: dict[str, Any] = {
            "messages": [{"role": role, "content": content} for role, content in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self._named,
            _STEPS: [MAX_STEPS],
        }
        chunks = []
        left = MAX_CHARS
        try:
            for chunk in self._compiled.root_render_func(self._compiled.new_context(variables)):
                chunks.append(chunk)
                left -= len(chunk)
                _within(-left, 0)
        except (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise RowError("template", f"the model's chat template: {type(error).__name__}: {error}"[:300]) from None
        return "".join(chunks)


def _within(chars: int, most: int = MAX_CHARS) -> None:
    if chars > most:
        raise RowError("too_long", f"the chat would be longer than {MAX_CHARS:,} characters")


def _step(context: jinja2.runtime.Context, steps: int = 1) -> None:
    left: list[int] = context.parent[_STEPS]
    left[0] -= steps
    if left[0] < 0:
        raise RowError("template", f"the model's chat template takes more than {MAX_STEPS:,} steps")


# ------------------------------------------------------------------------------------------------- the sandbox


class _Counting(NodeTransformer):
    """Send loops, concatenations and set blocks through the filters that count and bound them."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  jinja2 looks methods up by these names
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _LOOP)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOIN)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        bound = _filtered(None, _BOUND)
        bound.node = node.filter
        node.filter = bound
        return node


def _filtered(node: nodes.Node | None, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno if node is not None else 1)


@jinja2.pass_context
def _counted(context: jinja2.runtime.Context, value: Any) -> Any:
    items = value if hasattr(value, "__len__") else list(islice(value, MAX_STEPS + 1))
    _step(context, len(items))
    return items


def _joined(value: Iterable[Any], separator: Any = "", attribute: str | None = None) -> str:
    parts = [str(item[attribute] if attribute is not None else item) for item in value]
    _within(sum(map(len, parts)) + len(parts) * len(str(separator)))
    return str(separator).join(parts)


def _checked(value: Any) -> Any:
    _within(len(value))
    return value


def _replaced(value: Any, old: Any, new: Any, count: int = -1) -> str:
    text = str(value)
    _within(len(text) + (text.count(str(old)) if str(old) else len(text) + 1) * len(str(new)))
    return text.replace(str(old), str(new), -1 if count is None else count)


def _indented(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    prefix = width if isinstance(width, str) else " " * min(width, 64)
    lines = str(value).splitlines() or [""]
    _within(len(str(value)) + len(lines) * (len(prefix) + 1))
    return "\n".join(
        prefix + line if (first or number) and (blank or line) else line for number, line in enumerate(lines)
    )


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own escapes HTML characters; transformers', which models were trained with, does not.
    indent = min(indent, 64) if isinstance(indent, int) else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:200])


def _strftime_now(form: str) -> str:
    return NOW.strftime(form[:100])


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training. Here it is its body."""

    tags = {"generation"}  # noqa: RUF012  as in jinja2's own extensions

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:  # by far the most of all
            _within(len(left) + len(right))
            return left + right
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (operator == "%" and not numbers):
            raise SecurityError(f"{operator} is not allowed here")
        if numbers:
            if max(_bits(left), _bits(right)) > MAX_INT_BITS:
                raise SecurityError("the numbers grow too large")
        elif operator == "*":
            _within(_size(left) * right if isinstance(right, int) else _size(right) * left)
        else:
            _within(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _GROWING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _step(__context)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "join":
            return _joined(args[0], owner)
        if isinstance(owner, str) and name == "replace":
            return _replaced(owner, *args, **kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        _within(_size(result))
        return result


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _bits(value: int | float) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    for name in _GROWING:
        environment.filters.pop(name, None)
    environment.filters |= {
        "indent": _indented,
        "join": _joined,
        "replace": _replaced,
        "tojson": _tojson,
        _LOOP: _counted,
        _JOIN: _joined,
        _BOUND: _checked,
    }
    environment.globals.pop("lipsum", None)
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment
