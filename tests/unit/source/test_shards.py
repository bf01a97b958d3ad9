import logging
import os
from pathlib import Path

import pytest

from pipelines.config import SourceConfig, UserError
from pipelines.source.formats import Compression, Format, Unreadable, format_of
from pipelines.source.shards import list_shards, open_shard
from tests.corpora import jsonl, reviews, ugly_prefix, write


def paths(root: Path, **settings: object) -> list[str]:
    return [shard.path for shard in list_shards(SourceConfig(uri=str(root), **settings))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "shape", "compression"),
    [
        ("a.parquet", Format.PARQUET, Compression.NONE),
        ("part-0.gz.parquet", Format.PARQUET, Compression.NONE),
        ("A.PQ", Format.PARQUET, Compression.NONE),
        ("a.jsonl", Format.JSONL, Compression.NONE),
        ("a.ndjson.GZ", Format.JSONL, Compression.GZIP),
        ("a.json.zst", Format.JSONL, Compression.ZSTD),
        ("a.csv.gzip", Format.CSV, Compression.GZIP),
        ("a.tsv.zstd", Format.TSV, Compression.ZSTD),
        ("a.txt", Format.TEXT, Compression.NONE),
        ("a.b.text.gz", Format.TEXT, Compression.GZIP),
    ],
)
def test_a_files_name_tells_format_and_compression(name: str, shape: Format, compression: Compression) -> None:
    assert format_of(name) == (shape, compression)


@pytest.mark.parametrize("name", ["a.md", "parquet", "a.gz", "a.parquet.gz", "a.jsonl.bz2", "a"])
def test_a_name_that_tells_no_format_is_no_shard(name: str) -> None:
    assert format_of(name) is None


def test_markers_hidden_files_and_empty_files_are_no_shards(tmp_path: Path) -> None:
    counts = ugly_prefix(tmp_path)

    assert paths(tmp_path) == sorted([*counts, "cut.jsonl.gz", "broken.parquet"])


def test_files_of_no_known_format_are_skipped_with_one_warning_that_counts_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jsonl", "b.md", "c.md", "d.pdf", "noending"):
        write(tmp_path / name, b"{}\n")

    with caplog.at_level(logging.WARNING):
        assert paths(tmp_path) == ["a.jsonl"]

    (record,) = [record for record in caplog.records if record.name == "pipelines.source.shards"]
    assert "4 files" in record.message
    assert "2 × .md" in record.message


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ("**", (), ["a.jsonl", "b/c.csv", "b/d/e.csv", "b/d/f.jsonl"]),
        ("*.csv", (), ["b/c.csv", "b/d/e.csv"]),
        ("b/*.csv", (), ["b/c.csv"]),
        ("b/**", (), ["b/c.csv", "b/d/e.csv", "b/d/f.jsonl"]),
        ("b/**/*.csv", (), ["b/c.csv", "b/d/e.csv"]),
        ("**/[ae].*", (), ["a.jsonl", "b/d/e.csv"]),
        (("a.jsonl", "b/d/?.csv"), (), ["a.jsonl", "b/d/e.csv"]),
        ("**", ("b/d/**",), ["a.jsonl", "b/c.csv"]),
        ("**", "*.csv", ["a.jsonl", "b/d/f.jsonl"]),
    ],
)
def test_include_and_exclude_are_globs_over_the_path(
    tmp_path: Path, include: object, exclude: object, left: list[str]
) -> None:
    for name in ("a.jsonl", "b/c.csv", "b/d/e.csv", "b/d/f.jsonl"):
        write(tmp_path / name, b"{}\n")

    assert paths(tmp_path, include=include, exclude=exclude) == left


def test_a_shard_whose_name_is_no_utf_8_is_refused_by_name_and_may_be_excluded(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b"{}\n")
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(b"{}\n")
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_bytes(b"no shard anyway")

    with pytest.raises(
        UserError, match=r"name is no UTF-8: 'caf\\\\xe9.jsonl'; rename it, or leave it out with"
    ) as told:
        paths(tmp_path)
    assert str(told.value).isprintable()
    assert paths(tmp_path, exclude="caf?.jsonl") == ["a.jsonl"]


def test_a_link_out_of_the_source_is_skipped_and_told_unless_it_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "out" / "secret.jsonl", b"{}\n")
    write(tmp_path / "in" / "real" / "a.jsonl", b"{}\n")
    (tmp_path / "in" / "file.jsonl").symlink_to(tmp_path / "out" / "secret.jsonl")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "within").symlink_to(tmp_path / "in" / "real")
    (tmp_path / "entry").symlink_to(tmp_path / "in")

    assert paths(tmp_path / "entry") == ["real/a.jsonl", "within/a.jsonl"]
    assert [name in caplog.text for name in ("file.jsonl: skipped", "folder: skipped", "source.follow_links")] == [
        True
    ] * 3
    assert paths(tmp_path / "in", follow_links=True) == [
        *("file.jsonl", "folder/secret.jsonl", "real/a.jsonl", "within/a.jsonl")
    ]


def test_nothing_to_read_is_one_line_that_says_what_was_seen(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", b"x")
    write(tmp_path / "b.jsonl", b"{}\n")
    (tmp_path / "c.csv").write_bytes(b"")
    (tmp_path / "_SUCCESS").write_bytes(b"")

    with pytest.raises(UserError) as told:
        paths(tmp_path, exclude="b.*")

    message = str(told.value)
    assert "\n" not in message
    for seen in ("1 × .pdf", "1 left out", "1 empty", "1 hidden"):
        assert seen in message


def test_a_single_file_is_a_shard_under_its_own_name(tmp_path: Path) -> None:
    write(tmp_path / "a b.jsonl", jsonl(reviews(1)))

    assert paths(tmp_path / "a b.jsonl") == ["a b.jsonl"]


def test_an_identity_changes_with_the_bytes_and_only_then(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", jsonl(reviews(1)))
    source = SourceConfig(uri=str(tmp_path))
    (first,), (again,) = list_shards(source), list_shards(source)
    before = file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes().replace(b"review", b"revieW"))
    os.utime(file, ns=(before, before + 1_000_000))

    (changed,) = list_shards(source)

    assert again.identity == first.identity
    assert changed.identity != first.identity


@pytest.mark.parametrize("change", ["rewritten", "deleted"])
def test_a_shard_that_is_not_as_listed_is_not_opened(tmp_path: Path, change: str) -> None:
    file = write(tmp_path / "a.jsonl", jsonl(reviews(1)))
    (shard,) = list_shards(SourceConfig(uri=str(tmp_path)))
    if change == "rewritten":
        file.write_bytes(b"{}\n")
    else:
        file.unlink()

    with pytest.raises(Unreadable, match="since it was listed"):
        open_shard(shard)
