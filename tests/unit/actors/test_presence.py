"""Who of those that are silent is still here: by what Ray says of actor and node, which is given."""

from actors.control import Control
from actors.evidence import Birth
from actors.host_stats import HostStats
from actors.journal import SILENT_S
from actors.presence import STALE_S, Place, Report, present


def birth(name: str) -> Birth:
    return Birth(replica=f"actor of {name}", process=name, node="n", pid=1, start_ticks=1)


def report(name: str, age_s: float, *, told: bool = True) -> Report:
    stats = HostStats(replica=name, phase="serving", time=1.0, units=3, rows_in_flight=7, rows_begun=9, rows_ended=5)
    return Report(stats=stats, age_s=age_s, birth=birth(name) if told else None)


def asked(places: dict[str, Place], *reports: Report) -> tuple[dict[str, HostStats], list[str]]:
    here, left = present(reports, lambda one: places[one.process])
    return {stats.replica: stats for stats in here}, left


def test_who_reports_is_here_and_ray_is_not_asked() -> None:
    here, left = asked({}, report("a", STALE_S))

    assert here["a"].rows_in_flight == 7
    assert left == []


def test_of_the_silent_one_is_at_work_one_has_left_and_one_is_lost_with_its_rows() -> None:
    here, left = asked(
        {"works": "held", "let go": "left", "preempted": "lost"},
        report("works", 20.0),
        report("let go", 20.0),
        report("preempted", 20.0),
    )

    assert here["works"].rows_in_flight == 7
    assert left == ["let go"]
    lost = here["preempted"]
    assert (lost.phase, lost.units, lost.rows_in_flight, lost.rows_begun) == ("lost", 0, 0, 0)
    assert lost.rows_ended == 5


def test_one_of_whom_nothing_is_known_is_waited_for_and_not_for_ever() -> None:
    assert asked({}, report("a", SILENT_S, told=False))[1] == []
    assert asked({}, report("a", SILENT_S + 1, told=False))[1] == ["a"]


def test_the_place_of_a_dead_process_is_never_seen_empty() -> None:
    control = Control()
    first, second = birth("a:1"), Birth(replica="actor of a:1", process="a:2", node="n", pid=2, start_ticks=2)
    control.born(first, None)
    control.report(HostStats(replica="a:1", phase="serving", time=1.0))

    control.born(second, None)

    assert list(control.stats()) == ["a:2"]
    assert control.stats()["a:2"].phase == "starting"


def test_one_that_has_left_is_forgotten_and_its_silence_means_nothing() -> None:
    control = Control(silent_s=0.0)
    control.born(birth("a:1"), None)  # it starts, which is work: silence would be a hang
    assert [silent.birth.process for silent in control.news().silent] == ["a:1"]
    control.report(HostStats(replica="a:1", phase="starting", time=1.0))

    control.left(["a:1"])

    assert control.stats() == {}
    assert control.reports() == []
    assert control.news().silent == []
