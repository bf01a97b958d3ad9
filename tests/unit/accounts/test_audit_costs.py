"""verify's checks of money, over outputs whose figures are known, each with one wrong figure planted."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.audit_costs import audit_costs
from pipelines.sink import costs as sink_costs
from pipelines.sink.costs import Cost, Costs
from pipelines.sink.ledger import Ledger
from tests.report_outputs import costs_of, ended, opened, unit

RUN = "20261101T000000Z-aaaaaa"
# Two units of 108.5 device-seconds each: 217 s of prefill and decode, of 400 s that were held, at $0.36 an hour.
TOKENS: Mapping[str, Any] = {
    "prompt_tokens": 20_000,
    "cached_tokens": 5_000,
    "output_tokens": 500,
    "device_seconds": 108.5,
}


def wrong(sink: Path) -> dict[str, list[str]]:
    checks = audit_costs(str(sink), Ledger.open(str(sink), create=False))
    assert [check.name for check in checks] == ["costs", "shares"]
    return {check.name: check.findings for check in checks if check.found}


def output(sink: Path, *, change: Mapping[str, Any] | None = None, **more: Any) -> Path:
    """A run of two units, the second of which has a receipt with these changes."""
    opened_ = opened(sink)
    units = [unit(sink, RUN, 0, ["good"] * 10, **TOKENS), unit(sink, RUN, 10, ["bad"] * 10, **TOKENS)]
    ended(sink, opened_, RUN, [units[0], replace(units[1], **(change or {}))], **more)
    return sink


def book(sink: Path, *lines: Cost) -> None:
    Costs(str(sink), epoch=opened(sink).ledger.epoch, run="later").book(lines)


def line(**changes: Any) -> Cost:
    one = next(one for one in costs_of(RUN, Parts(idle=100 * NS)) if one.part == "idle")
    return replace(one, **changes)


def test_a_run_whose_lines_bill_and_receipts_agree_is_right_and_all_were_looked_at(tmp_path: Path) -> None:
    sink = output(tmp_path / "sink")

    assert wrong(sink) == {}
    costs, shares = audit_costs(str(sink), Ledger.open(str(sink), create=False))
    assert (costs.checked, shares.checked) == (1, 2)


def test_guesses_that_were_thrown_away_are_work_that_receipts_tell_of(tmp_path: Path) -> None:
    parts = Parts(startup=80 * NS, prefill=180 * NS, decode=7 * NS, rejected=30 * NS, idle=103 * NS)

    assert wrong(output(tmp_path / "sink", parts=parts)) == {}


def test_a_line_of_other_dollars_than_its_seconds_cost_is_named(tmp_path: Path) -> None:
    sink = output(tmp_path / "sink")
    book(sink, line(usd=Decimal("0.0101")))  # 100 s are $0.01

    assert wrong(sink)["costs"] == [
        f"run {RUN}, idle on 2026-11-01: $0.0101, but 100.0 device-seconds at $0.36 an hour are $0.01",
        f"run {RUN} was billed $0.04; its parts in the table of costs add up to $0.0501",
    ]


@pytest.mark.parametrize(("share", "right"), [("0.0009", True), ("0.0011", False)])
def test_parts_that_do_not_add_up_to_the_bill_are_told_from_a_thousandth_on(
    share: str, right: bool, tmp_path: Path
) -> None:
    sink = output(tmp_path / "sink")
    ns = int(400 * NS * Decimal(share))
    book(sink, line(device_ns=ns, usd=Decimal(ns) * Decimal("0.36") / (3600 * NS)))

    assert (wrong(sink) == {}) is right


def test_a_run_that_worked_and_of_which_no_line_tells_is_named_unless_its_account_is_open(tmp_path: Path) -> None:
    sink = output(tmp_path / "sink", parts=None)

    assert wrong(sink)["costs"] == [
        f"run {RUN} did 217.0 device-seconds of work, and the table of costs has nothing of it"
    ]
    sink_costs.keep_open(str(sink), RUN, {})
    assert wrong(sink) == {}


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        ({"device_seconds": 58.5}, "shares", "was billed 217.0 device-seconds of work, its receipts tell of 167.0"),
        ({"device_seconds": 158.5}, "shares", "has receipts of 267.0 device-seconds, of which 217.0 were billed as"),
        ({"device_seconds": -1.0}, "shares", "a.jsonl from row 10: -1.0 device-seconds"),
        ({"cached_tokens": 20_001}, "shares", "a.jsonl from row 10: 20,001 of 20,000 prompt tokens cached"),
    ],
)
def test_a_receipt_whose_share_cannot_be_is_found(
    change: dict[str, Any], check: str, said: str, tmp_path: Path
) -> None:
    sink = output(tmp_path / "sink", change=change)

    assert any(said in told for told in wrong(sink)[check])


def test_of_a_run_that_was_killed_before_its_account_was_renewed_nothing_is_billed_and_nothing_is_wrong(
    tmp_path: Path,
) -> None:
    sink = tmp_path / "sink"
    ended(sink, opened(sink), RUN, [unit(sink, RUN, 0, ["good"], device_seconds=4.0)], parts=None, finish=False)

    assert wrong(sink) == {}


def test_what_was_booked_as_lost_may_be_found_again_in_a_unit_that_a_later_run_took_over(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    parts = Parts(startup=80 * NS, prefill=105 * NS, decode=3 * NS + NS // 2, failed=111 * NS + NS // 2, idle=100 * NS)
    output(sink, parts=parts)

    assert wrong(sink) == {}
