"""Planner: a surveyed run to its plan. What plan and submit share; it only looks, and answers no row."""

import time
from collections.abc import Callable
from dataclasses import field, replace
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipelines.accounts.probed import Probed
from pipelines.ahead import fewer_rows_a_unit, look_ahead
from pipelines.config import STRICT, RunConfig
from pipelines.draw import draw, shuffled
from pipelines.flow_sizes import with_tail
from pipelines.machine import machine
from pipelines.outlook import outlook
from pipelines.planned import Plan
from pipelines.preflight import findings
from pipelines.preparation import Prepared, refusals
from pipelines.specs import carry_spec, prepare_spec, read_spec


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Sampled:
    sample: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    probe_s: Annotated[float, Field(ge=0, le=3600)] = 0.0  # 0: no engine is started


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PlanKeys:
    """What plan is told besides what a run is told."""

    plan: Sampled = field(default_factory=Sampled)
    preflight: bool = False
    format: Literal["table", "json"] = "table"


def plan_of(
    config: RunConfig,
    prepared: Prepared,
    asked: PlanKeys,
    *,
    doing: Callable[[str], None],
    probe: Callable[[pa.Table], Probed] | None = None,
) -> Plan:
    """The plan of a run that was surveyed; `doing` is told in words what is going on.

    `probe` has an engine answer some of the rows that it is given; None: no engine is started.
    """
    committed = prepared.ledger.committed()
    receipts = list(committed.receipts())
    changes = prepared.changes(committed)
    if config.on_deleted == "keep":
        changes = replace(changes, removed=())
    todo = with_tail(changes.todo, config, max_num_seqs=prepared.engine.max_num_seqs)
    changes = replace(changes, todo=todo)
    doing(f"counting the rows of {len(changes.todo):,} shards")
    read, carry = read_spec(config, prepared), carry_spec(config, prepared, committed)
    ahead = look_ahead(
        changes,
        receipts,
        shards=len(prepared.shards),
        size=read.size,
        max_row_bytes=config.source.max_row_bytes,
        seed=config.seed,
        retry=carry.retry,
    )
    doing(f"tokenizing {min(ahead.rows, asked.plan.sample):,} rows")
    kept: list[pa.Table] = []
    drawn = draw(
        ahead.counted,
        asked.plan.sample,
        config.seed,
        read=read,
        spec=prepare_spec(config, prepared),
        carry=carry,
        keep=kept.append if probe else None,
    )
    probed = probe(shuffled(kept, config.seed)) if probe and len(drawn.prompt_tokens) else None
    doing("estimating time and cost")
    on = machine(prepared, measure=True)
    ahead = fewer_rows_a_unit(ahead, drawn.row_bytes or 0, read.size)
    return Plan(
        job=config.job.name,
        model=config.model.name,
        source_uri=config.source.uri,
        sink_uri=prepared.sink_uri,
        fingerprint=prepared.fingerprint.digest,
        seed=config.seed,
        ahead=ahead,
        drawn=drawn,
        fields=prepared.fields,
        outlook=outlook(config, prepared, ahead, drawn, receipts, on, now=time.time(), probed=probed),
        max_model_len=prepared.engine.max_model_len,
        max_tokens=prepared.sampling.max_tokens,
        refusals=tuple(refusals(config, prepared, changes)),
        preflight=tuple(findings(config, prepared, drawn, on.shape, on.device, try_store=asked.preflight, doing=doing)),
    )
