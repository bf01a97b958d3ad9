"""Rows that are in an engine for many times as long as rows take (actors/overdue.py): who they are, each told once."""

import json
from collections.abc import Sequence
from typing import Protocol

from actors.overdue import Overdue

MOST_NAMED = 100  # in a run


class Host(Protocol):
    """What is asked of a host's report (actors/host_stats.py)."""

    @property
    def replica(self) -> str: ...
    @property
    def overdue(self) -> tuple[Overdue, ...]: ...


class OverdueRows:
    """Of one run."""

    def __init__(self) -> None:
        self._named: set[tuple[str, int]] = set()

    def see(self, hosts: Sequence[Host]) -> list[str]:
        """A line for each that has not been named yet; in place of the hundred and first, one that says so."""
        lines = []
        for host in hosts:
            for row in host.overdue:
                if (row.unit, row.line) in self._named or len(self._named) > MOST_NAMED:
                    continue
                self._named.add((row.unit, row.line))
                rest = f"{MOST_NAMED} rows were overdue; others are not named"
                lines.append(rest if len(self._named) > MOST_NAMED else said(row, host.replica))
        return lines


def said(row: Overdue, replica: str) -> str:
    """Which row it is, where, and for how long."""
    unit = json.loads(row.unit)
    return (
        f"row {unit['start'] + row.line} of shard {unit['shard']} has been in the engine of {replica} for "
        f"{row.seconds:.0f} s; 99 % of the rows took at most {row.usual_s:.1f} s (engine.overdue_times)"
    )


def longest(hosts: Sequence[Host]) -> str | None:
    """The one that is in for longest, of all hosts; None: none is overdue."""
    rows = [(row.seconds, said(row, host.replica)) for host in hosts for row in host.overdue]
    return max(rows)[1] if rows else None
