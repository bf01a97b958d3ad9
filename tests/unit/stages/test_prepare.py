"""Rows to prompts: what is asked, what is a dead letter and why."""

import dataclasses
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.engine import Sampling
from actors.exchange import PROMPTS
from pipelines.config import LadderConfig, MessageConfig, ModelConfig
from pipelines.job.chat import open_chat
from pipelines.job.fingerprint import row_key
from pipelines.job.model import ModelFiles, resolve
from pipelines.stages.carry import Carried
from pipelines.stages.prepare import PrepareSpec, prepare, without_prompts
from tests.unit.job.models import bytes_bpe

FINGERPRINT = "ab" * 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = bytes_bpe(tmp_path_factory.mktemp("prepare") / "model")
    return resolve(ModelConfig(name="mine", path=str(folder)), cache=folder.parent / "cache")


def spec(model: ModelFiles, *contents: str, max_model_len: int = 512, max_tokens: int = 8) -> PrepareSpec:
    templates = contents or ("{{ text }}",)
    return PrepareSpec(
        job="mine",
        messages=tuple(MessageConfig(role="user", content=content) for content in templates),
        model=model,
        max_model_len=max_model_len,
        sampling=Sampling(max_tokens=max_tokens),
        fingerprint=FINGERPRINT,
    )


def rows(errors: list[str | None] | None = None, **columns: Any) -> pa.Table:
    table = pa.table(
        {name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()}
    )
    errors = errors or [None] * table.num_rows
    table = table.append_column("_row", pa.array(range(table.num_rows), pa.int64()))
    table = table.append_column("_error_type", pa.array(errors, pa.string()))
    return table.append_column("_error", pa.array([error and f"why {error}" for error in errors], pa.string()))


def kinds(prompts: pa.Table) -> list[str | None]:
    return prompts["_error_type"].to_pylist()  # type: ignore[no-any-return]


def test_a_row_becomes_the_prompt_of_its_chat_with_the_key_of_its_tokens(model: ModelFiles) -> None:
    prompts = prepare(rows(text=["good", "bad"], n=[1, 2]), spec(model, "{{ text }} number {{ n }}"))
    assert prompts.schema == PROMPTS
    for line, content in enumerate(["good number 1", "bad number 2"]):
        expected = open_chat(model.tokenizer_folder, model.vocab_size).tokens([("user", content)])
        assert prompts["_prompt"][line].as_py() == expected
        assert prompts["_key"][line].as_py() == row_key(FINGERPRINT, expected)
    assert kinds(prompts) == [None, None]


def test_a_row_that_came_with_an_error_keeps_it_and_is_not_asked(model: ModelFiles) -> None:
    prompts = prepare(rows(text=["a", None, "b"], errors=[None, "unreadable", None]), spec(model))
    assert kinds(prompts) == [None, "unreadable", None]
    assert prompts["_error"].to_pylist() == [None, "why unreadable", None]
    assert prompts["_prompt"][1].as_py() is None
    assert prompts["_key"][1].as_py() is None


@pytest.mark.parametrize("text", [None, "", " \n\t ", "\x00", "\ufeff", "\u3000\u200b"])
def test_null_empty_and_blank_text_is_a_dead_letter_of_type_empty(model: ModelFiles, text: str | None) -> None:
    prompts = prepare(rows(text=pa.array(["a", text, "b"], pa.string())), spec(model, "Long instruction: {{ text }}"))
    assert kinds(prompts) == [None, "empty", None]
    assert "text" in prompts["_error"][1].as_py()


def test_a_row_is_empty_only_if_all_that_would_print_is_blank(model: ModelFiles) -> None:
    table = rows(title=["a", " ", None], body=[None, "b", ""], n=[1, 2, 3])
    prompts = prepare(table, spec(model, "{% if n > 0 %}{{ title }}: {{ body }}{% endif %}"))
    assert kinds(prompts) == [None, None, "empty"]


@pytest.mark.parametrize(
    ("column", "printed"),
    [
        (pa.array([7]), "7"),
        (pa.array([True]), "true"),
        (pa.array([["a", "b"]]), '["a", "b"]'),
        (pa.array([{"a": 1}]), '{"a": 1}'),
        (pa.array([0.5]), "0.5"),
    ],
)
def test_values_that_are_no_text_are_asked_as_they_print(model: ModelFiles, column: pa.Array, printed: str) -> None:
    prompts = prepare(rows(text=column), spec(model))
    assert prompts["_prompt"][0].as_py() == open_chat(model.tokenizer_folder, model.vocab_size).tokens(
        [("user", printed)]
    )


def test_a_template_that_fails_on_one_row_fails_on_that_row_alone(model: ModelFiles) -> None:
    table = rows(user=[{"tags": ["x"], "n": 1}, {"tags": [], "n": 2}, {"tags": ["y"], "n": 3}])
    prompts = prepare(table, spec(model, "{{ user.tags[0] }} {{ user }}"))
    assert kinds(prompts) == [None, "template", None]


def test_binary_text_is_a_dead_letter_of_type_template(model: ModelFiles) -> None:
    assert kinds(prepare(rows(text=[b"raw"]), spec(model))) == ["template"]


def test_text_that_is_no_utf8_is_a_dead_letter_and_its_neighbours_are_asked(model: ModelFiles) -> None:
    broken = pa.array([b"good", b"\xff\xfe", b"\xed\xa0\x80", b"fine"], pa.binary()).view(pa.string())
    prompts = prepare(rows(text=broken), spec(model))
    assert kinds(prompts) == [None, "unreadable", "unreadable", None]


