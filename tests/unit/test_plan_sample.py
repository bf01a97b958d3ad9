"""The sample of a plan: what it says of rows whose lengths, twins and prefixes are known."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.engine import Sampling
from pipelines.ahead import Counted
from pipelines.changes import Reason, ShardWork
from pipelines.config import MessageConfig, ModelConfig, SourceConfig
from pipelines.draw import BLOCK_ROWS, Drawn, draw, shuffled
from pipelines.job.model import ModelFiles, resolve
from pipelines.planned import Bin, corpus_order, histogram
from pipelines.source.shards import list_source
from pipelines.source.units import UnitSize
from pipelines.stages.carry import CarrySpec
from pipelines.stages.prepare import PrepareSpec, prepare
from pipelines.stages.read import ReadSpec, count_rows
from tests.corpora import jsonl, write
from tests.unit.job.models import bytes_bpe

SCHEMA = pa.schema([("text", pa.string())])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = bytes_bpe(tmp_path_factory.mktemp("draw") / "model")
    return resolve(ModelConfig(name="mine", path=str(folder)), cache=folder.parent / "cache")


def spec(model: ModelFiles, content: str = "{{ text }}") -> PrepareSpec:
    return PrepareSpec(
        job="mine",
        messages=(MessageConfig(role="user", content=content),),
        model=model,
        max_model_len=512,
        sampling=Sampling(max_tokens=8),
        fingerprint="ab" * 32,
    )


def drawn(
    folder: Path, prepare_spec: PrepareSpec, rows: int, seed: int = 0, keep: Callable[[pa.Table], None] | None = None
) -> Drawn:
    """A draw of a folder's shards, all of whose rows are to do."""
    counted = [
        Counted(
            work=ShardWork(shard=shard, reason=Reason.NEW, limit=None),
            rows=count_rows(shard, 10**9),
            exact=True,
        )
        for shard in list_source(SourceConfig(uri=str(folder))).shards
    ]
    read = ReadSpec(schema=SCHEMA, size=UnitSize(rows=64, bytes=2**25), max_row_bytes=2**20)
    carry = CarrySpec(sink_uri="", outputs=())
    return draw(counted, rows, seed, read=read, spec=prepare_spec, carry=carry, keep=keep)


def texts(folder: Path, *shards: list[str | None]) -> Path:
    folder.mkdir()
    for number, shard in enumerate(shards):
        table = pa.table({"text": pa.array(shard, pa.string())})
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=50)
    return folder


def tokens_of(text: str, prepare_spec: PrepareSpec) -> int:
    rows = pa.table({"text": [text], "_row": pa.array([0], pa.int64())})
    rows = rows.append_column("_error_type", pa.nulls(1, pa.string())).append_column("_error", pa.nulls(1, pa.string()))
    return len(prepare(rows, prepare_spec)["_prompt"][0].as_py())


def test_rows_that_are_too_long_empty_or_doubled_are_counted_as_they_are(tmp_path: Path, model: ModelFiles) -> None:
    corpus = texts(tmp_path / "in", ["one", "two", None, "  ", "one"], ["w " * 600, "two", "two", "three"])

    found = drawn(corpus, spec(model), 1000)

    assert (found.rows, found.shards, found.whole) == (9, 2, True)
    assert found.errors == {"empty": 2, "too_long": 1}
    assert found.duplicates == 3
    assert len(found.prompt_tokens) == 6
    lengths = {text: tokens_of(text, spec(model)) for text in ("one", "two", "three")}
    assert found.prompt_tokens.sum() == 2 * lengths["one"] + 3 * lengths["two"] + lengths["three"]
    assert found.duplicate_tokens == lengths["one"] + 2 * lengths["two"]
    assert found.interval() == (found.prompt_tokens.mean(), found.prompt_tokens.mean())


def test_reuse_is_the_full_blocks_at_the_front_that_an_earlier_prompt_has_too(
    tmp_path: Path, model: ModelFiles
) -> None:
    instruction = "x" * 100  # byte by byte, so that its tokens are known
    rows: list[str | None] = [f"{number:03d}" for number in range(5)]
    asked = spec(model, instruction + "{{ text }}")

    found = drawn(texts(tmp_path / "in", rows), asked, 1000)

    length = tokens_of("000", asked)
    static = found.static_tokens
    assert length - 20 < static + 3 <= length  # all but the number's last digit, and what the template puts behind
    for size in (16, 32):
        shared = min(static, length - 1) // size * size
        assert found.reuse[size] == pytest.approx(4 * shared / (5 * length))


