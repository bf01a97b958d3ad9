"""Any history of runs, kills and changes on real tables, against a small model of what the output must be.

A machine draws the history: shards come, change, come back as they were and go; prompts change and change back; runs
are cut off before or after any single thing that they do to the store, have a limit, ask dead letters again, and come
back as zombies after another run has begun; one rule alone makes the states that others rarely reach, shards that are
changed and done in part. What the model says is in `Machine.look`, `pay` and `ended`. That it can fail is shown by
safeguards that are taken out.
"""

import contextlib
import itertools
import os
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipelines import storage
from pipelines.config import ModelConfig
from pipelines.job.model import ModelFiles, resolve
from pipelines.sink import tables
from pipelines.sink.committed import Committed
from pipelines.sink.fenced import Fenced, FencedTable
from pipelines.sink.ledger import Ledger
from pipelines.sink.receipt import Receipt
from tests import corpora
from tests.in_process import INPUT, Order, Place, Session, answer_of, run
from tests.unit.job.models import bytes_bpe

PATHS = ("a.parquet", "b.jsonl", "deep/c.parquet")
PROMPTS = ("f" * 64, "e" * 64)
REFUSED = {"bad": "engine", "poison": "poison"}  # first words of texts that the engine refuses when it is told to
WORDS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "bad nine",
    "bad ten",
    "poison eleven",
    "",
    None,
)
Text = str | None
DICE = st.integers(0, 10**6).map(random.Random)  # st.randoms throws mostly noughts


class Crash(BaseException):
    """The process is killed here."""


