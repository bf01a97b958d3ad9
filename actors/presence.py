"""Which hosts are here: a silent one is looked up with Ray, which knows whether its actor still has a place.

A pool that shrinks lets an idle actor go, and a node that is taken away takes its actor with it; neither says good-bye.
Whoever is asked for them (the bill, the progress, alerts) must not count what is held no more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import ray
from ray._private.state import state as _ray_state  # ray.util.state asks a dashboard, which a Ray of one's own lacks

from actors.evidence import Birth
from actors.host_stats import HostStats
from actors.journal import SILENT_S

STALE_S = 3.0  # six reports are missing: worth a question to Ray

Place = Literal["held", "lost", "left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The newest report of a host, and how old it is by the clock of who received it."""

    stats: HostStats
    age_s: float
    birth: Birth | None  # None: it has not been told


def present(reports: Sequence[Report], place: Callable[[Birth], Place]) -> tuple[list[HostStats], list[str]]:
    """The hosts that are here or are to come back, and the names of those that have left for good.

    One that is `lost` has its node gone: it holds no device and has no row until Ray finds a place for its actor.
    """
    here: list[HostStats] = []
    left: list[str] = []
    for report in reports:
        stats = report.stats
        if report.age_s <= STALE_S:
            here.append(stats)
            continue
        if report.birth is None:
            found: Place = "held" if report.age_s <= SILENT_S else "left"
        else:
            found = place(report.birth)
        if found == "left":
            left.append(stats.replica)
        elif found == "lost":
            here.append(replace(stats, phase="lost", units=0, rows_in_flight=0, rows_waiting=0, rows_begun=0))
        else:
            here.append(stats)
    return here, left


def place_of(birth: Birth) -> Place:
    """What Ray says of this process's actor and node."""
    actor = _ray_state.actor_table(birth.replica).get("State")
    if actor in (None, "DEAD"):
        return "left"
    if actor == "ALIVE" or node_is_alive(birth.node):
        return "held"
    return "lost"


def node_is_alive(node: str) -> bool:
    """Whether Ray counts on this node."""
    return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())
