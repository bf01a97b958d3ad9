"""A file of an output is lost, or a shard has another name: what is asked again, and what is not."""

import random
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import ModelConfig
from pipelines.job.model import resolve
from pipelines.sink.audit import audit
from tests.in_process import INPUT, Order, Place, Session, run
from tests.unit.job.models import bytes_bpe

ORDER = Order(fingerprint="f" * 64, refused={"bad": "engine"})
TEXTS = ("one", "two", "bad three", "four", None, "six", "seven", "eight")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An output of units of 3 rows, and of a shard without any; whole, with dead letters in its first two units."""
    folder = bytes_bpe(tmp_path / "model")
    files = resolve(ModelConfig(name="mine", path=str(folder)), cache=tmp_path / "cache")
    made = Place(source=tmp_path / "in", sink=str(tmp_path / "out"), model=files)
    made.source.mkdir()
    for name, texts in (("a.parquet", TEXTS), ("empty.parquet", ())):
        rows = [{"version": 1, "text": text} for text in texts]
        pq.write_table(pa.Table.from_pylist(rows, INPUT), made.source / name)
    finished(made)
    return made


def finished(place: Place) -> list[int]:
    """A run that ends; the rows that it asked for."""
    session = Session(place, ORDER)
    run(session, random.Random(1))
    assert session.changes().todo == ()
    return sorted(asked.row for asked in session.asked)


def wrong(place: Place) -> list[str]:
    return [one for check in audit(place.sink).checks for one in check.findings]


def file_of(place: Place, folder: str, start: int) -> Path:
    """Of the unit of the first shard that begins with this row."""
    (name,) = [path for path in (Path(place.sink) / folder).glob("a.parquet-*.parquet") if f".{start}-" in path.name]
    return name


def test_a_lost_data_file_is_made_again_by_asking_its_rows_alone(place: Place) -> None:
    file_of(place, "data", 3).unlink()
    assert "run the job's command again" in wrong(place)[0]

    assert finished(place) == [3, 5]  # row 4 is empty

    assert wrong(place) == []
    assert finished(place) == []


def test_a_lost_file_of_dead_letters_is_made_again_without_its_neighbours(place: Place) -> None:
    file_of(place, "errors", 0).unlink()

    assert finished(place) == [2]

    assert wrong(place) == []


def test_of_a_shard_without_rows_a_lost_file_holds_up_no_run(place: Place) -> None:
    (lost,) = (Path(place.sink) / "data").glob("empty.parquet-*.parquet")
    lost.unlink()

    assert finished(place) == []

    assert "empty.parquet rows 0 to 0" in wrong(place)[0]  # and is told, still


def test_what_waits_for_its_shard_and_is_lost_is_asked_again(place: Place) -> None:
    texts = ["new", *(text for text in TEXTS if text), "newer"]
    rows = [{"version": 2, "text": text} for text in texts]
    pq.write_table(pa.Table.from_pylist(rows, INPUT), place.source / "a.parquet")
    session = Session(place, ORDER)
    session.open()
    session.output.commit([next(session.units())])
    session.close()
    (lost,) = (Path(place.sink) / "data" / "_waiting").glob("*.parquet")
    lost.unlink()

    finished(place)

    assert wrong(place) == []


def test_a_shard_under_another_name_is_not_asked_again(place: Place) -> None:
    (place.source / "a.parquet").rename(place.source / "z.parquet")

    assert finished(place) == [2]  # the dead letter: it has no answer that could be carried

    assert wrong(place) == []
    assert {row["_shard"] for row in pl.read_delta(f"{place.sink}/data").to_dicts()} == {"z.parquet"}
