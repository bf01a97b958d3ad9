"""A table with one writer: who was overtaken is told by whom; a full disk is told at once."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

from pipelines import storage
from pipelines.sink.fenced import Fenced, FencedTable

SCHEMA = pa.schema([("number", pa.int64())])


def add(table: FencedTable, epoch: int, *numbers: int) -> None:
    rows = pa.table({"number": pa.array(numbers, pa.int64())})

    def write(delta: DeltaTable, properties: CommitProperties) -> None:
        write_deltalake(delta, rows, mode="append", commit_properties=properties)

    table.commit(epoch, write)


def numbers(table: FencedTable) -> list[int]:
    return sorted(table.read(["number"])["number"].to_pylist())


def test_a_zombie_is_refused_in_its_next_commit_and_told_who_overtook_it(store: str) -> None:
    zombie = FencedTable.create(f"{store}/table", SCHEMA)
    epoch = zombie.begin(run="run-1")
    add(zombie, epoch, 1)
    successor = FencedTable.create(f"{store}/table", SCHEMA)
    add(successor, successor.begin(run="run-2"), 2)

    with pytest.raises(Fenced) as told:
        add(zombie, epoch, 3)

    assert f"run run-2 on host {socket.gethostname()} has begun after this one" in str(told.value)
    assert "\n" not in str(told.value)
    assert numbers(successor) == [1, 2]


def test_a_zombie_that_begins_no_anew_with_its_old_epoch_is_told_too(store: str) -> None:
    first = FencedTable.create(f"{store}/table", SCHEMA)
    epoch = first.begin(run="run-1")
    FencedTable.create(f"{store}/table", SCHEMA).begin(run="run-2")

    with pytest.raises(Fenced, match="run run-2"):
        first.begin(epoch, run="run-1")


def test_the_history_of_a_table_says_which_run_made_which_commit(tmp_path: Path) -> None:
    table = FencedTable.create(str(tmp_path / "table"), SCHEMA)
    add(table, table.begin(run="run-1"), 1)

    history = DeltaTable(str(tmp_path / "table")).history()

    assert [entry.get("pipelines.run") for entry in history] == ["run-1", "run-1", None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_leaves_nothing_half_visible_and_room_ends_it(small_disk: Path) -> None:
    table = FencedTable.create(str(small_disk / "table"), SCHEMA)
    epoch = table.begin()
    add(table, epoch, 1)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(b"x" * 2**20)

    with pytest.raises(storage.StoreFailed) as told:
        add(table, epoch, 2)
    with pytest.raises(storage.StoreFailed, match="the disk is full") as put:
        storage.put(str(small_disk / "data" / "x.parquet"), b"x" * 5000)

    assert "the disk is full; free some space" in str(told.value)
    assert "\n" not in str(told.value) + str(put.value)
    ballast.unlink()
    assert numbers(FencedTable.create(str(small_disk / "table"), SCHEMA)) == [1]
    assert [path for path in (small_disk / "data").rglob("*") if path.is_file()] == []
    add(table, epoch, 3)
    assert numbers(table) == [1, 3]


@pytest.fixture
def read_only_disk(small_disk: Path) -> Path:
    table = FencedTable.create(str(small_disk / "table"), SCHEMA)
    add(table, table.begin(), 1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    return small_disk


def test_a_read_only_output_is_one_line_and_its_table_can_still_be_read(read_only_disk: Path) -> None:
    table = FencedTable.open(str(read_only_disk / "table"))
    assert table is not None

    with pytest.raises(storage.StoreFailed, match="the file system is read-only") as told:
        table.begin()

    assert "\n" not in str(told.value)
    assert numbers(table) == [1]
