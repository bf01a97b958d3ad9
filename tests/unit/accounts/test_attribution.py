"""What seconds of devices went into: lives of engines, second by second, and what must come out by hand."""

import random
from dataclasses import replace

import pytest

from pipelines.accounts.attribution import NS, Held, Parts, Timeline, Work, attribute, by_day
from tests.accounts_samples import HostReport, three_lives

DAY = "2026-11-24"


def seconds(parts: Parts) -> dict[str, float]:
    return {name: ns / NS for name, ns in parts.known() if ns}


def test_three_lives_by_hand() -> None:
    # 312 s: three devices for 104 s. a: starts for 10 s, works 70 s, has nothing more from 80 on. b: starts for 20 s,
    # works 10 s, of which 4 are lost with its process; the next one answers 20 s later, and works from 50 to 90.
    # c: starts for 30 s, waits 20 s for input, works 50 s, 5 of them in vain. The last receipt comes at 100.
    timeline = Timeline(engines=3, devices_each=1, one_machine=False)
    timeline.begin(0)
    for second in range(1, 101):
        timeline.see(three_lives(second), now_ns=second * NS, day=DAY)
    timeline.received()
    timeline.end(three_lives(104), now_ns=104 * NS, day=DAY)
    receipts = [(70.0, 900, 100, 100), (6.0, 300, 0, 0), (40.0, 200, 0, 100), (50.0, 400, 200, 10)]

    parts = attribute(timeline.held(done=True), Work.of(receipts))

    # Of 161 s of work: 1,500 tokens were read and not cached, 210 written.
    assert parts.useful == 161 * NS
    assert parts.prefill == 161 * NS * 1500 // 1710
    assert seconds(replace(parts, prefill=0, decode=0)) == {
        "startup": 60, "idle": 20, "tail": 30, "failed": 20 + 4 + 5, "shutdown": 12,
    }  # fmt: skip
    assert parts.total == 312 * NS
    assert parts.rejected is None


def test_a_run_that_is_cut_off_has_no_tail_and_no_shutdown_and_lost_what_is_not_committed() -> None:
    timeline = Timeline(engines=3, devices_each=1, one_machine=False)
    timeline.begin(0)
    for second in range(1, 61):
        timeline.see(three_lives(second), now_ns=second * NS, day=DAY)

    parts = attribute(
        timeline.held(done=False), Work.of([(40.0, 3, 0, 1), (6.0, 3, 0, 1), (8.0, 3, 0, 1), (8.0, 3, 0, 1)])
    )

    # 80 s of work, of which 62 are committed, 5 of them in vain; 20 s without b's engine.
    assert seconds(parts) == {
        "startup": 60, "prefill": 57 * 0.75, "decode": 57 * 0.25, "idle": 20, "failed": 23 + 20,
    }  # fmt: skip


def test_engines_on_cpu_share_one_machine_and_each_bears_its_part_of_it() -> None:
    # Two engines on one machine for 20 s: both start for 10 s, then one works all the time and the other one half.
    timeline = Timeline(engines=2, devices_each=1, one_machine=True)
    timeline.begin(0)
    for second in range(1, 21):
        phase = "serving" if second >= 10 else "starting"
        busy = max(0, second - 10)
        timeline.see(
            [
                HostReport("a", phase, second, 1, float(busy)),
                HostReport("b", phase, second, 1, busy / 2),
            ],
            now_ns=second * NS,
            day=DAY,
        )

    parts = attribute(timeline.held(done=False), Work.of([(10.0, 1, 0, 0), (5.0, 1, 0, 0)]))

    assert timeline.needed() == 1
    assert seconds(parts) == {"startup": 10, "prefill": 7.5, "idle": 2.5}


def test_an_engine_that_joins_later_is_held_from_its_first_report_on() -> None:
    timeline = Timeline(engines=1, devices_each=4, one_machine=False)
    timeline.begin(0)
    for second in range(1, 11):
        hosts = [HostReport("a", "serving", second, 1, 4.0 * second)]
        if second >= 5:
            hosts.append(HostReport("b", "starting", second, 0, 0.0))
        timeline.see(hosts, now_ns=second * NS, day=DAY)

    held = timeline.held(done=False)

    assert held.held_ns == (4 * 10 + 4 * 5) * NS
    assert held.startup_ns == (4 * 1 + 4 * 5) * NS  # a until its first report


