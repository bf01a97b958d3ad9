"""Outlook: from the sample and the ledger to hours and dollars, here, on other devices, and at providers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

from actors.engine import EngineConfig
from pipelines.accounts import run_summary
from pipelines.accounts.account import left_open
from pipelines.accounts.cost import price_of
from pipelines.accounts.devices import DEVICES, Device
from pipelines.accounts.forecast import (
    Between,
    Deadline,
    Forecast,
    assumed_rate,
    cost,
    earlier_runs,
    forecast,
    replicas_for,
    rows_within,
)
from pipelines.accounts.limits import Limits, Work, kv_capacity, limits
from pipelines.accounts.probed import Probed
from pipelines.accounts.providers import Offer, offers
from pipelines.accounts.shape import Shape, numbers_of
from pipelines.ahead import Ahead
from pipelines.config import BudgetConfig, DevicePrice, RunConfig, UserError, finish_by
from pipelines.draw import Drawn
from pipelines.expected import Expected, expect, work_of
from pipelines.machine import Machine
from pipelines.pace import Loads, Pace, pace
from pipelines.preparation import Prepared
from pipelines.sink.costs import Costs
from pipelines.sink.receipt import Receipt

MOST_RUNS = 50  # the newest runs of an output that are asked how long they took
_TENSOR_PARALLEL = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """The same rows on one replica of another device, by its limits and the assumed efficiency."""

    device: Device
    devices: int  # of the one replica
    hours: Between
    usd_low: Decimal
    usd: Decimal
    usd_high: Decimal
    price: DevicePrice


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the rows to do will take. None: not known, and `why` says what is missing."""

    expected: Expected | None
    forecast: Forecast | None
    why: str | None  # there is no forecast
    limits: Limits | None  # of the expected work, on the hardware at hand
    elsewhere: tuple[OnDevice, ...]
    offers: tuple[Offer, ...]
    deadline: Deadline | None  # budget.finish_by
    rows_within: Between | None  # budget.usd
    probed: Probed | None = None  # None: no engine was started


def outlook(
    config: RunConfig,
    prepared: Prepared,
    ahead: Ahead,
    drawn: Drawn,
    receipts: Sequence[Receipt],
    on: Machine,
    *,
    now: float,
    probed: Probed | None = None,
) -> Outlook:
    """Estimate what `ahead` takes. `receipts`: all of the output's; `now` in seconds since the epoch.

    What was `probed` just now goes before what earlier runs took.
    """
    nothing = Outlook(
        expected=None,
        forecast=None,
        why=None,
        limits=None,
        elsewhere=(),
        offers=(),
        deadline=None,
        rows_within=None,
        probed=probed,
    )
    if not ahead.rows or not len(drawn.prompt_tokens):
        return nothing
    asked = [receipt for receipt in receipts if receipt.fingerprint == prepared.fingerprint.digest]
    engine, gpu, shape, device = prepared.engine, on.gpu, on.shape, on.device
    runs = earlier_runs(
        run_summary.newest(prepared.sink_uri, MOST_RUNS),
        fingerprint=prepared.fingerprint.digest,
        device=gpu,
        engine_kind=engine.kind,
    )
    expected = expect(config, prepared, ahead, drawn, asked, runs, probed)
    if not expected.rows_sent:
        return replace(nothing, expected=expected)
    work = work_of(expected, drawn)
    quantized = prepared.model.quantization
    found = limits(shape, device, engine, work, quantized=quantized) if shape and device else None
    price = _price(config, gpu)
    here: Forecast | None = None
    why = None
    if price is None:
        why = f"pricing={config.pricing.name} has no price for {gpu or 'cpu'}"
    elif probed or runs or found is not None:
        loads = Loads(engine=engine, shape=shape, device=device, quantized=quantized)
        here = _forecast(loads, expected, pace(loads, runs, probed, pool=config.engine.pool), price)
    else:
        unknown = f"{gpu or 'this CPU'} or the model's shape is not in the tables"
        if engine.kind == "simulated":
            unknown = "the simulated engine has no limits"
        why = f"{unknown}, and no earlier run of this output tells; plan.probe_s=60 would"
    budget, ends = config.budget, config.budget.finish_by
    return Outlook(
        expected=expected,
        forecast=here,
        why=why,
        limits=found,
        elsewhere=tuple(_elsewhere(config, engine, shape, quantized, work)) if shape else (),
        offers=tuple(
            offers(
                rows=expected.rows_sent,
                prompt_tokens=round(expected.prompt_tokens.middle),
                output_tokens=round(expected.output_tokens.middle),
                at=datetime.fromtimestamp(now, UTC),
            )
        ),
        deadline=(
            replicas_for(here, _seconds_left(ends, now), units=ahead.units, one_machine=engine.device == "cpu")
            if here and ends
            else None
        ),
        rows_within=(
            rows_within(here, _left_usd(budget, prepared.sink_uri), ahead.rows)
            if here and budget.usd is not None
            else None
        ),
        probed=probed,
    )


