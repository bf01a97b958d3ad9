"""A run at work in one value: figures by hand, rows that are lost, what is estimated, and its way through a file."""

import json
import random
from dataclasses import replace
from decimal import Decimal

import pytest

from actors.engine import EngineConfig, EngineLoad
from actors.host_stats import HostStats
from pipelines.accounts.allowance import Allowance
from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.live import MOST_ENGINES, Live
from pipelines.accounts.rates import MOST_STEPS, Rates
from pipelines.accounts.snapshot import Snapshot
from pipelines.accounts.starvation import Waits
from pipelines.accounts.summary import Totals
from pipelines.config import Exit, UserError

ENGINE = EngineConfig(kind="simulated", model="m", model_name="m")


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Purse:
    """A cent a second, since 100; all of the time went into `part`."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.parts = clock, Parts()

    def usd(self) -> Decimal:
        return Decimal(round(self.clock.now - 100)) / 100

    def usd_per_s(self) -> Decimal:
        return Decimal("0.01")

    def parts_at_work(self, *, computed_prompt_tokens: int, output_tokens: int) -> Parts:
        return self.parts


def host(replica: str = "h:1", *, rows: int = 0, **changes: object) -> HostStats:
    """A host whose rows had 10 prompt tokens each, 4 of them cached, and 2 output tokens."""
    stats = HostStats(
        replica=replica,
        phase="serving",
        time=1.0,
        rows_ended=rows,
        prompt_tokens=10 * rows,
        cached_tokens=4 * rows,
        output_tokens=2 * rows,
    )
    return replace(stats, **changes)  # type: ignore[arg-type]


def at_work(*, rows: int = 100) -> tuple[Live, Clock, Purse]:
    """A run over so many rows whose engines answer since 100."""
    clock = Clock()
    live, purse = Live(run="r", job="classify", model="m", clock=clock, wall=lambda: 1e9 + clock.now), Purse(clock)
    live.pays(purse, Allowance(usd=Decimal(5), spent_before_usd=Decimal(1), grace_s=0), ENGINE)
    live.expect(rows, estimated=False)
    live.started()
    live.see(Totals())
    return live, clock, purse


def test_the_figures_of_a_run_at_work_by_hand() -> None:
    live, clock, _ = at_work()
    load = EngineLoad(running=6, waiting=3, kv_usage=0.25)
    for second in range(1, 21):  # a row a second, in units of five
        clock.now = 100.0 + second
        units = second // 5
        errors = {"too_long": units} if units else {}
        live.see(
            Totals(units=units, rows_in=5 * units, rows_ok=4 * units, rows_error=units, errors_by_type=errors),
            [host(rows=second, rows_in_flight=9, rows_waiting=1, load=load, restarts=2)],
        )
    clock.now = 122.0  # nobody has looked for two seconds
    now = live.snapshot()

    assert (now.rows_in, now.rows_done, now.rows_total, now.share_done) == (20, 20, 100, 0.2)
    assert (now.tokens, now.prompt_tokens, now.cached_tokens, now.output_tokens) == (240, 200, 80, 40)
    assert now.rows_per_s == pytest.approx(1.0)
    assert now.tokens_per_s == pytest.approx(12.0)
    assert now.rows_history == pytest.approx([1.0] * 10)
    assert now.eta_s == pytest.approx(80.0)
    assert now.tokens_total == 1200
    assert (now.usd, now.usd_total) == (Decimal("0.22"), Decimal("0.22") + Decimal("0.01") * Decimal(repr(now.eta_s)))
    assert now.budget_spent_usd == Decimal("1.22")
    assert now.budget_share == pytest.approx(0.244)
    assert now.budget_lasts_s == pytest.approx(378.0)
    assert now.errors_by_type == {"too_long": 4}
    (engine,) = now.engines
    assert (engine.running, engine.waiting, engine.kv_usage, engine.cache_hit_share) == (6, 4, 0.25, 0.4)
    assert (engine.restarts, engine.rows_ended, now.engines_total, now.rows_in_flight) == (2, 20, 1, 9)
    assert (now.elapsed_s, now.steady_s, now.at) == (22.0, 22.0, 1e9 + 122)


def test_rows_of_a_unit_that_is_not_committed_are_done_as_long_as_their_engine_lives() -> None:
    live, clock, _ = at_work()
    clock.now = 110.0
    live.see(Totals(rows_in=20), [host("a", rows=20), host("b", rows=15)])
    alive = live.snapshot()
    clock.now = 120.0
    live.see(Totals(rows_in=20), [host("a", rows=20)])
    died = live.snapshot()
    clock.now = 130.0
    live.see(Totals(rows_in=20), [host("a", rows=20), host("c", rows=15)])
    again = live.snapshot()

    assert [now.rows_done for now in (alive, died, again)] == [35, 20, 35]
    assert again.rows_per_s == pytest.approx((35 + 15) / 30)  # what is done again takes its time again
    assert again.tokens == 12 * (20 + 15 + 15)


def test_rows_that_no_engine_was_asked_for_are_done_when_they_are_committed() -> None:
    live, clock, _ = at_work()
    clock.now = 110.0
    live.see(Totals(rows_in=60, rows_carried=50, prompt_tokens=100), [host(rows=10)])

    assert live.snapshot().rows_done == 60
    assert live.snapshot().eta_s == pytest.approx(40 / 6)


def test_nothing_is_foretold_before_a_row_is_done_or_when_more_came_than_was_told() -> None:
    live, clock, _ = at_work(rows=10)
    clock.now = 110.0
    live.see(Totals(), [host(rows=0)])
    before = live.snapshot()
    clock.now = 120.0
    live.see(Totals(rows_in=11), [host(rows=11)])
    beyond = live.snapshot()

    assert (before.rows_per_s, before.eta_s, before.tokens_total, before.usd_total) == (0.0, None, None, None)
    assert beyond.rows_per_s == pytest.approx(0.55)
    assert (beyond.eta_s, beyond.share_done) == (None, 1.0)
    assert Live().snapshot().usd is None
    assert Live().snapshot().rows_in_flight is None


def test_what_holds_a_run_back_is_that_of_the_last_minute() -> None:
    live, clock, purse = at_work()
    purse.parts = Parts(startup=500 * NS, decode=10 * NS)
    live.see(Totals(), [host()])
    assert live.snapshot().held_back is None  # one look is no time
    clock.now = 161.0
    purse.parts = Parts(startup=500 * NS, decode=10 * NS, idle=61 * NS)
    live.see(Totals(), [host()])
    waits = live.snapshot().held_back
    clock.now = 222.0
    purse.parts = Parts(startup=500 * NS, decode=55 * NS, idle=77 * NS)
    live.see(Totals(), [host()])
    decodes = live.snapshot().held_back

    assert waits is not None
    assert waits.startswith("idle took 100 % of the devices' time")
    assert decodes is not None
    assert decodes.startswith("decode took about 74 % of the devices' time")


def test_the_stage_that_engines_starve_of_is_named_as_the_report_names_it() -> None:
    live, clock, purse = at_work()
    purse.parts = Parts(startup=500 * NS, idle=NS)
    live.see(Totals(), [host()], Waits(read_tasks=1, had=10.0, held=10.0))
    clock.now = 161.0
    purse.parts = Parts(startup=500 * NS, idle=41 * NS, decode=21 * NS)
    live.see(Totals(), [host()], Waits(read_tasks=1, had=71.0, held=71.0, before_them=40.0, read=1.0, prepare=58.0))

    said = live.snapshot().held_back

    assert said is not None
    assert said.startswith("engines waited for rows to be tokenized for 66 % of the devices' time: raise cluster.read_")


def test_a_snapshot_comes_through_its_file_and_anything_else_is_refused() -> None:
    live, clock, _ = at_work()
    clock.now = 140.0
    live.see(Totals(rows_in=1, rows_error=1, errors_by_type={"x\x1b[2J": 1}), [host(rows=3)])
    now = live.snapshot()
    text = now.to_json()

    assert Snapshot.from_json(text) == now
    assert Snapshot.from_json(json.dumps(json.loads(text) | {"of_a_later_version": [1]}).encode()) == now
    for wrong in (b"", b"[]", b"{}", b"\xff", text[:-9], text.replace(b'"version": 1', b'"version": 2')):
        with pytest.raises(ValueError):
            Snapshot.from_json(wrong)
    for key, value in {"rows_in": "many", "usd": "NaN dollars", "elapsed_s": float("nan"), "engines": [{}]}.items():
        with pytest.raises(ValueError):
            Snapshot.from_json(json.dumps(json.loads(text) | {key: value}).encode())


def test_no_secret_gets_into_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "Sentinel4711Sentinel4711")
    live = Live(run="r", job="j", model="m")
    live.doing("asking Sentinel4711Sentinel4711")

    assert b"Sentinel4711" not in live.snapshot().to_json()


def test_of_very_many_engines_those_in_trouble_are_told_and_all_are_counted() -> None:
    live, _, _ = at_work()
    many = [host(f"h:{number:05}") for number in range(MOST_ENGINES + 50)]
    many[-1] = host("slow", phase="starting")
    many[-2] = host("often", restarts=3)
    live.see(Totals(), many)
    now = live.snapshot()

    assert (len(now.engines), now.engines_total) == (MOST_ENGINES, MOST_ENGINES + 50)
    assert [engine.name for engine in now.engines[:3]] == ["slow", "often", "h:00000"]


def test_how_it_ended_is_told() -> None:
    ended, failed, refused, stopped = (Live() for _ in range(4))
    ended.finish(Exit.TOO_MANY_ERRORS)
    ended.over(None)
    failed.over(RuntimeError("x"))
    refused.over(UserError("x"))
    stopped.over(KeyboardInterrupt())

    told = [(live.snapshot().state, live.snapshot().exit_code) for live in (ended, failed, refused, stopped)]
    assert told == [("ended", 3), ("failed", 1), ("failed", 2), ("ended", 4)]


@pytest.mark.parametrize("seed", range(20))
def test_the_steps_of_a_history_add_up_to_what_was_counted_and_stay_few(seed: int) -> None:
    dice = random.Random(seed)
    rates, now, count = Rates(), dice.uniform(0, 1e6), 0
    seen = [(now, count)]
    rates.add(now, 0)
    for _ in range(dice.randint(1, 3000)):
        now += dice.choice((0.2, 1.0, 7.0)) * dice.random()
        count += dice.randint(0, 5)
        rates.add(now, count)
        seen.append((now, count))
    steps, covered_s = rates.history(), len(rates.history()) * rates.bucket_s

    assert len(steps) < MOST_STEPS
    assert now - seen[0][0] - rates.bucket_s - 1e-6 <= covered_s <= now - seen[0][0] + 1e-6
    # The newest counts are in no step yet: those since the last step's end, for which another look is needed.
    told = max(total for at, total in seen if at <= seen[0][0] + max(0.0, covered_s - rates.bucket_s))
    assert told - 1e-6 <= sum(steps) * rates.bucket_s <= count + 1e-6


def test_a_rate_forgets_what_was_a_minute_ago_and_its_history_does_not() -> None:
    rates = Rates()
    for second in range(121):  # ten a second, and then nothing for a minute
        rates.add(float(second), 10 * min(second, 60))

    assert rates.now() == 0.0
    assert sum(rates.history()) * rates.bucket_s == pytest.approx(600, rel=0.05)
    assert rates.lately() == pytest.approx(0.0, abs=1.0)
