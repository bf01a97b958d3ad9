"""What tests/integration/test_throughput.py looks at, acted out in a process of its own: one host on the real engine
for each way of asking the same rows. `python throughput_scenes.py MODEL OUT` writes what each took, as JSON.
"""

import asyncio
import dataclasses
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.book import Book
from actors.engine import Constraint, Sampling
from actors.exchange import PROMPTS, from_ipc, to_ipc
from actors.host import EngineHost
from actors.vllm_settings import set_environment
from actors.window import Window
from pipelines.config import MessageConfig
from pipelines.job.chat import open_chat
from pipelines.job.field_order import best_order
from pipelines.job.row_order import best_rules, printed
from pipelines.job.template import compile_messages
from pipelines.source.units import Unit
from pipelines.stages.ordered import Ordered, keyed, unanswered, written
from pipelines.stages.parcel import Parcel
from tests.integration.vllm_scenes import LABELS, config

GROUPS, ROWS_EACH, PREFIX_TOKENS = 10, 6, 128  # 4 blocks of 32 each; all of them do not fit the KV memory
BLOCK_TOKENS = 32
REPEATED = 12  # rows of the 60 that another has the prompt of
LONG, SPARSE = ("terms", "story", "notes", "offer"), 40  # fields, and rows, of a table; each is shared by some rows


class Shelf:
    """A real book, without an actor around it."""

    def __init__(self) -> None:
        self.book = Book()

    async def note(self, unit: str, page: pa.Table) -> bool:
        return self.book.note(unit, to_ipc(page))

    async def find(self, keys: Any) -> dict[str, pa.Table]:
        return {unit: from_ipc(page) for unit, page in self.book.find(keys).items()}


def shuffled_rows() -> list[list[int]]:
    """Token ids: groups with a long beginning in common, every row with an end of its own, some of them twice."""
    chosen = random.Random(5)
    beginnings = [[chosen.randrange(100, 40_000) for _ in range(PREFIX_TOKENS)] for _ in range(GROUPS)]
    rows = [
        [*start, *(chosen.randrange(100, 40_000) for _ in range(8))] for start in beginnings for _ in range(ROWS_EACH)
    ]
    rows += chosen.sample(rows, REPEATED)
    chosen.shuffle(rows)
    return rows


def unit(name: str, rows: list[list[int]]) -> pa.Table:
    keys = [f"{abs(hash(tuple(ids))) % 2**120:032x}" for ids in rows]
    nothing = pa.nulls(len(rows), pa.string())
    prompts = pa.table([keys, pa.array(rows, pa.list_(pa.int32())), nothing, nothing], schema=PROMPTS)
    return pa.table({"unit": [name], "prompts": pa.array([to_ipc(prompts)], pa.large_binary())})


async def answered(model: str, *, dedup: bool, ordered: bool, decided: bool) -> dict[str, Any]:
    """The answers by prompt, and what they took."""
    small = dataclasses.replace(
        config(model), max_num_seqs=2, kv_cache_gib=0.035, max_model_len=256, stop_when_decided=decided
    )
    host = EngineHost(
        engine=small,
        sampling=Sampling(max_tokens=12),
        constraint=Constraint(choices=LABELS),
        window=Window(ordered=ordered, lookahead=0),
        notes=Shelf() if dedup else None,
    )
    rows = shuffled_rows()
    units = [rows[start : start + 18] for start in range(0, len(rows), 18)]
    blocks = await asyncio.gather(*(host(unit(f"u{number}", each)) for number, each in enumerate(units)))
    host.close()
    lines = [line for block in blocks for line in from_ipc(block["answers"][0].as_buffer()).to_pylist()]
    asked = [line for line in lines if not line["_shared"]]
    return {
        "answers": sorted(zip(map(str, rows), (line["_answer"] for line in lines), strict=True)),
        "asked": len(asked),
        "prefilled": sum(line["_prompt_tokens"] - line["_cached_tokens"] for line in asked),
        "decoded": sum(line["_output_tokens"] for line in asked),
    }


