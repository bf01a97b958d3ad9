"""What held a run back, and what would help; what the end of a run says of its limits."""

import dataclasses

import pytest

from actors.engine import EngineConfig
from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.bottleneck import Ceiling, bottleneck
from pipelines.accounts.closing import lines
from pipelines.accounts.devices import device_of
from pipelines.accounts.limits import Work
from pipelines.accounts.shape import Shape
from pipelines.accounts.starvation import Starved
from tests.accounts_samples import summary
from tests.unit.accounts.test_limits import LLAMA_8B

ENGINE = EngineConfig(kind="vllm", model="m", model_name="m", device="gpu", dtype="bfloat16")
WORK = Work.of_totals(rows=1000, prompt_tokens=1_000_000, cached_tokens=0, output_tokens=10_000)


def of(parts: Parts | None, steady_s: float | None = 100.0, device: str | None = "NVIDIA H100 80GB HBM3") -> Ceiling:
    return Ceiling.of(WORK, steady_s, parts, ENGINE, Shape.of(LLAMA_8B), device_of(device), replicas=1)


@pytest.mark.parametrize("part", ["startup", "prefill", "decode", "tail", "failed"])
def test_the_largest_part_of_the_time_is_what_held_a_run_back(part: str) -> None:
    spent = dict.fromkeys(("startup", "prefill", "decode", "idle", "tail", "failed"), 1 * NS) | {part: 15 * NS}

    found = bottleneck(Parts(**spent), None, ENGINE)

    assert found is not None
    assert found.part == {"startup": "start-up", "failed": "failed work"}.get(part, part)
    assert found.share == 0.75


def test_engines_that_waited_are_put_down_to_the_stage_that_starved_them_where_that_was_seen() -> None:
    waited = Parts(idle=9 * NS, decode=1 * NS)

    unseen = bottleneck(waited, None, ENGINE)
    seen = bottleneck(waited, None, ENGINE, starved=Starved(stage="read", share=0.8))

    assert unseen is not None and seen is not None
    assert (unseen.part, seen.part) == ("idle", "read")
    assert "cluster.read_tasks" in seen.change
    assert "engines waited for rows to be read for 90 % of the devices' time" in seen.sentence


def test_engines_that_were_never_empty_but_had_room_most_of_the_time_were_starved() -> None:
    busy = Parts(decode=10 * NS)

    half_empty = bottleneck(busy, None, ENGINE, starved=Starved(stage="handling", share=1.0))
    nearly_full = bottleneck(Parts(decode=9 * NS, idle=1 * NS), None, ENGINE, starved=Starved(stage="read", share=0.1))

    assert half_empty is None or half_empty.part == "decode"  # a tie
    found = bottleneck(Parts(decode=6 * NS, startup=4 * NS), None, ENGINE, starved=Starved(stage="handling", share=0.7))
    assert found is not None and (found.part, found.share) == ("handling", 0.7)
    assert nearly_full is not None and nearly_full.part == "decode"


@pytest.mark.parametrize(
    ("device", "advised"),
    [("NVIDIA H100 80GB HBM3", True), ("NVIDIA A100-SXM4-80GB", False), (None, False)],
)
def test_fp8_is_advised_where_the_device_computes_in_it_and_only_until_it_is_set(device: str, advised: bool) -> None:
    decoding = Parts(decode=9 * NS, prefill=1 * NS)
    work = Work.of_totals(rows=1000, prompt_tokens=100_000, cached_tokens=0, output_tokens=100_000)

    def change(**engine: str) -> str:
        told = dataclasses.replace(ENGINE, **engine)  # type: ignore[arg-type]
        held = Ceiling.of(work, 9.0, decoding, told, Shape.of(LLAMA_8B), device_of(device), replicas=1).bottleneck
        assert held is not None
        return held.change

    assert change().startswith("precision=fp8") is advised
    weights = change(quantization="fp8_per_tensor")
    assert weights.startswith("precision.kv_cache_dtype=fp8") is advised
    assert "fp8" not in change(quantization="fp8_per_tensor", kv_cache_dtype="fp8")


def test_the_gain_is_at_most_the_time_of_the_part_gone_and_is_called_an_estimate() -> None:
    found = bottleneck(Parts(startup=75 * NS, decode=25 * NS), None, ENGINE)

    assert found is not None
    assert found.gain == pytest.approx(4.0)
    assert "start-up took 75 % of the devices' time" in found.sentence
    assert "at most 4.0 x as fast (an estimate)" in found.sentence


def test_a_run_without_any_time_has_no_bottleneck() -> None:
    assert bottleneck(Parts(), None, ENGINE) is None


def test_the_end_of_a_run_shows_its_share_of_the_limits_and_what_held_it_back() -> None:
    ceiling = of(Parts(prefill=90 * NS, decode=10 * NS))
    assert ceiling.limits is not None

    told = dict(lines(summary(ceiling=ceiling), None))

    mfu = ceiling.limits.compute_s / 100.0
    assert f"MFU {mfu * 100:.1f} %" in told["limits"]
    assert "H100" in told["limits"]
    assert "precision=fp8" in told["held back"]
    assert summary(ceiling=ceiling).to_dict()["limits"]["mfu"] == mfu


def test_a_share_of_more_than_all_is_told_to_be_one() -> None:
    def told(steady_s: float) -> str:
        return dict(lines(summary(ceiling=of(Parts(prefill=NS), steady_s)), None))["limits"]

    limits = of(Parts(prefill=NS)).limits
    assert limits is not None

    assert "more than is known of the device" in told(limits.ideal_s * 0.9)
    assert "more than is known" not in told(limits.ideal_s * 1.1)


@pytest.mark.parametrize(("steady_s", "device"), [(100.0, None), (None, "NVIDIA H100"), (0.0, "NVIDIA H100")])
def test_shares_are_absent_where_hardware_or_time_is_not_known(steady_s: float | None, device: str | None) -> None:
    ceiling = of(None, steady_s, device)

    document = ceiling.to_dict()

    assert ceiling.lines() == []
    assert (document["mfu"], document["mbu_at_least"], document["bottleneck"]) == (None, None, None)
    assert summary().to_dict()["limits"] is None
