"""Options of the engine that are said to do something do it, on the real engine and the embedded model."""

from typing import Any

import pytest

from tests.integration.vllm_acts import act

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1900)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return act(tmp_path_factory.mktemp("options") / "seen.json", "option_scenes.py")


def test_guessing_changes_no_answer_and_says_how_much_of_it_was_wrong(seen: Any) -> None:
    assert seen["guessed"] == seen["plain"]
    assert seen["plain_drafted"] is None
    assert 0 < seen["rejected"] < seen["drafted"]


def test_a_prompt_longer_than_a_step_is_read_in_pieces_or_refused(seen: Any) -> None:
    assert seen["chunked"] == seen["plain"]
    assert "max_num_batched_tokens" in seen["not_chunked"]


def test_an_adapter_answers_as_the_model_that_it_was_added_to_by_hand(seen: Any) -> None:
    assert seen["adapted"] == seen["merged"]
    assert seen["adapted"] != seen["plain"]