def test_prompts_that_have_nothing_in_common_share_nothing(tmp_path: Path, model: ModelFiles) -> None:
    found = drawn(texts(tmp_path / "in", ["a" * 90]), spec(model), 10)

    assert found.reuse == {16: 0.0, 32: 0.0}
    assert found.static_tokens == 0


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_sample_is_of_the_size_asked_for_and_the_same_for_the_same_seed(
    tmp_path: Path, model: ModelFiles, kind: str
) -> None:
    rows = [f"row {number} {'word ' * (number % 40)}" for number in range(2000)]
    if kind == "parquet":
        corpus = texts(tmp_path / "in", list(rows[:1200]), list(rows[1200:]))
    else:
        corpus = tmp_path / "in"
        write(corpus / "a.jsonl", jsonl({"text": text} for text in rows))

    one, same, other = (drawn(corpus, spec(model), 320, seed) for seed in (1, 1, 2))

    assert abs(one.rows - 320) <= BLOCK_ROWS
    assert not one.whole
    assert np.array_equal(one.prompt_tokens, same.prompt_tokens)
    assert not np.array_equal(one.prompt_tokens, other.prompt_tokens)


def test_the_interval_of_most_seeded_samples_holds_the_mean_of_the_corpus(tmp_path: Path, model: ModelFiles) -> None:
    rng = np.random.default_rng(0)
    rows: list[str | None] = [f"{number} {'w ' * int(rng.integers(1, 60))}" for number in range(1500)]
    corpus = texts(tmp_path / "in", rows)
    mean = drawn(corpus, spec(model), 10**6).prompt_tokens.mean()

    hits = 0
    for seed in range(20):
        low, high = drawn(corpus, spec(model), 250, seed).interval() or (0.0, 0.0)
        assert high - low < mean / 2
        hits += low <= mean <= high

    assert hits >= 16


def test_a_histogram_holds_every_row_in_bins_of_one_width_or_of_doubling_width() -> None:
    even = histogram(np.arange(100, 180))
    wide = histogram(np.array([1, 2, 3, 900, 1024]))

    assert [(one.low, one.high, one.rows) for one in even][:2] == [(100, 109, 10), (110, 119, 10)]
    assert sum(one.rows for one in even) == 80
    assert wide[0] == Bin(1, 1, 1)
    assert wide[1] == Bin(2, 3, 2)
    assert wide[-1].low <= 1024 <= wide[-1].high
    assert sum(one.rows for one in wide) == 5
    assert histogram(np.array([7, 7])) == [Bin(7, 7, 2)]
    assert histogram(np.array([], np.int64)) == []


def test_an_order_of_the_corpus_is_worth_what_is_shared_and_does_not_fit_the_kv_cache(
    tmp_path: Path, model: ModelFiles
) -> None:
    letters = "abcdefgh"
    corpus = texts(tmp_path / "in", [f"{letter * 150}{number}" for number in range(5) for letter in letters])

    found = drawn(corpus, spec(model), 1000)
    kept, share = max(found.shared_tokens.values()), max(one or 0 for one in found.reuse.values())

    assert found.whole
    assert corpus_order(found, kept) == (False, "no gain, the KV cache keeps all that is shared")
    needed, words = corpus_order(found, kept - 1)
    static = found.static_tokens * 40 / found.prompt_tokens.sum()
    assert needed
    assert words.startswith(f"would spare up to {100 * (share - static):.1f} % of the prompt tokens")
    assert corpus_order(found, None)[0] is None
    part = drawn(corpus, spec(model), 20)
    assert corpus_order(part, 10**6)[0] is None  # the rest may share more


def test_the_rows_of_a_sample_are_kept_with_their_neighbours_in_an_order_of_chance(
    tmp_path: Path, model: ModelFiles
) -> None:
    corpus = texts(tmp_path / "in", [f"a {row}" for row in range(300)], [f"b {row}" for row in range(300)])
    kept: list[pa.Table] = []

    found = drawn(corpus, spec(model), 192, seed=3, keep=kept.append)
    rows = shuffled(kept, 3)["text"].to_pylist()

    assert rows == shuffled(kept, 3)["text"].to_pylist() != shuffled(kept, 4)["text"].to_pylist()
    assert sorted(rows) == sorted(text for table in kept for text in table["text"].to_pylist())
    assert len(rows) == len(set(rows)) == found.rows
    numbers = [(text[0], int(text[2:])) for text in rows]
    follow = sum(one[0] == other[0] and other[1] == one[1] + 1 for one, other in pairwise(numbers))
    assert follow >= len(rows) - found.blocks - len(kept) - len(rows) // BLOCK_ROWS
    assert {shard for shard, _ in numbers[: len(numbers) // 2]} == {"a", "b"}  # the first of them stand for all
