"""What a later run pays for: changed, grown, deleted shards, dead letters asked again. Real Ray, real tables."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from demo.model import folder as model_folder
from pipelines.config import Exit, UserError
from tests.runs import data, errors, job, ledger, write_texts

pytestmark = pytest.mark.usefixtures("ray_cluster")


def asked(sink: Path, *, since: int = 0) -> int:
    """Rows that the receipts from number `since` on say an engine was asked for."""
    return sum(r["rows_in"] - r["rows_carried"] for r in _in_order(sink)[since:])


def _in_order(sink: Path) -> list[dict[str, Any]]:
    return sorted(ledger(sink), key=lambda receipt: (receipt["epoch"], receipt["seq"]))


def write_texts_to(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path)


def labels(sink: Path) -> dict[str, str]:
    return {row["text"]: row["label"] for row in data(sink)}


def test_of_a_changed_shard_only_new_prompts_are_paid_for_and_all_rows_stand_where_they_stand_now(
    tmp_path: Path,
) -> None:
    shard, out = tmp_path / "in" / "a.parquet", tmp_path / "out"
    write_texts_to(shard, [f"text {n}" for n in range(20)])
    job("unit.rows=8", source=tmp_path / "in", sink=out)
    before, receipts = labels(out), len(ledger(out))
    now = ["in front", *(f"text {n}" for n in range(20) if n != 7), "edited 7", "at the end"]
    write_texts_to(shard, now)

    assert job("unit.rows=5", source=tmp_path / "in", sink=out) is Exit.DONE

    assert [row["text"] for row in data(out)] == now
    assert [row["_row"] for row in data(out)] == list(range(22))
    assert {text: label for text, label in labels(out).items() if text in before} == {
        text: label for text, label in before.items() if text != "text 7"
    }
    assert asked(out, since=receipts) == 3
    saved = _in_order(out)[receipts:]
    assert sum(r["rows_carried"] for r in saved) == 19
    assert sum(r["saved_prompt_tokens"] for r in saved) == sum(
        row["_prompt_tokens"] for row in data(out) if row["text"] in before
    )
    assert ds.dataset(out / "data", format="parquet", exclude_invalid_files=True).count_rows() == 22


def test_rows_appended_to_a_jsonl_shard_are_the_only_ones_paid_for(tmp_path: Path) -> None:
    shard, out = tmp_path / "in" / "a.jsonl", tmp_path / "out"
    shard.parent.mkdir()
    shard.write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(10)))
    job(source=tmp_path / "in", sink=out)
    with shard.open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")

    job(source=tmp_path / "in", sink=out)

    assert [row["text"] for row in data(out)] == [*(f"line {n}" for n in range(10)), "one more"]
    assert asked(out, since=1) == 1


def test_what_the_output_has_of_a_deleted_shard_is_taken_away_or_kept_as_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_texts(tmp_path / "in", [["a", "b"], ["c", None]])
    job("max_error_rate=1", source=tmp_path / "in", sink=out)
    (tmp_path / "in" / "part-1.parquet").unlink()

    job("on_deleted=keep", source=tmp_path / "in", sink=out)
    assert [row["text"] for row in data(out)] == ["a", "b", "c"]

    assert job(source=tmp_path / "in", sink=out) is Exit.DONE
    assert [row["text"] for row in data(out)] == ["a", "b"]
    assert errors(out) == []
    assert ds.dataset(out / "data", format="parquet", exclude_invalid_files=True).count_rows() == 2


@pytest.mark.slow
def test_a_shard_that_comes_back_is_answered_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_texts(tmp_path / "in", [["a", "b"], ["c"]])
    job(source=tmp_path / "in", sink=out)
    (tmp_path / "in" / "part-1.parquet").rename(tmp_path / "away.parquet")
    job(source=tmp_path / "in", sink=out)
    (tmp_path / "away.parquet").rename(tmp_path / "in" / "part-1.parquet")

    job(source=tmp_path / "in", sink=out)

    assert [row["text"] for row in data(out)] == ["a", "b", "c"]


def test_shards_that_globs_or_a_limit_leave_out_are_not_taken_for_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_texts(tmp_path / "in", [["a", "b"], ["c"]])
    job(source=tmp_path / "in", sink=out)

    job("source.include=part-0*", source=tmp_path / "in", sink=out)
    job("source.limit=1", source=tmp_path / "in", sink=out)

    assert [row["text"] for row in data(out)] == ["a", "b", "c"]


def test_a_source_that_has_none_of_the_shards_is_refused_rather_than_the_output_emptied(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_texts(tmp_path / "in", [["a"]])
    write_texts(tmp_path / "other", [["x"], ["y"]])
    (tmp_path / "other" / "part-0.parquet").unlink()
    job(source=tmp_path / "in", sink=out)

    with pytest.raises(UserError, match=r"none of the 1 shards .* on_deleted=keep"):
        job(source=tmp_path / "other", sink=out)

    assert [row["text"] for row in data(out)] == ["a"]


def token_of(word: str) -> int:
    """The id of the first token of ` word` for the embedded model."""
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    return int(tokenizer.encode(f"x {word}").ids[1])


def test_dead_letters_that_are_asked_again_are_all_that_is_paid_for_and_move_to_the_data(tmp_path: Path) -> None:
    out, refused = tmp_path / "out", token_of("zebra")
    write_texts(tmp_path / "in", [[*(f"text {n}" for n in range(6)), "a zebra", None], ["other"]])
    job("max_error_rate=1", f"engine.simulated.bad_token_id={refused}", source=tmp_path / "in", sink=out)
    before, first = labels(out), errors(out)
    assert [(row["_row"], row["_error_type"], row["_attempts"]) for row in first] == [(6, "engine", 1), (7, "empty", 0)]

    job("max_error_rate=1", "retry_errors=[engine]", source=tmp_path / "in", sink=out)

    (left,) = errors(out)
    assert (left["_row"], left["_error_type"]) == (7, "empty")
    assert (left["_first_tried"], left["_last_tried"]) == (first[1]["_first_tried"], first[1]["_last_tried"])
    assert labels(out).keys() == before.keys() | {"a zebra"}
    assert asked(out, since=2) == 1
    assert (tmp_path / "out" / "data").is_dir()
    assert ds.dataset(out / "data", format="parquet", exclude_invalid_files=True).count_rows() == 8


@pytest.mark.slow
def test_a_dead_letter_that_fails_again_tells_how_often_and_since_when(tmp_path: Path) -> None:
    out, refused = tmp_path / "out", token_of("zebra")
    write_texts(tmp_path / "in", [["text", "a zebra"]])
    words = ["max_error_rate=1", f"engine.simulated.bad_token_id={refused}"]
    job(*words, source=tmp_path / "in", sink=out)
    (first,) = errors(out)

    assert job(*words, "retry_errors=true", source=tmp_path / "in", sink=out) is Exit.DONE

    (again,) = errors(out)
    assert (first["_attempts"], again["_attempts"]) == (1, 2)
    assert again["_first_tried"] == first["_first_tried"]
    assert again["_last_tried"] > first["_last_tried"]


def test_reprocessing_with_another_unit_size_keeps_the_cuts_and_shows_each_row_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_texts(tmp_path / "in", [[f"text {n}" for n in range(10)]])
    job("unit.rows=4", source=tmp_path / "in", sink=out)

    changed = ["on_change=reprocess", "job.sampling.stop=[unheard]", "unit.rows=7"]
    job(*changed, source=tmp_path / "in", sink=out)

    assert [row["id"] for row in data(out)] == list(range(10))
    assert [(r["start"], r["stop"]) for r in _in_order(out)[3:]] == [(0, 4), (4, 8), (8, 10)]
    receipts = len(ledger(out))
    job(*changed[1:], source=tmp_path / "in", sink=out)  # nothing is left, so nothing is refused
    assert len(ledger(out)) == receipts


@pytest.mark.slow
def test_a_changed_shard_under_a_limit_shows_the_new_rows_up_to_it(tmp_path: Path) -> None:
    shard, out = tmp_path / "in" / "a.parquet", tmp_path / "out"
    write_texts_to(shard, [f"text {n}" for n in range(10)])
    job("source.limit=4", source=tmp_path / "in", sink=out)
    write_texts_to(shard, ["new", *(f"text {n}" for n in range(10))])

    job("source.limit=4", source=tmp_path / "in", sink=out)

    assert [row["text"] for row in data(out)] == ["new", "text 0", "text 1", "text 2"]
    assert asked(out, since=1) == 1


def test_a_new_column_in_new_shards_joins_the_output_and_is_null_in_the_rows_before(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_texts_to(tmp_path / "in" / "a.parquet", ["one", "two"])
    job(source=tmp_path / "in", sink=out)
    pq.write_table(pa.table({"id": [7], "text": ["three"], "stars": [5]}), tmp_path / "in" / "b.parquet")

    job(source=tmp_path / "in", sink=out)

    assert [(row["text"], row["stars"]) for row in data(out)] == [("one", None), ("two", None), ("three", 5)]
    (tmp_path / "in" / "b.parquet").unlink()  # the corpus has the column no more, and its rows go
    job(source=tmp_path / "in", sink=out)
    assert [(row["text"], row["stars"]) for row in data(out)] == [("one", None), ("two", None)]


def test_a_shard_that_is_answered_is_not_opened_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_texts_to(tmp_path / "in" / "a.parquet", ["one", "two"])
    job(source=tmp_path / "in", sink=out)
    write_texts_to(tmp_path / "in" / "b.parquet", ["three"])
    done = tmp_path / "in" / "a.parquet"
    before = done.stat()
    done.write_bytes(b"x" * before.st_size)  # whoever opens it finds no Parquet
    os.utime(done, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert job(source=tmp_path / "in", sink=out) is Exit.DONE

    assert [row["text"] for row in data(out)] == ["one", "two", "three"]


def test_a_job_whose_answers_have_other_columns_needs_an_output_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_texts_to(tmp_path / "in" / "a.parquet", ["one"])
    job(source=tmp_path / "in", sink=out)

    with pytest.raises(UserError, match=r"label is only there.* Choose another sink.uri"):
        job("+job=generate", "on_change=reprocess", source=tmp_path / "in", sink=out)


def test_one_prompt_is_asked_once_in_a_run_and_with_dedup_output_in_no_later_one_either(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_texts(source, [["same", "a", "same", "b"], ["same", "b", "c", "same"]])

    job("unit.rows=2", source=source, sink=out)
    assert asked_once(out) == 4  # same, a, b, c
    assert len(data(out)) == 8 and len(set(labels(out))) == 4
    first = len(ledger(out))
    write_texts_to(source / "x.parquet", ["same", "d", "same"])
    job(source=source, sink=out)
    assert asked_once(out, since=first) == 2  # of this run: same, d
    second = len(ledger(out))
    write_texts_to(source / "y.parquet", ["d", "e", "same", "a", "e"])
    job("dedup=output", source=source, sink=out)
    assert asked_once(out, since=second) == 1  # e
    third = len(ledger(out))
    write_texts_to(source / "z.parquet", ["f", "f", "a"])
    job("dedup=none", source=source, sink=out)

    assert asked_once(out, since=third) == 3
    answers: dict[str, set[str]] = {}
    for row in data(out):
        answers.setdefault(row["text"], set()).add(f"{row['label']} {row['confidence']} {row['_prompt_tokens']}")
    assert {text: len(said) for text, said in answers.items()} == dict.fromkeys("abcdef", 1) | {"same": 1}


def asked_once(sink: Path, *, since: int = 0) -> int:
    """Rows that an engine was asked for, by the receipts from number `since` on."""
    return sum(r["rows_in"] - r["rows_carried"] - r["rows_shared"] for r in _in_order(sink)[since:])
