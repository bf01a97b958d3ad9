"""Prompts sorted over a corpus: their order, their pieces, and what is kept of their answers."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.stages.ordered import KEYED, Ordered, order_of, unanswered, wait_for_answers, written

BLOCK = 4
prompts = st.lists(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=30).map(tuple), min_size=1, max_size=40)


def lines(rows: Sequence[tuple[int, ...]]) -> pa.Table:
    """Sorted lines of KEYED; rows with one prompt have one key."""
    ids = [np.array(row, np.int32) for row in rows]
    keys = [hashlib.blake2b(bytes(row), digest_size=16).hexdigest() for row in rows]
    table = pa.table(
        [
            [order_of(each, key, BLOCK) for each, key in zip(ids, keys, strict=True)],
            keys,
            pa.array(rows, pa.list_(pa.int32())),
            pa.repeat("place", len(rows)),
            pa.array(range(len(rows)), pa.int64()),
        ],
        schema=KEYED,
    )
    return table.sort_by("_order")


@settings(deadline=None)
@given(prompts)
def test_prompts_that_share_full_blocks_stand_together(rows: list[tuple[int, ...]]) -> None:
    ordered = [tuple(row) for row in lines(rows)["_prompt"].to_pylist()]

    for depth in range(BLOCK, 30, BLOCK):
        groups = [row[:depth] for row in ordered if len(row) >= depth]
        runs = sum(before != here for before, here in zip([None, *groups], groups, strict=False))
        assert runs == len(set(groups))


@settings(deadline=None)
@given(prompts, st.integers(1, 9))
def test_each_different_prompt_is_in_one_piece_and_pieces_cost_about_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, ...]], unit_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")

    found = written(lines(rows), str(folder), block=BLOCK, unit_rows=unit_rows, answer_tokens=2)

    names = [piece.name for _, piece in sorted(found, key=lambda one: one[0])]
    stored = [pq.read_table(folder / "prompts" / name) for name in names]
    asked = [tuple(row) for table in stored for row in table["_prompt"].to_pylist()]
    assert sorted(asked) == sorted(set(rows))
    assert asked == list(dict.fromkeys(tuple(row) for row in lines(rows)["_prompt"].to_pylist()))
    assert sum(piece.tokens for _, piece in found) == sum(map(len, set(rows)))
    costs = [piece.tokens - piece.shared + 2 * piece.rows for _, piece in found]
    dearest = max(len(row) for row in rows) + 2
    even = sum(costs) / max(1, round(len(asked) / unit_rows))
    assert max(costs) <= even + dearest


def test_of_the_tokens_of_sorted_prompts_those_of_different_blocks_are_computed(tmp_path: Path) -> None:
    rows = [(1,) * 8 + (end,) for end in range(10)] + [(2,) * 8 + (end,) for end in range(10)]

    pieces = tuple(piece for _, piece in written(lines(rows), str(tmp_path), block=BLOCK, unit_rows=5, answer_tokens=1))

    assert Ordered(uri=str(tmp_path), pieces=pieces).available == pytest.approx(18 * 8 / (20 * 9))


def test_a_sort_is_whole_with_its_list_and_a_piece_with_answers_is_not_asked_again(tmp_path: Path) -> None:
    found = written(lines([(1, 2), (3, 4)]), str(tmp_path), block=BLOCK, unit_rows=1, answer_tokens=1)
    assert Ordered.at(str(tmp_path)) is None
    (tmp_path / "sorted.json").write_bytes(
        Ordered(uri=str(tmp_path), pieces=tuple(piece for _, piece in found)).to_json()
    )

    ordered = Ordered.at(str(tmp_path))

    assert ordered is not None
    assert ordered.rows == 2
    one, other = ordered.pieces
    parcel = unanswered(ordered, one)
    assert parcel is not None
    assert parcel.prompts is not None
    assert parcel.prompts["_prompt"].to_pylist() in ([[1, 2]], [[3, 4]])
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / one.name).touch()
    assert unanswered(ordered, one) is None
    assert unanswered(ordered, other) is not None
    assert not wait_for_answers(ordered, lambda: True)
    (tmp_path / "answers" / other.name).touch()
    assert wait_for_answers(ordered, lambda: False)
