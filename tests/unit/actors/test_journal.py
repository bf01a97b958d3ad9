"""What outlives the processes of engines, as pure logic: deaths are told, and suspicions follow."""

from actors.evidence import Birth, Death, Past, Suspicion, Verdict
from actors.journal import HOUR_S, LONGEST_GAPS, MOST_SILENT_S, SILENT_S, Journal

CRASH = Death(cause="crashed", words="it died")
POISON = Verdict(error_type="poison", error="it kills engines")


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def birth(number: int, replica: str = "a") -> Birth:
    return Birth(replica=replica, process=f"{replica}:{number}", node="n", pid=number, start_ticks=number)


def opened(clock: Clock | None = None, replica: str = "a") -> Journal:
    journal = Journal(clock or Clock())
    born(journal, 1, replica=replica)
    return journal


def born(journal: Journal, number: int, death: Death = CRASH, replica: str = "a") -> Past:
    past = journal.born(birth(number, replica), death)
    journal.serves(f"{replica}:{number}")
    return past


def told(journal: Journal, process: str, *, restarts: int = 0, unexplained: int = 0) -> None:
    journal.see(process, restarts=restarts, unexplained=unexplained, fruitless=0)


def test_a_first_process_has_no_past_and_its_units_are_not_watched() -> None:
    journal = Journal(Clock())

    assert journal.predecessor("a") is None
    assert journal.born(birth(1), None) == Past()
    assert journal.arrives("a:1", "u") == Suspicion()


def test_units_that_were_in_a_process_at_its_death_are_watched_until_they_end_and_no_others() -> None:
    journal = opened()
    for unit in ("done", "u", "v"):
        journal.arrives("a:1", unit)
    journal.ends("a:1", "done")

    born(journal, 2)

    assert journal.arrives("a:2", "u") == Suspicion(watched=True, base=1)
    assert not journal.arrives("a:2", "done").watched
    assert not journal.arrives("a:2", "new").watched
    journal.ends("a:2", "u")
    assert not journal.arrives("a:2", "u").watched
    assert journal.arrives("a:2", "v").watched


def test_from_the_second_death_on_only_rows_that_were_in_the_engine_are_suspects() -> None:
    journal = opened()
    journal.arrives("a:1", "u")
    born(journal, 2)
    journal.arrives("a:2", "u")
    for line in range(3):
        journal.enters("a:2", "u", line)
    journal.leaves("a:2", "u", 0, True)

    born(journal, 3)

    assert journal.arrives("a:3", "u") == Suspicion(watched=True, base=1, deaths={1: 2, 2: 2})
    journal.enters("a:3", "u", 2)
    born(journal, 4)
    assert journal.arrives("a:4", "u").deaths == {1: 2, 2: 3}


def test_a_row_found_guilty_explains_the_deaths_it_was_in_and_is_known_by_its_key_everywhere() -> None:
    journal = opened()
    journal.arrives("a:1", "u")
    past = born(journal, 2)
    assert past.unexplained == 0  # nobody is acquitted yet
    journal.arrives("a:2", "u")
    journal.enters("a:2", "u", 5)
    born(journal, 3)

    journal.condemns("a:3", "u", 5, "key", POISON)
    journal.ends("a:3", "u")

    assert born(journal, 4).unexplained == 1  # of no unit at all
    assert journal.arrives("a:4", "other").guilty == {"key": POISON}


def test_a_death_is_unexplained_once_all_that_were_there_have_been_answered() -> None:
    journal = opened()
    journal.arrives("a:1", "u")
    journal.arrives("a:1", "v")
    born(journal, 2)
    journal.ends("a:2", "u")
    assert born(journal, 3).unexplained == 1  # the second death; the first may have been v's doing

    journal.ends("a:3", "v")

    assert born(journal, 4).unexplained == 3


def test_a_lost_node_makes_nobody_a_suspect_and_uses_up_no_restart() -> None:
    journal = opened()
    journal.arrives("a:1", "u")

    past = born(journal, 2, Death(cause="preempted", words="its node is gone"))

    assert past == Past()
    assert not journal.arrives("a:2", "u").watched


