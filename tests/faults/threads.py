"""Threads in the place of Ray Data, for drivers that are killed by the hundred: a Ray takes 10 s to start, a fork none.

Driver, stages, host, engine, files and tables are the real ones, and so is dataflow.py; what it builds on
(`ray.data`) and the actor that it asks (`Switch`) are replaced. So a kill here ends driver and workers at once.
Faults of single workers, and of Ray itself, are tried on a real Ray.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy, DataContext

from actors.book import Book
from actors.control import Control
from actors.exchange import from_ipc, to_ipc


@dataclass(frozen=True)
class _Stage:
    body: Callable[..., Any]
    words: Sequence[Any] = ()
    keywords: Mapping[str, Any] | None = None  # of an actor's constructor
    at_once: int = 1


@dataclass(frozen=True)
class _Executor:
    """As much of Ray Data's executor as dataflow.py asks for, when a run is cut off."""

    done: "queue.SimpleQueue[Any]"

    def shutdown(self, *, force: bool) -> None:
        self.done.put(None)


@dataclass
class _Dataset:
    """As much of ray.data.Dataset as dataflow.py asks for: read, infer, write."""

    items: Sequence[Any]
    stages: tuple[_Stage, ...] = ()

    def map_batches(
        self,
        body: Callable[..., Any],
        *,
        fn_args: Sequence[Any] = (),
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        concurrency: int = 1,
        max_concurrency: int | None = None,
        **_: Any,
    ) -> "_Dataset":
        stage = _Stage(body, fn_args, fn_constructor_kwargs, max_concurrency or concurrency)
        return replace(self, stages=(*self.stages, stage))

    def _create_executor(self) -> _Executor:
        return _Executor(queue.SimpleQueue())

    def iter_batches(self, **_: Any) -> Iterator[Any]:
        done = self._create_executor().done
        threading.Thread(target=lambda: asyncio.run(_all(self.items, self.stages, done)), daemon=True).start()
        while (block := done.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            yield block


async def _all(items: Sequence[Any], stages: Sequence[_Stage], done: "queue.SimpleQueue[Any]") -> None:
    read, infer, write = stages
    loop, units, ends = asyncio.get_running_loop(), asyncio.Queue[Any](2), object()
    threads = ThreadPoolExecutor(read.at_once + write.at_once)

    def read_one(item: Any) -> None:
        for block in read.body({"item": [item]}, *read.words):
            asyncio.run_coroutine_threadsafe(units.put(block), loop).result()

    async def read_all() -> None:
        await asyncio.gather(*(loop.run_in_executor(readers, read_one, item) for item in items))
        await units.put(ends)

    async def finish(block: Any) -> None:
        answered = await host(block)
        done.put(await loop.run_in_executor(threads, write.body, answered, *write.words))
        room.release()

    readers = ThreadPoolExecutor(read.at_once)
    room = asyncio.Semaphore(infer.at_once)
    try:
        host = await asyncio.to_thread(infer.body, **(infer.keywords or {}))
        reading = asyncio.create_task(read_all())
        async with asyncio.TaskGroup() as group:
            while True:
                next_unit = asyncio.create_task(units.get())
                await asyncio.wait([next_unit, reading], return_when=asyncio.FIRST_COMPLETED)
                if reading.done() and reading.exception():
                    next_unit.cancel()
                    reading.result()
                block = await next_unit
                if block is ends:
                    break
                await room.acquire()
                group.create_task(finish(block))
        done.put(None)
    except BaseExceptionGroup as group_error:
        done.put(group_error.exceptions[0])
    except BaseException as error:  # noqa: BLE001 – carried to who asked
        done.put(error)


class LocalSwitch:
    """The run's switch without an actor around it."""

    def __init__(self) -> None:
        self._control = Control()

    @classmethod
    def create(cls, **_: Any) -> "LocalSwitch":
        return cls()

    def witness(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)


class LocalBook:
    """The run's book of answers without an actor around it. Its file belongs to the thread that first asks."""

    def __init__(self) -> None:
        self._book: Book | None = None

    @classmethod
    def create(cls, **_: Any) -> "LocalBook":
        return cls()

    async def note(self, unit: str, page: pa.Table) -> bool:
        self._book = self._book or Book()
        return self._book.note(unit, to_ipc(page))

    async def find(self, keys: Sequence[str]) -> dict[str, pa.Table]:
        self._book = self._book or Book()
        return {unit: from_ipc(page) for unit, page in self._book.find(list(keys)).items()}


def install() -> None:
    """From here on this process needs no Ray."""
    from pipelines import cluster, dataflow, work

    @contextmanager
    def no_ray(*_: Any, **__: Any) -> Iterator[None]:
        yield

    data = SimpleNamespace(from_items=lambda items, **_: _Dataset(items))
    dataflow.ray = SimpleNamespace(data=data)  # type: ignore[attr-defined]
    cluster.ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0})  # type: ignore[attr-defined]
    cluster.started_ray = no_ray
    cluster.session_logs = lambda: None
    work.Switch = LocalSwitch  # type: ignore[attr-defined,assignment]
    dataflow.AnswerBook = LocalBook  # type: ignore[attr-defined,assignment]
    work.watch_gpus = list  # type: ignore[attr-defined,assignment]
    assert ActorPoolStrategy
    assert DataContext
