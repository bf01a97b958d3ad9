"""Forecasts: how much is known says how wide they are."""

import random
from decimal import Decimal
from typing import Any

import pytest

from pipelines.accounts.forecast import (
    Between,
    EarlierRun,
    Forecast,
    assumed_rate,
    earlier_runs,
    forecast,
    mean_between,
    overhead,
    rate_of,
    replicas_for,
    rows_within,
)
from pipelines.accounts.run_summary import RunSummary
from pipelines.config import DevicePrice

PRICE = DevicePrice(usd_per_hour=Decimal(3), source="a list", date="2026-11-23")


def of_load(
    load: float,
    *,
    replicas: int = 1,
    startup_s: float | None = None,
    overhead_s: float = 0.0,
    one_machine: bool = False,
) -> Forecast:
    return forecast(
        load=Between.exactly(load),
        rate=Between(low=0.5, middle=1.0, high=2.0),
        basis="limits",
        words="a test",
        prompt_tokens=Between.exactly(1),
        cached_tokens=0,
        output_tokens=Between.exactly(1),
        output_words="a test",
        replicas=replicas,
        devices_per_replica=1,
        one_machine=one_machine,
        startup_s=startup_s,
        overhead_device_s=Between.exactly(overhead_s),
        price=PRICE,
    )


def manifest(**changes: Any) -> dict[str, Any]:
    done: dict[str, Any] = {
        "rows_ok": 90,
        "rows_carried": 0,
        "prompt_tokens": 900,
        "cached_tokens": 100,
        "output_tokens": 90,
    }
    done["device_seconds"] = "95.5"
    summary = {"bill": {"device_seconds": "130.0", "usd": "1"}, "this_run": done, "steady_s": 100.0, "startup_s": 40.0}
    known: dict[str, Any] = {
        "run_id": "one",
        "state": "ended",
        "fingerprint": "mine",
        "summary": summary,
        "engine": {"kind": "vllm", "device": "gpu", "tensor_parallel": 1},
        "hardware": {"gpu_name": "NVIDIA H100"},
        "config": {"engine": {"replicas": 1}},
        "exit_code": 0,
        "started_at": "2026-11-01T00:00:00.000+00:00",
        "finished_at": None,
    }
    known |= changes
    known["config"] = {"job": {"name": "one"}, "model": {"name": "one"}} | known["config"]
    return known


def found(*manifests: dict[str, Any]) -> list[EarlierRun]:
    runs = [RunSummary.of(one) for one in manifests]
    return earlier_runs(runs, fingerprint="mine", device="NVIDIA H100", engine_kind="vllm")


def test_dollars_are_device_seconds_at_the_price_of_an_hour() -> None:
    here = of_load(3600.0, startup_s=60.0, overhead_s=1200.0)

    assert (here.usd_low, here.usd, here.usd_high) == (Decimal("2.5"), Decimal(4), Decimal(7))
    assert here.hours.middle == pytest.approx(1 + 60 / 3600)


def test_two_replicas_take_half_the_hours_for_the_same_dollars() -> None:
    one, two = of_load(3600.0), of_load(3600.0, replicas=2)

    assert two.hours.middle == one.hours.middle / 2
    assert two.usd == one.usd


def test_uncertainties_that_are_independent_add_up_in_squares() -> None:
    twice = Between(low=0.5, middle=1.0, high=2.0)

    product = twice.times(twice)

    assert product.high == pytest.approx(2 ** (2**0.5))
    assert product.low == pytest.approx(1 / product.high)


def test_one_earlier_run_is_taken_for_no_better_than_ten_percent() -> None:
    rate = rate_of([50.0], [100.0])

    assert rate.middle == 0.5
    assert rate.high == pytest.approx(0.55)
    assert rate.low == pytest.approx(0.5 / 1.1)


def test_two_runs_that_differ_say_how_much_another_may() -> None:
    rate = rate_of([100.0, 200.0], [100.0, 100.0])

    assert rate.middle == pytest.approx(1.5)
    assert rate.high == pytest.approx(3.0)