def test_deaths_count_until_a_row_is_answered_whichever_way_that_is_told() -> None:
    journal = opened()
    for number in (2, 3):
        journal.arrives(f"a:{number - 1}", "u")
        assert born(journal, number).fruitless == number - 1
    journal.arrives("a:3", "u")
    journal.enters("a:3", "u", 0)
    journal.leaves("a:3", "u", 0, True)
    assert born(journal, 4).fruitless == 1
    journal.see("a:4", restarts=2, unexplained=1, fruitless=2)

    past = born(journal, 5)

    assert past.fruitless == 3
    assert past.harmless  # no unit was there


def test_restarts_within_an_hour_are_those_of_engines_and_of_processes() -> None:
    clock = Clock()
    journal = opened(clock)
    told(journal, "a:1", restarts=2, unexplained=1)
    clock.now += HOUR_S - 10
    past = born(journal, 2)
    assert (len(past.restarts), past.unexplained) == (3, 2)

    clock.now += 20

    past = born(journal, 3)
    assert (len(past.restarts), past.unexplained) == (2, 3)


def test_processes_that_die_before_their_engine_has_started_are_counted_apart() -> None:
    journal = Journal(Clock())
    journal.born(birth(1), None)
    assert journal.born(birth(2), CRASH).failed_starts == 1
    past = journal.born(birth(3), Death(cause="crashed", words="out of memory"))
    assert (past.failed_starts, past.fruitless, past.last_words) == (2, 0, "out of memory")

    journal.serves("a:3")

    assert journal.born(birth(4), CRASH).failed_starts == 0


def test_a_birth_told_twice_is_one_death() -> None:
    journal = opened()
    journal.arrives("a:1", "u")

    assert journal.born(birth(2), CRASH) == journal.born(birth(2), CRASH)
    assert len(journal.news()) == 1
    assert journal.news() == []


def test_a_process_with_work_that_does_not_report_is_found_and_an_idle_one_is_not() -> None:
    clock = Clock()
    journal = opened(clock)
    born(journal, 1, replica="b")
    clock.now += SILENT_S * 2  # idle all the while
    journal.arrives("a:1", "u")  # and silent from here on
    clock.now += SILENT_S - 1
    assert journal.silent() == []

    clock.now += 2

    (silent,) = journal.silent()
    assert silent.birth == birth(1)
    assert silent.death.cause == "hung"
    assert "no report for 61 s (limit 60 s) with 1 units in it" in silent.death.words
    journal.note_death("a:1", silent.death)
    assert journal.silent() == []
    assert journal.predecessor("a") == (birth(1), silent.death)


def test_a_process_that_reports_slowly_is_given_more_time() -> None:
    clock = Clock()
    journal = opened(clock)
    journal.arrives("a:1", "u")
    told(journal, "a:1")
    clock.now += 10
    told(journal, "a:1")

    clock.now += LONGEST_GAPS * 10 - 1
    assert journal.silent() == []
    told(journal, "a:1")  # its longest pause is 199 s now

    clock.now += MOST_SILENT_S - 1
    assert journal.silent() == []
    clock.now += 2
    assert len(journal.silent()) == 1


def test_what_an_unknown_process_tells_changes_nothing() -> None:
    journal = opened()  # as after a Control that died and began again

    journal.enters("b:7", "u", 1)
    journal.leaves("b:7", "u", 1, True)
    journal.ends("b:7", "u")
    journal.note_death("b:7", CRASH)
    told(journal, "b:7", restarts=3)
    assert journal.arrives("b:7", "u") == Suspicion()
    assert journal.predecessor("b") is None


def test_the_first_reason_to_give_up_stays() -> None:
    journal = opened()
    assert journal.given_up is None
    journal.gives_up("a:1", "one")
    journal.gives_up("b:1", "two")

    assert journal.given_up == "one"


def test_a_process_that_is_silent_while_its_engine_starts_is_found_too() -> None:
    clock = Clock()
    journal = Journal(clock)
    journal.born(birth(1), None)

    clock.now += SILENT_S + 1

    assert "its engine starting" in journal.silent()[0].death.words
