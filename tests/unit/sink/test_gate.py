"""Publication apart from the commit: what readers see, what waits, and that a crash between any two steps is mended."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipelines import storage
from pipelines.sink.decisions import Version, versions
from pipelines.sink.fenced import Fenced, FencedTable
from pipelines.sink.found import Found
from pipelines.sink.ledger import Ledger
from pipelines.sink.output import Output
from pipelines.sink.publications import Publications
from pipelines.sink.receipt import Receipt
from tests.unit.sink.test_tables import DATA, ERRORS, done, plain, rows

OLD = [("a.parquet", row, "f") for row in (0, 2, 3, 4, 5, 6, 7)]
NEW = [("a.parquet", row, "g") for row in (0, 1, 2, 3, 4, 6, 7)]


def opened(sink: str, fingerprint: str = "f", *, gate: bool = True, retain_hours: float = 0, **more: Any) -> Output:
    return Output.open(
        sink,
        data_schema=more.get("data_schema", DATA),
        errors_schema=ERRORS,
        fingerprint=fingerprint,
        identities={"a.parquet": "v1", "b.parquet": "v1"},
        retain_hours=retain_hours,
        run=more.get("run", f"run-{fingerprint}"),
        gate=gate,
    )


def answered(sink: str, fingerprint: str, **more: Any) -> list[Receipt]:
    bad = {"f": 1, "g": 5}.get(fingerprint, 2)
    units = ((0, 4), (4, 8))
    return [
        done(sink, *unit, fingerprint=fingerprint, bad=[bad] if bad in range(*unit) else [], last=unit[1] == 8, **more)
        for unit in units
    ]


def first_version(sink: str, *, retain_hours: float = 0) -> None:
    """An output of the prompt f, published by a gate."""
    output = opened(sink)
    output.commit(answered(sink, "f"))
    output.publish(by="gate", reason="passed")
    output.close(retain_hours=retain_hours)


def blocked(sink: str, *, retain_hours: float = 0) -> None:
    """And another prompt's answers, which did not pass."""
    output = opened(sink, "g", retain_hours=retain_hours)
    output.commit(answered(sink, "g"))
    output.block("drift")
    output.close(retain_hours=retain_hours)


def history(sink: str) -> list[Version]:
    return versions(Publications.open(sink).decisions(), Ledger.open(sink, create=False).ends())


def aside(sink: str) -> set[str]:
    return {one.path for one in storage.listing(f"{sink}/data/_waiting", missing_ok=True)}


def test_readers_see_nothing_of_a_candidate_until_it_is_published_and_then_all_of_it(store: str) -> None:
    output = opened(store)
    output.commit(answered(store, "f"))
    assert rows(store) == []
    versions_before = DeltaTable(f"{store}/data", storage_options=storage.delta_options(store)).version()

    output.publish(by="gate", reason="passed")

    assert rows(store) == OLD
    assert DeltaTable(f"{store}/data", storage_options=storage.delta_options(store)).version() == versions_before + 1
    output.close(retain_hours=0)
    blocked(store)
    assert rows(store) == OLD
    assert rows(store, "errors") == [("a.parquet", 1, "empty")]
    assert (len(plain(store)), len(plain(store, "errors")), len(aside(store))) == (2, 1, 2)

    again = opened(store, "g")
    assert [one.fingerprint for one in again.view.current()] == ["g", "g"]  # paid for once
    assert again.taken_over == ()
    again.publish(by="anna", reason="the shift is wanted")
    again.close(retain_hours=0)

    assert rows(store) == NEW
    assert rows(store, "errors") == [("a.parquet", 5, "empty")]
    assert (len(plain(store)), len(plain(store, "errors")), len(aside(store))) == (2, 1, 0)


