"""How overdue rows are named: once, by shard and row, and not without end."""

import json

from actors.host_stats import HostStats
from actors.overdue import Overdue
from pipelines.accounts.overdue import MOST_NAMED, OverdueRows, longest


def host(*rows: Overdue, replica: str = "h:1") -> HostStats:
    return HostStats(replica=replica, phase="serving", time=0.0, overdue=rows)


def row(line: int, seconds: float = 90.0, start: int = 512) -> Overdue:
    unit = json.dumps({"shard": "a/b.jsonl", "start": start, "stop": start + 512})
    return Overdue(unit=unit, line=line, seconds=seconds, usual_s=1.25)


def test_an_overdue_row_is_named_by_shard_row_and_time_and_only_once() -> None:
    rows = OverdueRows()

    (line,) = rows.see([host(row(7)), host(replica="h:2")])
    assert line.startswith("row 519 of shard a/b.jsonl has been in the engine of h:1 for 90 s; 99 % of the rows took")
    assert rows.see([host(row(7, 100.0))]) == []
    assert len(rows.see([host(row(7, 100.0), row(8))])) == 1


def test_of_very_many_overdue_rows_a_hundred_are_named_and_that_there_are_more_is_said_once() -> None:
    rows = OverdueRows()
    lines = [line for start in range(50) for line in rows.see([host(*(row(n, start=start * 10) for n in range(10)))])]

    assert len(lines) == MOST_NAMED + 1
    assert lines[-1] == f"{MOST_NAMED} rows were overdue; others are not named"


def test_the_live_view_shows_the_row_that_is_in_for_longest() -> None:
    assert longest([host()]) is None
    assert (longest([host(row(1)), host(row(2, 91.0), row(3, 80.0))]) or "").startswith("row 514 of shard a/b.jsonl")