async def one_unit_at_a_time(model: str, *, sort: bool) -> dict[str, Any]:
    """The same rows where a beginning comes back after more rows than an engine sees, as they stand or sorted."""
    small = dataclasses.replace(config(model), max_num_seqs=2, kv_cache_gib=0.035, max_model_len=256)
    host = EngineHost(
        engine=small,
        sampling=Sampling(max_tokens=12),
        constraint=Constraint(choices=LABELS),
        window=Window(ordered=not sort, lookahead=0),
        notes=Shelf(),
    )
    rows = shuffled_rows()
    units = [unit(f"u{at}", rows[at : at + 18]) for at in range(0, len(rows), 18)]
    blocks = pieces(units) if sort else units
    lines = []
    for block in blocks:
        done = await host(block)
        prompts, answers = (from_ipc(done[name][0].as_buffer()).to_pylist() for name in ("prompts", "answers"))
        lines += [prompt | answer for prompt, answer in zip(prompts, answers, strict=True)]
    host.close()
    asked = [line for line in lines if not line["_shared"]]
    return {
        "answers": sorted({line["_key"]: line["_answer"] for line in lines}.items()),
        "asked": len(asked),
        "prefilled": sum(line["_prompt_tokens"] - line["_cached_tokens"] for line in asked),
        "decoded": sum(line["_output_tokens"] for line in asked),
    }


def pieces(units: list[pa.Table]) -> list[pa.Table]:
    """The prompts of these units, sorted, as they go to an engine."""
    found = []
    for number, each in enumerate(units):
        prompts = from_ipc(each["prompts"][0].as_buffer())
        lines = pa.table({"_row": range(prompts.num_rows)})
        where = Unit(shard=f"{number}", identity="", start=0, stop=prompts.num_rows, last=True)
        found.append(keyed(Parcel(unit=where, rows=lines, prompts=prompts), BLOCK_TOKENS))
    rows = pa.concat_tables(found).sort_by("_order")
    with tempfile.TemporaryDirectory() as folder:
        made = written(rows, folder, block=BLOCK_TOKENS, unit_rows=18, answer_tokens=1)
        ordered = Ordered(uri=folder, pieces=tuple(piece for _, piece in made))
        return [parcel.to_block() for piece in ordered.pieces if (parcel := unanswered(ordered, piece))]


def sparse_table() -> list[dict[str, Any]]:
    """Each long field has one text in seven rows of ten, and a text of its own in the others."""
    chosen = random.Random(3)
    words = ("harbour", "violin", "granite", "lantern", "meadow", "copper", "thimble", "orchid")

    def text() -> str:
        return " ".join(chosen.choice(words) for _ in range(40))

    common = {name: text() for name in LONG}
    return [
        {"id": n, **{name: common[name] if chosen.random() < 0.7 else text() for name in LONG}} for n in range(SPARSE)
    ]


async def in_field_order(model: str, *, by_row: bool) -> dict[str, Any]:
    """What a table's prompts take in the best order of fields for all rows, and in one of each row's own."""
    rows, names, chat = sparse_table(), ("id", *LONG), open_chat(model, 49_152)
    columns = [[printed(name, row[name]) for row in rows] for name in names]
    tokens = np.array([chat.lengths(column) for column in columns], np.int64).T
    best = best_order(columns, tokens, rows=len(rows)).order
    found = best_rules(names, columns, tokens).rules if by_row else tuple(names[place] for place in best)
    messages = [MessageConfig(role="user", content="Which one is it? {{ fields }}")]
    template = compile_messages(messages, job="sparse", fields=names, rules=found)
    prompts = [chat.tokens(template.render(row)) for row in rows]
    host = EngineHost(
        engine=dataclasses.replace(config(model), max_num_seqs=2),
        sampling=Sampling(max_tokens=12),
        constraint=Constraint(choices=LABELS),
        window=Window(ordered=True, lookahead=0),
    )
    block = await host(unit("sparse", prompts))
    host.close()
    lines = from_ipc(block["answers"][0].as_buffer()).to_pylist()
    return {"prefilled": sum(line["_prompt_tokens"] - line["_cached_tokens"] for line in lines), "asked": len(lines)}


def main(model: str, out: Path) -> None:
    set_environment(config(model))
    ways = {
        "all": {"dedup": True, "ordered": True, "decided": True},
        "each asked": {"dedup": False, "ordered": True, "decided": True},
        "as they come": {"dedup": True, "ordered": False, "decided": True},
        "to the end": {"dedup": True, "ordered": True, "decided": False},
    }
    took = {name: asyncio.run(answered(model, **way)) for name, way in ways.items()}
    took |= {
        "window by window": asyncio.run(one_unit_at_a_time(model, sort=False)),
        "corpus": asyncio.run(one_unit_at_a_time(model, sort=True)),
        "one order of fields": asyncio.run(in_field_order(model, by_row=False)),
        "an order for each row": asyncio.run(in_field_order(model, by_row=True)),
    }
    out.write_text(json.dumps(took))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
