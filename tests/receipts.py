"""A receipt with plausible values, for tests that care for a few of its fields."""

from typing import Any

from pipelines.sink.receipt import Receipt


def receipt(*, shard: str = "a.parquet", start: int = 0, stop: int = 3, **fields: Any) -> Receipt:
    values: dict[str, Any] = {
        "identity": "v1",
        "last": False,
        "fingerprint": "f",
        "run": "run-1",
        "attempt": "0123456789",
        "data_file": f"{shard}.{start}-{stop}.0123456789.parquet",
        "errors_file": None,
        "data_bytes": 100,
        "data_sha256": "00" * 32,
        "errors_bytes": 0,
        "errors_sha256": "",
        "rows_in": stop - start,
        "rows_ok": stop - start,
        "rows_error": 0,
        "errors_by_type": {},
        "prompt_tokens": 10 * (stop - start),
        "cached_tokens": 0,
        "output_tokens": stop - start,
        "device_seconds": 0.5,
        "started_at": 1.0,
        "finished_at": 2.0,
    }
    return Receipt(shard=shard, start=start, stop=stop, **(values | fields))
