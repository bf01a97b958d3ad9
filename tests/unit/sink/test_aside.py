"""Units that wait for their shard: out of every reader's sight while no run is under way, and back when it is whole."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines import storage
from pipelines.sink import aside
from pipelines.sink.fenced import Fenced
from pipelines.sink.output import Output
from tests.unit.sink.test_tables import DATA, ERRORS, done, plain, rows


def opened(sink: str) -> Output:
    return Output.open(
        sink, data_schema=DATA, errors_schema=ERRORS, fingerprint="f", identities={"a.parquet": "v2"}, retain_hours=0.0
    )


def half_changed(sink: str) -> None:
    """An output whose shard has changed, after a run that stopped in the middle of it."""
    output = opened(sink)
    output.commit([done(sink, 0, 4, last=True, bad=[2])])
    output.commit([done(sink, 0, 2, bad=[0], identity="v2")])
    output.close(retain_hours=0)


OLD_ROWS = [("a.parquet", row, "f") for row in (0, 1, 3)]
NEW_ROWS = [("a.parquet", row, "f") for row in (1, 2, 3, 4)]


def test_a_run_that_stops_in_a_changed_shard_leaves_the_old_answers_alone_to_every_reader(store: str) -> None:
    half_changed(store)

    assert rows(store) == OLD_ROWS
    assert rows(store, "errors") == [("a.parquet", 2, "empty")]
    for name in ("data", "errors"):
        assert len(plain(store, name)) == 1


def test_the_run_that_makes_the_shard_whole_shows_what_was_aside(store: str) -> None:
    half_changed(store)

    output = opened(store)
    assert rows(store) == OLD_ROWS
    output.commit([done(store, 2, 5, last=True, identity="v2")])
    output.close(retain_hours=0)

    assert rows(store) == NEW_ROWS
    assert rows(store, "errors") == [("a.parquet", 0, "empty")]
    assert len(plain(store)) == 2
    assert list(storage.listing(f"{store}/data/_waiting", missing_ok=True)) == []


class Cut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("operation", ["put", "delete"])
@pytest.mark.parametrize("call", range(4))
@pytest.mark.parametrize("effect", [False, True])
def test_whatever_move_a_crash_cuts_off_the_next_start_repairs(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, operation: str, call: int, effect: bool
) -> None:
    sink = str(tmp_path)
    moves = 0

    def cut(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(uri: str, *rest: Any) -> Any:
            nonlocal moves
            counted = "_waiting" in uri or operation == "delete"
            moves += counted
            if counted and moves == call + 1:
                if effect:
                    real(uri, *rest)
                raise Cut
            return real(uri, *rest)

        return wrapped

    real = getattr(storage, operation)
    monkeypatch.setattr(storage, operation, cut(real))
    try:
        half_changed(sink)
    except Cut:
        monkeypatch.setattr(storage, operation, real)
        assert rows(sink) == OLD_ROWS
        opened(sink).close(retain_hours=0)
    assert len(plain(sink)) == 1
    try:
        output = opened(sink)
        if not any(receipt.stop == 2 for receipt in output.view.waiting()):
            output.commit([done(sink, 0, 2, bad=[0], identity="v2")])
        output.commit([done(sink, 2, 5, last=True, identity="v2")])
        output.close(retain_hours=0)
    except Cut:
        monkeypatch.setattr(storage, operation, real)
        assert rows(sink) in (OLD_ROWS, NEW_ROWS)
        opened(sink).close(retain_hours=0)

    assert rows(sink) == NEW_ROWS
    assert rows(sink, "errors") == [("a.parquet", 0, "empty")]
    assert len(plain(sink)) == 2
    assert list(storage.listing(f"{sink}/data/_waiting", missing_ok=True)) == []


def test_a_removed_shard_takes_its_answers_its_dead_letters_and_what_waits_with_it(store: str) -> None:
    half_changed(store)
    output = opened(store)
    output.commit([done(store, shard="b.parquet", last=True)])

    output.remove(["a.parquet"], fingerprint="f", run="run-2")
    output.close(retain_hours=0)

    assert {row[0] for row in rows(store)} == {"b.parquet"}
    assert rows(store, "errors") == []
    assert (len(plain(store)), len(plain(store, "errors"))) == (1, 0)
    assert list(storage.listing(f"{store}/data/_waiting", missing_ok=True)) == []
    assert opened(store).taken_over == ()


@pytest.mark.parametrize("successor_ends", [False, True])
def test_what_an_overtaken_run_moves_aside_though_it_is_current_now_comes_back(
    store: str, successor_ends: bool
) -> None:
    """It slept between its look at who is the writer and the move."""
    opened(store).commit([done(store, 0, 4, last=True)])
    sleeper = opened(store)
    half = done(store, 0, 2, bad=[0], identity="v2")
    sleeper.commit([half])
    successor = opened(store)
    successor.commit([done(store, 2, 5, last=True, identity="v2")])

    for folder in ("data", "errors"):
        name = half.data_file
        aside._move(f"{store}/{folder}/{name}", f"{store}/{folder}/_waiting/{name}")

    (successor if successor_ends else opened(store)).close(retain_hours=0)
    assert rows(store) == NEW_ROWS
    assert rows(store, "errors") == [("a.parquet", 0, "empty")]
    assert len(plain(store)) == 2


def test_an_overtaken_run_moves_no_file_more(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "TOGETHER", 1)
    sink = str(tmp_path)
    opened(sink).commit([done(sink, 0, 6, last=True)])
    sleeper = opened(sink)
    sleeper.commit([done(sink, 0, 2, identity="v2"), done(sink, 2, 4, identity="v2")])
    turns = iter([None])

    def check() -> None:
        if next(turns, "overtaken") is not None:
            sleeper.tables.data.check_writer(sleeper.tables.epoch)
        else:
            opened(sink)  # another run begins while the first file is moved

    with pytest.raises(Fenced):
        aside.set_aside(sink, sleeper.view.waiting(), check)
    assert len(list(storage.listing(f"{sink}/data/_waiting", missing_ok=True))) == 1