def test_of_many_seeded_histories_the_next_run_lies_within_the_interval_most_of_the_time() -> None:
    rng = random.Random(7)
    hits = 0
    for _ in range(200):
        rates = [rng.lognormvariate(0, 0.2) for _ in range(6)]
        interval = rate_of(rates[:5], [1.0] * 5)
        hits += interval.low <= rates[5] <= interval.high

    assert 180 <= hits < 200  # 95 % of 200 is 190; an interval that always hits says nothing


def test_the_mean_of_units_lies_where_most_seeded_samples_say() -> None:
    rng = random.Random(3)
    hits = 0
    for _ in range(200):
        units = [rng.gauss(50, 8) for _ in range(12)]
        between = mean_between(units, [100] * 12)
        hits += between.low <= 50 <= between.high

    assert 180 <= hits < 200


def test_an_earlier_run_tells_only_of_what_was_asked_on_this_device_and_ended() -> None:
    (run,) = found(
        manifest(),
        manifest(state="running"),
        manifest(fingerprint="another"),
        manifest(hardware={"gpu_name": "NVIDIA L4"}),
        manifest(engine={"kind": "simulated", "device": "gpu"}),
        manifest(summary=None),
    )

    assert (run.devices, run.work_s, run.held_s, run.startup_s) == (1, 100.0, 130.0, 40.0)
    assert (run.rows, run.prompt_tokens, run.cached_tokens, run.output_tokens) == (90, 900, 100, 90)


def test_what_was_held_outside_steady_time_is_held_again_by_each_device() -> None:
    startup_s, held = overhead(found(manifest()), 4)
    assert (startup_s, held.middle) == (40.0, 120.0)
    assert overhead([], 4) == (None, Between.exactly(0.0))


def test_replicas_for_a_deadline_are_no_more_than_there_are_units() -> None:
    here = of_load(3600.0, startup_s=60.0)

    plenty, tight, hopeless = (replicas_for(here, left, units=10, one_machine=False) for left in (4000.0, 960.0, 60.0))

    assert (plenty.replicas, plenty.replicas_high) == (1, 2)
    assert (tight.replicas, tight.replicas_high) == (4, 8)
    assert (hopeless.replicas, hopeless.replicas_high) == (None, None)
    assert replicas_for(here, 960.0, units=5, one_machine=False).replicas_high is None


def test_a_budget_pays_for_start_up_first_and_then_for_rows() -> None:
    here = of_load(3600.0, overhead_s=1200.0)  # 2.5, 4 and 7 dollars, of which one before the first row

    within = rows_within(here, Decimal("2.50"), 600)

    assert within.middle == pytest.approx(600 * 1.5 / 3)
    assert within.low == pytest.approx(600 * 1.5 / 6)
    assert within.high == 600
    assert rows_within(here, Decimal("0.5"), 600).middle == 0


def test_where_nothing_was_measured_the_interval_is_the_assumed_one() -> None:
    rate = assumed_rate()

    assert rate.high / rate.low == pytest.approx(0.66 / 0.2)
    assert rate.middle == pytest.approx((rate.low * rate.high) ** 0.5)


def test_replicas_on_one_machine_are_not_faster_and_cost_no_more() -> None:
    one, two = of_load(3600.0, one_machine=True), of_load(3600.0, replicas=2, one_machine=True)

    assert (two.hours, two.usd, two.devices) == (one.hours, one.usd, 1)
    assert replicas_for(two, 4000.0, units=10, one_machine=True).replicas == 2  # those there are
    assert replicas_for(two, 3000.0, units=10, one_machine=True).replicas is None


def test_an_earlier_run_on_cpu_is_of_one_machine_however_many_replicas_it_had() -> None:
    cpu = {"kind": "vllm", "device": "cpu", "tensor_parallel": 1}
    two = {"engine": {"replicas": 2}}

    told = RunSummary.of(manifest(engine=cpu, config=two))
    (run,) = earlier_runs([told], fingerprint="mine", device=None, engine_kind="vllm")

    assert (run.devices, run.work_s, run.held_s) == (1, 100.0, 130.0)


def test_a_pool_that_grew_is_remembered_by_its_mean_and_not_by_its_fewest() -> None:
    grown = manifest(config={"engine": {"replicas": [1, 8]}})
    grown["summary"] = grown["summary"] | {"engines": 5.5}

    (run,) = found(grown)

    assert (run.devices, run.work_s) == (5.5, 550.0)
