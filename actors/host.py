"""The actor that hosts an engine: rows of many units are in it at once, and each unit leaves when its last row is done.

`EngineHost` is a class for `map_batches(EngineHost, batch_size=None, batch_format="pyarrow", …)`. Ray Data runs each
call as an actor task of its own: the tasks overlap as far as the actor's `max_concurrency` (that many units in one
engine), and the coroutines of all of them share one event loop.
"""

import asyncio
import dataclasses
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from actors.asking import Asking, HostedUnit, Question
from actors.door import Door
from actors.engine import Answer, Constraint, Engine, EngineConfig, EngineLost, ModelHere, Sampling
from actors.engines import ENGINES
from actors.evidence import Death, Past, Suspicion, Witness
from actors.exchange import from_ipc, to_ipc, with_answers, without_token_ids
from actors.gpu_monitor import gpus_here
from actors.host_stats import HostStats
from actors.outcome import Outcome, unit_answers
from actors.overdue import Overdues
from actors.replica import Replica
from actors.sharing import Notes, Place, Sharing
from actors.window import Window

logger = logging.getLogger(__name__)


class EngineHost:
    """One engine, and the units whose rows it answers.

    A call takes a unit, a table of one row with the column `prompts` (IPC of PROMPTS), and returns it with the
    column `answers` (IPC of ANSWERS, the same rows in the same order). Its token ids are gone then, `_key` and
    the errors stay. A unit whose `answers` is null was handed back: the run is draining, and it is to be done by
    another. The column `unit` names it; all others pass through unopened.

    Raises EngineLost, which fails the run, where the engine does not start or cannot be kept alive. With a `witness`
    that counts over all processes of this replica, and Ray may start it as often as it likes (max_restarts=-1).
    """

    def __init__(
        self,
        *,
        engine: EngineConfig,
        sampling: Sampling,
        constraint: Constraint,
        alternatives: int = 0,
        again: Callable[[tuple[int, ...], Answer], tuple[int, ...] | None] | None = None,  # the next prompt; None: good
        ask_again: int = 0,  # times that a row is asked again at most
        window: Window,
        stop: Callable[[], bool] | None = None,  # True: the run is draining; may block, is called in a thread
        locate: Callable[[], ModelHere] | None = None,  # on this node; None: where `engine` says
        fit: Callable[[EngineConfig], EngineConfig] | None = None,  # to this node's device; None: `engine` as it is
        devices: int = 1,
        grace_s: float = 60.0,  # after `stop`, for units that are begun
        max_restarts: int = 3,
        max_restarts_per_hour: int = 30,
        units_in_flight: int = 4,  # whose rows wait for the engine; further ones do where it would soon have none
        overdue_times: float | None = None,  # as long as 99 % of rows take, after which one is named
        notes: Notes | None = None,  # where rows with one key share an answer; None: each row is asked
        witness: Witness | None = None,  # None: what is in this process is forgotten with it
        report: Callable[[HostStats], None] | None = None,  # must not block
        poll_s: float = 0.5,  # between two looks at `stop`, the engine's progress, and reports
    ) -> None:
        self._stop, self._report = stop, report
        self._grace_s, self._poll_s = grace_s, poll_s
        self._units: set[HostedUnit] = set()
        self._draining_since: float | None = None
        self._first_look: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._early = True  # no unit has come in yet: the first one's rows go first, so that something is soon written
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._gpus = gpus_here() if engine.device == "gpu" else ()
        self._start_seconds = 0.0
        self._seconds = {"read_seconds": 0.0, "prepare_seconds": 0.0}
        self._units_ended = 0  # that have left with their answers
        self._config = engine = fit(engine) if fit else engine
        self._locate = locate
        self._witness = witness
        self._sharing = Sharing(notes) if notes else None
        past = witness.born() if witness else Past()
        started = threading.Event()
        if report:
            report(self._starting())
            threading.Thread(target=self._beat, args=(report, started), name="start-reports", daemon=True).start()
        try:
            self._replica = Replica(
                self._open_engine,
                window=window,
                max_num_seqs=engine.max_num_seqs,
                block=engine.block_size,
                devices=devices,
                max_restarts=max_restarts,
                max_restarts_per_hour=max_restarts_per_hour,
                past=past,
            )
        except Exception as error:
            logger.error("replica %s gives up: %s", self._name, error)
            if witness:
                witness.gives_up(str(error))
            raise
        finally:
            started.set()
        self._door = Door(
            self._replica.admission, units=units_in_flight, fewest_waiting=max(1, engine.max_num_seqs // 2)
        )
        self._asks_again = ask_again > 0
        self._overdues = Overdues(overdue_times)
        self._asking = Asking(
            Question(
                sampling=sampling,
                constraint=constraint,
                alternatives=alternatives,
                again=again,
                ask_again=ask_again,
            ),
            self._replica,
            sharing=self._sharing,
            witness=witness,
            overdues=self._overdues,
            ended=self._door.open,
        )
        if witness:
            witness.serves()
        if report:
            report(self.stats())

    async def __call__(self, block: pa.Table) -> pa.Table:
        """Answer the unit in this block; see the class."""
        if self._first_look is None or self._watching is None:
            self._first_look = asyncio.create_task(self.look())
            self._watching = asyncio.create_task(self._keep_looking())
        await self._first_look
        if self._watching.done():
            self._watching.result()  # raises what ended it
        units = [block.slice(index, 1) for index in range(block.num_rows)]
        if not units:
            return with_answers(block, [])
        return pa.concat_tables(await asyncio.gather(*(self._host(unit) for unit in units)))

    async def look(self) -> None:
        """Ask whether to drain, watch the engine's progress, report. The host does it by itself every `poll_s`."""
        try:
            await self._replica.watch()
        except EngineLost as stuck:
            await self._end_process(str(stuck))
        if self._draining_since is None and self._stop and await asyncio.to_thread(self._stop):
            self._draining_since = time.monotonic()
            logger.info("draining: %d units here", len(self._units))
        if self._draining_since is not None:
            self._door.kept_open = True
            self._door.open()
            grace_is_over = time.monotonic() - self._draining_since >= self._grace_s
            for unit in list(self._units):
                if grace_is_over or not unit.begun:
                    unit.hand_back()
        self._replica.admission.see(self._replica.engine.load())
        if self._report:  # before the book, which may keep this waiting
            self._report(self.stats())
        if self._sharing:
            await self._sharing.note()

    def stats(self) -> HostStats:
        """What is going on right now."""
        replica = self._replica
        serving: Literal["serving", "draining"] = "serving" if self._draining_since is None else "draining"
        return HostStats(
            replica=self._name,
            gpus=self._gpus,
            phase="rebuilding" if replica.rebuilding else serving,
            time=time.time(),
            units=len(self._units),
            rows_in_flight=replica.busy.rows,
            rows_waiting=replica.admission.waiting,
            rows_begun=sum(not row.done() for unit in self._units if unit.begun for row in unit.rows),
            rows_ended=replica.rows_ended,
            start_seconds=self._start_seconds,
            device_seconds=replica.busy.device_seconds,
            vain_device_seconds=replica.vain_device_seconds,
            restarts=replica.restarts.here,
            unexplained_deaths=replica.restarts.unexplained,
            fruitless_deaths=replica.restarts.fruitless,
            book_full=self._sharing is not None and self._sharing.full,
            begun=replica.beginnings.so_far(),
            load=replica.engine.load(),
            overdue=() if replica.rebuilding else self._overdues.now(),
            longest=self._asking.longest,
            units_ended=self._units_ended,
            **self._asking.tokens,
            starved_seconds=self._door.starved_seconds,
            feed_seconds=self._door.feed_seconds,
            read_seconds=self._seconds["read_seconds"],
            prepare_seconds=self._seconds["prepare_seconds"],
        )

    def close(self) -> None:
        """Free the engine."""
        if self._watching:
            self._watching.cancel()
        self._replica.close()

    def _open_engine(self) -> Engine:
        started = time.monotonic()
        config = self._config
        if self._locate:
            here = self._locate()
            config = dataclasses.replace(config, model=here.model, adapter=here.adapter)
        engine = ENGINES[config.kind](config)
        self._start_seconds += time.monotonic() - started
        return engine

    def _starting(self) -> HostStats:
        return HostStats(replica=self._name, phase="starting", time=time.time(), gpus=self._gpus)

    def _beat(self, report: Callable[[HostStats], None], started: threading.Event) -> None:
        """Reports while the constructor runs, which may take minutes: a process that is silent then is stopped."""
        while not started.wait(self._poll_s):
            report(self._starting())

    async def _end_process(self, why: str) -> None:
        """The engine hangs in this process: without the one the other cannot go on, and Ray starts both again."""
        if self._witness is None:
            raise EngineLost(why)
        logger.error("replica %s ends itself: %s", self._name, why)
        await asyncio.to_thread(self._witness.dies, Death(cause="hung", words=why))
        os.kill(os.getpid(), signal.SIGKILL)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self.look()

    async def _host(self, unit: pa.Table) -> pa.Table:
        prompts = from_ipc(unit["prompts"][0].as_buffer())
        for name in self._seconds:
            self._seconds[name] += unit[name][0].as_py() if name in unit.schema.names else 0.0
        first = (unit["place"][0].as_py(), unit["start"][0].as_py()) if "place" in unit.schema.names else None
        await self._door.come_in(unit["read_at"][0].as_py() if "read_at" in unit.schema.names else 0.0)
        answers = await self._answer(str(unit["unit"][0]), prompts, first)
        if answers is None:
            return with_answers(unit, [None])
        self._units_ended += 1
        return with_answers(without_token_ids(unit, prompts), [to_ipc(answers)])

    async def _answer(self, name: str, prompts: pa.Table, first: Place | None) -> pa.Table | None:
        """ANSWERS for these rows; None: handed back."""
        if self._draining_since is not None:
            return None
        passed = self._door.passed(prompts.num_rows)
        early, self._early = self._early, False
        try:
            unit, rows = await self._arrived(name, prompts.to_pylist(), first)
            unit.early = early
        except BaseException:
            self._door.has_come(passed)
            self._door.left()
            raise
        self._units.add(unit)
        try:
            unit.rows = [
                asyncio.create_task(self._asking.row(row, line, unit))
                for line, row in enumerate(rows)
                if row["_prompt"] is not None
            ]
            # when all of these tasks have run, and wait
            asyncio.get_running_loop().call_soon(self._door.has_come, passed)
            outcomes = iter(await asyncio.gather(*unit.rows))
            if self._sharing:
                await self._sharing.note([name])
        except asyncio.CancelledError:
            if unit.handed_back:
                return None
            raise
        except EngineLost as error:
            if self._witness:
                await asyncio.to_thread(self._witness.gives_up, str(error))
            raise
        finally:
            self._leaves(unit)
        return unit_answers(rows, outcomes, asked_again=self._asks_again)

    async def _arrived(
        self, name: str, rows: list[dict[str, Any]], first: Place | None
    ) -> tuple[HostedUnit, list[dict[str, Any]]]:
        """The unit and its rows, once it is known what is to be known of them beforehand."""
        suspicion = await self._witness.arrives(name) if self._witness else Suspicion()
        known: Mapping[str, tuple[int | None, Outcome]] = {}
        if self._sharing:
            known = await self._sharing.known(name, [row["_key"] for row in rows if row["_prompt"] is not None], first)
        self._door.tell_starved()
        return HostedUnit(name, suspicion, known), rows

    def _leaves(self, unit: HostedUnit) -> None:
        self._units.discard(unit)
        self._door.left()
        for row in unit.rows:
            row.cancel()
        if self._sharing:
            # Not before those that asked the book too early for its answers have come: their rows are told here.
            self._door.after_arrivals(partial(self._sharing.forget, unit.name))
        if self._witness:
            self._witness.ends(unit.name)
