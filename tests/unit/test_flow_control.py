"""When a flow waits for a lost engine alone."""

from types import SimpleNamespace

import pytest
from ray.data._internal.actor_autoscaler.autoscaling_actor_pool import AutoscalingActorConfig
from ray.data._internal.execution.interfaces import ExecutionResources
from ray.data._internal.execution.operators.actor_pool_map_operator import _ActorPool

from actors.host_stats import HostStats
from pipelines.flow_control import STALLED_S, Abandoned, FlowControl
from pipelines.flow_sizes import AT_ONCE, GROW, HANDED_OUT

LOST = HostStats(replica="lost", phase="lost", time=0.0)
IDLE = HostStats(replica="idle", phase="serving", time=0.0)
BUSY = HostStats(replica="busy", phase="serving", time=0.0, units=1)
BEGINS = HostStats(replica="begins", phase="starting", time=0.0)


def stalled(*looks: tuple[float, list[HostStats], bool]) -> list[bool]:
    control = FlowControl()
    return [control.stalls(hosts, came=came, now=now) for now, hosts, came in looks]


def test_a_lost_engine_is_not_waited_for_when_nobody_else_has_work() -> None:
    assert stalled((0, [LOST, IDLE], False), (STALLED_S - 1, [LOST], False), (STALLED_S, [LOST], False)) == [
        False, False, True,
    ]  # fmt: skip


def test_as_long_as_others_work_or_start_or_receipts_come_the_flow_goes_on() -> None:
    for going_on in ([LOST, BUSY], [LOST, BEGINS]):
        assert stalled((0, going_on, False), (1000, going_on, False)) == [False, False]
    assert stalled((0, [LOST], True), (1000, [LOST], True)) == [False, False]
    # And the time begins anew when they have ended.
    assert stalled((0, [LOST], False), (20, [LOST, BUSY], False), (STALLED_S + 1, [LOST], False))[-1] is False


def test_engines_that_wait_for_input_are_no_stall_where_none_is_lost() -> None:
    assert stalled((0, [IDLE], False), (1000, [IDLE], False)) == [False, False]
    assert stalled((0, [], False), (1000, [], False)) == [False, False]


def pool_of(fewest: int, most: int) -> tuple[SimpleNamespace, _ActorPool]:
    """Ray's own pool, without an actor in it, and as much of an executor as holds it."""
    nothing = ExecutionResources.zero()
    config = AutoscalingActorConfig(
        min_size=fewest,
        max_size=most,
        initial_size=fewest,
        max_tasks_in_flight_per_actor=HANDED_OUT,
        max_actor_concurrency=AT_ONCE,
        per_actor_resource_usage=nothing,
    )
    pool = _ActorPool(create_actor_fn=lambda *_: None, config=config)
    operator = SimpleNamespace(get_autoscaling_actor_pools=lambda: [pool])
    return SimpleNamespace(_topology=[operator]), pool


def test_a_pool_may_have_as_many_engines_as_it_is_allowed_and_never_fewer_than_its_fewest() -> None:
    executor, pool = pool_of(2, 8)
    control = FlowControl()
    control.step(executor)
    assert pool.max_size() == 8

    for most, expected in ((3, 3), (1, 2), (8, 8)):
        control.allow(most)
        control.step(executor)
        assert (pool.min_size(), pool.max_size()) == (2, expected)


def test_a_flow_that_is_abandoned_ends_at_rays_next_step() -> None:
    executor, _ = pool_of(1, 1)
    control = FlowControl()
    control.abandon()

    with pytest.raises(Abandoned):
        control.step(executor)


def test_engines_that_have_all_they_are_handed_make_ray_start_another() -> None:
    assert HANDED_OUT / AT_ONCE >= GROW > 1  # else it would never, or as soon as each has all that it can run
