"""What a job file may say, what a row becomes, and that neither time nor memory runs away."""

import time
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import MessageConfig, UserError
from pipelines.job.filters import MAX_CHARS, RowError
from pipelines.job.template import check_columns, compile_messages, unshared


def rendered(template: str, **row: Any) -> str:
    messages = compile_messages([MessageConfig(role="user", content=template)], job="mine").render(row)
    assert [role for role, _ in messages] == ["user"]
    return messages[0][1]


def refused(template: str) -> str:
    with pytest.raises(UserError) as caught:
        compile_messages([MessageConfig(role="user", content=template)], job="mine")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def row_error(template: str, **row: Any) -> str:
    with pytest.raises(RowError) as caught:
        rendered(template, **row)
    assert caught.value.type in ("template", "too_long")
    return caught.value.reason


@given(st.text())
def test_a_rows_text_is_printed_to_the_letter_whatever_it_says(text: str) -> None:
    assert rendered("a {{ text }}b", text=text) == f"a {text}b"


@pytest.mark.parametrize("text", ["{{ 7*7 }}", "{% for i in x %}", "{{ text.__class__ }}", "{# gone #}", "{{"])
def test_row_text_that_looks_like_a_template_stays_text(text: str) -> None:
    assert rendered("{{ text }}", text=text) == text


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        ("{{ none }}|{{ yes }}|{{ n }}|{{ price }}|{{ day }}", "|true|3|1.50|2024-02-29"),
        ("{{ user }}", '{"name": "Zoë", "items": [1, null]}'),
        ("{{ user.name }} {{ user['items'][0] }} {{ user.items[-1] }}", "Zoë 1 "),
        (
            "{% for u in users %}{{ loop.index }}.{{ u.name }}{% if not loop.last %}, {% endif %}{% endfor %}",
            "1.a, 2.b",
        ),
        ("{% for w in none %}x{% else %}{{ n }}{% endfor %}", "3"),
        ("{{ text[:5] }}{{ text|truncate(3) }}", " aBc  aB…"),
        ("{{ text|trim|upper }} {{ text|length }} {{ none|default('-') }} {{ '  '|d('-', true) }}", "ABC 6 - -"),
        ("{{ [text|trim, n]|join('/') }} {{ text|replace('B', 'bb')|trim }}", "aBc/3 abbc"),
        ("{{ 'big' if n > 2 and not none else 'small' }} {{ n - 1 }} {{ text is string }}", "big 2 true"),
        ("{% if n > 2 %}\n  yes {{ n }}\n{% endif %}\nend\n", "  yes 3\nend"),
        ("{{ pi|round(2) }} {{ '4.0'|int }} {{ '2.5'|float }} {{ users|first }} {{ yes|tojson }}", "3.14 4 2.5 "),
    ],
)
def test_values_print_as_people_expect(template: str, printed: str) -> None:
    row = {
        "none": None,
        "yes": True,
        "n": 3,
        "price": Decimal("1.50"),
        "day": date(2024, 2, 29),
        "user": {"name": "Zoë", "items": [1, None]},
        "users": [{"name": "a"}, {"name": "b"}],
        "text": " aBc  ",
        "pi": 3.14159,
    }
    assert rendered(template, **row).startswith(printed)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{{ text.upper() }}", "Call"),
        ("{{ range(9) }}{{ text }}", "Call"),
        ("{{ text * 9 }}", "Mul"),
        ("{{ n ** n }}", "Pow"),
        ("{{ text % n }}", "Mod"),
        ("{% set x = text %}{{ x }}", "Assign"),
        ("{% macro m() %}{% endmacro %}{{ text }}", "Macro"),
        ("{% include 'x' %}{{ text }}", "Include"),
        ("{% import 'x' as x %}{{ text }}", "Import"),
        ("{{ text.__class__ }}", "'__class__'"),
        ("{{ text|attr('__class__') }}", "'attr'"),
        ("{{ text|center(900000000) }}", "'center'"),
        ("{{ text|truncte }}", "did you mean truncate?"),
        ("{{ text|truncate(1, 2, 3, 4) }}", "truncate"),
        ("{{ text|join(*rows) }}", "join"),
        ("{{ rows[n] }}", "constant"),
        ("{% for x in rows recursive %}{{ x }}{% endfor %}", "recursive"),
        ("{{ text is divisibleby(2) }}", "'divisibleby'"),
        ("{{ self }}", "self"),
        ("{{ text", "line 1"),
        ("no column", "print no column"),
        ("{{ " + "(" * 400 + "text" + ")" * 400 + " }}{{ " + "-" * 400 + "n }}", "deep"),
    ],
)
def test_whatever_could_do_more_than_print_is_refused_before_the_start_by_name(template: str, named: str) -> None:
    message = refused(template)
    assert named in message
    assert "mine" in message


def test_a_method_of_a_value_is_never_in_reach_and_a_field_with_its_name_is() -> None:
    assert rendered("{{ user.items }} {{ user.get }}", user={"items": "mine", "get": "this"}) == "mine this"
    assert "has no attribute" in row_error("{{ user.keys }}", user={"items": 1})
    assert "upper" in row_error("{{ text.upper }}", text="x")