def test_nul_in_a_text_is_text(model: ModelFiles) -> None:
    assert kinds(prepare(rows(text=["a\x00b"]), spec(model))) == [None]


def test_a_prompt_is_too_long_from_the_first_token_for_which_there_is_no_room(model: ModelFiles) -> None:
    length = len(prepare(rows(text=["some words"]), spec(model))["_prompt"][0])
    fits = prepare(rows(text=["some words"]), spec(model, max_model_len=length + 8))
    over = prepare(rows(text=["some words"]), spec(model, max_model_len=length + 7))
    assert kinds(fits) == [None]
    assert kinds(over) == ["too_long"]
    for number in (str(length), "8", str(length + 7)):
        assert number in over["_error"][0].as_py()


def test_a_text_of_megabytes_is_too_long_without_being_tokenized(model: ModelFiles) -> None:
    prompts = prepare(rows(text=["word " * 1_000_000, "ok"]), spec(model, max_tokens=1))
    assert kinds(prompts) == ["too_long", None]
    assert "at least" in prompts["_error"][0].as_py()


def test_a_text_beyond_the_bound_on_characters_is_too_long(model: ModelFiles) -> None:
    assert kinds(prepare(rows(text=["a" * (9 * 2**20)]), spec(model))) == ["too_long"]


def test_a_unit_without_rows_has_no_prompts(model: ModelFiles) -> None:
    assert prepare(rows(text=pa.array([], pa.string())), spec(model)).equals(PROMPTS.empty_table())


def test_the_spec_is_small_and_crosses_processes(model: ModelFiles) -> None:
    data = pickle.dumps(spec(model))
    assert len(data) < 4096
    assert pickle.loads(data) == spec(model)


texts = st.none() | st.text(max_size=30) | st.sampled_from(["<|im_end|>", " ", "{{ text }}", "word " * 200, "\x00"])


@settings(max_examples=60)
@given(st.lists(st.tuples(texts, st.sampled_from([None, None, "unreadable"])), max_size=12))
def test_every_row_has_either_a_prompt_with_its_key_or_an_error_with_its_reason(
    model: ModelFiles, unit: list[tuple[str | None, str | None]]
) -> None:
    table = rows(text=pa.array([text for text, _ in unit], pa.string()), errors=[error for _, error in unit])
    prompts = prepare(table, spec(model, "Text: {{ text }}", max_model_len=200))
    assert prompts.num_rows == len(unit)
    for line in prompts.to_pylist():
        asked = line["_prompt"] is not None
        assert asked == (line["_key"] is not None) == (line["_error_type"] is None) == (line["_error"] is None)
        if asked:
            ids = np.array(line["_prompt"])
            assert 0 < len(ids) <= 200 - 8
            assert ids.min() >= 0
            assert ids.max() < model.vocab_size


def test_equal_prompts_have_one_key_and_the_rows_place_does_not_matter(model: ModelFiles) -> None:
    keys = prepare(rows(text=["a", "b", "a"], n=[1, 2, 3]), spec(model))["_key"].to_pylist()
    assert keys[0] == keys[2] != keys[1]


def test_a_row_that_is_too_long_is_cut_as_the_ladder_says_and_marked(model: ModelFiles) -> None:
    asked = dataclasses.replace(
        spec(model, "say: {{ text }}", max_model_len=64), ladder=LadderConfig(too_long="cut_end")
    )

    prompts = prepare(rows(text=["short", "long " * 500, "x" * 3_000_000, None]), asked)

    assert kinds(prompts) == [None, None, None, "empty"]
    lengths = [None if ids is None else len(ids) for ids in prompts["_prompt"].to_pylist()]
    assert lengths[3] is None
    assert all(length is not None and length + 8 <= 64 for length in lengths[:3])
    assert (lengths[1] or 0) + 8 >= 60  # no more is cut than must be
    cut = prompts["_cut_chars"].to_pylist()
    assert (cut[0], cut[3]) == (0, None)
    assert 2000 < cut[1] < 2500
    chat = open_chat(model.tokenizer_folder, model.vocab_size)
    kept = ("long " * 500)[: 2500 - cut[1]]
    assert prompts["_prompt"][1].as_py() == chat.tokens([("user", f"say: {kept}")])


def carried(lines: list[int], dead: list[tuple[int, str, bool]]) -> Carried:
    letters = [
        {"_line": line, "_error_type": kind, "_error": "as it was", "_again": again} for line, kind, again in dead
    ]
    return Carried(
        data=pa.table({"_line": pa.array(lines, pa.int64())}),
        dead=pa.Table.from_pylist(letters) if letters else None,
    )


def test_nothing_is_asked_of_what_is_carried_and_a_dead_letter_that_stays_keeps_its_reason(model: ModelFiles) -> None:
    known = carried([0], [(1, "engine", False), (2, "poison", True)])

    prompts = prepare(rows(text=["a", "b", "c", "d"]), spec(model), known)

    assert [ids is not None for ids in prompts["_prompt"].to_pylist()] == [False, False, True, True]
    assert kinds(prompts) == [None, "engine", None, None]
    assert prompts["_error"].to_pylist() == [None, "as it was", None, None]


def test_prompts_of_rows_that_are_found_by_key_are_taken_out_and_their_keys_stay(model: ModelFiles) -> None:
    prompts = prepare(rows(text=["a", "b", "c"]), spec(model))

    asked = without_prompts(prompts, carried([1], []))

    assert asked["_key"].equals(prompts["_key"])
    assert [ids is not None for ids in asked["_prompt"].to_pylist()] == [True, False, True]
    assert asked["_prompt"][2].as_py() == prompts["_prompt"][2].as_py()
