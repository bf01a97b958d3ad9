"""How prompts come to a host and answers leave it: two Arrow schemas, one line for each row of a unit, in row order.

A unit travels through Ray Data as one row (`Parcel` in pipelines/stages/parcel.py). The host reads its column
`prompts` and adds `answers`; the other columns pass through it unopened.
"""

import pyarrow as pa

PROMPTS = pa.schema(
    [
        ("_key", pa.string()),  # null where the row has an error already
        ("_prompt", pa.list_(pa.int32())),  # token ids; null: no engine is asked, for there is an error or an answer
        ("_error_type", pa.string()),
        ("_error", pa.string()),
    ]
)

ALTERNATIVE = pa.struct([("text", pa.string()), ("logprob", pa.float64())])

ANSWERS = pa.schema(
    [
        ("_answer", pa.string()),  # null where there is an error
        ("_finish_reason", pa.string()),
        ("_prompt_tokens", pa.int32()),
        ("_cached_tokens", pa.int32()),
        ("_output_tokens", pa.int32()),
        ("_token_logprobs", pa.list_(pa.float64())),
        ("_alternatives", pa.list_(pa.list_(ALTERNATIVE))),
        ("_device_seconds", pa.float64()),  # this row's share of the engine's busy time, times its devices
        ("_attempts", pa.int32()),  # times that an engine was asked; 0: never
        ("_error_type", pa.string()),  # those of PROMPTS, carried over, and the engine's own
        ("_error", pa.string()),
        ("_shared", pa.bool_()),  # another row with this key was asked, and all counts are its: they cost nothing here
    ]
)


def to_ipc(table: pa.Table) -> bytes:
    """One table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def from_ipc(data: bytes | pa.Buffer) -> pa.Table:
    """The table in an Arrow IPC stream, without a copy."""
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_all()


def with_answers(unit: pa.Table, values: list[bytes | None]) -> pa.Table:
    """The units, a row each, with these in the column `answers`. None: handed back."""
    column = pa.array(values, pa.large_binary())
    index = unit.schema.get_field_index("answers")
    return unit.append_column("answers", column) if index < 0 else unit.set_column(index, "answers", column)


def without_token_ids(unit: pa.Table, prompts: pa.Table) -> pa.Table:
    """The unit, a row, with these prompts of its own, whose token ids nobody needs any more."""
    gone = pa.nulls(prompts.num_rows, PROMPTS.field("_prompt").type)
    prompts = prompts.set_column(prompts.schema.get_field_index("_prompt"), PROMPTS.field("_prompt"), gone)
    column = pa.array([to_ipc(prompts)], pa.large_binary())
    return unit.set_column(unit.schema.get_field_index("prompts"), "prompts", column)
