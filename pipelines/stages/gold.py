"""Gold: how many answered rows of a unit carry the expected label, and how many answers are that label."""

import pyarrow as pa
import pyarrow.compute as pc


def agreement(data: pa.Table, gold: str | None) -> tuple[int | None, int | None]:
    """Rows with a gold label, and those of them whose `label` is the same text; (None, None) without a gold column."""
    if gold is None:
        return None, None
    expected = pc.cast(data[gold], pa.string())
    return len(expected) - expected.null_count, pc.sum(pc.equal(expected, data["label"])).as_py() or 0