# ------------------------------------------------------------------------------------------------------ here


def _forecast(loads: Loads, expected: Expected, found: Pace, price: DevicePrice) -> Forecast:
    share = expected.cached_share or 0.0

    def at(prompt: float, output: float) -> float:
        return loads.of(expected.rows_sent, prompt, prompt * share, output)

    p, d = expected.prompt_tokens, expected.output_tokens
    middle = at(p.middle, d.middle)
    by_prompt = Between(low=at(p.low, d.middle), middle=middle, high=at(p.high, d.middle))
    by_output = Between(low=at(p.middle, d.low) / middle, middle=1.0, high=at(p.middle, d.high) / middle)
    return forecast(
        load=by_prompt.times(by_output),
        rate=found.rate,
        basis=found.basis,
        words=found.words,
        prompt_tokens=p,
        cached_tokens=p.middle * share,
        output_tokens=d,
        output_words=expected.output_words,
        replicas=found.replicas,
        devices_per_replica=loads.engine.devices,
        one_machine=loads.engine.device == "cpu",
        startup_s=found.startup_s,
        overhead_device_s=found.besides_s,
        price=price,
    )


def _seconds_left(ends: str, now: float) -> float:
    when = finish_by(ends)
    return when.total_seconds() if isinstance(when, timedelta) else when.timestamp() - now


def _left_usd(budget: BudgetConfig, sink_uri: str) -> Decimal:
    """Of a budget in dollars, what earlier runs have left of it."""
    usd = budget.usd or Decimal(0)
    if budget.scope != "output":
        return usd
    return max(Decimal(0), usd - Costs(sink_uri).usd() - left_open(sink_uri))


def _price(config: RunConfig, gpu: str | None) -> DevicePrice | None:
    try:
        return price_of(gpu, config.pricing)
    except UserError:
        return None


# -------------------------------------------------------------------------------------------------------- elsewhere


def _elsewhere(
    config: RunConfig, engine: EngineConfig, shape: Shape, quantized: str | None, work: Work
) -> list[OnDevice]:
    """Each device that has a price, as few of them as hold the model."""
    found = []
    for device in DEVICES:
        price = next((told for key, told in config.pricing.devices.items() if key.lower() == device.name.lower()), None)
        if price is None:
            continue
        one = _engine_on(device, engine, shape, quantized)
        least = None if one is None else limits(shape, device, one, work, quantized=quantized)
        if one is None or least is None:
            continue
        steady = assumed_rate().times(least.sequential_s)
        held = steady.times(one.devices)
        found.append(
            OnDevice(
                device=device,
                devices=one.devices,
                hours=steady.times(1 / 3600),
                usd_low=cost(held.low, price),
                usd=cost(held.middle, price),
                usd_high=cost(held.high, price),
                price=price,
            )
        )
    return sorted(found, key=lambda one: one.usd)


def _engine_on(device: Device, engine: EngineConfig, shape: Shape, quantized: str | None) -> EngineConfig | None:
    """The engine on as few of these devices as hold the weights and one row of full length; None: eight do not."""
    dtype: Literal["bfloat16", "float16"] = "bfloat16" if "bfloat16" in device.flops else "float16"
    for count in _TENSOR_PARALLEL:
        one = replace(engine, device="gpu", dtype=dtype, tensor_parallel=count, pipeline_parallel=1)
        weight = shape.weight_bytes(numbers_of(dtype, quantized or engine.quantization), dtype)
        if kv_capacity(shape, device, one, weight) >= engine.max_model_len:
            return one
    return None
