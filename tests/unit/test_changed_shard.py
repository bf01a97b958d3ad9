"""A shard that has changed: its dead letters, and what a run with a limit makes of it."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines.config import ModelConfig
from pipelines.job.model import resolve
from tests.in_process import Order, Place, Session, run
from tests.unit.job.models import bytes_bpe

ASKED = Order(fingerprint="f" * 64, refused={"bad": "engine"})
LONG = "long " * 300  # more tokens than the model takes
BEFORE = ("one", None, LONG, "bad three")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    model = resolve(ModelConfig(name="mine", path=str(bytes_bpe(tmp_path / "model"))), cache=tmp_path / "cache")
    made = Place(source=tmp_path / "in", sink=str(tmp_path / "out"), model=model)
    made.source.mkdir()
    return made


def ran(place: Place, order: Order, texts: Sequence[str | None]) -> Session:
    lines = [json.dumps({"version": len(texts), "text": text}) for text in texts]
    (place.source / "a.jsonl").write_text("\n".join(lines))
    session = Session(place, order)
    run(session, random.Random(0))
    return session


def dead(place: Place) -> dict[int, str]:
    """Error types in the output, by row."""
    found: dict[int, str] = {}
    for uri in DeltaTable(f"{place.sink}/errors").file_uris():
        rows = pq.read_table(uri, columns=["_row", "_error_type"]).to_pylist()
        found.update((row["_row"], row["_error_type"]) for row in rows)
    return found


def test_of_the_dead_letters_of_a_changed_shard_those_are_asked_again_that_an_engine_gave(place: Place) -> None:
    first = ran(place, ASKED, BEFORE)
    assert [one.row for one in first.asked] == [0, 3]
    assert dead(place) == {1: "empty", 2: "too_long", 3: "engine"}

    changed = ran(place, ASKED, ("new", *BEFORE))

    assert [one.row for one in changed.asked] == [0, 4]  # the new one, and what an engine refused
    assert dead(place) == {2: "empty", 3: "too_long", 4: "engine"}


def test_a_changed_shard_is_where_an_engines_dead_letter_may_become_an_answer(place: Place) -> None:
    ran(place, ASKED, BEFORE)

    ran(place, replace(ASKED, refused={}), ("new", *BEFORE))

    assert dead(place) == {2: "empty", 3: "too_long"}


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("limit", [2, 3])
def test_what_a_run_without_limit_has_done_is_shown_by_one_whose_limit_it_passes(
    place: Place, stopped: bool, limit: int
) -> None:
    ran(place, ASKED, ("one", "two", "three", "four", "five"))
    new = [json.dumps({"version": 2, "text": f"new {number}"}) for number in range(5)]
    (place.source / "a.jsonl").write_text("\n".join(new))
    cut_off = Session(place, replace(ASKED, unit_rows=1))
    cut_off.open()
    units = list(cut_off.units())
    cut_off.output.commit([*units[:3], units[4]])  # row 3 is missing
    if stopped:
        cut_off.close()
    assert texts(place) == ["one", "two", "three", "four", "five"]

    limited = Session(place, replace(ASKED, limit=limit, run="limited"))
    run(limited, random.Random(0))

    assert limited.asked == []
    assert texts(place)[:3] == ["new 0", "new 1", "new 2"]
    assert "three" not in texts(place)
    again = Session(place, replace(ASKED, limit=limit))
    run(again, random.Random(0))
    assert again.written == []

    whole = Session(place, ASKED)
    run(whole, random.Random(0))
    assert len(whole.asked) <= 1
    assert texts(place) == [f"new {number}" for number in range(5)]


def texts(place: Place) -> list[str]:
    """As a Delta reader sees them, by row."""
    rows = DeltaTable(f"{place.sink}/data").to_pyarrow_table().select(["_row", "text"]).to_pylist()
    return [row["text"] for row in sorted(rows, key=lambda row: row["_row"])]
