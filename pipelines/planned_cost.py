"""The hours and dollars of a plan, for its table and its JSON document."""

from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.accounts.closing import money
from pipelines.accounts.forecast import Between, Forecast
from pipelines.accounts.limits import Limits
from pipelines.accounts.probed import Probed
from pipelines.accounts.providers import ListPrice, Offer
from pipelines.config import DevicePrice
from pipelines.outlook import OnDevice, Outlook


def lines(outlook: Outlook) -> Iterator[tuple[str, str]]:
    """Label and text of each line about time and money."""
    expected = outlook.expected
    if expected is None:
        return
    share = expected.cached_share
    cached = "" if share is None else f", {share * 100:.0f} % of them cached ({expected.cached_words})"
    yield "expected", f"{expected.rows_sent:,} rows to engines, {_count(expected.prompt_tokens)} prompt tokens{cached}"
    yield "", f"{_count(expected.output_tokens)} output tokens ({expected.output_words})"
    here = outlook.forecast
    if here is None:
        yield "time", f"not known: {outlook.why}"
    else:
        yield from _here(here)
    if outlook.limits is not None:
        yield "limits", _limits(outlook.limits)
    if outlook.deadline is not None:
        yield "deadline", _deadline(outlook)
    if outlook.rows_within is not None and here is not None:
        within = outlook.rows_within
        yield "budget", f"budget.usd pays for {_count(within)} of the rows"


def tables(outlook: Outlook) -> Iterator[Table]:
    """The same rows on other devices, and at providers."""
    if outlook.elsewhere:
        table = _table(
            "on one replica elsewhere (estimates from the limits, start-up not counted)",
            "device",
            "time",
            "dollars",
            "an hour",
        )
        for one in outlook.elsewhere:
            name = one.device.name if one.devices == 1 else f"{one.devices} x {one.device.name}"
            dollars = f"{money(one.usd)} ({money(one.usd_low)} to {money(one.usd_high)})"
            table.add_row(name, _hours(one.hours), dollars, f"{money(one.price.usd_per_hour)} ({one.price.date})")
        yield table
    if outlook.offers:
        table = _table("at providers (list prices, by our count of tokens)", "model", "batch", "standard", "prices")
        for offer in outlook.offers:
            known = offer.batch or offer.standard
            source = f"{known.source} {known.date or ''}".strip() if known else None
            table.add_row(
                f"{offer.provider} {offer.model}",
                "-" if offer.batch_usd is None else money(offer.batch_usd),
                "-" if offer.standard_usd is None else money(offer.standard_usd),
                ", ".join(filter(None, [source, offer.note])),
            )
        yield table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column(columns[0], style="cyan", no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, overflow="fold")
    return table


def _here(here: Forecast) -> Iterator[tuple[str, str]]:
    replicas = f"{here.replicas:,} replica" + ("s" if here.replicas > 1 else "")
    start = "start-up not known, and not counted" if here.startup_s is None else f"start-up {here.startup_s:,.0f} s"
    yield "time", f"{_hours(here.hours)} on {replicas} ({start})"
    dollars = f"{money(here.usd)} ({money(here.usd_low)} to {money(here.usd_high)})"
    price = f"{money(here.price.usd_per_hour)} an hour ({here.price.source}, {here.price.date})"
    yield "cost", f"{dollars} for {here.device_seconds.middle:,.0f} device-seconds at {price}"
    yield "", f"from {here.words}"


def _limits(found: Limits) -> str:
    parts = {
        "prompts": found.prefill_s,
        "output": found.decode_s,
        "memory": found.memory_s,
        "last row": found.tail_s,
    }
    told = ", ".join(f"{name} {_seconds(value)}" for name, value in parts.items())
    both = f"at least {_seconds(found.ideal_s)}, one after the other {_seconds(found.sequential_s)}"
    return f"{both} on 1 replica ({told}); KV for {found.kv_capacity_tokens:,.0f} tokens"


def _deadline(outlook: Outlook) -> str:
    found = outlook.deadline
    if found is None or found.seconds <= 0:
        return "budget.finish_by has passed"
    if found.replicas is None:
        return f"in {_seconds(found.seconds)}: no number of replicas is done by then"
    high = "no number of them" if found.replicas_high is None else f"{found.replicas_high:,}"
    return f"in {_seconds(found.seconds)}: {found.replicas:,} replicas are done by then; to be sure, {high}"


def _hours(hours: Between) -> str:
    middle, low, high = (_seconds(value * 3600) for value in (hours.middle, hours.low, hours.high))
    return f"{middle} ({low} to {high})"


