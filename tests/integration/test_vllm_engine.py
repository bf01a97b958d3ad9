"""The real engine on the embedded model: it says what `vllm.LLM.chat` says, and keeps to what it is told."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipelines.job.contract import confidence
from tests.integration.vllm_acts import act
from tests.integration.vllm_scenes import ALIKE, FIRST, LABELS, REVIEWS, SCHEMA, STEM

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1900)]
SCENES = "vllm_scenes.py"
IM_START = 1  # the embedded model's <|im_start|>


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return act(tmp_path_factory.mktemp("vllm") / "seen.json", SCENES)


def test_greedy_answers_are_those_of_llm_chat(seen: Any) -> None:
    assert [answer["text"] for answer in seen["ours"]["texts"]] == seen["bare"]["texts"]
    assert [answer["output_tokens"] for answer in seen["ours"]["texts"]] == seen["bare"]["output_tokens"]
    assert [answer["prompt_tokens"] for answer in seen["ours"]["texts"]] == [len(ids) for ids in seen["bare"]["ids"]]


def test_labels_and_their_log_probabilities_are_those_of_llm_chat(seen: Any) -> None:
    labels = seen["whole"]["parted"]

    assert [answer["text"] for answer in labels] == seen["bare"]["labels"]
    assert set(seen["bare"]["labels"]) <= set(LABELS)
    sums = [sum(answer["token_logprobs"]) for answer in labels]
    assert sums == pytest.approx(seen["bare"]["label_logprobs"], abs=1e-3)


def test_rows_through_read_prepare_host_and_parse_are_answered_as_llm_chat_answers_them(seen: Any) -> None:
    rows, count = seen["rows"], len(REVIEWS)

    assert rows["ids"][:count] == seen["bare"]["ids"]
    assert [row["label"] for row in rows["data"][:count]] == seen["bare"]["labels"]
    assert rows["logprobs"][:count] == pytest.approx(seen["bare"]["label_logprobs"], abs=1e-3)
    assert rows["dead"] == []
    # The row that spells control tokens is one user turn, as each of the others.
    turns = rows["ids"][0].count(IM_START)
    assert [ids.count(IM_START) for ids in rows["ids"]] == [turns] * (count + 1)
    assert rows["data"][count]["label"] in LABELS


@pytest.mark.slow  # three starts of an engine in a process of its own, about a minute each
def test_an_engine_in_its_own_process_answers_alike_dies_alone_and_leaves_nothing(seen: Any, tmp_path: Path) -> None:
    own = act(tmp_path / "own.json", SCENES)

    assert own["processes"] == 1
    assert own["texts"] == own["rebuilt"] == seen["bare"]["texts"]
    assert own["tokens"] > 0
    assert own["kv_tokens"] == seen["ours"]["kv_tokens"]
    assert "died" in own["lost"]
    assert (own["after_the_death"], own["after_closing"]) == (0, 0)


CHOICES = [("parted", LABELS), ("alike", ALIKE), ("stem", STEM), ("first", FIRST)]


@pytest.mark.parametrize(("name", "labels"), CHOICES)
def test_an_answer_that_ends_when_its_label_is_decided_has_the_label_and_the_confidence_of_the_whole_one(
    seen: Any, name: str, labels: tuple[str, ...]
) -> None:
    short, whole = seen["ours"]["decided"][name], seen["whole"][name]

    assert [answer["text"] for answer in short] == [answer["text"] for answer in whole]
    assert {answer["text"] for answer in whole} <= set(labels)
    confidences = [told(answer, labels) for answer in short]
    assert confidences == pytest.approx([told(answer, labels) for answer in whole], rel=1e-4)
    assert len(set(confidences)) == len(REVIEWS)
    assert {answer["finish_reason"] for answer in short} == {"stop"}
    assert sum(answer["output_tokens"] for answer in short) < sum(answer["output_tokens"] for answer in whole)


@pytest.mark.parametrize(("name", "labels"), CHOICES)
def test_it_takes_the_tokens_of_the_whole_answer_up_to_the_first_that_leaves_one_label_and_the_engine_reads_no_other(
    seen: Any, name: str, labels: tuple[str, ...]
) -> None:
    short, whole = seen["ours"]["decided"], seen["whole"]

    assert [answer["output_tokens"] for answer in short[name]] == [needed(answer, labels) for answer in whole[name]]
    for computed, answers in ((short["computed"], short[name]), (whole["computed"], whole[name])):
        # The first token comes of the prompt; each further one of the one before it.
        assert computed[name] == sum(answer["output_tokens"] - 1 for answer in answers)


def needed(answer: dict[str, Any], labels: tuple[str, ...]) -> int:
    """How many tokens of a whole answer there are when, for the first time, one label is left."""
    text = ""
    for count, (options, chosen) in enumerate(zip(answer["alternatives"], answer["token_logprobs"], strict=True), 1):
        text += next(option["text"] for option in options if option["logprob"] == chosen)
        if sum(label.startswith(text) for label in labels) == 1:
            return count
    return int(answer["output_tokens"])  # the end decides


@pytest.mark.slow  # a start of an engine in a process of its own
def test_labels_that_part_at_their_first_letter_take_one_token_of_an_engine_that_is_told_too_late_to_stop(
    seen: Any, tmp_path: Path
) -> None:
    late = act(tmp_path / "late.json", SCENES)

    for name in ("first", "stem", "parted", "alike"):
        assert [answer["text"] for answer in late[name]] == [answer["text"] for answer in seen["whole"][name]]
    assert [answer["output_tokens"] for answer in late["first"]] == [1] * len(REVIEWS)
    assert {answer["finish_reason"] for answer in late["first"]} == {"stop"}
    assert late["computed"]["first"] == 0
    assert late["computed"]["stem"] > sum(answer["output_tokens"] - 1 for answer in late["stem"])  # else it is not late


def told(answer: dict[str, Any], labels: tuple[str, ...]) -> float | None:
    positions = [[(option["text"], option["logprob"]) for option in each] for each in answer["alternatives"]]
    return confidence(answer["text"], labels, answer["token_logprobs"], positions)


def test_alternatives_are_what_the_constraint_allows_and_add_up_to_one(seen: Any) -> None:
    for answer in seen["ours"]["labels"]:
        first = answer["alternatives"][0]
        assert all(any(label.startswith(option["text"]) for label in LABELS) for option in first)
        assert first == sorted(first, key=lambda option: -option["logprob"])
        for position, chosen in zip(answer["alternatives"], answer["token_logprobs"], strict=True):
            assert math.fsum(math.exp(option["logprob"]) for option in position) == pytest.approx(1, abs=1e-3)
            assert position[0]["logprob"] == chosen  # greedy


def test_a_document_is_valid_under_the_schema_asked_for(seen: Any) -> None:
    for answer in seen["ours"]["documents"]:
        assert answer["finish_reason"] == "stop"
        jsonschema.validate(json.loads(answer["text"]), SCHEMA)


def test_the_common_prefix_is_computed_once(seen: Any) -> None:
    ids = seen["bare"]["ids"]
    common = next(place for place, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1)
    whole_blocks = common // 32 * 32  # block_size

    cached = [answer["cached_tokens"] for answer in seen["ours"]["labels"]]

    assert whole_blocks >= 64
    assert cached[1:] == [whole_blocks] * (len(ids) - 1)
    assert cached[0] >= whole_blocks  # it was asked twice


def test_a_refused_prompt_says_why_and_takes_no_other_with_it(seen: Any) -> None:
    reasons = seen["ours"]["refused"]

    for reason, part in zip(reasons, ("no tokens", "id -1", "id 49152", f"id {2**31}", "512 tokens"), strict=True):
        assert part in reason
    assert seen["ours"]["beside_the_refused"] == seen["bare"]["texts"]


def test_requests_run_together_and_cancelled_ones_leave(seen: Any) -> None:
    assert seen["ours"]["most_running"] == len(REVIEWS)
    assert seen["ours"]["tokens"] > 0


def test_the_engine_tells_how_many_tokens_fit_its_kv_memory(seen: Any) -> None:
    kv_token_bytes = 2 * 30 * 3 * 64 * 4  # keys and values, layers, heads, numbers of a head, bytes

    assert 0.9 < seen["ours"]["kv_tokens"] * kv_token_bytes / (0.25 * 2**30) <= 1


def test_closing_ends_what_is_in_flight_and_another_engine_can_follow_in_the_same_process(seen: Any) -> None:
    assert "was closed" in seen["ours"]["in_flight_at_close"]
    assert seen["after_a_rebuild"] == seen["bare"]["texts"]


def test_an_engine_that_cannot_start_says_what_it_was_doing_and_why(seen: Any, tmp_path: Path) -> None:
    assert "reading the model's configuration" in seen["missing"]
    assert "smollm2-135m-instruct-missing" in seen["missing"]

    too_slow = act(tmp_path / "impatient.json", SCENES)

    assert "did not start within 0.2 s (engine.start_timeout_s): it was importing vllm" in too_slow