@contextlib.contextmanager
def failing(what: str, number: int, how: str) -> Iterator[None]:
    """The `number`-th time, counted from 1, that a run does this to its store, it is cut off.

    `how`: before it took effect, after it, torn in its midst, or lost: it took effect, and its answer is an error.
    """
    owner: Any = storage if hasattr(storage, what) else FencedTable
    real, left = getattr(owner, what), number

    def call(*args: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left:
            return real(*args, **named)
        if how == "torn" and what == "put":
            target = Path(args[0])
            target.with_name(f".{target.name[:100]}.0123456789.part").write_bytes(args[1][:20])
        if how in ("before", "torn"):
            raise Crash
        real(*args, **named)
        raise OSError("the connection broke") if how == "lost" and what == "_write" else Crash

    with mock.patch.object(owner, what, call), mock.patch.object(time, "sleep", lambda seconds: None):
        yield


@dataclass(frozen=True, slots=True)
class Seen:
    """A row as a reader sees it."""

    version: int
    text: Text
    said: str  # the answer, or the type of a dead letter


View = dict[str, dict[int, Seen]]  # by shard and row


def visible(sink: str, table: str) -> View:
    """What a Delta reader sees that knows nothing of us; no row is there twice."""
    try:
        found = DeltaTable(f"{sink}/{table}").to_pyarrow_table()
    except TableNotFoundError:
        return {}
    view: View = defaultdict(dict)
    for row in found.to_pylist():
        assert row["_row"] not in view[row["_shard"]], f"{row['_shard']} row {row['_row']} is twice in {table}"
        view[row["_shard"]][row["_row"]] = Seen(
            row["version"], row["text"], row["answer"] if table == "data" else row["_error_type"]
        )
    return dict(view)


def may_fail(text: Text) -> bool:
    """Whether this row may be a dead letter."""
    return not text or text.split()[0] in REFUSED


class Machine(RuleBasedStateMachine):
    """Histories of an output; see the module."""

    model: ModelFiles

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.place = Place(source=self.folder / "in", sink=str(self.folder / "out"), model=self.model)
        self.versions: list[list[Text]] = []
        self.made: dict[str, list[int]] = defaultdict(list)  # versions, by the shard that they are of
        self.here: dict[str, int] = {}  # version of each shard that the corpus has now
        self.prompt = PROMPTS[0]
        self.refusing = False
        self.seen: View = {}  # data, when a reader last looked
        self.removable: set[str] = set()  # shards that a run may have taken away
        self.limits: dict[tuple[str, int], int] = {}  # least rows of a shard's version that a run was told to do
        self.paid: dict[str, tuple[int, str, set[int]]] = {}  # by shard: version, prompt, rows that were answered
        self.zombies: list[Session] = []
        self.newest: Session | None = None  # the last that became the writer
        self.looked_at: tuple[str, ...] = ()
        self.put("a.parquet", ["one", "two", "three", "bad nine"])
        self.put("b.jsonl", ["one", None, "poison ten", "five", "six", "seven", "four"])

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------------- the corpus

    def put(self, path: str, texts: list[Text]) -> None:
        version = len(self.versions)
        self.versions.append(texts)
        self.made[path].append(version)
        kept = self.folder / "versions" / f"{version}"
        kept.parent.mkdir(exist_ok=True)
        rows = [{"version": version, "text": text} for text in texts]
        if path.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows, INPUT), kept)
        else:
            kept.write_bytes(corpora.jsonl(rows))
        os.utime(kept, ns=(0, 10**18 + version * 10**9))  # a clock would give two versions one time now and then
        self.place_version(path, version)

    def place_version(self, path: str, version: int) -> None:
        target = self.place.source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.folder / "versions" / f"{version}", target)
        self.here[path] = version

    @rule(path=st.sampled_from(PATHS), kind=st.sampled_from(("edited", "edited", "back", "gone")), dice=DICE)
    def change_corpus(self, path: str, kind: str, dice: random.Random) -> None:
        self.change(path, kind, dice)

    def change(self, path: str, kind: str, dice: random.Random) -> None:
        """A shard comes or changes, is again as it was once, or goes."""
        if kind == "gone" and path != PATHS[0]:  # a corpus without a shard is refused before anything starts
            (self.place.source / path).unlink(missing_ok=True)
            self.here.pop(path, None)
        elif kind == "back" and self.made[path]:
            self.place_version(path, dice.choice(self.made[path]))
        else:
            texts = list(self.versions[self.here[path]]) if path in self.here else []
            for _ in range(dice.randint(1, 3)):
                at = dice.randint(0, len(texts))
                texts[at : at + dice.randint(0, 2)] = dice.choices(WORDS, k=dice.randint(0, 4))
            self.put(path, texts if texts or path.endswith(".parquet") else ["one"])  # an empty JSONL is no shard

    @rule(prompt=st.sampled_from(PROMPTS), refusing=st.booleans())
    def change_job(self, prompt: str, refusing: bool) -> None:
        self.prompt, self.refusing = prompt, refusing

    # --------------------------------------------------------------------------------------------- the runs

    @rule(dice=DICE)
    def run(self, dice: random.Random) -> None:
        """A run that ends."""
        session = self.begun(dice)
        before: list[View] = [self.seen]
        run(session, dice, self.looking(before))
        self.newest = session
        self.pay(session, before)
        self.ended(session, before[1])
        if dice.random() < 0.3:
            self.again(session.order)

    @rule(
        fault=st.sampled_from((("put", 12), ("delete", 6), ("_write", 14), ("tidy", 1))),
        how=st.sampled_from(("before", "after", "torn", "lost")),
        dice=DICE,
    )
    def run_with_a_fault(self, fault: tuple[str, int], how: str, dice: random.Random) -> None:
        """A run in which one thing fails, if it comes so far; most are killed by it."""
        session = self.begun(dice)
        before: list[View] = [self.seen]
        try:
            with failing(fault[0], dice.randint(1, fault[1]), how):
                run(session, dice, self.looking(before))
        except (Crash, storage.StoreFailed) as end:
            assert isinstance(end, Crash) or not session.opened  # a commit whose answer is lost is looked for
            if session.opened:
                self.zombies.append(session)
                self.newest = session
            self.pay(session, before)
        else:
            self.newest = session
            self.pay(session, before)
            self.ended(session, before[1])

    @rule(stopped=st.booleans(), dice=DICE)
    def run_in_part(self, stopped: bool, dice: random.Random) -> None:
        """A run that stands still after some units, or is stopped; of these some are committed."""
        self.partly(self.begun(dice), dice.randint(0, 4), dice, stopped=stopped)

    @rule(
        path=st.sampled_from(PATHS),
        stopped=st.booleans(),
        then=st.sampled_from(("nothing", "run", "run", "edited", "back")),
        dice=DICE,
    )
    def change_in_part(self, path: str, stopped: bool, then: str, dice: random.Random) -> None:
        """A shard that is shown changes, the run that finds it so does a part of it, and then a run ends that finds it
        as it is, changed again, or as it was once."""
        if path not in self.seen:
            self.run(dice)
            self.look()
        self.change(path, "edited", dice)
        session = self.begun(dice, unit_rows=dice.choice((1, 1, 2, 100)), limited=False)
        self.partly(session, dice.randint(1, 3), dice, of=path, stopped=stopped)
        if then in ("edited", "back"):
            self.change(path, then, dice)
        if then != "nothing":
            self.look()
            self.run(dice)

    def partly(self, session: Session, most: int, dice: random.Random, *, of: str | None = None, stopped: bool) -> None:
        """The run does `most` units (`of` a shard) at most and commits some; the others are written all the same."""
        before = [self.seen]
        session.open()
        self.newest = session
        self.look()
        before.append(self.seen)
        units = list(_first(session.units(), most, of))
        session.output.commit(units if stopped else dice.sample(units, dice.randint(0, len(units))))
        self.pay(session, before)
        if stopped:
            session.close()
            self.at_rest()
        else:
            self.zombies.append(session)

    @precondition(lambda self: any(self.fenced(one) for one in self.zombies))
    @rule(closing=st.booleans(), dice=DICE)
    def wake(self, closing: bool, dice: random.Random) -> None:
        """A run that was overtaken goes on: it writes files, and may change nothing that is there."""
        session = dice.choice([one for one in self.zombies if self.fenced(one)])
        before = (visible(self.place.sink, "data"), visible(self.place.sink, "errors"), self.receipts())
        if closing:
            with contextlib.suppress(Fenced):
                session.close()
        else:
            late = list(session.written)
            with contextlib.suppress(FileNotFoundError):  # its successor took away what it would carry over
                late += itertools.islice(session.units(), dice.randint(0, 4))
            if late:
                with pytest.raises(Fenced):
                    session.output.commit(late)
        assert (visible(self.place.sink, "data"), visible(self.place.sink, "errors"), self.receipts()) == before

    def begun(self, dice: random.Random, *, unit_rows: int | None = None, limited: bool = True) -> Session:
        """A run as it may be ordered; whatever comes of it, it may do so much."""
        limit = dice.choice((None, None, None, dice.randint(1, 12)))
        order = Order(
            fingerprint=self.prompt,
            unit_rows=unit_rows or dice.randint(1, 4),
            limit=limit if limited else None,
            retry=dice.choice((False, False, True, ("engine",))),
            refused=REFUSED if self.refusing else {},
        )
        session = Session(self.place, order)
        self.removable |= self.seen.keys() - self.here.keys()
        for shard, limit in session.shards:
            key = (shard.path, self.here[shard.path])
            self.limits[key] = min(self.limits.get(key, 10**6), 10**6 if limit is None else limit)
        return session

    def looking(self, views: list[View]) -> Callable[[], None]:
        """Looks, and keeps what was seen."""

        def look() -> None:
            self.look()
            views.append(self.seen)

        return look

    def pay(self, session: Session, before: list[View]) -> None:
        """No row is paid for that was answered already: in the output, or in files that a crash left.

        `before`: what was seen before the run became the writer, and right after.
        """
        scope = {shard.path for shard, _ in session.shards}
        for path in list(self.paid):
            if self.paid[path][:2] != (self.here.get(path), session.order.fingerprint) or path not in scope:
                del self.paid[path]
        assert len({(row.shard, row.row) for row in session.asked}) == len(session.asked)
        for asked in session.asked:
            version, paid = self.here[asked.shard], self.paid.get(asked.shard)
            assert paid is None or asked.row not in paid[2], f"{asked} was paid for, and is asked again"
            text = self.versions[version][asked.row]
            answer = answer_of(self.model, session.order.fingerprint, text or "")
            for row, seen in itertools.chain(*(view.get(asked.shard, {}).items() for view in before[:2])):
                known = seen.text == text and seen.said == answer
                assert not known or (seen.version == version and row != asked.row), f"{asked} has an answer"
        answered = {(row.shard, row.row) for row in session.asked if self.outcome(session, row.shard, row.row)}
        for unit in session.written:
            version = self.here[unit.shard]
            _, _, rows = self.paid.setdefault(unit.shard, (version, session.order.fingerprint, set()))
            rows |= {row for row in range(unit.start, unit.stop) if (unit.shard, row) in answered}

    def outcome(self, session: Session, path: str, row: int) -> bool:
        """Whether the engine of this run answers this row."""
        text = self.versions[self.here[path]][row]
        return bool(text) and str(text).split()[0] not in session.order.refused

    def again(self, order: Order) -> None:
        """The same once more, right after it ended: nothing is to do, and nothing is done."""
        session, receipts = Session(self.place, replace(order, retry=False)), self.receipts()
        run(session, random.Random(0), self.look)
        assert not session.asked
        assert not session.written
        assert self.receipts() == receipts

    def receipts(self) -> list[str]:
        return [one.attempt for one in Ledger.open(self.place.sink, create=False).receipts()]

    def fenced(self, session: Session) -> bool:
        """Whether another run has become the writer since, for certain."""
        return session is not self.newest

    # ------------------------------------------------------------------------------------------- the model

    @invariant()
    def look(self) -> None:
        """What a reader sees at any instant: whole shards stay whole, with old answers or new ones."""
        files = tuple(sorted(str(path) for path in Path(self.place.sink, "data").glob("**/*")))
        if files == self.looked_at:
            return
        now, self.looked_at = visible(self.place.sink, "data"), files
        for path, rows in now.items():
            (version,) = {seen.version for seen in rows.values()}
            for row, seen in rows.items():
                text = self.versions[version][row]
                assert seen.text == text
                assert text
                assert seen.said in [answer_of(self.model, prompt, text) for prompt in PROMPTS]
            before = self.seen.get(path)
            if before and next(iter(before.values())).version != version:
                missing = set(range(self.promised(path, version))) - rows.keys()
            else:
                missing = (before or {}).keys() - rows.keys()
            assert all(may_fail(self.versions[version][row]) for row in missing), f"{path}: rows {missing} are gone"
        for path in self.seen.keys() - now.keys() - self.removable:
            assert self.all_may_fail(path), f"{path} is gone"
        self.removable -= self.seen.keys() - now.keys()
        self.seen = now

    def promised(self, path: str, version: int) -> int:
        """Rows of a shard's version that take the place of another version as one."""
        return min(len(self.versions[version]), self.limits[path, version])

    def all_may_fail(self, path: str) -> bool:
        """Whether there is a version of the shard of which no row need have an answer."""
        return any(
            all(may_fail(text) for text in self.versions[version][: self.promised(path, version)])
            for version in self.made[path]
            if (path, version) in self.limits
        )

    def ended(self, session: Session, before: View) -> None:
        """What the output is after a run that ended: `f(input, job)`, and nothing else."""
        assert session.changes().todo == ()
        data, dead = visible(self.place.sink, "data"), visible(self.place.sink, "errors")
        order, limits = session.order, {shard.path: limit for shard, limit in session.shards}
        assert (data.keys() | dead.keys()) <= self.here.keys()
        for path, limit in limits.items():
            version = self.here[path]
            texts = self.versions[version]
            rows, letters = data.get(path, {}), dead.get(path, {})
            assert not rows.keys() & letters.keys()
            for row, text in enumerate(texts[:limit]):
                answered = Seen(version, text, answer_of(self.model, order.fingerprint, text or ""))
                if row in rows:
                    assert rows[row] == answered
                else:
                    kind = REFUSED[text.split()[0]] if text else "empty"
                    assert letters[row] == Seen(version, text, kind)
                    tried = order.retry is True and not self.refusing and not session.output.taken_over
                    assert not (text and tried), f"{path} row {row} was to be asked again"
                    stood = before.get(path, {}).get(row)
                    assert not stood or stood != Seen(
                        version, text, answer_of(self.model, order.fingerprint, text or "")
                    )
            for row in (rows.keys() | letters.keys()) - set(range(len(texts[:limit]))):
                assert {**letters, **rows}[row].version == version
                assert {**letters, **rows}[row].text == texts[row]
        for asked in session.asked:
            assert (asked.row in data.get(asked.shard, {})) == self.outcome(session, asked.shard, asked.row)
        self.at_rest()

    def at_rest(self) -> None:
        """To a reader of plain Parquet it is as to one of Delta; so after each run that ended in order."""
        for table in ("data", "errors"):
            folder = Path(self.place.sink) / table
            named = {Path(uri).name for uri in DeltaTable(str(folder)).file_uris()}
            assert {file.name for file in folder.glob("*.parquet")} == named
            assert not list(folder.glob(".*.part"))