def _seconds(seconds: float) -> str:
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:,.1f} days"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:,.1f} min"
    return f"{seconds:,.1f} s" if seconds >= 0.1 else f"{seconds * 1000:,.2g} ms"


def _count(between: Between) -> str:
    if round(between.low) == round(between.high):
        return f"{between.middle:,.0f}"
    return f"{between.middle:,.0f} ({between.low:,.0f} to {between.high:,.0f})"


# ------------------------------------------------------------------------------------------------- for programs


def to_dict(outlook: Outlook) -> dict[str, Any]:
    """The outlook as plain values; money as decimal strings."""
    expected, here, least = outlook.expected, outlook.forecast, outlook.limits
    return {
        "expected": None
        if expected is None
        else {
            "rows_sent": expected.rows_sent,
            "prompt_tokens": _between(expected.prompt_tokens),
            "cached_share": expected.cached_share,
            "cached_basis": expected.cached_words,
            "output_tokens": _between(expected.output_tokens),
            "output_basis": expected.output_words,
        },
        "forecast": None if here is None else _forecast_dict(here),
        "forecast_missing": outlook.why,
        "probe": None if outlook.probed is None else _probe_dict(outlook.probed),
        "limits": None if least is None else _limits_dict(least),
        "elsewhere": [_elsewhere_dict(one) for one in outlook.elsewhere],
        "providers": [_offer_dict(one) for one in outlook.offers],
        "deadline": None
        if outlook.deadline is None
        else {
            "seconds": outlook.deadline.seconds,
            "replicas": outlook.deadline.replicas,
            "replicas_high": outlook.deadline.replicas_high,
        },
        "rows_within_budget": None if outlook.rows_within is None else _between(outlook.rows_within),
    }


def _forecast_dict(here: Forecast) -> dict[str, Any]:
    return {
        "estimated": True,
        "basis": here.basis,
        "rests_on": here.words,
        "replicas": here.replicas,
        "devices": here.devices,
        "startup_s": here.startup_s,
        "device_seconds": _between(here.device_seconds),
        "hours": _between(here.hours),
        "usd": _dollars(here.usd_low, here.usd, here.usd_high),
        "price": _price_dict(here.price),
    }


def _probe_dict(found: Probed) -> dict[str, Any]:
    return {
        "asked_s": found.asked_s,
        "startup_s": found.startup_s,
        "held_device_s": found.held_s,
        "all": asdict(found.whole),
        "steady": [asdict(stretch) for stretch in found.steady],
    }


def _limits_dict(found: Limits) -> dict[str, Any]:
    return {
        "device": found.device.name,
        "device_source": found.device.source,
        "device_date": found.device.date,
        "flops": found.flops,
        "bytes": found.bytes,
        "prefill_s": found.prefill_s,
        "decode_s": found.decode_s,
        "compute_s": found.compute_s,
        "memory_s": found.memory_s,
        "tail_s": found.tail_s,
        "ideal_s": found.ideal_s,
        "sequential_s": found.sequential_s,
        "kv_capacity_tokens": found.kv_capacity_tokens,
        "kv_bytes_per_token": found.kv_bytes_per_token,
        "weight_bytes": found.weight_bytes,
    }


def _elsewhere_dict(one: OnDevice) -> dict[str, Any]:
    return {
        "device": one.device.name,
        "devices": one.devices,
        "estimated": True,
        "hours": _between(one.hours),
        "usd": _dollars(one.usd_low, one.usd, one.usd_high),
        "price": _price_dict(one.price),
    }


def _offer_dict(offer: Offer) -> dict[str, Any]:
    def price(told: ListPrice | None) -> dict[str, Any] | None:
        if told is None:
            return None
        return {
            "input_usd_per_million": str(told.input),
            "output_usd_per_million": str(told.output),
            "source": told.source,
            "date": told.date,
        }

    return {
        "provider": offer.provider,
        "model": offer.model,
        "estimated": True,
        "batch_usd": None if offer.batch_usd is None else _usd(offer.batch_usd),
        "standard_usd": None if offer.standard_usd is None else _usd(offer.standard_usd),
        "batch_price": price(offer.batch),
        "standard_price": price(offer.standard),
        "note": offer.note,
    }


def _between(value: Between) -> dict[str, float]:
    return {"low": value.low, "middle": value.middle, "high": value.high}


def _dollars(low: Decimal, middle: Decimal, high: Decimal) -> dict[str, str]:
    return {"low": _usd(low), "middle": _usd(middle), "high": _usd(high)}


def _usd(estimate: Decimal) -> str:
    return f"{estimate:.9f}"


def _price_dict(price: DevicePrice) -> dict[str, str]:
    return {"usd_per_hour": str(price.usd_per_hour), "source": price.source, "date": price.date}