def test_the_prompt_of_before_goes_on_beside_a_blocked_candidate_and_pays_nothing(store: str) -> None:
    first_version(store)
    blocked(store)

    back = opened(store, "f")

    assert {one.fingerprint for one in back.view.current()} == {"f"}
    assert back.candidate().new == back.candidate().gone == ()
    back.close(retain_hours=0)
    assert {one.fingerprint for one in opened(store, "g").view.current()} == {"g"}
    back = opened(store, "f")
    back.commit([done(store, shard="b.parquet", last=True)])
    back.publish(by="gate", reason="passed")
    back.close(retain_hours=0)
    assert rows(store) == [*OLD, *(("b.parquet", row, "f") for row in range(4))]
    assert aside(store) == set()  # what waited beside the version before is given up
    after = opened(store, "g")
    assert {one.fingerprint for one in after.view.current()} == {"f"}
    assert after.taken_over == ()


def test_a_rollback_shows_the_version_before_and_keeps_what_it_takes_away_for_another_day(store: str) -> None:
    first_version(store, retain_hours=1)
    blocked(store, retain_hours=1)
    output = opened(store, "g", retain_hours=1)
    output.publish(by="anna", reason="the shift is wanted")
    output.close(retain_hours=1)
    before = history(store)
    assert [version.run for version in before] == ["", "run-f", "run-g"]

    output = Output.at_rest(store, run="rollback", found=Found.at(store))
    output.roll_back(before[-2], by="bea", reason="it was not")
    output.close(retain_hours=1, known_alone=True)

    assert (rows(store), rows(store, "errors")) == (OLD, [("a.parquet", 1, "empty")])
    assert [version.run for version in history(store)] == ["", "run-f"]
    # A start brings the tables up to the log, which says so: it is not undone.
    opened(store, "f").close(retain_hours=0)
    again = opened(store, "g")
    assert rows(store) == OLD
    assert {one.fingerprint for one in again.view.current()} == {"g"}
    again.publish(by="bea", reason="it was, after all")
    again.close(retain_hours=0)
    assert rows(store) == NEW
    told = [(one.action, one.by, one.reason) for one in Publications.open(store).decisions()]
    assert told[-2:] == [("rollback", "bea", "it was not"), ("publish", "bea", "it was, after all")]


def test_files_that_were_replaced_are_kept_from_their_publication_on(tmp_path: Path) -> None:
    sink = str(tmp_path)
    first_version(sink)
    blocked(sink)  # long ago, for all that anybody knows
    long_ago = [one.finished_at for one in Ledger.open(sink, create=False).receipts()]

    output = opened(sink, "g", retain_hours=1)
    output.publish(by="anna", reason="")

    replaced = output.shown.replaced()
    assert len(replaced) == 2
    assert min(replaced.values()) > max(long_ago)
    output.close(retain_hours=1)
    assert len(plain(sink)) == 4
    later = opened(sink, "g", retain_hours=1)  # which knows it from the log
    assert later.shown.replaced() == replaced
    assert len(plain(sink)) == 4
    later.close(retain_hours=0)
    assert len(plain(sink)) == 2


def test_an_output_whose_gate_is_gone_shows_what_is_committed_at_once(store: str) -> None:
    first_version(store)
    blocked(store)

    output = opened(store, "f", gate=False)
    output.commit([done(store, shard="b.parquet", last=True)])

    assert rows(store) == [*OLD, *(("b.parquet", row, "f") for row in range(4))]
    output.close(retain_hours=0)
    assert aside(store) == set()
    assert [version.run for version in history(store)] == ["", "run-f", "run"]
    held = opened(store, "g")
    held.commit(answered(store, "g"))
    held.close(retain_hours=0)
    assert len(rows(store)) == len(OLD) + 4


def test_a_run_whose_successor_has_begun_publishes_nothing(store: str) -> None:
    first_version(store)
    old = opened(store, "g")
    old.commit(answered(store, "g"))
    opened(store, "g")

    with pytest.raises(Fenced):
        old.publish(by="gate", reason="passed")
    assert rows(store) == OLD


