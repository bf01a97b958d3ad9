"""Columns as they were read, brought to the run's schema without loss; and how many bytes a row will take."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipelines.source.formats import short


def fit(
    columns: dict[str, pa.ChunkedArray], rows: int, schema: pa.Schema, start: int, bad: dict[int, tuple[str, str]]
) -> pa.Table:
    """The columns in the schema's order and types; those that are missing are null.

    A row with a value that its column's type cannot hold unchanged is added to `bad` and has null there; `start` is
    the row of the shard with which the columns begin.
    """
    arrays = []
    for field in schema:
        if field.name not in columns:
            arrays.append(pa.nulls(rows, field.type))
            continue
        chunks: list[pa.Array] = []
        _cast(columns[field.name], field, 0, start, bad, chunks)
        arrays.append(pa.chunked_array(chunks, field.type))
    return pa.table(arrays, schema=schema) if arrays else _no_columns(rows)


def _no_columns(rows: int) -> pa.Table:
    return pa.table({"_": pa.nulls(rows)}).select([])


def _cast(
    column: pa.ChunkedArray,
    field: pa.Field,
    at: int,
    start: int,
    bad: dict[int, tuple[str, str]],
    out: list[pa.Array],
) -> None:
    """Cast in one go, or by halves down to the rows that cannot be."""
    try:
        done = column.cast(field.type)
        done.validate(full=True)  # Parquet's strings are not checked to be UTF-8 when they are read
    except (pa.ArrowException, ValueError) as error:
        if len(column) > 1:
            half = len(column) // 2
            _cast(column[:half], field, at, start, bad, out)
            _cast(column[half:], field, at + half, start, bad, out)
            return
        bad.setdefault(at, ("unreadable", f"row {start + at}: column {field.name}: {short(error)}"))
        done = pa.nulls(1, field.type)
    out.extend(done.chunks if isinstance(done, pa.ChunkedArray) else [done])


def row_sizes(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Bytes that each row takes once it is decoded; computed without decoding it."""
    total = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        total += _sizes(column)
    return total


def _sizes(array: pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(_sizes_of(array, array.type), dtype=np.int64)


def _sizes_of(array: pa.Array, kind: pa.DataType) -> object:
    if pat.is_dictionary(kind):
        return _at(_sizes(array.dictionary), array.indices)
    if pat.is_struct(kind):
        return sum((_sizes(child) for child in array.flatten()), np.full(len(array), 1, dtype=np.int64))
    if pat.is_list(kind) or pat.is_large_list(kind) or pat.is_map(kind):
        # Offsets count from the beginning of the whole child, so a slice must not shorten it.
        child = _sizes(array.values) if not pat.is_map(kind) else _sizes(array.keys) + _sizes(array.items)
        sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(child)])
        offsets = array.offsets.to_numpy(zero_copy_only=False)
        return sums[offsets[1:]] - sums[offsets[:-1]] + 4
    if pat.is_fixed_size_list(kind):
        return _sizes(array.flatten()).reshape(len(array), -1).sum(axis=1) if not array.null_count else _guess(array)
    if pat.is_string(kind) or pat.is_binary(kind) or pat.is_large_string(kind) or pat.is_large_binary(kind):
        lengths = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False)
        return lengths + 4
    return _guess(array)


def _guess(array: pa.Array) -> npt.NDArray[np.int64]:
    return np.full(len(array), max(1, array.nbytes // max(1, len(array))), dtype=np.int64)


def _at(sizes: npt.NDArray[np.int64], indices: pa.Array) -> npt.NDArray[np.int64]:
    if not len(sizes):
        return np.zeros(len(indices), dtype=np.int64)
    taken: npt.NDArray[np.int64] = sizes[pc.fill_null(indices, 0).to_numpy(zero_copy_only=False)]
    taken[pc.is_null(indices).to_numpy(zero_copy_only=False)] = 0
    return taken
