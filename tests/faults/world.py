"""World: places, corpora and tables, as the campaign reads them: it shares no code with the pipeline."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

Texts = list[str | None]
Key = tuple[str, int]  # shard and row


@dataclass(frozen=True)
class Place:
    """A folder, on disk or in a bucket."""

    uri: str
    client: Any = None  # of S3; None: a local folder
    options: dict[str, str] | None = None  # for Delta readers

    def below(self, name: str) -> "Place":
        return Place(f"{self.uri}/{name}", self.client, self.options)

    def names(self) -> list[str]:
        """Of all files, relative."""
        if self.client is None:
            root = Path(self.uri)
            return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        bucket, prefix = self._key("")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(one["Key"].removeprefix(prefix) for page in pages for one in page.get("Contents", ()))

    def read(self, name: str) -> bytes | None:
        """None: there is no such file."""
        if self.client is None:
            path = Path(self.uri, name)
            return path.read_bytes() if path.is_file() else None
        bucket, key = self._key(name)
        try:
            body: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None
        return body

    def write(self, name: str, data: bytes) -> None:
        if self.client is None:
            path = Path(self.uri, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        else:
            bucket, key = self._key(name)
            self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def delete(self, name: str) -> None:
        if self.client is None:
            Path(self.uri, name).unlink()
        else:
            bucket, key = self._key(name)
            self.client.delete_object(Bucket=bucket, Key=key)

    def _key(self, name: str) -> tuple[str, str]:
        bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        return bucket, f"{prefix}/{name}"


# ---------------------------------------------------------------------------------------------------------- the input


def write_shard(source: Place, name: str, texts: Sequence[str | None]) -> None:
    """A shard in the format of its name, with a column `id` and a column `text`."""
    rows = [{"id": f"{name}:{number}", "text": text} for number, text in enumerate(texts)]
    if name.endswith(".parquet"):
        out = io.BytesIO()
        schema = pa.schema([("id", pa.string()), ("text", pa.string())])
        pq.write_table(pa.Table.from_pylist(rows, schema), out, row_group_size=13)
        source.write(name, out.getvalue())
    else:
        source.write(name, "".join(json.dumps(row) + "\n" for row in rows).encode())


def corpus(source: Place) -> dict[Key, str | None]:
    """Every row of the input, read anew."""
    found: dict[Key, str | None] = {}
    for name in source.names():
        data = source.read(name) or b""
        if name.endswith(".parquet"):
            texts = pl.read_parquet(io.BytesIO(data))["text"].to_list()
        else:
            texts = [json.loads(line)["text"] for line in data.decode().splitlines()]
        found.update({(name, row): text for row, text in enumerate(texts)})
    return found


# --------------------------------------------------------------------------------------------------------- the output


def table(place: Place) -> list[dict[str, Any]]:
    """The rows that a Delta reader sees."""
    return pl.read_delta(place.uri, storage_options=place.options).to_dicts()


@dataclass(frozen=True)
class Version:
    """A table's state after one commit."""

    number: int
    files: frozenset[str]
    added: frozenset[str]
    removed: frozenset[str]


def versions(table_place: Place) -> Iterator[Version]:
    """Every version of a Delta table, from the JSON of its log alone."""
    files: set[str] = set()
    for name in table_place.below("_delta_log").names():
        if not name.endswith(".json") or "/" in name or not name[:-5].isdigit():
            continue
        actions = [json.loads(line) for line in (table_place.read(f"_delta_log/{name}") or b"").splitlines() if line]
        added = {action["add"]["path"] for action in actions if "add" in action}
        removed = {action["remove"]["path"] for action in actions if "remove" in action}
        files = (files - removed) | added
        yield Version(int(name[:-5]), frozenset(files), frozenset(added), frozenset(removed))


def delta_options(environment: Mapping[str, str]) -> dict[str, str]:
    """What Delta readers must be told to reach the store of this environment."""
    return {
        "aws_endpoint": environment["AWS_ENDPOINT_URL"],
        "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
        "aws_region": environment["AWS_REGION"],
        "aws_allow_http": "true",
    }