def test_an_approval_holds_until_what_is_shown_changes_and_stops_no_writer(store: str) -> None:
    first_version(store)
    output = opened(store, "g")
    output.commit(answered(store, "g"))
    Publications.open(store).approve(run="run-g", fingerprint="g", by="anna", note="seen", until=0)

    log = Publications.open(store)
    approval = log.approval("g")
    assert approval is not None
    assert (approval.by, approval.reason, log.approval("f")) == ("anna", "seen", None)
    output.publish(by="gate", reason="passed")
    assert Publications.open(store).approval("g") is None


def test_a_column_that_a_candidate_adds_is_seen_with_its_rows(store: str) -> None:
    first_version(store)
    wider = pa.schema([*DATA, ("mood", pa.string())])
    output = opened(store, "g", data_schema=wider)
    names = DeltaTable(f"{store}/data", storage_options=storage.delta_options(store)).schema().fields
    assert [field.name for field in names] == DATA.names
    output.commit(answered(store, "g"))
    output.publish(by="gate", reason="passed")
    names = DeltaTable(f"{store}/data", storage_options=storage.delta_options(store)).schema().fields
    assert [field.name for field in names] == wider.names


def test_a_ledger_that_was_lost_under_a_gate_takes_no_row_from_a_reader(tmp_path: Path) -> None:
    sink = str(tmp_path)
    first_version(sink)
    for file in sorted((tmp_path / "ledger").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()

    assert len(opened(sink).taken_over) == 2
    assert rows(sink) == OLD


class Cut(BaseException):
    """The process ends here."""


def cut_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """Cut off a run before its `number`-th change of the store; whether it came so far is told."""
    count = [0]

    def cut(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*words: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                raise Cut
            return real(*words)

        return wrapped

    for owner, name in ((storage, "put"), (storage, "delete"), (storage, "delete_all"), (FencedTable, "_write")):
        monkeypatch.setattr(owner, name, cut(getattr(owner, name)))
    return lambda: count[0] >= number


def publishing(sink: str) -> None:
    output = opened(sink, "g", retain_hours=1)
    if output.candidate().new:
        output.publish(by="anna", reason="again")
    output.close(retain_hours=1)


def rolling_back(sink: str) -> None:
    found = history(sink)
    output = Output.at_rest(sink, run="rollback", found=Found.at(sink))
    if found[-1].run == "run-g":
        output.roll_back(found[-2], by="bea", reason="no")
    output.close(retain_hours=1, known_alone=True)


@pytest.mark.parametrize("what", [publishing, rolling_back])
def test_wherever_a_publication_or_a_rollback_is_cut_off_it_is_mended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Callable[[str], None]
) -> None:
    first_version(str(tmp_path / "0"), retain_hours=1)
    blocked(str(tmp_path / "0"), retain_hours=1)
    if what is rolling_back:
        publishing(str(tmp_path / "0"))
    for number in range(1, 40):
        sink = str(shutil.copytree(tmp_path / "0", tmp_path / f"{number}"))
        old, new = (OLD, NEW) if what is publishing else (NEW, OLD)
        with monkeypatch.context() as patch:
            reached = cut_at(patch, number)
            with contextlib.suppress(Cut):
                what(sink)
            was_cut = reached()
        assert rows(sink) in (old, new), number
        if not was_cut:
            assert number > 8
            return
        decided = history(sink)[-1].run == ("run-g" if what is publishing else "run-f")

        opened(sink, "f", retain_hours=1).close(retain_hours=1)  # the next start, whoever's
        assert rows(sink) == (new if decided else old), number
        what(sink)  # or the same, once more

        assert rows(sink) == new, number
        assert len(rows(sink, "errors")) == 1
        assert {Path(uri).name for uri in DeltaTable(f"{sink}/data").file_uris()} <= plain(sink)
        assert len(aside(sink)) == (0 if what is publishing else 2)
    raise AssertionError("it never came to its end")