def test_an_engine_that_is_started_again_in_its_process_is_failed_time() -> None:
    timeline = Timeline(engines=1, devices_each=1, one_machine=False)
    timeline.begin(0)
    phases = ["starting"] * 3 + ["serving"] * 4 + ["rebuilding"] * 5 + ["serving"] * 2
    for second, phase in enumerate(phases, start=1):
        timeline.see([HostReport("a", phase, second, 1, 0.0)], now_ns=second * NS, day=DAY)

    assert timeline.held(done=False).startup_ns == 4 * NS  # up to the report that it serves
    assert timeline.held(done=False).rebuilt_ns == 5 * NS


def test_an_engine_that_its_pool_lets_go_is_held_no_more_and_its_last_wait_is_tail() -> None:
    # Of a pool of one to three: three from 1 on, two of them without work from 10 on, and gone from 15 on.
    timeline = Timeline(engines=1, devices_each=2, one_machine=False)
    timeline.begin(0)
    for second in range(1, 31):
        hosts = [HostReport("a", "serving", second, 1, 2.0 * second)]
        if second < 15:
            hosts += [HostReport(name, "serving", second, int(second < 10), 2.0 * min(second, 10)) for name in "bc"]
        timeline.see(hosts, now_ns=second * NS, day=DAY)

    held = timeline.held(done=True)

    # b and c from their first report at 1 to the look at 15 at which they were missing.
    assert held.held_ns == 2 * (30 + 2 * 14) * NS
    assert held.tail_ns == 2 * 2 * 5 * NS
    assert (held.rebuilt_ns, held.startup_ns) == (0, 2 * NS)
    assert timeline.needed() == 2


def test_the_fewest_engines_are_held_to_the_end_whoever_of_them_was_let_go() -> None:
    timeline = Timeline(engines=2, devices_each=1, one_machine=False)
    timeline.begin(0)
    for second in range(1, 21):
        names = "ab" if second <= 10 else "a"
        hosts = [HostReport(name, "serving", second, int(name == "a"), 0.0) for name in names]
        timeline.see(hosts, now_ns=second * NS, day=DAY)

    held = timeline.held(done=True)

    assert held.held_ns == 40 * NS
    assert held.startup_ns == 2 * NS  # until their first report, and not what is missing of them at the end


def test_an_engine_whose_node_is_lost_holds_nothing_until_it_has_another_and_its_new_start_is_failed() -> None:
    # Two engines at work; b's node is gone at 10, another one comes at 20, and b2 serves from 24 on.
    timeline = Timeline(engines=2, devices_each=1, one_machine=False)
    timeline.begin(0)
    for second in range(1, 31):
        hosts = [HostReport("a", "serving", second, 1, float(second))]
        if second <= 10:
            hosts.append(HostReport("b", "serving", second, 1, float(second)))
        elif second < 20:
            hosts.append(HostReport("b", "lost", 10, 0, 10.0))
        else:
            hosts.append(HostReport("b2", "serving" if second >= 24 else "starting", second, 0, 0.0))
        timeline.see(hosts, now_ns=second * NS, day=DAY)

    held = timeline.held(done=False)

    assert held.held_ns == (30 + 11 + 10) * NS  # b to the look at 11 that found it lost, b2 after that at 20
    assert held.rebuilt_ns == (1 + 4) * NS
    assert held.startup_ns == 2 * NS


def test_the_only_engine_of_a_run_that_is_lost_costs_nothing_until_it_is_back() -> None:
    timeline = Timeline(engines=1, devices_each=8, one_machine=False)
    timeline.begin(0)
    timeline.see([HostReport("a", "serving", 5, 1, 30.0)], now_ns=5 * NS, day=DAY)
    timeline.see([HostReport("a", "lost", 5, 0, 30.0)], now_ns=6 * NS, day=DAY)

    assert timeline.needed() == 0
    timeline.see([HostReport("a", "lost", 5, 0, 30.0)], now_ns=100 * NS, day=DAY)
    assert timeline.held(done=False).held_ns == 8 * 6 * NS


@pytest.mark.parametrize("seed", range(20))
def test_no_more_is_held_than_the_fewest_and_the_lives_of_all_others(seed: int) -> None:
    rng = random.Random(seed)
    fewest = rng.randint(1, 3)
    lives = {f"h{number}": sorted(rng.sample(range(1, 60), 2)) for number in range(rng.randint(1, 8))}
    timeline = Timeline(engines=fewest, devices_each=1, one_machine=False)
    timeline.begin(0)
    for second in range(1, 61):
        here = [
            HostReport(name, "serving", second, rng.randint(0, 2), 0.0)
            for name, (born, gone) in lives.items()
            if born <= second < gone
        ]
        timeline.see(here, now_ns=second * NS, day=DAY)

    at_once = [max(fewest, sum(born <= second < gone for born, gone in lives.values())) for second in range(60)]
    assert timeline.held(done=True).held_ns == sum(at_once) * NS