def _first(units: Iterator[Receipt], most: int, of: str | None) -> Iterator[Receipt]:
    """Those up to the `most`-th of this shard, or of any."""
    for unit in units if most else ():
        yield unit
        most -= of in (None, unit.shard)
        if not most:
            return


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[Machine]:
    folder = bytes_bpe(tmp_path_factory.mktemp("machine") / "model")
    files = resolve(ModelConfig(name="mine", path=str(folder)), cache=folder.parent / "cache")
    return type("SeededMachine", (Machine,), {"model": files})


class _Any:
    """Is equal to anything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


def _clean_keeps_nothing_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tables.clean

    def clean(opened: tables.Tables, view: Committed, **more: Any) -> int:
        with mock.patch.object(Committed, "waiting", lambda self: iter(())):
            return real(opened, view, **more)

    monkeypatch.setattr("pipelines.sink.output.clean", clean)


def _nothing_comes_back_from_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "bring_back", lambda *args: None)


def _take_over_ignores_which_input_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tables.take_over

    def take_over(sink_uri: str, view: Committed, **more: Any) -> list[Receipt]:
        return real(sink_uri, view, **{**more, "identities": defaultdict(_Any)})

    monkeypatch.setattr("pipelines.sink.output.take_over", take_over)


def histories(count: int, steps: int, **more: Any) -> settings:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(
        max_examples=count,
        stateful_step_count=steps,
        database=None,
        suppress_health_check=checks,
        **more,
    )


@pytest.mark.timeout(900)
def test_every_history_ends_in_the_output_that_its_input_and_job_make(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=histories(12, 15))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "taken_out",
    [
        _clean_keeps_nothing_that_waits,
        _nothing_comes_back_from_aside,
        _take_over_ignores_which_input_was_read,
    ],
)
def test_without_a_safeguard_some_history_does_not(
    machine: type[Machine], taken_out: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_out(monkeypatch)
    others = ("change_corpus", "change_job", "run_with_a_fault", "run_in_part", "wake")
    focused = type("FocusedMachine", (machine,), dict.fromkeys(others))  # without these rules it is found soon
    few = histories(30, 5, phases=(Phase.generate,), report_multiple_bugs=False)

    with pytest.raises((AssertionError, OSError, DeltaError, pa.ArrowException)):
        run_state_machine_as_test(focused, settings=few)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thousands_of_steps_of_histories_end_so_too(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=histories(400, 30, derandomize=False))
