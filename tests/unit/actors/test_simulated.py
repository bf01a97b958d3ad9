"""The simulated engine: what it says, and how it fails when told to."""

import asyncio
import json
import math
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine import BadPrompt, Constraint, EngineConfig, EngineLost, Prompt, Sampling, SimulatedFaults
from actors.simulated import SimulatedEngine, answer_by_hash, smallest_document

SAMPLING = Sampling(max_tokens=8)
LABELS = Constraint(choices=("good", "bad", "so so"))


def engine(max_num_seqs: int = 256, **faults: Any) -> SimulatedEngine:
    return SimulatedEngine(
        EngineConfig(
            kind="simulated",
            model="none",
            model_name="none",
            max_num_seqs=max_num_seqs,
            simulated=SimulatedFaults(**faults),
        )
    )


def prompt(key: str, *tokens: int, constraint: Constraint = LABELS, alternatives: int = 0) -> Prompt:
    return Prompt(
        key=key, token_ids=tokens or (5, 6), sampling=SAMPLING, constraint=constraint, alternatives=alternatives
    )


@given(key=st.text(), alternatives=st.integers(0, 5))
def test_one_key_has_one_answer_and_it_is_one_of_the_choices(key: str, alternatives: int) -> None:
    asked = prompt(key, alternatives=alternatives)

    answer = answer_by_hash(asked, 4)

    assert answer == answer_by_hash(replace(asked, token_ids=(1, 2)), 4)
    assert answer.text in LABELS.choices
    for position in answer.alternatives:
        assert position[0].text == answer.text
        assert math.fsum(math.exp(each.logprob) for each in position) <= 1 + 1e-9
        assert [each.logprob for each in position] == sorted((each.logprob for each in position), reverse=True)


def test_all_choices_occur() -> None:
    said = {answer_by_hash(prompt(str(number)), 4).text for number in range(100)}

    assert said == set(LABELS.choices)


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer", "minimum": 3, "maximum": 5}}},
    {"type": "object", "properties": {"mood": {"enum": ["x", "y"]}, "why": {"type": ["string", "null"]}}},
    {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}, "minItems": 2},
    {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    {"type": "string", "minLength": 20, "maxLength": 22},
    {"type": "integer", "maximum": -4},
    {"const": 7},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_document_is_valid_under_its_schema(schema: dict[str, Any]) -> None:
    for number in range(20):
        jsonschema.validate(smallest_document(schema, number), schema)
    answered = answer_by_hash(prompt("key", constraint=Constraint(json_schema=json.dumps(schema))), 4)
    jsonschema.validate(json.loads(answered.text), schema)


async def test_a_bad_token_spoils_its_own_prompt_only() -> None:
    asked = engine(bad_token_id=7)

    with pytest.raises(BadPrompt):
        await asked.answer(prompt("a", 1, 7))

    assert (await asked.answer(prompt("b", 1))).text in LABELS.choices


async def test_poison_ends_the_engine_and_all_that_is_in_flight() -> None:
    asked = engine(poison_token_id=7, latency_s=60, max_num_seqs=1)
    running = [asyncio.create_task(asked.answer(prompt(key))) for key in "abc"]
    await asyncio.sleep(0)
    assert asked.load().running == 1
    assert asked.load().waiting == 2

    with pytest.raises(EngineLost, match="poison"):
        await asked.answer(prompt("d", 7))

    ended = await asyncio.gather(*running, return_exceptions=True)
    assert [type(each) for each in ended] == [EngineLost] * 3
    with pytest.raises(EngineLost, match="poison"):
        await asked.answer(prompt("e"))


async def test_no_more_rows_run_than_the_engine_has_sequences() -> None:
    asked = engine(latency_s=0.002, max_num_seqs=3)
    most = 0

    async def ask(key: str) -> None:
        nonlocal most
        await asked.answer(prompt(key))
        most = max(most, asked.load().running + 1)

    await asyncio.gather(*(ask(str(number)) for number in range(12)))

    assert most == 3
    assert asked.load().running == asked.load().waiting == 0


async def test_a_hanging_prompt_is_never_answered_until_the_engine_is_closed() -> None:
    asked = engine(hang_token_id=7)
    hanging = asyncio.create_task(asked.answer(prompt("a", 7)))
    await asked.answer(prompt("b"))
    assert not hanging.done()

    asked.close()

    with pytest.raises(EngineLost, match="closed"):
        await hanging


async def test_an_engine_that_dies_every_so_many_rows_does_it_at_the_same_row_each_time() -> None:
    asked = engine(die_every_rows=3)
    await asked.answer(prompt("a"))
    await asked.answer(prompt("b"))

    with pytest.raises(EngineLost, match="every 3 rows"):
        await asked.answer(prompt("c"))
