"""Prices by device, device-seconds, dollars per million tokens: by hand."""

from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest

from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.cost import Tokens, bill, dollars, old_price, price_of
from pipelines.config import DevicePrice, OwnHardware, PricingConfig, UserError

PRICE = DevicePrice(usd_per_hour=Decimal(3), source="list", date="2026-10-01")


def priced(**usd_per_hour: str) -> PricingConfig:
    devices = {
        key: DevicePrice(usd_per_hour=Decimal(usd), source="list", date="2026-10-01")
        for key, usd in usd_per_hour.items()
    }
    return PricingConfig(name="on_demand", devices=devices)


def usd_per_hour(device: str | None, pricing: PricingConfig) -> Decimal:
    return price_of(device, pricing).usd_per_hour


def test_a_device_is_priced_by_the_first_key_that_stands_in_its_name_as_a_word_case_aside() -> None:
    pricing = priced(a10="1.0", a100="2.0", l4="3.0", h100="4.0", H100x="5.0", cpu="0.1")

    assert usd_per_hour("NVIDIA A100-SXM4-80GB", pricing) == Decimal("2.0")  # a10 comes first, but is not a word of it
    assert usd_per_hour("NVIDIA L4", pricing) == Decimal("3.0")
    assert usd_per_hour("nvidia h100 80GB HBM3", pricing) == Decimal("4.0")
    assert usd_per_hour(None, pricing) == Decimal("0.1")


@pytest.mark.parametrize("device", ["NVIDIA L40S", "NVIDIA A10G", "NVIDIA GA10", "TPU v6e"])
def test_a_device_without_a_price_is_refused_with_its_name_the_keys_and_the_file(device: str) -> None:
    with pytest.raises(UserError) as refused:
        price_of(device, priced(A10="1.0", L4="2.0"))

    assert f"{device!r}" in str(refused.value)
    assert "A10, L4" in str(refused.value)
    assert "conf/pricing/on_demand.yaml" in str(refused.value)


def test_dollars_per_million_tokens_by_hand() -> None:
    # 2 h of one device at 3 dollars: 6 dollars, for 1.5 M computed tokens (1 M read, 0.5 M written): 4 per million.
    # Of 2 M prompt tokens half were cached, so a prompt token costs half of that: 2 per million.
    # Half an hour of it was work: a quarter of each. A cached token saved one that costs 1 per million.
    parts = Parts(startup=4500 * NS, prefill=1200 * NS, decode=600 * NS, idle=900 * NS)
    tokens = Tokens(prompt=2_000_000, cached=1_000_000, output=500_000)

    found = bill(parts, PRICE, tokens, device_name="NVIDIA H100")

    assert found.device == "NVIDIA H100"
    assert found.device_seconds == 7200
    assert found.usd == 6
    assert found.usd_per_million_input == 2
    assert found.usd_per_million_output == 4
    assert found.usd_per_million_total == Decimal("2.4")
    assert found.usd_per_million_input * 2 + found.usd_per_million_output / 2 == found.usd
    assert found.useful_usd_per_million_input == Decimal("0.5")
    assert found.useful_usd_per_million_output == 1
    assert found.useful_usd_per_million_total == Decimal("0.6")
    assert found.saved_by_cache_usd == 1
    assert sum(found.usd_of(ns) for _, ns in parts.known()) == 6


def test_what_rows_that_were_not_asked_saved_is_reckoned_at_the_useful_price() -> None:
    # Useful: 1.50 dollars for 1 M read and 0.5 M written, 1 per million. Saved: 3 M read and 1 M written by 40 rows.
    parts = Parts(startup=4500 * NS, prefill=1200 * NS, decode=600 * NS, idle=900 * NS)
    asked = Tokens(prompt=1_000_000, output=500_000)
    saved = replace(asked, saved_prompt=3_000_000, saved_output=1_000_000, rows_carried=10, rows_shared=30)

    found = bill(parts, PRICE, saved, device_name=None)

    assert found.saved_by_dedup_usd == 3
    assert found.saved_by_carry_usd == 1
    assert found.saved_by_cache_usd is None
    assert bill(parts, PRICE, asked, device_name=None).saved_by_carry_usd is None


def test_a_price_per_token_is_absent_where_there_are_no_such_tokens() -> None:
    minute = Parts(decode=60 * NS)

    nothing = bill(minute, PRICE, Tokens(), device_name=None)
    read = bill(minute, PRICE, Tokens(prompt=10), device_name=None)
    cached = bill(minute, PRICE, Tokens(prompt=10, cached=10), device_name=None)

    assert nothing.usd == Decimal("0.05")
    assert (nothing.usd_per_million_input, nothing.usd_per_million_output, nothing.usd_per_million_total) == (None,) * 3
    assert read.usd_per_million_input == 5000
    assert read.usd_per_million_output is None
    assert cached.usd_per_million_input is None
    assert cached.usd_per_million_total == 5000


@pytest.mark.parametrize(("today", "old"), [("2026-12-30", False), ("2026-12-31", True), ("2026-01-01", False)])
def test_a_price_of_more_than_90_days_is_told_to_be_old(today: str, old: bool) -> None:
    told = old_price(PRICE, today=date.fromisoformat(today))

    assert (told is not None) == old
    if told:
        assert told.startswith("warning: the price of $3 an hour is 91 days old (list, 2026-10-01)")


def test_hardware_of_ones_own_costs_power_and_its_share_of_the_purchase() -> None:
    # 1.2 kW at 25 cents, and 26,280 dollars over three years of 8,760 h.
    own = OwnHardware(
        watts=Decimal(1200), usd_per_kwh=Decimal("0.25"), purchase_usd=Decimal(26_280), hours=Decimal(26_280)
    )
    price = DevicePrice(own=own, source="our own", date="2026-11-01")

    assert price.usd_per_hour == Decimal("1.3")
    with pytest.raises(ValueError, match="give one of them"):
        DevicePrice(own=own, usd_per_hour=Decimal("1.2"), source="our own", date="2026-11-01")


def test_a_million_small_sums_of_money_have_no_error() -> None:
    price = DevicePrice(usd_per_hour=Decimal("0.36"), source="list", date="2026-10-01")

    assert sum((dollars(Decimal("0.1"), price) for _ in range(100_000)), Decimal(0)) == Decimal(1)
