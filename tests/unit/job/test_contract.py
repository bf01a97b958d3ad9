"""What an answer must look like, what is read out of it, and the formula of the confidence."""

import json
import math
import pickle
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipelines.config import OutputConfig, UserError
from pipelines.job.contract import OutputContract, confidence

LABELS = ("negative", "neutral", "positive")


def labels(*names: str) -> OutputContract:
    return OutputContract.of(OutputConfig(kind="labels", labels=names or LABELS), job="mine")


def json_contract(schema: dict[str, Any]) -> OutputContract:
    return OutputContract.of(OutputConfig(kind="json", json_schema=schema), job="mine")


def properties(**parts: Any) -> OutputContract:
    return json_contract({"type": "object", "properties": parts})


def logs(**probabilities: float) -> list[tuple[str, float]]:
    return [(text, math.log(value)) for text, value in probabilities.items()]


# ------------------------------------------------------------------------------------------------- labels


def test_labels_bound_the_tokens_of_an_answer_by_the_bytes_of_the_longest_one_and_text_does_not() -> None:
    assert OutputContract.of(OutputConfig(kind="labels", labels=("ja", "größer")), job="j").most_tokens == 8 + 1
    assert OutputContract.of(OutputConfig(kind="text"), job="j").most_tokens is None


def test_labels_constrain_the_answer_and_make_two_columns() -> None:
    contract = labels()
    assert contract.constraint.choices == LABELS
    assert contract.schema == pa.schema([("label", pa.string()), ("confidence", pa.float64())])
    assert contract.alternatives == 20
    assert pickle.loads(pickle.dumps(contract)) == contract


@pytest.mark.parametrize("text", ["Positive", "positive ", "", "posit", "positive\n"])
def test_an_answer_that_is_no_label_to_the_letter_breaks_the_contract(text: str) -> None:
    verdict = labels().read(text, "stop")
    assert (verdict.values, verdict.error_type) == (None, "contract")


def test_a_cut_off_answer_says_that_it_was_cut_off() -> None:
    assert "max_tokens" in str(labels().read("posit", "length").error)
    assert labels().read("positive", "length").values == ("positive", None)


@given(st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3), st.floats(0.0, 0.9))
def test_confidence_is_exact_where_first_tokens_differ_and_ignores_what_is_no_label(
    weights: list[float], outside: float
) -> None:
    inside = [weight / sum(weights) * (1 - outside) for weight in weights]
    position = [(label, math.log(p)) for label, p in zip(("nega", "neut", "posi"), inside, strict=True)]
    position.append(("Sure", math.log(outside) if outside else -math.inf))
    for label, first, own in zip(LABELS, ("nega", "neut", "posi"), inside, strict=True):
        rest = label.removeprefix(first)
        found = confidence(label, LABELS, [math.log(own), -0.1], [position, [(rest, -0.1), ("x", -0.2)]])
        assert found == pytest.approx(own / sum(inside))


def test_several_tokens_that_begin_a_label_all_count_for_it() -> None:
    position = logs(positive=0.4, pos=0.2, p=0.1, negative=0.2, n=0.1)
    found = confidence("positive", ("negative", "positive"), [math.log(0.4)], [position])
    assert found == pytest.approx(0.7)


def test_labels_that_part_later_multiply_what_each_position_decides() -> None:
    first = logs(ne=0.8, positive=0.2)
    second = logs(gative=0.3, utral=0.6, vada=0.1)
    found = confidence("negative", LABELS, [math.log(0.8), math.log(0.3)], [first, second])
    assert found == pytest.approx(0.8 * 0.3 / 0.9)


@pytest.mark.parametrize("end", ["", "<|im_end|>"])
def test_a_label_that_begins_another_is_told_apart_by_its_end(end: str) -> None:
    names = ("good", "good enough")
    first = logs(good=0.9, bad=0.1)
    second = [(end, math.log(0.25)), (" enough", math.log(0.75))]
    assert confidence("good", names, [math.log(0.9), math.log(0.25)], [first, second]) == pytest.approx(0.25)


def test_a_character_torn_across_tokens_is_followed() -> None:
    names = ("négatif", "neutre")
    positions = [logs(n=1.0), [("\ufffd", math.log(0.6)), ("eutre", math.log(0.4))], [("égatif", 0.0)]]
    found = confidence("négatif", names, [0.0, math.log(0.6), 0.0], positions)
    assert found == pytest.approx(0.6)


def test_confidence_is_absent_not_invented_where_the_report_does_not_tell() -> None:
    assert confidence("positive", LABELS, [], []) is None
    assert confidence("positive", LABELS, [-0.1], [[("negative", -0.1)]]) is None
    assert labels().read("positive", "stop").values == ("positive", None)


@given(st.data())
def test_confidences_of_all_labels_sum_to_one_under_any_distribution_of_first_tokens(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=5, unique=True))
    assume(not any(a != b and b.startswith(a) for a in names for b in names))
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(names), max_size=len(names)))
    # Distinct weights, as drawn numbers are: equal ones leave the chosen token ambiguous, which here is harmless.
    position = [(name, math.log(weight / sum(weights))) for name, weight in zip(names, weights, strict=True)]
    found = [confidence(name, tuple(names), [logprob], [position]) for name, logprob in position]
    assert math.fsum(value for value in found if value is not None) == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------- json


