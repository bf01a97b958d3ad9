"""Sums over receipts, and the shares and rates that follow."""

import json
from decimal import Decimal

import pytest

from pipelines.accounts.summary import Totals, printable
from pipelines.source.units import UNREADABLE_SHARD
from tests.accounts_samples import receipt, summary


def test_totals_are_the_sums_of_the_receipts_by_hand() -> None:
    receipts = [
        receipt(0, 10, errors={"empty": 2}, prompt_tokens=100, cached_tokens=30, output_tokens=8, device_seconds=0.1),
        receipt(10, 15, errors={"empty": 1, "too_long": 1}, prompt_tokens=50, output_tokens=3, device_seconds=0.2),
    ]

    totals = Totals.of(receipts)

    assert (totals.units, totals.rows_in, totals.rows_ok, totals.rows_error) == (2, 15, 11, 4)
    assert totals.errors_by_type == {"empty": 3, "too_long": 1}
    assert (totals.prompt_tokens, totals.cached_tokens, totals.output_tokens) == (150, 30, 11)
    assert totals.device_seconds == Decimal("0.3")  # 0.1 + 0.2 in floats is more
    assert totals.cache_hit_share == Decimal("0.2")
    assert totals == Totals.of(receipts[:1]) + Totals.of(receipts[1:])


def test_shares_of_nothing_are_absent_and_not_zero() -> None:
    assert (Totals().accuracy, Totals().error_rate, Totals().cache_hit_share) == (None, None, None)
    assert Totals.of([receipt(0, 1, gold_rows=0, gold_correct=0)]).accuracy is None
    idle = summary(totals=Totals(), steady_s=None)
    assert (idle.rows_per_s, idle.tokens_per_s) == (None, None)


def test_accuracy_counts_the_rows_with_a_gold_label_alone_also_beside_units_without() -> None:
    totals = Totals.of(
        [receipt(0, 9, gold_rows=8, gold_correct=5), receipt(9, 20), receipt(20, 30, gold_rows=0, gold_correct=0)]
    )

    assert totals.accuracy == Decimal("0.625")


def test_rates_are_those_of_the_steady_time_start_up_apart() -> None:
    assert summary().rows_per_s == 30.0
    assert summary().tokens_per_s == 4100.0


def test_the_summary_as_json_has_exact_money_and_null_where_nothing_was_measured() -> None:
    told = json.loads(json.dumps(summary(startup_s=None).to_dict()))

    assert told["bill"]["usd"] == "0.04"
    assert told["this_run"]["rows_error"] == 3
    assert told["startup_s"] is None
    assert told["gpus"] == []
    assert Decimal(told["this_run"]["accuracy"]) == Decimal(198) / 297


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x9b31m", "a\rb", "a\nb", "\x07", "\u202eabc", "\ud800"])
def test_what_a_terminal_would_obey_is_written_out(hostile: str) -> None:
    assert printable(hostile).isprintable()
    assert "\\" in printable(hostile)


def test_ordinary_text_of_any_language_is_left_as_it_is() -> None:
    assert printable("naïve 日本語 عربى 🙂 [bold]") == "naïve 日本語 عربى 🙂 [bold]"


def test_the_shards_that_broke_off_are_counted_by_the_dead_letters_that_stand_for_their_rest() -> None:
    torn = Totals.of(
        [receipt(0, 5, errors={UNREADABLE_SHARD: 1, "empty": 2}), receipt(0, 1, errors={UNREADABLE_SHARD: 1})]
    )

    assert torn.shards_unreadable == 2
