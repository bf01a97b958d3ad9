import random
from typing import Any

import pytest

from pipelines.sink.committed import Committed
from pipelines.sink.receipt import Receipt
from tests.receipts import receipt


def unit(attempt: str, start: int = 0, stop: int = 3, **fields: Any) -> Receipt:
    return receipt(start=start, stop=stop, attempt=attempt, data_file=f"{attempt}.parquet", **fields)


def current(view: Committed) -> set[str]:
    return {one.attempt for one in view.current()}


def test_of_two_receipts_for_one_unit_the_first_counts() -> None:
    view = Committed()

    change = view.add([unit("a"), unit("b")])

    assert current(view) == {"a"}
    assert [one.attempt for one in change.new] == ["a"]
    assert view.knows("b")


def test_a_receipt_that_is_in_the_ledger_twice_is_no_news() -> None:
    view = Committed()
    view.add([unit("a")])

    change = view.add([unit("a")])

    assert (change.new, change.gone) == ((), ())
    assert current(view) == {"a"}


def test_a_receipt_that_says_it_replaces_the_current_one_does() -> None:
    view = Committed()

    change = view.add([unit("a"), unit("b", replaces="a"), unit("c", replaces="a")])

    assert current(view) == {"b"}  # c came for what was no longer there
    assert [one.attempt for one in change.new] == ["b"]
    assert change.gone == ()  # a came and went within one call: no table ever had it


def test_a_new_fingerprint_replaces_unit_by_unit_and_back_again() -> None:
    view = Committed()
    view.add([unit("a", 0, 3), unit("b", 3, 6)])

    change = view.add([unit("c", 0, 3, fingerprint="g")])
    assert current(view) == {"b", "c"}
    assert ([r.attempt for r in change.new], [r.attempt for r in change.gone]) == (["c"], ["a"])

    view.add([unit("d", 0, 3)])  # the prompt was put back: the file of `a` may be gone by now
    assert current(view) == {"b", "d"}


def test_a_changed_shard_replaces_its_output_only_when_all_its_rows_are_there() -> None:
    view = Committed()
    view.add([unit("a", 0, 3), unit("b", 3, 5, last=True)])

    first = view.add([unit("c", 2, 6, identity="v2", last=True)])
    assert current(view) == {"a", "b"}
    assert (first.new, first.gone) == ((), ())
    assert {one.attempt for one in view.waiting()} == {"c"}

    second = view.add([unit("d", 0, 2, identity="v2")])
    assert current(view) == {"c", "d"}
    assert {one.attempt for one in second.gone} == {"a", "b"}
    assert list(view.waiting()) == []


def test_other_cuts_of_the_same_shard_never_show_a_row_twice() -> None:
    view = Committed()
    view.add([unit("a", 0, 3)])

    view.add([unit("b", 0, 4), unit("c", 2, 4), unit("d", 3, 6)])

    assert current(view) == {"a", "d"}


def test_other_cuts_of_the_same_input_do_not_count_whether_current_or_waiting() -> None:
    view = Committed()
    view.add([unit("a", 0, 3), unit("b", 2, 4)])
    assert {one.attempt for one in view.receipts()} == {"a"}  # counted as done, row 3 would never be seen

    view.add([unit("c", 0, 3, identity="v2"), unit("d", 0, 2, identity="v2"), unit("e", 2, 4, identity="v2")])
    view.add([unit("f", 3, 4, identity="v2", last=True)])

    assert current(view) == {"c", "f"}


def test_a_shard_without_rows_is_done_by_a_unit_without_rows() -> None:
    view = Committed()

    view.add([unit("a", 0, 0, last=True)])

    assert current(view) == {"a"}


@pytest.mark.parametrize("seed", range(30))
def test_whatever_comes_in_whatever_portions_no_row_is_twice_and_the_view_is_the_same(seed: int) -> None:
    dice = random.Random(seed)
    cuts = {"v1": [(0, 2), (2, 5), (5, 6)], "v2": [(0, 3), (3, 4), (4, 8)], "v3": [(0, 1), (1, 6)]}
    ledger: list[Receipt] = []
    for number in range(40):
        version = dice.choice(sorted(cuts))
        start, stop = dice.choice(cuts[version])
        last = (start, stop) == cuts[version][-1]
        again = dice.choice([None, *(one.attempt for one in ledger[-3:])])
        shard, words = dice.choice("pq"), dice.choice("fg")
        ledger.append(
            unit(f"{number}", start, stop, identity=version, last=last, fingerprint=words, shard=shard, replaces=again)
        )
        if dice.random() < 0.2:
            ledger.append(dice.choice(ledger))  # a commit written twice

    at_once, bit_by_bit = Committed(), Committed()
    files: set[str] = set()
    at_once.add(ledger)
    for one in ledger:
        change = bit_by_bit.add([one])
        files = files - {gone.attempt for gone in change.gone} | {new.attempt for new in change.new}
        rows = [(r.shard, row) for r in bit_by_bit.current() for row in range(r.start, r.stop)]
        assert len(rows) == len(set(rows)), seed
        assert len({(r.shard, r.identity) for r in bit_by_bit.current()}) <= 2, seed

    assert current(at_once) == current(bit_by_bit) == files, seed
