# ruff: noqa: E501 - a template reads better on one line
"""A chat template comes with a model: it renders as in transformers, but it cannot reach out or run away."""

import time

import pytest

from pipelines.config import UserError
from pipelines.job.chat_template import ChatTemplate
from pipelines.job.filters import MAX_CHARS, RowError

MESSAGES = [("system", "Be brief."), ("user", "  Hello <b>&</b>  ")]


def rendered(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, where="model").render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m['content'] | trim }};{% endfor %}", "<s>system:Be brief.;user:Hello <b>&</b>;"),
        ("{% for m in messages %}\n    {% if loop.last %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}\n", "user\n"),
        ("{{ messages | tojson }}", '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hello <b>&</b>  "}]'),
        ("{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}", "user"),
        ("{% macro say(x, y='!') %}{{ x ~ y }}{% endmacro %}{{ say('a') }}{{ say('b', '?') }}", "a!b?"),
        ("{% set x %}a{{ messages[0].role }}{% endset %}{{ x * 2 }}{{ 7 % 3 }}", "asystemasystem1"),
        ("{% generation %}{{ messages[1].role }}{% endgeneration %}", "user"),
        ("{{ messages[0].content.split(' ')[-1].replace('.', '') }} {{ messages[1]['content'].strip()[:5] }}", "brief Hello"),
        ("{% if tools %}no{% elif messages[0].role == 'system' %}yes{% endif %}{{ add_generation_prompt }}", "yesTrue"),
        ("{% for k, v in messages[0].items() %}{{ k }}={{ v }},{% endfor %}{{ messages | map(attribute='role') | join('+') }}", "role=system,content=Be brief.,system+user"),
        ("{{ 'a\nb' | indent(2) }}|{{ strftime_now('%d %b %Y') }}", "a\n  b|26 Jul 2024"),
    ],
)  # fmt: skip
def test_what_chat_templates_use_renders_as_in_transformers(source: str, text: str) -> None:
    assert rendered(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{{ 'a' * 999999999 }}",
        "{{ 999999999 * ['a'] }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('a', 'aaaa') %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s | replace('a', 'aaaa') %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s.join([ns.s, ns.s]) %}{% endfor %}",
        "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% for i in range(99999) %}" + "a" * 200 + "{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception('only user messages') }}",
    ],
)
def test_a_chat_template_that_explodes_or_reaches_out_is_a_row_error_and_soon(source: str) -> None:
    started = time.process_time()
    with pytest.raises(RowError) as caught:
        assert len(rendered(source)) < MAX_CHARS
    assert caught.value.type in ("template", "too_long")
    assert time.process_time() - started < 10


@pytest.mark.parametrize("source", ["{{ 'a' | center(9) }}", "{{ x", "{% include 'x' %}{% nothing %}", "a" * 300_000])
def test_a_chat_template_that_does_not_parse_is_refused_before_the_start(source: str) -> None:
    with pytest.raises(UserError, match="model"):
        rendered(source)


def test_what_a_refusal_says_reaches_the_dead_letter() -> None:
    with pytest.raises(RowError, match="only user messages"):
        rendered("{{ raise_exception('only user messages') }}")
