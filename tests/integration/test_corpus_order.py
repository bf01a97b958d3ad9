"""All prompts sorted before the first is asked: the output is that of any run, whatever happens on the way."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import corpus_order
from pipelines.config import Exit, RunFailed, UserError
from pipelines.dataflow import finished
from pipelines.sink.receipt import Receipt
from pipelines.stages.ordered import answers_at
from pipelines.verify import VerifyConfig, VerifySink, verify
from tests.runs import data, errors, job, ledger, write_texts

pytestmark = pytest.mark.usefixtures("ray_cluster")

WORDS = ("unit.rows=16", "max_error_rate=0.5")
COUNTS = ("rows_in", "rows_ok", "rows_error", "rows_shared", "prompt_tokens", "output_tokens", "saved_prompt_tokens")
PLACE = ("_shard", "_row", "_key", "text", "label", "_prompt_tokens", "_output_tokens")


def texts(count: int = 150) -> list[str | None]:
    """Seven beginnings that come back, some texts twice, and rows that cannot be asked."""
    found: list[str | None] = [f"{f'long beginning number {n % 7} ' * 12} and end {n}" for n in range(count)]
    found += [*found[:30], None, "", "word " * 9000]
    random.Random(3).shuffle(found)
    return found


def corpus(folder: Path, rows: list[str | None]) -> Path:
    write_texts(folder, [rows[:60], rows[60:130], rows[130:]])
    return folder


def rows_of(sink: Path) -> tuple[list[Any], list[Any]]:
    """Answers and dead letters with where they are from."""
    dead = [[row[name] for name in ("_shard", "_row", "_error_type")] for row in errors(sink)]
    return [[row[name] for name in PLACE] for row in data(sink)], dead


def sums(sink: Path) -> dict[str, int]:
    return {name: sum(receipt[name] for receipt in ledger(sink)) for name in COUNTS}


def asked(sink: Path) -> int:
    """Rows that the receipts say an engine was asked for."""
    return sum(r["rows_ok"] - r["rows_shared"] - r["rows_carried"] for r in ledger(sink))


def test_the_output_and_what_it_cost_are_those_of_any_order_and_a_later_run_sees_what_changed(tmp_path: Path) -> None:
    source, window, whole = corpus(tmp_path / "in", texts()), tmp_path / "window", tmp_path / "corpus"
    assert job(*WORDS, source=source, sink=window) is Exit.DONE

    assert job(*WORDS, "ordering=corpus", source=source, sink=whole) is Exit.DONE

    assert rows_of(whole) == rows_of(window)
    cost = {row["_key"]: (row["_prompt_tokens"], row["_output_tokens"]) for row in data(whole)}
    every = sum(row["_prompt_tokens"] for row in data(whole))
    once = [sum(counts) for counts in zip(*cost.values(), strict=True)]
    assert sums(whole) == dict(zip(COUNTS, (183, 180, 3, 30, *once, every - once[0]), strict=True))
    assert sum(r["device_seconds"] for r in ledger(whole)) > 0
    assert all(r["shard"].startswith("part-") for r in ledger(whole))
    assert not (whole / "_ordered").exists()

    now = [*texts()[:100], "in the end", *texts()[101:]]
    corpus(source, now)  # all shards have other times of change, one row another text
    assert job(*WORDS, "ordering=corpus", source=source, sink=whole) is Exit.DONE
    assert [row["text"] for row in data(whole)] == [text for text in now if text and len(text) < 9000]
    assert asked(whole) == 151


def test_what_a_run_has_answered_and_not_written_is_not_asked_again_even_if_the_corpus_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sink = corpus(tmp_path / "in", texts()), tmp_path / "out"
    words = (*WORDS, "ordering=corpus", "engine.simulated.latency_s=0.1", "model.max_num_seqs=4")

    def answers() -> list[Path]:
        return list((sink / "_ordered").glob("*/answers/*"))

    def cut_off(*args: Any, **more: Any) -> Iterator[list[Receipt]]:
        for receipts in finished(*args, **more):
            if len(answers()) >= 3:
                raise KeyboardInterrupt
            yield receipts

    with monkeypatch.context() as cut:
        cut.setattr("pipelines.dataflow.finished", cut_off)
        with pytest.raises(KeyboardInterrupt):
            job(*words, source=source, sink=sink)
    (digest,) = {file.parent.parent.name for file in answers()}
    kept = set[str]()

    def remembered(uri: str) -> list[str]:
        """As the second run finds them: a write that was begun when the first was cut off may end after it."""
        found = answers_at(uri)
        kept.update(row["_key"] for file in found for row in pq.read_table(file).to_pylist())
        return found

    monkeypatch.setattr("pipelines.dataflow.answers_at", remembered)
    corpus(source, [*texts()[:100], "in the end", *texts()[101:]])
    entered: list[int] = []
    monkeypatch.setattr("pipelines.ending._reuse", lambda course: entered.extend(_entered(course)))

    assert job(*words, source=source, sink=sink) is Exit.DONE

    assert len(kept) > 16
    tokens = {row["_key"]: row["_prompt_tokens"] for row in data(sink)}
    assert sum(entered) == sum(count for key, count in tokens.items() if key not in kept)
    assert len({(row["_shard"], row["_row"]) for row in data(sink)}) == len(data(sink)) == 180
    assert verify(VerifyConfig(sink=VerifySink(uri=str(sink)))) is Exit.DONE
    assert not (sink / "_ordered" / digest).exists()


def test_a_signal_ends_a_sort_at_once_and_the_same_command_sorts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sink, go_on, driver = corpus(tmp_path / "in", texts()), tmp_path / "out", tmp_path / "go", os.getpid()
    told_once = tmp_path / "told"
    words = (*WORDS, "ordering=corpus", "grace_s=300")  # so long it would last, were the signal not heard
    read_and_key = corpus_order.read_and_key

    def reading(*told: Any) -> Iterator[pa.Table]:
        with contextlib.suppress(FileExistsError):  # the first reader alone: a late one would end the run after this
            told_once.touch(exist_ok=False)
            os.kill(driver, signal.SIGTERM)
        while not go_on.exists():
            time.sleep(0.1)
        yield from read_and_key(*told)

    began = time.monotonic()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(corpus_order, "read_and_key", reading)
            assert job(*words, source=source, sink=sink) is Exit.STOPPED
    finally:
        go_on.touch()  # or the readers would keep Ray's CPUs, and whoever tries again would wait for ever
    assert time.monotonic() - began < 240
    assert not list(sink.glob("_ordered/*/sorted.json"))

    assert job(*words, source=source, sink=sink) is Exit.DONE

    assert len({(row["_shard"], row["_row"]) for row in data(sink)}) == len(data(sink)) == 180


def test_a_shard_that_ends_each_worker_which_sorts_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = corpus(tmp_path / "in", texts())
    read_and_key = corpus_order.read_and_key

    def deadly(batch: dict[str, Any], *told: Any) -> Iterator[pa.Table]:
        for keyed in read_and_key(batch, *told):
            if any(work.shard.path == "part-1.parquet" for work in batch["item"]):
                os.kill(os.getpid(), signal.SIGKILL)
            yield keyed

    monkeypatch.setattr(corpus_order, "read_and_key", deadly)
    monkeypatch.setattr(corpus_order, "WORKER_DEATHS", 1)

    with pytest.raises(RunFailed, match=r"each of the 2 times that part-1\.parquet was begun.*source\.exclude"):
        job(*WORDS, "ordering=corpus", source=source, sink=tmp_path / "out")


def _entered(course: Any) -> list[int]:
    """Tokens of the prompts that entered the engines of a run."""
    return [seen.tokens for seen in course.starvation.begun()]


def test_where_there_is_nothing_to_sort_dead_letters_are_asked_as_they_come(tmp_path: Path) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    write_texts(source, [[None, ""], ["word " * 9000]])
    words = ("ordering=corpus", "max_error_rate=1")

    assert job(*words, source=source, sink=sink) is Exit.DONE
    assert job(*words, "retry_errors=true", source=source, sink=sink) is Exit.DONE

    assert [row["_error_type"] for row in errors(sink)] == ["empty", "empty", "too_long"]
    assert len({receipt["run"] for receipt in ledger(sink)}) == 2
    assert not (sink / "_ordered").exists()


def test_more_prompts_than_the_book_can_hold_the_answers_of_are_refused_before_one_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sink = corpus(tmp_path / "in", texts()), tmp_path / "out"
    monkeypatch.setattr("pipelines.corpus_order.MOST_BYTES", 8000)

    with pytest.raises(RunFailed, match=r"the answers to 150 different prompts do not fit .* Use ordering=window"):
        job(*WORDS, "ordering=corpus", source=source, sink=sink)

    assert ledger(sink) == []


def test_without_keys_that_share_an_answer_there_is_no_such_order(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ordering=corpus hands each row its answer by its row key"):
        job("ordering=corpus", "dedup=none", source=tmp_path, sink=tmp_path / "out")
