"""Answers to data rows and dead letters: each row in exactly one of them, in row order, in the contract's columns."""

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.exchange import ANSWERS, PROMPTS
from pipelines.config import OutputConfig, UserError
from pipelines.job.contract import OutputContract
from pipelines.stages.parse import Parsed, check_output_columns, data_schema, errors_schema, parse

LABELS = OutputContract.of(OutputConfig(kind="labels", labels=("bad", "good")), job="mine")
JSON = OutputContract.of(
    OutputConfig(
        kind="json",
        json_schema={
            "type": "object",
            "properties": {"n": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
            "required": ["n"],
        },
    ),
    job="mine",
)
TEXT = OutputContract.of(OutputConfig(kind="text", column="summary"), job="mine")


def unit(answers: list[str | None], errors: dict[int, str] | None = None) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Rows, prompts and answers; row numbers from 100 on."""
    errors = errors or {}
    count = len(answers)
    lines = range(count)
    rows = pa.table(
        {
            "text": [f"text {line}" for line in lines],
            "when": pa.array([line * 10**6 for line in lines], pa.timestamp("us", "UTC")),
            "_row": pa.array([100 + line for line in lines], pa.int64()),
            "_error_type": pa.array([None] * count, pa.string()),
            "_error": pa.array([None] * count, pa.string()),
        }
    )
    prompts = pa.table(
        [[f"key {line}" for line in lines], [[1, 2]] * count, [None] * count, [None] * count], schema=PROMPTS
    )
    position = [{"text": "good", "logprob": math.log(0.6)}, {"text": "bad", "logprob": math.log(0.2)}]
    by_name: dict[str, Any] = {
        "_answer": [None if line in errors else answer for line, answer in enumerate(answers)],
        "_finish_reason": [None if line in errors else "stop" for line in lines],
        "_prompt_tokens": [7 + line for line in lines],
        "_cached_tokens": [3] * count,
        "_output_tokens": [1] * count,
        "_token_logprobs": [[math.log(0.6 if answer == "good" else 0.2)] for answer in answers],
        "_alternatives": [None if line in errors else [position] for line in lines],
        "_device_seconds": [0.1] * count,
        "_attempts": [0 if errors.get(line) == "empty" else 1 for line in lines],
        "_error_type": [errors.get(line) for line in lines],
        "_error": [f"why {errors[line]}" if line in errors else None for line in lines],
        "_shared": [False] * count,
    }
    return rows, prompts, pa.table([by_name[name] for name in ANSWERS.names], schema=ANSWERS)


def parsed(contract: OutputContract, answers: list[str | None], errors: dict[int, str] | None = None) -> Parsed:
    rows, prompts, answered = unit(answers, errors)
    return parse(rows, prompts, answered, shard="2024/a.parquet", contract=contract, model_name="smollm2", at=0.0)


def test_columns_are_those_of_the_contract_in_their_order() -> None:
    result = parsed(LABELS, ["good", "what?"])
    after = ["_shard", "_row", "_key", "_model", "_prompt_tokens", "_cached_tokens", "_output_tokens", "_finish_reason"]
    assert result.data.schema.names == ["text", "when", "label", "confidence", *after]
    told = ["_error_type", "_error", "_attempts", "_first_tried", "_last_tried"]
    assert result.dead.schema.names == ["text", "when", "_shard", "_row", *told]
    source = pa.schema([("text", pa.string()), ("when", pa.timestamp("us", "UTC"))])
    assert result.data.schema == data_schema(source, LABELS)
    assert result.dead.schema == errors_schema(source)


def test_an_answered_row_carries_its_input_its_answer_and_what_it_took() -> None:
    (row,) = parsed(LABELS, ["good"]).data.to_pylist()
    assert row["text"] == "text 0"
    assert row["label"] == "good"
    assert row["confidence"] == pytest.approx(0.75)
    assert [row[name] for name in ("_shard", "_row", "_key", "_model")] == ["2024/a.parquet", 100, "key 0", "smollm2"]
    assert [row[name] for name in ("_prompt_tokens", "_cached_tokens", "_output_tokens")] == [7, 3, 1]
    assert row["_finish_reason"] == "stop"


def test_a_row_that_breaks_the_contract_is_a_dead_letter_and_its_neighbours_are_data() -> None:
    result = parsed(LABELS, ["good", "I would say good", "bad"])
    assert result.data["_row"].to_pylist() == [100, 102]
    assert result.data["label"].to_pylist() == ["good", "bad"]
    assert result.dead["_row"].to_pylist() == [101]
    assert result.dead["_error_type"].to_pylist() == ["contract"]
    assert result.dead["text"].to_pylist() == ["text 1"]


def test_errors_from_before_keep_type_reason_and_attempts() -> None:
    dead = parsed(LABELS, ["good", None, None], {1: "empty", 2: "engine"}).dead
    assert dead["_error_type"].to_pylist() == ["empty", "engine"]
    assert dead["_error"].to_pylist() == ["why empty", "why engine"]
    assert dead["_attempts"].to_pylist() == [0, 1]


def test_a_row_with_neither_answer_nor_error_is_a_dead_letter_and_not_lost() -> None:
    assert parsed(TEXT, ["a", None]).dead["_error_type"].to_pylist() == ["engine"]


def test_json_answers_become_typed_columns() -> None:
    result = parsed(JSON, ['{"n": 1, "tags": ["a"]}', '{"n": 2}', '{"n": 9.5}', '{"n"'])
    assert result.data.select(["n", "tags"]).to_pylist() == [{"n": 1, "tags": ["a"]}, {"n": 2, "tags": None}]
    assert result.data.schema.field("n").type == pa.int64()
    assert result.dead["_row"].to_pylist() == [102, 103]


@settings(max_examples=100)
@given(
    st.sampled_from([LABELS, JSON, TEXT]),
    st.lists(
        st.tuples(
            st.sampled_from(["good", "bad", "", "so", '{"n": 1}', '{"n": "x"}', '{"s": "\\ud800"}', None]),
            st.sampled_from([None, None, "empty", "engine"]),
        ),
        max_size=20,
    ),
)
def test_every_row_ends_in_exactly_one_table_in_row_order(
    contract: OutputContract, lines: list[tuple[str | None, str | None]]
) -> None:
    errors = {line: error for line, (_, error) in enumerate(lines) if error is not None}
    result = parsed(contract, [answer for answer, _ in lines], errors)
    data, dead = result.data["_row"].to_pylist(), result.dead["_row"].to_pylist()
    assert sorted(data + dead) == [100 + line for line in range(len(lines))]
    assert data == sorted(data)
    assert dead == sorted(dead)
    assert {100 + line for line in errors} <= set(dead)
    assert [int(text.split()[1]) + 100 for text in result.data["text"].to_pylist()] == data
    assert [int(text.split()[1]) + 100 for text in result.dead["text"].to_pylist()] == dead
    assert result.dead["_error_type"].null_count == result.dead["_error"].null_count == 0


def test_chunked_and_sliced_tables_are_read_line_by_line_all_the_same() -> None:
    rows, prompts, answers = unit(["good", "bad", "what?", "good"])
    chunked = pa.concat_tables([answers.slice(0, 1), answers.slice(1, 3)])
    whole = parse(rows, prompts, answers, shard="s", contract=LABELS, model_name="m", at=0.0)
    cut = parse(rows.slice(1), prompts.slice(1), chunked.slice(1), shard="s", contract=LABELS, model_name="m", at=0.0)
    assert cut.data.equals(whole.data.slice(1))
    assert cut.dead.equals(whole.dead)


@pytest.mark.parametrize("name", ["label", "Label", "confidence", "_row", "_KEY", "_error"])
def test_an_input_column_with_the_name_of_an_output_column_is_refused_with_the_ways_out(name: str) -> None:
    with pytest.raises(UserError) as caught:
        check_output_columns(pa.schema([("text", pa.string()), (name, pa.string())]), LABELS, job="mine")
    assert repr(name) in str(caught.value)
    assert "source.columns" in str(caught.value)


def test_an_output_column_that_can_be_renamed_is_told_so() -> None:
    with pytest.raises(UserError, match=r"conf/job/mine\.yaml"):
        check_output_columns(pa.schema([("summary", pa.string())]), TEXT, job="mine")
    check_output_columns(pa.schema([("text", pa.string())]), TEXT, job="mine")


def test_a_job_that_writes_a_reserved_column_is_refused() -> None:
    contract = OutputContract.of(OutputConfig(kind="text", column="_Row"), job="mine")
    with pytest.raises(UserError, match="_Row"):
        check_output_columns(pa.schema([]), contract, job="mine")


def test_input_columns_that_differ_in_case_alone_are_refused() -> None:
    with pytest.raises(UserError, match="'Text'"):
        check_output_columns(pa.schema([("text", pa.string()), ("Text", pa.string())]), LABELS, job="mine")
