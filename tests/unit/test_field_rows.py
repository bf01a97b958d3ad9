"""The order of a job's fields, from a corpus to its prompts and its fingerprint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.compose import compose
from pipelines.config import JobConfig, MessageConfig, OutputConfig, PromptConfig, RunConfig, UserError
from pipelines.field_rows import ROWS, FieldOrder, settle
from pipelines.job.chat import open_chat
from pipelines.job.fingerprint import FIELD_ORDER
from pipelines.job.row_order import Rule, canonical
from pipelines.job.template import compile_messages
from pipelines.row_rules import Tried, check, keep
from pipelines.source.shards import list_shards
from tests.corpora import jsonl, write
from tests.unit.job.models import bytes_bpe

FIELDS = ("id", "city", "about")
SCHEMA = pa.schema([("id", pa.int64()), ("city", pa.string()), ("about", pa.string())])
JOB = JobConfig(
    name="mine",
    messages=(MessageConfig(role="user", content="Sort this: {{ fields }}"),),
    fields=FIELDS,
    output=OutputConfig(kind="labels", labels=("a", "b")),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(bytes_bpe(tmp_path_factory.mktemp("fields") / "model"))


def found(source: Path, folder: str, order: str = "auto", job: JobConfig = JOB) -> FieldOrder | None:
    (config,) = compose(["+job=classify", f"source.uri={source}", f"sink.uri={source}-out"])
    config = replace(config, job=job, prompt=PromptConfig(field_order=order))  # type: ignore[arg-type]
    chat = open_chat(folder, 1000)
    shards = [(shard, None) for shard in list_shards(config.source)]
    return settle(config, f"{source}-out", shards, SCHEMA, chat)


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Ids that never come back, a long text that does, and a city that does more often."""
    return [
        {"id": n, "city": "Bonn" if n % 2 else "Ulm", "about": f"a rather long description, number {n // 3 % 25}"}
        for n in range(first, first + count)
    ]


def parquet(path: Path, table: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table, SCHEMA), path, row_group_size=500)


def test_a_job_lists_its_fields_and_auto_puts_first_what_comes_back(tmp_path: Path, folder: str) -> None:
    parquet(tmp_path / "in" / "a.parquet", rows(400))

    given, auto = found(tmp_path / "in", folder, "given"), found(tmp_path / "in", folder)

    assert given == FieldOrder(fields=FIELDS, words="as the job lists them")
    assert auto is not None
    assert auto.fields == ("about", "city", "id")
    assert auto.words == "found from 400 rows"
    assert auto.shared is not None
    assert auto.shared > 0.5 > 0.1 > (auto.shared_given or 0)
    assert found(tmp_path / "in", folder, job=replace(JOB, fields=())) is None


def test_of_a_large_corpus_some_rows_are_read_the_same_each_time(tmp_path: Path, folder: str) -> None:
    for number in range(20):
        parquet(tmp_path / "in" / f"{number}.parquet", rows(1000, 1000 * number))
    write(tmp_path / "in" / "z.jsonl", jsonl(rows(1000, 20_000)))

    once, again = found(tmp_path / "in", folder), found(tmp_path / "in", folder)

    assert once == again
    assert once is not None
    assert once.fields == ("about", "city", "id")
    (read,) = (int(word.replace(",", "")) for word in once.words.split() if word[0].isdigit())
    assert ROWS / 2 < read <= ROWS * 1.1


def tried(**changes: Any) -> Tried:
    rules = Rule("about", "00" * 8, ("about", "city", "id"), ("city", "about", "id"))
    parts = {"model": "m@1", "precision": "float32"}
    return replace(Tried(rules=rules, fields=FIELDS, asked=200, same=190, parts=parts, at="2026-11-30"), **changes)


def test_rules_are_taken_from_the_output_and_no_order_is_found(tmp_path: Path, folder: str) -> None:
    parquet(tmp_path / "in" / "a.parquet", rows(40))
    with pytest.raises(UserError, match=r"there are no rules for this output and these job\.fields"):
        found(tmp_path / "in", folder, "rows")
    keep(f"{tmp_path / 'in'}-out", tried())

    order = found(tmp_path / "in", folder, "rows")

    assert order is not None
    assert (order.rules, order.fields) == (tried().rules, FIELDS)
    assert order.line().startswith("id, city, about (each row has its own by rules, 1 of them; 95.0% of 200 rows")
    with pytest.raises(UserError, match="there are no rules"):
        found(tmp_path / "in", folder, "rows", replace(JOB, fields=("city", "about", "id")))


def test_rules_are_refused_where_too_few_answers_were_the_same_or_something_else_was_asked() -> None:
    parts = {**tried().parts, FIELD_ORDER: '["id"]'}
    check(tried(), parts, least=0.95)

    with pytest.raises(UserError, match=r"of 200 rows 189 \(94\.5%\) .* prompt\.min_agreement=0\.95"):
        check(tried(same=189), parts, least=0.95)
    with pytest.raises(UserError, match="was tried before this changed: model: m@1 is now m@2"):
        check(tried(), {**parts, "model": "m@2"}, least=0.0)


def test_an_output_whose_newest_run_went_by_rules_has_no_order_to_keep(tmp_path: Path, folder: str) -> None:
    parquet(tmp_path / "in" / "a.parquet", rows(40))
    left = tmp_path / "in-out" / "runs" / "20260101T000000Z-a"
    left.mkdir(parents=True)
    (left / "manifest.json").write_text(json.dumps({"fingerprint_parts": {FIELD_ORDER: canonical(tried().rules)}}))

    auto = found(tmp_path / "in", folder)

    assert auto is not None
    assert auto.words == "found from 40 rows"


def test_rows_that_cannot_be_read_tell_nothing_about_the_order(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "in" / "a.jsonl", jsonl(rows(100)) + b"{broken\n" + jsonl(rows(100, 100)))

    auto = found(tmp_path / "in", folder)

    assert auto is not None
    assert auto.fields == ("about", "city", "id")
    assert auto.words == "found from 200 rows"


def test_fields_print_as_one_json_object_in_their_order() -> None:
    row = {"id": 7, "city": 'the "old" town', "about": None}

    (message,) = compile_messages(JOB.messages, job="mine", fields=("about", "city", "id")).render(row)

    assert message == ("user", 'Sort this: {"about": null, "city": "the \\"old\\" town", "id": 7}')


@pytest.mark.parametrize(
    ("content", "fields", "said"),
    [
        ("{{ city }}", FIELDS, r"no message prints \{\{ fields \}\}, which job.fields are for"),
        ("{{ fields.town }} {{ fields }}", FIELDS, "fields.town: no such column in job.fields; there are id, city"),
    ],
)
def test_fields_that_no_message_prints_are_refused(content: str, fields: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compile_messages([MessageConfig(role="user", content=content)], job="mine", fields=fields)


def test_without_fields_that_name_is_a_column_like_any_other() -> None:
    template = compile_messages([MessageConfig(role="user", content="{{ fields }}")], job="mine")

    assert template.columns == ("fields",)
    assert template.render({"fields": "x"}) == [("user", "x")]


def test_a_field_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="fields names city more than once"):
        replace(JOB, fields=("city", "id", "city"))


def test_a_config_from_before_there_was_a_choice_has_the_order_given() -> None:
    assert RunConfig.__dataclass_fields__["prompt"].default_factory().field_order == "given"