@pytest.mark.parametrize("seed", range(40))
def test_the_parts_add_up_to_what_was_held_whatever_is_reported(seed: int) -> None:
    rng = random.Random(seed)
    timeline = Timeline(engines=rng.randint(1, 4), devices_each=rng.randint(1, 3), one_machine=rng.random() < 0.3)
    timeline.begin(0)
    now_ns = 0
    for _ in range(60):
        now_ns += rng.randint(0, 3 * NS)
        hosts = [
            HostReport(
                rng.choice("abcdefg") + str(place),
                rng.choice(["starting", "serving", "serving", "rebuilding", "draining", "lost"]),
                rng.uniform(0, 100),
                rng.randint(0, 2),
                rng.uniform(0, 60),
                rng.uniform(0, 9),
            )
            for place in range(rng.randint(0, 5))
        ]
        timeline.see(hosts, now_ns=now_ns, day=rng.choice(["2026-11-24", "2026-11-25"]))
        if rng.random() < 0.2:
            timeline.received()
    held = timeline.held(done=rng.random() < 0.5)
    work = Work.of([(rng.uniform(0, 90), rng.randint(0, 9), 0, rng.randint(0, 9)) for _ in range(rng.randint(0, 3))])

    parts = attribute(held, work)

    assert parts.total == held.held_ns
    assert min(ns for _, ns in parts.known()) >= 0
    days = list(by_day(held, parts))
    assert sum(ns for _, _, ns in days) == held.held_ns
    for name, ns in parts.known():
        assert sum(each for _, part, each in days if part == name) == ns
    assert Held.from_json(held.to_json()) == held


def test_a_part_falls_on_the_days_as_the_time_held_does() -> None:
    held = Held(held_ns=40, held_ns_by_day={"2026-11-25": 30, "2026-11-24": 10})

    assert list(by_day(held, Parts(idle=5, decode=35)))[-6:] == [
        ("2026-11-24", "tail", 0), ("2026-11-25", "tail", 0),
        ("2026-11-24", "failed", 0), ("2026-11-25", "failed", 0),
        ("2026-11-24", "shutdown", 0), ("2026-11-25", "shutdown", 0),
    ]  # fmt: skip
    found = {(day, part): ns for day, part, ns in by_day(held, Parts(idle=5, decode=35)) if ns}
    assert found == {
        ("2026-11-24", "decode"): 8, ("2026-11-25", "decode"): 27,
        ("2026-11-24", "idle"): 1, ("2026-11-25", "idle"): 4,
    }  # fmt: skip


def test_the_end_of_a_run_begins_with_its_last_receipt() -> None:
    # The engine works for 10 s, the last unit takes 3 s to be written, and the dataflow 2 s to end.
    timeline = Timeline(engines=1, devices_each=1, one_machine=False)
    timeline.begin(0)
    for second in range(1, 16):
        host = HostReport("a", "serving", second, int(second < 10), float(min(second, 10)))
        timeline.see([host], now_ns=second * NS, day=DAY)
        if second == 13:
            timeline.received()

    held = timeline.held(done=True)

    assert (held.tail_ns, held.shutdown_ns) == (3 * NS, 2 * NS)


def test_what_floats_add_up_differently_is_no_lost_work() -> None:
    held = Held(held_ns=NS, engines_ns=NS, busy_ns=NS // 2 + 900)

    assert attribute(held, Work.of([(0.5, 1, 0, 1)])).failed == 0
    assert attribute(replace(held, busy_ns=NS // 2 + 2_000_000), Work.of([(0.5, 1, 0, 1)])).failed == 2_000_000


def test_guesses_that_are_thrown_away_bear_the_share_of_the_work_that_tokens_bear() -> None:
    held = Held(held_ns=100 * NS, held_ns_by_day={DAY: 100 * NS}, engines_ns=100 * NS, busy_ns=80 * NS)
    work = Work(answered_ns=80 * NS, computed_prompt_tokens=200, output_tokens=100)

    parts = attribute(replace(held, rejected_tokens=100), work)

    assert seconds(parts) == {"prefill": 40, "decode": 20, "rejected": 20, "idle": 20}
    assert attribute(replace(held, rejected_tokens=0), work).rejected == 0
    assert attribute(held, work).rejected is None
    assert Held.from_json(replace(held, rejected_tokens=7).to_json()).rejected_tokens == 7
