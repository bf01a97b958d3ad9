"""Messages as Jinja2 templates over a row's columns: parsed once, harmless by construction, bounded in what they make.

A template prints columns, picks fields and elements, tests, loops over a row's list and uses the filters in
`filters.py`. Nothing in it can call, set, import or multiply, and an attribute of a value is never looked at:
`{{ user.name }}` is a field of a struct. A row's text is a value; it is never parsed. `{{ fields }}` is a job's
`fields`, columns of the row as one JSON object, in an order that is the same for all rows, or goes by the row alone.

As in chat templates, the line break after a block tag and the blanks before it do not print (trim_blocks,
lstrip_blocks), nor does one last line break. Null prints nothing, true prints true, lists and structs print as JSON.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import jinja2
import pyarrow as pa
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.config import MessageConfig, UserError
from pipelines.job.filters import FILTERS, MAX_CHARS, RowError, text_of
from pipelines.job.row_order import Rules, in_order

MAX_STEPS = 100_000  # loop passes of one row, inner loops included
MAX_SOURCE_CHARS = 2**20  # of one template: concatenations in it are bounded by its own length
MANY_CHARS = 400  # of text in common that no cache can share, to be worth a word
CHARS_PER_TOKEN = 4  # of English, about
MAX_DEPTH = 50  # of nested parts: deeper ones exhaust the compiler's stack

Message = tuple[str, str]  # role, content


TESTS = ("boolean", "defined", "float", "integer", "mapping", "none", "number", "sequence", "string", "undefined")
HARMLESS: tuple[type[nodes.Node], ...] = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For),
    *(nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Const, nodes.List, nodes.Tuple),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.CondExpr, nodes.Test, nodes.Filter),
    *(nodes.Keyword, nodes.Concat, nodes.Add, nodes.Sub, nodes.Neg),
)
FIELDS = "fields"  # the name of the object that a job's `fields` are in
LOOP = ("first", "last", "index", "index0", "length", "revindex", "revindex0")  # of `loop`
_STEPS = "steps left"  # no template can spell a name with a blank in it


@jinja2.pass_context
def _loopable(context: jinja2.runtime.Context, value: Any) -> list[Any] | tuple[Any, ...]:
    """The list that a loop goes over, counted against the row's steps before it starts."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RowError("template", f"a loop needs a list, not {type(value).__name__}")
    steps: list[int] = context.parent[_STEPS]
    steps[0] -= len(value)
    if steps[0] < 0:
        raise RowError("template", f"its loops would take more than {MAX_STEPS:,} steps")
    return value


