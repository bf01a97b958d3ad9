"""How fast the hardware at hand is taken to be: what was measured last goes before what was measured before."""

import pytest

from actors.engine import EngineConfig
from pipelines.accounts.forecast import EarlierRun
from pipelines.accounts.probed import Answered, Probed
from pipelines.pace import Loads, pace

CPU = EngineConfig(kind="simulated", model="m", model_name="m")
GPUS = EngineConfig(kind="vllm", model="m", model_name="m", device="gpu", tensor_parallel=2)
RUN = EarlierRun(
    run_id="r",
    engines=1.0,
    devices=1.0,
    work_s=50.0,
    held_s=80.0,
    startup_s=20.0,
    rows=100,
    prompt_tokens=1000,
    cached_tokens=200,
    output_tokens=100,
)


def loads(engine: EngineConfig) -> Loads:
    return Loads(engine=engine, shape=None, device=None, quantized=None)


def probed(devices: int) -> Probed:
    """200 rows in 20 s, on an engine that was held for 30 s."""
    return Probed(
        asked_s=20.0,
        startup_s=8.0,
        held_s=30.0 * devices,
        devices=devices,
        whole=Answered(seconds=20.0, rows=200, prompt_tokens=2000, cached_tokens=500, output_tokens=400),
        cut=False,
        steady=(),
        tokens_by_unit=(),
    )


def test_a_probe_goes_before_earlier_runs_and_these_before_the_limits() -> None:
    by_probe = pace(loads(CPU), [RUN], probed(1), pool=(1, 1))
    by_runs = pace(loads(CPU), [RUN], None, pool=(1, 1))
    by_limits = pace(loads(CPU), [], None, pool=(1, 1))

    assert [each.basis for each in (by_probe, by_runs, by_limits)] == ["a probe", "earlier runs", "limits"]
    assert by_probe.rate.middle == pytest.approx(0.1)
    assert by_runs.rate.middle == pytest.approx(0.5)
    assert [each.startup_s for each in (by_probe, by_runs, by_limits)] == [8.0, 20.0, None]
    assert by_probe.besides_s.middle == pytest.approx(10.0)
    assert by_runs.besides_s.middle == pytest.approx(30.0)
    assert by_runs.besides_s.low < 27 < 33 < by_runs.besides_s.high  # one start tells little of the next
    assert by_limits.besides_s.high == 0.0


def test_what_one_engine_was_held_for_besides_is_held_by_each_replica_on_all_its_devices() -> None:
    found = pace(loads(GPUS), [], probed(2), pool=(1, 4))

    # 1,500 computed prompt tokens and 400 of output in 20 s of two devices
    assert found.rate.middle == pytest.approx(40 / 1900)
    assert found.replicas == 4
    assert found.besides_s.middle == pytest.approx(4 * (60 - 40))
    assert "4 are taken to be as fast each" in found.words
    assert "taken to be" not in pace(loads(GPUS), [], probed(2), pool=(1, 1)).words


def test_replicas_on_one_machine_are_no_faster_than_one_and_held_once() -> None:
    found = pace(loads(CPU), [], probed(1), pool=(4, 4))

    assert found.besides_s.middle == pytest.approx(10.0)
    assert "taken to be" not in found.words


def test_a_load_is_in_rows_for_the_simulated_engine_and_in_computed_tokens_where_nothing_is_known() -> None:
    assert loads(CPU).answered(RUN) == 100
    assert loads(GPUS).answered(RUN) == 1000 - 200 + 100
