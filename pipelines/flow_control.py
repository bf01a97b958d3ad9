"""A hand on Ray's pool of engines while a flow is under way: how many it may have, and the end of one that cannot end.

Ray keeps the units that it has handed to an actor for that actor alone. One whose node is lost waits for another device
as long as it takes, and the flow with it, though all other engines are idle. The flow is abandoned then, and the run
starts it again over what is left, which is what the lost engine had.
"""

import dataclasses
import logging
import time
from collections.abc import Collection, Iterator
from typing import Any, Protocol

import ray
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

log = logging.getLogger(__name__)

STALLED_S = 30.0  # no engine has had work for so long, while one is lost


class Host(Protocol):
    """What is asked of a host's report (actors/host_stats.py)."""

    @property
    def phase(self) -> str: ...
    @property
    def units(self) -> int: ...  # begun or waiting


class Abandoned(Exception):
    """The flow was ended before its time; what is not done is to be done by another."""


class FlowControl:
    """In the driver's hands, and asked by Ray's scheduling thread at each of its steps."""

    def __init__(self) -> None:
        self._most: int | None = None
        self._abandoned = False
        self._stalled_since: float | None = None
        self._executor: Any = None  # Ray's, once it has begun

    def allow(self, most: int) -> None:
        """So many engines at most, from now on; those that are here too many go once they are idle."""
        self._most = most

    def stalls(self, hosts: Collection[Host], *, came: bool, now: float | None = None) -> bool:
        """Whether the flow waits for a lost engine alone. `came`: receipts have, since this was last asked."""
        now = time.monotonic() if now is None else now
        lost = any(host.phase == "lost" for host in hosts)
        at_work = any(host.units or host.phase in ("starting", "rebuilding") for host in hosts if host.phase != "lost")
        if came or at_work or not lost:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        return self._stalled_since is not None and now - self._stalled_since >= STALLED_S

    def abandon(self) -> None:
        """End the flow at Ray's next step: whoever waits for it gets `Abandoned`."""
        self._abandoned = True

    def cut_off(self) -> None:
        """End the flow now, whatever is in it."""
        if self._executor is not None:
            self._executor.shutdown(force=True)

    def ended(self) -> None:
        """Let go of the flow: its executor holds the handles of actors that live as long as somebody has one."""
        self._executor = None

    def begun(self, executor: Any) -> None:
        """Told by Ray's thread."""
        self._executor = executor

    def step(self, executor: Any) -> None:
        """What Ray's thread does for it."""
        pools = list(_pools(executor))
        if self._abandoned:
            for pool in pools:
                for actor, state in list(pool._running_actors.items()):
                    if state.is_restarting:  # or it would take the next device from the flow that follows
                        ray.kill(actor)
            raise Abandoned("the flow waited for an engine whose node is gone")
        for pool in pools:
            if self._most is not None and pool.max_size() != max(self._most, pool.min_size()):
                most = max(self._most, pool.min_size())
                log.info("the pool may have %d engines now, %d before", most, pool.max_size())
                pool._config = dataclasses.replace(pool._config, max_size=most)


_under_way: FlowControl | None = None  # of this process's flow: Ray makes its callbacks itself, from their class


class _Callback(ExecutionCallback):  # type: ignore[misc]  # Ray is untyped
    def before_execution_starts(self, executor: Any) -> None:
        if _under_way is not None:
            _under_way.begun(executor)

    def on_execution_step(self, executor: Any) -> None:
        if _under_way is not None:
            _under_way.step(executor)


def begin() -> FlowControl:
    """Take the next flow of this process in hand."""
    global _under_way
    context = DataContext.get_current()
    if _Callback not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(_Callback)
    _under_way = FlowControl()
    return _under_way


def _pools(executor: Any) -> Iterator[Any]:
    for operator in executor._topology or ():
        yield from operator.get_autoscaling_actor_pools()
