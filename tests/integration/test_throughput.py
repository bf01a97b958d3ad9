"""Tokens that the real engine computes for the same rows, with each way of sparing it some switched off in turn."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from demo import model
from tests.integration.throughput_scenes import GROUPS, PREFIX_TOKENS, REPEATED, ROWS_EACH, SPARSE

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1900)]
ROOT = Path(__file__).parents[2]
UNIQUE = GROUPS * ROWS_EACH


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model.make(model.folder())
    out = tmp_path_factory.mktemp("throughput") / "taken.json"
    ended = subprocess.run(
        [sys.executable, Path(__file__).with_name("throughput_scenes.py"), model.folder(), out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"},
        timeout=1800,
    )
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")[-3000:]
    return json.loads(out.read_text())


def test_whatever_is_spared_the_answers_are_the_same(taken: Any) -> None:
    for way in ("each asked", "as they come", "to the end"):
        assert taken[way]["answers"] == taken["all"]["answers"], way
    assert taken["corpus"]["answers"] == taken["window by window"]["answers"]
    assert len(taken["corpus"]["answers"]) == UNIQUE
    assert len(taken["all"]["answers"]) == UNIQUE + REPEATED


def test_rows_with_one_prompt_are_asked_once(taken: Any) -> None:
    assert taken["all"]["asked"] == UNIQUE
    assert taken["each asked"]["asked"] == UNIQUE + REPEATED
    assert taken["each asked"]["decoded"] > taken["all"]["decoded"]


def test_rows_in_the_order_of_their_beginnings_find_them_in_the_cache(taken: Any) -> None:
    # Each beginning once, each end once, and the beginnings of the first unit once more: its rows go before all others.
    least = GROUPS * PREFIX_TOKENS + UNIQUE * 8
    first = GROUPS * PREFIX_TOKENS

    assert taken["all"]["prefilled"] <= least + first
    assert taken["as they come"]["prefilled"] >= 1.5 * taken["all"]["prefilled"]


def test_beginnings_that_come_back_after_more_rows_than_an_engine_sees_are_computed_once_in_corpus_order(
    taken: Any,
) -> None:
    least = GROUPS * PREFIX_TOKENS + UNIQUE * 8

    assert taken["corpus"]["asked"] == taken["window by window"]["asked"] == UNIQUE
    assert taken["corpus"]["prefilled"] <= 1.5 * least
    assert taken["window by window"]["prefilled"] >= 1.5 * taken["corpus"]["prefilled"]


def test_an_order_of_fields_for_each_row_prefills_fewer_tokens_than_the_best_one_for_all_rows(taken: Any) -> None:
    one, each = taken["one order of fields"], taken["an order for each row"]

    assert one["asked"] == each["asked"] == SPARSE
    assert each["prefilled"] <= 0.8 * one["prefilled"]


def test_an_answer_takes_no_token_after_the_one_that_decides_it(taken: Any) -> None:
    assert taken["to the end"]["decoded"] >= 1.5 * taken["all"]["decoded"]
    assert taken["to the end"]["prefilled"] == pytest.approx(taken["all"]["prefilled"], rel=0.2)