def test_each_property_becomes_a_column_of_its_type_in_the_schemas_order() -> None:
    contract = json_contract(
        {
            "type": "object",
            "properties": {
                "title": {"type": "string"},
                "pages": {"type": ["integer", "null"]},
                "price": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                "mixed": {"type": ["integer", "number"]},
                "sold": {"type": "boolean"},
                "kind": {"enum": ["a", "b", None]},
                "size": {"enum": [1, 2.5]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "by": {"$ref": "#/$defs/person"},
            },
            "$defs": {
                "person": {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
            },
        }
    )
    assert contract.schema == pa.schema(
        [
            ("title", pa.string()),
            ("pages", pa.int64()),
            ("price", pa.float64()),
            ("mixed", pa.float64()),
            ("sold", pa.bool_()),
            ("kind", pa.string()),
            ("size", pa.float64()),
            ("tags", pa.list_(pa.string())),
            ("by", pa.struct([("name", pa.string()), ("age", pa.int64())])),
        ]
    )
    answer = (
        '{"title": "x", "pages": 3.0, "price": 1, "mixed": 2, "sold": true, "kind": null, "tags": [], "by": {"age": 7}}'
    )
    values = contract.read(answer, "stop").values or ()
    assert values == ("x", 3, 1.0, 2.0, True, None, None, [], {"name": None, "age": 7})
    for place, field in enumerate(contract.schema):
        assert len(pa.array([values[place]], field.type)) == 1


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string"}, "type object"),
        ({"type": "object"}, "properties"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "properties.a"),
        ({"type": "object", "properties": {"a": {}}}, "properties.a"),
        ({"type": "object", "properties": {"a": True}}, "properties.a"),
        ({"type": "object", "properties": {"a": {"type": ["string", "integer"]}}}, "one type"),
        ({"type": "object", "properties": {"a": {"type": "null"}}}, "nothing but null"),
        ({"type": "object", "properties": {"a": {"type": "array"}}}, "items"),
        ({"type": "object", "properties": {"a": {"type": "object"}}}, "properties.a"),
        ({"type": "object", "properties": {"a": {"allOf": [{"type": "string"}]}}}, "allOf"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.org/x"}}}, "inside the schema"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, "#/$defs/none"),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True},
            "additionalProperties",
        ),
        ({"type": "object", "properties": {1: {"type": "string"}}}, "quotes"),
        ({"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}, "contains itself"),
    ],
)
def test_a_schema_that_no_columns_can_hold_is_refused_with_its_place(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        json_contract(schema)
    assert named in str(caught.value)
    assert "mine" in str(caught.value)


def test_a_schema_nested_without_end_is_refused_and_not_followed() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(500):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UserError, match="deep"):
        properties(a=deep)


@pytest.mark.parametrize(
    ("answer", "finish_reason", "said"),
    [
        ('{"n": 1', "length", "max_tokens"),
        ("I would say 1", "stop", "no JSON"),
        ('{"n": NaN}', "stop", "no JSON"),
        ('{"n": "1"}', "stop", "at n"),
        ('{"n": 1, "more": 2}', "stop", "additionalProperties"),
        ('{"n": 9223372036854775808}', "stop", "64 bits"),
        ('{"s": "\\ud800"}', "stop", "surrogate"),
        ("[" * 100_000, "stop", "no JSON"),
        ('{"n": ' + "9" * 5_000 + "}", "stop", "no JSON"),
        ('{"x": 1' + "0" * 400 + "}", "stop", "64 bits"),
        ('{"more": ' + "[" * 200 + "]" * 200 + "}", "stop", "deeper"),
    ],
)
def test_an_answer_that_breaks_the_schema_is_a_contract_error_with_its_reason(
    answer: str, finish_reason: str, said: str
) -> None:
    contract = properties(n={"type": "integer"}, s={"type": "string"}, x={"type": "number"})
    verdict = contract.read(answer, finish_reason)
    assert verdict.error_type == "contract"
    assert said in str(verdict.error)
    assert len(str(verdict.error)) < 500


def test_a_contract_error_does_not_repeat_the_answer() -> None:
    verdict = properties(n={"type": "integer"}).read('{"n": "SECRET"}', "stop")
    assert "SECRET" not in str(verdict.error)


def test_the_schema_that_the_engine_gets_is_closed_as_the_one_that_reads() -> None:
    contract = properties(by={"type": "object", "properties": {"name": {"type": "string"}}})
    schema = json.loads(str(contract.constraint.json_schema))
    assert schema["additionalProperties"] is False
    assert schema["properties"]["by"]["additionalProperties"] is False


def test_a_property_may_be_called_properties() -> None:
    contract = properties(properties={"type": "string"}, type={"type": "integer"})
    assert contract.read('{"properties": "x", "type": 1}', "stop").values == ("x", 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("i", "x", "b", "s", "l", "o"), json_values)))
def test_whatever_is_read_fits_its_columns(document: dict[str, Any]) -> None:
    contract = properties(
        i={"type": ["integer", "null"]},
        x={"type": "number"},
        b={"type": "boolean"},
        s={"type": "string"},
        l={"type": "array", "items": {"type": ["integer", "null"]}},
        o={"type": "object", "properties": {"a": {"type": "string"}}},
    )
    verdict = contract.read(json.dumps(document), "stop")
    assert (verdict.values is None) == (verdict.error is not None)
    if verdict.values is not None:
        for value, field in zip(verdict.values, contract.schema, strict=True):
            assert len(pa.array([value], field.type)) == 1


# ------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_text_is_taken_as_it_is_into_the_named_column(finish_reason: str) -> None:
    contract = OutputContract.of(OutputConfig(kind="text", column="summary"), job="mine")
    assert contract.schema.names == ["summary"]
    assert contract.read(" so\n", finish_reason).values == (" so\n",)