class _Environment(ImmutableSandboxedEnvironment):
    """Values have fields and elements, but no attributes: no method is ever in reach."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping):
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if isinstance(obj, LoopContext) and attribute in LOOP:
            return getattr(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Mapping | list | tuple | str):
            try:
                return obj[argument]
            except (LookupError, TypeError):
                pass
        return self.undefined(obj=obj, name=argument)


def _environment() -> _Environment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False, finalize=text_of
    )
    environment.globals.clear()
    environment.filters = {**FILTERS, _STEPS: _loopable}
    environment.tests = {name: environment.tests[name] for name in TESTS}
    return environment


# ------------------------------------------------------------------------------------------------- before the start


@dataclass(frozen=True)
class Template:
    """The messages of a job. Compile again where it is needed: it is quick, and compiled code does not travel."""

    roles: tuple[str, ...]
    columns: tuple[str, ...]  # all that the messages name, sorted
    printed: tuple[str, ...]  # those of them that print or are looped over: the rest is only tested
    fields: tuple[tuple[str, ...], ...]  # paths into structs: ("user", "name")
    compiled: tuple[jinja2.Template | str, ...]  # a message without columns is its text
    alike_behind: int  # characters that every row has, behind the first place where rows differ
    order: Rules = ()  # of the columns in `{{ fields }}`

    def render(self, row: Mapping[str, object]) -> list[Message]:
        """The row's messages.

        Raises:
            RowError: of type `template` where a field is missing, a filter does not fit or would make too much; of type
            `too_long` where the messages are.
        """
        left = MAX_CHARS
        variables = {**row, _STEPS: [MAX_STEPS]}
        if self.order:
            variables[FIELDS] = {name: row[name] for name in in_order(self.order, row)}
        messages = []
        for role, compiled in zip(self.roles, self.compiled, strict=True):
            content, left = (
                (compiled, left - len(compiled)) if isinstance(compiled, str) else _render(compiled, variables, left)
            )
            messages.append((role, content))
        return messages


def _render(compiled: jinja2.Template, variables: dict[str, object], left: int) -> tuple[str, int]:
    chunks = []
    try:
        for chunk in compiled.root_render_func(compiled.new_context(variables)):
            chunks.append(chunk)
            left -= len(chunk)
            if left < 0:
                raise RowError("too_long", f"its messages are over {MAX_CHARS:,} characters")
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # The message may repeat the row's text: the first of it is enough to see what went wrong.
        raise RowError("template", f"{type(error).__name__}: {str(error)[:200]}") from None
    return "".join(chunks), left


def compile_messages(
    messages: Sequence[MessageConfig], *, job: str, fields: Sequence[str] = (), rules: Rules | None = None
) -> Template:
    """The job's messages, parsed and found harmless. `fields`: the columns in `{{ fields }}`, in order, or in the one
    that `rules` give each row.

    Raises:
        UserError: a message is no template, or has a part that is not allowed; the part and the job are named.
    """
    order = tuple(fields)
    environment = _environment()
    columns: set[str] = set()
    printed: set[str] = set()
    paths: set[tuple[str, ...]] = set()
    compiled: list[jinja2.Template | str] = []
    alike_behind = 0
    for position, message in enumerate(messages):
        where = f"job {job}, messages[{position}]"
        if len(message.content) > MAX_SOURCE_CHARS:
            raise UserError(f"{where}: {len(message.content):,} characters; at most {MAX_SOURCE_CHARS:,} are allowed")
        try:
            tree = environment.parse(message.content)
            _check(tree, where, 0)
            names = find_undeclared_variables(tree)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{where}, line {error.lineno}: {error.message}; see conf/job/{job}.yaml") from None
        except RecursionError:
            raise UserError(f"{where}: nested too deep; make it simpler in conf/job/{job}.yaml") from None
        alike_behind += _alike_behind(tree, differ=bool(columns))
        columns |= names
        printed |= {name for name in _printed(tree) if name in names}
        paths |= {path for path in _paths(tree) if path[0] in names}
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _STEPS, [], [], None, None, lineno=loop.lineno)
        code = environment.compile(tree, name=f"job.messages[{position}]")
        template = jinja2.Template.from_code(environment, code, {})
        compiled.append(template if names else _render(template, {_STEPS: [MAX_STEPS]}, MAX_CHARS)[0])
    if order:
        columns, printed, paths = _spread(order, columns, printed, paths, job)
    if not printed:
        raise UserError(f"job {job}: its messages print no column, so all rows would be one; use {{{{ column }}}}")
    return Template(
        roles=tuple(message.role for message in messages),
        columns=tuple(sorted(columns)),
        printed=tuple(sorted(printed)),
        fields=tuple(sorted(paths)),
        compiled=tuple(compiled),
        alike_behind=alike_behind,
        order=order if rules is None else rules,
    )


def _spread(
    order: tuple[str, ...], columns: set[str], printed: set[str], paths: set[tuple[str, ...]], job: str
) -> tuple[set[str], set[str], set[tuple[str, ...]]]:
    """Columns, those printed, and paths, with the columns that `{{ fields }}` stands for in its place."""
    if FIELDS not in printed:
        raise UserError(
            f"job {job}: no message prints {{{{ fields }}}}, which job.fields are for; print it, or leave them out"
        )
    for path in paths:
        if path[0] == FIELDS and path[1] not in order:
            raise UserError(f"job {job}: {'.'.join(path)}: no such column in job.fields; there are {', '.join(order)}")
    paths = {path[1:] if path[0] == FIELDS else path for path in paths}
    return (columns - {FIELDS}) | {*order}, (printed - {FIELDS}) | {*order}, {path for path in paths if len(path) > 1}


def _alike_behind(tree: nodes.Template, *, differ: bool) -> int:
    """Characters of plain text behind the first name in this message, or all, if rows `differ` before it already."""
    count = 0
    level: list[nodes.Node] = [tree]
    while level:
        node = level.pop()
        differ |= isinstance(node, nodes.Name)
        if differ and isinstance(node, nodes.TemplateData):
            count += len(node.data)
        level.extend(reversed(list(node.iter_child_nodes())))
    return count


def unshared(template: Template, *, job: str) -> str | None:
    """A line for people where the messages have much text in common that no cache can share; None: they do not."""
    if template.alike_behind < MANY_CHARS:
        return None
    tokens = template.alike_behind // CHARS_PER_TOKEN
    return (
        f"job {job}: {template.alike_behind:,} characters that all rows share stand behind the first column that they "
        f"print. A prefix cache ends where rows differ, so some {tokens:,} tokens (estimated) of each row are computed "
        "again and again: put what all rows share first"
    )


def _check(node: nodes.Node, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise RecursionError
    if problem := _problem(node):
        raise UserError(f"{where}, line {node.lineno}: {problem}")
    for child in node.iter_child_nodes():
        _check(child, where, depth + 1)


def _problem(node: nodes.Node) -> str | None:
    """Why this part of a template is not allowed, in words; None if it is."""
    if not isinstance(node, HARMLESS):
        kind = type(node).__name__
        return f"{kind} is not allowed; a template may print columns, test, loop over a row's list and use filters"
    if isinstance(node, nodes.Filter):
        return _filter_problem(node)
    if isinstance(node, nodes.Name) and node.name == "self":
        return "the name 'self' is Jinja's own; rename the column"
    if isinstance(node, nodes.Test) and node.name not in TESTS:
        return f"the test {node.name!r} is not allowed; there are {', '.join(TESTS)}"
    if isinstance(node, nodes.For) and node.recursive:
        return "a recursive loop is not allowed"
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        return f"the field {node.attr!r} starts with an underscore; write ['{node.attr}'] if the row has it"
    if isinstance(node, nodes.Getitem) and not _constant(node.arg):
        return "[…] needs a constant: a name, a number or a range of numbers"
    return None


def _constant(node: nodes.Node | None) -> bool:
    if isinstance(node, nodes.Slice):
        return all(part is None or _constant(part) for part in (node.start, node.stop, node.step))
    if isinstance(node, nodes.Neg):
        return _constant(node.node)
    return isinstance(node, nodes.Const) and isinstance(node.value, str | int)


def _filter_problem(node: nodes.Filter) -> str | None:
    function = FILTERS.get(node.name)
    if function is None:
        near = get_close_matches(node.name, FILTERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FILTERS)}"
        return f"no filter {node.name!r}; {hint}"
    if node.node is None or node.dyn_args is not None or node.dyn_kwargs is not None:
        return f"the filter {node.name} needs a value, and its arguments one by one"
    keywords = [str(keyword.key) for keyword in node.kwargs]
    try:
        inspect.signature(function).bind(None, *node.args, **dict.fromkeys(keywords))
    except TypeError as error:
        return f"the filter {node.name}: {error}"
    return None


def _printed(tree: nodes.Template) -> Iterator[str]:
    """Names inside what prints, and of the lists that are looped over."""
    for output in tree.find_all(nodes.Output):
        yield from (name.name for name in output.find_all(nodes.Name))
    for loop in tree.find_all(nodes.For):
        yield from (name.name for name in (loop.iter, *loop.iter.find_all(nodes.Name)) if isinstance(name, nodes.Name))


def _paths(tree: nodes.Template) -> Iterator[tuple[str, ...]]:
    """Every a.b.c and a['b'] whose root is a name."""
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        path: list[str] = []
        at: nodes.Node = node
        while isinstance(at, nodes.Getattr | nodes.Getitem):
            key = at.attr if isinstance(at, nodes.Getattr) else getattr(at.arg, "value", None)
            path = [key, *path] if isinstance(key, str) else []
            at = at.node
        if path and isinstance(at, nodes.Name):
            yield (at.name, *path)


def check_columns(template: Template, schema: pa.Schema, shard_name: str, job: str) -> None:
    """See that the corpus has every column, and every field of a struct, that the messages name.

    Raises:
        UserError: names what is missing, what there is, and the nearest.
    """
    for name in template.columns:
        _find(name, schema.names, f"{{{{ {name} }}}}", f"shard {shard_name} has no column", job)
    for path in template.fields:
        kind = schema.field(path[0]).type
        for depth, key in enumerate(path[1:], start=1):
            if not pa.types.is_struct(kind):
                break
            names = [kind.field(index).name for index in range(kind.num_fields)]
            said = f"{{{{ {'.'.join(path)} }}}}"
            _find(key, names, said, f"{'.'.join(path[:depth])} in shard {shard_name} has no field", job)
            kind = kind.field(key).type


def _find(name: str, names: Sequence[str], said: str, missing: str, job: str) -> None:
    if name in names:
        return
    near = get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise UserError(
        f"the messages of job {job} use {said}, but {missing} {name!r}. {hint}There are: {shown or 'none'}. "
        f"Use one of them in conf/job/{job}.yaml."
    )