@pytest.mark.parametrize(
    ("template", "row"),
    [
        ("{{ text|replace('a', text)|length }}", {"text": "a" * 10_000}),
        ("{{ xs|join(text)|length }}", {"text": "a" * 10_000, "xs": ["x"] * 10_000}),
        ("{{ text }}" * 10, {"text": "a" * (MAX_CHARS // 9)}),
        ("{{ xs|join(text) }}", {"text": "a" * 10_000, "xs": ["x"] * 10_000}),
        (
            "{% for a in xs %}{% for b in xs %}{% for c in xs %}{% endfor %}{% endfor %}{% endfor %}",
            {"xs": [0] * 1_000},
        ),
        ("{% for a in xs %}{{ text }}{% endfor %}", {"text": "a" * 10_000, "xs": [0] * 50_000}),
        ("{{ text|list }}", {"text": "a" * 100}),
        ("{% for c in text %}{{ c }}{% endfor %}", {"text": "abc"}),
        ("{{ n|int }}", {"n": "9" * 100_000}),
        ("{{ n|string }}", {"n": 10**5_000}),
        ("{{ raw }}", {"raw": b"bytes"}),
        ("{{ n / 2 if false else n|round('x') }}", {"n": 1}),
        ("{{ user.missing }}", {"user": {}}),
        ("{{ xs[7] }}", {"xs": [1]}),
    ],
)
def test_a_row_for_which_a_template_fails_or_explodes_is_one_error_and_soon(template: str, row: dict[str, Any]) -> None:
    started = time.process_time()
    if "/" in template:
        assert "Div" in refused(template)
        return
    assert len(row_error(template, **row)) < 400
    assert time.process_time() - started < 5


def test_columns_are_found_with_those_that_print_apart_from_those_that_are_only_tested() -> None:
    template = compile_messages(
        [
            MessageConfig(role="system", content="{% if lang == 'de' %}Antworte.{% endif %}"),
            MessageConfig(role="user", content="{% for t in tags %}{{ t.name }}{% endfor %}{{ title|default(body) }}"),
        ],
        job="mine",
    )
    assert template.roles == ("system", "user")
    assert template.columns == ("body", "lang", "tags", "title")
    assert template.printed == ("body", "tags", "title")


def checked(template: str, schema: pa.Schema) -> None:
    messages = compile_messages([MessageConfig(role="user", content=template)], job="mine")
    check_columns(messages, schema, "2024/a.parquet", "mine")


def test_a_missing_column_is_told_with_shard_columns_the_nearest_and_the_file_to_mend() -> None:
    with pytest.raises(UserError) as caught:
        checked("{{ titel }}", pa.schema([("title", pa.string()), ("n", pa.int64())]))
    for part in ("{{ titel }}", "2024/a.parquet", "Did you mean 'title'?", "title, n", "conf/job/mine.yaml"):
        assert part in str(caught.value)


def test_a_missing_field_of_a_struct_is_found_before_the_start() -> None:
    schema = pa.schema([("user", pa.struct([("name", pa.string()), ("home", pa.struct([("city", pa.string())]))]))])
    checked("{{ user.name }} {{ user.home.city }} {{ user['home']['city'] }}", schema)
    with pytest.raises(UserError, match=r"user\.home in shard .* has no field 'town'"):
        checked("{{ user.home.town }}", schema)


@settings(max_examples=200)
@given(st.text(alphabet="{}%| .[]()'ab_n+-~*:,", max_size=60))
def test_any_text_as_a_template_compiles_or_is_refused_in_one_line(source: str) -> None:
    try:
        template = compile_messages([MessageConfig(role="user", content=source)], job="mine")
    except UserError as error:
        assert "mine" in str(error)
        return
    try:
        assert isinstance(template.render(dict.fromkeys(template.columns, "x"))[0][1], str)
    except RowError as error:
        assert error.type in ("template", "too_long")


@pytest.mark.parametrize(
    ("messages", "behind"),
    [
        ([("system", "rules " * 100), ("user", "{{ text }}")], 0),
        ([("system", "rules " * 100), ("user", "{{ text }} Now answer.")], 12),
        ([("user", "{{ text }}" + "rules " * 100)], 600),
        ([("user", "{% if text %}{{ text }}{% endif %}"), ("assistant", "x" * 500), ("user", "y" * 100)], 600),
        ([("system", "For {{ text }}: "), ("user", "rules " * 100)], 602),
    ],
)
def test_text_in_common_behind_the_first_column_is_counted_and_much_of_it_is_worth_a_word(
    messages: list[tuple[Any, str]], behind: int
) -> None:
    template = compile_messages([MessageConfig(role=role, content=text) for role, text in messages], job="mine")

    assert template.alike_behind == behind
    said = unshared(template, job="mine")
    assert (said is not None) == (behind >= 400)
    assert said is None or (f"{behind:,} characters" in said and "\n" not in said)
