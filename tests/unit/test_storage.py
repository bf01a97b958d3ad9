import errno
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.config import RunFailed, UserError
from pipelines.probe import check_store


def paths(uri: str) -> set[str]:
    return {one.path for one in storage.listing(uri)}


def test_a_folder_is_listed_with_all_below_it_and_odd_names_stay_as_they_are(tmp_path: Path) -> None:
    names = {"a.jsonl", "day=1/b c.jsonl", "tief/é/ü%20.csv", "tief/[x]*.txt"}
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    found = {one.path: one for one in storage.listing(str(tmp_path))}

    assert set(found) == names
    for name, one in found.items():
        assert one.size == len(name.encode())
        assert storage.get(one.uri) == name.encode()


def test_a_single_file_lists_as_itself_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_bytes(b"x")

    (found,) = storage.listing(str(tmp_path / "one.csv"))

    assert (found.path, found.uri) == ("one.csv", str(tmp_path / "one.csv"))


def test_linked_folders_are_followed_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_bytes(b"a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "nowhere").symlink_to(tmp_path / "gone")

    assert paths(str(tmp_path / "in")) == {"link/a.txt"}


def test_a_missing_path_is_one_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        storage.listing(str(tmp_path / "nope"))

    assert str(tmp_path / "nope") in str(told.value)
    assert "\n" not in str(told.value)
    assert list(storage.listing(str(tmp_path / "nope"), missing_ok=True)) == []


@pytest.mark.parametrize(
    "uri", ["s3://key:secret@bucket/x", "s3://key:secret/x", "gs://bucket", "file:///x", "a\0b", "", "s3://", "s3:///x"]
)
def test_a_uri_that_cannot_be_used_is_refused_without_showing_a_secret(uri: str) -> None:
    with pytest.raises(UserError) as told:
        storage.checked(uri)

    assert "secret" not in str(told.value).lower().replace("aws_secret_access_key", "")


def test_what_was_put_is_got_and_its_etag_is_that_of_the_listing(tmp_path: Path) -> None:
    uri = storage.join(str(tmp_path), "new", "folder", "x.bin")

    etag = storage.put(uri, b"one")

    (found,) = storage.listing(str(tmp_path))
    assert (storage.get(uri), found.path, found.etag) == (b"one", "new/folder/x.bin", etag)
    assert storage.put(uri, b"other") != etag
    assert storage.get(uri) == b"other"
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_a_file_that_changed_since_it_was_listed_is_not_read(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    storage.put(uri, b"one")
    (found,) = storage.listing(uri)
    with storage.open_input(uri, etag=found.etag) as file:
        assert file.read() == b"one"

    storage.put(uri, b"two!")
    with pytest.raises(storage.Changed, match="changed"):
        storage.open_input(uri, etag=found.etag)
    storage.delete(uri)
    with pytest.raises(storage.Changed, match="gone"):
        storage.open_input(uri, etag=found.etag)
    with pytest.raises(FileNotFoundError):
        storage.open_input(uri)


def test_a_local_path_may_not_climb_out() -> None:
    with pytest.raises(ValueError, match="leads out"):
        storage.join("out", "../x")
    with pytest.raises(ValueError, match="leads out"):
        storage.join("out", "a/../../x")
    assert storage.join("out/", "a..b", "c") == "out/a..b/c"
    assert storage.join("/", "x") == "/x"
    assert storage.join("s3://bucket", "a/../b") == "s3://bucket/a/../b"  # a key like any other


def test_a_put_that_fails_before_its_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put(str(tmp_path / "x.parquet"), b"old")

    def torn(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", torn)
    with pytest.raises(RunFailed, match=r"x\.parquet"):
        storage.put(str(tmp_path / "x.parquet"), b"new")

    assert [one.name for one in tmp_path.iterdir()] == ["x.parquet"]
    assert (tmp_path / "x.parquet").read_bytes() == b"old"


def test_a_full_disk_is_named_and_leaves_nothing_visible(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pipelines import storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.put(sys.argv[1], b"x" * 5000)
except storage.StoreFailed as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.parquet")], capture_output=True, text=True, check=True
    ).stdout

    assert told.startswith(str(tmp_path / "x.parquet"))
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_a_place_that_cannot_be_written_to_is_found_by_a_probe(tmp_path: Path) -> None:
    check_store(str(tmp_path / "new" / "sink"))
    assert [path for path in (tmp_path / "new").rglob("*") if path.is_file()] == []

    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        check_store(str(tmp_path / "file" / "sink"))
    with pytest.raises(UserError, match="/proc"):
        check_store("/proc/sink")


def test_a_local_input_seeks_and_reads_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(200)))

    with storage.open_input(str(tmp_path / "x")) as file:
        file.seek(-3, io.SEEK_END)
        assert file.read() == bytes([197, 198, 199])
        file.seek(5)
        assert file.read(2) == bytes([5, 6])


def test_deltalake_needs_no_options_for_a_local_path(tmp_path: Path) -> None:
    assert storage.delta_options(str(tmp_path)) is None


def test_of_two_that_create_one_file_the_first_alone_does(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "x")

    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")

    assert storage.get(uri) == b"first"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x"]


def test_a_file_system_without_hard_links_is_refused_as_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(path: Path, target: Path) -> None:  # as FAT and some network file systems
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)

    with pytest.raises(UserError, match="makes no hard links") as told:
        check_store(str(tmp_path / "sink"))

    assert "ext4" in str(told.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_file_systems_on_which_a_second_creation_replaces_the_first_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "hardlink_to", lambda path, target: target.rename(path))

    with pytest.raises(UserError, match="was overwritten"):
        check_store(str(tmp_path / "sink"))
